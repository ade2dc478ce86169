//! A private containerd.

use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::process::{self, Output};
use crate::tools::{self, Lab, RunDir};

/// The versions the lab has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Debian 12's 1.6: the oldest supported.
    V1_6,
    /// Debian 13's 1.7.
    V1_7,
    /// The 2.x of Debian's development suite.
    V2,
}

impl Version {
    /// Oldest first.
    pub const ALL: [Self; 3] = [Self::V1_6, Self::V1_7, Self::V2];

    fn dir(self) -> &'static str {
        match self {
            Self::V1_6 => "containerd-1.6",
            Self::V1_7 => "containerd-1.7",
            Self::V2 => "containerd-2",
        }
    }

    /// Where its programs are.
    pub fn bin(self) -> PathBuf {
        let daemon = Lab::get().tool(&format!("{}/usr/bin/containerd", self.dir()));
        daemon.parent().expect("a file has a parent").to_path_buf()
    }

    /// config.toml of a daemon without CRI.
    pub(crate) fn config(self, root: &Path, state: &Path, socket: &Path) -> String {
        let ttrpc = socket.with_extension("ttrpc");
        configuration(self, false, root, state, [socket, &ttrpc])
    }

    /// What the program calls itself, such as `1.6.20`.
    pub fn exact(self) -> String {
        let text = process::run(Command::new(self.bin().join("containerd")).arg("--version"))
            .ok()
            .text();
        let word = text.split_whitespace().nth(2).unwrap_or_default();
        word.trim_start_matches('v')
            .split(['~', '+'])
            .next()
            .unwrap_or_default()
            .to_owned()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.dir())
    }
}

/// How a daemon is set up.
#[derive(Debug, Clone)]
pub struct Setup {
    version: Version,
    cri: bool,
    root: Option<PathBuf>,
    config: String,
    path: Vec<PathBuf>,
    env: Vec<(String, String)>,
}

impl Setup {
    /// The usual one: no CRI, its own directory.
    pub fn new(version: Version) -> Self {
        Self {
            version,
            cri: false,
            root: None,
            config: String::new(),
            path: Vec::new(),
            env: Vec::new(),
        }
    }

    /// A variable of its environment, which its shims have as well.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Programs of this directory are found as well (a shim).
    #[must_use]
    pub fn path(mut self, dir: &Path) -> Self {
        self.path.push(dir.to_path_buf());
        self
    }

    /// With the CRI plugin (its image index; no sandbox is ever started).
    #[must_use]
    pub fn cri(mut self) -> Self {
        self.cri = true;
        self
    }

    /// Content and snapshots below `dir` (a small file system, say).
    #[must_use]
    pub fn root(mut self, dir: &Path) -> Self {
        self.root = Some(dir.to_path_buf());
        self
    }

    /// More lines of config.toml (tables).
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        self.config.push_str(toml);
        self
    }

    /// Starts it.
    #[track_caller]
    pub fn start(self) -> Containerd {
        Containerd::with(self)
    }
}

/// The text of config.toml, without what [`Setup::config`] adds.
fn configuration(
    version: Version,
    cri: bool,
    root: &Path,
    state: &Path,
    [grpc, ttrpc]: [&Path; 2],
) -> String {
    let mut disabled = vec![
        "io.containerd.snapshotter.v1.aufs",
        "io.containerd.snapshotter.v1.blockfile",
        "io.containerd.snapshotter.v1.btrfs",
        "io.containerd.snapshotter.v1.devmapper",
        "io.containerd.snapshotter.v1.erofs",
        "io.containerd.snapshotter.v1.zfs",
        "io.containerd.internal.v1.opt",
        "io.containerd.internal.v1.tracing",
        "io.containerd.tracing.processor.v1.otlp",
    ];
    if !cri {
        disabled.extend([
            "io.containerd.grpc.v1.cri",
            "io.containerd.cri.v1.images",
            "io.containerd.cri.v1.runtime",
            "io.containerd.podsandbox.controller.v1.podsandbox",
            "io.containerd.nri.v1.nri",
        ]);
    }
    format!(
        "version = {}\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = {disabled:?}\n\
         [grpc]\naddress = \"{}\"\n[ttrpc]\naddress = \"{}\"\n[debug]\nlevel = \"info\"\n",
        if version == Version::V2 { 3 } else { 2 },
        root.display(),
        state.display(),
        grpc.display(),
        ttrpc.display(),
    )
}

/// A running daemon of our own. Dropped: killed, with shims, containers, mounts and files.
#[derive(Debug)]
pub struct Containerd {
    setup: Setup,
    child: Option<Child>,
    dir: RunDir,
}

impl Containerd {
    /// A daemon of that version with the usual setup.
    #[track_caller]
    pub fn start(version: Version) -> Self {
        Self::with(Setup::new(version))
    }

    #[track_caller]
    fn with(setup: Setup) -> Self {
        let dir = Lab::get().run_dir("ctd");
        let mut daemon = Self {
            setup,
            child: None,
            dir,
        };
        let config = daemon.configuration();
        fs::write(daemon.dir.path().join("config.toml"), config).unwrap();
        daemon.begin();
        daemon
    }

    /// The version.
    pub fn version(&self) -> Version {
        self.setup.version
    }

    /// The directory everything of it is in (except a root given with [`Setup::root`]).
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its data: content store and snapshotters.
    pub fn root(&self) -> PathBuf {
        match &self.setup.root {
            Some(dir) => dir.join("containerd"),
            None => self.dir.path().join("root"),
        }
    }

    /// The socket.
    pub fn address(&self) -> PathBuf {
        self.dir.path().join("c.sock")
    }

    /// The daemon's own log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn configuration(&self) -> String {
        let v2 = self.setup.version == Version::V2;
        let dir = self.dir.path().display();
        let mut text = configuration(
            self.setup.version,
            self.setup.cri,
            &self.root(),
            &self.dir.path().join("state"),
            [&self.address(), &self.dir.path().join("t.sock")],
        );
        if self.setup.cri {
            text.push_str("[plugins.\"io.containerd.nri.v1.nri\"]\ndisable = true\n");
            // Pods are never started: what CNI would need is pointed at nothing.
            let cni = format!("conf_dir = \"{dir}/cni\"\nbin_dir = \"{dir}/cni\"\n");
            let table = if v2 {
                "io.containerd.cri.v1.runtime\".cni"
            } else {
                "io.containerd.grpc.v1.cri\".cni"
            };
            let _infallible = write!(text, "[plugins.\"{table}]\n{cni}");
        }
        text.push_str(&self.setup.config);
        text
    }

    #[track_caller]
    fn begin(&mut self) {
        let bin = self.setup.version.bin();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        let mut path = Lab::get().path_with(&bin);
        for dir in &self.setup.path {
            let _infallible = write!(path, ":{}", dir.display());
        }
        let child = process::tied(bin.join("containerd"))
            .arg("--config")
            .arg(self.dir.path().join("config.toml"))
            .env("PATH", path)
            .env("TMPDIR", self.dir.path())
            .envs(self.setup.env.iter().map(|(name, value)| (name, value)))
            .env_remove("NOTIFY_SOCKET")
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {}: {e}", self.setup.version));
        self.child = Some(child);
        let end = std::time::Instant::now() + Duration::from_secs(30);
        loop {
            let probe = self.command(&["version"]);
            if probe.code == Some(0) {
                return;
            }
            let gone = self
                .child
                .as_mut()
                .is_none_or(|c| !matches!(c.try_wait(), Ok(None)));
            assert!(
                !gone && std::time::Instant::now() < end,
                "{} does not come up:\n{}",
                self.setup.version,
                self.log()
            );
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    fn ctr_command(&self) -> Command {
        let bin = self.setup.version.bin();
        let mut command = Command::new(bin.join("ctr"));
        command
            .env("PATH", Lab::get().path_with(&bin))
            .env("TMPDIR", self.dir.path())
            .arg("-a")
            .arg(self.address());
        command
    }

    fn command(&self, args: &[&str]) -> Output {
        process::run(self.ctr_command().args(args))
    }

    /// The `ctr` of the same version, in a namespace, whatever its exit code.
    #[track_caller]
    pub fn ctr(&self, namespace: &str, args: &[&str]) -> Output {
        process::run(self.ctr_command().args(["-n", namespace]).args(args))
    }

    /// As [`Self::ctr`], in the background.
    #[track_caller]
    pub fn ctr_spawn(&self, namespace: &str, args: &[&str]) -> process::Running {
        process::spawn(self.ctr_command().args(["-n", namespace]).args(args))
    }

    /// The arguments with which this version's `ctr` pulls the way a Go client does.
    pub fn pull_args<'a>(&self, reference: &'a str) -> Vec<&'a str> {
        let mut args = vec!["images", "pull", "--plain-http"];
        if self.setup.version == Version::V2 {
            // The transfer service selects by exact match; the client's own pull by vector. And
            // since 2.0 `ctr` fetches every platform's manifest and config unless told not to.
            args.extend(["--local", "--skip-metadata"]);
        }
        args.push(reference);
        args
    }

    /// `ctr images pull` over plain HTTP.
    #[track_caller]
    pub fn pull(&self, namespace: &str, reference: &str) -> Output {
        self.ctr(namespace, &self.pull_args(reference))
    }

    /// `ctr run --rm` with runc on overlayfs: a container that ends by itself.
    #[track_caller]
    pub fn run(&self, namespace: &str, reference: &str, command: &[&str]) -> Output {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        // runc's own state directory is the machine's: names are unique over all daemons.
        let id = format!("edgepull-lab-{}-{n}", std::process::id());
        let mut args = vec!["run", "--rm", "--snapshotter", "overlayfs", reference, &id];
        args.extend(command);
        self.ctr(namespace, &args)
    }

    /// Names of the image records.
    #[track_caller]
    pub fn images(&self, namespace: &str) -> Vec<String> {
        let mut names: Vec<String> = lines(&self.ctr(namespace, &["images", "ls", "-q"]).ok());
        names.sort();
        names
    }

    /// Digests in the content store.
    #[track_caller]
    pub fn blobs(&self, namespace: &str) -> Vec<String> {
        let mut digests = lines(&self.ctr(namespace, &["content", "ls", "-q"]).ok());
        digests.sort();
        digests
    }

    /// The bytes of a blob.
    #[track_caller]
    pub fn blob(&self, namespace: &str, digest: &str) -> Vec<u8> {
        self.ctr(namespace, &["content", "get", digest]).ok().stdout
    }

    /// Every lease's name.
    #[track_caller]
    pub fn leases(&self, namespace: &str) -> Vec<String> {
        lines(&self.ctr(namespace, &["leases", "ls", "-q"]).ok())
    }

    /// Labels of every blob, sorted: `(digest, [(key, value)])`.
    #[track_caller]
    pub fn content_labels(&self, namespace: &str) -> Vec<(String, Vec<(String, String)>)> {
        let text = self.ctr(namespace, &["content", "ls"]).ok().text();
        let mut rows: Vec<_> = text
            .lines()
            .skip(1)
            .filter_map(|line| {
                // The labels come last; ages of unlike length have tabs of unlike number after them.
                let columns: Vec<&str> = line.split('\t').collect();
                Some((columns.first()?.trim().to_owned(), labels(columns.last()?)))
            })
            .collect();
        rows.sort();
        rows
    }

    /// Committed snapshots of overlayfs: `(name, parent)`, sorted.
    #[track_caller]
    pub fn snapshots(&self, namespace: &str) -> Vec<(String, String)> {
        let text = self.ctr(namespace, &["snapshots", "ls"]).ok().text();
        let mut rows: Vec<_> = text
            .lines()
            .skip(1)
            .filter_map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                match words.as_slice() {
                    [name, parent, "Committed"] => Some(((*name).into(), (*parent).into())),
                    [name, "Committed"] => Some(((*name).into(), String::new())),
                    _ => None,
                }
            })
            .collect();
        rows.sort();
        rows
    }

    /// What `ctr snapshots info` says about one.
    #[track_caller]
    pub fn snapshot(&self, namespace: &str, name: &str) -> Value {
        let output = self.ctr(namespace, &["snapshots", "info", name]).ok();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", output.text()))
    }

    /// Image records with type, target and labels, sorted by name.
    #[track_caller]
    pub fn image_records(&self, namespace: &str) -> Vec<ImageRecord> {
        let text = self.ctr(namespace, &["images", "ls"]).ok().text();
        let mut rows: Vec<ImageRecord> = text
            .lines()
            .skip(1)
            .filter_map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                Some(ImageRecord {
                    name: (*words.first()?).to_owned(),
                    media_type: (*words.get(1)?).to_owned(),
                    digest: (*words.get(2)?).to_owned(),
                    labels: labels(words.last()?),
                })
            })
            .collect();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        rows
    }

    /// Makes containerd collect garbage now, and returns when it has: a sync delete of a lease.
    #[track_caller]
    pub fn collect_garbage(&self, namespace: &str) {
        let id = format!("edgepull-lab-{}", std::process::id());
        self.ctr(namespace, &["leases", "create", "--id", &id]).ok();
        self.ctr(namespace, &["leases", "delete", "--sync", &id])
            .ok();
    }

    /// Stops it as a service manager would, and starts it again.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop(Signal::SIGTERM);
        self.begin();
    }

    /// Ends it with no chance to tidy up; shims go on.
    pub fn kill9(&mut self) {
        self.stop(Signal::SIGKILL);
    }

    /// Starts a killed one again, on the same data.
    #[track_caller]
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "{} still runs", self.setup.version);
        self.begin();
    }

    /// The daemon's process id.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Freezes it: connections are accepted by the kernel, nobody answers.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Ends a pause.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            process::send(child.id(), signal);
        }
    }

    fn stop(&mut self, signal: Signal) {
        self.signal(Signal::SIGCONT);
        self.signal(signal);
        if let Some(mut child) = self.child.take() {
            let _status = child.wait();
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.stop(Signal::SIGKILL);
        // Before a root of the caller's is unmounted. The rest is the run directory's to undo.
        tools::end_containers(self.dir.path());
        process::kill_users_of(self.dir.path());
    }
}

/// An image record as `ctr images ls` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRecord {
    /// The name.
    pub name: String,
    /// Media type of the target.
    pub media_type: String,
    /// Digest of the target.
    pub digest: String,
    /// Its labels, sorted.
    pub labels: Vec<(String, String)>,
}

fn lines(output: &Output) -> Vec<String> {
    output.text().lines().map(str::to_owned).collect()
}

fn labels(text: &str) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    for part in text.trim().split(',') {
        match part.split_once('=') {
            Some((key, value)) => all.push((key.to_owned(), value.to_owned())),
            // A value with a comma in it (repositories of a distribution source).
            None if part != "-" && !part.is_empty() => {
                if let Some((_, value)) = all.last_mut() {
                    value.push(',');
                    value.push_str(part);
                }
            }
            None => {}
        }
    }
    all.sort();
    all
}
