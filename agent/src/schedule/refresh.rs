//! Lengths of time as people write them, and how often an image is looked after.

use std::{fmt, time::Duration};

const MINUTE: Duration = Duration::from_secs(60);
/// A registry that is asked more often counts every question.
const SHORTEST: Duration = MINUTE;
/// Whoever means longer means never.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// How often a present image is compared with its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refresh {
    /// Never; what a reference pinned by digest needs.
    Never,
    Every(Duration),
}

/// Why a text is no length of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseSpanError {
    #[error("a time like `6h`, `1h30m` or `1d` is wanted")]
    Form,
    #[error("a minute is the least")]
    Short,
    #[error("366 days are the most")]
    Long,
}

impl Refresh {
    /// `never`, or a length of time from a minute to 366 days.
    pub fn parse(text: &str) -> Result<Self, ParseSpanError> {
        if text == "never" {
            return Ok(Self::Never);
        }
        match parse_span(text)? {
            span if span < SHORTEST => Err(ParseSpanError::Short),
            span => Ok(Self::Every(span)),
        }
    }
}

impl fmt::Display for Refresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = match self {
            Self::Never => return f.write_str("never"),
            Self::Every(span) => span.as_secs(),
        };
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, seconds) in [("d", 86400), ("h", 3600), ("m", 60), ("s", 1)] {
            let count = rest / seconds;
            rest %= seconds;
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

/// Whole numbers of days, hours, minutes and seconds: `90s`, `1h30m`, `7d`; `0` is nothing.
pub fn parse_span(text: &str) -> Result<Duration, ParseSpanError> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0_u64;
    while !rest.is_empty() || text.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .ok_or(ParseSpanError::Form)?;
        let (number, tail) = rest.split_at(end);
        if number.is_empty() {
            return Err(ParseSpanError::Form);
        }
        let mut letters = tail.chars();
        let scale = match letters.next() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            Some('d') => 86400,
            _ => return Err(ParseSpanError::Form),
        };
        rest = letters.as_str();
        // Digits alone: what does not fit is too long.
        let number: u64 = number.parse().map_err(|_| ParseSpanError::Long)?;
        seconds = number
            .checked_mul(scale)
            .and_then(|part| part.checked_add(seconds))
            .ok_or(ParseSpanError::Long)?;
    }
    let span = Duration::from_secs(seconds);
    if span > LONGEST {
        return Err(ParseSpanError::Long);
    }
    Ok(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_what_they_mean() {
        use ParseSpanError as E;
        let every = |seconds| Ok(Refresh::Every(Duration::from_secs(seconds)));
        for (text, read, shown) in [
            ("never", Ok(Refresh::Never), "never"),
            ("6h", every(21600), "6h"),
            ("30m", every(1800), "30m"),
            ("1d", every(86400), "1d"),
            ("24h", every(86400), "1d"),
            ("1h30m", every(5400), "1h30m"),
            ("90s", every(90), "1m30s"),
            ("60s", every(60), "1m"),
            ("366d", every(366 * 86400), "366d"),
            ("59s", Err(E::Short), ""),
            ("0", Err(E::Short), ""),
            ("366d1s", Err(E::Long), ""),
            ("99999999999999999999d", Err(E::Long), ""),
            ("9999999999999999999d", Err(E::Long), ""),
            ("", Err(E::Form), ""),
            ("6", Err(E::Form), ""),
            ("h", Err(E::Form), ""),
            ("6 h", Err(E::Form), ""),
            ("-6h", Err(E::Form), ""),
            ("1.5h", Err(E::Form), ""),
            ("6µs", Err(E::Form), ""),
            ("Never", Err(E::Form), ""),
        ] {
            assert_eq!(Refresh::parse(text), read, "{text}");
            if let Ok(refresh) = read {
                assert_eq!(refresh.to_string(), shown, "{text}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_printed_reads_back(seconds in 60_u64..=366 * 86400) {
            let refresh = Refresh::Every(Duration::from_secs(seconds));
            proptest::prop_assert_eq!(Refresh::parse(&refresh.to_string()), Ok(refresh));
        }

        #[test]
        fn any_text_is_a_time_or_refused(text in "[0-9smhd. ]{0,12}|\\PC{0,12}") {
            let _ = Refresh::parse(&text);
        }
    }
}
