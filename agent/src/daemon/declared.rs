//! What is declared: images.d and config.toml, read again when they change. What cannot be
//! understood changes nothing and is told.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::{
    journal::{self, Notice},
    run::{Daemon, Places},
};
use crate::{
    config::Config,
    desired::{Desired, Directory, Key, Source},
    error::Error,
};

/// What was last read and holds.
#[derive(Debug)]
pub(super) struct Declared {
    source: Box<dyn Source>,
    pub(super) images: Vec<Desired>,
    /// Whether `images` is all that is declared.
    pub(super) complete: bool,
    /// The text of the configuration that holds.
    pub(super) config: String,
    config_fault: Option<Error>,
    notes: Vec<String>,
    /// The usual namespace of the engine that answered last. Before one has, another name may
    /// stand in for it, and images are not known to be the ones that are remembered.
    pub(super) namespace: Option<String>,
    /// The last run ended without notice, and what is desired is yet to be doubted for it.
    pub(super) doubtful: bool,
}

impl Declared {
    pub(super) fn new(places: &Places, config: String) -> Self {
        Self {
            source: Box::new(Directory::new(&places.images)),
            images: Vec::new(),
            complete: false,
            config,
            config_fault: None,
            notes: Vec::new(),
            namespace: None,
            doubtful: false,
        }
    }
}

impl Daemon {
    /// Reads both files again.
    pub(super) fn reload(&mut self) {
        let read = Config::text(self.places.config.as_deref()).and_then(|text| {
            Config::of_text(&text, self.places.config.as_deref()).map(|config| (text, config))
        });
        match read {
            Ok((text, config)) => {
                self.declared.config_fault = None;
                if text != self.declared.config {
                    self.declared.config = text;
                    self.session.configure(config);
                    self.settings = self.session.timing();
                    // Its engine may be another one, and what is being done is done by the
                    // settings before.
                    self.generation = self.generation.wrapping_add(1);
                    self.engines.forget();
                    self.declared.namespace = None;
                    self.observed.clear();
                    self.blind.clear();
                    self.foreign_pins.clear();
                    self.worker = None;
                    journal::notice(Notice::Reloaded, None, None, "the configuration was read");
                }
            }
            Err(error) => self.declared.config_fault = Some(error),
        }
        self.read_declared();
    }

    /// Reads images.d, and takes up what it says.
    pub(super) fn read_declared(&mut self) {
        let Ok(mut traits) = self.session.traits() else {
            return;
        };
        if let Some(attached) = self.engines.any() {
            self.declared.namespace = Some(attached.profile.namespace.clone());
        }
        // Also while it is away, or while another one runs beside it.
        let settled = self.declared.namespace.clone();
        let is_settled = settled.is_some();
        if let Some(namespace) = settled {
            traits.namespace = namespace;
        }
        let read = self.declared.source.read(&traits);
        self.declared.complete = read.complete;
        let told = std::mem::replace(&mut self.declared.notes, read.notes);
        for note in self
            .declared
            .notes
            .iter()
            .filter(|note| !told.contains(note))
        {
            tracing::warn!("{note}");
        }
        let known = self.handle.board.daemon().faults;
        let mut faults: Vec<Error> = self.declared.config_fault.iter().cloned().collect();
        faults.extend(read.faults);
        for fault in &faults {
            let told = known.iter().any(|old| old.says_the_same(fault));
            if !told {
                journal::report(fault, None);
            }
        }
        self.handle.board.faults(faults);
        let moved: Vec<Key> = self
            .declared
            .images
            .iter()
            .filter(|was| {
                let now = read.images.iter().find(|now| now.key() == was.key());
                now.is_some_and(|now| now.artifact != was.artifact)
            })
            .map(Desired::key)
            .collect();
        for key in &moved {
            self.observed.remove(key);
        }
        self.declared.images = read.images;
        let keys: Vec<Key> = self.declared.images.iter().map(Desired::key).collect();
        self.handle.board.desired(&keys, Timestamp::now());
        let desired: BTreeSet<Key> = keys.into_iter().collect();
        if is_settled && std::mem::take(&mut self.declared.doubtful) {
            self.memory.unclean(desired.iter().cloned());
        }
        if is_settled && self.declared.complete {
            self.memory.forget(&desired, Timestamp::now());
        }
        self.observed.retain(|key, _| desired.contains(key));
        self.blind.retain(|key, _| desired.contains(key));
        self.foreign_pins.retain(|key| desired.contains(key));
        // Whoever waits for what is not wanted any more would wait for ever.
        for key in self.asked.difference(&desired).cloned().collect::<Vec<_>>() {
            self.answered(&key);
        }
        for key in &desired {
            if !self.observed.contains_key(key) && !self.blind.contains_key(key) {
                self.stale.insert(key.clone());
            }
        }
    }

    /// Whether the image is (still) wanted.
    pub(super) fn is_desired(&self, key: &Key) -> bool {
        self.declared.images.iter().any(|image| image.key() == *key)
    }

    pub(super) fn desired(&self, key: &Key) -> Option<Desired> {
        self.declared
            .images
            .iter()
            .find(|image| image.key() == *key)
            .cloned()
    }
}
