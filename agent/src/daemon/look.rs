//! What the engine has of the desired images, and what others did to them.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    REPORT,
    journal::{self, Notice},
    run::Daemon,
};
use crate::{
    containerd::events::{Change, ChangeKind},
    desired::{Desired, Key},
    error::{Error, Result},
    keep::observe::{Listing, observe},
    kind::Kind,
    layout,
    oci::Digest,
    reconcile::{Observed, Remembered},
    status::{Engine, Ready, State},
};

/// An image that could not be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blind {
    /// When that is tried again.
    pub(super) until: Timestamp,
    failures: u32,
}

/// A new subscription misses what happened while it was set up.
const SECOND_LOOK: Duration = Duration::from_secs(2);

impl Daemon {
    /// Connects to what is not connected, and says how it stands.
    pub(super) async fn attach(&mut self) {
        let prunes = self.session.config().prune_after().is_some();
        let mut namespaces: Vec<Option<String>> = vec![None];
        let images = self.declared.images.iter();
        for desired in images.filter(|image| image.artifact.is_none()) {
            let name = Some(desired.namespace.clone());
            if !namespaces.contains(&name) {
                namespaces.push(name);
            }
        }
        // What is to be pruned may be in one that nothing is declared for any more.
        for record in self.memory.undesired().filter(|_| prunes) {
            let name = Some(record.namespace.clone());
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
            && was.is_none_or(|was| !was.says_the_same(error))
        {
            journal::report(error, None);
        }
        self.tell_engine();
    }

    fn tell_engine(&self) {
        let error = self.engines.error().cloned();
        let engine = match self.engines.any() {
            Some(attached) => Engine {
                name: attached.profile.name.to_owned(),
                address: attached.profile.address.display().to_string(),
                namespace: attached.profile.namespace.clone(),
                snapshotter: Some(attached.snapshotter.clone()),
                version: Some(attached.engine.version().to_owned()),
                reachable: error.is_none(),
            },
            None => self.session.profile().map_or_else(
                |_| Engine::default(),
                |profile| Engine {
                    name: profile.name.to_owned(),
                    address: profile.address.display().to_string(),
                    namespace: profile.namespace,
                    ..Engine::default()
                },
            ),
        };
        self.handle.board.engine(engine, error);
    }

    /// The engine is gone; nothing is known of what it has until it is back.
    pub(super) fn engine_lost(&mut self, error: Error) {
        journal::report(&error, None);
        self.engines.lost(error);
        self.observed.clear();
        // Nobody looks before it is back, and then everything is looked at.
        self.blind.clear();
        self.stale_all();
        self.tell_engine();
    }

    /// Looks at what is not known, and writes it down for those who ask. `false` if that was
    /// broken off, and is to be begun again.
    pub(super) async fn observe(&mut self) -> bool {
        self.observe_files().await;
        if !self.engines.is_reachable() {
            self.wait_for_engine();
            return true;
        }
        let now = Timestamp::now();
        let over = self.blind.iter().filter(|(_, blind)| blind.until <= now);
        self.stale.extend(over.map(|(key, _)| key.clone()));
        let mut listings: HashMap<String, Listing> = HashMap::new();
        while let Some(key) = self.stale.first().cloned() {
            // Thousands of images take a while to look at; whoever asks meanwhile is heard.
            self.pulse.beat();
            self.drain();
            if self.stopping || !self.engines.is_reachable() {
                return false;
            }
            let Some(desired) = self.desired(&key) else {
                self.stale.remove(&key);
                continue;
            };
            if desired.artifact.is_some() {
                // News came meanwhile.
                self.observe_files().await;
                continue;
            }
            // Declared just now, in a namespace that is to be connected first.
            if !self.engines.knows(&desired.namespace) {
                return false;
            }
            self.stale.remove(&key);
            match self.look(&desired, &mut listings).await {
                Ok(observed) => {
                    self.blind.remove(&key);
                    self.seen(&desired, observed);
                }
                Err(error) if error.kind() == Kind::ContainerdUnavailable => {
                    self.engine_lost(error);
                    self.wait_for_engine();
                    return true;
                }
                Err(error) => self.unseen(&key, &error),
            }
        }
        true
    }

    /// Looks at what is kept as files, engine or not.
    async fn observe_files(&mut self) {
        let now = Timestamp::now();
        for desired in self.declared.images.clone() {
            let Some(artifact) = &desired.artifact else {
                continue;
            };
            let key = desired.key();
            let over = self.blind.get(&key).is_some_and(|it| it.until <= now);
            if !self.stale.remove(&key) && !over {
                continue;
            }
            match layout::delivered(&artifact.dir).await {
                Ok(delivery) => {
                    self.blind.remove(&key);
                    let told = |it: &layout::Delivery| artifact.hook.is_empty() || it.is_told();
                    // Of another reference, or of another digest, it is not what is declared.
                    let repository = desired.reference.repository().to_string();
                    let delivery = delivery.filter(|it| {
                        let digest = desired.reference.digest();
                        it.identity.repository == repository
                            && digest.is_none_or(|digest| *digest == it.identity.target_digest)
                    });
                    let observed = Observed {
                        complete: delivery.as_ref().is_some_and(told),
                        target: delivery.map(|it| it.identity.target_digest),
                        pinned: desired.pin,
                        previous: Vec::new(),
                    };
                    self.seen(&desired, observed);
                }
                Err(error) => self.unseen(&key, &error),
            }
        }
    }

    /// Whether everything that is declared is kept as files, so that there need not be an
    /// engine.
    pub(super) fn needs_no_engine(&self) -> bool {
        let mut images = self.declared.images.iter().peekable();
        images.peek().is_some() && images.all(|image| image.artifact.is_some())
    }

    /// Of this image alone nothing can be said now. That is no failure of a step, so it is
    /// not remembered as one: the next look that says something ends it.
    pub(super) fn unseen(&mut self, key: &Key, error: &Error) {
        let now = Timestamp::now();
        self.observed.remove(key);
        let failures = self
            .blind
            .get(key)
            .map_or(1, |blind| blind.failures.saturating_add(1));
        let wait = self.settings.backoff.wait(
            failures,
            error,
            false,
            &self.settings.jitter,
            &key.to_string(),
        );
        let until = now.checked_add(wait).unwrap_or(Timestamp::MAX);
        self.blind.insert(key.clone(), Blind { until, failures });
        journal::report(error, Some(key));
        // What was here is most likely here still.
        if self.is_ready_on_board(key) {
            let board = &self.handle.board;
            board.refresh_failed(key, error, Some(until), now);
        } else {
            self.handle.board.failed(key, error, Some(until), now);
        }
        self.answered(key);
    }

    fn is_ready_on_board(&self, key: &Key) -> bool {
        let image = self.handle.board.image(key);
        image.is_some_and(|image| image.state == State::Ready)
    }

    async fn look(
        &self,
        desired: &Desired,
        listings: &mut HashMap<String, Listing>,
    ) -> Result<Observed> {
        let attached = self.engines.get(&desired.namespace).ok_or_else(|| {
            let refusal = self.engines.refusal(&desired.namespace).cloned();
            let why = format_args!("cannot use namespace `{}`", desired.namespace);
            refusal.map_or_else(
                || {
                    Error::new(Kind::ContainerdUnavailable, why)
                        .because("it is not connected")
                        .hint("it is tried again by itself; `edgepull status` shows the engine")
                },
                |error| error.during(why),
            )
        })?;
        let want = self
            .session
            .want(attached, &desired.platform, desired.verify)?;
        if !listings.contains_key(&desired.namespace) {
            let listing = Listing::of(&attached.engine).await?;
            listings.insert(desired.namespace.clone(), listing);
        }
        let Some(listing) = listings.get(&desired.namespace) else {
            return Err(
                Error::new(Kind::Internal, "a list that was just made is gone").hint(REPORT),
            );
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
        if desired.pin {
            // What is found on it from now on may be ours.
            self.foreign_pins.remove(&key);
        }
        let board = &self.handle.board;
        let shown = board.image(&key);
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
        match (&observed.target, &remembered.error) {
            (Some(digest), Some(error))
                if observed.complete && (is_damaged(remembered) || is_unfit(error, digest)) =>
            {
                board.failed_before(&key, error.clone(), remembered.next_try, now);
            }
            (Some(digest), _) if observed.complete => {
                // An engine that was away brings no news with what it still has.
                let known = shown.is_some_and(|shown| {
                    shown.state == State::Ready && shown.digest.as_ref() == Some(digest)
                });
                if !known {
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
                        .filter(|_| desired.artifact.is_none())
                        .map(|attached| attached.snapshotter.clone()),
                };
                let error = remembered.error.clone();
                board.here(&key, ready, error, remembered.next_try, now);
            }
            (_, error) => {
                if shown.is_some_and(|shown| shown.state == State::Ready) {
                    board.lost(&key, "it is not all there any more", now);
                }
                match error {
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

    /// What failed before stays what it was: an engine that is away says nothing about a
    /// registry.
    fn wait_for_engine(&self) {
        let now = Timestamp::now();
        for image in self.handle.board.images() {
            let key = image.key();
            let is_file = self.desired(&key).is_some_and(|it| it.artifact.is_some());
            if !is_file && !matches!(image.state, State::Failed | State::MissingPlatform) {
                let why = "the container engine does not answer";
                self.handle.board.waiting(&key, why, None, now);
            }
        }
    }

    /// Somebody changed an image record; perhaps we did. Whether that has to do with us.
    pub(super) fn note(&mut self, change: Result<Change>) -> bool {
        let change = match change {
            Ok(change) => change,
            Err(error) => {
                self.engine_lost(error);
                return true;
            }
        };
        let mut counts = false;
        for desired in &self.declared.images {
            let is_image = desired.artifact.is_none() && desired.namespace == change.namespace;
            if is_image && concerns(&change, desired) {
                self.stale.insert(desired.key());
                counts = true;
            }
        }
        counts
    }
}

/// Whether the last comparison of the image with its layers found it damaged, and it could
/// not be mended: its records are all there, and it must not be called ready.
fn is_damaged(remembered: &Remembered) -> bool {
    let error = remembered.error.as_ref().and_then(Error::from_json);
    remembered.recheck && error.is_some_and(|error| error.kind() == Kind::StoreDamaged)
}

/// Whether a failure says that this very image cannot run here. One that is about a newer image
/// of the same name leaves the one that is here as it is.
fn is_unfit(error: &serde_json::Value, digest: &Digest) -> bool {
    Error::from_json(error).is_some_and(|error| {
        let unfit = matches!(
            error.kind(),
            Kind::Mislabelled | Kind::NotRunnable | Kind::SmokeFailed
        );
        unfit && error.is_about(digest.as_str())
    })
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
