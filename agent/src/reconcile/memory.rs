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
    schedule::{Backoff, Settings},
};

/// The form of the document; a later major one is not understood.
const SCHEMA: &str = "edgepull.state/1";
/// Images that are no longer desired and still remembered; beyond it the oldest are
/// forgotten, and then stay on the disk.
const MOST_UNDESIRED: usize = 4096;

/// An image record. It has no platform: what is removed is removed for all of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Record {
    pub reference: String,
    pub namespace: String,
}

impl Record {
    fn of(key: &Key) -> Self {
        Self {
            reference: key.reference.clone(),
            namespace: key.namespace.clone(),
        }
    }
}

/// What is remembered of every image.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    images: BTreeMap<Key, Remembered>,
    /// Since when what was once desired is not.
    undesired: BTreeMap<Record, Timestamp>,
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
            Step::Pin(_) | Step::Trim => {}
        }
        // Else a registry that is away would be asked again after the shortest wait whenever
        // a pin had to be set.
        if matches!(step, Step::Pull(_)) || !remembered.of_fetching {
            well(remembered);
        }
    }

    /// A step failed; how long the image is now left alone is decided here.
    pub fn failed(
        &mut self,
        key: &Key,
        now: Timestamp,
        step: Step,
        error: &Error,
        settings: &Settings,
    ) {
        let remembered = self.images.entry(key.clone()).or_default();
        remembered.failures = remembered.failures.saturating_add(1);
        // What happens within the engine happens whatever the time.
        let is_pull = matches!(step, Step::Pull(_));
        let wait = settings.backoff.wait(
            remembered.failures,
            error,
            is_pull && !clock::plausible(now),
            &settings.jitter,
            &key.to_string(),
        );
        let until = later(now, wait);
        // What a registry asked for holds, whatever else fails meanwhile.
        let held = remembered.next_try.filter(|next| {
            !is_pull && remembered.of_fetching && *next <= later(now, Backoff::MOST)
        });
        remembered.next_try = Some(held.map_or(until, |held| held.max(until)));
        remembered.error = serde_json::to_value(error).ok();
        remembered.of_fetching = is_pull && is_of_fetching(error.kind());
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
                well(remembered);
            }
        }
    }

    /// Forgets what is not desired, and remembers since when. Only after a complete
    /// reading of what is; with a clock that cannot be right it waits, because what was
    /// dropped in 1970 would look as if it had been for long.
    pub fn forget(&mut self, desired: &BTreeSet<Key>, now: Timestamp) {
        let records: BTreeSet<Record> = desired.iter().map(Record::of).collect();
        self.undesired.retain(|record, _| !records.contains(record));
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
            let record = Record::of(&key);
            if !records.contains(&record) {
                self.undesired_since(&record, now);
            }
        }
    }

    /// Since when a record is not desired; from now on, if nothing is known of it. Nothing
    /// with a clock that cannot be right.
    pub fn undesired_since(&mut self, record: &Record, now: Timestamp) -> Option<Timestamp> {
        if !clock::plausible(now) {
            return None;
        }
        if !self.undesired.contains_key(record) && self.undesired.len() >= MOST_UNDESIRED {
            let oldest = self.undesired.iter().min_by_key(|(_, since)| **since);
            if let Some(oldest) = oldest.map(|(record, _)| record.clone()) {
                self.undesired.remove(&oldest);
            }
        }
        Some(*self.undesired.entry(record.clone()).or_insert(now))
    }

    /// What has not been desired for so long (`[schedule] prune`).
    pub fn removable(&self, now: Timestamp, after: Duration) -> Vec<Record> {
        let is_over = |since: Timestamp| clock::plausible(now) && later(since, after) <= now;
        let gone = self.undesired.iter().filter(|(_, since)| is_over(**since));
        gone.map(|(record, _)| record.clone()).collect()
    }

    /// When the next one can be removed.
    pub fn next_removal(&self, after: Duration) -> Option<Timestamp> {
        let first = self.undesired.values().min()?;
        Some(later(*first, after))
    }

    /// What is not desired any more.
    pub fn undesired(&self) -> impl Iterator<Item = &Record> {
        self.undesired.keys()
    }

    /// Forgets what nobody asks for: the document must not grow with every tag that was ever
    /// declared.
    pub fn forget_undesired(&mut self) {
        self.undesired.clear();
    }

    /// It was removed, or is not ours to remove.
    pub fn removed(&mut self, record: &Record) {
        self.undesired.remove(record);
    }

    #[cfg(test)]
    pub(super) fn change(&mut self, key: Key, change: impl FnOnce(&mut Remembered)) {
        change(self.images.entry(key).or_default());
    }

    /// The document.
    pub fn to_json(&self) -> Vec<u8> {
        let images = self.images.iter().map(|(key, remembered)| Image {
            key: key.clone(),
            remembered: remembered.clone(),
        });
        let undesired = self.undesired.iter().map(|(record, since)| Undesired {
            record: record.clone(),
            since: *since,
        });
        let stored = Stored {
            schema: SCHEMA.to_owned(),
            clean: self.clean,
            boot: self.boot.clone(),
            images: images.collect(),
            undesired: undesired.collect(),
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
        let images = stored.images.into_iter();
        let undesired = stored.undesired.into_iter();
        Ok(Self {
            images: images.map(|image| (image.key, image.remembered)).collect(),
            undesired: undesired.map(|gone| (gone.record, gone.since)).collect(),
            clean: stored.clean,
            boot: stored.boot,
        })
    }
}

/// Nothing that failed counts any more.
fn well(remembered: &mut Remembered) {
    remembered.failures = 0;
    remembered.next_try = None;
    remembered.error = None;
    remembered.of_fetching = false;
}

/// Whether a failure of a pull is one that no step within the engine makes good, nor has to
/// wait for.
const fn is_of_fetching(kind: Kind) -> bool {
    match kind {
        Kind::PlatformMissing
        | Kind::NotRunnable
        | Kind::Mislabelled
        | Kind::SmokeFailed
        | Kind::Unauthorized
        | Kind::NotFound
        | Kind::RateLimited
        | Kind::Unavailable
        | Kind::InvalidContent
        | Kind::Unsupported
        // Letting go of earlier images must not wait for the room that it makes.
        | Kind::NoSpace => true,
        // The engine, this host or its configuration may be at fault.
        Kind::Internal
        | Kind::Usage
        | Kind::Config
        | Kind::InvalidReference
        | Kind::StoreDamaged
        | Kind::ContainerdUnavailable
        | Kind::AgentUnavailable
        | Kind::Timeout
        | Kind::Cancelled => false,
    }
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
struct Image {
    #[serde(flatten)]
    key: Key,
    #[serde(flatten)]
    remembered: Remembered,
}

#[derive(Debug, Serialize, Deserialize)]
struct Undesired {
    #[serde(flatten)]
    record: Record,
    since: Timestamp,
}

#[cfg(test)]
mod tests;
