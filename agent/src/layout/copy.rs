//! Putting an image into a store: blobs first, then the documents that need them,
//! its name last.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::{Layout, Names, blocking, dir::Temporary};
use crate::{
    error::{Error, Result},
    event::{Event, Events},
    kind::Kind,
    oci::{Descriptor, Document, DocumentKind, Verifier},
    source::Source,
};

/// Bytes that are collected before they are handed to the disk in one step.
pub(super) const BATCH: usize = 256 << 10;

/// What of an image is stored.
#[derive(Debug, Clone, Copy)]
pub struct Content<'a> {
    /// What gets the name: an index, or a single manifest.
    pub root: &'a Document,
    /// Indexes between the root and the leaves, outermost first.
    pub ancestors: &'a [Document],
    /// The chosen manifests; each is stored with its config and its layers.
    pub leaves: &'a [Document],
}

/// Bytes by where they went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyStats {
    /// Read from the source.
    pub downloaded: u64,
    /// Were there from an earlier attempt.
    pub resumed: u64,
    /// Were there as whole blobs.
    pub reused: u64,
    /// Written to the store.
    pub written: u64,
}

/// The same for one blob.
pub type PutStats = CopyStats;

impl std::ops::AddAssign for CopyStats {
    fn add_assign(&mut self, other: Self) {
        self.downloaded = self.downloaded.saturating_add(other.downloaded);
        self.resumed = self.resumed.saturating_add(other.resumed);
        self.reused = self.reused.saturating_add(other.reused);
        self.written = self.written.saturating_add(other.written);
    }
}

impl<'a> Content<'a> {
    /// The blobs of the leaves, each once: configs and layers.
    pub fn blobs(&self) -> Result<Vec<&'a Descriptor>> {
        let mut seen = BTreeSet::new();
        let mut blobs = Vec::new();
        for leaf in self.leaves {
            let DocumentKind::Manifest(manifest) = &leaf.kind else {
                return Err(Error::new(
                    Kind::Internal,
                    format_args!(
                        "{} was chosen as a manifest, and is an index",
                        leaf.descriptor.digest
                    ),
                ));
            };
            for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
                if seen.insert(&blob.digest) {
                    blobs.push(blob);
                }
            }
        }
        Ok(blobs)
    }

    /// Leaves, ancestors, root: each after what it needs.
    pub fn documents(&self) -> impl Iterator<Item = &'a Document> {
        let mut seen = BTreeSet::new();
        self.leaves
            .iter()
            .chain(self.ancestors.iter().rev())
            .chain(std::iter::once(self.root))
            .filter(move |document| seen.insert(&document.descriptor.digest))
    }
}

/// Copies an image into `layout` and names it. What is there is not copied again;
/// after a failure the next attempt continues.
pub async fn copy_to_layout(
    layout: &Layout,
    content: Content<'_>,
    source: &dyn Source,
    names: &Names,
    events: &Events,
    reference: &str,
) -> Result<CopyStats> {
    let mut stats = CopyStats::default();
    let blobs = content.blobs()?;
    announce(layout, &blobs, events, reference).await;
    {
        let mut copies = stream::iter(blobs)
            .map(|blob| layout.put_blob(blob, source, events, reference))
            .buffer_unordered(source.at_once().max(1));
        while let Some(done) = copies.next().await {
            stats += done?;
        }
    }
    for document in content.documents() {
        stats += layout.put_document(document).await?;
    }
    layout.tag(&content.root.descriptor, names).await?;
    Ok(stats)
}

/// Says beforehand how much there is to do; the layout's blobs count as present.
async fn announce(layout: &Layout, blobs: &[&Descriptor], events: &Events, reference: &str) {
    let (mut bytes_to_fetch, mut bytes_present) = (0_u64, 0_u64);
    for blob in blobs {
        if layout.has(blob).await {
            bytes_present = bytes_present.saturating_add(blob.size);
        } else {
            bytes_to_fetch = bytes_to_fetch.saturating_add(blob.size);
        }
    }
    events.emit(&Event::Planned {
        reference: reference.to_owned(),
        layers: blobs
            .iter()
            .filter(|blob| blob.media_type.is_layer())
            .count(),
        bytes_to_fetch,
        bytes_present,
    });
}

/// Writes bytes where `out` stands.
pub(super) async fn write(mut out: Temporary, bytes: Vec<u8>) -> Result<Temporary> {
    blocking(move || {
        put(&mut out, &bytes)?;
        Ok(out)
    })
    .await
}

fn put(out: &mut Temporary, bytes: &[u8]) -> Result<()> {
    use std::io::Write;

    out.file()
        .and_then(|mut file| file.write_all(bytes))
        .map_err(|error| Error::io("write", &out.path(), &error))
}

/// Streams a blob, verified, to where `out` stands. Bytes that turn out to be others are
/// taken back, where the source can give them from elsewhere. On failure `out` is gone,
/// and its file with it.
pub(super) async fn pour(
    mut out: Temporary,
    descriptor: &Descriptor,
    source: &dyn Source,
    mut progress: impl FnMut(u64),
) -> Result<Temporary> {
    use std::io::{Seek, SeekFrom};

    let at = |out: &Temporary, to: SeekFrom| {
        let moved = out.file().and_then(|mut file| file.seek(to));
        moved.map_err(|error| Error::io("write", &out.path(), &error))
    };
    let start = at(&out, SeekFrom::Current(0))?;
    let mut restarted = false;
    loop {
        let poured;
        (out, poured) = pour_once(out, descriptor, source, &mut progress).await?;
        match poured {
            Err(error)
                if error.kind() == Kind::InvalidContent
                    && (source.distrust(descriptor)
                        || (!std::mem::replace(&mut restarted, true)
                            && source.pieced(descriptor))) =>
            {
                out = blocking(move || {
                    at(&out, SeekFrom::Start(start))?;
                    let cut = out.file().and_then(|file| file.set_len(start));
                    cut.map_err(|error| Error::io("write", &out.path(), &error))?;
                    Ok(out)
                })
                .await?;
            }
            poured => return poured.map(|()| out),
        }
    }
}

async fn pour_once(
    mut out: Temporary,
    descriptor: &Descriptor,
    source: &dyn Source,
    progress: &mut impl FnMut(u64),
) -> Result<(Temporary, Result<()>)> {
    let mut verifier = Verifier::new(descriptor);
    let mut stream = match source.blob(descriptor, 0).await {
        Ok(stream) => stream,
        Err(error) => return Ok((out, Err(error))),
    };
    let mut batch: Vec<Bytes> = Vec::new();
    let mut length = 0_usize;
    loop {
        let ended = match stream.next().await {
            Some(Ok(chunk)) => {
                length = length.saturating_add(chunk.len());
                batch.push(chunk);
                false
            }
            Some(Err(error)) => return Ok((out, Err(error))),
            None => true,
        };
        if length >= BATCH || (ended && length > 0) {
            let chunks = std::mem::take(&mut batch);
            let put_down;
            (out, verifier, put_down) = blocking(move || {
                let put_down = chunks.iter().try_for_each(|chunk| {
                    verifier.update(chunk)?;
                    put(&mut out, chunk)
                });
                Ok((out, verifier, put_down))
            })
            .await?;
            if put_down.is_err() {
                return Ok((out, put_down));
            }
            progress(std::mem::take(&mut length) as u64);
        }
        if ended {
            return Ok((out, verifier.finish().map(drop)));
        }
    }
}
