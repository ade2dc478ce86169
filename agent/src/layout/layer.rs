//! The entries of a layer's tar stream, as containerd's reader (Go's `archive/tar`)
//! understands them: names, kinds, sizes, and the contents piece by piece for who asks.

use std::{
    collections::VecDeque,
    io::{self, Read},
};

use super::{
    extended::Extended,
    sparse::{self, Part},
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
/// Of a mode, what is permissions and not the type.
const PERMISSIONS: u64 = 0o7777;
/// Contents are read, or read past, in pieces of this size (bytes).
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
    /// Where a link leads, as it is written.
    pub target: Vec<u8>,
    /// Permissions, without the type; `None` where the header has no such number.
    pub mode: Option<u32>,
    /// User and group, likewise.
    pub owner: Option<(u32, u32)>,
}

/// A piece of a file's content.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    Data(&'a [u8]),
    /// So many zeros.
    Hole(u64),
}

/// Reads entries one by one; at most one header, or one piece of content, is held in memory.
#[derive(Debug)]
pub struct LayerEntries<R> {
    reader: R,
    /// Content and padding of the last entry, not yet read past.
    rest: u64,
    content: Content,
    scratch: Vec<u8>,
    ended: bool,
}

/// What of the last entry's content is not told yet.
#[derive(Debug, Default)]
struct Content {
    /// How far into the file it is told.
    at: u64,
    size: u64,
    /// Bytes of it in the archive: those of its parts, and the map before them.
    stored: u64,
    map: Map,
    parts: VecDeque<Part>,
}

/// Where a file has data.
#[derive(Debug, Default)]
enum Map {
    /// As the parts say.
    #[default]
    Known,
    /// As stands before the data.
    Ahead,
}

pub(super) fn invalid(what: impl std::fmt::Display) -> Error {
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
            content: Content::default(),
            scratch: vec![0; SCRATCH],
            ended: false,
        }
    }

    /// The next entry; `None` at the end of the archive.
    pub fn next_entry(&mut self) -> Result<Option<LayerEntry>> {
        let mut extended = Extended::default();
        self.content = Content::default();
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
                        _ => extended.long_target = Some(until_nul(&bytes).to_vec()),
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
        let is_sparse = extended.is_sparse();
        let sparse_size = extended.sparse_size.or(extended.sparse_real_size);
        let real_size = sparse_size.filter(|_| is_sparse).unwrap_or(size);
        let raw = extended
            .long_name
            .clone()
            .or_else(|| extended.sparse_name.clone().filter(|_| is_sparse))
            .or_else(|| extended.name.clone())
            .unwrap_or_else(|| header_name(header));
        // Before POSIX a directory was a file whose name ends in a slash.
        let kind = match typeflag {
            0 if raw.ends_with(b"/") => EntryKind::Directory,
            b'0' | 0 => EntryKind::File(real_size),
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'5' => EntryKind::Directory,
            _ => EntryKind::Special,
        };
        // Only files have content, whatever the header says.
        let has_content = matches!(typeflag, b'0' | 0) && kind != EntryKind::Directory;
        self.set_rest(if has_content { size } else { 0 })?;
        if has_content {
            self.content = Content::among(size, real_size, extended)?;
        }
        let target = extended
            .long_target
            .clone()
            .or_else(|| extended.target.clone())
            .unwrap_or_else(|| until_nul(field(header, 157, 100)).to_vec());
        let user = Extended::id(extended.user, field(header, 108, 8));
        let group = Extended::id(extended.group, field(header, 116, 8));
        Ok(Some(LayerEntry {
            path: clean(&raw)?,
            kind,
            target,
            mode: number(field(header, 100, 8))
                .ok()
                .and_then(|mode| u32::try_from(mode & PERMISSIONS).ok()),
            owner: user.zip(group),
        }))
    }

    /// The next piece of the content of the entry that was read last; `None` at its end. What
    /// is not asked for is read past.
    pub fn next_piece(&mut self) -> Result<Option<Piece<'_>>> {
        if matches!(self.content.map, Map::Ahead) {
            let (numbers, read) = sparse::read_map(&mut self.reader)?;
            self.rest = self.rest.saturating_sub(read);
            let stored = self.content.stored.checked_sub(read).ok_or_else(cut_off)?;
            self.content = Content::of(&numbers, stored, self.content.size)?;
        }
        let content = &mut self.content;
        let until = content.parts.front().map_or(content.size, |part| part.from);
        if content.at < until {
            let hole = until.saturating_sub(content.at);
            content.at = until;
            return Ok(Some(Piece::Hole(hole)));
        }
        let Some(part) = content.parts.front_mut() else {
            return Ok(None);
        };
        let wanted = usize::try_from(part.length).map_or(SCRATCH, |left| left.min(SCRATCH));
        let piece = self.scratch.get_mut(..wanted).unwrap_or_default();
        let read = read_some(&mut self.reader, piece)?;
        let length = read as u64;
        part.from = part.from.saturating_add(length);
        part.length = part.length.saturating_sub(length);
        content.at = part.from;
        if part.length == 0 {
            content.parts.pop_front();
        }
        self.rest = self.rest.saturating_sub(length);
        Ok(Some(Piece::Data(
            self.scratch.get(..read).unwrap_or_default(),
        )))
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
            let read = read_some(&mut self.reader, piece)?;
            self.rest = self.rest.saturating_sub(read as u64);
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
        read_exactly(&mut self.reader, &mut bytes)?;
        self.rest = self.rest.saturating_sub(size);
        Ok(bytes)
    }
}

fn cut_off() -> Error {
    invalid("the layer is cut off")
}

/// At least one byte, where there must be more.
fn read_some(reader: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    loop {
        match reader.read(buffer) {
            Ok(0) => return Err(cut_off()),
            Ok(n) => return Ok(n),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(&error)),
        }
    }
}

pub(super) fn read_exactly(reader: &mut impl Read, buffer: &mut [u8]) -> Result<()> {
    reader
        .read_exact(buffer)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => cut_off(),
            _ => unreadable(&error),
        })
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

impl Content {
    /// Where the content of a file of `size` bytes is among the `stored` ones.
    fn among(stored: u64, size: u64, extended: &Extended) -> Result<Self> {
        if !extended.is_sparse() {
            return Self::of(&[0, size], stored, size);
        }
        if extended.sparse_version.0 == b"1" {
            return Ok(Self {
                size,
                stored,
                map: Map::Ahead,
                ..Self::default()
            });
        }
        Self::of(&extended.sparse_map, stored, size)
    }

    fn of(numbers: &[u64], stored: u64, size: u64) -> Result<Self> {
        let parts = sparse::parts(numbers, size)?;
        let data: u64 = parts.iter().map(|part| part.length).sum();
        if data > stored {
            return Err(cut_off());
        }
        Ok(Self {
            size,
            stored,
            parts,
            ..Self::default()
        })
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
            // Some contents are read, some are read past.
            if all.len() % 2 == 0 {
                let mut size = 0_u64;
                while let Some(piece) = reader.next_piece()? {
                    size = size.saturating_add(match piece {
                        Piece::Data(data) => data.len() as u64,
                        Piece::Hole(length) => length,
                    });
                }
                assert!(matches!(entry.kind, EntryKind::File(_)) || size == 0);
            }
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
            // Read as a map, it is one without parts.
            let mut content = b"0\n".to_vec();
            content.resize(usize::try_from(size).expect("small"), 0);
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
