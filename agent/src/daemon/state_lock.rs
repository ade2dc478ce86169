//! One process works on the state at a time: the daemon, or a call that does its work once.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use nix::fcntl::{Flock, FlockArg, OFlag};

use crate::{
    error::{Error, Result},
    kind::Kind,
};

/// Held until dropped, or until the process ends, however it does.
#[derive(Debug)]
pub struct StateLock(#[expect(dead_code, reason = "the lock is what it is for")] Flock<File>);

impl StateLock {
    /// Takes the lock of the state directory, which is made if it is not there.
    pub fn take(dir: &Path) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| Error::io("make the state directory", dir, &error))?;
        let path = dir.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(&path)
            .map_err(|error| Error::io("open the lock", &path, &error))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self(lock)),
            Err((_, nix::errno::Errno::EAGAIN)) => Err(Error::new(
                Kind::Usage,
                format_args!("another edgepull keeps the images of `{}`", dir.display()),
            )
            .hint("`edgepull sync` asks the daemon that runs to look now; `edgepull status` shows what it does")),
            Err((_, errno)) => Err(Error::io("lock", &path, &errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_at_a_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state");
        let lock = StateLock::take(&path).expect("free");
        let refused = StateLock::take(&path).expect_err("held");
        assert_eq!(refused.kind(), Kind::Usage);
        drop(lock);
        StateLock::take(&path).expect("free again");
    }
}
