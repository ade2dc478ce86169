//! What went to and came from each registry, for whoever keeps the books.
//!
//! Everything is counted under the registry that the reference names, whoever answers for
//! it: mirrors and the places that registries redirect to are too many to be told apart.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A server answered with this status; `None`: nobody answered.
type Code = Option<u16>;

/// Whose bytes they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The registry's own, or from where it sends us.
    Registry,
    /// A mirror's, as the configuration has it.
    Mirror,
}

impl Origin {
    /// As dashboards know it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::Mirror => "mirror",
        }
    }
}

/// What one client counted so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests by registry and the answer's status; `None` is one without an answer.
    /// Redirects and retries are requests, too; those to token servers are left out.
    pub requests: BTreeMap<(String, Code), u64>,
    /// Bytes of manifests, configs and layers that came.
    pub bytes: BTreeMap<(String, Origin), u64>,
}

fn add<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K, count: u64) {
    let sum = counts.entry(key).or_default();
    *sum = sum.saturating_add(count);
}

/// The books of one client, shared by all its requests.
#[derive(Debug, Clone, Default)]
pub(super) struct Counters(Arc<Mutex<Counts>>);

impl Counters {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn request(&self, registry: &str, code: Code) {
        add(&mut self.counts().requests, (registry.to_owned(), code), 1);
    }

    /// For the body of one answer.
    pub(super) fn meter(&self, registry: &str, origin: Origin) -> Meter {
        Meter {
            counters: self.clone(),
            key: (registry.to_owned(), origin),
        }
    }

    pub(super) fn snapshot(&self) -> Counts {
        self.counts().clone()
    }
}

/// Counts the bytes of one body.
#[derive(Debug, Clone)]
pub(super) struct Meter {
    counters: Counters,
    key: (String, Origin),
}

impl Meter {
    pub(super) fn came(&self, bytes: usize) {
        let mut counts = self.counters.counts();
        match counts.bytes.get_mut(&self.key) {
            Some(sum) => *sum = sum.saturating_add(bytes as u64),
            None => {
                counts.bytes.insert(self.key.clone(), bytes as u64);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_by_registry_adds_up() {
        let one = Counters::default();
        one.request("a.example", Some(200));
        one.request("a.example", None);
        one.meter("a.example", Origin::Mirror).came(5);
        let other = one.clone();
        other.request("a.example", Some(200));
        other.request("b.example", Some(404));
        let meter = other.meter("a.example", Origin::Mirror);
        meter.came(2);
        meter.came(1);
        other.meter("a.example", Origin::Registry).came(7);
        let key = |registry: &str, code| (registry.to_owned(), code);
        assert_eq!(
            one.snapshot(),
            Counts {
                requests: [
                    (key("a.example", None), 1),
                    (key("a.example", Some(200)), 2),
                    (key("b.example", Some(404)), 1),
                ]
                .into(),
                bytes: [
                    (("a.example".to_owned(), Origin::Registry), 7),
                    (("a.example".to_owned(), Origin::Mirror), 8),
                ]
                .into(),
            }
        );
    }
}
