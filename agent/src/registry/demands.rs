//! What servers demanded of those who asked them, so that nobody is refused twice.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    auth::Subject,
    challenge::{Bearer, Challenge},
};

/// Repositories remembered; beyond it everything is forgotten and asked for anew.
pub(super) const MAX_REMEMBERED: usize = 1024;

/// What a server demanded for a repository.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) challenge: Challenge,
    /// The stored credentials were refused, and nobody's were accepted.
    pub(super) anonymous: bool,
}

/// The demands that one client has met.
#[derive(Default)]
pub(super) struct Demands {
    /// By origin and repository.
    known: Mutex<HashMap<(String, Arc<str>), Known>>,
    /// By origin, what it demanded last for whatever repository.
    usual: Mutex<HashMap<String, Challenge>>,
}

impl Demands {
    pub(super) fn of(&self, subject: &Subject) -> Option<Known> {
        lock(&self.known).get(&key(subject)).cloned()
    }

    /// What the server wants as a rule; a scope is not in it, which is one repository's.
    pub(super) fn usual(&self, origin: &str) -> Option<Challenge> {
        lock(&self.usual).get(origin).cloned()
    }

    pub(super) fn remember(&self, subject: &Subject, challenge: &Challenge, anonymous: bool) {
        if !anonymous {
            let usual = match challenge {
                Challenge::Basic => Challenge::Basic,
                Challenge::Bearer(bearer) => Challenge::Bearer(Bearer {
                    scope: None,
                    ..bearer.clone()
                }),
            };
            put(&self.usual, subject.origin.clone(), usual);
        }
        let known = Known {
            challenge: challenge.clone(),
            anonymous,
        };
        put(&self.known, key(subject), known);
    }

    /// Stored credentials were refused and an anonymous request was not: they are not
    /// presented for other repositories before they are asked for.
    pub(super) fn anonymous_helped(&self, subject: &Subject) {
        lock(&self.usual).remove(&subject.origin);
        if let Some(known) = lock(&self.known).get_mut(&key(subject)) {
            known.anonymous = true;
        }
    }
}

fn key(subject: &Subject) -> (String, Arc<str>) {
    (subject.origin.clone(), subject.path.clone())
}

fn put<K: std::hash::Hash + Eq, V>(map: &Mutex<HashMap<K, V>>, key: K, value: V) {
    let mut map = lock(map);
    if map.len() >= MAX_REMEMBERED {
        map.clear();
    }
    map.insert(key, value);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
