//! Where the data of a sparse file is (GNU's formats 0.0, 0.1 and 1.0), as Go's `archive/tar`
//! reads it. The rest of the file is holes.

use std::{collections::VecDeque, io::Read};

use super::layer::{invalid, read_exactly};
use crate::error::{Error, Result};

const BLOCK: usize = 512;
/// As in Go's reader: a longer map is none (bytes).
const MAX_MAP: usize = 1 << 20;

/// A piece of a file that has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) from: u64,
    pub(super) length: u64,
}

fn broken() -> Error {
    invalid("the layer has a damaged map of a sparse file")
}

/// The parts of a file of `size` bytes, from pairs of offset and length: in order, apart from
/// each other and within the file.
pub(super) fn parts(numbers: &[u64], size: u64) -> Result<VecDeque<Part>> {
    let (pairs, []) = numbers.as_chunks::<2>() else {
        return Err(broken());
    };
    let mut end = 0_u64;
    let mut parts = VecDeque::with_capacity(pairs.len());
    for &[from, length] in pairs {
        let next = from.checked_add(length).ok_or_else(broken)?;
        if from < end || next > size {
            return Err(broken());
        }
        end = next;
        // The end of the file is often written as a part without data.
        if length > 0 {
            parts.push_back(Part { from, length });
        }
    }
    Ok(parts)
}

/// The numbers of a map in the value of an extended header, `offset,length,...`.
pub(super) fn listed(value: &[u8]) -> Result<Vec<u64>> {
    value.split(|byte| *byte == b',').map(decimal).collect()
}

/// One number of a map.
pub(super) fn decimal(digits: &[u8]) -> Result<u64> {
    let all_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(digits).ok().filter(|_| all_digits);
    text.and_then(|text| text.parse().ok()).ok_or_else(broken)
}

/// Reads the map that stands before the data (format 1.0): how many parts, then two numbers
/// for each, all of them lines, filled up to whole blocks. The numbers of the parts, and how
/// many bytes the map took.
pub(super) fn read_map(reader: &mut impl Read) -> Result<(Vec<u64>, u64)> {
    let mut numbers: Vec<u64> = Vec::new();
    let mut line = Vec::new();
    let mut read = 0_usize;
    let wanted = |numbers: &[u64]| -> Result<Option<u64>> {
        match numbers.first() {
            None => Ok(None),
            Some(count) => count.checked_mul(2).map(Some).ok_or_else(broken),
        }
    };
    while wanted(&numbers)?.is_none_or(|wanted| (numbers.len() as u64) <= wanted) {
        if read >= MAX_MAP {
            return Err(broken());
        }
        let mut block = [0; BLOCK];
        read_exactly(reader, &mut block)?;
        read += BLOCK;
        for byte in block {
            if wanted(&numbers)?.is_some_and(|wanted| numbers.len() as u64 > wanted) {
                break;
            }
            if byte == b'\n' {
                numbers.push(decimal(&line)?);
                line.clear();
            } else {
                line.push(byte);
            }
        }
    }
    numbers.remove(0);
    Ok((numbers, read as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_in_order_and_within_the_file() {
        let lengths = |numbers: &[u64], size| {
            parts(numbers, size).map(|parts| {
                parts
                    .iter()
                    .map(|part| (part.from, part.length))
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(
            lengths(&[0, 1, 4, 2, 9, 0], 9).expect("valid"),
            [(0, 1), (4, 2)]
        );
        assert_eq!(lengths(&[], 9).expect("all of it a hole"), []);
        for numbers in [
            &[0][..],
            &[4, 2, 0, 1],
            &[0, 2, 1, 2],
            &[0, 10],
            &[u64::MAX, 2],
        ] {
            assert!(lengths(numbers, 9).is_err(), "{numbers:?}");
        }
        assert_eq!(listed(b"0,12").expect("valid"), [0, 12]);
        for value in [&b""[..], b"0,", b"+1,2", b"-1,2", b"99999999999999999999,1"] {
            assert!(listed(value).is_err(), "{value:?}");
        }
    }

    #[test]
    fn a_map_takes_whole_blocks_and_no_more() {
        let map = |text: &str| {
            let mut bytes = text.as_bytes().to_vec();
            bytes.resize(text.len().next_multiple_of(BLOCK), 0);
            bytes.extend_from_slice(b"data");
            let mut rest = &bytes[..];
            read_map(&mut rest).map(|(numbers, read)| (numbers, read, rest.to_vec()))
        };
        let data = b"data".to_vec();
        assert_eq!(
            map("1\n0\n4\n").expect("valid"),
            (vec![0, 4], 512, data.clone())
        );
        assert_eq!(map("0\n").expect("valid"), (vec![], 512, data.clone()));
        let long: Vec<String> = (0..400).map(|n| n.to_string()).collect();
        let long = format!("200\n{}\n", long.join("\n"));
        let (numbers, read, rest) = map(&long).expect("valid");
        assert_eq!((numbers.len(), read, rest), (400, 1536, data));
        for text in ["", "x\n", "1\n0\n", "18446744073709551615\n", "1\n0\n\n"] {
            assert!(map(text).is_err(), "{text:?}");
        }
        assert!(read_map(&mut std::io::repeat(b'1')).is_err());
        let mut endless = std::io::repeat(b'\n');
        assert!(read_map(&mut endless).is_err());
    }
}
