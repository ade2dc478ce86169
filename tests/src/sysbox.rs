//! A machine with a real systemd as its first process, in namespaces of its own.
//!
//! Root is an overlay of this machine's root, so every program is there, and nothing that happens
//! inside reaches it; network is this machine's (the registries of a test are on loopback). A
//! containerd of the lab runs as `containerd.service` with its data on a real file system.
//! [`SysBox::pull_the_plug`] ends everything at once, as a power cut does; [`SysBox::boot`]
//! starts again from what is on the disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, id};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::containerd::Version;
use crate::disk::SmallDisk;
use crate::process::{self, Output, Running, wait_for};
use crate::tools::{Lab, RunDir};

const INIT: &str = include_str!("sysbox/init.sh");

/// A boot takes one to three seconds.
const BOOT: Duration = Duration::from_secs(60);

/// What containerd's data may take. A file system of its own: how full the disk is on which the
/// tests run must not decide what the device does.
const ROOMY: u64 = 2 << 30;

/// Control groups of boxes are called so, then the test's process id.
const CGROUP: &str = "edgepull-box-";

/// The machine. Dropped: killed, with everything in it.
#[derive(Debug)]
pub struct SysBox {
    version: Version,
    running: Option<(Running, u32)>,
    cgroup: PathBuf,
    disk: SmallDisk,
    dir: RunDir,
}

impl SysBox {
    /// A booted machine with this containerd.
    #[track_caller]
    pub fn start(version: Version) -> Self {
        Self::with_disk(version, ROOMY)
    }

    /// The same; containerd's data is on a file system of so many bytes.
    #[track_caller]
    pub fn with_disk(version: Version, bytes: u64) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = Lab::get().run_dir("box");
        let tree = cgroup_tree();
        sweep(&tree);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut machine = Self {
            version,
            running: None,
            cgroup: tree.join(format!("{CGROUP}{}-{number}", id())),
            disk: SmallDisk::new(bytes),
            dir,
        };
        for sub in ["upper", "work", "root"] {
            fs::create_dir(machine.dir.path().join(sub)).unwrap();
        }
        fs::write(machine.dir.path().join("init.sh"), INIT).unwrap();
        fs::write(machine.dir.path().join("console"), "").unwrap();
        machine.furnish();
        machine.boot();
        machine
    }

    /// Files that the root has from its first boot on.
    fn furnish(&self) {
        let files = self.dir.path().join("files");
        let bin = self.version.bin();
        let at = bin.display();
        let path = Lab::get().path_with(&bin);
        let config = self.version.config(
            Path::new("/var/lib/containerd"),
            Path::new("/run/containerd"),
            Path::new("/run/containerd/containerd.sock"),
        );
        let unit = format!(
            "[Unit]\nDescription=containerd of the lab\n\
             [Service]\nType=notify\nEnvironment=PATH={path}\n\
             ExecStart={at}/containerd --config /etc/containerd/config.toml\n\
             KillMode=process\nDelegate=yes\nRestart=always\nRestartSec=1\n\
             [Install]\nWantedBy=multi-user.target\n"
        );
        // Without a rate limit of the journal's, and no waiting at the end.
        let journal = "[Journal]\nStorage=persistent\nRateLimitBurst=0\n";
        for (file, text) in [
            ("etc/machine-id", machine_id(&self.cgroup)),
            ("etc/hostname", "box\n".to_owned()),
            ("etc/fstab", String::new()),
            ("etc/systemd/journald.conf", journal.to_owned()),
            ("etc/containerd/config.toml", config),
            ("etc/systemd/system/containerd.service", unit),
        ] {
            let file = files.join(file);
            fs::create_dir_all(file.parent().expect("below the root")).unwrap();
            fs::write(file, text).unwrap();
        }
    }

    /// Switches it on, and waits until systemd says that all is up.
    #[track_caller]
    pub fn boot(&mut self) {
        assert!(self.running.is_none(), "it is on already");
        fs::create_dir_all(&self.cgroup)
            .unwrap_or_else(|e| panic!("{}: {e}", self.cgroup.display()));
        let data = self.data();
        let running = process::spawn(
            process::tied("unshare")
                .args(["--mount", "--pid", "--fork", "--kill-child", "--uts"])
                .args(["--ipc", "sh"])
                .arg(self.dir.path().join("init.sh"))
                .arg(self.dir.path())
                .arg(&self.cgroup)
                .arg(data),
        );
        let outer = running.id();
        let mut init = None;
        wait_for("the first process", BOOT, || {
            // `setpriv` becomes `unshare`, whose only child is the first process.
            init = child_of(outer);
            init.is_some()
        });
        self.running = init.map(|init| (running, init));
        let init = self.init();
        wait_for("systemd", BOOT, || {
            assert!(process::alive(init), "{}", self.console());
            fs::read_to_string(format!("/proc/{init}/comm")).is_ok_and(|name| name == "systemd\n")
        });
        let mut last = String::new();
        let end = Instant::now() + BOOT;
        loop {
            let state = self.run(["systemctl", "is-system-running", "--wait"]);
            if state.text() == "running\n" {
                return;
            }
            // Until its socket is there, the answer is an error.
            let settled = ["degraded\n", "maintenance\n"].contains(&state.text().as_str());
            if settled || Instant::now() > end {
                last.push_str(&state.transcript());
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let failed = self.run(["systemctl", "--failed", "--no-pager"]);
        panic!(
            "the box does not come up: {last}\n{}\n{}",
            failed.text(),
            self.console()
        );
    }

    /// A power cut: everything in it is gone at once, what is on the disk stays.
    #[track_caller]
    pub fn pull_the_plug(&mut self) {
        assert!(self.running.is_some(), "it is off already");
        assert!(self.end(), "the box does not end");
    }

    /// Whether all of it has ended.
    fn end(&mut self) -> bool {
        let mut ended = true;
        if let Some((mut running, init)) = self.running.take() {
            process::send(init, Signal::SIGKILL);
            // The kernel ends every process of the namespace before the first one is gone.
            let end = Instant::now() + Duration::from_secs(30);
            while running.is_running() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
            ended = !running.is_running();
        }
        remove_cgroup(&self.cgroup);
        ended
    }

    #[track_caller]
    fn init(&self) -> u32 {
        self.running.as_ref().expect("it is on").1
    }

    /// What systemd said on its console.
    pub fn console(&self) -> String {
        fs::read_to_string(self.dir.path().join("console")).unwrap_or_default()
    }

    /// A command in there, as root.
    #[track_caller]
    pub fn command<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.init()))
            .args(["--all", "--root", "--wd", "--", "env", "-i"])
            .args(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"])
            .args(["HOME=/root", "LC_ALL=C.UTF-8", "NO_COLOR=1"])
            .args(["DEBIAN_FRONTEND=noninteractive", "SYSTEMD_COLORS=0"])
            .args(words);
        command
    }

    /// Runs a command in there, whatever its exit code.
    #[track_caller]
    pub fn run<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Output {
        process::run(&mut self.command(words))
    }

    /// The `ctr` of its containerd.
    #[track_caller]
    pub fn ctr(&self, namespace: &str, args: &[&str]) -> Output {
        let ctr = self.version.bin().join("ctr");
        let mut words = vec![ctr.to_str().expect("UTF-8"), "-n", namespace];
        words.extend(args);
        self.run(words)
    }

    /// Where a file of the running box is seen from outside; `path` begins with `/`.
    #[track_caller]
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init()))
    }

    /// Writes a file in there, with the directories above it.
    #[track_caller]
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let file = self.path(path);
        fs::create_dir_all(file.parent().expect("a file")).unwrap();
        fs::write(&file, content).unwrap_or_else(|e| panic!("{path}: {e}"));
    }

    /// Takes a file in there away.
    #[track_caller]
    pub fn remove(&self, path: &str) {
        fs::remove_file(self.path(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    }

    /// Whether there is such a file.
    #[track_caller]
    pub fn has(&self, path: &str) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }

    /// A property of a unit, as `systemctl show` has it.
    #[track_caller]
    pub fn property(&self, unit: &str, name: &str) -> String {
        let shown = self.run(["systemctl", "show", "--value", "--property", name, unit]);
        shown.ok().text().trim().to_owned()
    }

    /// What a unit said since the machine was made.
    #[track_caller]
    pub fn journal(&self, unit: &str) -> String {
        self.run(["journalctl", "--no-pager", "--unit", unit])
            .text()
    }

    /// Sends a signal to the main process of a unit.
    #[track_caller]
    pub fn signal(&self, unit: &str, signal: &str) {
        let signal = format!("--signal={signal}");
        self.run(["systemctl", "kill", "--kill-whom=main", &signal, unit])
            .ok();
    }

    /// containerd's data, from outside.
    pub fn data(&self) -> PathBuf {
        self.disk.path().to_path_buf()
    }

    /// The file system of [`Self::with_disk`].
    pub fn disk(&self) -> &SmallDisk {
        &self.disk
    }
}

impl Drop for SysBox {
    fn drop(&mut self) {
        if std::thread::panicking() && self.running.is_some() {
            process::note(&format!("console of the box:\n{}", self.console()));
            let journal = self.run(["journalctl", "--no-pager", "--lines=200", "--quiet"]);
            process::note(&journal.text());
        }
        if !self.end() {
            process::note("the box does not end");
        }
    }
}

/// A machine has an id of its own: jitter and the like hang on it.
fn machine_id(seed: &Path) -> String {
    let digest = crate::image::digest_of(seed.as_os_str().as_encoded_bytes());
    format!("{}\n", &digest["sha256:".len()..][..32])
}

fn child_of(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// The machine's tree of control groups of version 2, which may hold no controllers.
#[track_caller]
fn cgroup_tree() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let found = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (point, kind) = (words.next()?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(point))
    });
    found.expect("no cgroup2 is mounted: mount -t cgroup2 cgroup2 DIR")
}

/// Control groups of test processes that were killed.
fn sweep(tree: &Path) {
    for entry in fs::read_dir(tree).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix(CGROUP)
            .and_then(|rest| rest.split('-').next()?.parse().ok());
        if owner.is_some_and(|owner| !process::alive(owner)) {
            remove_cgroup(&entry.path());
        }
    }
}

/// Removes a control group and those below it; the kernel may take a moment to see that they
/// are empty.
fn remove_cgroup(group: &Path) {
    for _ in 0..100 {
        for entry in fs::read_dir(group).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_cgroup(&entry.path());
            }
        }
        match fs::remove_dir(group) {
            Err(e) if e.raw_os_error() == Some(nix::libc::EBUSY) => {
                std::thread::sleep(Duration::from_millis(20));
            }
            _ => return,
        }
    }
    process::note(&format!("cannot remove {}", group.display()));
}
