//! Images made in memory (or while they are read), and sources with faults.

use std::{
    collections::HashMap,
    fmt,
    io::Write,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use edgepull::{
    error::{Error, Result},
    kind::Kind,
    oci::{ChainId, Descriptor, Digest, Document, ImageConfig, MediaType, Verified},
    pull::Choice,
    source::{BlobStream, Source},
};
use futures_util::future::BoxFuture;
use serde_json::json;

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
        let diff_ids: Vec<_> = made.iter().map(|(_, tar)| Digest::of(tar)).collect();
        let blobs = made.into_iter().map(|(gzip, _)| gzip).collect();
        Self::of(blobs, &diff_ids)
    }

    pub(crate) fn of(layers: Vec<Bytes>, diff_ids: &[Digest]) -> Self {
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
            probation: None,
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

    /// Two images below one index, which is the root of both.
    pub(crate) fn pair(mut one: Self, mut other: Self) -> (Self, Self) {
        let entries: Vec<_> = [&one, &other]
            .iter()
            .map(|image| &image.choice.leaf.descriptor)
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX,
            "manifests": entries});
        let bytes = Bytes::from(index.to_string());
        let root = Document::parse(&Verified::of(bytes), None).expect("an index");
        one.choice.root = root.clone();
        other.choice.root = root;
        one.blobs.extend(other.blobs.clone());
        (one, other)
    }

    /// The same without its index.
    pub(crate) fn alone(mut self) -> Self {
        self.choice.root = self.choice.leaf.clone();
        self
    }

    /// The name of the top snapshot.
    pub(crate) fn chain(&self) -> String {
        let config = ImageConfig::parse(&self.choice.config).expect("a config");
        let diff_ids = &config.rootfs.diff_ids;
        let chain = ChainId::of_layers(diff_ids);
        chain.last().expect("a layer").to_string()
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
    /// After so many bytes, once, nothing for so long.
    pub(crate) silent_after: Option<(u64, Duration)>,
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
            let silent = self.silent_after;
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
                    let so_far = given.load(Ordering::Relaxed);
                    if let Some((after, length)) = silent
                        && (after..after + PIECE as u64).contains(&so_far)
                    {
                        tokio::time::sleep(length).await;
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
    let mut image = TestImage::of(fake, &diff_ids).alone();
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
