//! One process does a thing at a time: works on the state, has the sockets.

use std::{
    fs::{DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg, OFlag},
};

use crate::{
    error::{Error, Result},
    kind::Kind,
};

/// Held until dropped, or until the process ends, however it does.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "the lock is what it is for")] Flock<File>);

impl Lock {
    /// Takes the lock; `taken` is the failure where another process has it.
    pub(super) fn take(path: &Path, taken: impl FnOnce() -> Error) -> Result<Self> {
        let failed = |error: io::Error| {
            Error::io("lock", path, &error)
                .hint("the daemon runs as root; is another directory meant?")
        };
        // Opened for writing by its owner alone: nobody else can hold the lock.
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(path)
            .map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Self(file)),
            Err((_, Errno::EWOULDBLOCK)) => Err(taken()),
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }

    /// The lock of the state directory, which is made if it is not there: the daemon's, or
    /// that of a call that does its work once.
    pub fn of_state(dir: &Path) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| Error::io("make the state directory", dir, &error))?;
        Self::take(&dir.join("lock"), || {
            Error::new(
                Kind::Usage,
                format_args!("another edgepull keeps the images of `{}`", dir.display()),
            )
            .hint("`edgepull sync` asks the daemon that runs to look now; `edgepull status` shows what it does")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_at_a_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state");
        let lock = Lock::of_state(&path).expect("free");
        let refused = Lock::of_state(&path).expect_err("held");
        assert_eq!(refused.kind(), Kind::Usage);
        drop(lock);
        Lock::of_state(&path).expect("free again");
    }
}
