//! Pins, set and taken away. A pin that somebody else set is neither doubled nor removed:
//! [`PINNED_BY`] on a record says that the pin there is the daemon's.

use std::collections::BTreeSet;

use super::{AGENT, users::config_names};
use crate::{
    containerd::{
        Engine,
        image::{ImageRecord, Put},
        labels::{CRI_PINNED, Labels, MANAGED, PINNED, PINNED_BY, taken_away},
        records::{Record, RecordsFor, records},
    },
    error::Result,
    oci::{Descriptor, Digest, Reference},
};

/// What setting or removing a pin came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pinned {
    Changed,
    Unchanged,
    /// The image's record is not there or points elsewhere: that is a pull's to mend.
    Gone,
}

/// Sets the pin on every record of an image, or takes ours away. Records that are there
/// are adopted: pinned, and not owned. Those that CRI wants beside the image's own are
/// made if they are missing, and are owned. Calling it again changes nothing.
pub async fn set_pin(
    engine: &Engine,
    reference: &Reference,
    target: &Descriptor,
    config: Option<&Digest>,
    on: bool,
) -> Result<Pinned> {
    let own = reference.record_name();
    let there = engine.image(&own).await?;
    if there.is_none_or(|there| there.target.digest != target.digest) {
        return Ok(Pinned::Gone);
    }
    let wanted = records(RecordsFor {
        namespace: engine.namespace(),
        reference,
        target: &target.digest,
        config,
        pin: true,
    });
    let changed = if on {
        let mut changed = false;
        for record in &wanted {
            changed |= assert(engine, record, target).await?;
        }
        changed
    } else {
        remove(engine, &own, &wanted, target).await?
    };
    Ok(if changed {
        Pinned::Changed
    } else {
        Pinned::Unchanged
    })
}

/// Whether anything had to be written.
async fn assert(engine: &Engine, record: &Record, target: &Descriptor) -> Result<bool> {
    let ours = Labels::from([(MANAGED.to_owned(), AGENT.to_owned())]);
    // A config that two images share has one record, which points at one of them: moving
    // it back and forth helps neither.
    let there = engine.image(&record.name).await?;
    let target = there.as_ref().map_or(target, |there| &there.target);
    let put = engine
        .put_image(&record.name, target, &record.labels, &ours)
        .await?;
    Ok(put != Put::Unchanged)
}

async fn remove(
    engine: &Engine,
    own: &str,
    wanted: &[Record],
    target: &Descriptor,
) -> Result<bool> {
    let all = engine.images(Vec::new()).await?;
    let names = |name: &str| wanted.iter().any(|record| record.name == name);
    // Another name of the same image has its pin on the same records beside it, another
    // image with the same config on the config's.
    let others = || {
        all.iter()
            .filter(|other| !names(&other.name) && is_ours(other))
    };
    let shared = others().any(|other| other.target.digest == target.digest);
    let configs = if wanted.iter().any(|record| record.shared) {
        config_names(engine, others()).await?
    } else {
        BTreeSet::new()
    };
    let mut changed = false;
    for record in all.iter().filter(|record| names(&record.name)) {
        if record.name == own || !(shared || configs.contains(&record.name)) {
            changed |= unpin(engine, record).await?;
        }
    }
    Ok(changed)
}

/// Whether the pin on the record is the daemon's.
pub(super) fn is_ours(record: &ImageRecord) -> bool {
    record.labels.get(PINNED_BY).is_some_and(|by| by == AGENT)
}

/// Takes the daemon's pin off a record; `false` if there is none.
pub(super) async fn unpin(engine: &Engine, record: &ImageRecord) -> Result<bool> {
    let Some(labels) = without_pin(record) else {
        return Ok(false);
    };
    engine.label_image(record, labels).await
}

/// The labels to take away with the pin (an empty value removes one).
pub(super) fn without_pin(record: &ImageRecord) -> Option<Labels> {
    is_ours(record).then(|| pin_labels(record))
}

/// A pin's labels on the record, to take away.
pub(super) fn pin_labels(record: &ImageRecord) -> Labels {
    taken_away(&record.labels, &[CRI_PINNED.0, PINNED.0, PINNED_BY])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::MediaType;

    #[test]
    fn only_what_the_daemon_pinned_is_unpinned() {
        let record = |pairs: &[(&str, &str)]| ImageRecord {
            name: "r/app:1".to_owned(),
            target: Descriptor::new(MediaType::OciIndex, Digest::of(b"t"), 1),
            labels: pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        };
        let keys = |pairs: &[(&str, &str)]| {
            without_pin(&record(pairs)).map(|labels| {
                let mut keys: Vec<String> = labels.into_keys().collect();
                keys.sort();
                keys
            })
        };
        assert_eq!(keys(&[CRI_PINNED]), None, "somebody else's");
        assert_eq!(keys(&[CRI_PINNED, (PINNED_BY, "cli")]), None, "a person's");
        assert_eq!(
            keys(&[CRI_PINNED, (PINNED_BY, "agent"), (MANAGED, "agent")]),
            Some(vec![CRI_PINNED.0.to_owned(), PINNED_BY.to_owned()])
        );
        assert_eq!(
            keys(&[PINNED, (PINNED_BY, "agent")]),
            Some(vec![PINNED_BY.to_owned(), PINNED.0.to_owned()])
        );
    }
}
