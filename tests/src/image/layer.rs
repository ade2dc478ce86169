//! One layer: a tar stream, written entry by entry, never held in memory.

use std::io::{self, Read, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use ring::digest::{Context, SHA256};
use tar::{EntryType, Header};

use super::layout::{Blob, BlobWriter, Layout, text_of};

/// 2001-09-09: every file of the lab is that old.
const MTIME: u64 = 1_000_000_000;

/// A layer being written.
pub struct Layer<'a> {
    layout: &'a Layout,
    tar: tar::Builder<Hashing<GzEncoder<BlobWriter>>>,
}

impl std::fmt::Debug for Layer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layer").finish_non_exhaustive()
    }
}

/// A finished layer.
#[derive(Debug, Clone)]
pub(super) struct Finished {
    pub(super) blob: Blob,
    pub(super) diff_id: String,
}

impl<'a> Layer<'a> {
    /// A gzip layer, written into `layout`.
    #[track_caller]
    pub fn new(layout: &'a Layout) -> Self {
        Self::compressed(layout, Compression::fast())
    }

    /// A gzip layer whose content is stored only: for content that does not compress.
    #[track_caller]
    pub fn stored(layout: &'a Layout) -> Self {
        Self::compressed(layout, Compression::none())
    }

    fn compressed(layout: &'a Layout, level: Compression) -> Self {
        let blob = layout.writer().expect("the layout can be written to");
        let gzip = flate2::GzBuilder::new().mtime(0).write(blob, level);
        Self {
            layout,
            tar: tar::Builder::new(Hashing::new(gzip)),
        }
    }

    fn entry(&mut self, path: &str, kind: EntryType, mode: u32, size: u64, data: impl Read) {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(MTIME);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(size);
        self.tar
            .append_data(&mut header, path, data)
            .unwrap_or_else(|e| panic!("{path}: {e}"));
    }

    /// A directory.
    #[must_use]
    pub fn dir(mut self, path: &str) -> Self {
        self.entry(
            &format!("{path}/"),
            EntryType::Directory,
            0o755,
            0,
            io::empty(),
        );
        self
    }

    /// A file.
    #[must_use]
    pub fn file(mut self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.entry(
            path,
            EntryType::Regular,
            mode,
            content.len() as u64,
            content,
        );
        self
    }

    /// A copy of a file of this machine.
    #[must_use]
    pub fn copy(mut self, path: &str, mode: u32, from: &Path) -> Self {
        let file = std::fs::File::open(from).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
        let size = file.metadata().expect("an open file has metadata").len();
        self.entry(path, EntryType::Regular, mode, size, file);
        self
    }

    /// A file of incompressible content.
    #[must_use]
    pub fn noise(mut self, path: &str, size: u64, seed: u64) -> Self {
        self.entry(
            path,
            EntryType::Regular,
            0o644,
            size,
            Noise::new(seed).take(size),
        );
        self
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.link(path, target, EntryType::Symlink)
    }

    /// A hard link to an earlier entry.
    #[must_use]
    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.link(path, target, EntryType::Link)
    }

    fn link(mut self, path: &str, target: &str, kind: EntryType) -> Self {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Symlink {
            0o777
        } else {
            0o644
        });
        header.set_mtime(MTIME);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        self.tar
            .append_link(&mut header, path, target)
            .unwrap_or_else(|e| panic!("{path}: {e}"));
        self
    }

    /// Deletes what a lower layer has there.
    #[must_use]
    pub fn whiteout(self, path: &str) -> Self {
        let marker = match path.rsplit_once('/') {
            Some((dir, name)) => format!("{dir}/.wh.{name}"),
            None => format!(".wh.{path}"),
        };
        self.file(&marker, 0o644, b"")
    }

    /// Hides all that lower layers have in a directory.
    #[must_use]
    pub fn opaque(self, dir: &str) -> Self {
        self.file(&format!("{dir}/.wh..wh..opq"), 0o644, b"")
    }

    /// A file with an extended attribute.
    #[must_use]
    pub fn file_with_xattr(mut self, path: &str, content: &[u8], name: &str, value: &[u8]) -> Self {
        let key = format!("SCHILY.xattr.{name}");
        self.tar
            .append_pax_extensions([(key.as_str(), value)])
            .unwrap_or_else(|e| panic!("{path}: {e}"));
        self.file(path, 0o755, content)
    }

    /// Extended headers of the entry that comes next.
    #[must_use]
    pub fn pax(mut self, records: &[(&str, &str)]) -> Self {
        let records = records.iter().map(|(key, value)| (*key, value.as_bytes()));
        self.tar
            .append_pax_extensions(records)
            .expect("the layer can be written");
        self
    }

    /// Any other entry: device, FIFO, owner, mode.
    #[must_use]
    pub fn raw(mut self, path: &str, edit: impl FnOnce(&mut Header), content: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_mtime(MTIME);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(content.len() as u64);
        edit(&mut header);
        self.tar
            .append_data(&mut header, path, content)
            .unwrap_or_else(|e| panic!("{path}: {e}"));
        self
    }

    /// Ends the layer.
    #[track_caller]
    pub(super) fn finish(self) -> Finished {
        let hashing = self.tar.into_inner().expect("the layer can be written");
        let (gzip, diff_id) = hashing.finish();
        let blob = gzip
            .finish()
            .and_then(|blob| blob.keep(self.layout))
            .expect("the layer can be written");
        Finished { blob, diff_id }
    }
}

/// Hashes what goes through: the diff id.
struct Hashing<W> {
    inner: W,
    hash: Context,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hash: Context::new(&SHA256),
        }
    }

    fn finish(self) -> (W, String) {
        (self.inner, text_of(self.hash.finish().as_ref()))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// An endless stream that does not compress and is the same for the same seed.
#[derive(Debug)]
pub struct Noise {
    block: Vec<u8>,
    round: u64,
    at: usize,
}

impl Noise {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        // xorshift64*: a block far larger than gzip's window, told apart per round by its head.
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut block = Vec::with_capacity(1 << 18);
        while block.len() < 1 << 18 {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            block.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
        }
        Self {
            block,
            round: 0,
            at: 0,
        }
    }
}

impl Read for Noise {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.at == self.block.len() {
            self.at = 0;
            self.round += 1;
            self.block[..8].copy_from_slice(&self.round.to_le_bytes());
        }
        let n = to.len().min(self.block.len() - self.at);
        to[..n].copy_from_slice(&self.block[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}
