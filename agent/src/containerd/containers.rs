//! Containers: what an image is needed for, and the ones that edgepull makes to try an image.

use containerd_client::services::v1::{
    Container as Record, CreateContainerRequest, DeleteContainerRequest, ListContainersRequest,
    container::Runtime, containers_client::ContainersClient,
};
use tonic::transport::Channel;

use super::{
    client::{Engine, MAX_MESSAGE, METADATA},
    failure::{Cause, Outcome},
    labels::Labels,
};
use crate::error::Result;

/// How containerd names an OCI runtime specification that is JSON.
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// A container's record: it need not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    pub id: String,
    /// The name of the image record that it was made from; may be empty.
    pub image: String,
    pub snapshotter: String,
    /// Its own, writable snapshot; may be empty.
    pub snapshot: String,
    pub labels: Labels,
}

/// A container to be made.
#[derive(Debug, Clone)]
pub struct NewContainer<'a> {
    pub id: &'a str,
    pub labels: Labels,
    /// Such as `io.containerd.runc.v2`.
    pub runtime: &'a str,
    /// The OCI runtime specification, as JSON.
    pub spec: Vec<u8>,
    pub snapshotter: &'a str,
    /// Its own, writable snapshot, which it keeps from the garbage collection.
    pub snapshot: &'a str,
}

fn client(channel: Channel) -> ContainersClient<Channel> {
    ContainersClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

impl Engine {
    /// The containers of the namespace.
    pub async fn containers(&self) -> Result<Vec<Container>> {
        let message = ListContainersRequest::default();
        let answer = self
            .call("list containers", METADATA, message, |c, r| async move {
                client(c).list(r).await
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
                labels: container.labels,
            })
            .collect())
    }

    /// Makes a container's record; nothing runs yet.
    pub async fn create_container(&self, new: NewContainer<'_>) -> Outcome<()> {
        let action = format!("create container `{}`", new.id);
        let message = CreateContainerRequest {
            container: Some(Record {
                id: new.id.to_owned(),
                labels: new.labels,
                runtime: Some(Runtime {
                    name: new.runtime.to_owned(),
                    options: None,
                }),
                spec: Some(prost_types::Any {
                    type_url: SPEC.to_owned(),
                    value: new.spec,
                }),
                snapshotter: new.snapshotter.to_owned(),
                snapshot_key: new.snapshot.to_owned(),
                ..Record::default()
            }),
        };
        let answer = self
            .call(&action, METADATA, message, |c, r| async move {
                client(c).create(r).await
            })
            .await;
        match answer {
            // The answer to a call that was repeated: the id is ours alone.
            Err(failure) if failure.cause != Cause::Exists => Err(failure),
            _ => Ok(()),
        }
    }

    /// Deletes a container's record. That it is gone is as good.
    pub async fn delete_container(&self, id: &str) -> Result<()> {
        let message = DeleteContainerRequest { id: id.to_owned() };
        let action = format!("delete container `{id}`");
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
}
