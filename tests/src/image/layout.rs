//! An OCI image layout on disk.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256, digest};
use serde_json::{Value, json};

use crate::tools::{Lab, RunDir};

/// Digest and size of something stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// `sha256:…`.
    pub digest: String,
    /// Bytes.
    pub size: u64,
}

impl Blob {
    /// A descriptor of it.
    pub fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest, "size": self.size})
    }
}

/// The digest of bytes.
pub fn digest_of(bytes: &[u8]) -> String {
    text_of(digest(&SHA256, bytes).as_ref())
}

pub(super) fn text_of(hash: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("sha256:");
    for byte in hash {
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}

/// A layout in a directory.
#[derive(Debug)]
pub struct Layout {
    path: PathBuf,
    _dir: Option<RunDir>,
}

impl Layout {
    /// An empty one in a directory of its own, removed when dropped.
    #[track_caller]
    pub fn new() -> Self {
        let dir = Lab::get().run_dir("img");
        Self::init(dir.path().to_path_buf(), Some(dir))
    }

    /// One that stays: `path` is made if it is not there, and opened if it is.
    #[track_caller]
    pub fn at(path: &Path) -> Self {
        Self::init(path.to_path_buf(), None)
    }

    fn init(path: PathBuf, dir: Option<RunDir>) -> Self {
        fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        fs::write(
            path.join("oci-layout"),
            "{\"imageLayoutVersion\":\"1.0.0\"}",
        )
        .unwrap();
        if !path.join("index.json").exists() {
            let empty = json!({"schemaVersion": 2, "manifests": []});
            fs::write(path.join("index.json"), empty.to_string()).unwrap();
        }
        Self { path, _dir: dir }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a blob is, whether it exists or not.
    pub fn blob_path(&self, digest: &str) -> PathBuf {
        self.path
            .join("blobs/sha256")
            .join(digest.strip_prefix("sha256:").unwrap_or(digest))
    }

    /// Stores bytes.
    #[track_caller]
    pub fn put(&self, bytes: &[u8]) -> Blob {
        let digest = digest_of(bytes);
        fs::write(self.blob_path(&digest), bytes).unwrap();
        Blob {
            digest,
            size: bytes.len() as u64,
        }
    }

    /// Stores a document, in the bytes `serde_json` makes of it.
    #[track_caller]
    pub fn put_json(&self, document: &Value) -> Blob {
        self.put(document.to_string().as_bytes())
    }

    /// The bytes of a blob.
    #[track_caller]
    pub fn read(&self, digest: &str) -> Vec<u8> {
        let path = self.blob_path(digest);
        fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// A blob as a document.
    #[track_caller]
    pub fn json(&self, digest: &str) -> Value {
        serde_json::from_slice(&self.read(digest)).unwrap_or_else(|e| panic!("{digest}: {e}"))
    }

    /// All blobs, by digest.
    pub fn blobs(&self) -> Vec<String> {
        let mut all: Vec<String> = fs::read_dir(self.path.join("blobs/sha256"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| format!("sha256:{}", entry.file_name().to_string_lossy()))
            .collect();
        all.sort();
        all
    }

    /// A place to write a blob whose digest is known at the end only.
    pub(super) fn writer(&self) -> io::Result<BlobWriter> {
        let file = tempfile::NamedTempFile::new_in(&self.path)?;
        Ok(BlobWriter {
            file,
            hash: Context::new(&SHA256),
            size: 0,
        })
    }

    /// Gives a descriptor a name in `index.json`. A name points to one thing.
    #[track_caller]
    pub fn tag(&self, name: &str, mut descriptor: Value) {
        descriptor["annotations"]["org.opencontainers.image.ref.name"] = json!(name);
        let mut entries: Vec<Value> = self
            .entries()
            .into_iter()
            .filter(|entry| name_of(entry) != Some(name))
            .collect();
        entries.push(descriptor);
        let index = json!({"schemaVersion": 2, "manifests": entries});
        fs::write(self.path.join("index.json"), index.to_string()).unwrap();
    }

    /// The descriptors of `index.json`.
    #[track_caller]
    pub fn entries(&self) -> Vec<Value> {
        let text = fs::read(self.path.join("index.json")).unwrap();
        let index: Value = serde_json::from_slice(&text).unwrap();
        index["manifests"].as_array().cloned().unwrap_or_default()
    }

    /// The descriptor with a name, if there is one.
    pub fn find(&self, name: &str) -> Option<Value> {
        self.entries()
            .into_iter()
            .find(|entry| name_of(entry) == Some(name))
    }

    /// The digest behind a name.
    #[track_caller]
    pub fn digest(&self, name: &str) -> String {
        self.find(name)
            .and_then(|entry| Some(entry["digest"].as_str()?.to_owned()))
            .unwrap_or_else(|| panic!("no {name} in {}", self.path.display()))
    }

    /// The digest of the manifest for a platform, in the index behind a name; of the manifest
    /// itself when there is no index.
    #[track_caller]
    pub fn manifest(&self, name: &str, platform: &super::Platform) -> String {
        self.leaf(&self.digest(name), platform)
            .unwrap_or_else(|| panic!("{name} offers no {platform}"))
    }

    fn leaf(&self, digest: &str, platform: &super::Platform) -> Option<String> {
        let document = self.json(digest);
        let Some(entries) = document["manifests"].as_array() else {
            return Some(digest.to_owned());
        };
        let entry = entries
            .iter()
            .find(|entry| platform.is(&entry["platform"]))?;
        self.leaf(entry["digest"].as_str()?, platform)
    }

    /// Everything a manifest needs: the config's and the layers' digests.
    #[track_caller]
    pub fn parts(&self, manifest: &str) -> Vec<String> {
        let document = self.json(manifest);
        std::iter::once(&document["config"])
            .chain(document["layers"].as_array().into_iter().flatten())
            .filter_map(|d| Some(d["digest"].as_str()?.to_owned()))
            .collect()
    }

    /// The chain ids of a manifest's layers, as containerd names their snapshots.
    #[track_caller]
    pub fn chain(&self, manifest: &str) -> Vec<String> {
        let config = self.json(self.json(manifest)["config"]["digest"].as_str().unwrap());
        let mut chain: Vec<String> = Vec::new();
        for diff in config["rootfs"]["diff_ids"].as_array().unwrap() {
            let diff = diff.as_str().unwrap();
            let id = match chain.last() {
                None => diff.to_owned(),
                Some(parent) => digest_of(format!("{parent} {diff}").as_bytes()),
            };
            chain.push(id);
        }
        chain
    }

    /// Writes the layout as a tar archive (`oci-archive:`).
    #[track_caller]
    pub fn archive(&self, file: &Path) {
        let mut tar = tar::Builder::new(File::create(file).unwrap());
        tar.append_path_with_name(self.path.join("oci-layout"), "oci-layout")
            .unwrap();
        tar.append_path_with_name(self.path.join("index.json"), "index.json")
            .unwrap();
        for digest in self.blobs() {
            let name = format!("blobs/{}", digest.replace(':', "/"));
            tar.append_path_with_name(self.blob_path(&digest), name)
                .unwrap();
        }
        tar.finish().unwrap();
    }
}

impl Default for Layout {
    fn default() -> Self {
        Self::new()
    }
}

fn name_of(entry: &Value) -> Option<&str> {
    entry["annotations"]["org.opencontainers.image.ref.name"].as_str()
}

/// Writes, hashes and counts.
pub(super) struct BlobWriter {
    file: tempfile::NamedTempFile,
    hash: Context,
    size: u64,
}

impl BlobWriter {
    pub(super) fn keep(self, layout: &Layout) -> io::Result<Blob> {
        let digest = text_of(self.hash.finish().as_ref());
        self.file.persist(layout.blob_path(&digest))?;
        Ok(Blob {
            digest,
            size: self.size,
        })
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.as_file_mut().write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
