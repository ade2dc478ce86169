//! containerd's own store as a source: for export, and for judging a reference without
//! a registry.

use futures_util::future::BoxFuture;

use super::client::Engine;
use crate::{
    error::Result,
    oci::{Descriptor, Document},
    source::{BlobStream, Source},
};

/// Reads documents and blobs back from one namespace of containerd.
#[derive(Debug, Clone)]
pub struct StoreSource {
    engine: Engine,
    name: String,
}

impl StoreSource {
    pub fn new(engine: Engine) -> Self {
        let name = format!("containerd namespace {}", engine.namespace());
        Self { engine, name }
    }
}

impl Source for StoreSource {
    fn document<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Document>> {
        Box::pin(async move {
            let verified = self.engine.read_document(&descriptor.digest).await?;
            let known = Some(descriptor.media_type.as_str()).filter(|t| !t.is_empty());
            Document::parse(&verified, known)
        })
    }

    fn blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobStream>> {
        Box::pin(self.engine.read_blob(&descriptor.digest, offset))
    }

    fn has<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, bool> {
        Box::pin(
            async move { matches!(self.engine.blob_info(&descriptor.digest).await, Ok(Some(_))) },
        )
    }

    fn name(&self) -> &str {
        &self.name
    }
}
