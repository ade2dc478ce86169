//! Which servers failed a moment ago: a circuit breaker for each, shared by all
//! repositories of a client. A dead mirror is found out once, not once per layer.
//!
//! Only servers that another one follows are ever passed over (`asking`).

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::notices::Notices;

/// A server is left out for so long, twice as long after each vain try, up to the limit.
const PAUSE: Duration = Duration::from_secs(2 * 60);
const LONGEST_PAUSE: Duration = Duration::from_secs(16 * 60);
/// Servers remembered; beyond it everything is forgotten, which costs a try.
const MAX_REMEMBERED: usize = 256;
/// A failure that says all: nobody listens, nothing comes, the gateway knows no server.
pub(super) const DEAD: u32 = 3;
/// A failure that may concern one request only.
pub(super) const ODD: u32 = 1;

/// What a server makes of the `ns` parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Namespaced {
    #[default]
    Unknown,
    /// It answered with content.
    Yes,
    /// It did so only without.
    No,
}

#[derive(Debug, Default)]
struct State {
    /// Weight of the failures since the last answer.
    failures: u32,
    /// Pauses in a row.
    pauses: u32,
    until: Option<Instant>,
    why: String,
    /// The user knows that it is left out.
    told: bool,
    namespaced: Namespaced,
}

/// The breakers by origin.
#[derive(Debug, Default)]
pub(super) struct Health {
    states: Mutex<HashMap<String, State>>,
    notices: Notices,
}

impl Health {
    pub(super) fn new(notices: Notices) -> Self {
        Self {
            states: Mutex::default(),
            notices,
        }
    }

    /// Whether the server may be asked although another could be; else why not. After a
    /// pause the first who asks is the one to try, and the others go on passing it over.
    pub(super) fn allows(&self, origin: &str) -> Result<(), String> {
        self.allows_at(origin, Instant::now())
    }

    fn allows_at(&self, origin: &str, now: Instant) -> Result<(), String> {
        let mut states = self.lock();
        let Some(state) = states.get_mut(origin) else {
            return Ok(());
        };
        match state.until {
            Some(until) if now < until => {
                if !state.told {
                    state.told = true;
                    self.notices.say(format!(
                        "the mirror {origin} is left out for some minutes: {}",
                        state.why
                    ));
                }
                Err(state.why.clone())
            }
            Some(_) => {
                state.pauses = state.pauses.saturating_add(1);
                state.until = Some(now + pause(state.pauses));
                state.told = false;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// It answered.
    pub(super) fn good(&self, origin: &str) {
        if let Some(state) = self.lock().get_mut(origin) {
            state.failures = 0;
            state.pauses = 0;
            state.until = None;
        }
    }

    /// It failed, in the words of `why`. `wait` is its own word for how long.
    pub(super) fn bad(&self, origin: &str, weight: u32, wait: Option<Duration>, why: &str) {
        if self.bad_at(origin, weight, wait, why, Instant::now()) {
            tracing::debug!(
                origin,
                why,
                "left out for some minutes where there is another"
            );
        }
    }

    fn bad_at(
        &self,
        origin: &str,
        weight: u32,
        wait: Option<Duration>,
        why: &str,
        now: Instant,
    ) -> bool {
        let mut states = self.lock();
        if states.len() >= MAX_REMEMBERED && !states.contains_key(origin) {
            states.clear();
        }
        let state = states.entry(origin.to_owned()).or_default();
        state.failures = state.failures.saturating_add(weight);
        why.clone_into(&mut state.why);
        if state.failures < DEAD {
            return false;
        }
        if let Some(until) = state.until.filter(|until| now < *until) {
            let longer = wait.map_or(until, |wait| now + wait.min(LONGEST_PAUSE));
            state.until = Some(until.max(longer));
            return false;
        }
        state.pauses = state.pauses.saturating_add(1);
        state.told = false;
        let own = wait.map(|wait| wait.min(LONGEST_PAUSE));
        state.until = Some(now + own.unwrap_or_else(|| pause(state.pauses)));
        true
    }

    pub(super) fn namespaced(&self, origin: &str) -> Namespaced {
        self.lock()
            .get(origin)
            .map_or(Namespaced::Unknown, |state| state.namespaced)
    }

    pub(super) fn set_namespaced(&self, origin: &str, namespaced: Namespaced) {
        let mut states = self.lock();
        states.entry(origin.to_owned()).or_default().namespaced = namespaced;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The length of the so-manieth pause in a row, from 1.
fn pause(number: u32) -> Duration {
    PAUSE
        .saturating_mul(2_u32.saturating_pow(number.saturating_sub(1).min(8)))
        .min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "https://a.example";

    #[test]
    fn a_dead_server_is_left_out_and_tried_again_by_one() {
        let health = Health::default();
        let start = Instant::now();
        assert!(health.allows_at(A, start).is_ok());
        assert!(health.bad_at(A, DEAD, None, "refused", start));
        assert_eq!(health.allows_at(A, start), Err("refused".to_owned()));
        assert!(health.allows("https://b.example").is_ok());
        let later = start + PAUSE;
        assert!(health.allows_at(A, later).is_ok(), "half open");
        assert!(health.allows_at(A, later).is_err(), "for one only");
        // In vain: the next pause is longer.
        health.bad_at(A, DEAD, None, "refused", later);
        assert!(health.allows_at(A, later + PAUSE).is_err());
        let much_later = later + 2 * PAUSE;
        assert!(health.allows_at(A, much_later).is_ok());
        health.good(A);
        assert!(health.allows_at(A, much_later).is_ok());
        assert!(health.allows_at(A, much_later).is_ok());
    }

    #[test]
    fn odd_failures_count_only_in_a_row() {
        let health = Health::default();
        let now = Instant::now();
        for _ in 0..5 {
            assert!(!health.bad_at(A, ODD, None, "500", now));
            assert!(!health.bad_at(A, ODD, None, "500", now));
            health.good(A);
        }
        health.bad_at(A, ODD, None, "500", now);
        health.bad_at(A, ODD, None, "500", now);
        assert!(health.bad_at(A, ODD, None, "500", now));
        assert!(health.allows_at(A, now).is_err());
    }

    #[test]
    fn the_servers_own_word_counts_within_bounds() {
        let health = Health::default();
        let now = Instant::now();
        health.bad_at(A, DEAD, Some(Duration::from_secs(5)), "429", now);
        assert!(health.allows_at(A, now + Duration::from_secs(4)).is_err());
        assert!(health.allows_at(A, now + Duration::from_secs(5)).is_ok());
        health.good(A);
        health.bad_at(A, DEAD, Some(Duration::from_secs(1 << 40)), "429", now);
        assert!(health.allows_at(A, now + LONGEST_PAUSE).is_ok());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let health = Health::default();
        for at in 0..10 * MAX_REMEMBERED {
            health.bad(&format!("https://{at}.example"), ODD, None, "");
        }
        assert!(health.lock().len() <= MAX_REMEMBERED);
    }
}
