//! A spread over a fleet that each host computes for itself: hosts that begin at the same
//! moment ask the registry at different ones, and each host at its own again and again.

use std::{fmt, time::Duration};

use crate::{
    oci::{Algorithm, Hasher},
    redact::Secret,
};

/// Of a refresh interval, unless something else is configured.
const PART: u32 = 10;
/// Beyond it a fleet is flat for any registry, and an image only gets older.
const WIDEST: Duration = Duration::from_secs(30 * 60);

/// What the machine is, and how wide its work is spread.
#[derive(Clone, PartialEq, Eq)]
pub struct Jitter {
    machine: Secret,
    widest: Option<Duration>,
}

impl fmt::Debug for Jitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jitter")
            .field("widest", &self.widest)
            .finish_non_exhaustive()
    }
}

impl Jitter {
    /// `machine` tells this host from all others; `widest` is `[schedule] jitter`.
    pub fn new(machine: Secret, widest: Option<Duration>) -> Self {
        Self { machine, widest }
    }

    /// The place of `what` on this host, flat over hosts and over things: 0 is possible,
    /// 1 is not.
    pub fn fraction(&self, what: &str) -> f64 {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        // No name of a machine has a zero byte, so no two pairs are the same bytes.
        for part in [self.machine.reveal(), "\0", what] {
            hasher.update(part.as_bytes());
        }
        let digest = hasher.finish();
        let first = digest.hex().get(..8).unwrap_or_default();
        let number = u32::from_str_radix(first, 16).unwrap_or_default();
        f64::from(number) / (f64::from(u32::MAX) + 1.0)
    }

    /// How much later than `every` this host refreshes `image`: less than
    /// [`Jitter::bound`].
    pub fn offset(&self, image: &str, every: Duration) -> Duration {
        self.bound(every).mul_f64(self.fraction(image))
    }

    /// The widest spread of a refresh of this interval: the configured one, though never
    /// wider than the interval itself, else a tenth of it and at most half an hour.
    pub fn bound(&self, every: Duration) -> Duration {
        match self.widest {
            Some(widest) => widest.min(every),
            None => (every / PART).min(WIDEST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(machine: &str) -> Jitter {
        Jitter::new(Secret::new(machine), None)
    }

    #[test]
    fn bounds_by_interval_and_configuration() {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        for (widest, every, bound) in [
            (None, 360, 30),
            (None, 60, 6),
            (None, 10_000, 30),
            (Some(120), 360, 120),
            (Some(120), 60, 60),
            (Some(0), 60, 0),
        ] {
            let jitter = Jitter::new(Secret::new("m"), widest.map(minutes));
            assert_eq!(jitter.bound(minutes(every)), minutes(bound));
        }
    }

    /// What a fleet does in one release it does in the next.
    #[test]
    fn the_place_of_a_host_never_changes() {
        let place = host("0123456789abcdef0123456789abcdef").fraction("docker.io/library/nginx:1");
        assert!((place - 0.827_971).abs() < 1e-6, "{place}");
    }

    #[test]
    fn ten_thousand_hosts_are_spread_flat() {
        const HOSTS: u32 = 10_000;
        const BINS: usize = 100;
        for image in ["docker.io/library/nginx:1.27 (host, default)", "r/a:1"] {
            let mut bins = [0_u32; BINS];
            for number in 0..HOSTS {
                let place = host(&format!("{number:032x}")).fraction(image);
                let bin = (0..BINS)
                    .rev()
                    .find(|bin| {
                        let edge = f64::from(u32::try_from(*bin).expect("small")) / 100.0;
                        place >= edge
                    })
                    .expect("not negative");
                bins[bin] += 1;
            }
            // Chi-square with 99 degrees of freedom: 99 expected, 149 once in a thousand.
            let expected = f64::from(HOSTS) / 100.0;
            let chi: f64 = bins
                .iter()
                .map(|count| (f64::from(*count) - expected).powi(2) / expected)
                .sum();
            assert!((50.0..149.0).contains(&chi), "{chi}: {bins:?}");
        }
    }

    #[test]
    fn the_machine_is_not_shown() {
        assert!(!format!("{:?}", host("hunter2")).contains("hunter2"));
    }

    proptest::proptest! {
        #[test]
        fn stable_and_within_the_bound(
            machine in "[0-9a-f]{32}|\\PC{0,20}",
            image in "\\PC{0,40}",
            every in 60_u64..1_000_000,
            widest in proptest::option::of(0_u64..1_000_000),
        ) {
            let every = Duration::from_secs(every);
            let widest = widest.map(Duration::from_secs);
            let jitter = Jitter::new(Secret::new(machine.clone()), widest);
            let offset = jitter.offset(&image, every);
            proptest::prop_assert_eq!(offset, jitter.clone().offset(&image, every));
            let bound = jitter.bound(every);
            proptest::prop_assert!(offset < bound || bound.is_zero());
            proptest::prop_assert!(bound <= every);
            let place = jitter.fraction(&image);
            proptest::prop_assert!((0.0..1.0).contains(&place));
        }
    }
}
