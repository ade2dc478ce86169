//! How snapshots stand on each other, and where the files of each are.

use std::path::PathBuf;

use containerd_client::{
    services::v1::snapshots::{
        Kind, ListSnapshotsRequest, ViewSnapshotRequest, snapshots_client::SnapshotsClient,
    },
    types::Mount,
};
use tonic::transport::Channel;

use super::{
    client::{DIRECTORIES, Engine, MAX_MESSAGE, METADATA},
    failure::{Failure, Outcome},
};
use crate::error::Result;

/// A snapshot and what it stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The chain id of a committed one, by convention; else its key.
    pub name: String,
    pub parent: Option<String>,
    pub committed: bool,
}

fn client(channel: Channel) -> SnapshotsClient<Channel> {
    SnapshotsClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

impl Engine {
    /// Every snapshot of the namespace in `snapshotter`.
    pub async fn snapshots(&self, snapshotter: &str) -> Result<Vec<SnapshotInfo>> {
        let message = ListSnapshotsRequest {
            snapshotter: snapshotter.to_owned(),
            filters: Vec::new(),
        };
        let mut stream = self
            .call("list snapshots", METADATA, message, |c, r| async move {
                client(c).list(r).await
            })
            .await?;
        let mut all = Vec::new();
        loop {
            let next = tokio::time::timeout(METADATA, stream.message()).await;
            let part = match next {
                Ok(Ok(Some(part))) => part,
                Ok(Ok(None)) => return Ok(all),
                Ok(Err(status)) => return Err(self.failed("list snapshots", &status).into()),
                Err(_) => {
                    return Err(Failure::timeout("list snapshots", METADATA.as_secs()).into());
                }
            };
            all.extend(part.info.into_iter().map(|info| SnapshotInfo {
                committed: info.kind() == Kind::Committed,
                name: info.name,
                parent: Some(info.parent).filter(|parent| !parent.is_empty()),
            }));
        }
    }

    /// A read-only snapshot on top of `parent`, for its mounts; remove it after.
    pub async fn view(&self, snapshotter: &str, key: &str, parent: &str) -> Outcome<Vec<Mount>> {
        let message = ViewSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            ..ViewSnapshotRequest::default()
        };
        let action = format!("view snapshot {parent}");
        let answer = self
            .call(&action, DIRECTORIES, message, |c, r| async move {
                client(c).view(r).await
            })
            .await?;
        Ok(answer.mounts)
    }
}

/// The directories of the layers below a view, from the bottom up, in containerd's mount
/// namespace; or why the mounts do not say. `layers` is how many there must be.
pub fn layer_directories(mounts: &[Mount], layers: usize) -> Result<Vec<PathBuf>, String> {
    let [mount] = mounts else {
        return Err(format!(
            "the snapshotter answers with {} mounts",
            mounts.len()
        ));
    };
    // In a user namespace layers are unpacked through the mounted file system, and links
    // of the layers below lead elsewhere.
    if mount.options.iter().any(|option| option == "userxattr") {
        return Err("containerd runs in a user namespace".to_owned());
    }
    let directories: Vec<PathBuf> = match mount.r#type.as_str() {
        "bind" => vec![PathBuf::from(&mount.source)],
        "overlay" => mount
            .options
            .iter()
            .find_map(|option| option.strip_prefix("lowerdir="))
            .map(|list| list.split(':').rev().map(PathBuf::from).collect())
            .unwrap_or_default(),
        other => return Err(format!("the snapshotter mounts `{}`", other.escape_debug())),
    };
    if directories.len() != layers || directories.iter().any(|dir| !dir.is_absolute()) {
        return Err(format!(
            "the mount has {} directories for {layers} layers",
            directories.len()
        ));
    }
    Ok(directories)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            r#type: kind.to_owned(),
            source: source.to_owned(),
            target: String::new(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
        }
    }

    #[test]
    fn directories_are_read_off_the_mounts_and_never_guessed() {
        let overlay = |options: &[&str]| vec![mount("overlay", "overlay", options)];
        let dirs = |mounts: &[Mount], layers| layer_directories(mounts, layers).ok();
        let two = overlay(&["index=off", "lowerdir=/s/2/fs:/s/1/fs"]);
        assert_eq!(
            dirs(&two, 2),
            Some(vec!["/s/1/fs".into(), "/s/2/fs".into()])
        );
        assert_eq!(dirs(&two, 3), None);
        let one = [mount("bind", "/s/1/fs", &["ro", "rbind"])];
        assert_eq!(dirs(&one, 1), Some(vec!["/s/1/fs".into()]));
        assert_eq!(dirs(&overlay(&["lowerdir=/a:/b", "userxattr"]), 2), None);
        assert_eq!(dirs(&overlay(&["lowerdir=a:b"]), 2), None);
        assert_eq!(dirs(&[mount("erofs", "/x", &[])], 1), None);
        assert_eq!(dirs(&[], 1), None);
    }
}
