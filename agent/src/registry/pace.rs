//! A rate that all transfers of a process share, and how it is written.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use crate::{
    error::{Error, Result},
    kind::Kind,
};

/// Below this a transfer cannot be told from a stalled one, by either side.
const SLOWEST: u64 = 1 << 10;
/// What may come at once after a pause: so much of a second's bytes.
const BURST: Duration = Duration::from_millis(100);

/// Reads a rate in bytes a second as curl and wget do: a number, which may have a
/// fraction, and `k`, `M` or `G` (powers of 1024, in either case); `KiB`, `MiB` and `GiB`
/// mean the same.
pub fn parse_rate(text: &str) -> Result<u64> {
    let refuse = |why: &str| {
        Error::new(
            Kind::Usage,
            format_args!("`{}` is no transfer rate", text.escape_debug()),
        )
        .because(why)
        .hint("write bytes a second, e.g. 500k, 2M or 1.5MiB (powers of 1024); leave it out for no limit")
    };
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "kb" | "mb" | "gb" => return Err(refuse("it may mean powers of 1000 or of 1024")),
        _ => return Err(refuse("it has an unknown unit")),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || (number.contains('.') && fraction.is_empty()) {
        return Err(refuse("it has no number"));
    }
    // Nine digits are exact enough, and cannot overflow below.
    let digits: String = fraction.chars().take(9).collect();
    let scale = 10_u128.pow(u32::try_from(digits.len()).unwrap_or(9));
    let part = digits.parse::<u128>().unwrap_or(0);
    let rate = whole
        .parse::<u64>()
        .ok()
        .map(|whole| (u128::from(whole) << shift) + (part << shift) / scale)
        .and_then(|rate| u64::try_from(rate).ok())
        .ok_or_else(|| refuse("it is too large"))?;
    match rate {
        0 => Err(refuse("0 would never end")),
        1..SLOWEST => Err(refuse("at least 1k is needed")),
        rate => Ok(rate),
    }
}

/// A token bucket over the monotonic clock. Waiting costs a timer and no memory.
#[derive(Debug)]
pub(super) struct Pace {
    rate: u64,
    /// When all that was spent is paid for.
    paid: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(rate: u64) -> Self {
        Self {
            rate: rate.max(SLOWEST),
            paid: Mutex::new(Instant::now()),
        }
    }

    /// Notes that `bytes` have come, and waits until the next may. Those who spend at
    /// once wait in their order.
    pub(super) async fn spend(&self, bytes: u64) {
        let until = self.book(bytes, Instant::now());
        sleep_until(until).await;
    }

    fn book(&self, bytes: u64, now: Instant) -> Instant {
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        // What was not used before now is lost, but for a little.
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        *paid = (*paid).max(earliest) + cost.min(Duration::from_secs(3600));
        (*paid).max(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_curl_and_wget_do() {
        for (text, rate) in [
            ("1024", 1024),
            ("500k", 500 << 10),
            ("500K", 500 << 10),
            ("2M", 2 << 20),
            ("1MiB", 1 << 20),
            ("1.5m", 3 << 19),
            ("0.5GiB", 1 << 29),
            ("1.000000000000000000001k", 1 << 10),
        ] {
            assert_eq!(parse_rate(text).expect(text), rate, "{text}");
        }
        for text in [
            "",
            "0",
            "0k",
            "0.1",
            "k",
            ".5k",
            "5.k",
            "1..5k",
            "-1k",
            "+1k",
            "1kk",
            "1 k",
            "1kB",
            "1e6",
            "1023",
            "99999999999999999999",
            "18446744073709551615G",
            "1٣k",
        ] {
            let error = parse_rate(text).expect_err(text);
            assert_eq!(error.kind(), Kind::Usage, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_rate_or_refused(text in "\\PC{0,30}") {
            if let Ok(rate) = parse_rate(&text) {
                proptest::prop_assert!(rate >= SLOWEST);
            }
        }

        #[test]
        fn a_whole_number_keeps_its_value(number in SLOWEST..1 << 30, unit in 0_usize..4) {
            let text = format!("{number}{}", ["", "k", "M", "GiB"][unit]);
            proptest::prop_assert_eq!(parse_rate(&text).expect("valid"), number << (10 * unit));
        }

        /// Whoever spends, and whenever: over any stretch no more comes than the rate
        /// allows, and what the last one took.
        #[test]
        fn the_rate_holds_on_average(
            rate in SLOWEST..10_000_000,
            steps in proptest::collection::vec((1_u64..65_536, 0_u64..300), 1..60),
        ) {
            let pace = Pace::new(rate);
            let start = Instant::now();
            let mut now = start;
            let mut before = 0;
            for (bytes, pause) in steps {
                let until = pace.book(bytes, now);
                proptest::prop_assert!(until >= now);
                before += bytes;
                let allowed = (until - start + BURST).as_secs_f64() * as_f64(rate);
                proptest::prop_assert!(as_f64(before) <= allowed + 2.0, "{before} in {allowed}");
                now = until + Duration::from_millis(pause);
            }
        }
    }

    fn as_f64(number: u64) -> f64 {
        f64::from(u32::try_from(number).expect("small"))
    }
}
