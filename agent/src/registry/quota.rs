//! What registries allow: read from their headers, remembered by registry, and kept to.
//!
//! There is no one form. Docker Hub writes `ratelimit-limit: 100;w=21600`, the drafts of
//! the IETF have three others, and older products `x-ratelimit-*`, some with a point in
//! time where others have seconds.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use reqwest::header::HeaderMap;

use super::{
    endpoint,
    failure::{Target, What},
    retry::{http_date, retry_after},
    transport::{Answer, Ask},
};
use crate::{error::Error, kind::Kind};

/// Registries remembered; beyond it everything is forgotten.
const MAX_REMEMBERED: usize = 256;
/// However long a registry asks to be left alone, it is asked again after this.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Larger numbers are points in time, not seconds from now.
const EPOCH: u64 = 1_000_000_000;

/// What a registry said last of how much it allows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quota {
    /// Requests in a window.
    pub limit: Option<u64>,
    /// Those that are left.
    pub remaining: Option<u64>,
    /// The length of the window.
    pub window: Option<Duration>,
    /// From the answer on.
    pub resets_in: Option<Duration>,
}

impl Quota {
    /// Reads whatever form the headers have; nothing if they have none.
    pub(super) fn read(headers: &HeaderMap) -> Option<Self> {
        let text = |names: &[&str]| {
            names
                .iter()
                .find_map(|name| headers.get(*name)?.to_str().ok())
        };
        let mut quota = Self::default();
        if let Some(value) = text(&["ratelimit"]) {
            quota.limit = parameter(value, &["limit"]);
            quota.remaining = parameter(value, &["r", "remaining"]);
            quota.resets_in = parameter(value, &["t", "reset"]).map(Duration::from_secs);
        }
        if let Some(value) = text(&["ratelimit-policy"]) {
            quota.limit = quota
                .limit
                .or_else(|| parameter(value, &["q"]))
                .or_else(|| leading(value));
            quota.window = parameter(value, &["w"]).map(Duration::from_secs);
        }
        if let Some(value) = text(&["ratelimit-limit", "x-ratelimit-limit"]) {
            quota.limit = quota.limit.or_else(|| leading(value));
            quota.window = quota
                .window
                .or_else(|| parameter(value, &["w"]).map(Duration::from_secs));
        }
        if let Some(value) = text(&["ratelimit-remaining", "x-ratelimit-remaining"]) {
            quota.remaining = quota.remaining.or_else(|| leading(value));
        }
        if let Some(value) = text(&["ratelimit-reset", "x-ratelimit-reset"]) {
            let reset = leading(value).map(|number| match number {
                EPOCH.. => Duration::from_secs(number.saturating_sub(now(headers))),
                seconds => Duration::from_secs(seconds),
            });
            quota.resets_in = quota.resets_in.or(reset);
        }
        (quota != Self::default()).then_some(quota)
    }

    /// `100 in 6 h, 0 left`.
    fn describe(&self) -> Option<String> {
        let mut parts = Vec::new();
        if let Some(limit) = self.limit {
            parts.push(match self.window {
                Some(window) => format!("{limit} requests in {}", span(window)),
                None => format!("{limit} requests"),
            });
        }
        if let Some(remaining) = self.remaining {
            parts.push(format!("{remaining} left"));
        }
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

/// The number that the value begins with.
fn leading(value: &str) -> Option<u64> {
    let value = value.trim_start();
    let end = value
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(value.len());
    value.get(..end)?.parse().ok()
}

/// The first parameter of one of these names: `;w=60`, `, reset=5`.
fn parameter(value: &str, names: &[&str]) -> Option<u64> {
    value.split([',', ';', ' ']).find_map(|part| {
        let (name, number) = part.trim().split_once('=')?;
        let known = names.iter().any(|known| name.eq_ignore_ascii_case(known));
        known.then(|| leading(number)).flatten()
    })
}

/// Seconds since 1970 by the registry's clock; by ours, which may be years off, only if it
/// does not say.
fn now(headers: &HeaderMap) -> u64 {
    let said = headers.get("date").and_then(|date| date.to_str().ok());
    let at = said
        .and_then(http_date)
        .unwrap_or_else(jiff::Timestamp::now);
    u64::try_from(at.as_second()).unwrap_or_default()
}

fn span(length: Duration) -> String {
    match length.as_secs() {
        seconds if seconds > 0 && seconds.is_multiple_of(3600) => format!("{} h", seconds / 3600),
        seconds if seconds > 0 && seconds.is_multiple_of(60) => format!("{} min", seconds / 60),
        seconds => format!("{seconds} s"),
    }
}

/// When to come back, as the registry said it, or as its quota says if that is used up.
pub(super) fn wait(headers: &HeaderMap) -> Option<Duration> {
    retry_after(headers).or_else(|| {
        let quota = Quota::read(headers)?;
        let used_up = quota.remaining.is_none_or(|left| left == 0);
        quota.resets_in.filter(|_| used_up)
    })
}

/// Whether asking again now is known to be in vain.
pub(super) fn is_used_up(headers: &HeaderMap) -> bool {
    Quota::read(headers).is_some_and(|quota| quota.remaining == Some(0))
}

/// A registry that wants to be left alone.
#[derive(Debug, Clone)]
struct Limited {
    until: Instant,
    /// By the registry's clock.
    at: Option<String>,
    quota: Option<Quota>,
    said: Option<String>,
}

impl Limited {
    fn of(headers: &HeaderMap, wait: Duration) -> Self {
        let wait = wait.min(LONGEST);
        let seconds = i64::try_from(now(headers).saturating_add(wait.as_secs())).ok();
        Self {
            until: Instant::now() + wait,
            at: seconds
                .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
                .map(|at| at.to_string()),
            quota: Quota::read(headers),
            said: None,
        }
    }
}

/// The quotas of a client's registries.
#[derive(Debug, Default)]
pub(super) struct Quotas {
    known: Mutex<HashMap<String, Quota>>,
    limited: Mutex<HashMap<String, Limited>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn insert<T>(map: &Mutex<HashMap<String, T>>, key: String, value: T) {
    let mut map = lock(map);
    if map.len() >= MAX_REMEMBERED {
        map.clear();
    }
    map.insert(key, value);
}

impl Quotas {
    /// Remembers what an answer says.
    pub(super) fn note(&self, ask: &Ask, answer: &Answer) {
        if !answer.elsewhere
            && !ask.target.is_token()
            && let Some(quota) = Quota::read(answer.headers())
        {
            insert(&self.known, endpoint::authority(&ask.url), quota);
        }
    }

    /// After the last answer to a request: a registry that said when to come back is not
    /// asked for manifests before that. Blobs count elsewhere, if they do.
    pub(super) fn keep_away(&self, ask: &Ask, answer: &Answer) {
        let manifest = matches!(ask.target.what, What::Manifest { .. });
        if answer.status().as_u16() == 429
            && manifest
            && !answer.elsewhere
            && let Some(wait) = wait(answer.headers())
            && !wait.is_zero()
        {
            let limited = Limited::of(answer.headers(), wait);
            insert(&self.limited, origin(ask), limited);
        }
    }

    /// What the registry's refusal says, once its body is read.
    pub(super) fn refused(&self, ask: &Ask, error: &Error) {
        if error.kind() == Kind::RateLimited
            && let Some(limited) = lock(&self.limited).get_mut(&origin(ask))
        {
            limited.said = error.causes().first().cloned();
        }
    }

    /// The error of a request that is not sent.
    pub(super) fn refusal(&self, ask: &Ask) -> Option<Error> {
        if !matches!(ask.target.what, What::Manifest { .. }) {
            return None;
        }
        let mut all = lock(&self.limited);
        let limited = all.get(&origin(ask))?.clone();
        let left = limited.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            all.remove(&origin(ask));
            return None;
        }
        let said = limited
            .said
            .clone()
            .unwrap_or_else(|| format!("{} answered 429", endpoint::authority(&ask.url)));
        let error = ask
            .target
            .error(Kind::RateLimited)
            .because(said)
            .because("that was to an earlier request; it is not asked again before its time");
        Some(hinted(error, &ask.target, &limited, left))
    }

    /// What the registries said last, by host.
    pub(super) fn all(&self) -> Vec<(String, Quota)> {
        let known = lock(&self.known);
        let mut all: Vec<_> = known
            .iter()
            .map(|(host, quota)| (host.clone(), *quota))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}

fn origin(ask: &Ask) -> String {
    ask.url.origin().ascii_serialization()
}

/// A 429: how much is allowed, and when to come back.
pub(super) fn limited(error: Error, target: &Target, headers: &HeaderMap) -> Error {
    if let Some(wait) = wait(headers) {
        return hinted(error, target, &Limited::of(headers, wait), wait);
    }
    let quota = Quota::read(headers);
    let allows = allows(target, quota);
    let latest = quota
        .and_then(|quota| quota.window)
        .map_or(String::new(), |window| {
            format!("; the count is over after {} at the latest", span(window))
        });
    error.hint(format_args!(
        "{allows}wait, or log in: logged-in users often have a higher limit{latest}"
    ))
}

fn hinted(error: Error, target: &Target, limited: &Limited, left: Duration) -> Error {
    let at = limited
        .at
        .as_deref()
        .map_or(String::new(), |at| format!(", until {at}"));
    error
        .hint(format_args!(
            "{}the registry asks to wait {} s{at}; logged-in users often have a higher limit",
            allows(target, limited.quota),
            left.as_secs()
        ))
        .after(Some(left))
}

fn allows(target: &Target, quota: Option<Quota>) -> String {
    quota
        .and_then(|quota| quota.describe())
        .map_or(String::new(), |text| {
            format!("{} allows {text}; ", target.registry)
        })
}

/// Reads each line as the value of one of the headers; for fuzzing and tests.
pub(super) fn fuzz(text: &str) {
    const NAMES: [&str; 8] = [
        "ratelimit",
        "ratelimit-policy",
        "ratelimit-limit",
        "ratelimit-remaining",
        "ratelimit-reset",
        "x-ratelimit-reset",
        "retry-after",
        "date",
    ];
    let headers: HeaderMap = NAMES
        .iter()
        .zip(text.lines())
        .filter_map(|(name, line)| {
            let value = reqwest::header::HeaderValue::from_str(line).ok()?;
            Some((reqwest::header::HeaderName::from_static(name), value))
        })
        .collect();
    let _ = wait(&headers);
    let _ = is_used_up(&headers);
    let _ = Quota::read(&headers).map(|quota| quota.describe());
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    #[test]
    fn every_form_is_read() {
        let secs = Duration::from_secs;
        let full = |limit, remaining, window: Option<u64>, reset: Option<u64>| {
            Some(Quota {
                limit,
                remaining,
                window: window.map(secs),
                resets_in: reset.map(secs),
            })
        };
        for (pairs, quota) in [
            // Docker Hub.
            (
                &[
                    ("ratelimit-limit", "100;w=21600"),
                    ("ratelimit-remaining", "76;w=21600"),
                ][..],
                full(Some(100), Some(76), Some(21600), None),
            ),
            // The drafts, oldest first.
            (
                &[
                    ("ratelimit-limit", "100, 100;w=60"),
                    ("ratelimit-remaining", "0"),
                    ("ratelimit-reset", "30"),
                ],
                full(Some(100), Some(0), Some(60), Some(30)),
            ),
            (
                &[("ratelimit", "limit=100, remaining=50, reset=5")],
                full(Some(100), Some(50), None, Some(5)),
            ),
            (
                &[
                    ("ratelimit-policy", "\"default\";q=100;w=10"),
                    ("ratelimit", "\"default\";r=50;t=30"),
                ],
                full(Some(100), Some(50), Some(10), Some(30)),
            ),
            // A point in time, measured by the registry's own clock.
            (
                &[
                    ("x-ratelimit-limit", "60"),
                    ("x-ratelimit-remaining", "1"),
                    ("x-ratelimit-reset", "1700000060"),
                    ("date", "Tue, 14 Nov 2023 22:13:20 GMT"),
                ],
                full(Some(60), Some(1), None, Some(60)),
            ),
            (&[("ratelimit-limit", "many")], None),
            (&[("ratelimit-remaining", "-1")], None),
            (&[("ratelimit-reset", "99999999999999999999")], None),
            (&[("date", "today")], None),
        ] {
            assert_eq!(Quota::read(&headers(pairs)), quota, "{pairs:?}");
        }
    }

    #[test]
    fn the_wait_is_the_servers_word_or_the_end_of_a_used_up_quota() {
        let wait_of = |pairs: &[_]| wait(&headers(pairs)).map(|wait| wait.as_secs());
        assert_eq!(
            wait_of(&[("retry-after", "7"), ("ratelimit-reset", "9")]),
            Some(7)
        );
        assert_eq!(wait_of(&[("ratelimit-reset", "9")]), Some(9));
        let some_left = [("ratelimit-remaining", "3"), ("ratelimit-reset", "9")];
        assert_eq!(wait_of(&some_left), None);
        assert_eq!(wait_of(&[]), None);
    }

    proptest::proptest! {
        #[test]
        fn any_value_is_read_or_ignored(
            values in proptest::collection::vec("[ -~]{0,40}", 8),
        ) {
            fuzz(&values.join("\n"));
        }
    }
}
