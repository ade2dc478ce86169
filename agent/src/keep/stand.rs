//! What stands on a snapshot, and whether anybody works with it.

use std::collections::BTreeMap;

use crate::{
    containerd::{Engine, containers::Container, stack::SnapshotInfo},
    error::Result,
    oci::Digest,
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

    /// Who runs (or could at once) on the committed snapshot `top`, in words. What stands on
    /// it as a layer of another image is no use of this one.
    pub(super) fn runs_on(&self, top: &str) -> Option<String> {
        let mut tops = vec![top];
        let mut next = 0;
        while let Some(below) = tops.get(next).copied() {
            next += 1;
            for snapshot in &self.snapshots {
                if snapshot.parent.as_deref() != Some(below) {
                    continue;
                }
                if !snapshot.committed {
                    match self.user(&snapshot.name) {
                        User::Container(id) => return Some(format!("container {id}")),
                        User::Snapshot if !snapshot.name.starts_with(super::recheck::VIEW) => {
                            return Some(format!("snapshot {}", snapshot.name));
                        }
                        User::Snapshot | User::Unpack => {}
                    }
                } else if !is_layer(&snapshot.name) && tops.len() <= self.snapshots.len() {
                    // docker's containers stand on one of their own (`ID-init`).
                    tops.push(&snapshot.name);
                }
            }
        }
        None
    }

    /// The container that was made from the image record `name`.
    pub(super) fn made_from(&self, name: &str) -> Option<String> {
        self.containers
            .iter()
            .find(|container| container.image == name)
            .map(|container| format!("container {}", container.id))
    }
}

/// Whether a committed snapshot is a layer of an image: by convention of all of containerd's
/// clients its name is a chain id then.
pub(super) fn is_layer(name: &str) -> bool {
    Digest::parse(name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::labels::Labels;

    /// The chain id that stands for `name`.
    fn layer(name: &str) -> String {
        Digest::of(name.as_bytes()).to_string()
    }

    fn standing() -> Standing {
        let snapshot = |name: &str, parent: Option<String>, committed| SnapshotInfo {
            name: name.to_owned(),
            parent,
            committed,
        };
        let (base, middle, top, other) =
            (layer("base"), layer("middle"), layer("top"), layer("other"));
        Standing {
            snapshotter: "overlayfs".to_owned(),
            snapshots: vec![
                snapshot(&top, Some(middle.clone()), true),
                snapshot(&base, None, true),
                snapshot(&middle, Some(base.clone()), true),
                snapshot(&other, Some(base.clone()), true),
                snapshot("extract-1 sha256:x", Some(base), false),
                snapshot("box", Some(top.clone()), false),
                snapshot("by hand", Some(other), false),
                snapshot("edgepull-recheck-1 top", Some(middle), false),
                snapshot("d0-init", Some(layer("docker's")), true),
                snapshot("d0", Some("d0-init".to_owned()), false),
                snapshot(&layer("docker's"), None, true),
            ],
            containers: vec![
                Container {
                    id: "c1".to_owned(),
                    image: "r/app:1".to_owned(),
                    snapshotter: "overlayfs".to_owned(),
                    snapshot: "box".to_owned(),
                    labels: Labels::new(),
                },
                Container {
                    id: "c2".to_owned(),
                    image: "r/app:2".to_owned(),
                    snapshotter: "native".to_owned(),
                    snapshot: "by hand".to_owned(),
                    labels: Labels::new(),
                },
            ],
        }
    }

    #[test]
    fn removal_goes_from_the_top_down() {
        let standing = standing();
        let names: Vec<&str> = standing
            .above(&layer("base"))
            .iter()
            .map(|s| s.name.as_str())
            .collect();
        assert_eq!(names.len(), 8);
        let at = |name: &str| names.iter().position(|n| *n == name).expect("there");
        for (child, parent) in [
            ("box", layer("top")),
            (&layer("top"), layer("middle")),
            (&layer("middle"), layer("base")),
            ("by hand", layer("other")),
        ] {
            assert!(at(child) < at(&parent), "{child} before {parent}");
        }
        assert_eq!(standing.above(&layer("top")).len(), 2);
        assert!(standing.above("gone").is_empty());
    }

    #[test]
    fn users_are_containers_of_the_same_snapshotter_and_whoever_made_a_snapshot() {
        let standing = standing();
        assert_eq!(standing.user("box"), User::Container("c1".to_owned()));
        assert_eq!(standing.user("by hand"), User::Snapshot);
        assert_eq!(standing.user("extract-1 sha256:x"), User::Unpack);
        let runs_on = |name: &str| standing.runs_on(&layer(name));
        assert_eq!(runs_on("top").as_deref(), Some("container c1"));
        assert_eq!(runs_on("other").as_deref(), Some("snapshot by hand"));
        assert_eq!(runs_on("docker's").as_deref(), Some("snapshot d0"));
        assert_eq!(runs_on("base"), None, "an unpack is no use");
        assert_eq!(runs_on("middle"), None, "nor is a check");
        assert_eq!(
            standing.made_from("r/app:2").as_deref(),
            Some("container c2")
        );
    }
}
