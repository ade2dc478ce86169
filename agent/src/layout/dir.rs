//! A directory by handle. Names under it are single components and are never
//! followed when they are symlinks, so nothing is read or written outside it.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg, OFlag, openat, renameat},
    sys::stat::{Mode, mkdirat},
    unistd::{UnlinkatFlags, fsync, unlinkat},
};

use crate::{
    error::{Error, Result},
    kind::Kind,
};

/// An index update holds the lock for a few file operations; who holds it this
/// long hangs.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
const LOCK_POLL: Duration = Duration::from_millis(20);

/// A directory that was opened once; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Dir {
    fd: Arc<OwnedFd>,
    /// Only for messages and listings.
    path: PathBuf,
}

/// A file with an advisory lock on it, until it is dropped.
#[derive(Debug)]
pub(super) struct Locked(Option<Flock<File>>);

/// What happened to an attempt to lock.
#[derive(Debug)]
pub(super) enum Attempt {
    Got(Locked),
    Busy,
}

impl Locked {
    /// Tries to lock `file` for this open file description alone.
    pub(super) fn attempt(file: File, path: &Path) -> Result<Attempt> {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Attempt::Got(Self(Some(lock)))),
            Err((_, Errno::EWOULDBLOCK)) => Ok(Attempt::Busy),
            Err((_, errno)) => Err(Error::io("lock", path, &errno.into())),
        }
    }

    pub(super) fn file(&self) -> io::Result<&File> {
        // Empty only while dropping.
        self.0
            .as_deref()
            .ok_or_else(|| io::Error::other("the lock is gone"))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // `Flock` panics when unlocking fails. Closing unlocks as well, so a
        // failure is worth no more than one leaked descriptor.
        if let Some(Err((lock, _))) = self.0.take().map(Flock::unlock) {
            std::mem::forget(lock);
        }
    }
}

/// A name that is unlinked again unless it is kept: nothing half-done stays.
#[derive(Debug)]
pub(super) struct Temporary {
    dir: Dir,
    name: String,
    file: Option<Locked>,
}

impl Temporary {
    pub(super) fn file(&self) -> io::Result<&File> {
        self.file
            .as_ref()
            .ok_or_else(|| io::Error::other("the temporary file is gone"))?
            .file()
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.path.join(&self.name)
    }

    /// Makes the bytes durable, without making them visible.
    pub(super) fn sync(&self) -> Result<()> {
        self.file()
            .and_then(File::sync_all)
            .map_err(|error| Error::io("sync", &self.path(), &error))
    }

    /// Lets everybody read it who gets there, whatever the umask.
    pub(super) fn readable(&self) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;

        self.file()
            .and_then(|file| file.set_permissions(std::fs::Permissions::from_mode(0o644)))
            .map_err(|error| Error::io("write", &self.path(), &error))
    }

    /// The visible step: the synced file gets its name.
    pub(super) fn publish(mut self, name: &str) -> Result<()> {
        self.dir.rename(&self.name, &self.dir, name)?;
        // Renamed: there is nothing left to unlink.
        self.name.clear();
        self.dir.sync()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            // Best effort; the next writer of the same target takes it over.
            let _ = self.dir.unlink(&self.name);
        }
    }
}

impl Dir {
    /// Opens the directory that the user named; links in that name are the user's choice.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let fd = nix::fcntl::open(path, flags, Mode::empty())
            .map_err(|errno| Error::io("open directory", path, &errno.into()))?;
        Ok(Self {
            fd: Arc::new(fd),
            path: path.to_owned(),
        })
    }

    /// Creates the directory that the user named, with its parents, and opens it.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let missing: Vec<&Path> = path
            .ancestors()
            .take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists())
            .collect();
        std::fs::create_dir_all(path)
            .map_err(|error| Error::io("create directory", path, &error))?;
        // A new name is durable when the directory that has it is.
        for parent in missing.iter().filter_map(|dir| dir.parent()) {
            Self::open(parent)?.sync()?;
        }
        Self::open(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn fail(&self, action: &str, name: &str, errno: Errno) -> Error {
        let error = Error::io(action, &self.at(name), &errno.into());
        match errno {
            // O_NOFOLLOW on a link, O_DIRECTORY on something else.
            Errno::ELOOP | Errno::ENOTDIR => error
                .with_kind(Kind::InvalidContent)
                .hint("links are not followed inside an image layout"),
            _ => error,
        }
    }

    /// The directory `name` in this one, if there is one.
    pub(super) fn child(&self, name: &str) -> Result<Option<Self>> {
        match self.open_at(name, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()) {
            Ok(fd) => Ok(Some(Self {
                fd: Arc::new(fd),
                path: self.at(name),
            })),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(self.fail("open directory", name, errno)),
        }
    }

    /// The directory `name` in this one, made if need be.
    pub(super) fn ensure_child(&self, name: &str) -> Result<Self> {
        match mkdirat(&*self.fd, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) => self.sync()?,
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(self.fail("create directory", name, errno)),
        }
        self.child(name)?
            .ok_or_else(|| self.fail("open directory", name, Errno::ENOENT))
    }

    fn open_at(&self, name: &str, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
        // O_NONBLOCK: opening a fifo that somebody left here must not hang.
        // O_LARGEFILE: 32-bit targets refuse to open layers of 2 GiB without it.
        let flags =
            flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_LARGEFILE;
        openat(&*self.fd, name, flags, mode)
    }

    /// The regular file `name`, for reading, and its size.
    pub(super) fn file(&self, name: &str) -> Result<Option<(File, u64)>> {
        let file = match self.open_at(name, OFlag::O_RDONLY, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(self.fail("open", name, errno)),
        };
        let meta = file
            .metadata()
            .map_err(|error| Error::io("read", &self.at(name), &error))?;
        if !meta.is_file() {
            return Err(Error::new(
                Kind::InvalidContent,
                format_args!("`{}` is not a regular file", self.at(name).display()),
            ));
        }
        Ok(Some((file, meta.len())))
    }

    /// The whole of a small file; a bigger one is refused, not cut.
    pub(super) fn read_small(&self, name: &str, limit: u64) -> Result<Option<Bytes>> {
        let Some((file, size)) = self.file(name)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        // The size is a guess by now: one byte more than allowed tells.
        let read = file
            .take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| Error::io("read", &self.at(name), &error))?;
        if read as u64 > limit || size > limit {
            return Err(Error::new(
                Kind::InvalidContent,
                format_args!(
                    "`{}` is bigger than the {limit} bytes that are read into memory",
                    self.at(name).display()
                ),
            ));
        }
        Ok(Some(bytes.into()))
    }

    /// Opens `name` for reading and writing, made if need be. `None`: this
    /// directory itself was removed meanwhile.
    pub(super) fn read_write(&self, name: &str) -> Result<Option<File>> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT;
        let file = match self.open_at(name, flags, Mode::from_bits_truncate(0o644)) {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(self.fail("create", name, errno)),
        };
        let meta = file
            .metadata()
            .map_err(|error| Error::io("read", &self.at(name), &error))?;
        // A second hard link would let whoever made it change verified bytes.
        if !meta.is_file() || meta.nlink() > 1 {
            return Err(Error::new(
                Kind::InvalidContent,
                format_args!("`{}` is not a plain file of ours", self.at(name).display()),
            )
            .hint("remove it and try again"));
        }
        Ok(Some(file))
    }

    /// Whether `name` still is `file`.
    pub(super) fn names(&self, name: &str, file: &File) -> Result<bool> {
        let read = |error: io::Error| Error::io("read", &self.at(name), &error);
        let Some((here, _)) = self.file(name)? else {
            return Ok(false);
        };
        let (here, there) = (
            here.metadata().map_err(read)?,
            file.metadata().map_err(read)?,
        );
        Ok((here.dev(), here.ino()) == (there.dev(), there.ino()))
    }

    /// Removes `name` unless somebody holds it. Only under the lock, and only while
    /// the name is the locked file: else it may be a new one of somebody else.
    /// `false`: it is held.
    pub(super) fn unlink_stale(&self, name: &str) -> Result<bool> {
        let Some((stale, _)) = self.file(name)? else {
            return Ok(true);
        };
        match Locked::attempt(stale, &self.at(name))? {
            Attempt::Busy => Ok(false),
            Attempt::Got(held) => {
                if self.names(name, held.file().map_err(|error| io_lock(&error))?)? {
                    self.unlink(name)?;
                }
                Ok(true)
            }
        }
    }

    /// Makes a new file `name` that vanishes unless it is published. One that a
    /// crash left behind is taken over; one that somebody is writing is not.
    pub(super) fn temporary(&self, name: &str) -> Result<Temporary> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        for _ in 0..3 {
            let file = match self.open_at(name, flags, Mode::from_bits_truncate(0o644)) {
                Ok(fd) => File::from(fd),
                Err(Errno::EEXIST) => {
                    if self.unlink_stale(name)? {
                        continue;
                    }
                    break;
                }
                Err(errno) => return Err(self.fail("create", name, errno)),
            };
            let mut temporary = Temporary {
                dir: self.clone(),
                name: name.to_owned(),
                file: None,
            };
            match Locked::attempt(file, &self.at(name))? {
                Attempt::Got(file)
                    if self.names(name, file.file().map_err(|error| io_lock(&error))?)? =>
                {
                    temporary.file = Some(file);
                    return Ok(temporary);
                }
                // Another process took our new file for a stale one.
                Attempt::Got(_) | Attempt::Busy => temporary.name.clear(),
            }
        }
        Err(Error::new(
            Kind::Unavailable,
            format_args!(
                "`{}` is being written by another process",
                self.at(name).display()
            ),
        ))
    }

    pub(super) fn rename(&self, from: &str, to: &Self, name: &str) -> Result<()> {
        renameat(&*self.fd, from, &*to.fd, name)
            .map_err(|errno| to.fail("put in place", name, errno))
    }

    /// Removes the file `name`; that there is none is fine.
    pub(super) fn unlink(&self, name: &str) -> Result<()> {
        match unlinkat(&*self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(self.fail("remove", name, errno)),
        }
    }

    /// Removes the directory `name` if it is empty.
    pub(super) fn remove_empty(&self, name: &str) {
        // Not empty is the normal answer; anything else is no worse than a left directory.
        let _ = unlinkat(&*self.fd, name, UnlinkatFlags::RemoveDir);
    }

    /// Makes renames and new names in this directory durable.
    pub(super) fn sync(&self) -> Result<()> {
        match fsync(&*self.fd) {
            // Some network file systems cannot sync a directory, and need not.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOTSUP) => Ok(()),
            Err(errno) => Err(Error::io("sync", &self.path, &errno.into())),
        }
    }

    /// The names in this directory; at most `limit` of them.
    pub(super) fn list(&self, limit: usize) -> Result<Vec<String>> {
        let read = |error: io::Error| Error::io("list", &self.path, &error);
        std::fs::read_dir(&self.path)
            .map_err(read)?
            .take(limit)
            .map(|entry| {
                entry
                    .map(|entry| entry.file_name().to_string_lossy().into_owned())
                    .map_err(read)
            })
            .collect()
    }

    /// Locks the directory against other writers; blocks, but not for ever.
    /// The lock is on the directory itself: it leaves no file behind, and works
    /// where the layout is on a network file system.
    pub(super) fn lock(&self) -> Result<Locked> {
        let started = Instant::now();
        loop {
            // A new open file description: locks are between those, and the
            // handle we hold is shared by every clone in this process.
            let fd = openat(
                self.fd.as_fd(),
                ".",
                OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
                Mode::empty(),
            )
            .map_err(|errno| self.fail("lock", ".", errno))?;
            match Locked::attempt(File::from(fd), &self.path)? {
                Attempt::Got(lock) => return Ok(lock),
                Attempt::Busy if started.elapsed() > LOCK_PATIENCE => {
                    return Err(Error::new(
                        Kind::Timeout,
                        format_args!(
                            "`{}` has been locked by another process for {} s",
                            self.path.display(),
                            LOCK_PATIENCE.as_secs()
                        ),
                    ));
                }
                Attempt::Busy => std::thread::sleep(LOCK_POLL),
            }
        }
    }
}

fn io_lock(error: &io::Error) -> Error {
    Error::new(Kind::Internal, "cannot use a locked file").caused_by(error)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    fn dir() -> (tempfile::TempDir, Dir) {
        let temporary = tempfile::tempdir().expect("a directory");
        let dir = Dir::create(&temporary.path().join("a/b")).expect("made");
        (temporary, dir)
    }

    #[test]
    fn a_temporary_is_exclusive_and_vanishes_unless_published() {
        let (_temporary, dir) = dir();
        let path = dir.path().join(".x");
        let first = dir.temporary(".x").expect("free");
        let error = dir.temporary(".x").expect_err("held");
        assert_eq!(error.kind(), Kind::Unavailable);
        drop(first);
        assert!(!path.exists());
        fs::write(&path, "left by a crash").expect("written");
        let second = dir.temporary(".x").expect("taken over");
        second
            .file()
            .expect("open")
            .write_all(b"new")
            .expect("written");
        second.sync().expect("durable");
        second.publish("x").expect("visible");
        assert_eq!(fs::read(dir.path().join("x")).expect("there"), b"new");
        assert!(!path.exists());
    }

    #[test]
    fn links_fifos_and_directories_are_no_files() {
        let (_temporary, dir) = dir();
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("link")).expect("linked");
        fs::create_dir(dir.path().join("sub")).expect("made");
        nix::unistd::mkfifo(&dir.path().join("fifo"), Mode::from_bits_truncate(0o600))
            .expect("made");
        for name in ["link", "sub", "fifo"] {
            let error = dir.file(name).expect_err(name);
            assert_eq!(error.kind(), Kind::InvalidContent, "{name}");
            assert!(dir.read_write(name).is_err(), "{name}");
            assert!(dir.temporary(name).is_err(), "{name}");
        }
        assert!(dir.child("link").is_err());
        assert!(dir.ensure_child("link").is_err());
        assert!(dir.file("none").expect("readable").is_none());
        assert!(dir.child("none").expect("readable").is_none());
    }

    #[test]
    fn the_lock_excludes_clones_too() {
        let (_temporary, dir) = dir();
        let held = dir.lock().expect("free");
        let other = dir.clone();
        let (done, waited) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let _lock = other.lock().expect("in the end");
                done.send(Instant::now()).expect("somebody listens");
            });
            std::thread::sleep(Duration::from_millis(100));
            let released = Instant::now();
            drop(held);
            assert!(waited.recv().expect("sent") >= released);
        });
    }
}
