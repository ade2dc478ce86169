//! A containerd on a machine that emulates others: with handlers of its own for programs of other
//! machines. Since Linux 6.7 a user namespace may have such; this machine's stay as they are, and
//! nobody else sees them.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::containerd::Version;
use crate::edgepull::Edgepull;
use crate::process::{self, Running, wait_for};
use crate::scene::NAMESPACE;
use crate::tools::{self, Lab, RunDir};

const SOON: Duration = Duration::from_secs(30);

/// Users of the namespace: the machine's own, by the same numbers. All of them would be none.
const USERS: &str = "0 0 1000000\n";

/// Name, program and class and machine of ELF files.
const HANDLERS: [(&str, &str, &str, &str); 2] = [
    ("arm64", "qemu-aarch64", "\\x02", "\\xb7"),
    ("arm", "qemu-arm", "\\x01", "\\x28"),
];

/// The static emulator: called so up to Debian 12, and without `-static` from 13 on.
#[track_caller]
fn emulator(program: &str) -> PathBuf {
    let former = format!("{program}-static");
    tools::in_path(&former).unwrap_or_else(|| Lab::get().installed(program))
}

/// The machine. Dropped: gone, with all in it.
#[derive(Debug)]
pub struct Emulating {
    daemon: Option<Running>,
    dir: RunDir,
}

impl Emulating {
    /// One that runs `linux/arm64` and `linux/arm/v7` by qemu-user, with this containerd.
    #[track_caller]
    pub fn start(version: Version) -> Self {
        Self::start_with(version, &[])
    }

    /// The same, with programs of these directories (a shim) to be found by containerd.
    #[track_caller]
    pub fn start_with(version: Version, dirs: &[&std::path::Path]) -> Self {
        let lab = Lab::get();
        let dir = lab.run_dir("emu");
        let at = dir.path();
        let (bin, socket) = (version.bin(), at.join("c.sock"));
        let config = version.config(&at.join("root"), &at.join("state"), &socket);
        fs::write(at.join("config.toml"), config).unwrap();
        let mut script = format!(
            "set -e\nwhile [ ! -e {0}/mapped ]; do sleep 0.02; done\n\
             mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc\nmount -t tmpfs tmpfs /run\n",
            at.display()
        );
        for (name, program, class, machine) in HANDLERS {
            let zeros = "\\x00".repeat(8);
            let ones = "\\xff".repeat(8);
            let line = format!(
                ":qemu-{name}:M::\\x7fELF{class}\\x01\\x01\\x00{zeros}\\x02\\x00{machine}\\x00:\
                 \\xff\\xff\\xff\\xff\\xff\\xff\\xff\\x00{ones}\\xfe\\xff\\xff\\xff:{}:F",
                emulator(program).display()
            );
            let register = "/proc/sys/fs/binfmt_misc/register";
            let _infallible = writeln!(script, "printf %s '{line}' >{register}");
        }
        let _infallible = writeln!(
            script,
            "exec {}/containerd --config {1}/config.toml >{1}/log 2>&1",
            bin.display(),
            at.display()
        );
        fs::write(at.join("start.sh"), script).unwrap();
        let mut path = lab.path_with(&bin);
        for dir in dirs {
            let _infallible = write!(path, ":{}", dir.display());
        }
        let daemon = process::spawn(
            process::tied("unshare")
                .args(["--user", "--mount", "--propagation", "private", "sh"])
                .arg(at.join("start.sh"))
                .env("PATH", path),
        );
        let mut machine = Self {
            daemon: Some(daemon),
            dir,
        };
        machine.map_users();
        wait_for("containerd of the emulating machine", SOON, || {
            let running = machine.daemon.as_mut().is_some_and(Running::is_running);
            assert!(running, "it ended (it needs Linux 6.7): {}", machine.said());
            socket.exists()
        });
        machine
    }

    #[track_caller]
    fn map_users(&self) {
        let process = PathBuf::from(format!("/proc/{}", self.pid()));
        let own = fs::read_link("/proc/self/ns/user").unwrap();
        wait_for("a user namespace", SOON, || {
            fs::read_link(process.join("ns/user")).is_ok_and(|theirs| theirs != own)
        });
        for map in ["uid_map", "gid_map"] {
            fs::write(process.join(map), USERS).unwrap_or_else(|e| panic!("{map}: {e}"));
        }
        fs::write(self.dir.path().join("mapped"), "").unwrap();
    }

    /// A file as it is called in there.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid()))
    }

    fn pid(&self) -> u32 {
        self.daemon.as_ref().map_or(0, Running::id)
    }

    /// What containerd said.
    pub fn said(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Its socket.
    pub fn address(&self) -> PathBuf {
        self.dir.path().join("c.sock")
    }

    /// A program in there, with the environment of a call of edgepull.
    #[track_caller]
    pub fn call(&self, program: &std::path::Path) -> Edgepull {
        let target = format!("--target={}", self.pid());
        let enter = [&target, "--user", "--mount", "--preserve-credentials", "--"];
        Edgepull::of("nsenter", enter).arg(program)
    }

    /// `edgepull VERB` in there, on its containerd, as JSON.
    #[track_caller]
    pub fn edgepull(&self, verb: &str) -> Edgepull {
        self.call(&Lab::get().edgepull())
            .arg(verb)
            .json()
            .arg("--address")
            .arg(self.address())
            .args(["--namespace", NAMESPACE])
    }
}

impl Drop for Emulating {
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.signal(nix::sys::signal::Signal::SIGKILL);
            let _ended = daemon.wait();
        }
    }
}
