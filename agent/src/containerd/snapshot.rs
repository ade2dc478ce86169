//! Snapshots: one a layer, named by the chain of layers up to it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use base64::Engine as _;
use containerd_client::{
    services::v1::snapshots::{
        CommitSnapshotRequest, MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
        StatSnapshotRequest, snapshots_client::SnapshotsClient,
    },
    types::Mount,
};
use tonic::transport::Channel;

use super::{
    client::{DIRECTORIES, Engine, MAX_MESSAGE, METADATA},
    failure::{Cause, Failure, Outcome},
    labels::{Labels, SNAPSHOT_PREFIX, SNAPSHOT_REF},
};
use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::{ChainId, Descriptor, DiffId},
};

/// Tries to prepare a snapshot that is said to exist and then is not found.
const PREPARE_TRIES: usize = 3;

/// What preparing a layer's snapshot found.
#[derive(Debug)]
pub enum Prepared {
    /// The layer is there, and the lease has it now too.
    Exists,
    /// An active snapshot to unpack onto.
    Active(ActiveSnapshot),
}

/// The layer that a snapshot is prepared for.
#[derive(Debug, Clone, Copy)]
pub struct LayerOf<'a> {
    pub layer: &'a Descriptor,
    pub diff_id: &'a DiffId,
    /// The snapshot's name when it is committed.
    pub chain: &'a ChainId,
    /// `None` for the lowest layer.
    pub parent: Option<&'a ChainId>,
}

/// An active snapshot: must end in a commit or in a removal.
#[derive(Debug, Clone)]
pub struct ActiveSnapshot {
    pub key: String,
    pub mounts: Vec<Mount>,
    snapshotter: String,
    name: String,
    labels: Labels,
}

impl ActiveSnapshot {
    /// Whether the snapshotter brought the content itself (2.4 and later): what it hands
    /// out read-only is only to be committed.
    pub fn is_staged(&self) -> bool {
        self.mounts
            .last()
            .is_some_and(|mount| mount.options.iter().any(|option| option == "ro"))
    }

    /// Where the layer's files go, if the mounts say so plainly: the upper directory of
    /// an overlay, the source of a bind. In containerd's mount namespace.
    pub fn directory(&self) -> Option<&std::path::Path> {
        let [mount] = self.mounts.as_slice() else {
            return None;
        };
        match mount.r#type.as_str() {
            "overlay" => mount
                .options
                .iter()
                .find_map(|option| option.strip_prefix("upperdir=")),
            "bind" => Some(mount.source.as_str()),
            _ => None,
        }
        .map(std::path::Path::new)
    }
}

fn client(channel: Channel) -> SnapshotsClient<Channel> {
    SnapshotsClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

impl Engine {
    /// Whether the committed snapshot of `chain` exists.
    pub async fn has_snapshot(&self, snapshotter: &str, chain: &ChainId) -> Result<bool> {
        self.has_snapshot_named(snapshotter, chain.as_str()).await
    }

    /// Whether a snapshot of this name exists, committed or not.
    pub async fn has_snapshot_named(&self, snapshotter: &str, name: &str) -> Result<bool> {
        let message = StatSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: name.to_owned(),
        };
        let action = format!("look up snapshot {name}");
        let answer = self
            .call(&action, METADATA, message, |c, r| async move {
                client(c).stat(r).await
            })
            .await;
        match answer {
            Ok(_) => Ok(true),
            Err(failure) if failure.cause == Cause::Missing => Ok(false),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Prepares the snapshot of a layer on top of its parent's.
    pub async fn prepare_layer(&self, snapshotter: &str, of: LayerOf<'_>) -> Outcome<Prepared> {
        let LayerOf {
            layer,
            chain,
            parent,
            ..
        } = of;
        let detailed = self.version_numbers().is_some_and(|v| v >= (2, 3));
        let labels = snapshot_labels(of, detailed);
        let mut last = None;
        for _ in 0..PREPARE_TRIES {
            let key = unique_key(chain);
            let message = PrepareSnapshotRequest {
                snapshotter: snapshotter.to_owned(),
                key: key.clone(),
                parent: parent.map(ChainId::to_string).unwrap_or_default(),
                labels: labels.clone(),
            };
            let action = format!("prepare a snapshot for layer {}", layer.digest);
            let answer = self
                .call(&action, DIRECTORIES, message, |c, r| async move {
                    client(c).prepare(r).await
                })
                .await;
            match answer {
                Ok(answer) => {
                    return Ok(Prepared::Active(ActiveSnapshot {
                        key,
                        mounts: answer.mounts,
                        snapshotter: snapshotter.to_owned(),
                        name: chain.to_string(),
                        labels,
                    }));
                }
                Err(failure) if failure.cause == Cause::Exists => {
                    // The target exists (a remote snapshotter says so for the chain), or
                    // our key does: the answer to a call that was repeated.
                    if self
                        .has_snapshot(snapshotter, chain)
                        .await
                        .map_err(|error| Failure::new(Cause::Other, error))?
                    {
                        return Ok(Prepared::Exists);
                    }
                    last = Some(failure);
                }
                Err(failure) => return Err(failure),
            }
        }
        Err(last.unwrap_or_else(|| {
            Failure::new(
                Cause::Other,
                Error::new(Kind::Internal, "no try was made to prepare a snapshot"),
            )
        }))
    }

    /// Prepares a container's own writable snapshot `key` on top of an image's; the mounts that
    /// make it up, in containerd's mount namespace. `parent` is `None` for an image of no layers.
    pub async fn prepare_container(
        &self,
        snapshotter: &str,
        key: &str,
        parent: Option<&ChainId>,
    ) -> Outcome<Vec<Mount>> {
        let message = PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.map(ChainId::to_string).unwrap_or_default(),
            labels: Labels::new(),
        };
        let action = format!("prepare snapshot `{key}`");
        let answer = self
            .call(&action, DIRECTORIES, message, |c, r| async move {
                client(c).prepare(r).await
            })
            .await;
        match answer {
            Ok(answer) => Ok(answer.mounts),
            // The answer to a call that was repeated: the key is the caller's alone.
            Err(failure) if failure.cause == Cause::Exists => {
                let message = MountsRequest {
                    snapshotter: snapshotter.to_owned(),
                    key: key.to_owned(),
                };
                self.call(&action, METADATA, message, |c, r| async move {
                    client(c).mounts(r).await
                })
                .await
                .map(|answer| answer.mounts)
            }
            Err(failure) => Err(failure),
        }
    }

    /// Commits an unpacked layer. That somebody else committed the same chain first is
    /// as good; our own copy is removed then.
    pub async fn commit_layer(&self, snapshot: &ActiveSnapshot) -> Outcome<()> {
        let message = CommitSnapshotRequest {
            snapshotter: snapshot.snapshotter.clone(),
            name: snapshot.name.clone(),
            key: snapshot.key.clone(),
            // The labels of the commit replace those of the preparation.
            labels: snapshot.labels.clone(),
        };
        let action = format!("commit snapshot {}", snapshot.name);
        let answer = self
            .call(&action, DIRECTORIES, message, |c, r| async move {
                client(c).commit(r).await
            })
            .await;
        match answer {
            Ok(()) => Ok(()),
            Err(failure) if failure.cause == Cause::Exists => self
                .remove_snapshot(snapshot)
                .await
                .map_err(|error| Failure::new(Cause::Other, error)),
            Err(failure) => Err(failure),
        }
    }

    /// Removes an active snapshot. It is no failure if it is gone.
    pub async fn remove_snapshot(&self, snapshot: &ActiveSnapshot) -> Result<()> {
        self.remove_snapshot_named(&snapshot.snapshotter, &snapshot.key)
            .await
    }

    /// Removes a snapshot by its name, committed or not. It is no failure if it is gone;
    /// one that others stand on is refused by containerd.
    pub async fn remove_snapshot_named(&self, snapshotter: &str, name: &str) -> Result<()> {
        let message = RemoveSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: name.to_owned(),
        };
        let action = format!("remove snapshot `{name}`");
        let answer = self
            .call(&action, DIRECTORIES, message, |c, r| async move {
                client(c).remove(r).await
            })
            .await;
        match answer {
            Err(failure) if failure.cause != Cause::Missing => Err(failure.into()),
            _ => Ok(()),
        }
    }
}

/// `containerd.io/snapshot.ref`, and what the layer's publisher says to snapshotters.
/// `detailed`: with the two labels that containerd's own clients add since 2.3.
fn snapshot_labels(of: LayerOf<'_>, detailed: bool) -> Labels {
    let mut labels: Labels = of
        .layer
        .annotations
        .iter()
        .filter(|(key, value)| {
            key.starts_with(SNAPSHOT_PREFIX) && key.len() + value.len() <= super::labels::MAX_LABEL
        })
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    labels.insert(SNAPSHOT_REF.to_owned(), of.chain.to_string());
    if detailed {
        labels.insert(format!("{SNAPSHOT_PREFIX}diff-id"), of.diff_id.to_string());
        if let Some(parent) = of.parent {
            labels.insert(
                format!("{SNAPSHOT_PREFIX}parent-chain-id"),
                parent.to_string(),
            );
        }
    }
    labels
}

/// `extract-<nanoseconds>-<4 characters> <chain id>`, as containerd's own unpacker
/// names them; its tools recognise the form.
fn unique_key(chain: &ChainId) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    // Three bytes are four characters. Uniqueness is all that is asked of them: a clock
    // that stands still, another process and a second call must not collide.
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mix = (u64::from(std::process::id()) ^ (count << 7)).to_be_bytes();
    let [.., a, b, c] = mix;
    let unique = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode([a, b, c]);
    format!("extract-{}-{unique} {chain}", now.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{DiffId, Digest, MediaType};

    #[test]
    fn keys_have_containerds_form_and_differ() {
        let chain = ChainId::of_layers(&[DiffId(Digest::of(b"a"))]).remove(0);
        let key = unique_key(&chain);
        let (front, back) = key.split_once(' ').expect("a space");
        assert_eq!(back, chain.as_str());
        let unique = front.strip_prefix("extract-").expect("the prefix");
        let (nanos, unique) = unique.split_once('-').expect("a dash");
        assert!(nanos.parse::<u32>().is_ok());
        assert_eq!(unique.len(), 4);
        assert_ne!(key, unique_key(&chain));
    }

    #[test]
    fn only_annotations_for_snapshotters_become_labels() {
        let chain = ChainId::of_layers(&[DiffId(Digest::of(b"a"))]).remove(0);
        let mut layer = Descriptor::new(MediaType::parse("x"), Digest::of(b"l"), 1);
        for key in ["containerd.io/snapshot/x", "org.example"] {
            layer.annotations.insert(key.to_owned(), "v".to_owned());
        }
        let diff_id = DiffId(Digest::of(b"a"));
        let of = LayerOf {
            layer: &layer,
            diff_id: &diff_id,
            chain: &chain,
            parent: Some(&chain),
        };
        let labels = snapshot_labels(of, false);
        assert_eq!(labels.len(), 2);
        assert_eq!(
            labels.get(SNAPSHOT_REF).map(String::as_str),
            Some(chain.as_str())
        );
        assert_eq!(snapshot_labels(of, true).len(), 4);
    }
}
