//! Letting go of what is declared no more.
//!
//! Only records that the daemon created (`io.edgepull.managed=agent`) are undeclared when
//! nothing declares them. What was pulled by hand is a person's, and what was here before
//! was adopted: of that the daemon's pin is removed, if it set one, and nothing else.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{
    AGENT,
    pin::{is_ours, without_pin},
    previous::{holds, unheld},
    users::{Users, config_names, is_configs},
};
use crate::{
    containerd::{
        Engine, K8S_NAMESPACE,
        image::ImageRecord,
        labels::{Labels, MANAGED, PREVIOUS, TARGET},
    },
    desired::Desired,
    error::{Error, Result},
    oci::Digest,
};

/// How to prune.
#[derive(Debug, Clone, Copy, Default)]
pub struct PruneOptions<'a> {
    /// Only say what would be done.
    pub dry_run: bool,
    /// Only these records, of those that nothing declares.
    pub only: Option<&'a BTreeSet<String>>,
}

/// What is done with a record that nothing declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Removed,
    Unpinned,
    Kept,
}

/// One record that nothing declares.
#[derive(Debug, Clone, Serialize)]
pub struct PrunedRow {
    pub record: String,
    pub digest: Digest,
    pub action: Action,
    pub reason: String,
    pub error: Option<Error>,
}

/// Lets go of what none of `desired` declares in the engine's namespace. `desired` must be
/// all that is declared: what is missing in it is pruned.
pub async fn prune(
    engine: &Engine,
    desired: &[Desired],
    options: PruneOptions<'_>,
) -> Result<Vec<PrunedRow>> {
    let all = engine.images(Vec::new()).await?;
    let undeclared = undeclared(engine.namespace(), &all, desired);
    let mut users = Users::new(engine);
    let mut rows = Vec::new();
    let is_asked = |record: &&ImageRecord| options.only.is_none_or(|o| o.contains(&record.name));
    // The record of a config may point at an image that nothing declares, and be needed by
    // one that is declared and has the same config.
    let configs = declared_configs(engine, &undeclared, &all, desired).await?;
    let is_shared = |record: &&ImageRecord| configs.contains(&record.name);
    let undeclared = undeclared.into_iter().filter(|record| !is_shared(record));
    for record in undeclared.filter(is_asked) {
        let user = users.of(record).await;
        let (plan, error) = match user {
            Ok(user) => (plan(engine.namespace(), record, user), None),
            // Without an answer it counts as used.
            Err(error) => {
                let why = "whether a container uses it could not be told".to_owned();
                (Plan::keep(record, why), Some(error))
            }
        };
        let mut row = PrunedRow {
            record: record.name.clone(),
            digest: record.target.digest.clone(),
            action: plan.action,
            reason: plan.reason,
            error,
        };
        if !options.dry_run {
            match act(engine, record, plan.action, plan.labels).await {
                Ok(true) => {}
                Ok(false) => {
                    row.action = Action::Kept;
                    "it was changed by somebody else meanwhile".clone_into(&mut row.reason);
                }
                Err(error) => {
                    row.action = Action::Kept;
                    "it could not be changed".clone_into(&mut row.reason);
                    row.error = Some(error);
                }
            }
        }
        rows.push(row);
    }
    rows.sort_by(|a, b| a.record.cmp(&b.record));
    Ok(rows)
}

async fn act(
    engine: &Engine,
    record: &ImageRecord,
    action: Action,
    labels: Labels,
) -> Result<bool> {
    match action {
        Action::Removed => engine.delete_image_if(&record.name, &record.target).await,
        _ => engine.label_image(record, labels).await,
    }
}

/// The configs of what is declared, where `undeclared` may have something of theirs.
async fn declared_configs(
    engine: &Engine,
    undeclared: &[&ImageRecord],
    all: &[ImageRecord],
    desired: &[Desired],
) -> Result<BTreeSet<String>> {
    // Without a pin of ours nothing would be taken from it.
    let may_be = |record: &&ImageRecord| is_configs(&record.name) && is_ours(record);
    if engine.namespace() != K8S_NAMESPACE || !undeclared.iter().any(may_be) {
        return Ok(BTreeSet::new());
    }
    let names = declared_names(engine.namespace(), desired);
    config_names(engine, all.iter().filter(|record| is_kept(record, &names))).await
}

/// The names of the records that are declared.
fn declared_names(namespace: &str, desired: &[Desired]) -> BTreeSet<String> {
    desired
        .iter()
        .filter(|desired| desired.namespace == namespace)
        .map(|desired| desired.reference.record_name())
        .collect()
}

/// Whether a record is declared, or held for one that is.
fn is_kept(record: &ImageRecord, names: &BTreeSet<String>) -> bool {
    names.contains(&record.name) || holds(record).any(|hold| names.contains(hold.of))
}

pub(super) fn is_owned(record: &ImageRecord) -> bool {
    record.labels.get(MANAGED).is_some_and(|by| by == AGENT)
}

/// The records of ours, by creation or by pin, that belong to nothing desired.
fn undeclared<'a>(
    namespace: &str,
    all: &'a [ImageRecord],
    desired: &[Desired],
) -> Vec<&'a ImageRecord> {
    let names = declared_names(namespace, desired);
    let is_kept = |record: &ImageRecord| is_kept(record, &names);
    let desired: Vec<&Desired> = desired
        .iter()
        .filter(|desired| desired.namespace == namespace)
        .collect();
    // What CRI wants beside the records of an image goes with them.
    let targets: BTreeSet<&Digest> = all
        .iter()
        .filter(|record| is_kept(record))
        .map(|record| &record.target.digest)
        .collect();
    let is_beside = |record: &ImageRecord| {
        namespace == K8S_NAMESPACE
            && targets.contains(&record.target.digest)
            && (is_configs(&record.name)
                || desired.iter().any(|desired| {
                    let repository = desired.reference.repository();
                    record.name == format!("{repository}@{}", record.target.digest)
                }))
    };
    all.iter()
        .filter(|record| {
            is_owned(record) || is_ours(record) || record.labels.contains_key(PREVIOUS)
        })
        .filter(|record| !is_kept(record) && !is_beside(record))
        .collect()
}

struct Plan {
    action: Action,
    reason: String,
    /// To take away from a record that stays.
    labels: Labels,
}

impl Plan {
    /// Takes away what is ours on it, and nothing else.
    fn keep(record: &ImageRecord, reason: String) -> Self {
        let mut labels = without_pin(record).unwrap_or_default();
        labels.extend(unheld(record));
        Self {
            action: if labels.is_empty() {
                Action::Kept
            } else {
                Action::Unpinned
            },
            reason,
            labels,
        }
    }
}

fn plan(namespace: &str, record: &ImageRecord, user: Option<String>) -> Plan {
    match stays(namespace, record, user) {
        Some(reason) => Plan::keep(record, reason),
        None => Plan {
            action: Action::Removed,
            reason: "nothing declares it".to_owned(),
            labels: Labels::new(),
        },
    }
}

/// Why a record may not be removed, whatever nobody declares any more; `user` is who uses
/// its image.
pub(super) fn stays(namespace: &str, record: &ImageRecord, user: Option<String>) -> Option<String> {
    if !is_owned(record) {
        Some("edgepull did not create it".to_owned())
    } else if namespace == K8S_NAMESPACE {
        Some("removing it is left to kubelet".to_owned())
    } else if record.labels.get(TARGET).map(String::as_str) != Some(record.target.digest.as_str()) {
        Some("it does not point at what edgepull made it for".to_owned())
    } else {
        user.map(|user| format!("{user} uses it"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        containerd::labels::{CRI_PINNED, PINNED, PINNED_BY},
        desired::Origin,
        oci::{Descriptor, MediaType, Reference},
        schedule::Refresh,
    };

    fn record(name: &str, target: &str, labels: &[(&str, &str)]) -> ImageRecord {
        ImageRecord {
            name: name.to_owned(),
            target: Descriptor::new(MediaType::OciIndex, Digest::of(target.as_bytes()), 1),
            labels: labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        }
    }

    fn owned(name: &str, target: &str) -> ImageRecord {
        let made = Digest::of(target.as_bytes()).to_string();
        record(name, target, &[(MANAGED, AGENT), (TARGET, &made)])
    }

    fn desired(name: &str, namespace: &str) -> Desired {
        Desired {
            reference: Reference::parse(name).expect("valid"),
            platform: "host".to_owned(),
            namespace: namespace.to_owned(),
            refresh: Refresh::Never,
            pin: true,
            keep_previous: 1,
            verify: crate::desired::Verify::None,
            artifact: None,
            origin: Origin {
                file: "x".into(),
                line: 1,
            },
        }
    }

    #[test]
    fn what_belongs_to_a_desired_image_stays() {
        let by_digest = format!("r.example/app@{}", Digest::of(b"t"));
        let before = format!("r.example/app@{}", Digest::of(b"old"));
        let mut previous = owned(&before, "old");
        previous
            .labels
            .insert(PREVIOUS.to_owned(), "r.example/app:1".to_owned());
        let all = [
            owned("r.example/app:1", "t"),
            owned(&by_digest, "t"),
            owned("sha256:c0", "t"),
            owned("sha256:c1", "old"),
            previous,
            owned("r.example/gone:1", "u"),
            owned("sha256:c2", "u"),
            record(
                "r.example/hand:1",
                "h",
                &[(MANAGED, "cli"), PINNED, (PINNED_BY, "cli")],
            ),
            record("r.example/theirs:1", "i", &[CRI_PINNED]),
            record(
                "r.example/adopted:1",
                "j",
                &[CRI_PINNED, (PINNED_BY, AGENT)],
            ),
        ];
        let names = |namespace: &str, desired: &[Desired]| -> Vec<String> {
            undeclared(namespace, &all, desired)
                .iter()
                .map(|record| record.name.clone())
                .collect()
        };
        let app = [
            desired("r.example/app:1", "k8s.io"),
            desired("r.example/gone:1", "other"),
        ];
        let gone = ["r.example/gone:1", "sha256:c2", "r.example/adopted:1"];
        assert_eq!(names("k8s.io", &app), gone);
        assert_eq!(
            names("k8s.io", &[]).len(),
            8,
            "all but a person's and others'"
        );
        // Elsewhere nobody needs records beside: each name was asked for, or was not.
        let app = [desired("r.example/app:1", "default")];
        assert!(names("default", &app).contains(&by_digest));
        assert!(!names("default", &app).contains(&before));
    }

    #[test]
    fn only_what_is_ours_unchanged_and_unused_is_removed() {
        let action = |namespace, record: &ImageRecord, user: Option<&str>| {
            let plan = plan(namespace, record, user.map(str::to_owned));
            (plan.action, plan.labels.len())
        };
        let mine = owned("r/app:1", "t");
        assert_eq!(action("default", &mine, None), (Action::Removed, 0));
        assert_eq!(
            action("default", &mine, Some("container x")),
            (Action::Kept, 0)
        );
        assert_eq!(action("k8s.io", &mine, None), (Action::Kept, 0));
        let mut pinned = mine.clone();
        pinned
            .labels
            .extend(record("", "", &[PINNED, (PINNED_BY, AGENT)]).labels);
        assert_eq!(action("default", &pinned, None), (Action::Removed, 0));
        assert_eq!(
            action("default", &pinned, Some("container x")),
            (Action::Unpinned, 2)
        );
        assert_eq!(action("k8s.io", &pinned, None), (Action::Unpinned, 2));
        let mut moved = mine.clone();
        moved.target = owned("", "elsewhere").target;
        assert_eq!(action("default", &moved, None), (Action::Kept, 0));
        let adopted = record("r/b:1", "t", &[CRI_PINNED, (PINNED_BY, AGENT)]);
        assert_eq!(action("default", &adopted, None), (Action::Unpinned, 2));
    }
}
