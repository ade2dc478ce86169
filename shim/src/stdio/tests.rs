//! Real processes on real FIFOs, files, terminals and loggers.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::mkfifo;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcgetwinsize, tcsetattr};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};

use super::logger::Logger;
use super::uri::LoggerCommand;
use super::{Ends, Io, Owner, Stdio, open};
use crate::child::testing::run;
use crate::child::{self, Child};
use crate::error::Code;

/// No test waits longer for what has to happen.
const LIMIT: Duration = Duration::from_secs(60);

/// Long enough for what would happen to happen.
const MOMENT: Duration = Duration::from_millis(150);

/// What a client made for a process.
struct Client {
    directory: TempDir,
    stdio: Stdio,
}

impl Client {
    /// A FIFO for each stream that is named.
    fn new(streams: &[&str]) -> Client {
        let directory = tempfile::tempdir().unwrap();
        let mut stdio = Stdio::default();
        for stream in streams {
            let path = directory.path().join(stream);
            mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
            let path = path.to_str().unwrap().to_owned();
            match *stream {
                "stdin" => stdio.stdin = path,
                "stdout" => stdio.stdout = path,
                _ => stdio.stderr = path,
            }
        }
        Client { directory, stdio }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Opens a FIFO for reading, at once.
    fn reader(&self, name: &str) -> File {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(self.path(name))
            .unwrap();
        blocking_again(&file);
        file
    }

    /// Opens a FIFO for writing, which has to have a reader.
    fn writer(&self, name: &str) -> File {
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(self.path(name))
            .unwrap();
        blocking_again(&file);
        file
    }

    /// Makes a script, and names it as a log URI.
    fn logger(&self, scheme: &str, script: &str, query: &str) -> String {
        let path = self.path("logger");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        format!("{scheme}://{}{query}", path.display())
    }
}

use std::os::unix::fs::OpenOptionsExt;

fn blocking_again(fd: impl AsFd) {
    rustix::io::ioctl_fionbio(fd, false).unwrap();
}

fn owner() -> Owner {
    Owner {
        container: "box".into(),
        namespace: "space".into(),
        ..Owner::default()
    }
}

/// Does something that waits in the kernel, as another process would.
async fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = oneshot::channel();
    std::thread::spawn(move || sender.send(work()));
    timeout(LIMIT, receiver).await.expect("it hangs").unwrap()
}

async fn read_all(mut file: File) -> Vec<u8> {
    elsewhere(move || {
        let mut all = Vec::new();
        file.read_to_end(&mut all).unwrap();
        all
    })
    .await
}

async fn read_text(file: File) -> String {
    String::from_utf8(read_all(file).await).unwrap()
}

/// Reads until `end` was read.
async fn read_until(mut file: File, end: &'static str) -> (File, String) {
    elsewhere(move || {
        let mut all = Vec::new();
        let mut byte = [0];
        while !all.ends_with(end.as_bytes()) {
            file.read_exact(&mut byte).unwrap();
            all.push(byte[0]);
        }
        (file, String::from_utf8(all).unwrap())
    })
    .await
}

fn start(script: &str, ends: Ends) -> Child {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", script])
        .stdin(ends.stdin)
        .stdout(ends.stdout)
        .stderr(ends.stderr);
    child::spawn(&mut command).unwrap()
}

async fn exit(child: Child) -> i32 {
    timeout(LIMIT, child.ending.exit())
        .await
        .expect("it does not end")
        .status
}

async fn soon(what: &str, mut happened: impl FnMut() -> bool) {
    let limit = Instant::now() + LIMIT;
    while !happened() {
        assert!(Instant::now() < limit, "{what} does not happen");
        sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn a_process_talks_with_its_client() {
    run(async {
        let client = Client::new(&["stdin", "stdout", "stderr"]);
        let (stdout, stderr) = (client.reader("stdout"), client.reader("stderr"));
        let (ends, io) = Io::open(&client.stdio, &owner()).await.unwrap();
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
            "head -c 1000000 /dev/zero & head -c 1000000 /dev/zero >&2; exec 2>&-; wait",
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
        let expected: String = (1..=40).map(|number| format!("{number}\n")).collect();
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
        let stdin = client.writer("stdin");
        io.close_stdin();
        let (written, read) = tokio::join!(
            elsewhere(move || pattern_to(stdin, 100_000_000)),
            elsewhere(move || pattern_from(reader, |byte| byte != b'\r')),
        );
        assert_eq!((written, read), (100_000_000, 100_000_000));
        assert_eq!(exit(child).await, 0);
        assert!(io.drained(LIMIT).await);
        io.close().await;
    });
}

/// The byte at a place: no two chunks are equal, and none has a line's end.
fn pattern(place: usize) -> u8 {
    b'!' + u8::try_from(place % 89).unwrap()
}

fn pattern_to(mut file: File, length: usize) -> usize {
    let mut at = 0;
    while at < length {
        let end = (at + 8191).min(length);
        let chunk: Vec<u8> = (at..end).map(pattern).collect();
        file.write_all(&chunk).unwrap();
        at = end;
    }
    at
}

/// Reads to the end, and counts; slowly now and then.
fn pattern_from(mut file: File, counts: fn(u8) -> bool) -> usize {
    let mut at = 0;
    let mut buffer = vec![0; 100_000];
    loop {
        let read = file.read(&mut buffer).unwrap();
        if read == 0 {
            return at;
        }
        for byte in buffer[..read].iter().copied().filter(|byte| counts(*byte)) {
            assert_eq!(byte, pattern(at), "at {at}");
            at += 1;
        }
        if at % 50_000 < 64 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A terminal: its two sides.
fn terminal() -> (OwnedFd, OwnedFd) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).unwrap();
    unlockpt(&master).unwrap();
    let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
    (master, slave)
}

fn start_in(slave: OwnedFd, script: &str) -> Child {
    let (stdin, stdout) = (slave.try_clone().unwrap(), slave.try_clone().unwrap());
    let ends = Ends {
        stdin,
        stdout,
        stderr: slave,
    };
    start(&format!("exec setsid -c -w sh -c '{script}'"), ends)
}

fn without_echo(slave: &OwnedFd) {
    let mut settings = tcgetattr(slave).unwrap();
    settings.local_modes -= rustix::termios::LocalModes::ECHO;
    tcsetattr(slave, OptionalActions::Now, &settings).unwrap();
}

#[test]
fn a_terminal_is_copied_both_ways_and_ends_with_its_process() {
    run(async {
        let client = Client::new(&["stdin", "stdout"]);
        let reader = client.reader("stdout");
        let (master, slave) = terminal();
        without_echo(&slave);
        let io = Io::with_console(&client.stdio, &owner(), master)
            .await
            .unwrap();
        io.resize(132, 43).unwrap();
        let size = tcgetwinsize(&slave).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (132, 43));
        // Another one keeps the terminal.
        let kept = slave.try_clone().unwrap();
        let child = start_in(slave, "tty >/dev/null && read line && echo \"<$line>\"");
        client.writer("stdin").write_all(b"hello\n").unwrap();
        assert_eq!(exit(child).await, 0);
        io.ended();
        assert_eq!(read_text(reader).await, "<hello>\r\n");
        assert!(io.drained(LIMIT).await);
        drop(kept);
        io.close().await;
    });
}

#[test]
fn a_terminal_that_nobody_has_for_a_moment_goes_on() {
    run(async {
        let client = Client::new(&["stdout"]);
        let reader = client.reader("stdout");
        let (master, slave) = terminal();
        let io = Io::with_console(&client.stdio, &owner(), master)
            .await
            .unwrap();
        let child = start_in(
            slave,
            "name=$(tty); echo one; exec <&- >&- 2>&-; sleep 0.3; exec > $name; echo two",
        );
        let (reader, text) = read_until(reader, "two\r\n").await;
        assert_eq!(text, "one\r\ntwo\r\n");
        assert_eq!(exit(child).await, 0);
        assert!(io.drained(LIMIT).await);
        assert_eq!(read_text(reader).await, "");
        io.close().await;
    });
}

#[test]
fn the_input_of_a_terminal_ends() {
    run(async {
        let client = Client::new(&["stdin", "stdout"]);
        let reader = client.reader("stdout");
        let (master, slave) = terminal();
        without_echo(&slave);
        let io = Io::with_console(&client.stdio, &owner(), master)
            .await
            .unwrap();
        let child = start_in(slave, "cat");
        client.writer("stdin").write_all(b"no end of line").unwrap();
        io.close_stdin();
        assert_eq!(exit(child).await, 0);
        assert!(io.drained(LIMIT).await);
        assert_eq!(read_text(reader).await, "no end of line");
        io.close().await;
    });
}

#[test]
fn a_hundred_megabytes_arrive_through_a_terminal() {
    run(async {
        let client = Client::new(&["stdout"]);
        let reader = client.reader("stdout");
        let (master, slave) = terminal();
        let io = Io::with_console(&client.stdio, &owner(), master)
            .await
            .unwrap();
        let (written, read) = tokio::join!(
            async {
                let written = elsewhere(move || pattern_to(slave.into(), 100_000_000)).await;
                // The tail is not read yet, and nobody has the terminal any more.
                io.ended();
                assert!(io.drained(LIMIT).await);
                written
            },
            elsewhere(move || pattern_from(reader, |_| true)),
        );
        assert_eq!((written, read), (100_000_000, 100_000_000));
        io.close().await;
    });
}

#[test]
fn a_terminal_without_a_client_does_not_hold_up_its_process() {
    run(async {
        let (master, slave) = terminal();
        let io = Io::with_console(&Stdio::default(), &owner(), master)
            .await
            .unwrap();
        let child = start_in(slave, "head -c 1000000 /dev/zero");
        assert_eq!(exit(child).await, 0);
        assert!(io.drained(LIMIT).await);
        io.close().await;
    });
}

/// Waits for the end of its input, and keeps all that it was given.
const KEEPS: &str = "cd \"${0%/*}\"; echo \"$@\" >args; env >env; ls /proc/self/fd >fds
    : >&5; cat <&3 >out & cat <&4 >err & exec 3<&- 4<&- 5>&-; wait";

#[test]
fn a_logger_has_both_streams() {
    run(async {
        let client = Client::new(&[]);
        let uri = client.logger("binary", KEEPS, "?id=a%20b&id=c&flag");
        let stdio = Stdio {
            stdout: uri.clone(),
            stderr: uri,
            ..Stdio::default()
        };
        let (ends, io) = Io::open(&stdio, &owner()).await.unwrap();
        let child = start("echo out; echo err >&2", ends);
        assert_eq!(exit(child).await, 0);
        assert!(io.drained(LIMIT).await);
        io.close().await;
        let kept = |name| fs::read_to_string(client.path(name)).unwrap();
        assert_eq!(
            (kept("out").as_str(), kept("err").as_str()),
            ("out\n", "err\n")
        );
        assert_eq!(kept("args"), "id a b flag \n");
        let environment = kept("env");
        assert!(environment.contains("CONTAINER_ID=box\n"), "{environment}");
        assert!(
            environment.contains("CONTAINER_NAMESPACE=space\n"),
            "{environment}"
        );
        assert!(!environment.contains("CARGO"), "{environment}");
        // The last one is of ls itself.
        assert_eq!(kept("fds"), "0\n1\n2\n3\n4\n5\n6\n");
    });
}

#[test]
fn each_stream_may_have_its_own() {
    run(async {
        let client = Client::new(&["stdout"]);
        let reader = client.reader("stdout");
        let stdio = Stdio {
            stderr: client.logger("binary", KEEPS, ""),
            ..client.stdio.clone()
        };
        let (ends, io) = Io::open(&stdio, &owner()).await.unwrap();
        let child = start("echo out; echo err >&2", ends);
        assert_eq!(exit(child).await, 0);
        assert_eq!(read_text(reader).await, "out\n");
        io.close().await;
        assert_eq!(fs::read_to_string(client.path("out")).unwrap(), "");
        assert_eq!(fs::read_to_string(client.path("err")).unwrap(), "err\n");
    });
}

#[test]
fn a_logger_has_the_output_of_a_terminal() {
    run(async {
        let client = Client::new(&[]);
        let stdio = Stdio {
            stdout: client.logger("binary", KEEPS, ""),
            ..Stdio::default()
        };
        let (master, slave) = terminal();
        let io = Io::with_console(&stdio, &owner(), master).await.unwrap();
        let child = start_in(slave, "echo hello");
        assert_eq!(exit(child).await, 0);
        assert!(io.drained(LIMIT).await);
        io.close().await;
        assert_eq!(fs::read_to_string(client.path("out")).unwrap(), "hello\r\n");
    });
}

#[test]
fn a_logger_that_is_gone_does_not_stop_a_terminal() {
    run(async {
        let client = Client::new(&[]);
        let stdio = Stdio {
            stdout: client.logger("binary", "exit 0", ""),
            ..Stdio::default()
        };
        let (master, slave) = terminal();
        let io = Io::with_console(&stdio, &owner(), master).await.unwrap();
        let child = start_in(slave, "head -c 1000000 /dev/zero");
        assert_eq!(exit(child).await, 0);
        assert!(io.drained(LIMIT).await);
        io.close().await;
    });
}

#[test]
fn a_logger_has_to_be_ready() {
    run(async {
        let client = Client::new(&[]);
        let open = async |scheme, script| {
            let stdio = Stdio {
                stdout: client.logger(scheme, script, ""),
                ..Stdio::default()
            };
            match Io::open(&stdio, &owner()).await {
                Ok((_, io)) => {
                    io.close().await;
                    None
                }
                Err(error) => Some(error.to_string()),
            }
        };
        assert_eq!(open("binary", "exit 3").await, None);
        assert_eq!(open("binary", "exec 5>&-; cat <&3").await, None);
        assert_eq!(open("binary-v2", "echo >&5; cat <&3").await, None);
        let error = open("binary-v2", "exit 3").await.unwrap();
        assert!(error.contains("without saying that it is ready"), "{error}");
        assert!(error.contains("logger of box"), "{error}");
    });
}

#[test]
fn a_logger_that_is_not_there_is_named() {
    run(async {
        let stdio = Stdio {
            stdout: "binary:///no/such/logger".into(),
            ..Stdio::default()
        };
        let error = Io::open(&stdio, &owner()).await.unwrap_err();
        assert!(error.message().contains("/no/such/logger"), "{error}");
        assert!(error.message().contains("No such file"), "{error}");
    });
}

/// The logger, the writing end of its stdout, and its pid.
async fn start_logger(client: &Client, script: &str) -> (crate::error::Result<Logger>, OwnedFd) {
    client.logger("binary", script, "");
    let command = LoggerCommand {
        path: client.path("logger"),
        arguments: Vec::new(),
        strict: false,
    };
    let ((stdout, write), (stderr, _)) =
        (open::pipe(&owner()).unwrap(), open::pipe(&owner()).unwrap());
    let logger = Logger::start(&command, &owner(), [stdout, stderr], MOMENT * 10).await;
    (logger, write)
}

fn is_gone(pid: &str) -> bool {
    !Path::new("/proc").join(pid.trim()).exists()
}

#[test]
fn a_logger_that_says_nothing_is_given_up_and_ended() {
    run(async {
        let client = Client::new(&[]);
        let script = "echo $$ > \"$0.pid\"; exec sleep 600";
        let (logger, _write) = start_logger(&client, script).await;
        let error = logger.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded);
        assert!(error.message().contains("descriptor 5"), "{error}");
        let pid = fs::read_to_string(client.path("logger.pid")).unwrap();
        soon("its end", || is_gone(&pid)).await;
    });
}

#[test]
fn a_logger_is_asked_to_end_and_then_killed() {
    run(async {
        let client = Client::new(&[]);
        let tidy = "trap 'echo tidy > \"$0.out\"; exit' TERM; exec 5>&-
            while :; do sleep 0.05; done";
        let (logger, _write) = start_logger(&client, tidy).await;
        logger.unwrap().close(Instant::now() + LIMIT).await;
        assert_eq!(
            fs::read_to_string(client.path("logger.out")).unwrap(),
            "tidy\n"
        );

        let deaf = "trap '' TERM; echo $$ > \"$0.pid\"; exec 5>&-
            while :; do sleep 0.05; done";
        let (logger, _write) = start_logger(&client, deaf).await;
        logger.unwrap().close(Instant::now() + MOMENT).await;
        let pid = fs::read_to_string(client.path("logger.pid")).unwrap();
        assert!(is_gone(&pid));
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
