//! Where a file's bytes come from, and how much of them is looked at.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A file's bytes, by offset. An unpacker that sees a file only once can hold its beginning
/// ([`Head`]); what it cannot give is an error, and then the answer is unknown, never wrong.
pub trait Bytes {
    /// The file's size, where it is known.
    fn size(&self) -> Option<u64>;

    /// Fills the start of `buffer` with what stands at `offset`, and says how many bytes that
    /// were. 0 is the end of the file; an error means that these bytes cannot be had.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
}

impl Bytes for &[u8] {
    fn size(&self) -> Option<u64> {
        u64::try_from(self.len()).ok()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.get(at..));
        let rest = rest.unwrap_or_default();
        let count = rest.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(rest) {
            *to = *from;
        }
        Ok(count)
    }
}

impl Bytes for Vec<u8> {
    fn size(&self) -> Option<u64> {
        self.as_slice().size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.as_slice().read_at(offset, buffer)
    }
}

/// An open file, read without moving its position. It should be a regular one.
impl Bytes for File {
    fn size(&self) -> Option<u64> {
        self.metadata().ok().map(|metadata| metadata.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }
}

/// The beginning of a file, as far as somebody kept it.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// The bytes from offset 0 on.
    pub bytes: &'a [u8],
    /// The size of the whole file, where it is known.
    pub size: Option<u64>,
}

impl Bytes for Head<'_> {
    fn size(&self) -> Option<u64> {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.bytes.read_at(offset, buffer)?;
        let wanted = !buffer.is_empty() && self.size.is_none_or(|size| offset < size);
        if count == 0 && wanted {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(count)
    }
}

/// All that is read of one file, whatever its headers ask for.
pub(super) const MOST_BYTES: usize = 1 << 20;
/// All questions to one source.
pub(super) const MOST_READS: usize = 4096;

/// Why bytes are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gap {
    /// The file ends before them.
    End,
    /// They could not be had, or more was asked for than is ever read.
    Unavailable,
}

/// A source, and what may still be read of it.
pub(super) struct Reader<'a> {
    bytes: &'a dyn Bytes,
    size: Option<u64>,
    left: Cell<usize>,
    reads: Cell<usize>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a dyn Bytes) -> Self {
        Reader {
            bytes,
            size: bytes.size(),
            left: Cell::new(MOST_BYTES),
            reads: Cell::new(MOST_READS),
        }
    }

    pub(super) fn size(&self) -> Option<u64> {
        self.size
    }

    /// Up to `length` bytes at `offset`; fewer only at the end of the file.
    pub(super) fn up_to(&self, offset: u64, length: usize) -> Result<Vec<u8>, Gap> {
        if self.size.is_some_and(|size| offset >= size) {
            return Ok(Vec::new());
        }
        let left = self
            .left
            .get()
            .checked_sub(length)
            .ok_or(Gap::Unavailable)?;
        self.left.set(left);
        let mut found = vec![0; length];
        let mut filled = 0;
        while let Some(rest) = found.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let reads = self.reads.get().checked_sub(1).ok_or(Gap::Unavailable)?;
            self.reads.set(reads);
            let Some(at) = offset.checked_add(filled as u64) else {
                break;
            };
            match self.bytes.read_at(at, rest) {
                Ok(0) => break,
                // A source that claims more than it was asked for is not believed.
                Ok(count) => filled += count.min(rest.len()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Gap::Unavailable),
            }
        }
        found.truncate(filled);
        Ok(found)
    }

    /// Exactly `length` bytes at `offset`.
    pub(super) fn exactly(&self, offset: u64, length: usize) -> Result<Vec<u8>, Gap> {
        let end = offset.checked_add(length as u64).ok_or(Gap::End)?;
        if self.size.is_some_and(|size| end > size) {
            return Err(Gap::End);
        }
        let found = self.up_to(offset, length)?;
        if found.len() < length {
            return Err(Gap::End);
        }
        Ok(found)
    }
}

/// How numbers stand in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// 64-bit fields.
    pub(super) wide: bool,
    /// The lowest byte first.
    pub(super) little: bool,
}

impl Layout {
    pub(super) fn u16(self, bytes: &[u8], at: usize) -> Option<u16> {
        let field = <[u8; 2]>::try_from(bytes.get(at..at.checked_add(2)?)?).ok()?;
        Some(if self.little {
            u16::from_le_bytes(field)
        } else {
            u16::from_be_bytes(field)
        })
    }

    pub(super) fn u32(self, bytes: &[u8], at: usize) -> Option<u32> {
        let field = <[u8; 4]>::try_from(bytes.get(at..at.checked_add(4)?)?).ok()?;
        Some(if self.little {
            u32::from_le_bytes(field)
        } else {
            u32::from_be_bytes(field)
        })
    }

    pub(super) fn u64(self, bytes: &[u8], at: usize) -> Option<u64> {
        let field = <[u8; 8]>::try_from(bytes.get(at..at.checked_add(8)?)?).ok()?;
        Some(if self.little {
            u64::from_le_bytes(field)
        } else {
            u64::from_be_bytes(field)
        })
    }

    /// An address, an offset or a size: 8 bytes at `wide`, or 4 at `narrow`.
    pub(super) fn word(self, bytes: &[u8], wide: usize, narrow: usize) -> Option<u64> {
        if self.wide {
            self.u64(bytes, wide)
        } else {
            self.u32(bytes, narrow).map(u64::from)
        }
    }
}
