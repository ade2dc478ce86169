//! A private containerd, images made in memory, and a source with faults.

use std::{
    collections::HashMap,
    fmt, fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use edgepull::{
    containerd::Engine,
    error::{Error, Result},
    event::Events,
    kind::Kind,
    oci::{Descriptor, Digest, Document, MediaType, Reference, Verified},
    pull::{Choice, Request},
    source::{BlobStream, Source},
};
use futures_util::future::BoxFuture;
use serde_json::json;

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
            "version = 2\nroot = {root:?}\nstate = {state:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {socket:?}\n[ttrpc]\naddress = {ttrpc:?}\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = {opt:?}\n",
            root = lab.path("root"),
            state = lab.path("state"),
            socket = lab.socket(),
            ttrpc = lab.path("t.sock"),
            opt = lab.path("opt"),
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
        // The age in `content ls` moves with the clock.
        .map(|line| {
            let mut cells: Vec<&str> = line
                .split(['\t', ','])
                .filter(|cell| !cell.contains("second") && !cell.contains("minute"))
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

/// An image, and every byte of it.
pub(crate) struct TestImage {
    pub(crate) choice: Choice,
    pub(crate) blobs: HashMap<Digest, Bytes>,
}

pub(crate) type File<'a> = (&'a str, Vec<u8>);

/// Bytes that do not compress and that `seed` determines.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// One layer: (compressed, uncompressed).
fn layer(files: &[File<'_>]) -> (Bytes, Bytes) {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1);
        tar.append_data(&mut header, name, content.as_slice())
            .expect("into memory");
    }
    let tar = tar.into_inner().expect("into memory");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).expect("into memory");
    (gzip.finish().expect("into memory").into(), tar.into())
}

impl TestImage {
    pub(crate) fn new(layers: &[&[File<'_>]]) -> Self {
        let made: Vec<_> = layers.iter().map(|files| layer(files)).collect();
        let diff_ids = made.iter().map(|(_, tar)| Digest::of(tar)).collect();
        let blobs = made.into_iter().map(|(gzip, _)| gzip).collect();
        Self::of(blobs, diff_ids)
    }

    pub(crate) fn of(layers: Vec<Bytes>, diff_ids: Vec<Digest>) -> Self {
        let mut blobs = HashMap::new();
        let listed: Vec<_> = layers
            .iter()
            .map(|blob| {
                json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": Digest::of(blob), "size": blob.len()})
            })
            .collect();
        let config = Bytes::from(
            json!({"os": "linux", "architecture": "amd64",
                "rootfs": {"type": "layers", "diff_ids": diff_ids}})
            .to_string(),
        );
        let manifest = Bytes::from(
            json!({"schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST,
                "config": {"mediaType": MediaType::OCI_CONFIG,
                    "digest": Digest::of(&config), "size": config.len()},
                "layers": listed})
            .to_string(),
        );
        let index = Bytes::from(
            json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": [
                {"mediaType": MediaType::OCI_MANIFEST, "digest": Digest::of(b"absent"), "size": 6,
                    "platform": {"os": "linux", "architecture": "s390x"}},
                {"mediaType": MediaType::OCI_MANIFEST, "digest": Digest::of(&manifest),
                    "size": manifest.len(),
                    "platform": {"os": "linux", "architecture": "amd64"}}]})
            .to_string(),
        );
        let parse = |bytes: &Bytes| {
            Document::parse(&Verified::of(bytes.clone()), None).expect("a document")
        };
        let choice = Choice {
            root: parse(&index),
            ancestors: Vec::new(),
            leaf: parse(&manifest),
            config: Verified::of(config.clone()),
            platform: None,
            target_is_leaf: false,
        };
        for bytes in layers.into_iter().chain([config, manifest, index]) {
            blobs.insert(Digest::of(&bytes), bytes);
        }
        Self { choice, blobs }
    }

    /// Two layers, the second with a whiteout; small.
    pub(crate) fn two_layers(seed: u64) -> Self {
        Self::new(&[
            &[("a", noise(seed, 5000)), ("dir/b", b"b".to_vec())],
            &[(".wh.a", Vec::new()), ("c", noise(seed + 1, 3000))],
        ])
    }

    /// One layer of about `length` bytes.
    pub(crate) fn large(seed: u64, length: usize) -> Self {
        Self::new(&[&[("big", noise(seed, length))]])
    }

    pub(crate) fn layer(&self, index: usize) -> &Descriptor {
        &self.choice.manifest().expect("a manifest").layers[index]
    }

    pub(crate) fn source(&self) -> Memory {
        Memory {
            blobs: self.blobs.clone(),
            ..Memory::default()
        }
    }
}

/// A source over memory that counts, and can be made to fail or to be slow.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) blobs: HashMap<Digest, Bytes>,
    pub(crate) requests: AtomicU64,
    /// Offsets that blobs were asked for from.
    pub(crate) offsets: Mutex<Vec<u64>>,
    /// The link breaks for good after so many bytes.
    pub(crate) breaks_after: Option<u64>,
    /// Before every chunk.
    pub(crate) pause: Duration,
    /// Bytes given in all.
    pub(crate) given: std::sync::Arc<AtomicU64>,
}

const PIECE: usize = 100_000;

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memory")
    }
}

impl Source for Memory {
    fn document<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Document>> {
        Box::pin(async move {
            let bytes = self.blobs.get(&descriptor.digest).cloned();
            let bytes = bytes.ok_or_else(|| Error::new(Kind::NotFound, "no such document"))?;
            Document::parse(&Verified::of(bytes), None)
        })
    }

    fn blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobStream>> {
        Box::pin(async move {
            self.requests.fetch_add(1, Ordering::Relaxed);
            self.offsets.lock().expect("not poisoned").push(offset);
            let bytes = self.blobs.get(&descriptor.digest).cloned();
            let bytes = bytes.ok_or_else(|| Error::new(Kind::NotFound, "no such blob"))?;
            let start = usize::try_from(offset).expect("small");
            let limit = self.breaks_after;
            let pause = self.pause;
            let given = self.given.clone();
            let stream = futures_util::stream::unfold(start, move |at| {
                let bytes = bytes.clone();
                let given = given.clone();
                async move {
                    if at >= bytes.len() {
                        return None;
                    }
                    if !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                    if limit.is_some_and(|limit| given.load(Ordering::Relaxed) >= limit) {
                        let error = Error::new(Kind::Unavailable, "the link broke");
                        return Some((Err(error), bytes.len()));
                    }
                    let end = bytes.len().min(at + PIECE);
                    given.fetch_add((end - at) as u64, Ordering::Relaxed);
                    Some((Ok(bytes.slice(at..end)), end))
                }
            });
            Ok(Box::pin(stream) as BlobStream)
        })
    }

    fn name(&self) -> &'static str {
        "memory"
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
        concurrency: 3,
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
