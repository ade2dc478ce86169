//! The cgroup of a container: what it uses, and whether the kernel killed something in it for lack
//! of memory.

mod files;
mod leftover;
mod oom;
mod place;
#[cfg(test)]
mod tests;
mod v1;
mod v2;

use std::cell::Cell;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use prost::Message;

use self::files::Values;
pub use self::leftover::remove as remove_leftover;
pub use self::oom::OomWatch;
use self::place::{Controllers, Place};
use crate::error::{Error, Result};

/// A container's cgroup. On hosts that have both versions it is that of version 1, where the
/// controllers are.
#[derive(Debug)]
pub struct Cgroup {
    /// `/`, but for tests.
    root: PathBuf,
    place: Place,
    /// How many kills were told of, and those before this.
    told: Cell<u64>,
    /// Memory has run out, and no kill will say so.
    announced: Cell<bool>,
}

impl Cgroup {
    /// The cgroup that `pid` is in now.
    pub fn of(pid: Pid) -> Result<Cgroup> {
        Cgroup::find(Path::new("/"), pid)
    }

    fn find(root: &Path, pid: Pid) -> Result<Cgroup> {
        let place = Place::of(root, pid.as_raw()).map_err(Error::unknown)?;
        let cgroup = Cgroup {
            root: root.to_owned(),
            place,
            told: Cell::new(0),
            announced: Cell::new(false),
        };
        // It may be shared with others, and older.
        cgroup.told.set(cgroup.kills().unwrap_or(0));
        Ok(cgroup)
    }

    /// What it uses: the name of a type, and its bytes.
    pub fn stats(&self) -> Result<(String, Vec<u8>)> {
        let (name, stats) = match &self.place {
            Place::V1(controllers) => (
                "io.containerd.cgroups.v1.Metrics",
                v1::stats(&self.root, controllers).encode_to_vec(),
            ),
            Place::V2(path) => (
                "io.containerd.cgroups.v2.Metrics",
                v2::stats(&self.root, path).encode_to_vec(),
            ),
        };
        // Asked last: what goes meanwhile has told nothing.
        let exists = match &self.place {
            Place::V1(controllers) => controllers.exist(),
            Place::V2(path) => path.exists(),
        };
        if !exists {
            return Err(gone());
        }
        Ok((name.to_owned(), stats))
    }

    /// Waits for kills.
    pub fn watch_oom(&self) -> Result<OomWatch<'_>> {
        OomWatch::new(self)
    }

    /// Whether something was killed since this was asked last.
    pub fn take_oom(&self) -> bool {
        let announced = self.announced.take();
        let kills = self.kills().unwrap_or(0);
        // A cgroup that is gone counts nothing.
        let more = kills > self.told.get();
        self.told.set(self.told.get().max(kills));
        announced || more
    }

    fn has_oom(&self) -> bool {
        self.announced.get() || self.kills().is_some_and(|kills| kills > self.told.get())
    }

    /// How often something in it was killed, as far as the kernel counts.
    fn kills(&self) -> Option<u64> {
        let file = match &self.place {
            Place::V1(controllers) => controllers.path("memory")?.join("memory.oom_control"),
            Place::V2(path) => path.join("memory.events"),
        };
        Values::read(&file)?.find("oom_kill")
    }
}

fn gone() -> Error {
    Error::not_found("cgroup does not exist: it went with the last of its processes")
}
