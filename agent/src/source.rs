//! Where content comes from: a repository in a registry, an image layout on disk,
//! or containerd's own store. What reads it does not care which.

use std::{fmt, pin::Pin};

use bytes::Bytes;
use futures_util::{Stream, future::BoxFuture};

use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::{Descriptor, Document, Verified, Verifier},
};

/// A blob's bytes, from the offset that was asked for. Not yet verified: whoever
/// reads it runs a [`Verifier`] along, because only the reader has seen all bytes.
pub type BlobStream = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>;

/// Blobs that are read at once unless somebody says otherwise; containerd's own default.
pub const BLOBS_AT_ONCE: usize = 3;

/// One place that holds an image's content.
pub trait Source: Send + Sync + fmt::Debug {
    /// The document that `descriptor` points at, verified against its digest.
    fn document<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Document>>;

    /// The blob's bytes from `offset` on. A source that cannot start there fails
    /// rather than starting elsewhere.
    fn blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobStream>>;

    /// Whether it holds the blob; a source that cannot tell without fetching says yes.
    fn has<'a>(&'a self, _descriptor: &'a Descriptor) -> BoxFuture<'a, bool> {
        Box::pin(async { true })
    }

    /// The blob's bytes that it gave were not the blob. Whether it would now give them
    /// from another server, which is worth a try from the start; no more often than there
    /// are servers.
    fn distrust(&self, _descriptor: &Descriptor) -> bool {
        false
    }

    /// Whether the latest stream of the blob was put together from several answers: then a
    /// wrong digest may be the fault of the joint, and not of the content.
    fn pieced(&self, _descriptor: &Descriptor) -> bool {
        false
    }

    /// How many blobs it may be asked for at once, at least 1. Each that is on its way
    /// takes up to about 3 MiB of memory.
    fn at_once(&self) -> usize {
        BLOBS_AT_ONCE
    }

    /// What to call it in messages: `registry.example`, `oci:dir`.
    fn name(&self) -> &str;
}

/// Two sources as one: what the nearer one holds is not fetched from the farther one.
#[derive(Debug, Clone, Copy)]
pub struct Nearest<'a> {
    pub near: &'a dyn Source,
    pub far: &'a dyn Source,
}

impl Source for Nearest<'_> {
    fn document<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Document>> {
        Box::pin(async move {
            if self.near.has(descriptor).await {
                match self.near.document(descriptor).await {
                    Ok(document) => return Ok(document),
                    // Damaged here is a reason to fetch it again, not to fail.
                    Err(error) => {
                        tracing::debug!(digest = %descriptor.digest, %error, "the near copy cannot be used");
                    }
                }
            }
            self.far.document(descriptor).await
        })
    }

    fn blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobStream>> {
        Box::pin(async move {
            if !self.near.has(descriptor).await {
                return self.far.blob(descriptor, offset).await;
            }
            if offset > 0 || descriptor.size > MAX_SMALL_BLOB {
                return self.near.blob(descriptor, offset).await;
            }
            // What a power cut damaged here must not be taken for the publisher's fault.
            match small_blob(self.near, descriptor).await {
                Ok(whole) => {
                    let chunk = Ok(whole.bytes().clone());
                    Ok(Box::pin(futures_util::stream::iter([chunk])) as BlobStream)
                }
                Err(error) => {
                    tracing::debug!(digest = %descriptor.digest, %error, "the near copy cannot be used");
                    self.far.blob(descriptor, offset).await
                }
            }
        })
    }

    fn has<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, bool> {
        Box::pin(async move { self.near.has(descriptor).await || self.far.has(descriptor).await })
    }

    fn distrust(&self, descriptor: &Descriptor) -> bool {
        self.far.distrust(descriptor)
    }

    fn pieced(&self, descriptor: &Descriptor) -> bool {
        self.near.pieced(descriptor) || self.far.pieced(descriptor)
    }

    fn at_once(&self) -> usize {
        self.far.at_once()
    }

    fn name(&self) -> &str {
        self.far.name()
    }
}

/// A source, of which one blob has been fetched already: it is not fetched again.
#[derive(Debug, Clone, Copy)]
pub struct InHand<'a> {
    pub blob: &'a Verified,
    pub far: &'a dyn Source,
}

impl Source for InHand<'_> {
    fn document<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Document>> {
        self.far.document(descriptor)
    }

    fn blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobStream>> {
        let rest = usize::try_from(offset)
            .ok()
            .filter(|_| descriptor.digest == *self.blob.digest())
            .filter(|offset| *offset <= self.blob.bytes().len())
            .map(|offset| self.blob.bytes().slice(offset..));
        match rest {
            Some(rest) => Box::pin(async {
                Ok(Box::pin(futures_util::stream::iter([Ok(rest)])) as BlobStream)
            }),
            None => self.far.blob(descriptor, offset),
        }
    }

    fn has<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, bool> {
        self.far.has(descriptor)
    }

    fn distrust(&self, descriptor: &Descriptor) -> bool {
        self.far.distrust(descriptor)
    }

    fn pieced(&self, descriptor: &Descriptor) -> bool {
        self.far.pieced(descriptor)
    }

    fn at_once(&self) -> usize {
        self.far.at_once()
    }

    fn name(&self) -> &str {
        self.far.name()
    }
}

/// Configs are small; a bigger one is an attack on memory.
const MAX_SMALL_BLOB: u64 = 4 << 20;

/// Reads a small blob (a config, an artifact's file) whole, and verifies it.
pub async fn small_blob(source: &dyn Source, descriptor: &Descriptor) -> Result<Verified> {
    if descriptor.size > MAX_SMALL_BLOB {
        return Err(Error::new(
            Kind::InvalidContent,
            format_args!(
                "blob {} is announced with {} bytes; at most {MAX_SMALL_BLOB} are read into memory",
                descriptor.digest, descriptor.size
            ),
        ));
    }
    loop {
        match small_blob_once(source, descriptor).await {
            Err(error) if error.kind() == Kind::InvalidContent && source.distrust(descriptor) => {}
            other => return other,
        }
    }
}

async fn small_blob_once(source: &dyn Source, descriptor: &Descriptor) -> Result<Verified> {
    use futures_util::StreamExt;

    let mut stream = source.blob(descriptor, 0).await?;
    let mut verifier = Verifier::new(descriptor);
    let mut bytes = Vec::with_capacity(usize::try_from(descriptor.size).unwrap_or_default());
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        verifier.update(&chunk)?;
        bytes.extend_from_slice(&chunk);
    }
    verifier.finish_bytes(bytes.into())
}

#[cfg(test)]
mod tests {
    use futures_util::{TryStreamExt, stream};

    use super::*;
    use crate::oci::{Digest, MediaType};

    /// Serves the same bytes under every name.
    #[derive(Debug)]
    struct Says(&'static [u8]);

    impl Source for Says {
        fn document<'a>(&'a self, _: &'a Descriptor) -> BoxFuture<'a, Result<Document>> {
            Box::pin(async { Document::parse(&Verified::of(Bytes::from_static(self.0)), None) })
        }

        fn blob<'a>(&'a self, _: &'a Descriptor, _: u64) -> BoxFuture<'a, Result<BlobStream>> {
            let chunk = Ok(Bytes::from_static(self.0));
            Box::pin(async { Ok(Box::pin(stream::iter([chunk])) as BlobStream) })
        }

        fn name(&self) -> &'static str {
            "says"
        }
    }

    #[tokio::test]
    async fn what_is_in_hand_is_not_fetched() {
        let blob = Verified::of(Bytes::from_static(b"good"));
        let far = Says(b"else");
        let source = InHand {
            blob: &blob,
            far: &far,
        };
        let config = Descriptor::new(MediaType::OciConfig, Digest::of(b"good"), 4);
        let other = Descriptor::new(MediaType::OciConfig, Digest::of(b"else"), 4);
        assert!(small_blob(&source, &config).await.is_ok());
        assert!(small_blob(&source, &other).await.is_ok());
        let rest: Vec<Bytes> = source
            .blob(&config, 1)
            .await
            .expect("open")
            .try_collect()
            .await
            .expect("read");
        assert_eq!(rest, [&b"ood"[..]]);
    }

    #[tokio::test]
    async fn a_damaged_near_copy_is_fetched_from_afar() {
        let config = Descriptor::new(MediaType::OciConfig, Digest::of(b"good"), 4);
        for (near, far, fits) in [
            ("gone", "good", true),
            ("good", "gone", true),
            ("", "gone", false),
        ] {
            let (near, far) = (Says(near.as_bytes()), Says(far.as_bytes()));
            let both = Nearest {
                near: &near,
                far: &far,
            };
            assert_eq!(small_blob(&both, &config).await.is_ok(), fits, "{both:?}");
        }
    }
}
