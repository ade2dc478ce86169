//! Earlier targets of a tag, kept for a rollback: each as a record `repository@digest` that
//! says of which record it was the target, and since when it is not any more.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::{AGENT, pin};
use crate::{
    containerd::{
        Engine, K8S_NAMESPACE,
        image::ImageRecord,
        labels::{CRI_MANAGED, CRI_PINNED, Labels, MANAGED, PREVIOUS, PREVIOUS_SINCE, taken_away},
    },
    desired::Desired,
    error::Result,
    oci::{Descriptor, Digest, Reference},
};

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
    let since = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut labels = pairs(&[
        (PREVIOUS, &reference.record_name()),
        (PREVIOUS_SINCE, &since),
    ]);
    if let (Some(config), K8S_NAMESPACE) = (config, engine.namespace()) {
        let cri = pairs(&[CRI_MANAGED, CRI_PINNED]);
        let id = config.to_string();
        let there = engine.image(&id).await?;
        let target = there.as_ref().map_or(old, |there| &there.target);
        engine.put_image(&id, target, &cri, &ours).await?;
        labels.extend(cri);
    }
    let name = format!("{}@{}", reference.repository(), old.digest);
    engine.put_image(&name, old, &labels, &ours).await?;
    Ok(true)
}

/// Lets go of all but the `keep` latest earlier targets of `reference`, and of those that
/// are the target again. What is `desired` under its own name stays. Returns the names of
/// the records that hold nothing any more.
pub async fn trim(
    engine: &Engine,
    reference: &Reference,
    keep: usize,
    desired: &[Desired],
) -> Result<Vec<String>> {
    let all = engine.images(Vec::new()).await?;
    let own = reference.record_name();
    let mut let_go = Vec::new();
    for record in surplus(&all, &own, keep) {
        let is_desired = desired.iter().any(|desired| {
            desired.namespace == engine.namespace()
                && desired.reference.record_name() == record.name
        });
        release(engine, record, &all, is_desired).await?;
        let_go.push(record.name.clone());
    }
    Ok(let_go)
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
        .filter(|record| record.labels.get(PREVIOUS).is_some_and(|of| of == own))
        .partition(|record| Some(&record.target.digest) == current);
    // A time that cannot be read counts as the oldest.
    let since = |record: &ImageRecord| {
        record
            .labels
            .get(PREVIOUS_SINCE)
            .and_then(|text| text.parse::<Timestamp>().ok())
    };
    earlier.sort_by(|a, b| since(b).cmp(&since(a)).then_with(|| a.name.cmp(&b.name)));
    again.extend(earlier.into_iter().skip(keep));
    again
}

async fn release(
    engine: &Engine,
    record: &ImageRecord,
    all: &[ImageRecord],
    is_desired: bool,
) -> Result<()> {
    let is_kubernetes = engine.namespace() == K8S_NAMESPACE;
    let owned = record.labels.get(MANAGED).is_some_and(|by| by == AGENT);
    if owned && !is_kubernetes && !is_desired {
        engine.delete_image_if(&record.name, &record.target).await?;
        return Ok(());
    }
    let mut labels = unheld(record);
    // The current target's records have their pin from the tag, and keep it.
    let others: BTreeSet<&str> = all
        .iter()
        .filter(|other| other.target.digest == record.target.digest && other.name != record.name)
        .filter(|other| !other.name.starts_with("sha256:"))
        .map(|other| other.name.as_str())
        .collect();
    if is_kubernetes && !is_desired && others.is_empty() {
        labels.extend(pin::without_pin(record).unwrap_or_default());
        let id = |other: &&ImageRecord| {
            other.name.starts_with("sha256:") && other.target.digest == record.target.digest
        };
        for other in all.iter().filter(id) {
            pin::unpin(engine, other).await?;
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
}
