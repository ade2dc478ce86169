//! The files of a layer, compared with what its tar says: on the disk by directory handle,
//! never by a joined path.
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
    sys::stat::{FileStat, SFlag, fstatat},
};

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
    pub(super) entries: u64,
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
        compared.entries += 1;
        layer.look(&entry)?;
    }
    if layer.suspects.is_empty() && layer.overflow > 0 {
        return Err(Error::new(
            Kind::Unsupported,
            "the layer replaces too many of its own files to be compared",
        ));
    }
    compared.more = layer.overflow;
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
        })
    }

    fn look(&mut self, entry: &LayerEntry) -> Result<()> {
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
        let (fits, expected) = judge(entry.kind, found);
        if fits {
            // The same file under another name: an entry that came before was replaced.
            if let (EntryKind::File(_), Some(inode)) = (entry.kind, inode) {
                self.suspects
                    .retain(|_, suspect| suspect.inode != Some(inode));
            }
            return Ok(());
        }
        if self.suspects.len() >= MAX_SUSPECTS {
            self.overflow += 1;
            return Ok(());
        }
        let found = found.map_or("nothing".to_owned(), describe);
        self.suspects.insert(
            place.path,
            Suspect {
                expected,
                found,
                inode,
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

/// Whether it is what the layer says, and what that is.
fn judge(kind: EntryKind, found: Option<&FileStat>) -> (bool, String) {
    let is = |kind: SFlag| found.is_some_and(|stat| file_type(stat) == kind);
    match kind {
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
    }
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
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    /// A layer: names and contents; a name with `/` at its end is a directory.
    fn layer(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            if name.ends_with('/') {
                header.set_entry_type(tar::EntryType::Directory);
            }
            builder
                .append_data(&mut header, name, *content)
                .expect("in memory");
        }
        builder.into_inner().expect("in memory")
    }

    fn link(builder: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, to: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        builder
            .append_link(&mut header, name, to)
            .expect("in memory");
    }

    fn wrong(tar: &[u8], directory: &Path) -> Vec<String> {
        let compared = compare(tar, directory).expect("compared");
        compared
            .wrong
            .into_iter()
            .map(|wrong| format!("{}: {}", wrong.path, wrong.found))
            .collect()
    }

    #[test]
    fn what_differs_is_named_and_the_rest_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = dir.path();
        fs::create_dir_all(at.join("a/b")).expect("made");
        for (name, content) in [("a/full", "full"), ("a/empty", ""), ("a/b/long", "longer")] {
            fs::write(at.join(name), content).expect("written");
        }
        fs::create_dir(at.join("a/dir")).expect("made");
        let tar = layer(&[
            ("a/", b""),
            ("a/full", b"full"),
            ("a/empty", b"not empty"),
            ("a/b/long", b"long"),
            ("a/gone", b"gone"),
            ("a/dir", b"a file"),
            ("none/x", b"x"),
            (".wh.old", b""),
        ]);
        assert_eq!(
            wrong(&tar, at),
            [
                "a/b/long: a file of 6 bytes",
                "a/dir: a directory",
                "a/empty: a file of 0 bytes",
                "a/gone: nothing",
                "none/x: nothing",
            ]
        );
    }

    #[test]
    fn links_are_followed_within_the_layer_and_never_out_of_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = dir.path().join("layer");
        fs::create_dir_all(at.join("usr/lib")).expect("made");
        fs::write(dir.path().join("outside"), b"1234").expect("written");
        fs::write(at.join("usr/lib/x"), b"1234").expect("written");
        symlink("/usr/lib", at.join("lib")).expect("linked");
        symlink("../..", at.join("usr/out")).expect("linked");
        symlink(dir.path().join("outside"), at.join("file")).expect("linked");
        let mut builder = tar::Builder::new(Vec::new());
        link(&mut builder, tar::EntryType::Symlink, "lib", "/usr/lib");
        let links = builder.into_inner().expect("in memory");
        let links = &links[..512];
        let tar = [
            links,
            &layer(&[
                ("lib/x", b"1234"),
                ("usr/out/outside", b"1234"),
                ("file", b"1234"),
            ]),
        ]
        .concat();
        assert_eq!(
            wrong(&tar, &at),
            ["file: a symbolic link", "outside: nothing"]
        );
    }

    #[test]
    fn later_entries_of_the_layer_explain_what_is_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = dir.path();
        fs::create_dir_all(at.join("usr")).expect("made");
        symlink("usr", at.join("via")).expect("linked");
        fs::write(at.join("usr/f"), b"22").expect("written");
        fs::write(at.join("twice"), b"22").expect("written");
        fs::write(at.join("was-a-directory"), b"22").expect("written");
        let tar = layer(&[
            ("twice", b"1"),
            ("twice", b"22"),
            ("via/f", b"1"),
            ("usr/f", b"22"),
            ("was-a-directory/deep/x", b"1"),
            ("was-a-directory", b"22"),
            ("hidden/x", b"1"),
            (".wh.hidden", b""),
            ("implicit/sub/x", b"1"),
            ("implicit/.wh..wh..opq", b""),
        ]);
        assert!(wrong(&tar, at).is_empty(), "{:?}", wrong(&tar, at));
        // The order matters: what comes first explains nothing.
        let tar = layer(&[("twice", b"22"), ("twice", b"1")]);
        assert_eq!(wrong(&tar, at), ["twice: a file of 2 bytes"]);
    }

    #[test]
    fn an_emptied_file_is_not_excused_by_its_other_names() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = dir.path();
        fs::write(at.join("one"), b"").expect("written");
        fs::hard_link(at.join("one"), at.join("two")).expect("linked");
        let mut builder = tar::Builder::new(Vec::new());
        link(&mut builder, tar::EntryType::Link, "two", "one");
        let tail = builder.into_inner().expect("in memory");
        let head = layer(&[("one", b"content")]);
        let tar = [&head[..1024], &tail].concat();
        assert_eq!(wrong(&tar, at), ["one: a file of 0 bytes"]);
    }

    #[test]
    fn memory_is_bounded_and_the_number_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let names: Vec<String> = (0..1500).map(|n| format!("f{n}")).collect();
        let entries: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), &b"x"[..])).collect();
        let compared = compare(layer(&entries).as_slice(), dir.path()).expect("compared");
        assert_eq!((compared.wrong.len(), compared.more), (1024, 476));
        // All of them explained: then nothing can be said.
        let mut all = entries.clone();
        let whiteouts: Vec<String> = names.iter().map(|n| format!(".wh.{n}")).collect();
        all.extend(whiteouts.iter().map(|n| (n.as_str(), &b""[..])));
        assert!(compare(layer(&all).as_slice(), dir.path()).is_err());
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_no_damage() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(compare(&[1_u8; 600][..], dir.path()).is_err());
        assert!(compare(&b""[..], &dir.path().join("none")).is_err());
    }
}
