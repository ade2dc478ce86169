//! What the tests of this module share: images in memory.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use futures_util::{future::BoxFuture, stream};

use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::{Algorithm, Descriptor, Digest, Document, Hasher, MediaType, Verified},
    source::{BlobStream, Source},
};

/// A source in memory. It breaks off after `break_after` bytes of a stream, if set.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) blobs: HashMap<Digest, Bytes>,
    pub(super) break_after: Option<usize>,
    /// Bytes that were read from it.
    pub(super) served: AtomicU64,
}

pub(super) fn digest(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::new(algorithm);
    hasher.update(bytes);
    hasher.finish()
}

impl Memory {
    pub(super) fn add(&mut self, media_type: &str, bytes: impl Into<Bytes>) -> Descriptor {
        self.add_as(Algorithm::Sha256, media_type, bytes)
    }

    pub(super) fn add_as(
        &mut self,
        algorithm: Algorithm,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Descriptor {
        let bytes = bytes.into();
        let digest = digest(algorithm, &bytes);
        let descriptor = Descriptor::new(
            MediaType::parse(media_type),
            digest.clone(),
            bytes.len() as u64,
        );
        self.blobs.insert(digest, bytes);
        descriptor
    }

    /// An image with one layer of `size` bytes.
    pub(super) fn image(&mut self, architecture: &str, size: usize) -> Document {
        let layer: Vec<u8> = (0..size)
            .map(|at| u8::try_from((at * 31 + architecture.len()) % 251).expect("small"))
            .collect();
        let layer = self.add("application/vnd.oci.image.layer.v1.tar", layer);
        let config = serde_json::json!({
            "os": "linux", "architecture": architecture,
            "rootfs": {"type": "layers", "diff_ids": [layer.digest.as_str()]},
        });
        let config = self.add(MediaType::OCI_CONFIG, config.to_string());
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST,
            "config": config, "layers": [layer],
        });
        self.document(MediaType::OCI_MANIFEST, &manifest)
    }

    pub(super) fn document(&mut self, media_type: &str, json: &serde_json::Value) -> Document {
        let descriptor = self.add(media_type, json.to_string());
        let bytes = self.blobs[&descriptor.digest].clone();
        let verified = Verified::check(bytes, &descriptor.digest).expect("just hashed");
        Document::parse(&verified, Some(media_type)).expect("valid")
    }

    /// An index over `leaves`.
    pub(super) fn index(&mut self, leaves: &[(&Document, &str)]) -> Document {
        let manifests: Vec<serde_json::Value> = leaves
            .iter()
            .map(|(leaf, architecture)| {
                let mut entry = serde_json::to_value(&leaf.descriptor).expect("plain data");
                entry["platform"] =
                    serde_json::json!({"os": "linux", "architecture": architecture});
                entry
            })
            .collect();
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": manifests,
        });
        self.document(MediaType::OCI_INDEX, &index)
    }
}

impl Source for Memory {
    fn document<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Document>> {
        Box::pin(async move {
            let bytes = self.blobs.get(&descriptor.digest).cloned();
            let bytes = bytes.ok_or_else(|| Error::new(Kind::NotFound, "no such document"))?;
            Document::parse(&Verified::check(bytes, &descriptor.digest)?, None)
        })
    }

    fn blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobStream>> {
        Box::pin(async move {
            let bytes = self.blobs.get(&descriptor.digest).cloned();
            let bytes = bytes.ok_or_else(|| Error::new(Kind::NotFound, "no such blob"))?;
            let rest = bytes.slice(usize::try_from(offset).expect("small")..);
            let end = self.break_after.unwrap_or(rest.len()).min(rest.len());
            let mut chunks: Vec<Result<Bytes>> = rest
                .slice(..end)
                .chunks(1000)
                .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
                .collect();
            self.served.fetch_add(end as u64, Ordering::Relaxed);
            if end < rest.len() {
                chunks.push(Err(Error::new(Kind::Unavailable, "the link broke")));
            }
            Ok(Box::pin(stream::iter(chunks)) as BlobStream)
        })
    }

    fn name(&self) -> &'static str {
        "memory"
    }
}
