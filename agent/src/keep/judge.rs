//! Whether what is on the disk in a place is what the layer's entry says.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, ErrorKind, Read},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat, readlinkat},
    sys::stat::{FileStat, Mode, SFlag, fstat},
};

use crate::{
    error::{Error, Result},
    layout::{EntryKind, LayerEntries, LayerEntry, Piece},
};

/// Files are read in pieces of this size (bytes).
const BUFFER: usize = 64 << 10;
/// Of where a link leads, what is told (bytes).
const TOLD: usize = 256;
/// What a whole user namespace looks like in `/proc/self/uid_map`.
const ALL_IDS: [&str; 3] = ["0", "0", "4294967295"];

/// What differs from the layer, in words.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) expected: String,
    pub(super) found: String,
}

/// What is there instead of what the entry makes: in kind and size, without reading it.
pub(super) fn kind(kind: EntryKind, found: Option<&FileStat>) -> Option<Difference> {
    let is = |kind: SFlag| found.is_some_and(|stat| file_type(stat) == kind);
    let (fits, expected) = match kind {
        EntryKind::File(size) => (
            is(SFlag::S_IFREG) && found.is_some_and(|stat| size_of(stat) == size),
            format!("a file of {size} bytes"),
        ),
        // To what, is not looked at: a link to a link is one, too.
        EntryKind::HardLink => (found.is_some(), "a hard link".to_owned()),
        EntryKind::Symlink => (is(SFlag::S_IFLNK), "a symbolic link".to_owned()),
        EntryKind::Directory => (is(SFlag::S_IFDIR), "a directory".to_owned()),
        // Not every host lets devices be made, and no power cut takes one away.
        EntryKind::Special => (true, String::new()),
    };
    (!fits).then(|| Difference {
        expected,
        found: found.map_or("nothing".to_owned(), describe),
    })
}

/// Bytes that what is there has less than the entry's file.
pub(super) fn lost(kind: EntryKind, found: Option<&FileStat>) -> u64 {
    let there = found.filter(|stat| file_type(stat) == SFlag::S_IFREG);
    match kind {
        EntryKind::File(size) => size.saturating_sub(there.map_or(0, size_of)),
        _ => 0,
    }
}

/// What permissions and owner are instead of the entry's. With `own_ids` users and groups
/// here are those that the layer speaks of.
pub(super) fn attributes(entry: &LayerEntry, stat: &FileStat, own_ids: bool) -> Option<Difference> {
    let (has_mode, has_owner) = match entry.kind {
        EntryKind::File(_) | EntryKind::Directory => (true, own_ids),
        EntryKind::Symlink => (false, own_ids),
        // The file has those of another entry, perhaps.
        EntryKind::HardLink | EntryKind::Special => (false, false),
    };
    let mode = entry.mode.filter(|_| has_mode);
    let owner = entry.owner.filter(|_| has_owner);
    let here = (stat.st_mode & 0o7777, (stat.st_uid, stat.st_gid));
    if mode.is_none_or(|mode| mode == here.0) && owner.is_none_or(|owner| owner == here.1) {
        return None;
    }
    let words = |mode: Option<u32>, owner: Option<(u32, u32)>| {
        let mode = mode.map(|mode| format!("permissions {mode:04o}"));
        let owner = owner.map(|(user, group)| format!("owner {user}:{group}"));
        let both: Vec<String> = mode.into_iter().chain(owner).collect();
        both.join(", ")
    };
    Some(Difference {
        expected: words(mode, owner),
        found: words(mode.map(|_| here.0), owner.map(|_| here.1)),
    })
}

/// Whether this process sees users and groups as the kernel has them.
pub(super) fn has_own_ids() -> bool {
    let is_whole = |path: &str| {
        std::fs::read_to_string(path).is_ok_and(|text| text.split_whitespace().eq(ALL_IDS))
    };
    is_whole("/proc/self/uid_map") && is_whole("/proc/self/gid_map")
}

/// Compares contents, with one buffer for all of them.
#[derive(Debug)]
pub(super) struct Reader(Vec<u8>);

impl Reader {
    pub(super) fn new() -> Self {
        Self(vec![0; BUFFER])
    }

    /// What is in `name` of `directory`, of the kind and the size that `entry` has, instead
    /// of what the layer says.
    pub(super) fn content<R: Read>(
        &mut self,
        directory: &OwnedFd,
        name: &[u8],
        entry: &LayerEntry,
        entries: &mut LayerEntries<R>,
    ) -> Result<Option<Difference>> {
        let name = OsStr::from_bytes(name);
        match entry.kind {
            EntryKind::Symlink => {
                let there = readlinkat(directory, name).map_err(|e| cannot(name, &e.into()))?;
                Ok(link(&entry.target, there.as_bytes()))
            }
            EntryKind::File(size) if size > 0 => {
                let file = open(directory, name).and_then(|file| self.file(file, entries));
                match file {
                    Ok(None) => Ok(None),
                    Ok(Some(at)) => Ok(Some(Difference {
                        expected: "the layer's content".to_owned(),
                        found: format!("other content from byte {at} on"),
                    })),
                    Err(Failure::Layer(error)) => Err(error),
                    // The disk has lost it.
                    Err(Failure::File(error)) if is_lost(&error) => Ok(Some(Difference {
                        expected: format!("a file of {size} bytes"),
                        found: format!("a file that cannot be read ({error})"),
                    })),
                    Err(Failure::File(error)) => Err(cannot(name, &error)),
                }
            }
            _ => Ok(None),
        }
    }

    /// The first byte of the file that is not the layer's.
    fn file<R: Read>(
        &mut self,
        mut file: File,
        entries: &mut LayerEntries<R>,
    ) -> Result<Option<u64>, Failure> {
        let mut at = 0_u64;
        while let Some(piece) = entries.next_piece().map_err(Failure::Layer)? {
            let (mut data, mut left) = match piece {
                Piece::Data(data) => (Some(data), data.len() as u64),
                Piece::Hole(length) => (None, length),
            };
            while left > 0 {
                let wanted = usize::try_from(left).map_or(BUFFER, |left| left.min(BUFFER));
                let buffer = self.0.get_mut(..wanted).unwrap_or_default();
                let read = match file.read(buffer) {
                    Ok(0) => return Ok(Some(at)),
                    Ok(read) => read,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => return Err(Failure::File(error)),
                };
                let found = buffer.get(..read).unwrap_or_default();
                let first = match &mut data {
                    Some(data) => {
                        let (these, rest) = data.split_at(read.min(data.len()));
                        *data = rest;
                        found.iter().zip(these).position(|(a, b)| a != b)
                    }
                    None => found.iter().position(|byte| *byte != 0),
                };
                if let Some(first) = first {
                    return Ok(Some(at.saturating_add(first as u64)));
                }
                at = at.saturating_add(read as u64);
                left = left.saturating_sub(read as u64);
            }
        }
        Ok(None)
    }
}

enum Failure {
    /// Of the stream that the layer comes from.
    Layer(Error),
    File(io::Error),
}

fn link(expected: &[u8], found: &[u8]) -> Option<Difference> {
    let words = |target: &[u8]| {
        let told = target.get(..TOLD).unwrap_or(target);
        format!("a symbolic link to `{}`", String::from_utf8_lossy(told))
    };
    (expected != found).then(|| Difference {
        expected: words(expected),
        found: words(found),
    })
}

fn open(directory: &OwnedFd, name: &OsStr) -> Result<File, Failure> {
    // It was a file a moment ago; should it be a pipe by now, nobody waits for it.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    // A look wears no flash out, where the kernel lets us.
    let opened = match openat(directory, name, flags | OFlag::O_NOATIME, Mode::empty()) {
        Err(Errno::EPERM) => openat(directory, name, flags, Mode::empty()),
        other => other,
    };
    let failed = |errno: Errno| Failure::File(errno.into());
    let file = opened.map_err(failed)?;
    match file_type(&fstat(&file).map_err(failed)?) {
        SFlag::S_IFREG => Ok(file.into()),
        _ => Err(failed(Errno::EAGAIN)),
    }
}

/// What a kernel answers when the disk does not give back what was written to it.
fn is_lost(error: &io::Error) -> bool {
    let lost = [Errno::EIO, Errno::EUCLEAN, Errno::EBADMSG];
    let code = error.raw_os_error();
    lost.iter().any(|errno| code == Some(*errno as i32))
}

fn cannot(name: &OsStr, error: &io::Error) -> Error {
    Error::io("read", Path::new(name), error)
}

fn describe(stat: &FileStat) -> String {
    match file_type(stat) {
        SFlag::S_IFREG => format!("a file of {} bytes", size_of(stat)),
        SFlag::S_IFDIR => "a directory".to_owned(),
        SFlag::S_IFLNK => "a symbolic link".to_owned(),
        _ => "a device or a pipe".to_owned(),
    }
}

fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

fn size_of(stat: &FileStat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn permissions_and_owner_are_the_entrys_where_they_can_be() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        std::fs::write(&path, b"x").expect("written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o4750)).expect("set");
        let there = std::fs::metadata(&path).expect("there");
        let owner = (there.uid(), there.gid());
        let stat = nix::sys::stat::stat(&path).expect("there");
        let found = |kind, mode, owner, own_ids| {
            let entry = LayerEntry {
                path: b"file".to_vec(),
                kind,
                target: Vec::new(),
                mode,
                owner,
            };
            attributes(&entry, &stat, own_ids).map(|difference| difference.found)
        };
        let file = EntryKind::File(1);
        assert_eq!(found(file, Some(0o4750), Some(owner), true), None);
        assert_eq!(found(file, None, None, true), None);
        let wrong = found(file, Some(0o750), None, true);
        assert_eq!(wrong.as_deref(), Some("permissions 4750"));
        let other = Some((owner.0 + 1, owner.1));
        let wrong = found(file, Some(0o4750), other, true).expect("another owner");
        let told = format!("permissions 4750, owner {}:{}", owner.0, owner.1);
        assert_eq!(wrong, told);
        assert_eq!(found(file, Some(0o4750), other, false), None, "mapped");
        for kind in [EntryKind::HardLink, EntryKind::Special] {
            assert_eq!(found(kind, Some(0), other, true), None);
        }
        assert!(found(EntryKind::Symlink, Some(0), Some(owner), true).is_none());
        assert!(found(EntryKind::Symlink, Some(0), other, true).is_some());
    }

    #[test]
    fn a_failing_disk_is_told_from_a_failing_look() {
        for (errno, lost) in [
            (Errno::EIO, true),
            (Errno::EUCLEAN, true),
            (Errno::EACCES, false),
            (Errno::EMFILE, false),
        ] {
            assert_eq!(is_lost(&errno.into()), lost, "{errno}");
        }
    }
}
