//! The program under test.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::containerd::Containerd;
use crate::process::{self, Output, Running};
use crate::tools::{Lab, RunDir, beside_the_test};

/// No single call may take longer.
const LIMIT: Duration = Duration::from_secs(100);

/// Environment that would make a call depend on the machine.
const FOREIGN: [&str; 19] = [
    "CONTAINERD_ADDRESS",
    "CONTAINERD_NAMESPACE",
    "CONTAINERD_SNAPSHOTTER",
    "REGISTRY_AUTH_FILE",
    "DOCKER_AUTH_CONFIG",
    "CREDENTIALS_DIRECTORY",
    "EDGEPULL_LOG",
    "XDG_RUNTIME_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "http_proxy",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NOTIFY_SOCKET",
];

/// One call being put together.
#[derive(Debug)]
pub struct Edgepull {
    command: Command,
    home: RunDir,
    weigh: bool,
}

impl Edgepull {
    /// `edgepull ARGS…`, with nothing of the caller's own settings.
    #[track_caller]
    pub fn new<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        Self::started_by(process::tied(Lab::get().edgepull()), args)
    }

    /// The same for another program than the one under test.
    #[track_caller]
    pub fn of<S: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
    ) -> Self {
        Self::started_by(process::tied(program), args)
    }

    /// The same in a network namespace ([`crate::shaped`]).
    #[track_caller]
    pub fn in_netns<S: AsRef<OsStr>>(namespace: &str, args: impl IntoIterator<Item = S>) -> Self {
        let mut command = process::tied(Lab::get().installed("ip"));
        command
            .args(["netns", "exec", namespace])
            .arg(Lab::get().edgepull());
        Self::started_by(command, args)
    }

    #[track_caller]
    fn started_by<S: AsRef<OsStr>>(
        mut command: Command,
        args: impl IntoIterator<Item = S>,
    ) -> Self {
        let home = Lab::get().run_dir("home");
        let config = home.path().join("config.toml");
        fs::write(&config, "").unwrap();
        command
            .args(args)
            .env("HOME", home.path())
            .env("DOCKER_CONFIG", home.path())
            .env("EDGEPULL_CONFIG", config)
            .env("NO_COLOR", "1");
        for name in FOREIGN {
            command.env_remove(name);
        }
        Self {
            command,
            home,
            weigh: false,
        }
    }

    /// `--output json`.
    #[must_use]
    pub fn json(self) -> Self {
        self.arg("--output").arg("json")
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// A variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// This daemon, this namespace, overlayfs.
    #[must_use]
    pub fn on(self, containerd: &Containerd, namespace: &str) -> Self {
        self.arg("--address").arg(containerd.address()).args([
            "--namespace",
            namespace,
            "--snapshotter",
            "overlayfs",
        ])
    }

    /// A place of this call's own, gone with its [`Run`].
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Measures peak memory; [`Run::peak_kib`] has it.
    #[must_use]
    pub fn weighed(mut self) -> Self {
        self.weigh = true;
        self
    }

    fn prepared(mut self) -> (Command, RunDir) {
        if !self.weigh {
            return (self.command, self.home);
        }
        let mut weighed = process::tied(beside_the_test("edgepull-lab-peak"));
        weighed.arg(self.home.path().join("peak"));
        // `tied` put `setpriv --pdeathsig KILL --` in front.
        weighed.args(self.command.get_args().skip(3));
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => weighed.env(name, value),
                None => weighed.env_remove(name),
            };
        }
        self.command = weighed;
        (self.command, self.home)
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run(self) -> Run {
        self.start().wait()
    }

    /// Starts it.
    #[track_caller]
    pub fn start(self) -> Started {
        let (mut command, home) = self.prepared();
        Started {
            running: process::spawn(&mut command),
            home,
        }
    }
}

/// A call under way.
#[derive(Debug)]
pub struct Started {
    /// The process.
    pub running: Running,
    home: RunDir,
}

impl Started {
    /// Waits for its end, then looks at something in the call's [`Edgepull::home`] before that
    /// goes away.
    #[track_caller]
    pub fn wait_and<T>(self, look: impl FnOnce() -> T) -> (Run, T) {
        let Self { running, home } = self;
        let output = running.wait_within(LIMIT);
        let seen = look();
        drop(home);
        let run = Run {
            output,
            peak_kib: None,
        };
        (run, seen)
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(self) -> Run {
        let output = self.running.wait_within(LIMIT);
        let peak_kib = fs::read_to_string(self.home.path().join("peak"))
            .ok()
            .and_then(|text| text.trim().parse().ok());
        Run { output, peak_kib }
    }

    /// Waits for the end of a daemon that was told to stop, however long it has run
    /// ([`Running::ends_within`]).
    #[track_caller]
    pub fn ends_within(self, limit: Duration) -> (Run, bool) {
        let (output, late) = self.running.ends_within(limit);
        let run = Run {
            output,
            peak_kib: None,
        };
        (run, late)
    }
}

/// A finished call.
#[derive(Debug, Clone)]
pub struct Run {
    /// Exit code, outputs, time.
    pub output: Output,
    /// Peak resident memory, if it was weighed.
    pub peak_kib: Option<u64>,
}

impl Run {
    /// Fails the test unless it ended with this exit code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert!(
            self.output.code == Some(code),
            "wanted exit code {code}\n{}",
            self.output.transcript()
        );
        self
    }

    /// The one document on stdout.
    #[track_caller]
    pub fn document(&self) -> Value {
        serde_json::from_slice(&self.output.stdout).unwrap_or_else(|e| {
            panic!(
                "stdout is no JSON document: {e}\n{}",
                self.output.transcript()
            )
        })
    }

    /// The elements of an array on stdout.
    #[track_caller]
    pub fn elements(&self) -> Vec<Value> {
        match self.document() {
            Value::Array(all) => all,
            _ => panic!("stdout is no array\n{}", self.output.transcript()),
        }
    }

    /// The only element of an array on stdout.
    #[track_caller]
    pub fn element(&self) -> Value {
        let mut all = self.elements();
        assert!(
            all.len() == 1,
            "not one element\n{}",
            self.output.transcript()
        );
        all.remove(0)
    }

    /// The error: of the only element, or the fatal one.
    #[track_caller]
    pub fn error(&self) -> Value {
        let document = self.document();
        let error = match &document {
            Value::Array(all) if all.len() == 1 => all[0]["error"].clone(),
            Value::Object(fatal) => fatal.get("error").cloned().unwrap_or(Value::Null),
            _ => Value::Null,
        };
        assert!(
            error.is_object(),
            "no error in it\n{}",
            self.output.transcript()
        );
        error
    }

    /// Fails the test unless it ended with this code and an error of this kind.
    #[track_caller]
    pub fn fails(self, code: i32, kind: &str) -> Value {
        let run = self.exits(code);
        let error = run.error();
        assert!(
            error["kind"] == kind,
            "wanted kind {kind}\n{}",
            run.output.transcript()
        );
        for key in [
            "kind",
            "message",
            "reference",
            "host",
            "registry",
            "platform",
            "wanted",
            "offered",
            "hint",
            "retryable",
        ] {
            assert!(
                error.get(key).is_some(),
                "the error has no {key}\n{}",
                run.output.transcript()
            );
        }
        error
    }

    /// Stdout as text.
    pub fn text(&self) -> String {
        self.output.text()
    }
}
