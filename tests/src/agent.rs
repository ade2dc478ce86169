//! The daemon under test, with directories of its own.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::containerd::Containerd;
use crate::edgepull::{Edgepull, Run, Started};
use crate::process;
use crate::scene::NAMESPACE;
use crate::target::Target;
use crate::tools::{Lab, RunDir};

/// How long anything that the daemon does by itself may take in a test.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a configuration with limits of its own says of the disk.
pub const NO_FLOOR: &str = "\n[limits]\ndisk_floor = \"1MiB\"\n";

/// A daemon: its configuration, its state, and the process while it runs.
#[derive(Debug)]
pub struct Agent {
    dir: RunDir,
    address: PathBuf,
    process: Option<Started>,
    /// The program, and what stands before its arguments.
    program: Vec<PathBuf>,
    variables: Vec<(&'static str, OsString)>,
}

impl Agent {
    /// Directories for a daemon that works on `containerd`; nothing declared, not started.
    #[track_caller]
    pub fn new(containerd: &Containerd) -> Self {
        Self::at(containerd.address())
    }

    /// The same on a device without any engine.
    #[track_caller]
    pub fn alone() -> Self {
        Self::at("/nowhere/containerd.sock".into())
    }

    #[track_caller]
    fn at(address: PathBuf) -> Self {
        let dir = Lab::get().run_dir("agent");
        for name in ["images.d", "run", "state"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let agent = Self {
            dir,
            address,
            process: None,
            program: vec![Lab::get().edgepull()],
            variables: Vec::new(),
        };
        agent.configure("");
        agent
    }

    /// Another program than the one under test.
    #[must_use]
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = vec![program.into()];
        self
    }

    /// The file that is shipped for a target, on its CPU.
    #[must_use]
    #[track_caller]
    pub fn shipped(mut self, target: &Target) -> Self {
        self.ship(target);
        self
    }

    /// The same from its next start on. Under an emulator it cannot start workers.
    #[track_caller]
    pub fn ship(&mut self, target: &Target) {
        self.program = target.runner();
        self.program.push(target.file());
    }

    /// A variable for all that is started from now on.
    pub fn set(&mut self, name: &'static str, value: impl Into<OsString>) {
        self.variables.push((name, value.into()));
    }

    /// config.toml, beside which images.d lies. Without limits in it next to no free space is asked for:
    /// how full the disk is on which the tests run must not decide.
    #[track_caller]
    pub fn configure(&self, text: &str) {
        let mut text = text.to_owned();
        if !text.contains("[limits]") {
            text.push_str(NO_FLOOR);
        }
        fs::write(self.path("config.toml"), text).unwrap();
    }

    /// A file of images.d, put there as a careful editor does.
    #[track_caller]
    pub fn declare(&self, name: &str, text: &str) {
        let new = self.path(".new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.path("images.d").join(name)).unwrap();
    }

    /// Takes a file of images.d away.
    #[track_caller]
    pub fn undeclare(&self, name: &str) {
        fs::remove_file(self.path("images.d").join(name)).unwrap();
    }

    /// Something in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.path("run/edgepull.sock")
    }

    /// A call with the daemon's directories.
    #[track_caller]
    pub fn call<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Edgepull {
        let call = Edgepull::of(&self.program[0], &self.program[1..]).args(args);
        let call = self
            .variables
            .iter()
            .fold(call, |call, (name, value)| call.env(name, value));
        call.env("RUNTIME_DIRECTORY", self.path("run"))
            .env("STATE_DIRECTORY", self.path("state"))
            .env("EDGEPULL_SOCKET", self.socket())
            .env("EDGEPULL_CONFIG", self.path("config.toml"))
            .env("EDGEPULL_LOG", "edgepull=info")
            .arg("--address")
            .arg(&self.address)
            .args(["--namespace", NAMESPACE, "--snapshotter", "overlayfs"])
    }

    /// Starts it, and waits until it answers.
    #[track_caller]
    pub fn start(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let started = self.call(["agent"]).start();
        self.process = Some(started);
        process::wait_for("the daemon's socket", PATIENCE, || {
            self.get("/healthz").is_some_and(|(code, _)| code == 200)
        });
    }

    /// The daemon's process id.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        let started = self.process.as_ref().expect("it runs");
        started.running.id()
    }

    /// Its worker processes.
    #[track_caller]
    pub fn workers(&self) -> Vec<u32> {
        process::children_of(self.pid())
    }

    /// Whether the process is still there.
    pub fn is_running(&mut self) -> bool {
        self.process
            .as_mut()
            .is_some_and(|started| started.running.is_running())
    }

    /// Sends a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        process::send(self.pid(), signal);
    }

    /// Ends it as a service manager does, and returns what it left.
    #[track_caller]
    pub fn stop(&mut self) -> Run {
        self.end(Signal::SIGTERM)
    }

    /// Ends it without notice.
    #[track_caller]
    pub fn kill(&mut self) -> Run {
        self.end(Signal::SIGKILL)
    }

    #[track_caller]
    fn end(&mut self, signal: Signal) -> Run {
        let started = self.process.take().expect("it runs");
        started.running.signal(signal);
        let (run, late) = started.ends_within(PATIENCE);
        assert!(
            !late,
            "it does not stop within {PATIENCE:?}: {}",
            run.output.transcript()
        );
        run
    }

    /// One request over the control socket: status code and body.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        request(&self.socket(), "GET", path)
    }

    /// The status document.
    #[track_caller]
    pub fn status(&self) -> Value {
        let (code, body) = self.get("/v1/status").expect("the daemon answers");
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}"))
    }

    /// What the status says about one image.
    #[track_caller]
    pub fn image(&self, reference: &str) -> Option<Value> {
        let status = self.status();
        let images = status["images"].as_array().expect("a list of images");
        images
            .iter()
            .find(|image| image["reference"] == reference)
            .cloned()
    }

    /// Waits until an image is in this state; the image.
    #[track_caller]
    pub fn wait_state(&self, reference: &str, state: &str) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let image = self.image(reference);
            if let Some(image) = &image
                && image["state"] == state
            {
                return image.clone();
            }
            assert!(
                Instant::now() < end,
                "{reference} is not {state}: {:#}",
                self.status()
            );
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Waits until there is nothing to do ([`wait_quiet`]).
    #[track_caller]
    pub fn wait_quiet(&self) -> Value {
        wait_quiet(|| self.status())
    }

    /// The value of a metric's only series that has all of `labels` in its line.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let (_, text) = self.get("/metrics").expect("the daemon answers");
        let mut found = text.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        });
        let value = found.next()?.rsplit(' ').next()?.parse().ok();
        assert!(found.next().is_none(), "{name} is there twice:\n{text}");
        value
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(started) = self.process.take() {
            started.running.signal(Signal::SIGKILL);
            let (run, late) = started.ends_within(PATIENCE);
            if std::thread::panicking() {
                // A second panic would end all tests of the process.
                process::note(&run.output.transcript());
            } else {
                assert!(!late, "it outlived SIGKILL: {}", run.output.transcript());
            }
        }
    }
}

/// Waits until a daemon of this status has nothing to do, the second look after a connection
/// included, which comes two seconds after it: no pass for twice that time. When the last one was.
#[track_caller]
pub fn wait_quiet(status: impl Fn() -> Value) -> Value {
    let passed = || status()["last_pass"].clone();
    let (mut last, mut since) = (passed(), Instant::now());
    process::wait_for("nothing to do", PATIENCE, || {
        let now = passed();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        !last.is_null() && since.elapsed() > Duration::from_secs(4)
    });
    last
}

/// One request over a Unix socket, spoken by hand: the scenarios must not believe the
/// program's own client.
pub fn request(socket: &Path, method: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: edgepull\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let code = head.split_whitespace().nth(1)?.parse().ok()?;
    let chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    Some((
        code,
        if chunked {
            dechunked(body)
        } else {
            body.to_owned()
        },
    ))
}

fn dechunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 {
            break;
        }
        whole.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    whole
}
