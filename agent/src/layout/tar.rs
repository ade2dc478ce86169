//! The little of tar (POSIX.1-2017 pax, with GNU long names and sizes) that an image
//! archive needs: finding members without unpacking, and writing members whose
//! bytes depend on nothing but their name and content.

use std::{fs::File, os::unix::fs::FileExt};

use super::pax::next_record;
use crate::{
    error::{Error, Result},
    kind::Kind,
};

const BLOCK: u64 = 512;
const BLOCK_LEN: usize = 512;
/// More members than any image has blobs.
const MAX_MEMBERS: usize = 100_000;
/// Extended headers are a few hundred bytes.
const MAX_EXTENDED: u64 = 64 << 10;
/// As the kernel's limit for a path.
const MAX_NAME: usize = 4096;
/// What eleven octal digits hold.
const MAX_USTAR_SIZE: u64 = 0o777_7777_7777;

/// A regular file in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// Relative, with plain components only.
    pub(super) name: String,
    /// Of its content in the file.
    pub(super) offset: u64,
    pub(super) size: u64,
}

fn invalid(what: impl std::fmt::Display) -> Error {
    Error::new(Kind::InvalidContent, what)
}

fn cut_off() -> Error {
    invalid("the archive is cut off").hint("it was not copied completely; copy it again")
}

/// What extended headers say about the member that follows them.
#[derive(Debug, Default)]
struct Extended {
    name: Option<Vec<u8>>,
    size: Option<u64>,
}

/// Visits every regular file of the tar archive `file`, without reading contents.
///
/// Refused as a whole: names that leave the archive's root, members that are
/// neither files nor directories, more than 100 000 members, damaged headers.
pub(super) fn scan(
    file: &File,
    length: u64,
    mut visit: impl FnMut(Member) -> Result<()>,
) -> Result<()> {
    let mut at = 0_u64;
    let mut extended = Extended::default();
    let mut members = 0_usize;
    while at < length {
        let mut header = [0_u8; BLOCK_LEN];
        read_exact(file, &mut header, at)?;
        if header.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        members += 1;
        if members > MAX_MEMBERS {
            return Err(invalid(format_args!(
                "the archive has more than {MAX_MEMBERS} members"
            )));
        }
        check_sum(&header)?;
        let content = at.checked_add(BLOCK).ok_or_else(cut_off)?;
        let typeflag = header[156];
        let for_itself = matches!(typeflag, b'x' | b'g' | b'L' | b'K');
        let size = match extended.size {
            Some(size) if !for_itself => size,
            _ => number(field(&header, 124, 12))?,
        };
        let end = content
            .checked_add(size)
            .filter(|end| *end <= length)
            .ok_or_else(cut_off)?;
        match typeflag {
            b'x' | b'L' => {
                if size > MAX_EXTENDED {
                    return Err(invalid(format_args!(
                        "the archive has an extended header of {size} bytes"
                    )));
                }
                let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
                read_exact(file, &mut bytes, content)?;
                if typeflag == b'L' {
                    extended.name = Some(until_nul(&bytes).to_vec());
                } else {
                    parse_pax(&bytes, &mut extended)?;
                }
            }
            // Comments for the whole archive; the name of a link's target, which
            // the link itself is refused for.
            b'g' | b'K' => {}
            b'0' | 0 | b'7' | b'5' => {
                let raw = match std::mem::take(&mut extended).name {
                    Some(name) => name,
                    None => header_name(&header),
                };
                let name = clean(&raw)?;
                // Before POSIX a directory was a file whose name ends in a slash.
                if typeflag != b'5' && !raw.ends_with(b"/") {
                    if name.is_empty() {
                        return Err(invalid("the archive has a member without a name"));
                    }
                    visit(Member {
                        name,
                        offset: content,
                        size,
                    })?;
                }
            }
            other => {
                return Err(invalid(format_args!(
                    "the archive has a member of type `{}`, only files and directories belong there",
                    char::from(other).escape_default()
                )));
            }
        }
        at = end.checked_next_multiple_of(BLOCK).ok_or_else(cut_off)?;
    }
    Ok(())
}

fn read_exact(file: &File, buffer: &mut [u8], at: u64) -> Result<()> {
    file.read_exact_at(buffer, at)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => cut_off(),
            _ => Error::new(Kind::Internal, "cannot read the archive").caused_by(&error),
        })
}

pub(super) fn field(header: &[u8], from: usize, length: usize) -> &[u8] {
    header
        .get(from..from.saturating_add(length))
        .unwrap_or_default()
}

pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn check_sum(header: &[u8]) -> Result<()> {
    let stored = number(field(header, 148, 8))?;
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            if (148..156).contains(&at) {
                u64::from(b' ')
            } else {
                u64::from(*byte)
            }
        })
        .sum();
    if sum == stored {
        Ok(())
    } else {
        Err(invalid("the archive has a damaged header")
            .hint("it is no tar archive, or it was not copied completely"))
    }
}

/// Octal digits, or GNU's big-endian number where the first bit is set.
pub(super) fn number(field: &[u8]) -> Result<u64> {
    let broken = || invalid("the archive has a header with a damaged number");
    if let Some((first @ 0x80.., rest)) = field.split_first() {
        let mut value = u64::from(first & 0x7f);
        for byte in rest {
            value = value
                .checked_mul(256)
                .ok_or_else(broken)?
                .checked_add(u64::from(*byte))
                .ok_or_else(broken)?;
        }
        return Ok(value);
    }
    let text = until_nul(field).trim_ascii();
    let mut value = 0_u64;
    for digit in text {
        if !matches!(digit, b'0'..=b'7') {
            return Err(broken());
        }
        value = value
            .checked_mul(8)
            .and_then(|value| value.checked_add(u64::from(digit - b'0')))
            .ok_or_else(broken)?;
    }
    Ok(value)
}

fn header_name(header: &[u8]) -> Vec<u8> {
    let name = until_nul(field(header, 0, 100));
    let prefix = until_nul(field(header, 345, 155));
    // GNU's old format has other things where POSIX has the prefix.
    if field(header, 257, 6) != b"ustar\0" || prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

/// Records of the form `LENGTH KEY=VALUE\n`.
fn parse_pax(mut bytes: &[u8], extended: &mut Extended) -> Result<()> {
    let broken = || invalid("the archive has a damaged extended header");
    while !bytes.is_empty() {
        let (key, value) = next_record(&mut bytes).ok_or_else(broken)?;
        match key {
            b"path" => extended.name = Some(value.to_vec()),
            b"size" => {
                let size = std::str::from_utf8(value)
                    .ok()
                    .and_then(|digits| digits.parse().ok())
                    .ok_or_else(broken)?;
                extended.size = Some(size);
            }
            key if key.starts_with(b"GNU.sparse.") => {
                return Err(invalid("the archive has a sparse member"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The name with plain components only; empty for the root itself.
fn clean(raw: &[u8]) -> Result<String> {
    let refused = |why: &str| {
        let shown: String = String::from_utf8_lossy(raw)
            .chars()
            .take(80)
            .flat_map(char::escape_default)
            .collect();
        invalid(format_args!("the archive has a member named `{shown}`")).because(why)
    };
    if raw.len() > MAX_NAME {
        return Err(refused("the name is too long"));
    }
    let name = std::str::from_utf8(raw).map_err(|_| refused("the name is not UTF-8"))?;
    if name.starts_with('/') {
        return Err(refused("the name is absolute"));
    }
    if name.chars().any(char::is_control) {
        return Err(refused("the name has control characters"));
    }
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(refused("the name leads out of the archive")),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

/// The header blocks of a regular file: owner 0, time 0, mode 0644.
pub(super) fn header(name: &str, size: u64) -> Vec<u8> {
    let mut blocks = Vec::new();
    let mut records = Vec::new();
    if name.len() > 100 {
        records.extend(pax_record("path", name));
    }
    if size > MAX_USTAR_SIZE {
        records.extend(pax_record("size", &size.to_string()));
    }
    if !records.is_empty() {
        blocks.extend(block("pax", records.len() as u64, b'x'));
        blocks.extend_from_slice(&records);
        blocks.resize(blocks.len().next_multiple_of(BLOCK_LEN), 0);
    }
    blocks.extend(block(name, size.min(MAX_USTAR_SIZE), b'0'));
    blocks
}

/// Zeros that fill the last block of a member with `size` bytes.
pub(super) fn padding(size: u64) -> Vec<u8> {
    let over = size % BLOCK;
    let missing = if over == 0 { 0 } else { BLOCK - over };
    vec![0; usize::try_from(missing).unwrap_or_default()]
}

/// The end of an archive.
pub(super) fn end() -> Vec<u8> {
    vec![0; 2 * BLOCK_LEN]
}

fn pax_record(key: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {key}={value}\n");
    // The length counts its own digits.
    let mut length = rest.len();
    loop {
        let next = rest.len() + length.to_string().len();
        if next == length {
            return format!("{length}{rest}").into_bytes();
        }
        length = next;
    }
}

fn block(name: &str, size: u64, typeflag: u8) -> Vec<u8> {
    let mut block = Vec::with_capacity(BLOCK_LEN);
    let mut put = |bytes: &[u8], width: usize| {
        let from = block.len();
        block.extend(bytes.iter().take(width));
        block.resize(from + width, 0);
    };
    put(name.as_bytes(), 100);
    put(b"0000644", 8);
    put(b"0000000", 8);
    put(b"0000000", 8);
    put(format!("{size:011o}").as_bytes(), 12);
    put(b"00000000000", 12);
    // The sum is computed as if its own field were spaces.
    put(b"        ", 8);
    put(&[typeflag], 1);
    put(b"", 100);
    put(b"ustar\x0000", 8);
    put(b"", 64);
    put(b"0000000", 8);
    put(b"0000000", 8);
    put(b"", 167);
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block.splice(148..156, format!("{sum:06o}\0 ").into_bytes());
    block
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn scanned(bytes: &[u8]) -> Result<Vec<Member>> {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(bytes).expect("written");
        let mut members = Vec::new();
        scan(&file, bytes.len() as u64, |member| {
            members.push(member);
            Ok(())
        })?;
        Ok(members)
    }

    fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, content) in members {
            bytes.extend(header(name, content.len() as u64));
            bytes.extend_from_slice(content);
            bytes.extend(padding(content.len() as u64));
        }
        bytes.extend(end());
        bytes
    }

    #[test]
    fn what_is_written_is_found_and_others_read_it_too() {
        let long = format!("blobs/sha512/{}", "a".repeat(128));
        let bytes = archive(&[("index.json", b"{}"), (&long, &[7; 600]), ("empty", b"")]);
        let members = scanned(&bytes).expect("a valid archive");
        let names: Vec<&str> = members.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["index.json", &long, "empty"]);
        assert_eq!(members[1].size, 600);
        let mut reader = tar::Archive::new(bytes.as_slice());
        let seen: Vec<(String, u64)> = reader
            .entries()
            .expect("entries")
            .map(|entry| {
                let entry = entry.expect("an entry");
                let path = entry.path().expect("a path").display().to_string();
                (path, entry.size())
            })
            .collect();
        assert_eq!(
            seen,
            [("index.json".into(), 2), (long, 600), ("empty".into(), 0)]
        );
    }

    #[test]
    fn sizes_beyond_octal_use_a_pax_record() {
        let blocks = header("big", MAX_USTAR_SIZE + 1);
        assert_eq!(blocks.len(), 3 * 512);
        assert!(blocks[512..].starts_with(b"19 size=8589934592\n"));
        // The member is longer than the file, which is what is wrong with this one.
        let error = scanned(&blocks).expect_err("cut off");
        assert_eq!(error.message(), "the archive is cut off");
    }

    #[test]
    fn archives_of_others_are_read() {
        for header in [
            tar::Header::new_gnu(),
            tar::Header::new_ustar(),
            tar::Header::new_old(),
        ] {
            let mut builder = tar::Builder::new(Vec::new());
            for (name, content) in [("./oci-layout", "{}"), ("blobs/sha256/x", "hello")] {
                let mut header = header.clone();
                header.set_size(content.len() as u64);
                header.set_mode(0o600);
                header.set_cksum();
                builder
                    .append_data(&mut header, name, content.as_bytes())
                    .expect("in memory");
            }
            let bytes = builder.into_inner().expect("in memory");
            let names: Vec<String> = scanned(&bytes)
                .expect("valid")
                .into_iter()
                .map(|m| m.name)
                .collect();
            assert_eq!(names, ["oci-layout", "blobs/sha256/x"]);
        }
        let mut builder = tar::Builder::new(Vec::new());
        let long = "d/".repeat(120) + "file";
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_cksum();
        builder
            .append_data(&mut header, &long, &b"x"[..])
            .expect("in memory");
        let bytes = builder.into_inner().expect("in memory");
        assert_eq!(scanned(&bytes).expect("a GNU long name")[0].name, long);
    }

    #[test]
    fn hostile_archives_are_refused() {
        for name in ["../x", "/etc/x", "a/../../x", "a\u{1}b", ""] {
            assert!(scanned(&archive(&[(name, b"x")])).is_err(), "{name:?}");
        }
        for typeflag in [b'1', b'2', b'3', b'4', b'6', b'S', b'V', b'D'] {
            let error = scanned(&block("x", 0, typeflag)).expect_err("no regular file");
            assert_eq!(error.kind(), Kind::InvalidContent);
        }
        let mut big = block("pax", MAX_EXTENDED + 1, b'x');
        big.resize(200 << 10, 0);
        assert!(
            scanned(&big)
                .expect_err("huge")
                .message()
                .contains("extended header")
        );
        let whole = archive(&[("a", &[1; 1000])]);
        for length in [1, 511, 513, 1000] {
            let error = scanned(&whole[..length]).expect_err("cut off");
            assert_eq!(error.message(), "the archive is cut off", "{length}");
        }
        let mut flipped = whole;
        flipped[0] = b'b';
        assert!(scanned(&flipped).is_err());
        // A number that would overflow.
        assert!(number(&[0xff; 12]).is_err());
        assert!(number(b"9").is_err());
        for pax in [
            "x",
            "5 a\n",
            "99 path=x\n",
            "0 path=x\n",
            " =",
            "99999999999999999999 a=b\n",
        ] {
            assert!(
                parse_pax(pax.as_bytes(), &mut Extended::default()).is_err(),
                "{pax}"
            );
        }
    }

    #[test]
    fn an_empty_file_has_no_members() {
        assert_eq!(scanned(&[]).expect("empty"), []);
        assert_eq!(scanned(&end()).expect("only an end"), []);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_scanned_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..3000)) {
            let _ = scanned(&bytes);
        }

        #[test]
        fn any_change_of_a_valid_archive_too(at in 0_usize..2048, value: u8) {
            let mut bytes = archive(&[("index.json", b"{}"), ("oci-layout", b"{}")]);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            if let Ok(members) = scanned(&bytes) {
                for member in members {
                    proptest::prop_assert!(member.offset + member.size <= bytes.len() as u64);
                    proptest::prop_assert!(!member.name.split('/').any(|part| part == ".." || part.is_empty()));
                }
            }
        }

        #[test]
        fn any_extended_header_is_parsed_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..100)) {
            let _ = parse_pax(&bytes, &mut Extended::default());
        }
    }
}
