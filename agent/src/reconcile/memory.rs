//! What is remembered of every image, and the document that it survives restarts in.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Remembered, Step, plan::later};
use crate::{
    clock,
    desired::Key,
    error::{Error, Result},
    kind::Kind,
    schedule::Settings,
};

/// The form of the document; a later major one is not understood.
const SCHEMA: &str = "edgepull.state/1";
/// Images that are no longer desired and still remembered; beyond it the oldest are
/// forgotten, and then stay on the disk.
const MOST_UNDESIRED: usize = 4096;

/// Failures that no step within the engine makes good.
const REGISTRYS: [Kind; 5] = [
    Kind::Unauthorized,
    Kind::NotFound,
    Kind::RateLimited,
    Kind::Unavailable,
    Kind::PlatformMissing,
];

/// What is remembered of every image.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    images: BTreeMap<Key, Remembered>,
    /// Since when what was once desired is not.
    undesired: BTreeMap<Key, Timestamp>,
    clean: bool,
    /// The boot of the host that [`Remembered::sound`] is about.
    boot: String,
}

impl Memory {
    /// Of a host on which nothing has been done yet: there is nothing to doubt.
    pub fn first() -> Self {
        Self {
            clean: true,
            ..Self::default()
        }
    }

    pub fn get(&self, key: &Key) -> Option<&Remembered> {
        self.images.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Remembered)> {
        self.images.iter()
    }

    /// Whether the last run ended in order: then what was synced to the disk is whole.
    pub fn is_clean(&self) -> bool {
        self.clean
    }

    /// True is for the last save of a run, false for all before it.
    pub fn set_clean(&mut self, clean: bool) {
        self.clean = clean;
    }

    /// Says which boot of the host this is; empty where nobody knows.
    pub fn begin(&mut self, boot: &str) {
        if boot.is_empty() || self.boot != boot {
            for remembered in self.images.values_mut() {
                remembered.sound = false;
            }
        }
        boot.clone_into(&mut self.boot);
    }

    /// After a stop without notice: every image that is remembered or desired is compared
    /// with its layers once in this boot. A daemon that is killed again and again comes to
    /// the end of it nevertheless.
    pub fn unclean(&mut self, desired: impl IntoIterator<Item = Key>) {
        for key in desired {
            self.images.entry(key).or_default();
        }
        for remembered in self.images.values_mut() {
            remembered.recheck |= !remembered.sound;
        }
    }

    /// A step was taken and did what it should.
    pub fn succeeded(&mut self, key: &Key, now: Timestamp, step: Step) {
        let remembered = self.images.entry(key.clone()).or_default();
        match step {
            Step::Pull(_) => {
                remembered.last_check = Some(now);
                remembered.last_success = Some(now);
            }
            Step::Recheck => {
                remembered.recheck = false;
                remembered.sound = true;
            }
            // Else a registry that is away would be asked again after the shortest wait
            // whenever a pin had to be set.
            Step::Pin(_) | Step::Trim if is_registrys(remembered) => return,
            Step::Pin(_) | Step::Trim => {}
        }
        remembered.failures = 0;
        remembered.next_try = None;
        remembered.error = None;
    }

    /// A step failed; how long the image is now left alone is decided here.
    pub fn failed(&mut self, key: &Key, now: Timestamp, error: &Error, settings: &Settings) {
        let remembered = self.images.entry(key.clone()).or_default();
        remembered.failures = remembered.failures.saturating_add(1);
        let wait = settings.backoff.wait(
            remembered.failures,
            error,
            !clock::plausible(now),
            &settings.jitter,
            &key.to_string(),
        );
        remembered.next_try = Some(later(now, wait));
        remembered.error = serde_json::to_value(error).ok();
    }

    /// What the plan holds up because of the clock is tried when it has been wrong for as
    /// long as is waited for one.
    pub fn postpone(&mut self, keys: &[Key], now: Timestamp, settings: &Settings) {
        for key in keys {
            let remembered = self.images.entry(key.clone()).or_default();
            let until = later(now, settings.backoff.for_clock());
            if remembered.next_try.is_none_or(|next| next > until) {
                remembered.next_try = Some(until);
            }
        }
    }

    /// These are as they should be, and nothing is due: what failed last is over, whoever
    /// made it good.
    pub fn settle(&mut self, keys: &[Key]) {
        for key in keys {
            if let Some(remembered) = self.images.get_mut(key) {
                remembered.failures = 0;
                remembered.next_try = None;
                remembered.error = None;
            }
        }
    }

    /// An image is to be compared with its layers, because something about it is odd.
    pub fn doubt(&mut self, key: &Key) {
        self.images.entry(key.clone()).or_default().recheck = true;
    }

    /// Forgets what is not desired, and remembers since when. Only after a complete
    /// reading of what is; with a clock that cannot be right it waits, because what was
    /// dropped in 1970 would look as if it had been for long.
    pub fn forget(&mut self, desired: &BTreeSet<Key>, now: Timestamp) {
        self.undesired.retain(|key, _| !desired.contains(key));
        if !clock::plausible(now) {
            return;
        }
        let gone: Vec<Key> = self
            .images
            .keys()
            .filter(|key| !desired.contains(*key))
            .cloned()
            .collect();
        for key in gone {
            self.images.remove(&key);
            self.undesired_since(&key, now);
        }
    }

    /// Since when an image is not desired; from now on, if nothing is known of it. Nothing
    /// with a clock that cannot be right.
    pub fn undesired_since(&mut self, key: &Key, now: Timestamp) -> Option<Timestamp> {
        if !clock::plausible(now) {
            return None;
        }
        if !self.undesired.contains_key(key) && self.undesired.len() >= MOST_UNDESIRED {
            let oldest = self.undesired.iter().min_by_key(|(_, since)| **since);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.undesired.remove(&oldest);
            }
        }
        Some(*self.undesired.entry(key.clone()).or_insert(now))
    }

    /// What has not been desired for so long (`[schedule] prune`).
    pub fn removable(&self, now: Timestamp, after: Duration) -> Vec<Key> {
        let is_over = |since: Timestamp| clock::plausible(now) && later(since, after) <= now;
        let gone = self.undesired.iter().filter(|(_, since)| is_over(**since));
        gone.map(|(key, _)| key.clone()).collect()
    }

    /// When the next one can be removed.
    pub fn next_removal(&self, after: Duration) -> Option<Timestamp> {
        let first = self.undesired.values().min()?;
        Some(later(*first, after))
    }

    /// What is not desired any more.
    pub fn undesired(&self) -> impl Iterator<Item = &Key> {
        self.undesired.keys()
    }

    /// Forgets what nobody asks for: the document must not grow with every tag that was ever
    /// declared.
    pub fn keep_undesired(&mut self, keep: impl Fn(&Key) -> bool) {
        self.undesired.retain(|key, _| keep(key));
    }

    /// It was removed, or is not ours to remove.
    pub fn removed(&mut self, key: &Key) {
        self.undesired.remove(key);
    }

    #[cfg(test)]
    pub(super) fn change(&mut self, key: Key, change: impl FnOnce(&mut Remembered)) {
        change(self.images.entry(key).or_default());
    }

    /// The document.
    pub fn to_json(&self) -> Vec<u8> {
        let stored = Stored {
            schema: SCHEMA.to_owned(),
            clean: self.clean,
            boot: self.boot.clone(),
            images: self.images.iter().map(Image::of).collect(),
            undesired: self.undesired.iter().map(Undesired::of).collect(),
        };
        serde_json::to_vec(&stored).expect("plain data with keys that are strings")
    }

    /// Reads the document: what it has besides is passed over, a form that is not known is
    /// refused.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let refuse = |why: &dyn std::fmt::Display| {
            Error::new(Kind::StoreDamaged, "cannot read the state of earlier runs").because(why)
        };
        let stored: Stored = serde_json::from_slice(bytes).map_err(|error| refuse(&error))?;
        let minor = stored.schema.strip_prefix(SCHEMA);
        if !minor.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) {
            let schema = crate::redact::printable(&stored.schema, 40);
            return Err(refuse(&format_args!(
                "its form is `{schema}`, and this version knows `{SCHEMA}`"
            )));
        }
        let time = |text: String| text.parse().map_err(|error| refuse(&error));
        let maybe = |text: Option<String>| text.map(time).transpose();
        let mut memory = Self {
            clean: stored.clean,
            boot: stored.boot,
            ..Self::default()
        };
        for image in stored.images {
            let remembered = Remembered {
                last_check: maybe(image.last_check)?,
                last_success: maybe(image.last_success)?,
                failures: image.failures,
                next_try: maybe(image.next_try)?,
                error: image.error,
                recheck: image.recheck,
                sound: image.sound,
            };
            memory.images.insert(image.name.into(), remembered);
        }
        for gone in stored.undesired {
            let since = time(gone.since)?;
            memory.undesired.insert(gone.name.into(), since);
        }
        Ok(memory)
    }
}

/// Whether the last failure was the registry's.
fn is_registrys(remembered: &Remembered) -> bool {
    let error = remembered.error.as_ref();
    let kind = error.and_then(|error| error.get("kind")?.as_str());
    kind.is_some_and(|kind| REGISTRYS.iter().any(|known| known.name() == kind))
}

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    schema: String,
    #[serde(default)]
    clean: bool,
    #[serde(default)]
    boot: String,
    #[serde(default)]
    images: Vec<Image>,
    #[serde(default)]
    undesired: Vec<Undesired>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Name {
    reference: String,
    platform: String,
    namespace: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Image {
    #[serde(flatten)]
    name: Name,
    last_check: Option<String>,
    last_success: Option<String>,
    #[serde(default)]
    failures: u32,
    next_try: Option<String>,
    error: Option<serde_json::Value>,
    #[serde(default)]
    recheck: bool,
    #[serde(default)]
    sound: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Undesired {
    #[serde(flatten)]
    name: Name,
    since: String,
}

impl Name {
    fn of(key: &Key) -> Self {
        Self {
            reference: key.reference.clone(),
            platform: key.platform.clone(),
            namespace: key.namespace.clone(),
        }
    }
}

impl From<Name> for Key {
    fn from(name: Name) -> Self {
        Self {
            reference: name.reference,
            platform: name.platform,
            namespace: name.namespace,
        }
    }
}

impl Image {
    fn of((key, remembered): (&Key, &Remembered)) -> Self {
        let text = |at: Option<Timestamp>| at.map(|at| at.to_string());
        Self {
            name: Name::of(key),
            last_check: text(remembered.last_check),
            last_success: text(remembered.last_success),
            failures: remembered.failures,
            next_try: text(remembered.next_try),
            error: remembered.error.clone(),
            recheck: remembered.recheck,
            sound: remembered.sound,
        }
    }
}

impl Undesired {
    fn of((key, since): (&Key, &Timestamp)) -> Self {
        Self {
            name: Name::of(key),
            since: since.to_string(),
        }
    }
}

#[cfg(test)]
mod tests;
