//! Containers that wait, by whichever runtime shim, and what their shims weigh.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::containerd::Containerd;
use crate::image;
use crate::process::{self, Output};
use crate::weight::{Pages, Weight};

/// Where the containers are.
const NAMESPACE: &str = "shims";
/// The image's name in the daemon.
const IMAGE: &str = "lab.example/wait:latest";

/// A daemon with an image whose containers are started by one shim.
#[derive(Debug)]
pub struct Shims<'a> {
    daemon: &'a Containerd,
    /// The runtime, as `ctr` is told of it.
    runtime: String,
    program: PathBuf,
    options: Vec<String>,
}

impl<'a> Shims<'a> {
    /// By the shim of that path; the image is imported if it is not there yet.
    #[track_caller]
    pub fn new(daemon: &'a Containerd, program: &Path) -> Self {
        if !daemon.images(NAMESPACE).iter().any(|name| name == IMAGE) {
            let archive = daemon.dir().join("wait.tar");
            image::program(&["/bin/sleep", "1000"], &[]).archive(&archive);
            let file = archive.to_str().expect("a path of the lab is plain");
            let base = IMAGE.split(':').next().unwrap_or(IMAGE);
            let import = ["images", "import", "--base-name", base, file];
            daemon.ctr(NAMESPACE, &import).ok();
        }
        Self {
            daemon,
            runtime: program.display().to_string(),
            program: program.to_path_buf(),
            options: Vec::new(),
        }
    }

    /// By containerd's own shim, of the same version.
    #[track_caller]
    pub fn of_containerd(daemon: &'a Containerd) -> Self {
        let program = daemon.version().bin().join("containerd-shim-runc-v2");
        Self {
            runtime: String::from("io.containerd.runc.v2"),
            ..Self::new(daemon, &program)
        }
    }

    /// With another OCI runtime than the runc that is found.
    #[must_use]
    pub fn by(self, oci: &Path) -> Self {
        if self.runtime == "io.containerd.runc.v2" {
            return self.with(["--runc-binary".to_owned(), oci.display().to_string()]);
        }
        let name = oci.file_name().expect("a program has a name");
        let config = self.daemon.dir().join(name).with_extension("toml");
        fs::write(&config, format!("BinaryName = \"{}\"\n", oci.display())).unwrap();
        self.with([
            "--runtime-config-path".to_owned(),
            config.display().to_string(),
        ])
    }

    /// With more flags of `ctr run`.
    #[must_use]
    pub fn with<S: Into<String>>(mut self, flags: impl IntoIterator<Item = S>) -> Self {
        self.options.extend(flags.into_iter().map(Into::into));
        self
    }

    /// All in one: containers with this name share one shim.
    #[must_use]
    pub fn grouped(self, name: &str) -> Self {
        self.with([
            "--annotation".to_owned(),
            format!("io.containerd.runc.v2.group={name}"),
        ])
    }

    /// `ctr run` of a container of that name.
    pub fn run(&self, flags: &[&str], id: &str, command: &[&str]) -> Output {
        let mut args = vec![
            "run",
            "--snapshotter",
            "overlayfs",
            "--runtime",
            &self.runtime,
        ];
        args.extend(self.options.iter().map(String::as_str));
        args.extend(flags);
        args.extend([IMAGE, id]);
        args.extend(command);
        self.daemon.ctr(NAMESPACE, &args)
    }

    /// The shim's file.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// A name that no other daemon of the lab gives: an OCI runtime's state is the machine's.
    pub fn id(&self, n: usize) -> String {
        let daemon = self.daemon.dir().file_name().unwrap_or_default();
        format!("edgepull-lab-{}-s{n}", daemon.to_string_lossy())
    }

    /// A container that waits.
    #[track_caller]
    pub fn start(&self, id: &str) {
        self.run(&["--detach"], id, &["sleep", "1000"]).ok();
    }

    /// `ctr task exec` of a command in it.
    pub fn exec(&self, id: &str, exec: &str, command: &[&str]) -> Output {
        let mut args = vec!["tasks", "exec", "--exec-id", exec, id];
        args.extend(command);
        self.daemon.ctr(NAMESPACE, &args)
    }

    /// Ends and removes a container that waits.
    #[track_caller]
    pub fn remove(&self, id: &str) {
        self.daemon
            .ctr(NAMESPACE, &["tasks", "delete", "--force", id])
            .ok();
        self.daemon.ctr(NAMESPACE, &["containers", "rm", id]).ok();
    }

    /// The shim's `start` by itself, as containerd calls it; how long that took. The server that it
    /// leaves is ended.
    #[track_caller]
    pub fn bare_start(&self, id: &str) -> Duration {
        let bundle = self.daemon.dir().join("bundles").join(id);
        fs::create_dir_all(&bundle).unwrap();
        fs::write(bundle.join("config.json"), "{\"ociVersion\":\"1.0.2\"}").unwrap();
        let log = bundle.join("log");
        nix::unistd::mkfifo(&log, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // containerd reads it; so an end of it is open.
        let _reader = fs::File::options().read(true).write(true).open(&log);
        let mut command = Command::new(&self.program);
        command
            .args(["-namespace", NAMESPACE, "-id", id, "-address"])
            .arg(self.daemon.address())
            .arg("-publish-binary")
            .arg(self.daemon.version().bin().join("containerd"))
            .arg("start")
            .env("TTRPC_ADDRESS", self.daemon.dir().join("t.sock"))
            .current_dir(&bundle);
        let before = self.running();
        // Not by polling: it is over in milliseconds.
        let begun = Instant::now();
        let output = command.stdin(Stdio::null()).output().unwrap();
        let took = begun.elapsed();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{output:?}");
        for pid in self.running() {
            if !before.contains(&pid) {
                process::send(pid, Signal::SIGKILL);
            }
        }
        let socket = said.split("unix://").nth(1).unwrap_or_default();
        let _gone = fs::remove_file(socket.split('"').next().unwrap_or_default().trim());
        took
    }

    /// The servers of this shim and daemon, once there are so many and none of them is at work.
    #[track_caller]
    pub fn servers(&self, wanted: usize) -> Vec<u32> {
        let mut found = Vec::new();
        process::wait_for("shims at rest", Duration::from_secs(30), || {
            found = self.running();
            found.len() == wanted
        });
        found
    }

    fn running(&self) -> Vec<u32> {
        let users = process::users_of(self.daemon.dir()).into_iter();
        let shim = fs::canonicalize(&self.program).ok();
        let is_shim = |pid: &u32| {
            let program = fs::read_link(format!("/proc/{pid}/exe")).ok();
            program.is_some() && program == shim
        };
        users.filter(is_shim).collect()
    }

    /// What each of them weighs, once no thread comes or goes any more.
    #[track_caller]
    pub fn weigh(&self, wanted: usize) -> Vec<Pages> {
        let servers = self.servers(wanted);
        let mut before = 0;
        process::wait_for("threads to end", Duration::from_secs(30), || {
            std::thread::sleep(Duration::from_millis(100));
            let now = servers.iter().map(|pid| Weight::of(*pid).tasks).sum();
            std::mem::replace(&mut before, now) == now
        });
        servers.into_iter().map(Pages::of).collect()
    }
}
