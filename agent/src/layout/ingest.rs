//! A blob on its way into a layout: a partial file that survives a stop, is taken
//! up again by the next attempt, and gets its name only when it is verified.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    time::{Duration, SystemTime},
};

use bytes::Bytes;

use super::{
    BLOBS,
    dir::{Attempt, Dir, Locked},
};
use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::{Algorithm, Descriptor, Digest, Verifier},
};

/// Partial blobs live here, inside the layout's root and so on its file system.
pub(super) const WORK: &str = ".edgepull";

/// A partial that nobody continued for so long belongs to an image that moved on.
const ABANDONED: Duration = Duration::from_secs(7 * 24 * 3600);

/// More partials than that are looked at another time.
const MAX_SWEEP: usize = 4096;

/// The outcome of asking for a blob's partial file.
#[derive(Debug)]
pub(super) enum Claim {
    Ours(Box<Ingest>),
    /// Somebody else is writing this blob.
    Busy,
    /// The blob is there.
    Present,
}

/// An exclusive hold on one blob's partial file. All its methods block.
#[derive(Debug)]
pub(super) struct Ingest {
    root: Dir,
    work: Dir,
    partial: String,
    lock: Locked,
    descriptor: Descriptor,
    verifier: Verifier,
}

fn partial_name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().name(), digest.hex())
}

/// Whether the blob is there with the right size.
pub(super) fn present(root: &Dir, descriptor: &Descriptor) -> Result<bool> {
    let found = match blob_dir(root, descriptor.digest.algorithm())? {
        Some(dir) => dir.file(descriptor.digest.hex())?,
        None => None,
    };
    Ok(found.is_some_and(|(_, size)| size == descriptor.size))
}

/// `blobs/<algorithm>`, if it is there.
pub(super) fn blob_dir(root: &Dir, algorithm: Algorithm) -> Result<Option<Dir>> {
    match root.child(BLOBS)? {
        Some(blobs) => blobs.child(algorithm.name()),
        None => Ok(None),
    }
}

impl Ingest {
    /// Takes the blob's partial file, with what an earlier attempt left in it.
    pub(super) fn claim(root: &Dir, descriptor: &Descriptor) -> Result<Claim> {
        let partial = partial_name(&descriptor.digest);
        // Each round is lost only to another process that finished meanwhile.
        for _ in 0..16 {
            let work = root.ensure_child(WORK)?;
            let Some(file) = work.read_write(&partial)? else {
                continue;
            };
            let lock = match Locked::attempt(file, &work.path().join(&partial))? {
                Attempt::Got(lock) => lock,
                Attempt::Busy => return Ok(Claim::Busy),
            };
            let file = lock
                .file()
                .map_err(|error| io_at(&work, &partial, "use", &error))?;
            if !work.names(&partial, file)? {
                // It was renamed into place, or swept, between open and lock.
                continue;
            }
            if present(root, descriptor)? {
                work.unlink(&partial)?;
                root.remove_empty(WORK);
                return Ok(Claim::Present);
            }
            let mut ingest = Self {
                root: root.clone(),
                work,
                partial,
                lock,
                descriptor: descriptor.clone(),
                verifier: Verifier::new(descriptor),
            };
            ingest.rehash()?;
            return Ok(Claim::Ours(Box::new(ingest)));
        }
        Ok(Claim::Busy)
    }

    /// Bytes that are there already.
    pub(super) fn offset(&self) -> u64 {
        self.verifier.seen()
    }

    fn file(&self) -> Result<&File> {
        self.lock.file().map_err(|error| self.io("use", &error))
    }

    fn io(&self, action: &str, error: &std::io::Error) -> Error {
        io_at(&self.work, &self.partial, action, error)
    }

    /// The hash of what is there cannot be trusted to a file: it is computed again.
    fn rehash(&mut self) -> Result<()> {
        let mut verifier = Verifier::new(&self.descriptor);
        let length = self
            .file()?
            .metadata()
            .map_err(|error| self.io("read", &error))?
            .len();
        if length > self.descriptor.size {
            return self.restart();
        }
        let mut file = self.file()?;
        file.seek(SeekFrom::Start(0))
            .map_err(|error| self.io("read", &error))?;
        let mut buffer = vec![0; 128 << 10];
        loop {
            let read = file
                .read(&mut buffer)
                .map_err(|error| self.io("read", &error))?;
            match buffer.get(..read) {
                None | Some([]) => break,
                Some(chunk) => verifier.update(chunk)?,
            }
        }
        self.verifier = verifier;
        Ok(())
    }

    /// Forgets what is there.
    pub(super) fn restart(&mut self) -> Result<()> {
        let mut file = self.file()?;
        file.set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)).map(drop))
            .map_err(|error| self.io("empty", &error))?;
        self.verifier = Verifier::new(&self.descriptor);
        Ok(())
    }

    pub(super) fn write(&mut self, chunks: &[Bytes]) -> Result<()> {
        for chunk in chunks {
            // Checked first: not even on disk is a blob ever longer than announced.
            self.verifier.update(chunk)?;
            self.file()?
                .write_all(chunk)
                .map_err(|error| self.io("write", &error))?;
        }
        Ok(())
    }

    /// Checks the whole, makes it durable and gives it its name.
    pub(super) fn commit(&self) -> Result<()> {
        self.verifier.clone().finish()?;
        self.file()?
            .sync_all()
            .map_err(|error| self.io("sync", &error))?;
        let digest = &self.descriptor.digest;
        let blobs = self
            .root
            .ensure_child(BLOBS)?
            .ensure_child(digest.algorithm().name())?;
        self.work.rename(&self.partial, &blobs, digest.hex())?;
        blobs.sync()
    }

    /// Ends an attempt that failed with `error`: what can be continued stays.
    pub(super) fn abandon(self, error: &Error) {
        if error.kind() == Kind::InvalidContent || self.offset() == 0 {
            // Best effort: a left partial is verified before it is used anyway.
            let _ = self.work.unlink(&self.partial);
            self.root.remove_empty(WORK);
        }
    }
}

fn io_at(dir: &Dir, name: &str, action: &str, error: &std::io::Error) -> Error {
    Error::io(action, &dir.path().join(name), error)
}

/// Removes partials that nobody continued, and the work directory when it is empty.
/// `now` wrong by years costs a download, nothing else.
pub(super) fn sweep(root: &Dir, now: SystemTime) -> Result<()> {
    let Some(work) = root.child(WORK)? else {
        return Ok(());
    };
    for name in work.list(MAX_SWEEP)? {
        let Some((file, _)) = work.file(&name)? else {
            continue;
        };
        let old = file
            .metadata()
            .and_then(|meta| meta.modified())
            .ok()
            .and_then(|changed| now.duration_since(changed).ok())
            .is_some_and(|age| age > ABANDONED);
        if old {
            work.unlink_stale(&name)?;
        }
    }
    root.remove_empty(WORK);
    Ok(())
}
