//! Waiting for the kernel to kill something of a cgroup for lack of memory.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;
use tokio::time::sleep;

use super::Cgroup;
use super::files::Values;
use super::place::Place;
use crate::error::{Error, Result};
use crate::polled::Polled;

/// How often, and how long at first, a kill is waited for that the kernel has announced. Each time
/// is twice as long as that before.
const TRIES: u32 = 8;
const FIRST_TRY: Duration = Duration::from_millis(5);

/// Tells of kills, one after the other, until the cgroup is empty or gone.
#[derive(Debug)]
pub struct OomWatch<'a> {
    cgroup: &'a Cgroup,
    events: Polled,
}

impl<'a> OomWatch<'a> {
    pub(super) fn new(cgroup: &'a Cgroup) -> Result<OomWatch<'a>> {
        let events = match &cgroup.place {
            Place::V1(controllers) => announcements(controllers.path("memory"))?,
            Place::V2(path) => changes(path)?,
        };
        let events = Polled::new(events, Interest::READABLE)
            .map_err(|(_, error)| Error::io("cannot wait for out-of-memory events", error))?;
        Ok(OomWatch { cgroup, events })
    }

    /// Waits until something was killed that [`Cgroup::take_oom`] did not tell of yet, which is to
    /// be asked then; `None` when nothing will be.
    pub async fn next(&mut self) -> Option<()> {
        match &self.cgroup.place {
            Place::V1(controllers) => self.next_v1(controllers.path("memory")?).await,
            Place::V2(path) => self.next_v2(path).await,
        }
    }

    async fn next_v1(&self, memory: &Path) -> Option<()> {
        loop {
            if self.cgroup.has_oom() {
                return Some(());
            }
            self.events.readable().await.ok()?;
            self.drain();
            let mut pause = FIRST_TRY;
            for _ in 0..TRIES {
                // The end of the cgroup is announced in the same way.
                let state = Values::read(&memory.join("memory.oom_control"))?;
                let Some(_) = state.find("oom_kill") else {
                    // Before Linux 4.13 kills are not counted.
                    self.cgroup.announced.set(true);
                    break;
                };
                if state.get("oom_kill_disable") == 1 && state.get("under_oom") == 1 {
                    // Nothing will be killed: everything stands still.
                    self.cgroup.announced.set(true);
                }
                if self.cgroup.has_oom() {
                    break;
                }
                // The kernel says so before it looks for whom to kill.
                sleep(pause).await;
                pause *= 2;
            }
        }
    }

    async fn next_v2(&self, path: &Path) -> Option<()> {
        loop {
            self.drain();
            // In this order: what is killed last is seen.
            let events = Values::read(&path.join("cgroup.events"));
            let is_over = events.is_none_or(|events| events.get("populated") == 0);
            if self.cgroup.has_oom() {
                return Some(());
            }
            if is_over {
                return None;
            }
            self.events.readable().await.ok()?;
        }
    }

    /// That something has changed is all there is to know of it.
    fn drain(&self) {
        let mut buffer = [0; 1024];
        while rustix::io::read(&self.events, &mut buffer).is_ok_and(|read| read > 0) {}
    }
}

/// A descriptor that can be read when memory has run out in a cgroup of version 1.
fn announcements(memory: Option<&Path>) -> Result<OwnedFd> {
    let memory = memory.ok_or_else(no_memory)?;
    let file = memory.join("memory.oom_control");
    let control = memory.join("cgroup.event_control");
    let failed = |what: &Path, error: std::io::Error| {
        Error::io(
            format_args!(
                "{}, which a kernel of kind PREEMPT_RT does not have",
                what.display()
            ),
            error,
        )
    };
    let oom = File::open(&file).map_err(|error| failed(&file, error))?;
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|error| Error::io("cannot make an eventfd", error))?;
    let line = format!("{} {}", event.as_raw_fd(), oom.as_raw_fd());
    fs::write(&control, line).map_err(|error| failed(&control, error))?;
    Ok(event.into())
}

/// A descriptor that can be read when something has happened in a cgroup of version 2.
fn changes(path: &Path) -> Result<OwnedFd> {
    if !path.exists() {
        return Err(super::gone());
    }
    if !path.join("memory.events").exists() {
        return Err(no_memory());
    }
    let watch = || {
        let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        for name in ["memory.events", "cgroup.events"] {
            inotify::add_watch(&changes, path.join(name), WatchFlags::MODIFY)?;
        }
        Ok(changes)
    };
    watch().map_err(|error: rustix::io::Errno| {
        Error::io(format_args!("cannot watch {}", path.display()), error)
    })
}

fn no_memory() -> Error {
    Error::unknown(
        "the memory controller is off; on a Raspberry Pi, cgroup_enable=memory in cmdline.txt \
         turns it on",
    )
}
