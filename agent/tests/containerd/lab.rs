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

    /// The same without its index.
    pub(crate) fn alone(mut self) -> Self {
        self.choice.root = self.choice.leaf.clone();
        self
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

/// A registry on the loopback.
pub(crate) struct Registry {
    child: Child,
    port: u16,
}

impl Registry {
    pub(crate) fn start(lab: &Lab, port: u16) -> Self {
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {:?}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            lab.path("registry")
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

/// Layers that are made while they are read: each a tar with one file of noise.
#[derive(Debug)]
pub(crate) struct Generated {
    layers: HashMap<Digest, (u64, usize)>,
}

/// The pieces of a generated layer, `length` bytes of file and the tar around them.
fn pieces(seed: u64, length: usize) -> impl Iterator<Item = Bytes> + Send {
    let mut header = tar::Header::new_ustar();
    header.set_path("big").expect("short");
    header.set_size(length as u64);
    header.set_mode(0o644);
    header.set_cksum();
    let head = Bytes::copy_from_slice(header.as_bytes());
    let tail = Bytes::from(vec![0; 1024 + (512 - length % 512) % 512]);
    let count = length.div_ceil(PIECE);
    let body = (0..count).map(move |i| {
        Bytes::from(noise(
            seed * 1_000_003 + i as u64,
            PIECE.min(length - i * PIECE),
        ))
    });
    std::iter::once(head)
        .chain(body)
        .chain(std::iter::once(tail))
}

/// An image with a layer of `length` bytes for each seed, that is never in memory.
pub(crate) fn huge(seeds: &[u64], length: usize) -> (TestImage, Generated) {
    let mut layers = HashMap::new();
    let mut listed = Vec::new();
    for seed in seeds {
        let mut hasher = edgepull::oci::Hasher::new(edgepull::oci::Algorithm::Sha256);
        let mut size = 0;
        for piece in pieces(*seed, length) {
            size += piece.len();
            hasher.update(&piece);
        }
        let digest = hasher.finish();
        layers.insert(digest.clone(), (*seed, length));
        listed.push((digest, size));
    }
    // The documents of an image of other layers, with these put in their place.
    let diff_ids: Vec<_> = listed.iter().map(|(digest, _)| digest.clone()).collect();
    let fake: Vec<Bytes> = seeds.iter().map(|s| Bytes::from(s.to_string())).collect();
    let mut image = TestImage::of(fake, diff_ids).alone();
    let text = String::from_utf8(image.choice.leaf.bytes.to_vec()).expect("text");
    let mut manifest: serde_json::Value = serde_json::from_str(&text).expect("json");
    for (layer, (digest, size)) in manifest["layers"]
        .as_array_mut()
        .expect("layers")
        .iter_mut()
        .zip(listed)
    {
        layer["digest"] = json!(digest);
        layer["size"] = json!(size);
    }
    let bytes = Bytes::from(manifest.to_string());
    image.choice.leaf = Document::parse(&Verified::of(bytes), None).expect("a manifest");
    (image.alone(), Generated { layers })
}

impl Source for Generated {
    fn document<'a>(&'a self, _: &'a Descriptor) -> BoxFuture<'a, Result<Document>> {
        Box::pin(async { Err(Error::new(Kind::NotFound, "no documents here")) })
    }

    fn blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobStream>> {
        assert_eq!(offset, 0, "only from the start");
        let (seed, length) = self.layers[&descriptor.digest];
        let stream = futures_util::stream::iter(pieces(seed, length).map(Ok));
        Box::pin(async move { Ok(Box::pin(stream) as BlobStream) })
    }

    fn name(&self) -> &'static str {
        "generated"
    }
}

/// The most memory that this process ever had, in KiB.
pub(crate) fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("linux");
    let line = status.lines().find(|l| l.starts_with("VmHWM:"));
    let number = line.and_then(|l| l.split_whitespace().nth(1));
    number.and_then(|n| n.parse().ok()).expect("a number")
}
