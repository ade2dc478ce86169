//! The `Content-Range` header (RFC 9110, 14.4).

/// What part of a blob an answer claims to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContentRange {
    /// `bytes FIRST-LAST/TOTAL`; the total may be unknown (`*`).
    Part {
        first: u64,
        last: u64,
        total: Option<u64>,
    },
    /// `bytes */TOTAL`, sent with 416.
    Unsatisfied { total: u64 },
}

impl ContentRange {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (unit, rest) = text.trim().split_once(' ')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (range, total) = rest.trim().split_once('/')?;
        if range == "*" {
            return Some(Self::Unsatisfied {
                total: number(total)?,
            });
        }
        let (first, last) = range.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        let total = match total {
            "*" => None,
            total => Some(number(total)?),
        };
        let sound = first <= last && total.is_none_or(|total| last < total);
        sound.then_some(Self::Part { first, last, total })
    }
}

/// Digits only: `u64::from_str` would also take a sign.
fn number(text: &str) -> Option<u64> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_or_refused() {
        assert_eq!(
            ContentRange::parse("bytes 5-9/10"),
            Some(ContentRange::Part {
                first: 5,
                last: 9,
                total: Some(10)
            })
        );
        assert_eq!(
            ContentRange::parse("Bytes 0-0/*"),
            Some(ContentRange::Part {
                first: 0,
                last: 0,
                total: None
            })
        );
        assert_eq!(
            ContentRange::parse("bytes */10"),
            Some(ContentRange::Unsatisfied { total: 10 })
        );
        for bad in [
            "",
            "bytes",
            "bytes 5-4/10",
            "bytes 5-10/10",
            "items 1-2/3",
            "bytes +1-2/3",
            "bytes -1-2/3",
            "bytes 1-2",
            "bytes */*",
            "bytes 1-99999999999999999999/*",
        ] {
            assert_eq!(ContentRange::parse(bad), None, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,60}") {
            let _ = ContentRange::parse(&text);
        }

        #[test]
        fn a_printed_range_is_read_back(first in 0_u64..1000, more in 0_u64..1000, rest in 1_u64..1000) {
            let last = first + more;
            let total = last + rest;
            proptest::prop_assert_eq!(
                ContentRange::parse(&format!("bytes {first}-{last}/{total}")),
                Some(ContentRange::Part { first, last, total: Some(total) })
            );
        }
    }
}
