//! What went to and came from each registry, for whoever keeps the books.
//!
//! Everything is counted under the registry that the reference names, whoever answers for
//! it: mirrors and the places that registries redirect to are too many to be told apart.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

/// A count for each pair of labels.
type Rows = BTreeMap<(String, String), u64>;

/// What one client counted so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Requests by registry and the answer's status, or `error` where nobody answered.
    /// Redirects and retries are requests, too; those to token servers are left out.
    #[serde(with = "rows")]
    pub requests: Rows,
    /// Bytes of manifests, configs and layers that came, by registry and by who sent them:
    /// `mirror`, as the configuration has it, or `registry`.
    #[serde(with = "rows")]
    pub bytes: Rows,
    /// Bytes that did not have to come again, because a transfer went on where an earlier
    /// one had ended.
    pub resumed: u64,
}

impl Counts {
    /// Adds what another client counted.
    pub fn merge(&mut self, other: &Self) {
        for (key, count) in &other.requests {
            add(&mut self.requests, key, *count);
        }
        for (key, count) in &other.bytes {
            add(&mut self.bytes, key, *count);
        }
        self.resumed = self.resumed.saturating_add(other.resumed);
    }

    /// What came to it since the same client had counted `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let less = |now: &Rows, before: &Rows| -> Rows {
            now.iter()
                .map(|(key, count)| {
                    let known = before.get(key).copied().unwrap_or_default();
                    (key.clone(), count.saturating_sub(known))
                })
                .filter(|(_, count)| *count > 0)
                .collect()
        };
        Self {
            requests: less(&self.requests, &before.requests),
            bytes: less(&self.bytes, &before.bytes),
            resumed: self.resumed.saturating_sub(before.resumed),
        }
    }
}

/// JSON has no map with two keys: a list of rows.
mod rows {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Rows;

    pub(super) fn serialize<S: Serializer>(map: &Rows, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(rows: D) -> Result<Rows, D::Error> {
        Ok(Vec::deserialize(rows)?.into_iter().collect())
    }
}

fn add(counts: &mut Rows, key: &(String, String), count: u64) {
    match counts.get_mut(key) {
        Some(sum) => *sum = sum.saturating_add(count),
        None => {
            counts.insert(key.clone(), count);
        }
    }
}

/// The books of one client, shared by all its requests.
#[derive(Debug, Clone, Default)]
pub(super) struct Counters(Arc<Mutex<Counts>>);

impl Counters {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `code` is the status of the answer, if there was one.
    pub(super) fn request(&self, registry: &str, code: Option<u16>) {
        let code = code.map_or_else(|| "error".to_owned(), |code| code.to_string());
        add(&mut self.counts().requests, &(registry.to_owned(), code), 1);
    }

    pub(super) fn resumed(&self, bytes: u64) {
        let mut counts = self.counts();
        counts.resumed = counts.resumed.saturating_add(bytes);
    }

    /// For the body of one answer.
    pub(super) fn meter(&self, registry: &str, mirror: bool) -> Meter {
        let source = if mirror { "mirror" } else { "registry" };
        Meter {
            counters: self.clone(),
            key: (registry.to_owned(), source.to_owned()),
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
    key: (String, String),
}

impl Meter {
    pub(super) fn came(&self, bytes: usize) {
        add(&mut self.counters.counts().bytes, &self.key, bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_of_several_clients_add_up_and_travel() {
        let one = Counters::default();
        one.request("a.example", Some(200));
        one.request("a.example", None);
        one.meter("a.example", true).came(5);
        one.resumed(3);
        let other = Counters::default();
        other.request("a.example", Some(200));
        other.request("b.example", Some(404));
        let meter = other.meter("a.example", true);
        meter.came(2);
        meter.came(1);
        other.meter("a.example", false).came(7);
        let before = one.snapshot();
        let mut sum = before.clone();
        sum.merge(&other.snapshot());
        let key = |registry: &str, label: &str| (registry.to_owned(), label.to_owned());
        assert_eq!(
            sum,
            Counts {
                requests: [
                    (key("a.example", "error"), 1),
                    (key("a.example", "200"), 2),
                    (key("b.example", "404"), 1),
                ]
                .into(),
                bytes: [
                    (key("a.example", "registry"), 7),
                    (key("a.example", "mirror"), 8),
                ]
                .into(),
                resumed: 3,
            }
        );
        assert_eq!(sum.since(&before), other.snapshot());
        assert_eq!(sum.since(&sum), Counts::default());
        let text = serde_json::to_string(&sum).expect("plain data");
        let back: Counts = serde_json::from_str(&text).expect("the same");
        assert_eq!(back, sum, "{text}");
    }
}
