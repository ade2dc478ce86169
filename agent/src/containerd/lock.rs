//! One holder per image: a lock file, because a lease tells nobody whether the process
//! that made it still runs. The kernel drops the lock with its owner.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg, OFlag};
use tokio::time::sleep;

use crate::{
    error::{Error, Result},
    kind::Kind,
};

/// How often a held lock is tried again.
const POLL: Duration = Duration::from_millis(200);

/// The lock of one image, held until dropped.
#[derive(Debug)]
pub struct ImageLock {
    file: Flock<File>,
    path: PathBuf,
}

impl ImageLock {
    /// Takes the lock `name` in `directory` (made if it is not there; where it cannot be
    /// written, in a private directory under the system's temporary one). Waits while
    /// another process holds it; `waiting` is called once, with what the owner wrote of
    /// itself, before the wait.
    pub async fn acquire(
        directory: &Path,
        name: &str,
        owner: &str,
        mut waiting: impl FnMut(&str),
    ) -> Result<Self> {
        let directory = writable(directory)?;
        let path = directory.join(format!("{name}.lock"));
        let mut told = false;
        loop {
            match Self::attempt(&path, owner)? {
                Attempt::Held(lock) => return Ok(lock),
                Attempt::Stale => {}
                Attempt::Busy(by) => {
                    if !told {
                        told = true;
                        waiting(&by);
                    }
                    sleep(POLL).await;
                }
            }
        }
    }

    fn attempt(path: &Path, owner: &str) -> Result<Attempt> {
        let fail = |action: &str, error: &io::Error| Error::io(action, path, error);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(path)
            .map_err(|error| fail("open the lock", &error))?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((back, nix::errno::Errno::EAGAIN)) => {
                file = back;
                let mut by = String::new();
                // Only for a message: an owner that cannot be read is an unknown one.
                let _ = file.take(200).read_to_string(&mut by);
                let by = by.lines().next().unwrap_or_default().to_owned();
                return Ok(Attempt::Busy(by));
            }
            Err((_, errno)) => return Err(fail("lock", &errno.into())),
        };
        // The holder before us unlinked its file when it was done: then this is a lock on
        // a name that nobody else will find.
        let ours = file.metadata().map_err(|error| fail("look at", &error))?;
        let same = std::fs::symlink_metadata(path)
            .is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()));
        if !same {
            return Ok(Attempt::Stale);
        }
        let mut lock = Self {
            file,
            path: path.to_owned(),
        };
        // Informative only; a full tmpfs must not keep a pull from running.
        let _ = lock.describe(owner);
        Ok(Attempt::Held(lock))
    }

    fn describe(&mut self, owner: &str) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        writeln!(self.file, "pid {}, {owner}", std::process::id())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ImageLock {
    fn drop(&mut self) {
        // Before the lock goes, so that nobody can hold what is unlinked here. A file
        // that stays does no harm.
        let _ = std::fs::remove_file(&self.path);
    }
}

enum Attempt {
    Held(ImageLock),
    Busy(String),
    Stale,
}

/// `directory`, made if it is not there; where it cannot be written, a private one under the
/// system's temporary one.
pub(crate) fn writable(directory: &Path) -> Result<PathBuf> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    // The owner of a process's own directory is its effective user.
    let own = Path::new("/proc/self");
    let uid = std::fs::metadata(own)
        .map_err(|error| Error::io("look at", own, &error))?
        .uid();
    let usable = builder.create(directory).is_ok()
        && is_private(directory, uid)
        && nix::unistd::access(directory, nix::unistd::AccessFlags::W_OK).is_ok();
    if usable {
        return Ok(directory.to_owned());
    }
    let fallback = std::env::temp_dir().join(format!("edgepull-locks-{uid}"));
    let made = DirBuilder::new().mode(0o700).create(&fallback);
    if let Err(error) = made
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(Error::io("make the lock directory", &fallback, &error));
    }
    if !is_private(&fallback, uid) {
        return Err(Error::new(
            Kind::Config,
            format_args!(
                "`{}` is not a private directory of this user",
                fallback.display()
            ),
        )
        .hint("remove it, or give a state directory that can be written"));
    }
    Ok(fallback)
}

/// Temporary directories are everybody's: only a directory (and no link to one) that is
/// ours and that nobody else can write to will do.
fn is_private(directory: &Path, uid: u32) -> bool {
    std::fs::symlink_metadata(directory)
        .is_ok_and(|found| found.is_dir() && found.uid() == uid && found.mode() & 0o022 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_second_holder_waits_and_is_told_for_whom() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("locks");
        let first = ImageLock::acquire(&path, "x", "pulling a:1", |_| ())
            .await
            .expect("free");
        assert!(first.path().exists());
        let mut by = String::new();
        let second =
            ImageLock::acquire(&path, "x", "pulling a:2", |owner| owner.clone_into(&mut by));
        let wait = tokio::time::timeout(Duration::from_millis(500), second).await;
        assert!(wait.is_err(), "held");
        assert!(by.contains("pulling a:1"), "{by}");
        drop(first);
        let third = ImageLock::acquire(&path, "x", "again", |_| ())
            .await
            .expect("free");
        drop(third);
        assert_eq!(std::fs::read_dir(&path).expect("made").count(), 0);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_directory_that_others_can_write_to_or_a_link_is_not_used() {
        use std::os::unix::fs::{PermissionsExt, symlink};

        let directory = tempfile::tempdir().expect("a directory");
        let open = directory.path().join("open");
        std::fs::create_dir(&open).expect("made");
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).expect("opened");
        let target = directory.path().join("target");
        std::fs::create_dir(&target).expect("made");
        let link = directory.path().join("link");
        symlink(&target, &link).expect("linked");
        for planted in [open, link] {
            let lock = ImageLock::acquire(&planted, "edgepull-test-2", "t", |_| ())
                .await
                .expect("elsewhere");
            assert!(!lock.path().starts_with(directory.path()), "{lock:?}");
        }
        let made = directory.path().join("made");
        let lock = ImageLock::acquire(&made, "x", "t", |_| ())
            .await
            .expect("free");
        let bits = |path: &Path| std::fs::metadata(path).expect("there").mode() & 0o777;
        assert_eq!((bits(&made), bits(lock.path())), (0o700, 0o600));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn where_nothing_can_be_written_a_private_place_is_used() {
        let lock = ImageLock::acquire(Path::new("/proc/none"), "edgepull-test", "t", |_| ())
            .await
            .expect("the fallback");
        assert!(lock.path().starts_with(std::env::temp_dir()));
    }
}
