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

/// Where the files below a view are, in containerd's mount namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directories {
    /// The topmost first.
    pub paths: Vec<PathBuf>,
    /// Overlay's attributes are those of users (`userxattr`): containerd is in a user namespace.
    pub user_names: bool,
}

/// The directories below a view, or why its mounts do not say. They are never guessed.
pub fn directories(mounts: &[Mount]) -> Result<Directories, String> {
    let [mount] = mounts else {
        return Err(format!(
            "the snapshotter answers with {} mounts, whose files cannot be seen from here",
            mounts.len()
        ));
    };
    let paths: Vec<PathBuf> = match mount.r#type.as_str() {
        "bind" => vec![PathBuf::from(&mount.source)],
        "overlay" => mount
            .options
            .iter()
            .find_map(|option| option.strip_prefix("lowerdir="))
            .map(|list| list.split(':').map(PathBuf::from).collect())
            .unwrap_or_default(),
        other => {
            return Err(format!(
                "the snapshotter mounts `{}`, whose files cannot be seen without a mount",
                other.escape_debug()
            ));
        }
    };
    if paths.is_empty() || paths.iter().any(|dir| !dir.is_absolute()) {
        return Err("the snapshotter does not say where its directories are".to_owned());
    }
    let user_names = mount.options.iter().any(|option| option == "userxattr");
    Ok(Directories { paths, user_names })
}

/// The directories of the layers below a view, from the bottom up, where each is one layer's;
/// or why the mounts do not say. `layers` is how many there must be.
pub fn layer_directories(mounts: &[Mount], layers: usize) -> Result<Vec<PathBuf>, String> {
    let found = directories(mounts)?;
    // In a user namespace layers are unpacked through the mounted file system, and links
    // of the layers below lead elsewhere.
    if found.user_names {
        return Err("containerd runs in a user namespace".to_owned());
    }
    if found.paths.len() != layers {
        return Err(format!(
            "the mount has {} directories for {layers} layers",
            found.paths.len()
        ));
    }
    Ok(found.paths.into_iter().rev().collect())
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

    #[test]
    fn where_files_are_is_read_off_the_mounts_and_never_guessed() {
        let overlay = mount(
            "overlay",
            "overlay",
            &["index=off", "lowerdir=/s/2/fs:/s/1/fs"],
        );
        let two = directories(&[overlay]).expect("two");
        assert_eq!(two.paths, [PathBuf::from("/s/2/fs"), "/s/1/fs".into()]);
        assert!(!two.user_names);
        let rootless = mount("overlay", "overlay", &["userxattr", "lowerdir=/s/1"]);
        assert!(directories(&[rootless]).expect("one").user_names);
        let native = mount("bind", "/s/1", &["ro", "rbind"]);
        assert_eq!(
            directories(&[native]).expect("one").paths,
            [PathBuf::from("/s/1")]
        );
        for unknown in [
            vec![],
            vec![mount("erofs", "/x", &[])],
            vec![mount("fuse3.fuse-overlayfs", "o", &["lowerdir=/a"])],
            vec![mount("overlay", "overlay", &[])],
            vec![mount("overlay", "overlay", &["lowerdir=a:/b"])],
            vec![mount("bind", "relative", &[])],
            vec![mount("bind", "/a", &[]), mount("bind", "/b", &[])],
        ] {
            assert!(directories(&unknown).is_err(), "{unknown:?}");
        }
    }
}
