//! Letting go of everything, when edgepull leaves a host: pins, holds on earlier targets and
//! leases are edgepull's; the images are the host's, and stay as they are.

use serde::Serialize;

use super::{pin::pin_labels, previous::unheld};
use crate::{
    containerd::{
        Engine,
        image::ImageRecord,
        labels::{Labels, PINNED_BY},
    },
    error::{Error, Result},
    oci::Digest,
};

/// What is done with something of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Released {
    /// An image record: the pin, the hold or both are taken away.
    Unpinned,
    /// A lease: it is deleted, and what only it held is garbage.
    Released,
    /// Somebody else was faster, or it could not be changed.
    Kept,
}

/// One record or lease that had something of ours.
#[derive(Debug, Clone, Serialize)]
pub struct ReleasedRow {
    /// The name of the record, or the id of the lease.
    pub record: String,
    /// What the record points at; a lease points at nothing.
    pub digest: Option<Digest>,
    pub action: Released,
    pub reason: String,
    pub error: Option<Error>,
}

/// Takes away what edgepull set in the engine's namespace, whoever of it did: with the
/// program gone, nobody is left who could take away a pin set by hand either. Deletes no
/// image record. With `dry_run` only says what it would do.
pub async fn release(engine: &Engine, dry_run: bool) -> Result<Vec<ReleasedRow>> {
    let mut rows = Vec::new();
    for record in engine.images(Vec::new()).await? {
        let Some((labels, reason)) = to_take(&record) else {
            continue;
        };
        let done = if dry_run {
            Ok(true)
        } else {
            engine.label_image(&record, labels).await
        };
        let digest = Some(record.target.digest);
        rows.push(row(record.name, digest, Released::Unpinned, reason, done));
    }
    for id in engine.our_leases().await? {
        let done = if dry_run {
            Ok(true)
        } else {
            engine.drop_lease(&id).await.map(|()| true)
        };
        let reason = "it protected a pull or a check";
        rows.push(row(id, None, Released::Released, reason, done));
    }
    rows.sort_by(|a, b| a.record.cmp(&b.record));
    Ok(rows)
}

fn row(
    record: String,
    digest: Option<Digest>,
    action: Released,
    reason: &str,
    done: Result<bool>,
) -> ReleasedRow {
    let (action, reason, error) = match done {
        Ok(true) => (action, reason, None),
        Ok(false) => (
            Released::Kept,
            "it was removed by somebody else meanwhile",
            None,
        ),
        Err(error) => (Released::Kept, "it could not be changed", Some(error)),
    };
    ReleasedRow {
        record,
        digest,
        action,
        reason: reason.to_owned(),
        error,
    }
}

/// The labels to take away from a record, and what they were for; `None` if it has none.
fn to_take(record: &ImageRecord) -> Option<(Labels, &'static str)> {
    let is_pinned = record.labels.contains_key(PINNED_BY);
    let mut labels = unheld(record);
    let reason = match (is_pinned, labels.is_empty()) {
        (false, true) => return None,
        (true, true) => "edgepull pinned it",
        (false, false) => "it was kept as an earlier target",
        (true, false) => "edgepull pinned it, as an earlier target",
    };
    if is_pinned {
        labels.extend(pin_labels(record));
    }
    Some((labels, reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        containerd::labels::{
            CRI_MANAGED, CRI_PINNED, MANAGED, PINNED, PREVIOUS, PREVIOUS_SINCE, TARGET,
        },
        oci::{Descriptor, MediaType},
    };

    #[test]
    fn pins_and_holds_of_ours_are_taken_and_nothing_else() {
        let taken = |pairs: &[(&str, &str)]| {
            let record = ImageRecord {
                name: "r/app:1".to_owned(),
                target: Descriptor::new(MediaType::OciIndex, Digest::of(b"t"), 1),
                labels: pairs
                    .iter()
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect(),
            };
            to_take(&record).map(|(labels, _)| {
                assert!(labels.values().all(String::is_empty), "{labels:?}");
                let mut keys: Vec<String> = labels.into_keys().collect();
                keys.sort();
                keys
            })
        };
        let some = |keys: &[&str]| Some(keys.iter().map(|key| (*key).to_owned()).collect());
        for (labels, wanted) in [
            (&[][..], None),
            (&[CRI_MANAGED, CRI_PINNED], None),
            (&[(MANAGED, "agent"), (TARGET, "sha256:x")], None),
            (
                &[CRI_PINNED, (PINNED_BY, "agent"), (MANAGED, "agent")],
                some(&[CRI_PINNED.0, PINNED_BY]),
            ),
            (&[PINNED, (PINNED_BY, "cli")], some(&[PINNED_BY, PINNED.0])),
            (
                // Held, and pinned by somebody else.
                &[CRI_PINNED, (PREVIOUS, "r/app:2"), (PREVIOUS_SINCE, "x")],
                some(&[PREVIOUS, PREVIOUS_SINCE]),
            ),
            (
                &[CRI_PINNED, (PINNED_BY, "agent"), (PREVIOUS, "r/app:2")],
                some(&[CRI_PINNED.0, PINNED_BY, PREVIOUS]),
            ),
        ] {
            assert_eq!(taken(labels), wanted, "{labels:?}");
        }
    }

    #[test]
    fn what_did_not_happen_is_not_told_as_done() {
        let row = |done| row("r".to_owned(), None, Released::Unpinned, "ours", done);
        assert_eq!(row(Ok(true)).action, Released::Unpinned);
        assert_eq!(row(Ok(false)).action, Released::Kept);
        let failed = row(Err(Error::new(crate::kind::Kind::Internal, "no")));
        assert_eq!(failed.action, Released::Kept);
        assert!(failed.error.is_some());
    }
}
