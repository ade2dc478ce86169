//! A shaped link: two network namespaces, joined by a process that delays, loses and slows down
//! packets (`link.py`; kernels without netem exist). The registry is at one end, edgepull at the
//! other.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, setns};

use crate::process;
use crate::tools::Lab;

/// What the link does to packets.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Bits a second, each way.
    pub rate: u64,
    /// Milliseconds, each way.
    pub delay: u32,
    /// Per cent of packets, each way.
    pub loss: u32,
}

/// The registry's end.
pub const NEAR: &str = "10.213.0.1";

/// A network namespace of our own.
#[derive(Debug)]
struct Netns(String);

/// Names of the lab's namespaces begin so.
const PREFIX: &str = "edgepull-lab-";

impl Netns {
    #[track_caller]
    fn new(end: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{n}{end}", std::process::id());
        ip(&["netns", "add", &name]).ok();
        Self(name)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // What is left of it goes with its last process.
        let _gone = ip(&["netns", "delete", &self.0]);
    }
}

#[track_caller]
fn ip(args: &[&str]) -> process::Output {
    process::run(Command::new(Lab::get().installed("ip")).args(args))
}

/// Namespaces of test processes that were killed.
fn sweep() {
    for line in ip(&["netns", "list"]).text().lines() {
        let name = line.split(' ').next().unwrap_or_default();
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse().ok());
        if owner.is_some_and(|pid| !process::alive(pid)) {
            let _gone = ip(&["netns", "delete", name]);
        }
    }
}

/// The running link; gone when dropped.
#[derive(Debug)]
pub struct Shaped {
    child: Child,
    commands: Option<ChildStdin>,
    near: Netns,
    far: Netns,
}

impl Shaped {
    /// Sets it up. A machine that cannot (no TUN, no namespaces) fails the test.
    #[track_caller]
    pub fn start(shape: Shape) -> Self {
        static SWEPT: std::sync::Once = std::sync::Once::new();
        SWEPT.call_once(sweep);
        let (near, far) = (Netns::new("a"), Netns::new("b"));
        // An interface's name has 15 characters at most.
        let number: String = near.0.chars().filter(char::is_ascii_digit).collect();
        let name = format!("ep{number}");
        let script = Lab::get().workspace().join("tests/src/link.py");
        let mut child = process::tied(Lab::get().installed("python3"))
            .arg(script)
            .args([&name, &near.0, &far.0])
            .args([shape.rate.to_string(), shape.delay.to_string()])
            .args([shape.loss.to_string(), "1".to_owned()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start python3: {e}"));
        let commands = child.stdin.take();
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert_eq!(
            line.trim(),
            "ready",
            "no link between two TUN devices: needs /dev/net/tun and network namespaces"
        );
        Self {
            child,
            commands,
            near,
            far,
        }
    }

    /// A socket at the registry's end.
    #[track_caller]
    pub fn listen(&self) -> TcpListener {
        let path = format!("/var/run/netns/{}", self.near.0);
        // A thread that has moved never comes back: it is of no other use.
        let bound = std::thread::spawn(move || {
            let namespace = std::fs::File::open(path)?;
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
            TcpListener::bind((NEAR, 0))
        });
        bound
            .join()
            .expect("it does not panic")
            .unwrap_or_else(|e| panic!("cannot listen on {NEAR}: {e}"))
    }

    /// The namespace of edgepull's end.
    pub fn far(&self) -> &str {
        &self.far.0
    }

    /// Nothing passes until [`Self::up`].
    pub fn down(&mut self) {
        self.command("down\n");
    }

    /// Packets pass again.
    pub fn up(&mut self) {
        self.command("up\n");
    }

    /// Edgepull's end gets another address: connections of the old one are dead, and nobody says
    /// so.
    pub fn renumber(&mut self) {
        self.command("renumber\n");
    }

    fn command(&mut self, text: &str) {
        if let Some(commands) = &mut self.commands {
            let _ended = commands.write_all(text.as_bytes());
            let _ended = commands.flush();
        }
    }
}

impl Drop for Shaped {
    fn drop(&mut self) {
        self.commands = None;
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}
