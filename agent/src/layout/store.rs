//! An image layout directory.

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture};
use serde_json::Value;

use super::{
    BLOBS, INDEX_FILE, MARKER_FILE, MARKER_TEXT, MAX_DOCUMENT, MAX_MARKER, blocking, check_marker,
    copy::{BATCH, PutStats},
    dir::Dir,
    entries::{self, Names},
    ingest::{self, Claim, Ingest, WORK},
    reference::Selector,
    select::{Choice, choose},
    stream::Range,
};
use crate::{
    error::{Error, Result},
    event::{Event, Events},
    kind::Kind,
    oci::{Descriptor, Digest, Document, DocumentKind, Index, MediaType, Verified},
    source::{BlobStream, Source},
};

/// How often a blob that another process is writing is looked at.
const WAIT: Duration = Duration::from_millis(250);
/// A long wait speaks again after so many looks: 15 s.
const SPEAK_AGAIN: u32 = 60;

/// An opened image layout directory; cheap to clone.
#[derive(Debug, Clone)]
pub struct Layout {
    root: Dir,
    name: Arc<str>,
}

impl Layout {
    /// Opens an existing layout.
    pub fn open(dir: &Path) -> Result<Self> {
        let layout = Self::at(Dir::open(dir)?, dir);
        let Some(marker) = layout.root.read_small(MARKER_FILE, MAX_MARKER)? else {
            return Err(Error::new(
                Kind::InvalidContent,
                format_args!("`{}` is no OCI image layout", dir.display()),
            )
            .because("it has no oci-layout file"));
        };
        check_marker(&marker, &layout.name)?;
        layout.index()?;
        Ok(layout)
    }

    /// Opens a layout, or makes an empty one. A directory that holds something
    /// else is refused.
    pub fn create_or_open(dir: &Path) -> Result<Self> {
        let root = Dir::create(dir)?;
        {
            let _lock = root.lock()?;
            // A crash between the steps below leaves a prefix of them, nothing else.
            if root.file(MARKER_FILE)?.is_none() {
                refuse_foreign(&root)?;
                root.ensure_child(BLOBS)?;
                if root.file(INDEX_FILE)?.is_none() {
                    replace(&root, INDEX_FILE, &entries::encode(&entries::empty())?)?;
                }
                replace(&root, MARKER_FILE, MARKER_TEXT)?;
                root.remove_empty(WORK);
            }
        }
        Self::open(dir)
    }

    fn at(root: Dir, dir: &Path) -> Self {
        Self {
            root,
            name: format!("oci:{}", dir.display()).into(),
        }
    }

    /// The layout's directory.
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    fn index_bytes(&self) -> Result<Bytes> {
        self.root
            .read_small(INDEX_FILE, MAX_DOCUMENT)?
            .ok_or_else(|| {
                Error::new(
                    Kind::InvalidContent,
                    format_args!("`{}` has no index.json", self.name),
                )
            })
    }

    /// The layout's `index.json` as it is now.
    pub fn index(&self) -> Result<Index> {
        parse_index(self.index_bytes()?, &self.name).map(|(_, index)| index)
    }

    /// The image that `selector` names.
    ///
    /// Without a selector: the only image. Where `index.json` itself lists
    /// platforms without names, it is the image index, and the descriptor is its
    /// own. A digest may also be that of a document below an entry.
    pub fn resolve(&self, selector: Option<&Selector>) -> Result<Descriptor> {
        let (document, index) = parse_index(self.index_bytes()?, &self.name)?;
        match choose(&index, &document.descriptor.digest, selector, &self.name)? {
            Choice::Entry(entry) => Ok(*entry),
            Choice::Whole => Ok(document.descriptor),
            Choice::Unlisted(digest) => {
                let range = self.blob_range(&digest)?;
                Ok(read_document(&range, &digest, None, &self.name)?.descriptor)
            }
        }
    }

    /// Whether the blob is there in its full size. Its digest is checked by who reads it.
    pub async fn has(&self, descriptor: &Descriptor) -> bool {
        let (root, descriptor) = (self.root.clone(), descriptor.clone());
        // A blob that cannot be looked at is as good as none: putting it says why.
        blocking(move || ingest::present(&root, &descriptor))
            .await
            .unwrap_or(false)
    }

    /// Puts a blob into the layout, unless it is there. What an earlier attempt
    /// left is verified and continued; a blob that another process is writing is
    /// waited for.
    pub async fn put_blob(
        &self,
        descriptor: &Descriptor,
        source: &dyn Source,
        events: &Events,
        reference: &str,
    ) -> Result<PutStats> {
        let done = |reused| {
            events.emit(&Event::BlobDone {
                reference: reference.to_owned(),
                digest: descriptor.digest.clone(),
                size: descriptor.size,
                reused,
            });
        };
        let claimed = self
            .claim(descriptor, || {
                events.emit(&Event::BlobWaiting {
                    reference: reference.to_owned(),
                    digest: descriptor.digest.clone(),
                });
            })
            .await?;
        let Some(mut ingest) = claimed else {
            done(true);
            return Ok(PutStats {
                reused: descriptor.size,
                ..PutStats::default()
            });
        };
        let mut stats = PutStats::default();
        let mut restarted = false;
        loop {
            let offset = ingest.offset();
            stats.resumed = offset;
            events.emit(&Event::BlobStarted {
                reference: reference.to_owned(),
                digest: descriptor.digest.clone(),
                size: descriptor.size,
                offset,
            });
            let filled;
            (ingest, filled) = fill(ingest, descriptor, source, &mut stats, |bytes| {
                events.emit(&Event::BlobProgress {
                    reference: reference.to_owned(),
                    digest: descriptor.digest.clone(),
                    bytes,
                });
            })
            .await?;
            let result = match filled {
                Ok(()) => {
                    let committed;
                    (ingest, committed) = step(ingest, |ingest| ingest.commit()).await?;
                    committed
                }
                Err(error) => Err(error),
            };
            match result {
                Ok(()) => {
                    done(false);
                    return Ok(stats);
                }
                // The fault may be in what an earlier attempt left (lost power), or in
                // the joint of several answers, or the source cannot start in the middle:
                // once more, from nothing.
                Err(error)
                    if matches!(error.kind(), Kind::InvalidContent | Kind::Unsupported)
                        && (source.distrust(descriptor)
                            || !std::mem::replace(&mut restarted, true)
                                && (offset > 0 || source.pieced(descriptor))) =>
                {
                    let began;
                    (ingest, began) = step(ingest, Ingest::restart).await?;
                    began?;
                }
                Err(error) => {
                    let kept = error.clone();
                    blocking(move || {
                        ingest.abandon(&kept);
                        Ok(())
                    })
                    .await?;
                    return Err(error);
                }
            }
        }
    }

    /// Puts a document into the layout, byte for byte.
    pub async fn put_document(&self, document: &Document) -> Result<PutStats> {
        let claimed = self.claim(&document.descriptor, || {}).await?;
        let Some(ingest) = claimed else {
            return Ok(PutStats {
                reused: document.descriptor.size,
                ..PutStats::default()
            });
        };
        let bytes = document.bytes.clone();
        let (ingest, result) = step(ingest, move |ingest| {
            ingest.restart()?;
            ingest.write(&[bytes])?;
            ingest.commit()
        })
        .await?;
        if let Err(error) = result {
            ingest.abandon(&error);
            return Err(error);
        }
        Ok(PutStats {
            written: document.descriptor.size,
            ..PutStats::default()
        })
    }

    /// Records `entry` in `index.json` under `names`, in one atomic step that
    /// loses no entry of another process. See [`Names`].
    pub async fn tag(&self, entry: &Descriptor, names: &Names) -> Result<()> {
        let (root, name) = (self.root.clone(), self.name.clone());
        let (entry, names) = (entry.clone(), names.clone());
        blocking(move || {
            if !ingest::present(&root, &entry)? {
                return Err(Error::new(
                    Kind::StoreDamaged,
                    format_args!(
                        "`{name}` does not hold {}, which is to be named",
                        entry.digest
                    ),
                ));
            }
            let _lock = root.lock()?;
            let bytes = root.read_small(INDEX_FILE, MAX_DOCUMENT)?;
            let mut index: Value = match bytes {
                Some(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                    Error::new(
                        Kind::InvalidContent,
                        format_args!("index.json of `{name}` cannot be read"),
                    )
                    .caused_by(&error)
                })?,
                None => entries::empty(),
            };
            let before = index.clone();
            entries::upsert(&mut index, &entry, &names)?;
            if index != before {
                replace(&root, INDEX_FILE, &entries::encode(&index)?)?;
            }
            // The image is recorded; what cannot be tidied now is tidied another time.
            let _ = ingest::sweep(&root, SystemTime::now());
            Ok(())
        })
        .await
    }

    /// Claims the blob's partial file; `None` when the blob is there.
    async fn claim(
        &self,
        descriptor: &Descriptor,
        mut waiting: impl FnMut(),
    ) -> Result<Option<Ingest>> {
        let mut waits = 0_u32;
        loop {
            let (root, wanted) = (self.root.clone(), descriptor.clone());
            let claim = blocking(move || {
                if ingest::present(&root, &wanted)? {
                    return Ok(Claim::Present);
                }
                Ingest::claim(&root, &wanted)
            })
            .await?;
            match claim {
                Claim::Ours(ingest) => return Ok(Some(*ingest)),
                Claim::Present => return Ok(None),
                Claim::Busy => {
                    if waits.is_multiple_of(SPEAK_AGAIN) {
                        waiting();
                    }
                    waits = waits.wrapping_add(1);
                    tokio::time::sleep(WAIT).await;
                }
            }
        }
    }

    fn blob_range(&self, digest: &Digest) -> Result<Range> {
        let found = match ingest::blob_dir(&self.root, digest.algorithm())? {
            Some(dir) => dir.file(digest.hex())?,
            None => None,
        };
        let (file, size) = found.ok_or_else(|| absent(digest, &self.name))?;
        Ok(Range {
            file: Arc::new(file),
            start: 0,
            size,
            name: format!("{digest} in {}", self.name).into(),
        })
    }
}

impl Source for Layout {
    fn document<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Document>> {
        let (layout, wanted) = (self.clone(), descriptor.clone());
        Box::pin(blocking(move || {
            let range = match layout.blob_range(&wanted.digest) {
                Ok(range) => range,
                // `index.json` may itself be the image index, and is no blob then.
                Err(error) if error.kind() == Kind::NotFound => {
                    let (document, _) = parse_index(layout.index_bytes()?, &layout.name)?;
                    return if document.descriptor.digest == wanted.digest {
                        Ok(document)
                    } else {
                        Err(error)
                    };
                }
                Err(error) => return Err(error),
            };
            check_size(&wanted, range.size, &layout.name)?;
            read_document(
                &range,
                &wanted.digest,
                Some(&wanted.media_type),
                &layout.name,
            )
        }))
    }

    fn blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobStream>> {
        let (layout, wanted) = (self.clone(), descriptor.clone());
        Box::pin(blocking(move || {
            let range = layout.blob_range(&wanted.digest)?;
            check_size(&wanted, range.size, &layout.name)?;
            check_offset(&wanted, offset, &layout.name)?;
            Ok(range.stream(offset))
        }))
    }

    fn has<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, bool> {
        Box::pin(Layout::has(self, descriptor))
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// Runs one blocking step on `ingest` and hands it back with the step's result.
async fn step<T: Send + 'static>(
    mut ingest: Ingest,
    work: impl FnOnce(&mut Ingest) -> Result<T> + Send + 'static,
) -> Result<(Ingest, Result<T>)> {
    blocking(move || {
        let result = work(&mut ingest);
        Ok((ingest, result))
    })
    .await
}

/// Streams the missing bytes into the partial file, a batch at a time.
async fn fill(
    mut ingest: Ingest,
    descriptor: &Descriptor,
    source: &dyn Source,
    stats: &mut PutStats,
    mut progress: impl FnMut(u64),
) -> Result<(Ingest, Result<()>)> {
    if ingest.offset() == descriptor.size {
        return Ok((ingest, Ok(())));
    }
    let mut stream = match source.blob(descriptor, ingest.offset()).await {
        Ok(stream) => stream,
        Err(error) => return Ok((ingest, Err(error))),
    };
    let mut batch: Vec<Bytes> = Vec::new();
    let mut length = 0_usize;
    let mut failure = None;
    loop {
        let ended = match stream.next().await {
            Some(Ok(chunk)) => {
                length = length.saturating_add(chunk.len());
                batch.push(chunk);
                false
            }
            // What came before the link broke is kept for the next attempt.
            Some(Err(error)) => {
                failure = Some(error);
                true
            }
            None => true,
        };
        if length >= BATCH || (ended && length > 0) {
            let chunks = std::mem::take(&mut batch);
            let written;
            (ingest, written) = step(ingest, move |ingest| ingest.write(&chunks)).await?;
            if let Err(error) = written {
                return Ok((ingest, Err(error)));
            }
            let bytes = std::mem::take(&mut length) as u64;
            stats.downloaded = stats.downloaded.saturating_add(bytes);
            stats.written = stats.written.saturating_add(bytes);
            progress(bytes);
        }
        if ended {
            return Ok((ingest, failure.map_or(Ok(()), Err)));
        }
    }
}

/// Writes a small file of the layout atomically. The caller holds the layout's lock,
/// so that the temporary name is its own.
fn replace(root: &Dir, name: &str, bytes: &[u8]) -> Result<()> {
    let temporary = root.temporary(&format!(".{name}.edgepull"))?;
    temporary
        .file()
        .and_then(|mut file| file.write_all(bytes))
        .map_err(|error| Error::io("write", &temporary.path(), &error))?;
    temporary.sync()?;
    temporary.publish(name)
}

/// A directory with other things in it is not turned into a layout: a mistyped path
/// must not fill `/etc` with blobs.
fn refuse_foreign(root: &Dir) -> Result<()> {
    let ours = |name: &str| {
        [BLOBS, INDEX_FILE, WORK, "lost+found"].contains(&name) || name.ends_with(".edgepull")
    };
    match root.list(64)?.iter().find(|name| !ours(name)) {
        None => Ok(()),
        Some(other) => Err(Error::new(
            Kind::Usage,
            format_args!(
                "`{}` is neither empty nor an OCI image layout",
                root.path().display()
            ),
        )
        .because(format_args!("it holds `{}`", super::printable(other)))
        .hint("name a new directory, or one that is a layout already")),
    }
}

pub(super) fn absent(digest: &Digest, store: &str) -> Error {
    Error::new(
        Kind::NotFound,
        format_args!("`{store}` does not hold {digest}"),
    )
    .hint("it may have been made for other platforms only")
}

pub(super) fn check_size(descriptor: &Descriptor, found: u64, store: &str) -> Result<()> {
    if descriptor.size == found {
        return Ok(());
    }
    Err(Error::new(
        Kind::InvalidContent,
        format_args!(
            "{} has {found} bytes in `{store}`, and was announced with {}",
            descriptor.digest, descriptor.size
        ),
    )
    .hint("the copy is damaged; make it again"))
}

pub(super) fn check_offset(descriptor: &Descriptor, offset: u64, store: &str) -> Result<()> {
    if offset <= descriptor.size {
        return Ok(());
    }
    Err(Error::new(
        Kind::Internal,
        format_args!(
            "{} in `{store}` was asked for from byte {offset}, and has {}",
            descriptor.digest, descriptor.size
        ),
    ))
}

/// Reads and verifies an index or a manifest; `said` is what its parent calls it.
pub(super) fn read_document(
    range: &Range,
    digest: &Digest,
    said: Option<&MediaType>,
    store: &str,
) -> Result<Document> {
    let bytes = range.read_small(MAX_DOCUMENT)?;
    let verified = Verified::check(bytes, digest).map_err(|error| {
        // Its hint speaks of registries.
        let mut local = Error::new(
            Kind::InvalidContent,
            format_args!("{digest} in `{store}` is damaged"),
        )
        .because(error.message())
        .hint("the copy is damaged; make it again");
        for cause in error.causes() {
            local = local.because(cause);
        }
        local
    })?;
    let said = said
        .filter(|said| said.is_index() || said.is_manifest())
        .map(MediaType::as_str);
    Document::parse(&verified, said)
}

/// Reads an `index.json`; its digest is what it is.
pub(super) fn parse_index(bytes: Bytes, store: &str) -> Result<(Document, Index)> {
    let document = Document::parse(&Verified::of(bytes), None)
        .map_err(|error| error.during(format_args!("cannot read index.json of `{store}`")))?;
    match &document.kind {
        DocumentKind::Index(index) => {
            let index = index.clone();
            Ok((document, index))
        }
        DocumentKind::Manifest(_) => Err(Error::new(
            Kind::InvalidContent,
            format_args!("index.json of `{store}` is a manifest"),
        )),
    }
}

/// Where a file named by the user lives: its directory and its base name.
pub(super) fn split_path(path: &Path) -> Result<(PathBuf, String)> {
    let invalid = || {
        Error::new(
            Kind::Usage,
            format_args!("`{}` is no file name", path.display()),
        )
    };
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(invalid)?;
    let parent = path.parent().map(Path::to_owned).unwrap_or_default();
    Ok((parent, name.to_owned()))
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
