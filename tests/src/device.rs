//! A machine with the package on it: what a user has after two commands.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::containerd::Version;
use crate::process::{self, Output, wait_for};
use crate::sysbox::SysBox;
use crate::target::Target;
use crate::tools::{Lab, RunDir};

/// The unit.
pub const UNIT: &str = "edgepull.service";

/// containerd's namespace on a host without a kubelet.
pub const NAMESPACE: &str = "default";

/// For tests alone: waits that on a device are tens of seconds; and the id of the box's boot, since a
/// unit with protected tunables gets a /proc of its own, which has the machine's.
const QUICK: &str = "[Service]\nRestartSec=200ms\nWatchdogSec=4s\nTimeoutAbortSec=2s\n\
    TimeoutStopSec=10s\nBindReadOnlyPaths=/proc/sys/kernel/random/boot_id\n";

/// The `.deb` for this machine, made of the shipped program (or of `EDGEPULL_BIN`) by
/// `cross/package`; once for each version and process.
#[track_caller]
pub fn package(version: &str) -> PathBuf {
    // The directories are the process's own, and taken away after its end.
    static MADE: Mutex<Vec<(String, PathBuf, RunDir)>> = Mutex::new(Vec::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, file, _)) = made.iter().find(|(name, ..)| name == version) {
        return file.clone();
    }
    let dir = Lab::get().run_dir("package");
    let file = build(version, dir.path());
    made.push((version.to_owned(), file.clone(), dir));
    file
}

#[track_caller]
fn build(version: &str, dist: &Path) -> PathBuf {
    let target = Target::here();
    let place = dist.join(&target.triple);
    fs::create_dir_all(&place).unwrap_or_else(|e| panic!("cannot make {}: {e}", place.display()));
    let program = place.join("edgepull");
    if let Some(named) = env::var_os("EDGEPULL_BIN") {
        fs::copy(&named, &program).unwrap_or_else(|e| panic!("{}: {e}", named.display()));
        // Symbols of a debug build would only make the package large; a script has none.
        let _stripped = process::run(Command::new("strip").arg(&program));
    } else {
        fs::copy(target.file(), &program).expect("the shipped file can be copied");
    }
    // The package has the shim beside it.
    let shim = target.shim();
    let name = shim.file_name().expect("a file has a name");
    fs::copy(&shim, place.join(name)).expect("the shipped shim can be copied");
    process::run(
        Command::new(Lab::get().workspace().join("cross/package"))
            .arg(&target.triple)
            .env("EDGEPULL_DIST", dist)
            .env("EDGEPULL_VERSION", version),
    )
    .ok();
    let mut found = fs::read_dir(dist)
        .expect("just made")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "deb"));
    found.next().expect("cross/package makes a .deb")
}

/// The version in `Cargo.toml`.
pub fn version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        let text = fs::read_to_string(Lab::get().workspace().join("Cargo.toml")).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("version = \""));
        let version = line.and_then(|rest| rest.split('"').next());
        version.expect("a version").to_owned()
    })
}

/// A booted machine with containerd and the installed package. One at a time: a machine that is
/// busy with a second one makes waits long.
#[derive(Debug)]
pub struct Device {
    /// The machine.
    pub machine: SysBox,
    _turn: MutexGuard<'static, ()>,
}

fn turn() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    /// The package is installed, no image is declared.
    #[track_caller]
    pub fn start() -> Self {
        let turn = turn();
        Self::on(SysBox::start(Version::V1_7), turn)
    }

    /// The same with so many bytes for all images.
    #[track_caller]
    pub fn with_disk(bytes: u64) -> Self {
        let turn = turn();
        Self::on(SysBox::with_disk(Version::V1_7, bytes), turn)
    }

    #[track_caller]
    fn on(machine: SysBox, turn: MutexGuard<'static, ()>) -> Self {
        let device = Self {
            machine,
            _turn: turn,
        };
        device.machine.write(
            "/etc/systemd/system/edgepull.service.d/quick.conf",
            QUICK.as_bytes(),
        );
        device.install(version());
        device
    }

    /// `dpkg -i` of that version.
    #[track_caller]
    pub fn install(&self, version: &str) -> Output {
        let file = package(version);
        let file = file.to_str().expect("UTF-8");
        // Nobody pulls the plug while dpkg works; its syncs would cost seconds.
        let words = ["dpkg", "--force-unsafe-io", "--force-confold", "-i", file];
        self.machine.run(words).ok()
    }

    /// Writes a list of images.
    #[track_caller]
    pub fn declare(&self, name: &str, references: &[&str]) {
        let text = references.join("\n") + "\n";
        self.machine
            .write(&format!("/etc/edgepull/images.d/{name}.txt"), text);
    }

    /// `edgepull ARGS…` on the machine.
    #[track_caller]
    pub fn edgepull(&self, args: &[&str]) -> Output {
        let mut words = vec!["edgepull"];
        words.extend(args);
        self.machine.run(words)
    }

    /// `edgepull status -o json`, or null while nobody answers.
    #[track_caller]
    pub fn status(&self) -> Value {
        let output = self.edgepull(&["status", "--output", "json"]);
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// The same of a daemon that must answer.
    #[track_caller]
    pub fn answer(&self) -> Value {
        let output = self.edgepull(&["status", "--output", "json"]);
        let document: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("no status ({e}): {}", output.transcript()));
        assert!(document["images"].is_array(), "{document:#}");
        document
    }

    /// Waits until a daemon that answers does not speak of the image.
    #[track_caller]
    pub fn wait_unlisted(&self, reference: &str, limit: Duration) {
        wait_for("no longer wanted", limit, || {
            let document = self.answer();
            let images = document["images"].as_array();
            !images.is_some_and(|all| all.iter().any(|i| i["reference"] == reference))
        });
    }

    /// What the status says of one image.
    #[track_caller]
    pub fn image(&self, reference: &str) -> Value {
        let status = self.status();
        let images = status["images"].as_array();
        let found = images.and_then(|all| all.iter().find(|i| i["reference"] == reference));
        found.cloned().unwrap_or(Value::Null)
    }

    /// Waits until the status says so of an image.
    #[track_caller]
    pub fn wait_until(
        &self,
        what: &str,
        reference: &str,
        limit: Duration,
        mut is: impl FnMut(&Value) -> bool,
    ) -> Value {
        let mut last = Value::Null;
        let end = std::time::Instant::now() + limit;
        loop {
            let image = self.image(reference);
            if is(&image) {
                return image;
            }
            if !image.is_null() {
                last = image;
            }
            assert!(
                std::time::Instant::now() < end,
                "{what}: not within {limit:?}; last: {last}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until an image is ready.
    #[track_caller]
    pub fn wait_ready(&self, reference: &str) -> Value {
        self.wait_until("ready", reference, Duration::from_secs(60), |image| {
            image["state"] == "ready"
        })
    }

    /// Whether the record of an image has our pin.
    #[track_caller]
    pub fn pinned(&self, reference: &str) -> bool {
        self.labels(reference).contains("io.edgepull.pinned=true")
    }

    /// What `ctr` prints of an image's record; empty if there is none.
    #[track_caller]
    pub fn labels(&self, reference: &str) -> String {
        let filter = format!("name=={reference}");
        let listed = self.machine.ctr(NAMESPACE, &["images", "ls", &filter]);
        let text = listed.text();
        let line = text.lines().find(|line| line.starts_with(reference));
        line.unwrap_or_default().to_owned()
    }

    /// The main process of the daemon.
    #[track_caller]
    pub fn main_pid(&self) -> String {
        self.machine.property(UNIT, "MainPID")
    }

    /// Waits until the unit is active with another main process than `before`.
    #[track_caller]
    pub fn wait_restarted(&self, before: &str) {
        wait_for("another process", Duration::from_secs(30), || {
            let now = self.main_pid();
            now != "0" && now != before && self.machine.property(UNIT, "ActiveState") == "active"
        });
    }

    /// Ordinary files of what was unpacked, each with its size.
    #[track_caller]
    pub fn unpacked(&self) -> Vec<(PathBuf, u64)> {
        let snapshots = self
            .machine
            .data()
            .join("io.containerd.snapshotter.v1.overlayfs/snapshots");
        let mut found = Vec::new();
        files_below(&snapshots, &mut found);
        found
    }

    /// Those without a byte; the images of these tests have none.
    #[track_caller]
    pub fn empty_files(&self) -> Vec<PathBuf> {
        let empty = self.unpacked().into_iter().filter(|(_, size)| *size == 0);
        empty.map(|(path, _)| path).collect()
    }
}

fn files_below(dir: &Path, found: &mut Vec<(PathBuf, u64)>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(meta) = entry.path().symlink_metadata() else {
            continue;
        };
        if meta.is_dir() {
            files_below(&entry.path(), found);
        } else if meta.is_file() {
            found.push((entry.path(), meta.len()));
        }
    }
}
