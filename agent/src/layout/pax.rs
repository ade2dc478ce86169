//! The records of tar's extended headers (pax(1), "pax Header Block"), as both readers of
//! tar here take them: archives and layers.

/// What of a length is looked at; no number is longer.
const LONGEST_NUMBER: usize = 20;

/// Takes the next record, `LENGTH KEY=VALUE\n`, off `bytes`: its key and its value. `None` if
/// there is none of that form.
pub(super) fn next_record<'a>(bytes: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let whole = *bytes;
    let space = whole
        .iter()
        .take(LONGEST_NUMBER)
        .position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(whole.get(..space)?)
        .ok()?
        .parse()
        .ok()?;
    let record = whole
        .get(space.saturating_add(1)..length)?
        .strip_suffix(b"\n")?;
    *bytes = whole.get(length..)?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = record.split_at(equals);
    Some((key, value.get(1..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_taken_one_by_one() {
        let mut bytes: &[u8] = b"10 path=a\n11 size==7\n5 a=\n";
        assert_eq!(next_record(&mut bytes), Some((&b"path"[..], &b"a"[..])));
        assert_eq!(next_record(&mut bytes), Some((&b"size"[..], &b"=7"[..])));
        assert_eq!(next_record(&mut bytes), Some((&b"a"[..], &b""[..])));
        assert!(bytes.is_empty());
    }

    #[test]
    fn what_is_no_record_is_none() {
        for text in [
            "",
            " ",
            "x",
            "10",
            "9999 a=b\n",
            "6 a=bc",
            "5 ab\n",
            "0 a=b\n",
            "3 a=b\n",
            "-5 a=\n",
            "99999999999999999999999 a=b\n",
        ] {
            assert_eq!(next_record(&mut text.as_bytes()), None, "{text:?}");
        }
    }
}
