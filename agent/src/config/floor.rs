//! How much of a disk stays free.

use std::str::FromStr;

use crate::registry::parse_rate;

/// Less is no protection, more leaves nothing to use.
const LEAST_PERCENT: u8 = 1;
const MOST_PERCENT: u8 = 90;
/// What logs and updates of a small device need; where a kubelet has a threshold of its own,
/// that counts as well.
const USUAL: DiskFloor = DiskFloor::Percent(10);

/// What stays free, of the size of the disk or in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFloor {
    Percent(u8),
    Bytes(u64),
}

impl Default for DiskFloor {
    fn default() -> Self {
        USUAL
    }
}

/// Why a text is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseDiskFloorError {
    #[error("a part of the disk from {LEAST_PERCENT}% to {MOST_PERCENT}% is wanted")]
    Percent,
    #[error("a part of the disk like `10%` is wanted, or bytes like `2G`")]
    Form,
}

impl DiskFloor {
    /// In bytes, on a disk of `size` bytes.
    pub fn of(self, size: u64) -> u64 {
        match self {
            Self::Percent(percent) => size / 100 * u64::from(percent.min(100)),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl FromStr for DiskFloor {
    type Err = ParseDiskFloorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(number) = text.strip_suffix('%') {
            let digits = number.bytes().all(|byte| byte.is_ascii_digit());
            let percent = Some(number).filter(|_| digits).and_then(|n| n.parse().ok());
            return percent
                .filter(|percent| (LEAST_PERCENT..=MOST_PERCENT).contains(percent))
                .map(Self::Percent)
                .ok_or(ParseDiskFloorError::Percent);
        }
        // Sizes are written as rates are.
        parse_rate(text)
            .map(Self::Bytes)
            .map_err(|_| ParseDiskFloorError::Form)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_what_they_mean() {
        use ParseDiskFloorError as E;
        for (text, read) in [
            ("10%", Ok(DiskFloor::Percent(10))),
            ("90%", Ok(DiskFloor::Percent(90))),
            ("2G", Ok(DiskFloor::Bytes(2 << 30))),
            ("500MiB", Ok(DiskFloor::Bytes(500 << 20))),
            ("0%", Err(E::Percent)),
            ("91%", Err(E::Percent)),
            ("%", Err(E::Percent)),
            ("+5%", Err(E::Percent)),
            ("1.5%", Err(E::Percent)),
            ("10 %", Err(E::Percent)),
            ("", Err(E::Form)),
            ("much", Err(E::Form)),
            ("0", Err(E::Form)),
        ] {
            assert_eq!(text.parse(), read, "{text}");
        }
    }

    #[test]
    fn a_part_is_of_the_disk_and_bytes_are_bytes() {
        assert_eq!(DiskFloor::default().of(1000), 100);
        assert_eq!(DiskFloor::Percent(90).of(u64::MAX), u64::MAX / 100 * 90);
        assert_eq!(DiskFloor::Bytes(7).of(1000), 7);
    }
}
