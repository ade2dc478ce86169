//! An image layout in a tar archive, read in place.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufReader, Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use flate2::read::MultiGzDecoder;
use futures_util::future::BoxFuture;
use nix::fcntl::OFlag;

use super::{
    BLOBS, INDEX_FILE, MARKER_FILE, MAX_DOCUMENT, MAX_MARKER, blocking, check_marker,
    reference::Selector,
    select::{Choice, choose},
    store::{absent, check_offset, check_size, parse_index, read_document},
    stream::Range,
    tar,
};
use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::{Algorithm, Descriptor, Digest, Document, Index, Reference},
    source::{BlobStream, Source},
};

/// How far a compressed archive may grow: layers in it are compressed already, so
/// more than this is made to fill the disk.
const MAX_RATIO: u64 = 200;
const MIN_INFLATED: u64 = 64 << 20;

/// An opened image archive; cheap to clone.
#[derive(Debug, Clone)]
pub struct Archive {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: Arc<File>,
    name: String,
    blobs: HashMap<Digest, (u64, u64)>,
    root: Document,
    index: Index,
}

impl Archive {
    /// Opens an archive: finds its members and reads its `index.json`, nothing
    /// else. One that is compressed with gzip is inflated once, into an unnamed
    /// file in `TMPDIR` (else `/var/tmp`).
    pub async fn open(path: &Path) -> Result<Self> {
        let path = path.to_owned();
        blocking(move || Self::open_blocking(&path)).await
    }

    fn open_blocking(path: &Path) -> Result<Self> {
        // O_NONBLOCK: a fifo or a device here must not hang us before we look at it.
        let file = File::options()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)
            .map_err(|error| Error::io("open", path, &error))?;
        let meta = file
            .metadata()
            .map_err(|error| Error::io("read", path, &error))?;
        if !meta.is_file() {
            return Err(Error::new(
                Kind::InvalidContent,
                format_args!("`{}` is not a regular file", path.display()),
            )
            .hint("an archive is read at several places at once; store it in a file first"));
        }
        let name = format!("oci-archive:{}", path.display());
        Self::index_members(file, meta.len(), name, path)
            .map_err(|error| error.during(format_args!("cannot read archive `{}`", path.display())))
    }

    fn index_members(file: File, length: u64, name: String, path: &Path) -> Result<Self> {
        let mut magic = [0_u8; 6];
        let seen = file
            .read_at(&mut magic, 0)
            .map_err(|error| Error::io("read", path, &error))?;
        let (file, length) = match magic.get(..seen).unwrap_or_default() {
            [0x1f, 0x8b, ..] => inflate(file, length, path)?,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [b'B', b'Z', b'h', ..] | [0xfd, b'7', b'z', ..] => {
                return Err(Error::new(
                    Kind::Unsupported,
                    "the archive is compressed with something else than gzip",
                )
                .hint("decompress it first (zstd -d, xz -d, bunzip2)"));
            }
            _ => (file, length),
        };
        let file = Arc::new(file);
        let mut blobs = HashMap::new();
        let mut marker = None;
        let mut index = None;
        tar::scan(&file, length, |member| {
            // Of two members with one name, different readers take different ones.
            let duplicate = match member.name.as_str() {
                MARKER_FILE => marker.replace((member.offset, member.size)).is_some(),
                INDEX_FILE => index.replace((member.offset, member.size)).is_some(),
                other => match blob_digest(other) {
                    Some(digest) => blobs.insert(digest, (member.offset, member.size)).is_some(),
                    // `manifest.json` of docker, notes: not ours to read.
                    None => false,
                },
            };
            if duplicate {
                return Err(Error::new(
                    Kind::InvalidContent,
                    format_args!(
                        "the archive has two members named `{}`",
                        super::printable(&member.name)
                    ),
                ));
            }
            Ok(())
        })?;
        let small = |place: Option<(u64, u64)>, member: &str, limit| {
            let Some((start, size)) = place else {
                return Err(Error::new(
                    Kind::InvalidContent,
                    format_args!("`{name}` is no OCI image archive"),
                )
                .because(format_args!("it has no member `{member}`"))
                .hint("archives of `docker save` from docker before 25 have another format; `skopeo copy docker-archive:FILE oci-archive:FILE2` converts them"));
            };
            Range {
                file: Arc::clone(&file),
                start,
                size,
                name: format!("{member} in {name}").into(),
            }
            .read_small(limit)
        };
        check_marker(&small(marker, MARKER_FILE, MAX_MARKER)?, &name)?;
        let (root, index) = parse_index(small(index, INDEX_FILE, MAX_DOCUMENT)?, &name)?;
        Ok(Self {
            inner: Arc::new(Inner {
                file,
                name,
                blobs,
                root,
                index,
            }),
        })
    }

    /// The archive's `index.json`.
    pub fn index(&self) -> &Index {
        &self.inner.index
    }

    /// The image that `selector` names, as [`super::Layout::resolve`] does.
    pub fn resolve(&self, selector: Option<&Selector>) -> Result<Descriptor> {
        let inner = &self.inner;
        match choose(
            &inner.index,
            &inner.root.descriptor.digest,
            selector,
            &inner.name,
        )? {
            Choice::Entry(entry) => Ok(*entry),
            Choice::Whole => Ok(inner.root.descriptor.clone()),
            Choice::Unlisted(digest) => {
                let range = inner.range(&digest)?;
                Ok(read_document(&range, &digest, None, &inner.name)?.descriptor)
            }
        }
    }

    /// The images, and the names they are imported under: their full ones, or, where
    /// an archive has none, `localhost/FILE:TAG`.
    pub fn images(&self) -> Result<Vec<(Reference, Descriptor)>> {
        let inner = &self.inner;
        let stem = std::path::Path::new(&inner.name)
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
            .unwrap_or_default();
        let whole = &inner.root.descriptor;
        if let Ok(Choice::Whole) = choose(&inner.index, &whole.digest, None, &inner.name) {
            let mut entry = whole.clone();
            entry.annotations.clone_from(&inner.index.annotations);
            let index = Index {
                entries: vec![entry],
                ..inner.index.clone()
            };
            return super::entries::images(&index, &inner.name, &stem);
        }
        super::entries::images(&inner.index, &inner.name, &stem)
    }

    /// Whether the archive holds the blob in its full size.
    pub fn has(&self, descriptor: &Descriptor) -> bool {
        self.inner
            .blobs
            .get(&descriptor.digest)
            .is_some_and(|(_, size)| *size == descriptor.size)
    }
}

impl Inner {
    fn range(&self, digest: &Digest) -> Result<Range> {
        let (start, size) = *self
            .blobs
            .get(digest)
            .ok_or_else(|| absent(digest, &self.name))?;
        Ok(Range {
            file: Arc::clone(&self.file),
            start,
            size,
            name: format!("{digest} in {}", self.name).into(),
        })
    }
}

impl Source for Archive {
    fn document<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Document>> {
        let (inner, wanted) = (Arc::clone(&self.inner), descriptor.clone());
        Box::pin(blocking(move || {
            if inner.root.descriptor.digest == wanted.digest {
                return Ok(inner.root.clone());
            }
            let range = inner.range(&wanted.digest)?;
            check_size(&wanted, range.size, &inner.name)?;
            read_document(
                &range,
                &wanted.digest,
                Some(&wanted.media_type),
                &inner.name,
            )
        }))
    }

    fn blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobStream>> {
        Box::pin(async move {
            let range = self.inner.range(&descriptor.digest)?;
            check_size(descriptor, range.size, &self.inner.name)?;
            check_offset(descriptor, offset, &self.inner.name)?;
            Ok(range.stream(offset))
        })
    }

    fn has<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, bool> {
        Box::pin(async { Archive::has(self, descriptor) })
    }

    fn name(&self) -> &str {
        &self.inner.name
    }
}

/// `blobs/<algorithm>/<hex>` of an algorithm that we can verify.
fn blob_digest(name: &str) -> Option<Digest> {
    let (algorithm, hex) = name
        .strip_prefix(BLOBS)?
        .strip_prefix('/')?
        .split_once('/')?;
    let known = [Algorithm::Sha256, Algorithm::Sha512]
        .iter()
        .any(|a| a.name() == algorithm);
    known
        .then(|| Digest::parse(&format!("{algorithm}:{hex}")).ok())
        .flatten()
}

/// Inflates the archive into a file that has no name and goes with its handle.
fn inflate(file: File, length: u64, path: &Path) -> Result<(File, u64)> {
    let limit = length.saturating_mul(MAX_RATIO).max(MIN_INFLATED);
    let (mut out, out_path) = unnamed()?;
    let mut reader = MultiGzDecoder::new(BufReader::with_capacity(64 << 10, file));
    let mut buffer = vec![0; 128 << 10];
    let mut written = 0_u64;
    loop {
        let read = reader.read(&mut buffer).map_err(|error| {
            Error::new(
                Kind::InvalidContent,
                format_args!("the gzip stream of `{}` is damaged", path.display()),
            )
            .caused_by(&error)
        })?;
        let Some(chunk) = buffer.get(..read).filter(|chunk| !chunk.is_empty()) else {
            return Ok((out, written));
        };
        written = written.saturating_add(read as u64);
        if written > limit {
            return Err(Error::new(
                Kind::InvalidContent,
                format_args!("the archive inflates to more than {MAX_RATIO} times its size"),
            )
            .hint("if it is to be trusted, decompress it first (gunzip)"));
        }
        out.write_all(chunk)
            .map_err(|error| Error::io("write", &out_path, &error))?;
    }
}

fn unnamed() -> Result<(File, PathBuf)> {
    // `/tmp` is often memory, which an image does not belong in.
    let dir = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    for attempt in 0..64_u32 {
        let path = dir.join(format!(".edgepull-{}-{attempt}", std::process::id()));
        let opened = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        match opened {
            Ok(file) => {
                std::fs::remove_file(&path).map_err(|error| Error::io("remove", &path, &error))?;
                return Ok((file, path));
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io("create", &path, &error)),
        }
    }
    Err(Error::new(
        Kind::Internal,
        format_args!("cannot find a free name in `{}`", dir.display()),
    ))
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
