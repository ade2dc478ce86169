//! The chosen image: what the resolver hands to the pipeline.

use edgepull_platform::Platform;

use crate::{
    error::Error,
    oci::{Descriptor, Document, DocumentKind, Manifest, Verified},
};

/// One image of a reference, chosen by platform, with every document on the way to it.
#[derive(Debug, Clone)]
pub struct Choice {
    /// What the reference resolves to (index or manifest): the image record's target.
    pub root: Document,
    /// Nested indexes from the root (exclusive) down to the leaf (exclusive).
    pub ancestors: Vec<Document>,
    /// The manifest (`DocumentKind::Manifest`).
    pub leaf: Document,
    /// The raw image config.
    pub config: Verified,
    /// The platform that the choice is for; `None` for what names none.
    pub platform: Option<Platform>,
    /// `--variant best` outside `selects`: the record points at the manifest, because
    /// containerd looks up by its own platform and not by what is present.
    pub target_is_leaf: bool,
    /// Its label fits nothing that was wanted: the failure that this is, unless a look at its
    /// bytes proves otherwise.
    pub probation: Option<Box<Error>>,
}

impl Choice {
    /// What the image record points at.
    pub fn target(&self) -> &Descriptor {
        if self.target_is_leaf {
            &self.leaf.descriptor
        } else {
            &self.root.descriptor
        }
    }

    /// The leaf's manifest; `None` if the leaf is no manifest.
    pub fn manifest(&self) -> Option<&Manifest> {
        match &self.leaf.kind {
            DocumentKind::Manifest(manifest) => Some(manifest),
            DocumentKind::Index(_) => None,
        }
    }

    /// The documents that the store needs, from the top down, each once.
    pub fn documents(&self) -> Vec<&Document> {
        if self.target_is_leaf || self.root.descriptor.digest == self.leaf.descriptor.digest {
            return vec![&self.leaf];
        }
        let mut documents = vec![&self.root];
        documents.extend(&self.ancestors);
        documents.push(&self.leaf);
        documents
    }
}
