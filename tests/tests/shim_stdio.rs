//! What goes in and out of a container through the shim: all of it, in order, however slow the other
//! side is.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::fs;
use std::io::{Read, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use edgepull_tests::containerd::Version;
use edgepull_tests::dock::{Dock, Held, Sink, Stdio, feed, numbers, running, sha256};
use edgepull_tests::image;
use edgepull_tests::on_each_containerd;
use edgepull_tests::process::wait_for;

const SOON: Duration = Duration::from_secs(60);

/// Not the bytes themselves: nobody wants to read them.
#[track_caller]
fn same(found: &(Vec<u8>, String), expected: &[u8], what: &str) {
    let tail = String::from_utf8_lossy(&found.0[found.0.len().saturating_sub(40)..]).into_owned();
    assert_eq!(
        found.0.len(),
        expected.len(),
        "bytes of {what}; its end: {tail:?}"
    );
    assert_eq!(found.1, sha256(expected), "{what}");
}

fn a_hundred_megabytes(version: Version) {
    let dock = Dock::new(version);
    let make = dock.make("big");
    let stdio = Stdio::out_err(&make.dir());
    let (out, err) = (stdio.read_stdout(), stdio.read_stderr());
    let task = make
        .sh("seq 1 7200000 & seq 1 6400000 >&2; wait")
        .stdio(&stdio)
        .start();
    assert_eq!(task.end(), 0);
    let (out, err) = (out.all(), err.all());
    assert!(out.0.len() + err.0.len() > 100 << 20);
    same(&out, &numbers(7_200_000, "\n"), "stdout");
    same(&err, &numbers(6_400_000, "\n"), "stderr");
    dock.is_clean();
}

/// Until somebody reads, the container waits, and the shim does not.
fn a_slow_reader_loses_nothing(version: Version) {
    let dock = Dock::new(version);
    let make = dock.make("slow");
    let stdio = Stdio::out_err(&make.dir());
    let err = stdio.read_stderr();
    let opener = {
        let stdio = stdio.clone();
        std::thread::spawn(move || stdio.open_stdout())
    };
    let task = make
        .sh("seq 1 700000; echo written >&2")
        .stdio(&stdio)
        .start();
    let mut reader = opener.join().unwrap();
    let exec = task.exec("meanwhile").sh("exit 4");
    exec.run();
    assert_eq!(exec.end(), 4);
    assert_eq!(task.status(), "RUNNING");
    let (mut all, mut piece) = (Vec::new(), vec![0; 1 << 14]);
    loop {
        std::thread::sleep(Duration::from_millis(3));
        match reader.read(&mut piece).unwrap() {
            0 => break,
            n => all.extend_from_slice(&piece[..n]),
        }
        // Once it has ended there is no end of the stream before it is deleted.
        if all.len() == numbers(700_000, "\n").len() {
            break;
        }
    }
    assert_eq!(task.end(), 0);
    let digest = sha256(&all);
    same(&(all, digest), &numbers(700_000, "\n"), "stdout");
    assert_eq!(err.text(), "written\n");
    dock.is_clean();
}

/// One that goes away does not end the container; the next one gets the rest.
fn a_reader_that_leaves_can_come_back(version: Version) {
    let dock = Dock::new(version);
    let make = dock.make("leaves");
    let stdio = Stdio::out_err(&make.dir());
    let _err = stdio.read_stderr();
    let first = {
        let stdio = stdio.clone();
        std::thread::spawn(move || {
            let mut begin = vec![0; 1000];
            stdio.open_stdout().read_exact(&mut begin).unwrap();
            begin
        })
    };
    let task = make.sh("seq 1 400000; exit 9").stdio(&stdio).start();
    let mut all = first.join().unwrap();
    // Nobody reads now.
    let exec = task.exec("meanwhile").args(&["true"]);
    exec.run();
    assert_eq!(exec.end(), 0);
    assert_eq!(task.status(), "RUNNING");
    let rest = stdio.read_stdout();
    assert_eq!(task.end(), 9);
    all.extend(rest.all().0);
    let digest = sha256(&all);
    same(&(all, digest), &numbers(400_000, "\n"), "stdout of both");
    dock.is_clean();
}

/// That of a first process and that of an exec.
fn ten_megabytes_on_a_terminal(version: Version) {
    let dock = Dock::new(version);
    let make = dock.make("tty");
    let stdio = Stdio::terminal(&make.dir());
    let out = stdio.read_stdout();
    let task = make.args(&["seq", "1", "1400000"]).stdio(&stdio).start();
    assert_eq!(task.end(), 0);
    let expected = numbers(1_400_000, "\r\n");
    assert!(expected.len() > 10 << 20);
    same(&out.all(), &expected, "the terminal");
    let task = running(&dock, "exec-tty");
    for n in 0..3 {
        let stdio = Stdio::terminal(&task.dir());
        let out = stdio.read_stdout();
        let exec = task
            .exec(&format!("pty{n}"))
            .args(&["seq", "1", "1000000"])
            .stdio(&stdio);
        exec.run();
        assert_eq!(exec.end(), 0);
        same(
            &out.all(),
            &numbers(1_000_000, "\r\n"),
            "the exec's terminal",
        );
    }
    task.end_by_force();
    dock.is_clean();
}

/// Of a process that ends at once: the reason why the shim has to read on after the end.
fn the_last_words_are_heard(version: Version) {
    let dock = Dock::new(version);
    let task = running(&dock, "words");
    for n in 0..30 {
        let dir = task.dir().join(n.to_string());
        let (stdio, expected) = if n % 2 == 0 {
            (Stdio::out_err(&dir), "last words\n")
        } else {
            (Stdio::terminal(&dir), "last words\r\n")
        };
        let out = stdio.read_stdout();
        let _err = (!stdio.terminal).then(|| stdio.read_stderr());
        let exec = task
            .exec(&format!("e{n}"))
            .args(&["echo", "last words"])
            .stdio(&stdio);
        exec.run();
        assert_eq!(exec.end(), 0);
        assert_eq!(out.text(), expected, "exec {n}");
    }
    task.end_by_force();
    dock.is_clean();
}

fn ten_megabytes_in(version: Version) {
    let dock = Dock::new(version);
    let data = numbers(1_500_000, "\n");
    assert!(data.len() > 10 << 20);
    let make = dock.make("stdin");
    let stdio = Stdio::all(&make.dir());
    let (out, err) = (stdio.read_stdout(), stdio.read_stderr());
    let task = make.args(&["sha256sum"]).stdio(&stdio).start();
    let fed = feed(&stdio.stdin, data.clone());
    // Said before it is all there: the end is where both sides have closed it.
    dock.client().close_stdin(task.id(), "").unwrap();
    fed.recv_timeout(SOON).unwrap();
    assert_eq!(task.end(), 0);
    assert_eq!(out.text(), format!("{}  -\n", sha256(&data)));
    assert_eq!(err.text(), "");
    // Through an exec and back.
    let task = running(&dock, "exec");
    let stdio = Stdio::all(&task.dir());
    let (out, _err) = (stdio.read_stdout(), stdio.read_stderr());
    let exec = task.exec("cat").args(&["cat"]).stdio(&stdio);
    exec.run();
    feed(&stdio.stdin, data.clone()).recv_timeout(SOON).unwrap();
    assert_eq!(
        exec.status(),
        "RUNNING",
        "it waits for more until it is told"
    );
    dock.client().close_stdin(task.id(), "cat").unwrap();
    assert_eq!(exec.end(), 0);
    same(&out.all(), &data, "what came back");
    task.end_by_force();
    dock.is_clean();
}

fn a_terminal_is_spoken_to(version: Version) {
    let dock = Dock::new(version);
    let make = dock.make("tty-in");
    let stdio = Stdio::terminal(&make.dir());
    let out = stdio.read_stdout();
    let task = make
        .sh("read line; echo \"heard $line\"; read line; exit 6")
        .stdio(&stdio)
        .start();
    let mut keys = fs::File::options().write(true).open(&stdio.stdin).unwrap();
    keys.write_all(b"hello\n").unwrap();
    keys.write_all(b"\x04").unwrap();
    assert_eq!(task.end(), 6);
    drop(keys);
    assert_eq!(out.text(), "hello\r\nheard hello\r\n");
    dock.is_clean();
}

fn nothing_is_dev_null(version: Version) {
    let dock = Dock::new(version);
    let task = dock.sh("null", "read x; test $? = 1 && seq 1 100000 && echo >&2");
    assert_eq!(task.end(), 0);
    // One of three.
    let make = dock.make("one");
    let stdio = Stdio {
        stdout: String::new(),
        ..Stdio::out_err(&make.dir())
    };
    let err = stdio.read_stderr();
    let task = make
        .sh("read x; echo out; echo err >&2")
        .stdio(&stdio)
        .start();
    assert_eq!(task.end(), 0);
    assert_eq!(err.text(), "err\n");
    dock.is_clean();
}

fn a_file_takes_both_streams(version: Version) {
    let dock = Dock::new(version);
    let image = dock.pull(image::hello());
    let log = dock.daemon.dir().join("logs/of/a container/log");
    let uri = format!("file://{}", log.display());
    for n in 1..=2 {
        let id = dock.id("file");
        let say = "for i in 1 2 3; do echo out $i; echo err $i >&2; done; echo end";
        dock.ctr_run(
            &["-d", "--log-uri", &uri],
            &image,
            &id,
            &["/bin/sh", "-c", say],
        )
        .ok();
        dock.client().wait(&id, "").unwrap();
        dock.daemon.ctr("lab", &["task", "rm", &id]).ok();
        dock.daemon.ctr("lab", &["container", "rm", &id]).ok();
        // Each stream in its order; nothing says which comes first.
        let text = fs::read_to_string(&log).unwrap();
        let lines = |word: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| line.starts_with(word));
            lines.map(str::to_owned).collect()
        };
        let out: Vec<String> = lines("out").into_iter().chain(lines("end")).collect();
        assert_eq!(out.len(), 4 * n, "it is appended to: {text}");
        assert_eq!(lines("out")[..3], ["out 1", "out 2", "out 3"]);
        assert_eq!(lines("err"), ["err 1", "err 2", "err 3"].repeat(n));
        assert_eq!(text.lines().count(), 7 * n, "{text}");
    }
    dock.is_clean();
}

fn logger(dir: &Path, body: &str) -> String {
    fs::create_dir_all(dir).unwrap();
    let file = dir.join("logger");
    fs::write(&file, format!("#!/bin/sh\ncd '{}'\n{body}", dir.display())).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    format!("binary://{}", file.display())
}

fn a_program_takes_the_streams(version: Version) {
    let dock = Dock::new(version);
    let image = dock.pull(image::hello());
    let dir = dock.daemon.dir().join("logger");
    let uri = logger(
        &dir,
        "trap '' TERM\necho \"$CONTAINER_ID $CONTAINER_NAMESPACE $*\" >said\nexec 5>&-\n\
         cat <&3 >out &\ncat <&4 >err\nwait\necho over >over\n",
    );
    let id = dock.id("binary");
    let say = "seq 1 100000; echo err >&2";
    let with = format!("{uri}?name=value");
    dock.ctr_run(
        &["-d", "--log-uri", &with],
        &image,
        &id,
        &["/bin/busybox", "sh", "-c", say],
    )
    .code
    .expect("it ends");
    dock.client().wait(&id, "").unwrap();
    dock.daemon.ctr("lab", &["task", "rm", &id]).ok();
    dock.daemon.ctr("lab", &["container", "rm", &id]).ok();
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    wait_for("the logger's end", SOON, || read("over") == "over\n");
    assert_eq!(read("said"), format!("{id} lab name value\n"));
    assert_eq!(read("err"), "err\n");
    same(
        &(read("out").into_bytes(), sha256(read("out").as_bytes())),
        &numbers(100_000, "\n"),
        "the logger's stdout",
    );
    dock.is_clean();
    // One that is not there, and one that ends before it is ready.
    for (uri, part) in [
        ("binary:///no/such/logger".to_owned(), "/no/such/logger"),
        (logger(&dock.daemon.dir().join("broken"), "exit 1\n"), ""),
    ] {
        let make = dock.make("broken").args(&["true"]);
        let stdio = Stdio {
            stdout: uri.clone(),
            stderr: uri.clone(),
            ..Stdio::default()
        };
        match make.stdio(&stdio).create() {
            Ok(task) => {
                assert_eq!(part, "", "{uri} was taken");
                task.start().unwrap();
                task.end();
            }
            Err(said) => assert!(said.message().contains(part), "{said:?}"),
        }
        dock.is_clean();
    }
}

/// A process that outlives its parent, with the parent's output: the end of an exec does not wait
/// for it for ever.
fn an_output_that_stays_open_holds_up_nobody(version: Version) {
    let dock = Dock::new(version);
    let task = running(&dock, "open");
    let stdio = Stdio::out_err(&task.dir());
    let (out, _err) = (stdio.read_stdout(), stdio.read_stderr());
    let exec = task
        .exec("parent")
        .sh("sleep 500 & echo hello; exit 8")
        .stdio(&stdio);
    exec.run();
    assert_eq!(exec.end(), 8);
    assert_eq!(out.text(), "hello\n");
    assert_eq!(task.status(), "RUNNING");
    task.end_by_force();
    dock.is_clean();
}

/// The shim of a container that goes on keeps nothing of execs that are gone.
fn streams_are_closed_with_what_they_are_of(version: Version) {
    let dock = Dock::new(version);
    let task = running(&dock, "fds");
    let shim = dock.shim();
    let round = |n: usize| {
        for (kind, make) in [Stdio::out_err, Stdio::all, Stdio::terminal]
            .iter()
            .enumerate()
        {
            let stdio = make(&task.dir().join(format!("{n}-{kind}")));
            let mut sinks: Vec<Sink> = vec![stdio.read_stdout()];
            if !stdio.stderr.is_empty() {
                sinks.push(stdio.read_stderr());
            }
            let exec = task
                .exec(&format!("e{n}-{kind}"))
                .args(&["echo", "x"])
                .stdio(&stdio);
            exec.run();
            assert_eq!(exec.end(), 0);
            for sink in sinks {
                sink.all();
            }
        }
    };
    round(0);
    let before = Held::by(shim);
    for n in 1..10 {
        round(n);
    }
    let after = Held::by(shim);
    assert!(
        after.files.len() <= before.files.len() + 1,
        "before: {:#?}\nafter: {:#?}",
        before.files,
        after.files
    );
    task.end_by_force();
    dock.is_clean();
}

on_each_containerd!(
    a_hundred_megabytes,
    a_slow_reader_loses_nothing,
    a_reader_that_leaves_can_come_back,
    ten_megabytes_on_a_terminal,
    the_last_words_are_heard,
    ten_megabytes_in,
    a_terminal_is_spoken_to,
    nothing_is_dev_null,
    a_file_takes_both_streams,
    a_program_takes_the_streams,
    an_output_that_stays_open_holds_up_nobody,
    streams_are_closed_with_what_they_are_of,
);
