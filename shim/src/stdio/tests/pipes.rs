//! Processes with FIFOs and files.

use super::*;

#[test]
fn a_process_talks_with_its_client() {
    run(async {
        let client = Client::new(&["stdin", "stdout", "stderr"]);
        let (stdout, stderr) = (client.reader("stdout"), client.reader("stderr"));
        let (ends, io) = Io::open(&client.stdio, &owner()).await.unwrap();
        io.begin_input();
        let child = start("cat; echo done >&2", ends);
        let mut stdin = client.writer("stdin");
        stdin.write_all(b"hello\n").unwrap();
        io.close_stdin();
        drop(stdin);
        assert_eq!(exit(child).await, 0);
        // The client sees the ends before anything is closed here: it waits for them.
        assert_eq!(read_text(stdout).await, "hello\n");
        assert_eq!(read_text(stderr).await, "done\n");
        assert!(io.drained(LIMIT).await);
        io.close().await;
    });
}

#[test]
fn without_streams_there_is_dev_null() {
    run(async {
        let (ends, io) = Io::open(&Stdio::default(), &owner()).await.unwrap();
        let child = start("test -z \"$(cat)\" && echo out && echo err >&2", ends);
        assert_eq!(exit(child).await, 0);
        assert!(io.drained(LIMIT).await);
        io.close().await;
    });
}

#[test]
fn the_ends_block_and_are_whose_they_should_be() {
    run(async {
        let client = Client::new(&["stdin", "stdout", "stderr"]);
        let owner = Owner {
            uid: 1234,
            gid: 4321,
            ..owner()
        };
        let (ends, io) = Io::open(&client.stdio, &owner).await.unwrap();
        for end in [&ends.stdin, &ends.stdout, &ends.stderr] {
            let flags = OFlag::from_bits_retain(fcntl(end, FcntlArg::F_GETFL).unwrap());
            assert!(!flags.contains(OFlag::O_NONBLOCK));
            let flags = FdFlag::from_bits_retain(fcntl(end, FcntlArg::F_GETFD).unwrap());
            assert!(flags.contains(FdFlag::FD_CLOEXEC));
            let status = fstat(end).unwrap();
            assert_eq!((status.st_uid, status.st_gid), (1234, 4321));
        }
        io.close().await;
    });
}

#[test]
fn a_client_that_goes_ends_nothing_and_another_goes_on() {
    run(async {
        let client = Client::new(&["stdin", "stdout"]);
        let first = client.reader("stdout");
        let (ends, io) = Io::open(&client.stdio, &owner()).await.unwrap();
        io.begin_input();
        let child = start(
            "while read line; do echo \"got $line\"; done; echo end",
            ends,
        );
        let mut stdin = client.writer("stdin");
        stdin.write_all(b"one\n").unwrap();
        let (first, text) = read_until(first, "\n").await;
        assert_eq!(text, "got one\n");
        drop((first, stdin));

        sleep(MOMENT).await;
        let mut stdin = client.writer("stdin");
        stdin.write_all(b"two\n").unwrap();
        sleep(MOMENT).await;
        let second = client.reader("stdout");
        let (second, text) = read_until(second, "\n").await;
        assert_eq!(text, "got two\n");

        // What was written before it is still read, and the end comes with the client's.
        stdin.write_all(b"three\n").unwrap();
        io.close_stdin();
        stdin.write_all(b"four\n").unwrap();
        drop(stdin);
        assert_eq!(exit(child).await, 0);
        assert_eq!(read_text(second).await, "got three\ngot four\nend\n");
        assert!(io.drained(LIMIT).await);
        io.close().await;
    });
}

#[test]
fn a_stream_that_nobody_reads_holds_up_no_other() {
    run(async {
        let client = Client::new(&["stdout", "stderr"]);
        let stderr = client.reader("stderr");
        let (ends, io) = Io::open(&client.stdio, &owner()).await.unwrap();
        let child = start(
            "head -c 1000000 /dev/zero 2>&- & head -c 1000000 /dev/zero >&2; exec 2>&-; wait",
            ends,
        );
        assert_eq!(read_all(stderr).await.len(), 1_000_000);
        assert!(!io.drained(MOMENT).await);
        assert_eq!(read_all(client.reader("stdout")).await.len(), 1_000_000);
        assert_eq!(exit(child).await, 0);
        assert!(io.drained(LIMIT).await);
        io.close().await;
    });
}

#[test]
fn what_is_not_read_is_not_taken() {
    run(async {
        let client = Client::new(&["stdout"]);
        let reader = client.reader("stdout");
        let (ends, io) = Io::open(&client.stdio, &owner()).await.unwrap();
        rustix::io::ioctl_fionbio(&ends.stdout, true).unwrap();
        let mut process = File::from(ends.stdout);
        let mut taken = 0;
        let full = Instant::now() + MOMENT * 2;
        while Instant::now() < full {
            match process.write(&[7; 4096]) {
                Ok(written) => taken += written,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            yield_now().await;
        }
        // Two pipes of 64 KiB each, and one chunk between them.
        assert!((100_000..=148 * 1024).contains(&taken), "{taken}");
        drop(process);
        assert_eq!(read_all(reader).await.len(), taken);
        assert!(io.drained(LIMIT).await);
        io.close().await;
    });
}

#[test]
fn output_waits_for_a_client_that_comes_late() {
    run(async {
        let client = Client::new(&["stdout"]);
        let (ends, io) = Io::open(&client.stdio, &owner()).await.unwrap();
        let child = start("for i in $(seq 40); do echo $i; done", ends);
        assert_eq!(exit(child).await, 0);
        assert!(!io.drained(MOMENT).await);
        let expected = (1..=40).fold(String::new(), |all, number| format!("{all}{number}\n"));
        assert_eq!(read_text(client.reader("stdout")).await, expected);
        assert!(io.drained(LIMIT).await);
        io.close().await;
    });
}

#[test]
fn a_descendant_that_keeps_a_pipe_is_not_waited_for() {
    run(async {
        let client = Client::new(&["stdout"]);
        let reader = client.reader("stdout");
        let (ends, io) = Io::open(&client.stdio, &owner()).await.unwrap();
        let child = start("sleep 600 & echo $!", ends);
        let (reader, text) = read_until(reader, "\n").await;
        let sleeper = nix::unistd::Pid::from_raw(text.trim().parse().unwrap());
        assert_eq!(exit(child).await, 0);
        assert!(!io.drained(MOMENT).await);
        io.close().await;
        // It is all closed: the client sees the end, while the other still runs.
        assert_eq!(read_text(reader).await, "");
        nix::sys::signal::kill(sleeper, nix::sys::signal::Signal::SIGKILL).unwrap();
    });
}

#[test]
fn a_file_is_made_and_written_in_order_and_out_of_the_process_reach() {
    run(async {
        let client = Client::new(&[]);
        let log = client.path("deep/er/log");
        fs::create_dir_all(log.parent().unwrap().parent().unwrap()).unwrap();
        let uri = format!("file://{}", log.display());
        let stdio = Stdio {
            stdout: uri.clone(),
            stderr: uri,
            ..Stdio::default()
        };
        for _ in 0..2 {
            let (ends, io) = Io::open(&stdio, &owner()).await.unwrap();
            let child = start("echo 1; echo 2 >&2; echo 3; test -p /dev/fd/1", ends);
            assert_eq!(exit(child).await, 0);
            assert!(io.drained(LIMIT).await);
            io.close().await;
        }
        assert_eq!(fs::read_to_string(&log).unwrap(), "1\n2\n3\n1\n2\n3\n");
        assert_eq!(log.metadata().unwrap().mode() & 0o777, 0o644);
    });
}

#[test]
fn a_full_disk_does_not_stop_the_process() {
    run(async {
        let stdio = Stdio {
            stdout: "/dev/full".into(),
            ..Stdio::default()
        };
        let (ends, io) = Io::open(&stdio, &owner()).await.unwrap();
        let child = start("head -c 1000000 /dev/zero", ends);
        assert_eq!(exit(child).await, 0);
        assert!(io.drained(LIMIT).await);
        io.close().await;
    });
}

#[test]
fn a_process_that_closes_its_stdin_stops_nothing() {
    run(async {
        let client = Client::new(&["stdin", "stdout"]);
        let reader = client.reader("stdout");
        let (ends, io) = Io::open(&client.stdio, &owner()).await.unwrap();
        io.begin_input();
        let child = start("exec <&-; read line < /dev/null; echo on", ends);
        let (reader, text) = read_until(reader, "on\n").await;
        assert_eq!(text, "on\n");
        client.writer("stdin").write_all(b"nobody").unwrap();
        // The client learns it, as it would from a pipe.
        soon("the end of the copy", || {
            let mut options = OpenOptions::new();
            options.write(true).custom_flags(nix::libc::O_NONBLOCK);
            options.open(client.path("stdin")).is_err()
        })
        .await;
        assert_eq!(exit(child).await, 0);
        assert_eq!(read_text(reader).await, "");
        assert!(io.drained(LIMIT).await);
        io.close().await;
    });
}

#[test]
fn a_hundred_megabytes_arrive_through_pipes() {
    run(async {
        let client = Client::new(&["stdin", "stdout"]);
        let reader = client.reader("stdout");
        let (ends, io) = Io::open(&client.stdio, &owner()).await.unwrap();
        let child = start("cat", ends);
        io.begin_input();
        let stdin = client.writer("stdin");
        io.close_stdin();
        let (written, read) = tokio::join!(
            elsewhere(move || pattern_to(stdin, 100_000_000)),
            elsewhere(move || pattern_from(reader)),
        );
        assert_eq!((written, read), (100_000_000, 100_000_000));
        assert_eq!(exit(child).await, 0);
        assert!(io.drained(LIMIT).await);
        io.close().await;
    });
}

#[test]
fn what_cannot_be_opened_is_named() {
    run(async {
        let client = Client::new(&["stdout"]);
        let stdio = Stdio {
            stdin: client.path("missing").to_str().unwrap().into(),
            ..client.stdio.clone()
        };
        let error = Io::open(&stdio, &owner()).await.unwrap_err();
        assert!(error.message().contains("missing for stdin"), "{error}");
        assert!(error.message().contains("box"), "{error}");

        let stdio = Stdio {
            stderr: "npipe:////./pipe/x".into(),
            ..client.stdio.clone()
        };
        let error = Io::open(&stdio, &owner()).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains("\"npipe\" is unknown"), "{error}");

        let stdio = Stdio {
            stdin: "file:///etc/hostname".into(),
            ..Stdio::default()
        };
        let error = Io::open(&stdio, &owner()).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        // Nothing is left of the streams that were opened before.
        let ours = fs::read_dir("/proc/self/fd").unwrap().filter(|fd| {
            let target = fs::read_link(fd.as_ref().unwrap().path());
            target.is_ok_and(|target| target.starts_with(client.directory.path()))
        });
        assert_eq!(ours.count(), 0);
    });
}

#[test]
fn a_closed_stream_is_closed_for_the_process_too() {
    run(async {
        let client = Client::new(&["stdin", "stdout"]);
        let (ends, io) = Io::open(&client.stdio, &owner()).await.unwrap();
        io.close().await;
        let mut stdout = File::from(ends.stdout);
        assert_eq!(
            stdout.write(b"x").unwrap_err().kind(),
            ErrorKind::BrokenPipe
        );
        assert_eq!(File::from(ends.stdin).read(&mut [0]).unwrap(), 0);
        assert!(stdout.as_raw_fd() > 2);
    });
}

#[test]
fn input_may_be_closed_before_it_is_copied() {
    run(async {
        let client = Client::new(&["stdin", "stdout"]);
        let reader = client.reader("stdout");
        let (ends, io) = Io::open(&client.stdio, &owner()).await.unwrap();
        // A client waits for somebody who reads, and so cannot have written all too early.
        let path = client.path("stdin");
        let writing = elsewhere(move || fs::write(path, "all\n").unwrap());
        let child = start("cat", ends);
        assert!(timeout(MOMENT, writing).await.is_err());
        let path = client.path("stdin");
        let writing =
            tokio::task::spawn_local(elsewhere(move || fs::write(path, "more\n").unwrap()));
        sleep(MOMENT).await;
        io.close_stdin();
        io.begin_input();
        writing.await.unwrap();
        assert_eq!(exit(child).await, 0);
        assert!(read_text(reader).await.contains("more\n"));
        assert!(io.drained(LIMIT).await);
        io.close().await;
    });
}
