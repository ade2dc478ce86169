//! When to ask again, and how long to wait before.
//!
//! Only blips are bridged here. Longer outages are for who schedules the pull: an
//! error says whether a retry may help, and when.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest::{StatusCode, header::HeaderMap};

use super::quota;
use crate::oci::Digest;

/// How patient one request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Requests in all, the first one included.
    pub tries: u32,
    /// The wait before the first retry; each further one is three times as long.
    pub base: Duration,
    /// The longest wait in all; a `Retry-After` beyond it ends the request.
    pub patience: Duration,
}

/// Enough for a lost packet, a restarting proxy and a busy second.
const TRIES: u32 = 3;
const BASE: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest single wait that is ours; a `Retry-After` may be longer.
const STEP: Duration = Duration::from_secs(20);
/// A try may itself take a minute to time out; after this there is no other.
const LONGEST: Duration = Duration::from_secs(90);
/// A blob has more tries, and three times the patience. One that had made progress has as
/// many more again and twice that patience: what is here is worth waiting for a link that
/// comes back.
const MORE_TRIES: u32 = 2;
/// Retries of all requests of one pull since anything of it last made progress. Layers
/// that are fetched at once must not each use up all their tries on a dead server.
const FRUITLESS: u32 = 16;
/// Bytes that count as progress, and give a blob its tries back. Fewer do not: a server
/// that sends one byte for each connection would be asked for ever.
const PROGRESS: u64 = 64 << 10;
/// The same for a blob that is hardly larger; 1 % of the blob lies between the two.
const LEAST_PROGRESS: u64 = 1 << 10;
/// Answers from the start to a request for a part, before a server counts as one that
/// cannot do parts.
const IGNORED_RANGES: u32 = 2;

impl Default for Policy {
    fn default() -> Self {
        Self {
            tries: TRIES,
            base: BASE,
            patience: PATIENCE,
        }
    }
}

impl Policy {
    /// For blobs.
    fn patient(self) -> Self {
        Self {
            tries: self.tries.saturating_add(MORE_TRIES),
            patience: self.patience.saturating_mul(3),
            ..self
        }
    }
}

/// How many bytes of a blob of `size` count as progress.
pub(super) fn progress(size: u64) -> u64 {
    (size / 100).clamp(LEAST_PROGRESS, PROGRESS)
}

/// What the requests of one pull have in common.
#[derive(Debug, Default)]
pub(super) struct Effort {
    fruitless: AtomicU32,
    /// By origin: how often it answered a request for a part with the whole.
    ignored: Mutex<HashMap<String, u32>>,
    /// Blobs that were put together from several answers.
    pieced: Mutex<BTreeSet<Digest>>,
    /// A manifest was served: whoever asks may see the repository.
    admitted: std::sync::atomic::AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Effort {
    pub(super) fn range_ignored(&self, origin: &str) {
        *lock(&self.ignored).entry(origin.to_owned()).or_default() += 1;
    }

    /// Going on from the middle would fetch everything before it again, each time.
    pub(super) fn cannot_resume(&self, origin: &str) -> bool {
        lock(&self.ignored)
            .get(origin)
            .is_some_and(|times| *times >= IGNORED_RANGES)
    }

    pub(super) fn begin(&self, digest: &Digest) {
        lock(&self.pieced).remove(digest);
    }

    pub(super) fn piece(&self, digest: &Digest) {
        lock(&self.pieced).insert(digest.clone());
    }

    pub(super) fn is_pieced(&self, digest: &Digest) -> bool {
        lock(&self.pieced).contains(digest)
    }

    pub(super) fn admit(&self) {
        self.admitted.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_admitted(&self) -> bool {
        self.admitted.load(Ordering::Relaxed)
    }
}

/// What a failure says about asking again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Advice {
    Never,
    /// Nobody listens, or no such name: waiting longer within a call rarely helps.
    Quick,
    Backoff,
    /// The server's own word.
    After(Duration),
}

/// What is left of a request's patience. One value serves a request with all its
/// redirects, token rounds and body; a blob with all its requests.
#[derive(Debug)]
pub(super) struct Budget {
    policy: Policy,
    effort: Arc<Effort>,
    /// Bytes have come over this way: a refused connection is an outage, not an address
    /// that was never right.
    proven: bool,
    retries: u32,
    quick: u32,
    waited: Duration,
    started: Instant,
}

impl Budget {
    pub(super) fn new(policy: Policy, effort: Arc<Effort>) -> Self {
        Self {
            policy,
            effort,
            proven: false,
            retries: 0,
            quick: 0,
            waited: Duration::ZERO,
            started: Instant::now(),
        }
    }

    /// For a blob: one value for all that it takes to fetch it.
    pub(super) fn for_blob(policy: Policy, effort: Arc<Effort>) -> Self {
        Self::new(policy.patient(), effort)
    }

    /// What was spent was not in vain.
    pub(super) fn renew(&mut self) {
        self.effort.fruitless.store(0, Ordering::Relaxed);
        *self = Self {
            proven: true,
            ..Self::new(self.policy, self.effort.clone())
        };
    }

    /// The wait before the next try, or nothing if this was the last.
    pub(super) fn grant(&mut self, advice: Advice) -> Option<Duration> {
        let longest = if self.proven { LONGEST * 2 } else { LONGEST };
        if self.started.elapsed() >= longest {
            return None;
        }
        self.grant_with(advice, RandomState::new().hash_one(self.retries))
    }

    /// As `grant`, with the randomness given.
    fn grant_with(&mut self, advice: Advice, random: u64) -> Option<Duration> {
        let (tries, patience) = if self.proven {
            (
                self.policy.tries.saturating_add(MORE_TRIES),
                self.policy.patience.saturating_mul(2),
            )
        } else {
            (self.policy.tries, self.policy.patience)
        };
        if self.retries.saturating_add(1) >= tries
            || self.effort.fruitless.load(Ordering::Relaxed) >= FRUITLESS
        {
            return None;
        }
        let advice = match advice {
            Advice::Quick if self.proven => Advice::Backoff,
            advice => advice,
        };
        let wait = match advice {
            Advice::Never => return None,
            Advice::Quick if self.quick > 0 => return None,
            Advice::Quick => {
                self.quick += 1;
                jittered(self.policy.base, random)
            }
            Advice::Backoff => {
                let step = self
                    .policy
                    .base
                    .saturating_mul(3_u32.saturating_pow(self.retries));
                jittered(step.min(STEP), random)
            }
            // Jitter on top: a fleet told the same second must not come back in it.
            Advice::After(wait) => wait.saturating_add(jittered(self.policy.base, random)),
        };
        let waited = self.waited.saturating_add(wait);
        if waited > patience {
            return None;
        }
        self.waited = waited;
        self.retries += 1;
        self.effort.fruitless.fetch_add(1, Ordering::Relaxed);
        Some(wait)
    }
}

/// Between half of `wait` and all of it.
fn jittered(wait: Duration, random: u64) -> Duration {
    let half = wait / 2;
    let span = u64::try_from(half.as_millis()).unwrap_or(u64::MAX);
    half.saturating_add(Duration::from_millis(random % span.saturating_add(1)))
}

/// What an HTTP status says about asking again. 5xx to HEAD are not retried: some
/// registries cannot do HEAD, and the GET that follows has retries of its own.
pub(super) fn advice(status: StatusCode, headers: &HeaderMap, head: bool) -> Advice {
    let transient = match status.as_u16() {
        408 | 425 | 429 => true,
        // The second row is what content delivery networks say of their origin.
        500 | 502 | 503 | 504 | 520..=530 => !head,
        _ => false,
    };
    if !transient {
        return Advice::Never;
    }
    let limited = status.as_u16() == 429;
    let wait = if limited {
        quota::wait(headers)
    } else {
        retry_after(headers)
    };
    match wait {
        Some(wait) => Advice::After(wait),
        // The window is hours long, and the registry does not say how far it is.
        None if limited && quota::is_used_up(headers) => Advice::Never,
        None => Advice::Backoff,
    }
}

/// `Retry-After` in seconds or as a date. A date is measured against the answer's own
/// `Date`, because the clock of a small device may be years off.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let value = text("retry-after")?.trim();
    if let Ok(seconds) = value.parse::<u32>() {
        return Some(Duration::from_secs(u64::from(seconds)));
    }
    let until = http_date(value)?;
    let now = text("date")
        .and_then(http_date)
        .unwrap_or_else(jiff::Timestamp::now);
    let seconds = until.as_second().saturating_sub(now.as_second());
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

pub(super) fn http_date(text: &str) -> Option<jiff::Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(text.trim())
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    reqwest::header::HeaderName::from_static(name),
                    reqwest::header::HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    fn budget(policy: Policy) -> Budget {
        Budget::new(policy, Arc::default())
    }

    #[test]
    fn a_blob_has_more_tries_and_progress_gives_them_back() {
        let mut budget = Budget::for_blob(Policy::default(), Arc::default());
        let retries = |budget: &mut Budget| {
            let grants = std::iter::from_fn(|| budget.grant_with(Advice::Quick, 0));
            grants.count()
        };
        assert_eq!(retries(&mut budget), 1);
        budget.renew();
        // Now it is known that somebody is there.
        assert_eq!(retries(&mut budget), 6);
        assert_eq!(retries(&mut budget), 0);
        budget.renew();
        let waits: Duration =
            std::iter::from_fn(|| budget.grant_with(Advice::Backoff, u64::MAX)).sum();
        assert!(waits >= Duration::from_secs(28) && waits <= Duration::from_secs(60));
    }

    #[test]
    fn the_requests_of_a_pull_share_what_is_fruitless() {
        let effort: Arc<Effort> = Arc::default();
        let mut granted = 0;
        for _ in 0..100 {
            let mut budget = Budget::for_blob(Policy::default(), effort.clone());
            while budget.grant_with(Advice::Backoff, 0).is_some() {
                granted += 1;
            }
        }
        assert_eq!(granted, FRUITLESS);
        let mut other = Budget::for_blob(Policy::default(), effort);
        assert_eq!(other.grant_with(Advice::Backoff, 0), None);
        other.renew();
        assert!(other.grant_with(Advice::Backoff, 0).is_some());
    }

    #[test]
    fn progress_is_a_share_of_the_blob_within_bounds() {
        assert_eq!(progress(0), 1 << 10);
        assert_eq!(progress(1 << 20), 10485);
        assert_eq!(progress(u64::MAX), 64 << 10);
    }

    #[test]
    fn waits_grow_and_end() {
        let mut budget = budget(Policy::default());
        let first = budget.grant_with(Advice::Backoff, u64::MAX).expect("one");
        let second = budget.grant_with(Advice::Backoff, 0).expect("two");
        assert!(first >= BASE / 2 && first <= BASE, "{first:?}");
        assert!(second >= BASE, "{second:?}");
        assert_eq!(budget.grant_with(Advice::Backoff, 0), None);
    }

    #[test]
    fn refusals_get_one_quick_retry() {
        let mut budget = budget(Policy::default());
        assert!(budget.grant(Advice::Quick).is_some());
        assert_eq!(budget.grant(Advice::Quick), None);
        assert_eq!(budget.grant(Advice::Never), None);
    }

    #[test]
    fn a_long_retry_after_is_not_waited_for() {
        let mut budget = budget(Policy::default());
        assert_eq!(budget.grant(Advice::After(Duration::from_secs(60))), None);
        let wait = budget
            .grant(Advice::After(Duration::from_secs(2)))
            .expect("short");
        assert!(wait >= Duration::from_secs(2) && wait < Duration::from_secs(3));
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        assert_eq!(
            retry_after(&headers(&[("retry-after", "7")])),
            Some(Duration::from_secs(7))
        );
        assert_eq!(
            retry_after(&headers(&[
                ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"),
                ("date", "Sun, 06 Nov 1994 08:49:07 GMT"),
            ])),
            Some(Duration::from_secs(30))
        );
        assert_eq!(
            retry_after(&headers(&[(
                "retry-after",
                "Sun, 06 Nov 1994 08:49:37 GMT"
            )])),
            Some(Duration::ZERO)
        );
        assert_eq!(retry_after(&headers(&[("retry-after", "soon")])), None);
    }

    #[test]
    fn statuses_are_told_apart() {
        let none = HeaderMap::new();
        let after = |code, head| advice(StatusCode::from_u16(code).expect("a code"), &none, head);
        assert_eq!(after(503, false), Advice::Backoff);
        assert_eq!(after(503, true), Advice::Never);
        assert_eq!(after(429, true), Advice::Backoff);
        assert_eq!(after(404, false), Advice::Never);
        assert_eq!(after(501, false), Advice::Never);
    }

    proptest::proptest! {
        #[test]
        fn the_total_wait_stays_in_bounds(after in 0_u64..20, randoms in proptest::collection::vec(proptest::num::u64::ANY, 0..20)) {
            let mut budget = budget(Policy { tries: 10, ..Policy::default() });
            let mut total = Duration::ZERO;
            for (at, random) in randoms.into_iter().enumerate() {
                let advice = if at % 2 == 0 { Advice::Backoff } else { Advice::After(Duration::from_secs(after)) };
                total += budget.grant_with(advice, random).unwrap_or_default();
            }
            proptest::prop_assert!(total <= PATIENCE);
        }
    }
}
