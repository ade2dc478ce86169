//! What stands on a snapshot, and whether anybody works with it.

use std::collections::BTreeMap;

use crate::{
    containerd::{Engine, containers::Container, stack::SnapshotInfo},
    error::Result,
};

/// How snapshots of an unpack under way are named, by all of containerd's clients.
const UNPACKING: &str = "extract-";

/// The snapshots of one snapshotter, and the containers of the namespace.
#[derive(Debug, Default)]
pub(super) struct Standing {
    snapshotter: String,
    snapshots: Vec<SnapshotInfo>,
    containers: Vec<Container>,
}

/// Who has a snapshot that is not committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum User {
    Container(String),
    /// An unpack, by anybody.
    Unpack,
    /// Something that is no container to containerd: docker's, a mount by hand.
    Snapshot,
}

impl Standing {
    pub(super) async fn of(engine: &Engine, snapshotter: &str) -> Result<Self> {
        Ok(Self {
            snapshotter: snapshotter.to_owned(),
            snapshots: engine.snapshots(snapshotter).await?,
            containers: engine.containers().await?,
        })
    }

    /// `name` and everything that stands on it, from the top down: the order of removal.
    pub(super) fn above(&self, name: &str) -> Vec<&SnapshotInfo> {
        let mut children: BTreeMap<&str, Vec<&SnapshotInfo>> = BTreeMap::new();
        for snapshot in &self.snapshots {
            if let Some(parent) = &snapshot.parent {
                children.entry(parent).or_default().push(snapshot);
            }
        }
        let mut found: Vec<&SnapshotInfo> =
            self.snapshots.iter().filter(|s| s.name == name).collect();
        let mut next = 0;
        while let Some(snapshot) = found.get(next) {
            // A stack that stands on itself would be containerd's fault; it ends here.
            if found.len() > self.snapshots.len() {
                break;
            }
            let above = children.get(snapshot.name.as_str());
            found.extend(above.into_iter().flatten());
            next += 1;
        }
        found.reverse();
        found
    }

    /// Who has the writable snapshot `key`.
    pub(super) fn user(&self, key: &str) -> User {
        let container = self
            .containers
            .iter()
            .find(|c| c.snapshotter == self.snapshotter && c.snapshot == key);
        match container {
            Some(container) => User::Container(container.id.clone()),
            None if key.starts_with(UNPACKING) => User::Unpack,
            None => User::Snapshot,
        }
    }

    /// Who runs (or could at once) on the committed snapshot `top`, in words.
    pub(super) fn runs_on(&self, top: &str) -> Option<String> {
        self.snapshots
            .iter()
            .filter(|s| !s.committed && s.parent.as_deref() == Some(top))
            .find_map(|snapshot| match self.user(&snapshot.name) {
                User::Container(id) => Some(format!("container {id}")),
                User::Snapshot if !snapshot.name.starts_with(super::recheck::VIEW) => {
                    Some(format!("snapshot {}", snapshot.name))
                }
                User::Snapshot | User::Unpack => None,
            })
    }

    /// The container that was made from the image record `name`.
    pub(super) fn made_from(&self, name: &str) -> Option<String> {
        self.containers
            .iter()
            .find(|container| container.image == name)
            .map(|container| format!("container {}", container.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing() -> Standing {
        let snapshot = |name: &str, parent: Option<&str>, committed| SnapshotInfo {
            name: name.to_owned(),
            parent: parent.map(str::to_owned),
            committed,
        };
        Standing {
            snapshotter: "overlayfs".to_owned(),
            snapshots: vec![
                snapshot("top", Some("middle"), true),
                snapshot("base", None, true),
                snapshot("middle", Some("base"), true),
                snapshot("other", Some("base"), true),
                snapshot("extract-1 sha256:x", Some("base"), false),
                snapshot("box", Some("top"), false),
                snapshot("by hand", Some("other"), false),
                snapshot("edgepull-recheck-1 top", Some("middle"), false),
            ],
            containers: vec![
                Container {
                    id: "c1".to_owned(),
                    image: "r/app:1".to_owned(),
                    snapshotter: "overlayfs".to_owned(),
                    snapshot: "box".to_owned(),
                },
                Container {
                    id: "c2".to_owned(),
                    image: "r/app:2".to_owned(),
                    snapshotter: "native".to_owned(),
                    snapshot: "by hand".to_owned(),
                },
            ],
        }
    }

    #[test]
    fn removal_goes_from_the_top_down() {
        let standing = standing();
        let names: Vec<&str> = standing
            .above("base")
            .iter()
            .map(|s| s.name.as_str())
            .collect();
        assert_eq!(names.len(), 8);
        let at = |name: &str| names.iter().position(|n| *n == name).expect("there");
        for (child, parent) in [
            ("box", "top"),
            ("top", "middle"),
            ("middle", "base"),
            ("by hand", "other"),
        ] {
            assert!(at(child) < at(parent), "{child} before {parent}");
        }
        assert_eq!(standing.above("top").len(), 2);
        assert!(standing.above("gone").is_empty());
    }

    #[test]
    fn users_are_containers_of_the_same_snapshotter_and_whoever_made_a_snapshot() {
        let standing = standing();
        assert_eq!(standing.user("box"), User::Container("c1".to_owned()));
        assert_eq!(standing.user("by hand"), User::Snapshot);
        assert_eq!(standing.user("extract-1 sha256:x"), User::Unpack);
        assert_eq!(standing.runs_on("top").as_deref(), Some("container c1"));
        assert_eq!(
            standing.runs_on("other").as_deref(),
            Some("snapshot by hand")
        );
        assert_eq!(standing.runs_on("base"), None, "an unpack is no use");
        assert_eq!(standing.runs_on("middle"), None, "nor is a check");
        assert_eq!(
            standing.made_from("r/app:2").as_deref(),
            Some("container c2")
        );
    }
}
