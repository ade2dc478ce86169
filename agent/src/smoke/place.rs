//! One run's place on this host: its FIFOs, and the lock that tells others that it still goes on.
//!
//! `DIR/ID.lock` is held as long as the run lasts; the kernel drops the lock with the process. It
//! says in which engine the run has left something, for whoever finds it without an owner.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use nix::fcntl::{Flock, FlockArg, OFlag};
use serde::{Deserialize, Serialize};

use crate::{
    containerd::{Engine, lock},
    error::{Error, Result},
    oci::Digest,
};

/// What the ids of containers begin with.
pub(super) const PREFIX: &str = "edgepull-smoke-";
/// A lock file that is longer was not written by us.
const MAX_OWNER: u64 = 16 << 10;

/// Where a run has left something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Where {
    pub(super) address: PathBuf,
    pub(super) namespace: String,
    pub(super) snapshotter: String,
}

impl Where {
    pub(super) fn of(engine: &Engine, snapshotter: &str) -> Self {
        let address = engine.address();
        Self {
            address: fs::canonicalize(address).unwrap_or_else(|_| address.to_owned()),
            namespace: engine.namespace().to_owned(),
            snapshotter: snapshotter.to_owned(),
        }
    }
}

/// The place of a run.
#[derive(Debug)]
pub(super) struct Place {
    /// The container's id, and its snapshot's.
    pub(super) id: String,
    lock: Flock<File>,
    base: PathBuf,
    pub(super) found: Option<Where>,
}

impl Place {
    /// A new one below `runtime_dir`.
    pub(super) fn new(runtime_dir: &Path, at: &Where) -> Result<Self> {
        let base = base(runtime_dir)?;
        loop {
            let id = unique();
            let path = base.join(format!("{id}.lock"));
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(|error| Error::io("make", &path, &error))?;
            // Whoever sweeps may have seen it before it was locked: then there is another.
            let Some(lock) = held(file, &path) else {
                continue;
            };
            let mut place = Self {
                id,
                lock,
                base,
                found: None,
            };
            let text = serde_json::to_vec(at).unwrap_or_default();
            place
                .lock
                .write_all(&text)
                .map_err(|error| Error::io("write", &path, &error))?;
            let dir = place.dir();
            for dir in [dir.clone(), dir.join("root")] {
                let made = DirBuilder::new().mode(0o700).create(&dir);
                made.map_err(|error| Error::io("make", &dir, &error))?;
            }
            return Ok(place);
        }
    }

    /// The places below `runtime_dir` whose owners are gone.
    pub(super) fn abandoned(runtime_dir: &Path) -> Result<Vec<Self>> {
        let base = base(runtime_dir)?;
        let mut all = Vec::new();
        let entries = fs::read_dir(&base).map_err(|error| Error::io("list", &base, &error))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(id) = name.to_str().and_then(|name| name.strip_suffix(".lock")) else {
                continue;
            };
            if !id.starts_with(PREFIX) {
                continue;
            }
            let path = entry.path();
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(OFlag::O_NOFOLLOW.bits())
                .open(&path);
            let Some(lock) = file.ok().and_then(|file| held(file, &path)) else {
                continue;
            };
            let mut text = Vec::new();
            // Empty where the owner died before there was anything to clean.
            let _ = (&*lock).take(MAX_OWNER).read_to_end(&mut text);
            all.push(Self {
                id: id.to_owned(),
                found: serde_json::from_slice(&text).ok(),
                lock,
                base: base.clone(),
            });
        }
        Ok(all)
    }

    /// Whether somebody below `runtime_dir` still works on `id`.
    pub(super) fn is_held(runtime_dir: &Path, id: &str) -> bool {
        base(runtime_dir).is_ok_and(|base| {
            let path = base.join(format!("{id}.lock"));
            File::open(&path)
                .is_ok_and(|file| Flock::lock(file, FlockArg::LockSharedNonblock).is_err())
        })
    }

    pub(super) fn dir(&self) -> PathBuf {
        self.base.join(&self.id)
    }

    /// An empty directory to mount something on.
    pub(super) fn root(&self) -> PathBuf {
        self.dir().join("root")
    }

    /// The hash that the run's lease is found by.
    pub(super) fn lease(&self) -> &str {
        lease_of(&self.id)
    }

    /// Removes it, and the lock last. Only when nothing is left in the engine.
    pub(super) fn remove(self) -> Result<()> {
        let dir = self.dir();
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &dir, &error));
            }
            _ => {}
        }
        let path = self.base.join(format!("{}.lock", self.id));
        let removed = fs::remove_file(&path);
        drop(self.lock);
        removed.map_err(|error| Error::io("remove", &path, &error))
    }
}

/// The hash that the lease of the run `id` is found by.
pub(super) fn lease_of(id: &str) -> &str {
    id.strip_prefix(PREFIX).unwrap_or(id)
}

fn base(runtime_dir: &Path) -> Result<PathBuf> {
    lock::writable(&runtime_dir.join("smoke"))
}

/// The lock, if nobody else has it and the file is still the one of that name.
fn held(file: File, path: &Path) -> Option<Flock<File>> {
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()?;
    let (ours, there) = (lock.metadata().ok()?, fs::symlink_metadata(path).ok()?);
    ((ours.dev(), ours.ino()) == (there.dev(), there.ino())).then_some(lock)
}

fn unique() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let text = format!(
        "{}\n{}\n{:?}",
        std::process::id(),
        COUNTER.fetch_add(1, Ordering::Relaxed),
        now.unwrap_or_default()
    );
    let hash: String = Digest::of(text.as_bytes()).hex().chars().take(32).collect();
    format!("{PREFIX}{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> Where {
        Where {
            address: "/run/x.sock".into(),
            namespace: "lab".to_owned(),
            snapshotter: "overlayfs".to_owned(),
        }
    }

    #[test]
    fn only_what_has_no_owner_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let mine = Place::new(dir.path(), &at()).expect("made");
        let other = Place::new(dir.path(), &at()).expect("made");
        assert_ne!(mine.id, other.id);
        assert!(mine.id.len() <= 76, "containerd's limit for identifiers");
        let abandoned = || Place::abandoned(dir.path()).expect("listed");
        assert!(abandoned().is_empty());
        assert!(Place::is_held(dir.path(), &other.id));
        let (id, path) = (other.id.clone(), other.dir());
        drop(other);
        assert!(!Place::is_held(dir.path(), &id));
        let found = abandoned().pop().expect("one");
        assert_eq!((&found.id, &found.found), (&id, &Some(at())));
        assert_eq!(found.lease(), &id[PREFIX.len()..]);
        found.remove().expect("removed");
        assert!(!path.exists() && abandoned().is_empty());
        mine.remove().expect("removed");
        let left = fs::read_dir(dir.path().join("smoke")).expect("listed");
        assert_eq!(left.count(), 0);
    }

    #[test]
    fn one_whose_owner_died_at_once_says_nothing_and_goes() {
        let dir = tempfile::tempdir().expect("a directory");
        let base = base(dir.path()).expect("made");
        fs::write(base.join(format!("{PREFIX}0.lock")), "").expect("written");
        fs::write(base.join("other.lock"), "").expect("written");
        let found = Place::abandoned(dir.path()).expect("listed");
        assert_eq!(found.len(), 1);
        for place in found {
            assert_eq!(place.found, None);
            place.remove().expect("removed");
        }
        assert!(base.join("other.lock").exists());
    }
}
