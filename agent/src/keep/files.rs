//! The files of a layer, compared with what its tar says: on the disk by directory handle,
//! never by a joined path.
//!
//! A file is compared in kind, size, content, permissions and owner, a symbolic link in where
//! it leads. Not compared are times, extended attributes, devices and pipes, and where a hard
//! link leads: it may be to a file of a layer below.
//!
//! One pass over the stream and little memory: what does not fit is suspected, and is
//! acquitted when a later entry of the same layer replaces or removes it. What is still
//! suspected at the end is damage. Whatever could have another reason than damage is
//! decided in favour of the files.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::File,
    io::Read,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat},
    sys::stat::{FileStat, fstatat},
};

use super::judge::{self, Difference, Reader};
use crate::{
    error::{Error, Result},
    kind::Kind,
    layout::{EntryKind, LayerEntries, LayerEntry},
};

/// Suspects that are remembered; of more only the number is known.
const MAX_SUSPECTS: usize = 1024;
/// Tries to open a directory while something on its file system is renamed.
const OPEN_TRIES: usize = 8;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A file that is not what its layer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    /// Relative to the root of the image.
    pub(super) path: String,
    pub(super) expected: String,
    pub(super) found: String,
}

/// What comparing a layer came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Compared {
    /// At most [`MAX_SUSPECTS`].
    pub(super) wrong: Vec<Wrong>,
    /// More of them than are listed.
    pub(super) more: u64,
    /// What the disk has less of than it should (bytes).
    pub(super) lost: u64,
}

/// Compares the layer that `tar` streams with `directory`, where it was unpacked. Fails
/// where nothing can be said: the stream cannot be read, or the directory not be opened.
pub(super) fn compare(tar: impl Read, directory: &Path) -> Result<Compared> {
    let root = File::open(directory).map_err(|error| {
        Error::io("open the layer's directory", directory, &error).hint("run this as root")
    })?;
    let mut layer = Layer::new(root.into(), directory)?;
    let mut entries = LayerEntries::new(tar);
    let mut compared = Compared::default();
    while let Some(entry) = entries.next_entry()? {
        layer.look(&entry, &mut entries)?;
    }
    if layer.suspects.is_empty() && layer.overflow > 0 {
        return Err(Error::new(
            Kind::Unsupported,
            "the layer replaces too many of its own files to be compared",
        ));
    }
    compared.more = layer.overflow;
    let lost = layer.suspects.values().map(|suspect| suspect.lost);
    compared.lost = lost.fold(layer.lost, u64::saturating_add);
    compared.wrong = layer
        .suspects
        .into_iter()
        .map(|(path, suspect)| Wrong {
            path: String::from_utf8_lossy(&path).into_owned(),
            expected: suspect.expected,
            found: suspect.found,
        })
        .collect();
    Ok(compared)
}

#[derive(Debug)]
struct Suspect {
    expected: String,
    found: String,
    /// Device and inode of what is there instead.
    inode: Option<(u64, u64)>,
    /// Only permissions or owner differ.
    attributes: bool,
    /// Bytes that the file is too short.
    lost: u64,
}

/// Where an entry is, as the disk has it in the end.
struct Place {
    /// The path without links in it, where there is such a directory; else as it was named.
    path: Vec<u8>,
    stat: Option<FileStat>,
}

struct Layer {
    root: OwnedFd,
    /// As the kernel names it.
    root_path: Vec<u8>,
    /// The directory of the last entry: the next one is mostly in it, too.
    parent: Option<(Vec<u8>, Option<OwnedFd>)>,
    suspects: BTreeMap<Vec<u8>, Suspect>,
    overflow: u64,
    /// Bytes that the files beyond are too short.
    lost: u64,
    /// Whether users and groups here are the ones that the layer speaks of.
    own_ids: bool,
    reader: Reader,
}

impl Layer {
    fn new(root: OwnedFd, directory: &Path) -> Result<Self> {
        let root_path = kernel_path(&root)
            .ok_or_else(|| cannot("look up", directory.as_os_str().as_bytes(), Errno::ENOENT))?;
        Ok(Self {
            root,
            root_path,
            parent: None,
            suspects: BTreeMap::new(),
            overflow: 0,
            lost: 0,
            own_ids: judge::has_own_ids(),
            reader: Reader::new(),
        })
    }

    fn look<R: Read>(&mut self, entry: &LayerEntry, entries: &mut LayerEntries<R>) -> Result<()> {
        if entry.path.is_empty() {
            return Ok(());
        }
        let (parent, name) = split(&entry.path);
        if name == OPAQUE {
            // What the layer unpacked before stays, but for what has no entry for the
            // directory that it is in.
            self.forget(parent, Forget::MissingBelow);
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            let place = self.place(parent, hidden)?;
            self.forget(&joined(parent, hidden), Forget::All);
            self.forget(&place.path, Forget::All);
            return Ok(());
        }
        let place = self.place(parent, name)?;
        if !self.suspects.is_empty() {
            // What was there before is replaced, a directory by a directory excepted.
            let what = match entry.kind {
                EntryKind::Directory => Forget::Replaced,
                _ => Forget::All,
            };
            self.forget(&entry.path, what);
            self.forget(&place.path, what);
        }
        let found = place.stat.as_ref();
        let inode = found.map(|stat| (wide(stat.st_dev), wide(stat.st_ino)));
        // Some unpackers give every name's owner and permissions to the file, others not.
        if entry.kind == EntryKind::HardLink {
            self.suspects
                .retain(|_, suspect| !suspect.attributes || suspect.inode != inode);
        }
        let mut difference = judge::kind(entry.kind, found);
        if difference.is_none()
            && let Some((_, Some(directory))) = &self.parent
        {
            difference = self.reader.content(directory, name, entry, entries)?;
        }
        let attributes = difference.is_none();
        if attributes {
            // The same file under another name: an entry that came before was replaced.
            if let (EntryKind::File(_), Some(inode)) = (entry.kind, inode) {
                self.suspects
                    .retain(|_, suspect| suspect.inode != Some(inode));
            }
            difference = found.and_then(|stat| judge::attributes(entry, stat, self.own_ids));
        }
        let Some(Difference { expected, found }) = difference else {
            return Ok(());
        };
        let lost = judge::lost(entry.kind, place.stat.as_ref());
        if self.suspects.len() >= MAX_SUSPECTS {
            self.overflow += 1;
            self.lost = self.lost.saturating_add(lost);
            return Ok(());
        }
        self.suspects.insert(
            place.path,
            Suspect {
                expected,
                found,
                inode,
                attributes,
                lost,
            },
        );
        Ok(())
    }

    /// Acquits what later entries of the layer explain.
    fn forget(&mut self, path: &[u8], what: Forget) {
        if what != Forget::MissingBelow {
            self.suspects.remove(path);
        }
        let mut from = path.to_vec();
        if !from.is_empty() {
            from.push(b'/');
        }
        let below: Vec<Vec<u8>> = self
            .suspects
            .range(from.clone()..)
            .take_while(|(path, _)| path.starts_with(&from))
            .filter(|(_, suspect)| what == Forget::All || suspect.inode.is_none())
            .map(|(path, _)| path.clone())
            .collect();
        for path in below {
            self.suspects.remove(&path);
        }
    }

    /// Follows the links of `parent` within the layer, as unpacking did, and no link in
    /// the place of `name`.
    fn place(&mut self, parent: &[u8], name: &[u8]) -> Result<Place> {
        let known = self.parent.as_ref().is_some_and(|(path, _)| path == parent);
        if !known {
            let opened = self.open(parent)?;
            self.parent = Some((parent.to_vec(), opened));
        }
        let as_named = joined(parent, name);
        let Some((_, Some(directory))) = &self.parent else {
            return Ok(Place {
                path: as_named,
                stat: None,
            });
        };
        let stat = match fstatat(
            directory,
            OsStr::from_bytes(name),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        ) {
            Ok(stat) => Some(stat),
            Err(Errno::ENOENT) => None,
            Err(errno) => return Err(cannot("look at", &as_named, errno)),
        };
        let path = kernel_path(directory)
            .and_then(|path| {
                let below = path.strip_prefix(self.root_path.as_slice())?;
                let below = below.strip_prefix(b"/").unwrap_or(below);
                Some(joined(below, name))
            })
            .unwrap_or(as_named);
        Ok(Place { path, stat })
    }

    /// The directory, if there is one.
    fn open(&self, path: &[u8]) -> Result<Option<OwnedFd>> {
        let path = if path.is_empty() { b"." } else { path };
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        for _ in 0..OPEN_TRIES {
            match openat2(&self.root, OsStr::from_bytes(path), how) {
                Ok(directory) => return Ok(Some(directory)),
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(None),
                // The kernel cannot rule out that a rename led it astray.
                Err(Errno::EAGAIN) => {}
                Err(Errno::ENOSYS) => {
                    return Err(Error::new(
                        Kind::Unsupported,
                        "this kernel cannot open files within a directory (openat2, since 5.6)",
                    ));
                }
                Err(errno) => return Err(cannot("open", path, errno)),
            }
        }
        Err(cannot("open", path, Errno::EAGAIN))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Forget {
    /// The path, and everything below it.
    All,
    /// The path, and what is not there below it: a directory may have taken the place of
    /// a link that led to where it is.
    Replaced,
    /// What is not there below it.
    MissingBelow,
}

/// Numbers of the system are 32 or 64 bits wide, by target.
fn wide(number: impl Into<u64>) -> u64 {
    number.into()
}

fn kernel_path(directory: &OwnedFd) -> Option<Vec<u8>> {
    use std::os::fd::AsRawFd;

    let link = format!("/proc/self/fd/{}", directory.as_fd().as_raw_fd());
    let path = readlinkat(nix::fcntl::AT_FDCWD, link.as_str()).ok()?;
    Some(path.as_bytes().to_vec())
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (
            path.get(..at).unwrap_or_default(),
            path.get(at.saturating_add(1)..).unwrap_or_default(),
        ),
        None => (b"", path),
    }
}

fn joined(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() {
        name.to_vec()
    } else {
        [parent, b"/", name].concat()
    }
}

fn cannot(action: &str, path: &[u8], errno: Errno) -> Error {
    let path = Path::new(OsStr::from_bytes(path));
    Error::io(action, path, &errno.into())
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
