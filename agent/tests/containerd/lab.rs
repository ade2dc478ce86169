//! A private containerd, and a registry beside it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use edgepull::{
    containerd::Engine,
    error::Result,
    event::Events,
    oci::Reference,
    pull::{Choice, Request},
    source::Source,
};
use serde_json::json;

use crate::made::TestImage;

/// containerd of its own, below a temporary directory; killed with the value.
pub(crate) struct Lab {
    directory: tempfile::TempDir,
    child: Mutex<Option<Child>>,
    mounted: Option<PathBuf>,
}

impl Lab {
    pub(crate) fn start() -> Self {
        Self::prepare(None)
    }

    /// With a root that has only `mebibytes`.
    pub(crate) fn small(mebibytes: u32) -> Self {
        Self::prepare(Some(mebibytes))
    }

    fn prepare(mebibytes: Option<u32>) -> Self {
        for program in ["containerd", "ctr", "runc"] {
            let found = Command::new(program).arg("--version").output();
            assert!(
                found.is_ok(),
                "`{program}` is not on PATH: these tests need containerd (Debian: apt-get install containerd runc) and root"
            );
        }
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut lab = Self {
            directory,
            child: Mutex::new(None),
            mounted: None,
        };
        let root = lab.path("root");
        fs::create_dir(&root).expect("a root");
        if let Some(size) = mebibytes {
            let done = Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={size}m"), "tmpfs"])
                .arg(&root)
                .status()
                .expect("mount");
            assert!(
                done.success(),
                "these tests need root: cannot mount a tmpfs"
            );
            lab.mounted = Some(root);
        }
        let config = format!(
            "version = 2\nroot = \"{root}\"\nstate = \"{state}\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{socket}\"\n[ttrpc]\naddress = \"{ttrpc}\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{opt}\"\n",
            root = lab.path("root").display(),
            state = lab.path("state").display(),
            socket = lab.socket().display(),
            ttrpc = lab.path("t.sock").display(),
            opt = lab.path("opt").display(),
        );
        fs::write(lab.path("config.toml"), config).expect("a configuration");
        lab.run();
        lab
    }

    pub(crate) fn run(&self) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .expect("a log");
        let child = Command::new("containerd")
            .arg("-c")
            .arg(self.path("config.toml"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("containerd starts");
        *self.child.lock().expect("not poisoned") = Some(child);
        let until = Instant::now() + Duration::from_secs(20);
        while !self.try_ctr("default", &["version"]).0 {
            assert!(
                Instant::now() < until,
                "containerd does not come up (these tests need root):\n{}",
                fs::read_to_string(self.path("log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Makes the root of [`Lab::small`] larger.
    pub(crate) fn grow(&self, mebibytes: u32) {
        let root = self.mounted.as_ref().expect("a small lab");
        let done = Command::new("mount")
            .args(["-o", &format!("remount,size={mebibytes}m")])
            .arg(root)
            .status()
            .expect("mount");
        assert!(done.success());
    }

    pub(crate) fn kill(&self) {
        if let Some(mut child) = self.child.lock().expect("not poisoned").take() {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("c.sock")
    }

    pub(crate) async fn engine(&self, namespace: &str) -> Engine {
        Engine::connect(&self.socket(), namespace, Duration::from_secs(10))
            .await
            .expect("containerd answers")
    }

    pub(crate) fn command(&self, namespace: &str, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("-a").arg(self.socket());
        command.args(["-n", namespace]).args(args);
        command
    }

    fn try_ctr(&self, namespace: &str, args: &[&str]) -> (bool, String) {
        let output = self.command(namespace, args).output().expect("ctr runs");
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    /// What `ctr` prints; it must succeed.
    pub(crate) fn ctr(&self, namespace: &str, args: &[&str]) -> String {
        let (ok, text) = self.try_ctr(namespace, args);
        assert!(ok, "ctr {args:?}: {text}");
        text
    }

    /// A garbage collection, and the end of it.
    pub(crate) fn collect(&self, namespace: &str) {
        self.ctr(namespace, &["leases", "create", "--id", "throwaway"]);
        self.ctr(namespace, &["leases", "delete", "--sync", "throwaway"]);
    }

    /// All that a pull may leave besides the image, in one text.
    pub(crate) fn state(&self, namespace: &str) -> String {
        [
            self.ctr(namespace, &["images", "ls"]),
            self.ctr(namespace, &["content", "ls"]),
            self.ctr(namespace, &["snapshots", "ls"]),
            self.ctr(namespace, &["leases", "ls"]),
        ]
        .join("\n")
        .lines()
        // The age in `content ls` moves with the clock, and the tabs after it with its width.
        .map(|line| {
            let mut cells: Vec<&str> = line
                .split(['\t', ','])
                .filter(|cell| !cell.contains("second") && !cell.contains("minute"))
                .filter(|cell| !cell.is_empty())
                .collect();
            // Labels come in any order.
            cells.sort_unstable();
            cells.join(" ")
        })
        .collect::<Vec<_>>()
        .join("\n")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.kill();
        if let Some(root) = &self.mounted {
            let _ = Command::new("umount").arg("-l").arg(root).status();
        }
    }
}

/// The usual request.
pub(crate) fn request<'a>(
    reference: &'a Reference,
    choice: &'a Choice,
    source: &'a dyn Source,
) -> Request<'a> {
    Request {
        reference,
        choice,
        more: &[],
        unpack_more: false,
        source,
        from_registry: true,
        snapshotter: None,
        unpack: true,
        keep_layers: true,
        pin: false,
        managed_by: "test",
        room: None,
        jury: None,
    }
}

pub(crate) fn reference(text: &str) -> Reference {
    Reference::parse(text).expect("a reference")
}

pub(crate) async fn pull(
    lab: &Lab,
    namespace: &str,
    request: &Request<'_>,
) -> Result<edgepull::pull::Outcome> {
    let engine = lab.engine(namespace).await;
    pull_at(&engine, request, &lab.path("locks")).await
}

pub(crate) async fn pull_at(
    engine: &Engine,
    request: &Request<'_>,
    locks: &Path,
) -> Result<edgepull::pull::Outcome> {
    edgepull::pull::pull_into(engine, request, &Events::none(), locks).await
}

/// A registry on the loopback.
pub(crate) struct Registry {
    child: Child,
    port: u16,
}

impl Registry {
    pub(crate) fn start(lab: &Lab, port: u16) -> Self {
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            lab.path("registry").display()
        );
        fs::write(lab.path("registry.yml"), config).expect("a configuration");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(lab.path("registry.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is not on PATH (Debian: apt-get install docker-registry)");
        let until = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "the registry does not come up");
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { child, port }
    }

    /// Publishes an image without index as `name`.
    pub(crate) fn push(&self, lab: &Lab, image: &TestImage, name: &str) {
        let layout = lab.path("layout");
        let blobs = layout.join("blobs/sha256");
        fs::create_dir_all(&blobs).expect("a layout");
        for (digest, bytes) in &image.blobs {
            fs::write(blobs.join(digest.hex()), bytes).expect("a blob");
        }
        fs::write(
            layout.join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .expect("a file");
        let leaf = &image.choice.leaf.descriptor;
        let index = json!({"schemaVersion": 2, "manifests": [leaf]});
        fs::write(layout.join("index.json"), index.to_string()).expect("a file");
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--preserve-digests"])
            .arg("--dest-tls-verify=false")
            .arg(format!("oci:{}", layout.display()))
            .arg(format!("docker://127.0.0.1:{}/{name}", self.port))
            .output()
            .expect("skopeo is not on PATH (Debian: apt-get install skopeo)");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "skopeo: {text}");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The most memory that this process ever had, in KiB.
pub(crate) fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("linux");
    let line = status.lines().find(|l| l.starts_with("VmHWM:"));
    let number = line.and_then(|l| l.split_whitespace().nth(1));
    number.and_then(|n| n.parse().ok()).expect("a number")
}
