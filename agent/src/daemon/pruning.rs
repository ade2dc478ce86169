//! `[schedule] prune`: what was declared once, and has not been for long enough, goes.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{journal, run::Daemon};
use crate::{
    error::Result,
    keep::{self, Action, PruneOptions},
    reconcile::Record,
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
        let now = Timestamp::now();
        let mut found: BTreeSet<Record> = BTreeSet::new();
        for row in keep::prune(&engine, &self.declared.images, look).await? {
            if row.action == Action::Kept {
                continue;
            }
            let record = Record {
                reference: row.record,
                namespace: namespace.to_owned(),
            };
            self.memory.undesired_since(&record, now);
            found.insert(record);
        }
        // What is declared again, or in use, begins anew when it is not any more.
        for record in self.memory.removable(now, Duration::ZERO) {
            if record.namespace == namespace && !found.contains(&record) {
                self.memory.removed(&record);
            }
        }
        let due: BTreeSet<String> = self
            .memory
            .removable(now, after)
            .into_iter()
            .filter(|record| found.contains(record))
            .map(|record| record.reference)
            .collect();
        if due.is_empty() {
            return Ok(());
        }
        // What was declared a moment ago, and nobody has told of yet, stays.
        let before = self.declared.images.clone();
        self.read_declared();
        if !self.declared.complete || self.declared.images != before {
            self.look_again = Some(Instant::now());
            return Ok(());
        }
        let act = PruneOptions {
            dry_run: false,
            only: Some(&due),
        };
        for row in keep::prune(&engine, &self.declared.images, act).await? {
            // What could not be removed is tried again in the next pass.
            if let Some(error) = &row.error {
                journal::report(error, None);
                continue;
            }
            if row.action != Action::Kept {
                let record = crate::redact::printable(&row.record, 400);
                let reason = crate::redact::printable(&row.reason, 400);
                tracing::info!(record, "pruned: {reason}");
            }
            self.memory.removed(&Record {
                reference: row.record,
                namespace: namespace.to_owned(),
            });
        }
        Ok(())
    }
}
