//! What the engine has of the desired images, and what others did to them.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    journal::{self, Notice},
    run::Daemon,
};
use crate::{
    containerd::events::{Change, ChangeKind},
    desired::{Desired, Key},
    error::{Error, Result},
    keep::observe::{Listing, observe},
    kind::Kind,
    reconcile::{Observed, Remembered},
    status::{Engine, Ready, State},
};

/// A new subscription misses what happened while it was set up.
const SECOND_LOOK: Duration = Duration::from_secs(2);

impl Daemon {
    /// Connects to what is not connected, and says how it stands.
    pub(super) async fn attach(&mut self) {
        let mut namespaces: Vec<Option<String>> = vec![None];
        for desired in &self.declared.images {
            let name = Some(desired.namespace.clone());
            if !namespaces.contains(&name) {
                namespaces.push(name);
            }
        }
        let was = self.engines.error().cloned();
        let fresh = self.engines.attach(&self.session, &namespaces).await;
        if fresh {
            // It may be another engine than the one that was expected, with other names.
            self.read_declared();
            self.stale_all();
            self.look_again = Some(Instant::now() + SECOND_LOOK);
            if let Ok(document) = self.session.host_document(self.engines.any()) {
                self.handle.set_host(document);
            }
        }
        let error = self.engines.error();
        if let Some(error) = error
            && was.is_none_or(|was| {
                was.message() != error.message() || was.causes() != error.causes()
            })
        {
            journal::report(error, None);
        }
        self.tell_engine();
    }

    fn tell_engine(&self) {
        let error = self.engines.error().cloned();
        let engine = match (self.engines.any(), self.session.profile()) {
            (Some(attached), _) => Engine {
                name: attached.profile.name.to_owned(),
                address: attached.profile.address.display().to_string(),
                namespace: attached.profile.namespace.clone(),
                snapshotter: Some(attached.snapshotter.clone()),
                version: Some(attached.engine.version().to_owned()),
                reachable: error.is_none(),
            },
            (None, Ok(profile)) => Engine {
                name: profile.name.to_owned(),
                address: profile.address.display().to_string(),
                namespace: profile.namespace,
                ..Engine::default()
            },
            (None, Err(_)) => Engine::default(),
        };
        self.handle.board.engine(engine, error);
    }

    /// The engine is gone; nothing is known of what it has until it is back.
    pub(super) fn engine_lost(&mut self, error: Error) {
        tracing::debug!(%error, "the engine is gone");
        self.engines.lost(error);
        self.observed.clear();
        self.stale_all();
        self.tell_engine();
    }

    /// Looks at what is not known, and writes it down for those who ask.
    pub(super) async fn observe(&mut self) {
        if !self.engines.is_reachable() {
            self.wait_for_engine();
            return;
        }
        let now = Timestamp::now();
        self.blind.retain(|key, until| {
            let waits = *until > now;
            if !waits {
                self.stale.insert(key.clone());
            }
            waits
        });
        let stale: Vec<Key> = std::mem::take(&mut self.stale).into_iter().collect();
        let mut listings: HashMap<String, Listing> = HashMap::new();
        for (at, key) in stale.iter().enumerate() {
            let Some(desired) = self.desired(key) else {
                continue;
            };
            match self.look(&desired, &mut listings).await {
                Ok(observed) => self.seen(&desired, observed),
                Err(error) if error.kind() == Kind::ContainerdUnavailable => {
                    self.stale.extend(stale[at..].iter().cloned());
                    self.engine_lost(error);
                    self.wait_for_engine();
                    return;
                }
                // Of this image alone nothing can be said.
                Err(error) => {
                    let now = Timestamp::now();
                    self.observed.remove(key);
                    self.memory.failed(key, now, &error, &self.settings);
                    journal::report(&error, Some(key));
                    let next = self.memory.get(key).and_then(|known| known.next_try);
                    self.handle.board.failed(key, &error, next, now);
                    self.answered(key);
                    self.blind.insert(key.clone(), next.unwrap_or(now));
                }
            }
        }
    }

    async fn look(
        &self,
        desired: &Desired,
        listings: &mut HashMap<String, Listing>,
    ) -> Result<Observed> {
        let attached = self.engines.get(&desired.namespace).ok_or_else(|| {
            Error::new(
                Kind::ContainerdUnavailable,
                format_args!("namespace `{}` is not connected", desired.namespace),
            )
        })?;
        let want = self.session.want(attached, &desired.platform)?;
        if !listings.contains_key(&desired.namespace) {
            let listing = Listing::of(&attached.engine).await?;
            listings.insert(desired.namespace.clone(), listing);
        }
        let Some(listing) = listings.get(&desired.namespace) else {
            return Err(Error::new(
                Kind::Internal,
                "a list that was just made is gone",
            ));
        };
        let mut observed = observe(
            &attached.engine,
            &attached.snapshotter,
            listing,
            desired,
            &want,
        )
        .await?;
        if !desired.pin && self.foreign_pins.contains(&desired.key()) {
            observed.pinned = false;
        }
        Ok(observed)
    }

    fn seen(&mut self, desired: &Desired, observed: Observed) {
        let key = desired.key();
        let now = Timestamp::now();
        let board = &self.handle.board;
        let before = self.observed.get(&key);
        let unknown = Remembered::default();
        let remembered = self.memory.get(&key).unwrap_or(&unknown);
        let is_here = |observed: &Observed| observed.complete && observed.target.is_some();
        let taken_away = before.is_some_and(|before| {
            (is_here(before) && !is_here(&observed))
                || (before.pinned && !observed.pinned && desired.pin)
        });
        if taken_away {
            journal::notice(
                Notice::TakenAway,
                Some(&key),
                None,
                "somebody took the image or its pin away; it comes back",
            );
        }
        match &observed.target {
            Some(digest) if observed.complete => {
                if before.is_none_or(|before| !is_here(before)) {
                    journal::notice(
                        Notice::Ready,
                        Some(&key),
                        Some(digest.as_str()),
                        "the image is ready",
                    );
                }
                let ready = Ready {
                    digest: digest.clone(),
                    pinned: observed.pinned,
                    selected_platform: None,
                    snapshotter: self
                        .engines
                        .get(&key.namespace)
                        .map(|attached| attached.snapshotter.clone()),
                };
                board.ready(&key, ready, remembered.next_try, now);
                let error = remembered.error.clone();
                if let Some(error) =
                    error.and_then(|json| serde_json::from_value::<Error>(json).ok())
                {
                    board.refresh_failed(&key, &error, remembered.next_try, now);
                }
            }
            _ => {
                let was_ready = board
                    .images()
                    .iter()
                    .any(|image| image.is(&key) && image.state == State::Ready);
                if was_ready {
                    board.lost(&key, "it is not all there any more", now);
                }
                match &remembered.error {
                    Some(error) => {
                        board.failed_before(&key, error.clone(), remembered.next_try, now);
                    }
                    None => board.waiting(&key, "to be pulled", remembered.next_try, now),
                }
            }
        }
        board.succeeded(&key, remembered.last_success);
        self.observed.insert(key, observed);
    }

    fn wait_for_engine(&self) {
        let now = Timestamp::now();
        for desired in &self.declared.images {
            self.handle.board.waiting(
                &desired.key(),
                "the container engine does not answer",
                None,
                now,
            );
        }
    }

    /// Somebody changed an image record; perhaps we did.
    pub(super) fn note(&mut self, change: Result<Change>) {
        let change = match change {
            Ok(change) => change,
            Err(error) => {
                self.engine_lost(error);
                // It may only have been restarted.
                self.engines.try_now();
                return;
            }
        };
        for desired in &self.declared.images {
            if desired.namespace == change.namespace && concerns(&change, desired) {
                self.stale.insert(desired.key());
            }
        }
    }
}

/// Whether a changed record may belong to the image: its own, that of its digest, or, where
/// the name does not tell, that of a config.
fn concerns(change: &Change, desired: &Desired) -> bool {
    let own = desired.reference.record_name();
    if change.name == own {
        return true;
    }
    if change.name.starts_with("sha256:") {
        // Records of that name come with every image that somebody pulls; only one that goes
        // or changes can take something away.
        return change.kind != ChangeKind::Created;
    }
    change
        .name
        .split_once('@')
        .is_some_and(|(repository, _)| repository == desired.reference.repository().to_string())
}
