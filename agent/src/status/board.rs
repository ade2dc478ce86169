//! Where the loop writes down how its images stand, and everybody else reads it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use edgepull_platform::starts::RefusedStart;
use jiff::Timestamp;
use tokio::sync::broadcast;

use super::{
    Counts, Daemon, Document, Engine, Image, Notice, Phase, Progress, RefusedStarts, SCHEMA, State,
};
use crate::{
    desired::Key,
    error::Error,
    event::{Event, Observer},
    kind::Kind,
    oci::Digest,
};

/// Notices that a listener may be behind; more, and it is told that it missed some.
const BACKLOG: usize = 256;
/// Rows of refused starts: as many as fit below a table that people read.
const MOST_REFUSED: usize = 8;

/// What is known of an image that is on the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    pub digest: Digest,
    pub pinned: bool,
    /// `None` where this pass did not learn it: what is known stays.
    pub selected_platform: Option<String>,
    pub snapshotter: Option<String>,
}

/// The state of the daemon, to be cloned freely. The lock is held for a copy at most, and
/// never while waiting for anything.
#[derive(Debug, Clone)]
pub struct Board {
    state: Arc<Mutex<Inner>>,
    notices: broadcast::Sender<Notice>,
}

#[derive(Debug)]
struct Inner {
    daemon: Daemon,
    images: Vec<Image>,
    work: Option<Work>,
}

/// The image that is worked on.
#[derive(Debug)]
struct Work {
    key: Key,
    /// Bytes to fetch.
    total: u64,
    /// How much of each blob has arrived.
    blobs: HashMap<Digest, u64>,
    unpacking: bool,
    syncing: bool,
    resolved: bool,
}

impl Work {
    fn new(key: Key) -> Self {
        Self {
            key,
            total: 0,
            blobs: HashMap::new(),
            unpacking: false,
            syncing: false,
            resolved: false,
        }
    }

    fn progress(&self) -> Progress {
        let arrived = self
            .blobs
            .values()
            .fold(0_u64, |sum, bytes| sum.saturating_add(*bytes));
        let bytes = arrived.min(self.total);
        let phase = if self.syncing {
            Phase::Syncing
        } else if !self.resolved {
            Phase::Resolving
        } else if self.unpacking && bytes == self.total {
            Phase::Unpacking
        } else {
            Phase::Fetching
        };
        Progress {
            phase,
            bytes,
            total: self.total,
        }
    }

    fn observe(&mut self, event: &Event) {
        match event {
            Event::Planned { bytes_to_fetch, .. } => {
                self.resolved = true;
                self.total = *bytes_to_fetch;
            }
            // A transfer that is taken up again may start before where it broke.
            Event::BlobStarted { digest, offset, .. } => {
                self.blobs.insert(digest.clone(), *offset);
            }
            Event::BlobProgress { digest, bytes, .. } => {
                let arrived = self.blobs.entry(digest.clone()).or_default();
                *arrived = arrived.saturating_add(*bytes);
            }
            Event::BlobDone {
                digest,
                size,
                reused: false,
                ..
            } => {
                self.blobs.insert(digest.clone(), *size);
            }
            Event::Unpacking { .. } => self.unpacking = true,
            Event::Syncing { .. } => self.syncing = true,
            Event::Resolving { .. }
            | Event::Resolved { .. }
            | Event::BlobDone { .. }
            | Event::BlobWaiting { .. }
            | Event::Unpacked { .. }
            | Event::Warning { .. }
            | Event::Finished { .. } => {}
        }
    }
}

impl Board {
    /// `host` is the platform of this host.
    pub fn new(host: &str, version: &str, started: Timestamp) -> Self {
        let daemon = Daemon {
            schema: SCHEMA,
            host: host.to_owned(),
            version: version.to_owned(),
            started,
            first_pass_done: false,
            last_pass: None,
            paused: None,
            engine: None,
            engine_error: None,
            faults: Vec::new(),
            refused_starts: Vec::new(),
            counts: Counts::default(),
        };
        Self {
            state: Arc::new(Mutex::new(Inner {
                daemon,
                images: Vec::new(),
                work: None,
            })),
            notices: broadcast::Sender::new(BACKLOG),
        }
    }

    /// Everything that changes from now on.
    pub fn listen(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }

    /// The document, and everything that changes after it: nothing is missed in between.
    pub fn document_and_listen(&self) -> (Document, broadcast::Receiver<Notice>) {
        let state = self.lock();
        (state.document(), self.notices.subscribe())
    }

    pub fn document(&self) -> Document {
        self.lock().document()
    }

    pub fn daemon(&self) -> Daemon {
        self.lock().summary()
    }

    pub fn images(&self) -> Vec<Image> {
        self.lock().images.clone()
    }

    /// One of them.
    pub fn image(&self, key: &Key) -> Option<Image> {
        let state = self.lock();
        state.images.iter().find(|image| image.is(key)).cloned()
    }

    /// These are the desired images, in this order. What is known of those that stay is
    /// kept, the others vanish.
    pub fn desired(&self, keys: &[Key], now: Timestamp) {
        let mut state = self.lock();
        let mut before: HashMap<Key, Image> = state
            .images
            .drain(..)
            .map(|image| (image.key(), image))
            .collect();
        let mut fresh = Vec::new();
        for key in keys {
            // Twice the same is once: who reads declarations says so.
            if state.images.iter().any(|image| image.is(key)) {
                continue;
            }
            let image = before.remove(key).unwrap_or_else(|| {
                fresh.push(key.clone());
                Image::new(key, now)
            });
            state.images.push(image);
        }
        if state
            .work
            .as_ref()
            .is_some_and(|work| before.contains_key(&work.key))
        {
            state.work = None;
        }
        let mut gone: Vec<Key> = before.into_keys().collect();
        gone.sort();
        for key in gone {
            self.tell(|| Notice::Gone(key));
        }
        for key in fresh {
            self.tell_image(&state, &key);
        }
        self.tell_daemon(&state);
    }

    /// Work on the image begins; what is observed until its end is its progress.
    pub fn pulling(&self, key: &Key, now: Timestamp) {
        let mut state = self.lock();
        let work = Work::new(key.clone());
        let progress = work.progress();
        state.work = Some(work);
        self.change(&mut state, key, now, |image| {
            // An image that is here stays usable while its registry is asked.
            if image.state != State::Ready {
                image.state = State::Pulling;
            }
            image.reason = None;
            image.next_try = None;
            image.progress = Some(progress);
        });
    }

    /// The image is here, as it should be.
    pub fn ready(&self, key: &Key, ready: Ready, next_try: Option<Timestamp>, now: Timestamp) {
        self.here(key, ready, None, next_try, now);
    }

    /// The image is here, and what `error` says is known of it, too: the last try to bring
    /// it up to date, or to keep it, failed.
    pub fn here(
        &self,
        key: &Key,
        ready: Ready,
        error: Option<serde_json::Value>,
        next_try: Option<Timestamp>,
        now: Timestamp,
    ) {
        let mut state = self.lock();
        self.change(&mut state, key, now, |image| {
            image.state = State::Ready;
            image.digest = Some(ready.digest);
            image.pinned = ready.pinned;
            if ready.selected_platform.is_some() {
                image.selected_platform = ready.selected_platform;
            }
            if ready.snapshotter.is_some() {
                image.snapshotter = ready.snapshotter;
            }
            image.reason = None;
            image.next_try = next_try;
            image.progress = None;
            image.error = error;
        });
    }

    /// The image is not here, and this is why.
    pub fn failed(&self, key: &Key, error: &Error, next_try: Option<Timestamp>, now: Timestamp) {
        self.failed_before(key, as_json(error), next_try, now);
    }

    /// The same with a failure that an earlier run wrote down.
    pub fn failed_before(
        &self,
        key: &Key,
        error: serde_json::Value,
        next_try: Option<Timestamp>,
        now: Timestamp,
    ) {
        let mut state = self.lock();
        self.change(&mut state, key, now, |image| {
            image.error = Some(error);
            image.state = if image.error_kind() == Some(Kind::PlatformMissing) {
                State::MissingPlatform
            } else {
                State::Failed
            };
            image.digest = None;
            image.pinned = false;
            image.reason = None;
            image.next_try = next_try;
            image.progress = None;
        });
    }

    /// The image is here, but the last try to bring it up to date, or to keep it, failed.
    /// Only an image that was said to be ready can be that.
    pub fn refresh_failed(
        &self,
        key: &Key,
        error: &Error,
        next_try: Option<Timestamp>,
        now: Timestamp,
    ) {
        let mut state = self.lock();
        let error = as_json(error);
        self.change(&mut state, key, now, |image| {
            image.error = Some(error);
            image.next_try = next_try;
            image.reason = None;
            image.progress = None;
        });
    }

    /// Nothing is done for the image until then, because of `reason`. An image that is here
    /// stays ready.
    pub fn waiting(&self, key: &Key, reason: &str, until: Option<Timestamp>, now: Timestamp) {
        let mut state = self.lock();
        self.change(&mut state, key, now, |image| {
            if image.state != State::Ready {
                image.state = State::Waiting;
                image.digest = None;
                image.pinned = false;
            }
            image.reason = Some(reason.to_owned());
            image.next_try = until;
            image.progress = None;
        });
    }

    /// The image, which was ready, is not here any longer.
    pub fn lost(&self, key: &Key, reason: &str, now: Timestamp) {
        let mut state = self.lock();
        self.change(&mut state, key, now, |image| {
            image.state = State::Waiting;
            image.digest = None;
            image.pinned = false;
            image.reason = Some(reason.to_owned());
            image.progress = None;
        });
    }

    /// What was chosen for the platform that is wanted, by its label.
    pub fn selected(&self, key: &Key, platform: Option<&str>) {
        let mut state = self.lock();
        if let Some(image) = state.images.iter_mut().find(|image| image.is(key)) {
            image.selected_platform = platform.map(str::to_owned);
        }
    }

    /// When the image was last known to be as its registry has it.
    pub fn succeeded(&self, key: &Key, at: Option<Timestamp>) {
        let mut state = self.lock();
        if let Some(image) = state.images.iter_mut().find(|image| image.is(key)) {
            image.last_success = at;
        }
    }

    /// What is wrong with the configuration; nothing, if `faults` is empty.
    pub fn faults(&self, faults: Vec<Error>) {
        let mut state = self.lock();
        state.daemon.faults = faults;
        self.tell_daemon(&state);
    }

    /// The shim did not start a container. What is tried again and again is one row.
    pub fn refused_start(&self, start: RefusedStart, now: Timestamp) {
        let mut state = self.lock();
        let rows = &mut state.daemon.refused_starts;
        let same = |row: &RefusedStarts| {
            let was = &row.start;
            (&was.message, &was.reference, &was.namespace, &was.pod)
                == (
                    &start.message,
                    &start.reference,
                    &start.namespace,
                    &start.pod,
                )
        };
        let known = rows.iter().position(same).map(|at| rows.remove(at));
        let row = RefusedStarts {
            start,
            count: known.map_or(1, |row| row.count.saturating_add(1)),
            last: now,
        };
        rows.insert(0, row);
        rows.truncate(MOST_REFUSED);
        self.tell_daemon(&state);
    }

    /// The engine, and whether it can be reached.
    pub fn engine(&self, engine: Engine, error: Option<Error>) {
        let mut state = self.lock();
        let same = state.daemon.engine.as_ref() == Some(&engine)
            && match (&state.daemon.engine_error, &error) {
                (Some(was), Some(is)) => was.says_the_same(is),
                (was, is) => was.is_none() && is.is_none(),
            };
        state.daemon.engine = Some(engine);
        state.daemon.engine_error = error;
        if !same {
            self.tell_daemon(&state);
        }
    }

    /// Why nothing is fetched at present.
    pub fn paused(&self, reason: Option<&str>) {
        let mut state = self.lock();
        if state.daemon.paused.as_deref() != reason {
            state.daemon.paused = reason.map(str::to_owned);
            self.tell_daemon(&state);
        }
    }

    /// Every image was looked at.
    pub fn pass_done(&self, now: Timestamp) {
        let mut state = self.lock();
        state.daemon.first_pass_done = true;
        state.daemon.last_pass = Some(now);
        self.tell_daemon(&state);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere must not silence the one place that tells how things stand.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes one image, and tells those who listen. Images that are not desired are none
    /// of ours.
    fn change(
        &self,
        state: &mut Inner,
        key: &Key,
        now: Timestamp,
        change: impl FnOnce(&mut Image),
    ) {
        let Some(image) = state.images.iter_mut().find(|image| image.is(key)) else {
            return;
        };
        let was = image.clone();
        change(image);
        if image.state != was.state {
            image.since = now;
        }
        let same = *image == was;
        if image.progress.is_none() && state.work.as_ref().is_some_and(|work| work.key == *key) {
            state.work = None;
        }
        // Every image is looked at now and then, and whoever listens wants to know what is new.
        if !same {
            self.tell_image(state, key);
        }
    }

    fn tell_image(&self, state: &Inner, key: &Key) {
        if let Some(image) = state.images.iter().find(|image| image.is(key)) {
            self.tell(|| Notice::Image(Box::new(image.clone())));
        }
    }

    fn tell_daemon(&self, state: &Inner) {
        self.tell(|| Notice::Daemon(Box::new(state.summary())));
    }

    /// Costs nothing while nobody listens, and never waits for anybody.
    fn tell(&self, notice: impl FnOnce() -> Notice) {
        if self.notices.receiver_count() > 0 {
            let _ = self.notices.send(notice());
        }
    }
}

impl Inner {
    fn summary(&self) -> Daemon {
        let mut counts = Counts {
            desired: self.images.len(),
            ..Counts::default()
        };
        for image in &self.images {
            *match image.state {
                State::Ready => &mut counts.ready,
                State::Pulling => &mut counts.pulling,
                State::Waiting => &mut counts.waiting,
                State::MissingPlatform => &mut counts.missing_platform,
                State::Failed => &mut counts.failed,
            } += 1;
        }
        Daemon {
            counts,
            ..self.daemon.clone()
        }
    }

    fn document(&self) -> Document {
        Document {
            daemon: self.summary(),
            images: self.images.clone(),
        }
    }
}

impl Observer for Board {
    fn observe(&self, event: &Event) {
        let mut state = self.lock();
        self.tell(|| Notice::Work(event.clone()));
        let Some(work) = state.work.as_mut() else {
            return;
        };
        work.observe(event);
        let (key, progress) = (work.key.clone(), work.progress());
        let chosen = match event {
            Event::Resolved { platform, .. } => Some(platform.clone()),
            _ => None,
        };
        let Some(image) = state.images.iter_mut().find(|image| image.is(&key)) else {
            return;
        };
        let new_phase = image.progress.is_none_or(|was| was.phase != progress.phase);
        image.progress = Some(progress);
        if chosen.is_some() {
            image.selected_platform = chosen;
        }
        if new_phase {
            self.tell_image(&state, &key);
        }
    }
}

fn as_json(error: &Error) -> serde_json::Value {
    serde_json::to_value(error).unwrap_or_default()
}

#[cfg(test)]
mod tests;
