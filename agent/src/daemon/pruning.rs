//! `[schedule] prune`: what was declared once, and has not been for long enough, goes.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{journal, run::Daemon};
use crate::{
    error::Result,
    keep::{self, Action, PruneOptions, PrunedRow},
    reconcile::{Memory, Record},
};

impl Daemon {
    /// Removes what it is time for, if anything is to be removed at all. Only while
    /// everything that is declared could be read: the rest is not undeclared, but unknown.
    pub(super) async fn prune(&mut self) {
        let Some(after) = self.session.config().prune_after() else {
            self.memory.forget_undesired();
            return;
        };
        if !self.declared.complete {
            return;
        }
        let namespaces: Vec<String> = self.engines.namespaces().map(str::to_owned).collect();
        for namespace in namespaces {
            if let Err(error) = self.prune_in(&namespace, after).await {
                journal::report(&error, None);
            }
        }
    }

    async fn prune_in(&mut self, namespace: &str, after: Duration) -> Result<()> {
        let Some(attached) = self.engines.get(namespace) else {
            return Ok(());
        };
        let engine = attached.engine.clone();
        let look = PruneOptions {
            dry_run: true,
            only: None,
        };
        let rows = keep::prune(&engine, &self.declared.images, look).await?;
        let now = Timestamp::now();
        let due = due(&mut self.memory, namespace, rows, now, after);
        if due.is_empty() || !self.is_declared_as_before() {
            return Ok(());
        }
        let act = PruneOptions {
            dry_run: false,
            only: Some(&due),
        };
        for row in keep::prune(&engine, &self.declared.images, act).await? {
            if let Some(error) = &row.error {
                journal::report(error, None);
            } else if row.action != Action::Kept {
                let record = crate::redact::printable(&row.record, 400);
                let reason = crate::redact::printable(&row.reason, 400);
                tracing::info!(record, "pruned: {reason}");
            }
            dealt_with(&mut self.memory, namespace, row);
        }
        Ok(())
    }

    /// Reads once more what is declared: what was declared a moment ago, and nobody has told
    /// of yet, stays. If it is not what is known, everything is to be looked at first.
    pub(super) fn is_declared_as_before(&mut self) -> bool {
        let before = self.declared.images.clone();
        self.read_declared();
        let same = self.declared.complete && self.declared.images == before;
        if !same {
            self.look_again = Some(Instant::now());
        }
        same
    }
}

fn record(namespace: &str, row: PrunedRow) -> Record {
    Record {
        reference: row.record,
        namespace: namespace.to_owned(),
    }
}

/// Takes up what could be removed in the namespace; the names of the records whose time has
/// come.
fn due(
    memory: &mut Memory,
    namespace: &str,
    rows: Vec<PrunedRow>,
    now: Timestamp,
    after: Duration,
) -> BTreeSet<String> {
    let mut removable = BTreeSet::new();
    let mut unknown = BTreeSet::new();
    for row in rows {
        match (row.action, &row.error) {
            (Action::Kept, None) => {}
            // Nobody could tell, which is no reason to begin anew.
            (Action::Kept, Some(_)) => {
                unknown.insert(record(namespace, row));
            }
            _ => {
                let record = record(namespace, row);
                memory.undesired_since(&record, now);
                removable.insert(record);
            }
        }
    }
    // What is declared again, or in use, begins anew when it is not any more.
    for record in memory.removable(now, Duration::ZERO) {
        let is_known = removable.contains(&record) || unknown.contains(&record);
        if record.namespace == namespace && !is_known {
            memory.removed(&record);
        }
    }
    let over = memory.removable(now, after).into_iter();
    over.filter(|record| removable.contains(record))
        .map(|record| record.reference)
        .collect()
}

/// What could not be removed is tried again in the next pass.
fn dealt_with(memory: &mut Memory, namespace: &str, row: PrunedRow) {
    if row.error.is_none() {
        memory.removed(&record(namespace, row));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error::Error, kind::Kind, oci::Digest};

    fn row(name: &str, action: Action, fails: bool) -> PrunedRow {
        PrunedRow {
            record: name.to_owned(),
            digest: Digest::of(b"1"),
            action,
            reason: "a test".to_owned(),
            error: fails.then(|| Error::new(Kind::ContainerdUnavailable, "no answer")),
        }
    }

    #[test]
    fn a_prune_that_fails_does_not_begin_to_wait_anew() {
        let mut memory = Memory::first();
        let day = Duration::from_secs(86400);
        let at = |hour: u64| {
            let start: Timestamp = "2026-11-28T12:00:00Z".parse().expect("a time");
            start + Duration::from_secs(3600 * hour)
        };
        let mut look = |rows: Vec<PrunedRow>, hour| {
            let due = due(&mut memory, "default", rows, at(hour), day);
            due.into_iter().collect::<Vec<_>>()
        };
        let all = || ["gone", "asked", "used"].map(|name| row(name, Action::Removed, false));
        assert!(look(all().into(), 0).is_empty());
        // Whether it is used could not be told for a moment; and one was in use.
        let [gone, ..] = all();
        let asked = row("asked", Action::Kept, true);
        let used = row("used", Action::Kept, false);
        assert!(look(vec![gone, asked, used], 1).is_empty());
        assert_eq!(look(all().into(), 24), ["asked", "gone"]);
        // Removing one of them failed.
        dealt_with(&mut memory, "default", row("asked", Action::Kept, true));
        dealt_with(&mut memory, "default", row("gone", Action::Removed, false));
        let [_, asked, used] = all();
        let due = due(&mut memory, "default", vec![asked, used], at(25), day);
        assert_eq!(due.into_iter().collect::<Vec<_>>(), ["asked"]);
    }
}
