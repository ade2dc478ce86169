//! Writing an image archive: the same images give the same bytes.

use std::{collections::BTreeMap, path::Path};

use super::{
    BLOBS, INDEX_FILE, MARKER_FILE, MARKER_TEXT, Names, blocking,
    copy::{Content, CopyStats, pour, write},
    dir::Dir,
    entries,
    store::split_path,
    tar,
};
use crate::{
    error::Result,
    event::{Event, Events},
    oci::{Descriptor, Digest},
    source::Source,
};

/// One image for an archive.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    /// What of it is stored.
    pub content: Content<'a>,
    /// Where its configs and layers come from.
    pub source: &'a dyn Source,
    /// What it is called in the archive.
    pub names: &'a Names,
    /// As the user typed it, for events.
    pub reference: &'a str,
}

#[derive(Debug)]
enum Item<'a> {
    Bytes(Vec<u8>),
    Blob(&'a Descriptor, &'a Image<'a>),
}

/// Writes an image archive of `images` to `path`. Members are sorted and have no
/// times and owners; blobs stream from their sources and are verified on the way.
/// The file appears in one step when it is complete and durable; until then an
/// older one stays as it is.
///
/// An index stays whole although blobs of other platforms are absent. skopeo reads
/// such an archive on a host of a platform that is there, or with `--override-arch`;
/// `ctr image import` likewise, or with `--platform`. Neither knows sha512.
pub async fn write_archive(
    path: &Path,
    images: &[Image<'_>],
    events: &Events,
) -> Result<CopyStats> {
    let members = plan(images)?;
    let (parent, name) = split_path(path)?;
    let mut out = {
        let temporary = format!(".{name}.edgepull");
        blocking(move || Dir::open(&parent)?.temporary(&temporary)).await?
    };
    let mut stats = CopyStats::default();
    for (member, item) in members {
        let size = match &item {
            Item::Bytes(bytes) => bytes.len() as u64,
            Item::Blob(descriptor, _) => descriptor.size,
        };
        let header = tar::header(&member, size);
        let padding = tar::padding(size);
        let framing = (header.len() + padding.len()) as u64;
        stats.written = stats.written.saturating_add(size).saturating_add(framing);
        out = write(out, header).await?;
        out = match item {
            Item::Bytes(bytes) => write(out, bytes).await?,
            Item::Blob(descriptor, image) => {
                stats.downloaded = stats.downloaded.saturating_add(size);
                let emit = |event: &dyn Fn(String, Digest) -> Event| {
                    events.emit(&event(
                        image.reference.to_owned(),
                        descriptor.digest.clone(),
                    ));
                };
                emit(&|reference, digest| Event::BlobStarted {
                    reference,
                    digest,
                    size,
                    offset: 0,
                });
                let out = pour(out, descriptor, image.source, |bytes| {
                    emit(&|reference, digest| Event::BlobProgress {
                        reference,
                        digest,
                        bytes,
                    });
                })
                .await?;
                emit(&|reference, digest| Event::BlobDone {
                    reference,
                    digest,
                    size,
                    reused: false,
                });
                out
            }
        };
        out = write(out, padding).await?;
    }
    let end = tar::end();
    stats.written = stats.written.saturating_add(end.len() as u64);
    out = write(out, end).await?;
    for image in images {
        events.emit(&Event::Syncing {
            reference: image.reference.to_owned(),
        });
    }
    blocking(move || {
        out.sync()?;
        out.publish(&name)
    })
    .await?;
    Ok(stats)
}

/// The members by name; what several images share is there once.
fn plan<'a>(images: &'a [Image<'a>]) -> Result<BTreeMap<String, Item<'a>>> {
    let place = |digest: &Digest| format!("{BLOBS}/{}/{}", digest.algorithm().name(), digest.hex());
    let mut members = BTreeMap::new();
    let mut index = entries::empty();
    for image in images {
        for blob in image.content.blobs()? {
            members
                .entry(place(&blob.digest))
                .or_insert(Item::Blob(blob, image));
        }
        for document in image.content.documents() {
            members.insert(
                place(&document.descriptor.digest),
                Item::Bytes(document.bytes.to_vec()),
            );
        }
        entries::upsert(&mut index, &image.content.root.descriptor, image.names)?;
    }
    members.insert(INDEX_FILE.to_owned(), Item::Bytes(entries::encode(&index)?));
    members.insert(MARKER_FILE.to_owned(), Item::Bytes(MARKER_TEXT.to_vec()));
    Ok(members)
}
