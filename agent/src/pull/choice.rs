//! The chosen image, on its way from `resolve` to a store.

use edgepull_platform::Platform;

use crate::oci::{Document, DocumentKind, Manifest, Verified};

/// One image out of what a reference offers, with everything needed to fetch it.
#[derive(Debug, Clone)]
pub struct Choice {
    /// What the reference resolves to (index or manifest): the image record's target.
    pub root: Document,
    /// Nested indexes from the root (exclusive) down to the leaf (exclusive).
    pub ancestors: Vec<Document>,
    /// The image manifest.
    pub leaf: Document,
    /// The raw config, verified.
    pub config: Verified,
    /// What the label (index entry, else config) says it is for.
    pub platform: Option<Platform>,
    /// The record must point at the manifest, because the store's reader would take
    /// another entry of the index.
    pub target_is_leaf: bool,
}

impl Choice {
    /// The manifest of the leaf; `None` only if somebody built a choice around an index.
    pub fn manifest(&self) -> Option<&Manifest> {
        match &self.leaf.kind {
            DocumentKind::Manifest(manifest) => Some(manifest),
            DocumentKind::Index(_) => None,
        }
    }

    /// The document that the image record points at.
    pub fn target(&self) -> &Document {
        if self.target_is_leaf { &self.leaf } else { &self.root }
    }
}
