//! Connections to the engine, one for each namespace, and what it tells of changes.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::session::{Attached, Session};
use crate::{
    containerd::events::{Change, Changes},
    error::{Error, Result},
};

/// Waits between tries to reach an engine that does not answer.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// The engine as the loop knows it.
#[derive(Debug, Default)]
pub(super) struct Engines {
    attached: BTreeMap<String, Attached>,
    error: Option<Error>,
    tries: u32,
    retry: Option<Instant>,
    changes: Option<Changes>,
}

impl Engines {
    pub(super) fn get(&self, namespace: &str) -> Option<&Attached> {
        self.attached.get(namespace)
    }

    pub(super) fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.attached.keys().map(String::as_str)
    }

    /// Any of them: they are namespaces of one engine.
    pub(super) fn any(&self) -> Option<&Attached> {
        self.attached.values().next()
    }

    pub(super) fn is_reachable(&self) -> bool {
        self.error.is_none() && !self.attached.is_empty()
    }

    pub(super) fn error(&self) -> Option<&Error> {
        self.error.as_ref()
    }

    /// When the next try is due, where there is one to make.
    pub(super) fn next_try(&self) -> Option<Duration> {
        self.retry
            .map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Somebody waits: the next try is due.
    pub(super) fn try_now(&mut self) {
        if self.retry.is_some() {
            self.retry = Some(Instant::now());
        }
    }

    /// Connects to the namespaces that are not connected yet; `None` is the engine's usual
    /// one. Says whether there is a connection that was not there before.
    pub(super) async fn attach(
        &mut self,
        session: &Session,
        namespaces: &[Option<String>],
    ) -> bool {
        if self.retry.is_some_and(|at| at > Instant::now()) {
            return false;
        }
        let mut fresh = false;
        for namespace in namespaces {
            let known = match namespace {
                Some(name) => self.attached.contains_key(name),
                None => !self.attached.is_empty(),
            };
            if known {
                continue;
            }
            match session.attach(namespace.as_deref()).await {
                Ok(attached) => {
                    self.attached
                        .insert(attached.engine.namespace().to_owned(), attached);
                    fresh = true;
                }
                Err(error) => {
                    self.lost(error);
                    return false;
                }
            }
        }
        self.retry = None;
        self.tries = 0;
        self.error = None;
        if (fresh || self.changes.is_none())
            && let Some(attached) = self.any()
        {
            let names: Vec<&str> = self.attached.keys().map(String::as_str).collect();
            self.changes = Some(attached.engine.changes(&names));
        }
        fresh
    }

    /// It does not answer (any more).
    pub(super) fn lost(&mut self, error: Error) {
        self.forget();
        self.error = Some(error);
        let wait = FIRST
            .saturating_mul(2_u32.saturating_pow(self.tries.min(16)))
            .min(LONGEST);
        self.tries += 1;
        self.retry = Some(Instant::now() + wait);
    }

    /// Drops what is connected; the next look connects again.
    pub(super) fn forget(&mut self) {
        self.attached.clear();
        self.changes = None;
        self.retry = None;
    }

    /// The next change of an image record; an error is the end of the connection. Never,
    /// without a connection.
    pub(super) async fn change(&mut self) -> Result<Change> {
        match &mut self.changes {
            Some(changes) => changes.next().await,
            None => std::future::pending().await,
        }
    }
}
