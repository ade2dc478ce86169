//! How long an image that failed is left alone.

use std::time::Duration;

use super::Jitter;
use crate::error::Error;

/// A restarting registry or a flapping link is back after it.
const FIRST: Duration = Duration::from_secs(10);
/// What is mended by a person is noticed within it; a fleet that all fails asks a registry
/// no more than this often.
const LONGEST: Duration = Duration::from_secs(30 * 60);
/// A clock that is set makes everything right at once, and nobody tells us.
const CLOCK: Duration = Duration::from_secs(5 * 60);
/// However long a registry asks to be left alone, it is asked again after this.
const LONGEST_ASKED: Duration = Duration::from_secs(24 * 3600);
/// More than this on top of what a registry asked for spreads a fleet no better.
const SPREAD_ASKED: Duration = Duration::from_secs(5 * 60);

/// Waits that double, from the first to the longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: FIRST,
            longest: LONGEST,
        }
    }
}

impl Backoff {
    /// No [`Backoff::wait`] is longer.
    pub const MOST: Duration = LONGEST_ASKED.saturating_add(SPREAD_ASKED);

    /// The longest wait where only the clock is wrong.
    pub fn for_clock(&self) -> Duration {
        self.longest.min(CLOCK)
    }

    /// The wait after failure number `failures` (from 1) of `image`: between half of its
    /// step and all of it, by host, image and number. Where the far side asked for longer
    /// that counts, and a spread on top, since it asked the whole fleet. `clock` says that
    /// the clock is known to be wrong.
    pub fn wait(
        &self,
        failures: u32,
        error: &Error,
        clock: bool,
        jitter: &Jitter,
        image: &str,
    ) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let step = self.first.saturating_mul(1 << doublings).min(self.longest);
        let step = if clock {
            // Most tries are in vain, the first ones, too.
            self.for_clock()
        } else if error.is_of_clock() {
            step.min(self.for_clock())
        } else {
            step
        };
        let place = jitter.fraction(&format!("{image} {failures}"));
        let own = step / 2 + (step / 2).mul_f64(place);
        let Some(asked) = error.retry_after().filter(|asked| *asked > own) else {
            return own;
        };
        let asked = asked.min(LONGEST_ASKED);
        let spread = (asked / 10).clamp(self.first.min(SPREAD_ASKED), SPREAD_ASKED);
        asked + spread.mul_f64(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kind::Kind, redact::Secret};

    fn jitter() -> Jitter {
        Jitter::new(Secret::new("m"), None)
    }

    fn error() -> Error {
        Error::new(Kind::Unavailable, "cannot fetch")
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn waits_double_up_to_half_an_hour() {
        let backoff = Backoff::default();
        for (failures, step) in [
            (1, 10),
            (2, 20),
            (3, 40),
            (8, 1280),
            (9, 1800),
            (u32::MAX, 1800),
        ] {
            let wait = backoff.wait(failures, &error(), false, &jitter(), "r/a:1");
            let step = seconds(step);
            assert!(wait >= step / 2 && wait <= step, "{failures}: {wait:?}");
        }
        let wait = |image| backoff.wait(3, &error(), false, &jitter(), image);
        assert_ne!(wait("r/a:1"), wait("r/b:1"));
    }

    #[test]
    fn a_registrys_word_counts_where_it_is_longer() {
        let backoff = Backoff::default();
        let wait = |asked, failures| {
            let error = error().after(Some(seconds(asked)));
            backoff.wait(failures, &error, false, &jitter(), "r/a:1")
        };
        assert!(wait(3600, 1) >= seconds(3600) && wait(3600, 1) < seconds(3900));
        assert!(wait(60, 1) >= seconds(60) && wait(60, 1) <= seconds(70));
        assert!(wait(1, 9) >= seconds(900));
        assert!(wait(u64::MAX, 1) <= Backoff::MOST);
    }

    #[test]
    fn a_wrong_clock_is_tried_again_within_five_minutes() {
        let backoff = Backoff::default();
        let wait = |failures, error: &Error, clock| {
            backoff.wait(failures, error, clock, &jitter(), "r/a:1")
        };
        assert!(wait(30, &error(), false) > seconds(300));
        assert!(wait(30, &error().of_clock(), false) <= seconds(300));
        assert!(wait(1, &error().of_clock(), false) <= seconds(10));
        // Known to be wrong, it is no reason to hurry either.
        for failures in [1, 30] {
            let wait = wait(failures, &error(), true);
            assert!(wait >= seconds(150) && wait <= seconds(300), "{wait:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_none_and_never_beyond_the_most(
            failures: u32,
            asked in proptest::option::of(0_u64..1_000_000),
            clock: bool,
            image in "\\PC{0,20}",
        ) {
            let error = error().after(asked.map(seconds));
            let wait = Backoff::default().wait(failures, &error, clock, &jitter(), &image);
            proptest::prop_assert!(wait >= seconds(5));
            proptest::prop_assert!(wait <= Backoff::MOST);
            proptest::prop_assert!(asked.is_none_or(|asked| wait >= seconds(asked.min(86400))));
        }
    }
}
