//! A small world in which plans are carried out.

use super::*;
use crate::{error::Error, kind::Kind};

#[derive(Debug)]
pub(super) struct World {
    pub(super) now: Timestamp,
    pub(super) desired: Vec<Desired>,
    pub(super) observed: BTreeMap<Key, Observed>,
    pub(super) memory: Memory,
    pub(super) settings: Settings,
    pub(super) asked: BTreeSet<Key>,
    /// A pull pins, and lets go of what need not be kept.
    pub(super) thorough: bool,
    /// Whatever is tried fails.
    pub(super) failing: BTreeSet<Key>,
    /// How often it failed, pulls and other steps apart.
    pub(super) tries: BTreeMap<(Key, bool), u32>,
    /// Steps that were planned too early.
    pub(super) early: BTreeMap<Key, Timestamp>,
}

impl World {
    pub(super) fn new(settings: Settings, now: Timestamp) -> Self {
        Self {
            now,
            desired: Vec::new(),
            observed: BTreeMap::new(),
            memory: Memory::first(),
            settings,
            asked: BTreeSet::new(),
            thorough: false,
            failing: BTreeSet::new(),
            tries: BTreeMap::new(),
            early: BTreeMap::new(),
        }
    }

    pub(super) fn add(&mut self, desired: Desired, observed: Option<Observed>) {
        if let Some(observed) = observed {
            self.observed.insert(desired.key(), observed);
        }
        self.desired.push(desired);
    }

    pub(super) fn remember(&mut self, name: &str, change: impl FnOnce(&mut Remembered)) {
        self.memory
            .change(desired(name, Refresh::Never).key(), change);
    }

    pub(super) fn set_refresh(&mut self, refresh: Refresh) {
        for desired in &mut self.desired {
            desired.refresh = refresh;
        }
    }

    pub(super) fn ask(&mut self, name: &str) {
        self.asked.insert(desired(name, Refresh::Never).key());
    }

    pub(super) fn plan(&self) -> Plan {
        plan(
            &zoned(self.now),
            &self.desired,
            &self.observed,
            &self.memory,
            &self.settings,
            &self.asked,
        )
    }

    /// Plans and carries out, in an instant.
    pub(super) fn run(&mut self) -> Plan {
        let plan = self.plan();
        let far = later(self.now, Backoff::MOST);
        for (key, step) in &plan.steps {
            let known = self.memory.get(key);
            // What needs no registry does not wait for one.
            let is_free = !matches!(step, Step::Pull(_)) && known.is_some_and(|r| r.of_fetching);
            let next = known.and_then(|r| r.next_try).filter(|_| !is_free);
            if let Some(next) = next.filter(|next| *next > self.now && *next <= far) {
                self.early.insert(key.clone(), next);
            }
        }
        let mut failed = BTreeSet::new();
        for (key, step) in &plan.steps {
            if failed.contains(key) {
                continue;
            }
            if self.failing.contains(key) {
                let is_pull = matches!(step, Step::Pull(_));
                *self.tries.entry((key.clone(), is_pull)).or_default() += 1;
                failed.insert(key.clone());
                let error = Error::new(Kind::Unavailable, "cannot do it");
                self.memory
                    .failed(key, self.now, *step, &error, &self.settings);
            } else {
                self.carry_out(key, *step);
                self.memory.succeeded(key, self.now, *step);
            }
        }
        self.memory
            .postpone(&plan.postponed, self.now, &self.settings);
        plan
    }

    fn carry_out(&mut self, key: &Key, step: Step) {
        let desired = self.desired.iter().find(|desired| desired.key() == *key);
        let desired = desired.expect("steps are for what is desired");
        let observed = self.observed.get_mut(key).expect("and observed");
        match step {
            Step::Recheck => assert!(observed.complete, "there is nothing to compare"),
            Step::Pin(pin) => observed.pinned = pin,
            Step::Trim => observed.previous.truncate(desired.keep_previous),
            Step::Pull(_) => {
                // The tag has moved.
                let before = observed.target.take();
                let next = before.as_ref().map_or("", |before| before.as_str());
                observed.target = Some(Digest::of(next.as_bytes()));
                observed.complete = true;
                observed.previous.splice(0..0, before);
                if self.thorough {
                    observed.pinned = desired.pin;
                    observed.previous.truncate(desired.keep_previous);
                }
            }
        }
    }

    fn is_right(&self, desired: &Desired) -> bool {
        let key = desired.key();
        let remembered = self.memory.get(&key);
        self.observed.get(&key).is_none_or(|observed| {
            observed.target.is_some()
                && observed.complete
                && observed.pinned == desired.pin
                && observed.previous.len() <= desired.keep_previous
                && !remembered.is_some_and(|remembered| remembered.recheck)
        })
    }

    pub(super) fn is_as_desired(&self) -> bool {
        self.desired.iter().all(|desired| self.is_right(desired))
    }

    pub(super) fn others_are_as_desired(&self) -> bool {
        let mut others = self.desired.iter();
        others.all(|desired| self.failing.contains(&desired.key()) || self.is_right(desired))
    }

    /// Whether an image has something to do, and no step now.
    pub(super) fn waits(&self, plan: &Plan) -> bool {
        self.desired.iter().any(|desired| {
            let key = desired.key();
            let observed = self.observed.contains_key(&key);
            let has_step = plan.steps.iter().any(|(other, _)| *other == key);
            let will = desired.refresh != Refresh::Never || !self.is_right(desired);
            observed && will && !has_step
        })
    }
}
