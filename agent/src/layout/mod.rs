//! Stores that need no daemon: OCI image layouts, as a directory (`oci:DIR`) or
//! as a tar archive (`oci-archive:FILE`).
//!
//! What is read here was written by strangers, and edgepull often runs as root:
//! sizes are bounded before anything is allocated, files are opened by directory
//! handle without following links, and every blob is verified by whoever reads
//! it. What is written here becomes visible in one rename, after it is durable.

mod archive;
mod artifact;
mod chunks;
mod copy;
mod dir;
mod entries;
mod extended;
mod inflate;
mod ingest;
mod layer;
mod pax;
mod reference;
mod select;
mod sparse;
mod store;
mod stream;
mod tar;
#[cfg(test)]
mod testing;
mod writer;

pub use archive::Archive;
pub use artifact::{
    Delivered, Delivery, Identity, RECORD, deliver_artifact, delivered, notified, verified,
};
pub use chunks::Chunks;
pub use copy::{Content, CopyStats, PutStats, copy_to_layout};
pub use entries::Names;
pub use inflate::inflated;
pub use layer::{EntryKind, LayerEntries, LayerEntry, Piece};
pub use reference::{LayoutKind, LayoutRef, Selector};
pub use store::Layout;
pub use writer::{Image, write_archive};

use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::{Descriptor, Index},
    source::Source,
};

/// An index.json, a manifest or an index is read into memory up to this size.
const MAX_DOCUMENT: u64 = 4 << 20;
/// The oci-layout file is a few bytes.
const MAX_MARKER: u64 = 4096;
const MARKER_FILE: &str = "oci-layout";
const MARKER_TEXT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX_FILE: &str = "index.json";
const BLOBS: &str = "blobs";

/// Reads the bytes as an extended header, for fuzzing; not an interface.
#[doc(hidden)]
pub fn fuzz_pax(bytes: &[u8]) {
    let mut extended = extended::Extended::default();
    let read = extended.pax(bytes);
    if read.is_ok() && extended.is_sparse() {
        let _ = sparse::parts(
            &extended.sparse_map,
            extended.sparse_size.unwrap_or(u64::MAX),
        );
    }
}

/// A local store that was opened for reading, whichever form it has.
#[derive(Debug)]
pub enum Local {
    /// `oci:DIR`
    Layout(Layout),
    /// `oci-archive:FILE`
    Archive(Archive),
}

impl Local {
    /// Opens what `reference` names.
    pub async fn open(reference: &LayoutRef) -> Result<Self> {
        match reference.kind() {
            LayoutKind::Dir => {
                let path = reference.path().to_owned();
                blocking(move || Layout::open(&path).map(Self::Layout)).await
            }
            LayoutKind::Archive => Archive::open(reference.path()).await.map(Self::Archive),
        }
        .map_err(|error| error.reference(reference.typed()))
    }

    /// The store's `index.json`.
    pub fn index(&self) -> Result<Index> {
        match self {
            Self::Layout(layout) => layout.index(),
            Self::Archive(archive) => Ok(archive.index().clone()),
        }
    }

    /// The image that `selector` names, see [`Layout::resolve`].
    pub fn resolve(&self, selector: Option<&Selector>) -> Result<Descriptor> {
        match self {
            Self::Layout(layout) => layout.resolve(selector),
            Self::Archive(archive) => archive.resolve(selector),
        }
    }

    /// What the image that `selector` names is called.
    pub fn names(&self, selector: Option<&Selector>) -> Result<Names> {
        let wanted = self.resolve(selector)?;
        let index = self.index()?;
        let entry = index
            .entries
            .iter()
            .find(|entry| entry.digest == wanted.digest);
        Ok(entries::names(entry.unwrap_or(&wanted)))
    }

    /// The content, for whatever reads images.
    pub fn source(&self) -> &dyn Source {
        match self {
            Self::Layout(layout) => layout,
            Self::Archive(archive) => archive,
        }
    }
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::new(Kind::Internal, "file work did not end").caused_by(&error)),
    }
}

/// Checks the contents of the `oci-layout` file (image-spec image-layout.md).
fn check_marker(bytes: &[u8], name: &str) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Marker {
        #[serde(rename = "imageLayoutVersion")]
        version: String,
    }
    let marker: Marker = serde_json::from_slice(bytes).map_err(|error| {
        Error::new(
            Kind::InvalidContent,
            format_args!("the oci-layout file of `{name}` cannot be read"),
        )
        .caused_by(&error)
    })?;
    // Within 1.x an older reader is expected to cope.
    if marker.version != "1" && !marker.version.starts_with("1.") {
        let version: String = marker
            .version
            .chars()
            .filter(|c| !c.is_control())
            .take(32)
            .collect();
        return Err(Error::new(
            Kind::Unsupported,
            format_args!("`{name}` has image layout version {version}, only 1.x is known"),
        ));
    }
    Ok(())
}

/// Text from a file of strangers, as it may appear in a message.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(120).collect()
}
