//! Real processes on real FIFOs, files, terminals and loggers.
#![allow(clippy::unwrap_used, reason = "tests")]

mod logger;
mod pipes;
mod terminal;

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
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

/// Bytes that repeat after a prime number, so that no two chunks are equal; none ends a line.
fn pattern() -> Vec<u8> {
    (b'!'..b'!' + 89).cycle().take(200_000).collect()
}

fn pattern_to(mut file: File, length: usize) -> usize {
    let pattern = pattern();
    let mut at = 0;
    while at < length {
        let chunk = 8191.min(length - at);
        file.write_all(&pattern[at % 89..][..chunk]).unwrap();
        at += chunk;
    }
    at
}

/// Reads to the end, and counts; pauses now and then.
fn pattern_from(mut file: File) -> usize {
    let pattern = pattern();
    let mut buffer = vec![0; 100_000];
    let (mut at, mut pause) = (0, 0);
    loop {
        let read = file.read(&mut buffer).unwrap();
        if read == 0 {
            return at;
        }
        assert!(buffer[..read] == pattern[at % 89..][..read], "at {at}");
        at += read;
        if at > pause {
            std::thread::sleep(Duration::from_millis(5));
            pause += 5_000_000;
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
