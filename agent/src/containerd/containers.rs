//! Containers, as far as they say what an image is needed for.

use containerd_client::services::v1::{ListContainersRequest, containers_client::ContainersClient};

use super::client::{Engine, MAX_MESSAGE, METADATA};
use crate::error::Result;

/// A container's record: it need not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    pub id: String,
    /// The name of the image record that it was made from; may be empty.
    pub image: String,
    pub snapshotter: String,
    /// Its own, writable snapshot; may be empty.
    pub snapshot: String,
}

impl Engine {
    /// The containers of the namespace.
    pub async fn containers(&self) -> Result<Vec<Container>> {
        let message = ListContainersRequest::default();
        let answer = self
            .call("list containers", METADATA, message, |c, r| async move {
                ContainersClient::new(c)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .list(r)
                    .await
            })
            .await?;
        Ok(answer
            .containers
            .into_iter()
            .map(|container| Container {
                id: container.id,
                image: container.image,
                snapshotter: container.snapshotter,
                snapshot: container.snapshot_key,
            })
            .collect())
    }
}
