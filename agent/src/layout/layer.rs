//! The entries of a layer's tar stream, as containerd's reader (Go's `archive/tar`)
//! understands them: names, kinds and sizes, without the contents.

use std::io::{self, Read};

use super::{
    pax::next_record,
    tar::{field, number, until_nul},
};
use crate::{
    error::{Error, Result},
    kind::Kind,
};

const BLOCK: usize = 512;
/// As in Go's reader: a longer extended header is no header (bytes).
const MAX_EXTENDED: u64 = 1 << 20;
/// As the kernel's limit for a path.
const MAX_NAME: usize = 4096;
/// Contents are read past in pieces of this size (bytes).
const SCRATCH: usize = 64 << 10;

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A file of this many bytes, holes counted.
    File(u64),
    HardLink,
    Symlink,
    Directory,
    /// A device or a pipe.
    Special,
}

/// One entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerEntry {
    /// Relative to the layer's root, without `.` and `..`; empty for the root itself.
    pub path: Vec<u8>,
    pub kind: EntryKind,
}

/// Reads entries one by one; at most one header is held in memory.
#[derive(Debug)]
pub struct LayerEntries<R> {
    reader: R,
    /// Content and padding of the last entry, not yet read past.
    rest: u64,
    scratch: Vec<u8>,
    ended: bool,
}

/// What extended headers say about the entry that follows them.
#[derive(Debug, Default)]
struct Extended {
    long_name: Option<Vec<u8>>,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    sparse_real_size: Option<u64>,
    sparse_version: (Vec<u8>, Vec<u8>),
    sparse_map: bool,
}

fn invalid(what: impl std::fmt::Display) -> Error {
    Error::new(Kind::InvalidContent, what)
}

fn unreadable(error: &io::Error) -> Error {
    invalid("the layer cannot be read").caused_by(error)
}

impl<R: Read> LayerEntries<R> {
    pub fn new(reader: R) -> Self {
        Self {
            reader,
            rest: 0,
            scratch: vec![0; SCRATCH],
            ended: false,
        }
    }

    /// The next entry; `None` at the end of the archive.
    pub fn next_entry(&mut self) -> Result<Option<LayerEntry>> {
        let mut extended = Extended::default();
        while !self.ended {
            self.skip()?;
            let Some(header) = self.header()? else {
                self.ended = true;
                break;
            };
            let typeflag = header[156];
            let own_size = number(field(&header, 124, 12))?;
            match typeflag {
                b'x' | b'L' | b'K' => {
                    self.set_rest(own_size)?;
                    let bytes = self.extended(own_size)?;
                    match typeflag {
                        b'x' => extended.pax(&bytes)?,
                        b'L' => extended.long_name = Some(until_nul(&bytes).to_vec()),
                        _ => {}
                    }
                }
                b'g' => self.set_rest(own_size)?,
                b'0'..=b'6' | 0 => return self.entry(&header, typeflag, own_size, &extended),
                other => {
                    return Err(invalid(format_args!(
                        "the layer has an entry of the unknown type `{}`",
                        char::from(other).escape_default()
                    )));
                }
            }
        }
        Ok(None)
    }

    fn entry(
        &mut self,
        header: &[u8; BLOCK],
        typeflag: u8,
        own_size: u64,
        extended: &Extended,
    ) -> Result<Option<LayerEntry>> {
        let size = extended.size.unwrap_or(own_size);
        let (sparse_name, sparse_size) = extended.sparse();
        let raw = extended
            .long_name
            .clone()
            .or(sparse_name)
            .or_else(|| extended.name.clone())
            .unwrap_or_else(|| header_name(header));
        // Before POSIX a directory was a file whose name ends in a slash.
        let kind = match typeflag {
            0 if raw.ends_with(b"/") => EntryKind::Directory,
            b'0' | 0 => EntryKind::File(sparse_size.unwrap_or(size)),
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'5' => EntryKind::Directory,
            _ => EntryKind::Special,
        };
        // Only files have content, whatever the header says.
        let has_content = matches!(typeflag, b'0' | 0) && kind != EntryKind::Directory;
        self.set_rest(if has_content { size } else { 0 })?;
        Ok(Some(LayerEntry {
            path: clean(&raw)?,
            kind,
        }))
    }

    fn set_rest(&mut self, size: u64) -> Result<()> {
        self.rest = size
            .checked_next_multiple_of(BLOCK as u64)
            .ok_or_else(|| invalid("the layer has an entry of impossible size"))?;
        Ok(())
    }

    /// Reads past what is left of the entry before.
    fn skip(&mut self) -> Result<()> {
        while self.rest > 0 {
            let wanted = usize::try_from(self.rest).map_or(SCRATCH, |rest| rest.min(SCRATCH));
            let piece = self.scratch.get_mut(..wanted).unwrap_or_default();
            match self.reader.read(piece) {
                Ok(0) => return Err(cut_off()),
                Ok(n) => self.rest = self.rest.saturating_sub(n as u64),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(&error)),
            }
        }
        Ok(())
    }

    /// The next header; `None` where the archive ends, with zeros or without.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut header = [0; BLOCK];
        let mut filled = 0;
        while let Some(rest) = header.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.reader.read(rest) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(cut_off()),
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(&error)),
            }
        }
        if header.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        check_sum(&header)?;
        Ok(Some(header))
    }

    fn extended(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENDED {
            return Err(invalid(format_args!(
                "the layer has an extended header of {size} bytes"
            )));
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        self.reader
            .read_exact(&mut bytes)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => cut_off(),
                _ => unreadable(&error),
            })?;
        self.rest = self.rest.saturating_sub(size);
        Ok(bytes)
    }
}

fn cut_off() -> Error {
    invalid("the layer is cut off")
}

/// Unsigned, as POSIX says, or signed, as some old programs did.
fn check_sum(header: &[u8; BLOCK]) -> Result<()> {
    let stored = number(field(header, 148, 8))?;
    let mut unsigned = 0_u64;
    let mut signed = 0_i64;
    for (at, byte) in header.iter().enumerate() {
        let byte = if (148..156).contains(&at) {
            b' '
        } else {
            *byte
        };
        unsigned += u64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    if stored == unsigned || i64::try_from(stored).is_ok_and(|stored| stored == signed) {
        Ok(())
    } else {
        Err(invalid("the layer has a damaged header"))
    }
}

fn header_name(header: &[u8]) -> Vec<u8> {
    let name = until_nul(field(header, 0, 100));
    let prefix: &[u8] = if field(header, 257, 6) != b"ustar\0" {
        // GNU's old format and the oldest have other things there.
        b""
    } else if field(header, 508, 4) == b"tar\0" {
        // star's: the prefix is shorter, and two times follow it.
        until_nul(field(header, 345, 131))
    } else {
        until_nul(field(header, 345, 155))
    };
    if prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

impl Extended {
    /// Records of the form `LENGTH KEY=VALUE\n`. An empty value takes a record back.
    fn pax(&mut self, mut bytes: &[u8]) -> Result<()> {
        let broken = || invalid("the layer has a damaged extended header");
        let decimal = |value: &[u8]| -> Result<Option<u64>> {
            if value.is_empty() {
                return Ok(None);
            }
            let digits = std::str::from_utf8(value).ok();
            let number = digits.and_then(|digits| digits.parse().ok());
            number.map(Some).ok_or_else(broken)
        };
        let text = |value: &[u8]| Some(value.to_vec()).filter(|value| !value.is_empty());
        while !bytes.is_empty() {
            let (key, value) = next_record(&mut bytes).ok_or_else(broken)?;
            match key {
                b"path" => self.name = text(value),
                b"size" => self.size = decimal(value)?,
                b"GNU.sparse.name" => self.sparse_name = text(value),
                b"GNU.sparse.size" => self.sparse_size = decimal(value)?,
                b"GNU.sparse.realsize" => self.sparse_real_size = decimal(value)?,
                b"GNU.sparse.major" => self.sparse_version.0 = value.to_vec(),
                b"GNU.sparse.minor" => self.sparse_version.1 = value.to_vec(),
                b"GNU.sparse.map" => self.sparse_map = !value.is_empty(),
                _ => {}
            }
        }
        Ok(())
    }

    /// Name and size of a sparse file, if this is one (GNU's formats 0.0, 0.1 and 1.0).
    fn sparse(&self) -> (Option<Vec<u8>>, Option<u64>) {
        let (major, minor) = (&self.sparse_version.0[..], &self.sparse_version.1[..]);
        let is_sparse = match (major, minor) {
            (b"1", b"0") | (b"0", b"0" | b"1") => true,
            (b"", b"") => self.sparse_map,
            _ => false,
        };
        if !is_sparse {
            return (None, None);
        }
        (
            self.sparse_name.clone(),
            self.sparse_size.or(self.sparse_real_size),
        )
    }
}

/// The name without `.` and `..`, which lead no further up than the layer's root.
fn clean(raw: &[u8]) -> Result<Vec<u8>> {
    if raw.len() > MAX_NAME {
        return Err(invalid("the layer has an entry whose name is too long"));
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in raw.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    Ok(parts.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries(bytes: &[u8]) -> Result<Vec<(String, EntryKind)>> {
        let mut reader = LayerEntries::new(bytes);
        let mut all = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            all.push((
                String::from_utf8_lossy(&entry.path).into_owned(),
                entry.kind,
            ));
        }
        assert!(reader.next_entry()?.is_none(), "the end is the end");
        Ok(all)
    }

    fn header(name: &str, kind: tar::EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_path(name).expect("a short name");
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(size);
        header.set_cksum();
        header
    }

    #[test]
    fn names_kinds_and_sizes_are_read_and_contents_passed_over() {
        let long = format!("{}/{}", "d".repeat(120), "f".repeat(150));
        let mut builder = tar::Builder::new(Vec::new());
        let put = |builder: &mut tar::Builder<Vec<u8>>, name: &str, kind, content: &[u8]| {
            let mut header = header("x", kind, content.len() as u64);
            builder
                .append_data(&mut header, name, content)
                .expect("in memory");
        };
        put(&mut builder, "./", tar::EntryType::Directory, b"");
        put(&mut builder, "./b/./", tar::EntryType::Directory, b"");
        put(&mut builder, "b/file", tar::EntryType::Regular, &[7; 1300]);
        put(&mut builder, &long, tar::EntryType::Regular, b"long");
        put(&mut builder, "b/fifo", tar::EntryType::Fifo, b"");
        for (name, kind) in [
            ("b/soft", tar::EntryType::Symlink),
            ("b/hard", tar::EntryType::Link),
        ] {
            let mut header = header(name, kind, 0);
            builder
                .append_link(&mut header, name, "b/file")
                .expect("in memory");
        }
        // A link that claims a size has no content all the same.
        builder
            .append(&header("b/odd", tar::EntryType::Link, 700), io::empty())
            .expect("in memory");
        put(&mut builder, "last", tar::EntryType::Regular, b"x");
        let bytes = builder.into_inner().expect("in memory");
        let wanted = [
            ("", EntryKind::Directory),
            ("b", EntryKind::Directory),
            ("b/file", EntryKind::File(1300)),
            (&long, EntryKind::File(4)),
            ("b/fifo", EntryKind::Special),
            ("b/soft", EntryKind::Symlink),
            ("b/hard", EntryKind::HardLink),
            ("b/odd", EntryKind::HardLink),
            ("last", EntryKind::File(1)),
        ]
        .map(|(name, kind)| (name.to_owned(), kind));
        assert_eq!(entries(&bytes).expect("valid"), wanted);
        // The zeros at the end may be missing.
        let cut = bytes.len() - 1024;
        assert_eq!(entries(&bytes[..cut]).expect("valid"), wanted);
        assert!(entries(&bytes[..cut - 600]).is_err(), "cut off");
    }

    #[test]
    fn extended_headers_say_more() {
        let with = |records: &[(&str, &str)], size: u64| {
            let mut builder = tar::Builder::new(Vec::new());
            builder
                .append_pax_extensions(records.iter().map(|(k, v)| (*k, v.as_bytes())))
                .expect("in memory");
            let content = vec![1; usize::try_from(size).expect("small")];
            builder
                .append(
                    &header("short", tar::EntryType::Regular, size),
                    content.as_slice(),
                )
                .expect("in memory");
            entries(&builder.into_inner().expect("in memory")).expect("valid")
        };
        let one = |name: &str, size| vec![(name.to_owned(), EntryKind::File(size))];
        assert_eq!(with(&[("path", "p/longer")], 3), one("p/longer", 3));
        assert_eq!(with(&[("path", "x"), ("path", "")], 3), one("short", 3));
        let sparse = [
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", "real"),
            ("GNU.sparse.realsize", "1048576"),
            ("path", "GNUSparseFile.0/real"),
        ];
        assert_eq!(with(&sparse, 512), one("real", 1_048_576));
        let old = [("GNU.sparse.size", "4096"), ("GNU.sparse.map", "0,1")];
        assert_eq!(with(&old, 1), one("short", 4096));
        assert_eq!(with(&old[..1], 1), one("short", 1), "no version, no map");
    }

    #[test]
    fn names_stay_within_the_layer() {
        for (raw, wanted) in [
            ("../../etc/passwd", "etc/passwd"),
            ("/abs//x/./y", "abs/x/y"),
            ("a/b/../../..", ""),
        ] {
            assert_eq!(clean(raw.as_bytes()).expect("short"), wanted.as_bytes());
        }
        assert!(clean(&[b'x'; 5000]).is_err());
    }

    proptest! {
        /// Any bytes are an answer or an error, never a panic or an endless loop.
        #[test]
        fn noise_does_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let _ = entries(&bytes);
        }

        /// Nor is a header of which one byte is wrong.
        #[test]
        fn a_flipped_byte_does_no_harm(at in 0_usize..2048, to in any::<u8>()) {
            let mut builder = tar::Builder::new(Vec::new());
            builder.append(&header("a", tar::EntryType::Regular, 600), &[1; 600][..]).expect("in memory");
            let mut bytes = builder.into_inner().expect("in memory");
            if let Some(byte) = bytes.get_mut(at) { *byte = to; }
            let _ = entries(&bytes);
        }
    }
}
