//! Connections to the engine, one for each namespace, and what it tells of changes.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::{
    containerd::events::{Change, Changes},
    error::{Error, Result},
    kind::Kind,
    session::{Attached, Session},
};

/// Waits between tries to reach an engine that does not answer.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);
/// A connection that held for so long was a good one: the first try after it is made at
/// once, since the engine may only have been restarted.
const STABLE: Duration = Duration::from_secs(30);

/// When the engine is tried again. An engine that answers, and goes again a moment later, is
/// left alone for longer each time, as one is that does not answer at all.
#[derive(Debug, Default)]
struct Pace {
    tries: u32,
    since: Option<Instant>,
}

impl Pace {
    fn connected(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// How long to wait before the next try.
    fn lost(&mut self, now: Instant) -> Duration {
        let held = self
            .since
            .take()
            .is_some_and(|since| now.saturating_duration_since(since) >= STABLE);
        if held {
            self.tries = 0;
            return Duration::ZERO;
        }
        let wait = FIRST
            .saturating_mul(2_u32.saturating_pow(self.tries.min(16)))
            .min(LONGEST);
        self.tries = self.tries.saturating_add(1);
        wait
    }
}

/// The engine as the loop knows it.
#[derive(Debug, Default)]
pub(super) struct Engines {
    attached: BTreeMap<String, Attached>,
    /// Namespaces that cannot be used, though the engine answers: no reason to do without
    /// the others.
    refused: BTreeMap<String, Error>,
    error: Option<Error>,
    pace: Pace,
    retry: Option<Instant>,
    changes: Option<Changes>,
}

impl Engines {
    pub(super) fn get(&self, namespace: &str) -> Option<&Attached> {
        self.attached.get(namespace)
    }

    /// Whether it was tried to connect the namespace.
    pub(super) fn knows(&self, namespace: &str) -> bool {
        self.attached.contains_key(namespace) || self.refused.contains_key(namespace)
    }

    /// Why the namespace is not connected, where it alone is the reason.
    pub(super) fn refusal(&self, namespace: &str) -> Option<&Error> {
        self.refused.get(namespace)
    }

    /// What could not be used may be usable by now.
    pub(super) fn reconsider(&mut self) {
        self.refused.clear();
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
                Some(name) => self.knows(name),
                None => !self.attached.is_empty(),
            };
            if known {
                continue;
            }
            match session.join(namespace.as_deref()).await {
                Ok(attached) => {
                    self.attached
                        .insert(attached.engine.namespace().to_owned(), attached);
                    fresh = true;
                }
                Err(error) => match namespace {
                    Some(name)
                        if error.kind() != Kind::ContainerdUnavailable
                            && !self.attached.is_empty() =>
                    {
                        self.refused.insert(name.clone(), error);
                    }
                    _ => {
                        self.lost(error);
                        return false;
                    }
                },
            }
        }
        self.retry = None;
        self.pace.connected(Instant::now());
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
        self.drop_all();
        self.error = Some(error);
        let now = Instant::now();
        self.retry = Some(now + self.pace.lost(now));
    }

    /// Another engine may be meant: drops what is connected; the next look connects again.
    pub(super) fn forget(&mut self) {
        self.drop_all();
        self.retry = None;
        self.pace = Pace::default();
    }

    fn drop_all(&mut self) {
        self.attached.clear();
        self.refused.clear();
        self.changes = None;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_comes_and_goes_is_left_alone_for_longer_each_time() {
        let mut pace = Pace::default();
        let start = Instant::now();
        let waits: Vec<u64> = (0..8)
            .map(|round| {
                let now = start + Duration::from_secs(round);
                pace.connected(now);
                pace.lost(now + Duration::from_millis(10)).as_secs()
            })
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30, 30]);
        // One that does not answer at all waits as long.
        assert_eq!(pace.lost(start), LONGEST);
    }

    #[test]
    fn one_that_was_there_for_long_is_tried_at_once_and_once() {
        let mut pace = Pace::default();
        let start = Instant::now();
        pace.lost(start);
        pace.lost(start);
        pace.connected(start);
        // Also while further namespaces are connected later.
        pace.connected(start + STABLE);
        assert_eq!(pace.lost(start + STABLE), Duration::ZERO);
        assert_eq!(pace.lost(start + STABLE), FIRST);
    }
}
