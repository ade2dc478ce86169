//! Opens what the streams of a process are connected to.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use rustix::fs::{Gid, Uid};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::Interest;

use super::Owner;
use super::copy::Side;
use crate::error::{Error, Result};

/// Nothing that is opened here waits, is inherited, or becomes anybody's terminal.
const FLAGS: i32 = libc::O_NONBLOCK | libc::O_NOCTTY;

/// A pipe between a process and this one.
pub(super) struct Pipe {
    /// The process' end. It belongs to whom the process runs as, and it blocks: what reads and
    /// writes there expects that.
    pub(super) theirs: OwnedFd,
    /// The end here.
    pub(super) ours: OwnedFd,
}

impl Pipe {
    /// For what the process reads.
    pub(super) fn to_process(owner: &Owner) -> Result<Pipe> {
        let (theirs, ours) = pipe(owner)?;
        Pipe::new(theirs, ours)
    }

    /// For what the process writes.
    pub(super) fn from_process(owner: &Owner) -> Result<Pipe> {
        let (ours, theirs) = pipe(owner)?;
        Pipe::new(theirs, ours)
    }

    fn new(theirs: OwnedFd, ours: OwnedFd) -> Result<Pipe> {
        // The ends of a pipe are two descriptions, so this is of ours alone.
        set_nonblocking(&ours)?;
        Ok(Pipe { theirs, ours })
    }
}

/// A pipe with both ends blocking: the one to read, and the one to write.
pub(super) fn pipe(owner: &Owner) -> Result<(OwnedFd, OwnedFd)> {
    let failed = |error| Error::io(format!("cannot make a pipe for {}", owner.container), error);
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
    if (owner.uid, owner.gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        rustix::fs::fchown(&read, Some(uid), Some(gid)).map_err(failed)?;
    }
    Ok((read, write))
}

pub(super) fn set_nonblocking(fd: &OwnedFd) -> Result<()> {
    rustix::io::ioctl_fionbio(fd, true)
        .map_err(|error| Error::io("cannot make a stream non-blocking", error))
}

pub(super) fn null() -> Result<OwnedFd> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map(OwnedFd::from)
        .map_err(|error| Error::io("cannot open /dev/null", error))
}

/// Where input comes from.
pub(super) struct Source {
    pub(super) side: Side,
    /// The writing end of the same FIFO: as long as it is open, a client that goes, or that
    /// restarts, is not the end of the input.
    pub(super) hold: Option<OwnedFd>,
}

/// Refuses what cannot be opened later.
pub(super) fn exists(stream: &str, path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(cannot_open(stream, path, &error)),
    }
}

pub(super) fn source(path: &Path) -> Result<Source> {
    let open = || {
        let fd = OpenOptions::new()
            .read(true)
            .custom_flags(FLAGS)
            .open(path)?;
        let hold = if fd.metadata()?.file_type().is_fifo() {
            // It has a reader by now, so this does not fail for the lack of one.
            Some(
                OpenOptions::new()
                    .write(true)
                    .custom_flags(FLAGS)
                    .open(path)?
                    .into(),
            )
        } else {
            None
        };
        let side = Side::new(fd.into(), Interest::READABLE)?;
        Ok(Source { side, hold })
    };
    open().map_err(|error: io::Error| cannot_open("stdin", path, &error))
}

/// Where output goes.
pub(super) struct Sink {
    pub(super) side: Side,
    /// A FIFO that nobody had open for reading when it was opened here.
    pub(super) client_is_late: bool,
    /// What is to be closed with it.
    pub(super) _with: Option<OwnedFd>,
}

impl Sink {
    pub(super) fn of(side: Side) -> Sink {
        Sink {
            side,
            client_is_late: false,
            _with: None,
        }
    }
}

/// Opens `path` for `stream`; makes it, and the directories to it, if it may be missing.
pub(super) fn sink(stream: &str, path: &Path, create: bool) -> Result<Sink> {
    let open = || {
        if fs::metadata(path).is_ok_and(|known| known.file_type().is_fifo()) {
            return fifo(path);
        }
        if create && let Some(parent) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(parent)?;
        }
        let file = OpenOptions::new()
            .append(true)
            .create(create)
            .mode(0o644)
            .custom_flags(FLAGS)
            .open(path)?;
        Ok(Sink::of(Side::new(file.into(), Interest::WRITABLE)?))
    };
    open().map_err(|error: io::Error| cannot_open(stream, path, &error))
}

/// Opens a FIFO as its reader and its writer at once. As its reader, because then there always is
/// one: opening does not wait for the client, and without it the FIFO just fills up.
fn fifo(path: &Path) -> io::Result<Sink> {
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(FLAGS);
    // Is there another reader? Once it is ours too, that can no longer be asked.
    let client = match options.open(path) {
        Ok(fd) => Some(fd),
        Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => None,
        Err(error) => return Err(error),
    };
    let both = options.read(true).open(path)?;
    Ok(Sink {
        client_is_late: client.is_none(),
        ..Sink::of(Side::new(both.into(), Interest::WRITABLE)?)
    })
}

fn cannot_open(stream: &str, path: &Path, error: &io::Error) -> Error {
    Error::io(
        format!("cannot open {} for {stream}", path.display()),
        error,
    )
}
