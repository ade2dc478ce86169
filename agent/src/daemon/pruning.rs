//! `[schedule] prune`: what was declared once, and has not been for long enough, goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;

use super::{journal, run::Daemon};
use crate::{
    desired::Key,
    error::Result,
    keep::{self, Action, PruneOptions},
};

/// What stands for the platform of a record, which has none.
const ANY: &str = "any";

impl Daemon {
    /// Removes what it is time for, if anything is to be removed at all. Only while
    /// everything that is declared could be read: the rest is not undeclared, but unknown.
    pub(super) async fn prune(&mut self) {
        let Some(after) = self.session.config().prune_after() else {
            self.memory.keep_undesired(|_| false);
            return;
        };
        // Records have no platform, and those of this pass say since when.
        self.memory.keep_undesired(|key| key.platform == ANY);
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
        let mut names: BTreeMap<Key, String> = BTreeMap::new();
        for row in keep::prune(&engine, &self.declared.images, look).await? {
            if row.action == Action::Kept {
                continue;
            }
            let key = Key {
                reference: row.record.clone(),
                platform: ANY.to_owned(),
                namespace: namespace.to_owned(),
            };
            self.memory.undesired_since(&key, now);
            names.insert(key, row.record);
        }
        // What is declared again begins anew when it is not any more.
        for key in self.memory.removable(now, Duration::ZERO) {
            if key.platform == ANY && key.namespace == namespace && !names.contains_key(&key) {
                self.memory.removed(&key);
            }
        }
        let due: BTreeSet<String> = self
            .memory
            .removable(now, after)
            .iter()
            .filter_map(|key| names.get(key).cloned())
            .collect();
        if due.is_empty() {
            return Ok(());
        }
        let act = PruneOptions {
            dry_run: false,
            only: Some(&due),
        };
        for row in keep::prune(&engine, &self.declared.images, act).await? {
            if let Some(error) = &row.error {
                journal::report(error, None);
            }
            if row.action != Action::Kept {
                let record = crate::redact::printable(&row.record, 400);
                let reason = crate::redact::printable(&row.reason, 400);
                tracing::info!(record, "pruned: {reason}");
            }
            names.retain(|key, name| {
                if *name == row.record {
                    self.memory.removed(key);
                }
                *name != row.record
            });
        }
        Ok(())
    }
}
