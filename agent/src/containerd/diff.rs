//! containerd's diff service: the reference unpacker.

use std::time::Duration;

use containerd_client::{
    services::v1::{ApplyRequest, diff_client::DiffClient},
    types,
};

use super::{
    client::{Engine, MAX_MESSAGE},
    content::signed,
    failure::Outcome,
};
use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::{Descriptor, DiffId},
};

/// Unpacking at less than this many bytes of compressed layer a second counts as hung.
const SLOWEST: u64 = 32 << 10;
const SHORTEST: Duration = Duration::from_secs(1800);

/// What the diff service wrote.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The digest of the whole decompressed stream, as the service computed it.
    pub digest: String,
    /// Its length in bytes.
    pub size: u64,
}

impl Applied {
    /// The service verifies nothing but the compression's own checksums: whether this is
    /// the layer that the config names is the client's to decide.
    pub fn check(&self, layer: &Descriptor, diff_id: &DiffId) -> Result<()> {
        if self.digest == diff_id.0.as_str() {
            return Ok(());
        }
        Err(Error::new(
            Kind::InvalidContent,
            format_args!(
                "layer {} unpacks to {} ({} bytes), but the image's config says {diff_id}",
                layer.digest, self.digest, self.size
            ),
        )
        .hint("the image is damaged or was assembled wrongly; ask the publisher to build and push it again"))
    }
}

impl Engine {
    /// Unpacks the blob `layer` (which the namespace has) onto `mounts`. Not repeatable
    /// on the same mounts: whiteouts that are there already are an error.
    pub async fn apply(&self, layer: &Descriptor, mounts: Vec<types::Mount>) -> Outcome<Applied> {
        let limit = SHORTEST + Duration::from_secs(layer.size / SLOWEST);
        let message = ApplyRequest {
            diff: Some(descriptor(layer)),
            mounts,
            payloads: std::collections::HashMap::new(),
            // Since 1.7.14; unknown and ignored before, where the whole store is synced at
            // the end in any case.
            sync_fs: true,
        };
        let action = format!("unpack layer {}", layer.digest);
        let answer = self
            .call_once(&action, limit, message, |c, r| async move {
                DiffClient::new(c)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .apply(r)
                    .await
            })
            .await?;
        let applied = answer.applied.unwrap_or_default();
        Ok(Applied {
            digest: applied.digest,
            size: u64::try_from(applied.size).unwrap_or_default(),
        })
    }
}

/// A descriptor as the API carries it.
pub(super) fn descriptor(descriptor: &Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type.to_string(),
        digest: descriptor.digest.to_string(),
        size: signed(descriptor.size),
        annotations: std::collections::HashMap::new(),
    }
}
