//! Earlier targets of a tag, kept for a rollback: each as a record `repository@digest` that
//! says of which record it was the target, and since when it is not any more. One that was
//! the target of several tags says so of each: names and times with a space between them, in
//! the same order.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::{
    AGENT, pin, prune,
    users::{Users, config_names, is_configs},
};
use crate::{
    containerd::{
        Engine, K8S_NAMESPACE,
        image::ImageRecord,
        labels::{
            CRI_MANAGED, CRI_PINNED, Labels, MANAGED, MAX_LABEL, PREVIOUS, PREVIOUS_SINCE,
            taken_away,
        },
    },
    desired::Desired,
    error::Result,
    oci::{Descriptor, Digest, Reference},
};

/// One record's hold on an earlier target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hold<'a> {
    /// The name of the record that pointed at it.
    pub(super) of: &'a str,
    /// As it is written.
    since: &'a str,
}

impl Hold<'_> {
    /// Whoever wrote no time, or none that can be read, is taken for the oldest.
    pub(super) fn since(&self) -> Option<Timestamp> {
        self.since.parse().ok()
    }
}

/// The holds on `record`.
pub(super) fn holds(record: &ImageRecord) -> impl Iterator<Item = Hold<'_>> {
    let list = |key| {
        record
            .labels
            .get(key)
            .map(String::as_str)
            .unwrap_or_default()
    };
    let times = list(PREVIOUS_SINCE).split(' ').chain(std::iter::repeat(""));
    list(PREVIOUS)
        .split(' ')
        .zip(times)
        .filter(|(of, _)| !of.is_empty())
        .map(|(of, since)| Hold { of, since })
}

/// The hold of the record `name` on `record`.
pub(super) fn hold_of<'a>(record: &'a ImageRecord, name: &str) -> Option<Hold<'a>> {
    holds(record).find(|hold| hold.of == name)
}

/// The labels for these holds; the oldest go where containerd would refuse them all.
fn hold_labels(mut holds: Vec<Hold<'_>>) -> Labels {
    holds.sort_by_key(|hold| std::cmp::Reverse(hold.since()));
    loop {
        let list = |part: fn(&Hold<'_>) -> String| -> String {
            holds.iter().map(part).collect::<Vec<_>>().join(" ")
        };
        let of = list(|hold| hold.of.to_owned());
        // No time at all would leave the others with the wrong ones.
        let since = list(|hold| {
            hold.since()
                .map_or("-".to_owned(), |_| hold.since.to_owned())
        });
        let fits = |key: &str, value: &str| key.len().saturating_add(value.len()) <= MAX_LABEL;
        if holds.len() <= 1 || (fits(PREVIOUS, &of) && fits(PREVIOUS_SINCE, &since)) {
            return Labels::from([
                (PREVIOUS.to_owned(), of),
                (PREVIOUS_SINCE.to_owned(), since),
            ]);
        }
        holds.pop();
    }
}

/// Holds the image that `reference` points at, before it is moved to `new`; `false` if
/// there is nothing to hold. `config` is the old image's, for CRI.
pub async fn hold_previous(
    engine: &Engine,
    reference: &Reference,
    old: &Descriptor,
    new: &Digest,
    config: Option<&Digest>,
    now: Timestamp,
) -> Result<bool> {
    if old.digest == *new || reference.digest().is_some() {
        return Ok(false);
    }
    let pairs = |pairs: &[(&str, &str)]| -> Labels {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    };
    let ours = pairs(&[(MANAGED, AGENT)]);
    // To the nanosecond: a tag may move twice within a second.
    let since = now.to_string();
    let own = reference.record_name();
    let name = format!("{}@{}", reference.repository(), old.digest);
    // Other tags that pointed at it hold it for themselves.
    let there = engine.image(&name).await?;
    let others = there.iter().flat_map(holds).filter(|hold| hold.of != own);
    let ours_among = Hold {
        of: &own,
        since: &since,
    };
    let mut labels = hold_labels(others.chain([ours_among]).collect());
    if let (Some(config), K8S_NAMESPACE) = (config, engine.namespace()) {
        let cri = pairs(&[CRI_MANAGED, CRI_PINNED]);
        let id = config.to_string();
        let there = engine.image(&id).await?;
        let target = there.as_ref().map_or(old, |there| &there.target);
        engine.put_image(&id, target, &cri, &ours).await?;
        labels.extend(cri);
    }
    engine.put_image(&name, old, &labels, &ours).await?;
    Ok(true)
}

/// Lets go of all but the `keep` latest earlier targets of `reference`, and of those that
/// are the target again; returns their names. A record that only this held is removed, if
/// pruning might remove it, too: that is for `prune` later where a container uses it, where
/// it is `desired` under its own name, or where that is not known, because `desired` is not
/// all that is declared (`complete`).
pub async fn trim(
    engine: &Engine,
    reference: &Reference,
    keep: usize,
    desired: &[Desired],
    complete: bool,
) -> Result<Vec<String>> {
    let all = engine.images(Vec::new()).await?;
    let own = reference.record_name();
    let mut users = Users::new(engine);
    let mut let_go = Vec::new();
    for record in surplus(&all, &own, keep) {
        let is_desired = desired.iter().any(|desired| {
            desired.namespace == engine.namespace()
                && desired.reference.record_name() == record.name
        });
        let others: Vec<Hold<'_>> = holds(record).filter(|hold| hold.of != own).collect();
        if others.is_empty() {
            let stays = !complete || is_desired || !may_go(&mut users, record).await;
            release(engine, record, &all, is_desired, stays).await?;
        } else {
            engine.label_image(record, hold_labels(others)).await?;
        }
        let_go.push(record.name.clone());
    }
    Ok(let_go)
}

/// Whether pruning, too, might remove the record. Without an answer it counts as used.
async fn may_go(users: &mut Users<'_>, record: &ImageRecord) -> bool {
    let user = match users.of(record).await {
        Ok(user) => user,
        Err(error) => {
            tracing::debug!(image = %record.name, %error, "who uses it could not be told");
            return false;
        }
    };
    prune::stays(users.namespace(), record, user).is_none()
}

/// The earlier targets of `own` that are too many.
fn surplus<'a>(all: &'a [ImageRecord], own: &str, keep: usize) -> Vec<&'a ImageRecord> {
    let current = all
        .iter()
        .find(|record| record.name == own)
        .map(|record| &record.target.digest);
    let (mut again, mut earlier): (Vec<&ImageRecord>, Vec<&ImageRecord>) = all
        .iter()
        .filter(|record| record.name != own)
        .filter(|record| hold_of(record, own).is_some())
        .partition(|record| Some(&record.target.digest) == current);
    let since = |record: &ImageRecord| hold_of(record, own).and_then(|hold| hold.since());
    earlier.sort_by(|a, b| since(b).cmp(&since(a)).then_with(|| a.name.cmp(&b.name)));
    again.extend(earlier.into_iter().skip(keep));
    again
}

/// Takes the last hold off a record, and the record away unless it `stays`.
async fn release(
    engine: &Engine,
    record: &ImageRecord,
    all: &[ImageRecord],
    is_desired: bool,
    stays: bool,
) -> Result<()> {
    let is_kubernetes = engine.namespace() == K8S_NAMESPACE;
    if !stays {
        engine.delete_image_if(&record.name, &record.target).await?;
        return Ok(());
    }
    let mut labels = unheld(record);
    // The current target's records have their pin from the tag, and keep it.
    let others: BTreeSet<&str> = all
        .iter()
        .filter(|other| other.target.digest == record.target.digest && other.name != record.name)
        .filter(|other| !is_configs(&other.name))
        .map(|other| other.name.as_str())
        .collect();
    if is_kubernetes && !is_desired && others.is_empty() {
        labels.extend(pin::without_pin(record).unwrap_or_default());
        let id = |other: &&ImageRecord| {
            is_configs(&other.name) && other.target.digest == record.target.digest
        };
        let rest = all.iter().filter(|one| {
            one.target.digest != record.target.digest
                && (pin::is_ours(one) || holds(one).next().is_some())
        });
        let shared = config_names(engine, rest).await?;
        for other in all.iter().filter(id) {
            if !shared.contains(&other.name) {
                pin::unpin(engine, other).await?;
            }
        }
    }
    engine.label_image(record, labels).await?;
    Ok(())
}

/// The labels to take away from what is held no longer.
pub(super) fn unheld(record: &ImageRecord) -> Labels {
    taken_away(&record.labels, &[PREVIOUS, PREVIOUS_SINCE])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::MediaType;

    #[test]
    fn the_latest_stay_and_the_current_is_no_earlier_one() {
        let record = |name: &str, target: &str, since: Option<&str>| ImageRecord {
            name: name.to_owned(),
            target: Descriptor::new(MediaType::OciIndex, Digest::of(target.as_bytes()), 1),
            labels: since.map_or_else(Labels::new, |since| {
                Labels::from([
                    (PREVIOUS.to_owned(), "r/app:1".to_owned()),
                    (PREVIOUS_SINCE.to_owned(), since.to_owned()),
                ])
            }),
        };
        let mut other = record("r/app@z", "z", Some("2026-01-01T00:00:00Z"));
        other
            .labels
            .insert(PREVIOUS.to_owned(), "r/app:2".to_owned());
        let all = [
            record("r/app:1", "now", None),
            record("r/app@a", "a", Some("2026-01-01T00:00:00Z")),
            record("r/app@b", "b", Some("2026-03-01T00:00:00Z")),
            record("r/app@c", "c", Some("2026-02-01T00:00:00+00:00")),
            record("r/app@d", "d", Some("soon")),
            record("r/app@now", "now", Some("2026-04-01T00:00:00Z")),
            other,
        ];
        let names = |keep| -> Vec<&str> {
            surplus(&all, "r/app:1", keep)
                .iter()
                .map(|record| record.name.as_str())
                .collect()
        };
        assert_eq!(names(9), ["r/app@now"]);
        assert_eq!(names(2), ["r/app@now", "r/app@a", "r/app@d"]);
        assert_eq!(names(0).len(), 5);
        assert!(surplus(&all, "r/app:3", 0).is_empty());
    }

    #[test]
    fn holds_are_written_as_they_are_read_and_never_too_long() {
        let record = |of: &str, since: &str| ImageRecord {
            name: "r/app@x".to_owned(),
            target: Descriptor::new(MediaType::OciIndex, Digest::of(b"x"), 1),
            labels: Labels::from([
                (PREVIOUS.to_owned(), of.to_owned()),
                (PREVIOUS_SINCE.to_owned(), since.to_owned()),
            ]),
        };
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
        let both = record("r/app:1 r/app:2 r/app:3", &format!("{old} soon {new}"));
        let since = |name| hold_of(&both, name).map(|hold| hold.since().is_some());
        assert_eq!(since("r/app:1"), Some(true));
        assert_eq!(since("r/app:2"), Some(false));
        assert_eq!(since("r/app:3"), Some(true));
        assert_eq!(since("r/app:4"), None);
        let labels = hold_labels(holds(&both).collect());
        assert_eq!(labels[PREVIOUS], "r/app:3 r/app:1 r/app:2");
        assert_eq!(labels[PREVIOUS_SINCE], format!("{new} {old} -"));
        assert_eq!(holds(&record("r/app:1", "")).count(), 1);
        assert_eq!(holds(&record("", "")).count(), 0);

        let names: Vec<String> = (0..99)
            .map(|n| format!("r/{}:{n}", "x".repeat(99)))
            .collect();
        let times: Vec<String> = (0..99)
            .map(|n| format!("20{:02}-01-01T00:00:00Z", n + 1))
            .collect();
        let many = record(&names.join(" "), &times.join(" "));
        let labels = hold_labels(holds(&many).collect());
        assert!(labels[PREVIOUS].len() + PREVIOUS.len() <= MAX_LABEL);
        let kept = record(&labels[PREVIOUS], &labels[PREVIOUS_SINCE]);
        assert!(holds(&kept).count() > 30);
        assert!(hold_of(&kept, &names[98]).is_some(), "the latest stays");
        assert!(hold_of(&kept, &names[0]).is_none());
    }
}
