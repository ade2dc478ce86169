//! The content store, short of writing blobs: facts, labels, reading.

use std::time::Duration;

use bytes::Bytes;
use containerd_client::services::v1::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, ReadContentRequest, StatusRequest,
    UpdateRequest, content_client::ContentClient,
};
use futures_util::StreamExt;
use prost_types::FieldMask;
use tokio::time::timeout;
use tonic::transport::Channel;

use super::{
    client::{Engine, MAX_MESSAGE, METADATA},
    failure::{Cause, Failure},
    labels::Labels,
};
use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::{Descriptor, Digest, Verified},
    source::BlobStream,
};

/// A reader of a blob on a failing disk must not hang.
const READ_STALL: Duration = Duration::from_secs(60);

/// How long after each refusal an abort is tried again (milliseconds).
const ABORT_PAUSES: [u64; 4] = [10, 40, 160, 640];

/// Documents and configs that are read back whole are never larger (bytes).
const MAX_DOCUMENT: u64 = 8 << 20;

/// Longest name from an annotation that becomes part of an ingest ref (bytes).
const MAX_REF_NAME: usize = 1024;

/// What the store says about a blob that it has.
#[derive(Debug, Clone)]
pub struct BlobInfo {
    /// Bytes.
    pub size: u64,
    pub labels: Labels,
}

/// What the store says about a blob on its way in.
#[derive(Debug, Clone)]
pub struct IngestStatus {
    /// Bytes held.
    pub offset: u64,
    /// Bytes announced; 0 if unknown.
    pub total: u64,
}

pub(super) fn client(channel: Channel) -> ContentClient<Channel> {
    ContentClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

/// A size or offset as the API carries it. A size beyond it cannot exist.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Engine {
    /// Size and labels of a blob; `None` if the namespace does not have it.
    pub async fn blob_info(&self, digest: &Digest) -> Result<Option<BlobInfo>> {
        let message = InfoRequest {
            digest: digest.to_string(),
        };
        let action = format!("look up blob {digest}");
        let answer = self
            .call(&action, METADATA, message, |c, r| async move {
                client(c).info(r).await
            })
            .await;
        match answer {
            Ok(answer) => Ok(answer.info.map(|info| BlobInfo {
                size: unsigned(info.size),
                labels: info.labels,
            })),
            Err(failure) if failure.cause == Cause::Missing => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Sets `labels` on a blob and leaves all others alone.
    pub async fn label_blob(&self, digest: &Digest, labels: Labels) -> Result<()> {
        if labels.is_empty() {
            return Ok(());
        }
        let message = UpdateRequest {
            // The part after the first dot is the key verbatim, dots and slashes included.
            update_mask: Some(FieldMask {
                paths: labels.keys().map(|key| format!("labels.{key}")).collect(),
            }),
            info: Some(Info {
                digest: digest.to_string(),
                labels,
                ..Info::default()
            }),
        };
        let action = format!("label blob {digest}");
        self.call(&action, METADATA, message, |c, r| async move {
            client(c).update(r).await
        })
        .await?;
        Ok(())
    }

    /// What is known of an unfinished ingest; `None` if there is none.
    pub async fn ingest_status(&self, reference: &str) -> Result<Option<IngestStatus>> {
        let message = StatusRequest {
            r#ref: reference.to_owned(),
        };
        let action = format!("look up ingest `{reference}`");
        let answer = self
            .call(&action, METADATA, message, |c, r| async move {
                client(c).status(r).await
            })
            .await;
        match answer {
            Ok(answer) => Ok(answer.status.map(|status| IngestStatus {
                offset: unsigned(status.offset),
                total: unsigned(status.total),
            })),
            Err(failure) if failure.cause == Cause::Missing => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Throws an unfinished ingest away. It is no failure if there is none.
    pub async fn abort_ingest(&self, reference: &str) -> Result<()> {
        let message = AbortRequest {
            r#ref: reference.to_owned(),
        };
        let action = format!("abort ingest `{reference}`");
        // A writer whose stream was just cancelled may still write its files: containerd's
        // removal of the directory then fails, and succeeds when the writer has closed.
        let mut pauses = ABORT_PAUSES.iter();
        loop {
            let answer = self
                .call(&action, METADATA, message.clone(), |c, r| async move {
                    client(c).abort(r).await
                })
                .await;
            match (answer, pauses.next()) {
                (Ok(()), _) => return Ok(()),
                (Err(failure), _) if failure.cause == Cause::Missing => return Ok(()),
                (Err(failure), Some(pause)) if failure.cause == Cause::Other => {
                    tracing::debug!(reference, error = %failure.error, "the ingest cannot be aborted yet");
                    tokio::time::sleep(Duration::from_millis(*pause)).await;
                }
                (Err(failure), _) => return Err(failure.into()),
            }
        }
    }

    /// Deletes a blob from the namespace. Only for blobs that nothing refers to.
    /// It is no failure if it is not there.
    pub async fn delete_blob(&self, digest: &Digest) -> Result<()> {
        let message = DeleteContentRequest {
            digest: digest.to_string(),
        };
        let action = format!("delete blob {digest}");
        let answer = self
            .call(&action, METADATA, message, |c, r| async move {
                client(c).delete(r).await
            })
            .await;
        match answer {
            Err(failure) if failure.cause != Cause::Missing => Err(failure.into()),
            _ => Ok(()),
        }
    }

    /// A blob's bytes from `offset` on. Not verified; `not_found` if it is not there.
    pub async fn read_blob(&self, digest: &Digest, offset: u64) -> Result<BlobStream> {
        let message = ReadContentRequest {
            digest: digest.to_string(),
            offset: signed(offset),
            size: 0,
        };
        let action = format!("read blob {digest}");
        let stream = self
            .call(&action, METADATA, message, |c, r| async move {
                client(c).read(r).await
            })
            .await?;
        let engine = self.clone();
        let state = Some((stream, engine, action));
        let chunks = futures_util::stream::unfold(state, |state| async move {
            let (mut stream, engine, action) = state?;
            match timeout(READ_STALL, stream.message()).await {
                Ok(Ok(Some(message))) => {
                    let chunk = Bytes::from(message.data);
                    Some((Ok(chunk), Some((stream, engine, action))))
                }
                Ok(Ok(None)) => None,
                Ok(Err(status)) => Some((Err(engine.failed(&action, &status).into()), None)),
                Err(_) => {
                    let failure = Failure::timeout(&action, READ_STALL.as_secs());
                    Some((Err(failure.into()), None))
                }
            }
        });
        Ok(Box::pin(chunks))
    }

    /// Reads a document or config whole and verifies it. A blob that the store has but
    /// that is not what its digest says is `store_damaged`.
    pub async fn read_document(&self, digest: &Digest) -> Result<Verified> {
        let (verified, _) = self.read_labelled(digest).await?;
        Ok(verified)
    }

    /// As [`Self::read_document`], with the labels that the blob has.
    pub async fn read_labelled(&self, digest: &Digest) -> Result<(Verified, Labels)> {
        let Some(info) = self.blob_info(digest).await? else {
            return Err(missing(digest));
        };
        if info.size > MAX_DOCUMENT {
            return Err(Error::new(
                Kind::InvalidContent,
                format_args!(
                    "blob {digest} has {} bytes, too many for a document",
                    info.size
                ),
            ));
        }
        let mut stream = self.read_blob(digest, 0).await?;
        let mut bytes = Vec::with_capacity(usize::try_from(info.size).unwrap_or_default());
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk?);
            if bytes.len() as u64 > MAX_DOCUMENT {
                break;
            }
        }
        let verified = Verified::check(bytes.into(), digest).map_err(|error| {
            error
                .with_kind(Kind::StoreDamaged)
                .during(format_args!("containerd's copy of {digest} is damaged"))
                .hint("a power cut or a failing disk does this; delete the image and the blob (`ctr content rm`), and pull again")
        })?;
        Ok((verified, info.labels))
    }
}

fn missing(digest: &Digest) -> Error {
    Error::new(
        Kind::NotFound,
        format_args!("containerd does not have blob {digest}"),
    )
}

/// The name of the ingest under which every client of containerd fetches `descriptor`,
/// so that they share one download. `attestations` says whether the server's own
/// clients know the kind (2.0 and later).
pub fn ingest_ref(descriptor: &Descriptor, attestations: bool) -> String {
    let media_type = &descriptor.media_type;
    let text = media_type.as_str();
    let kind = if media_type.is_manifest() {
        "manifest"
    } else if media_type.is_index() {
        "index"
    } else if super::labels::is_layer_type(text) {
        "layer"
    } else if super::labels::is_config_type(text) {
        "config"
    } else if attestations && text == "application/vnd.in-toto+json" {
        "attestation"
    } else {
        "unknown"
    };
    match descriptor.annotation("org.opencontainers.image.ref.name") {
        // A longer one is a stranger's trick: not sharing the download is all it costs.
        Some(name) if !name.is_empty() && name.len() <= MAX_REF_NAME => {
            format!("{kind}-{name}@{}", descriptor.digest)
        }
        _ => format!("{kind}-{}", descriptor.digest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::MediaType;

    #[test]
    fn ingest_refs_are_those_of_containerds_clients() {
        let digest = Digest::of(b"x");
        for (media_type, kind) in [
            (MediaType::OCI_MANIFEST, "manifest"),
            (MediaType::DOCKER_LIST, "index"),
            (
                "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
                "layer",
            ),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", "layer"),
            (MediaType::DOCKER_CONFIG, "config"),
            ("application/vnd.in-toto+json", "attestation"),
            ("application/octet-stream", "unknown"),
        ] {
            let descriptor = Descriptor::new(MediaType::parse(media_type), digest.clone(), 1);
            assert_eq!(ingest_ref(&descriptor, true), format!("{kind}-{digest}"));
        }
        let mut named = Descriptor::new(MediaType::OciManifest, digest.clone(), 1);
        named.annotations.insert(
            "org.opencontainers.image.ref.name".to_owned(),
            "v1".to_owned(),
        );
        assert_eq!(ingest_ref(&named, true), format!("manifest-v1@{digest}"));
    }
}
