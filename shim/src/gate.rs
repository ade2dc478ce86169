//! Whether a container can run here, asked before it is created.
//!
//! What it would start is looked up in its root file system as the runtime will, and judged by
//! `edgepull_platform`. Only what is proven counts: whatever cannot be seen or is not known, the
//! OCI runtime is to try, with its own words for a command that is missing. A container that an
//! emulator runs is started, and that is told.

mod here;
mod refusal;
mod root;
mod spec;
pub mod tell;

use std::path::Path;

use edgepull_platform::{
    Host,
    executable::{Elf, Refusal as Why, Verdict},
    launch::{Looked, Looker, Surroundings},
};

pub use self::{
    here::Here,
    refusal::{Emulated, Refusal},
    spec::{Bundle, Process},
};
use crate::config::Emulation;
use root::Root;
use spec::Mount;

/// What is to become of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing speaks against it.
    Go,
    /// It runs, and somebody should know how.
    GoWithWarning(Emulated),
    /// It cannot run.
    Refuse(Refusal),
}

/// Judges a container whose root file system is mounted at `rootfs`.
pub fn examine(bundle: &Bundle, rootfs: &Path, here: &Here, policy: Emulation) -> Decision {
    match &bundle.process {
        Some(process) => decide(bundle, process, &bundle.mounts, rootfs, here, policy),
        None => Decision::Go,
    }
}

/// Judges a process that is to run in a container. `root` is its root as its own processes see it
/// (`/proc/PID/root`), with all that was ever mounted there.
pub fn examine_process(
    bundle: &Bundle,
    process: &Process,
    root: &Path,
    here: &Here,
    policy: Emulation,
) -> Decision {
    decide(bundle, process, &[], root, here, policy)
}

fn decide(
    bundle: &Bundle,
    process: &Process,
    mounts: &[Mount],
    rootfs: &Path,
    here: &Here,
    policy: Emulation,
) -> Decision {
    let question = Question {
        bundle,
        process,
        mounts,
        rootfs,
        never: policy == Emulation::Never || bundle.forbids_emulation(),
    };
    let Some((looked, via)) = question.look(here.host()) else {
        return Decision::Go;
    };
    // A quick look leaves out what only 32-bit programs need, and handlers in a table that is
    // mounted nowhere. What is refused is refused after a closer one.
    let narrow = |elf: &Elf| usize::BITS == 64 && !elf.wide;
    let mut programs = looked.files.iter().filter_map(|file| file.needs.elf());
    let doubtful = matches!(looked.verdict, Verdict::Refused { .. }) || programs.any(narrow);
    if doubtful && let Some(closely) = here.closely() {
        return match question.look(closely.host()) {
            Some((looked, via)) => question.judge(&looked, via.as_deref(), closely.host()),
            None => Decision::Go,
        };
    }
    question.judge(&looked, via.as_deref(), here.host())
}

struct Question<'a> {
    bundle: &'a Bundle,
    process: &'a Process,
    /// What will lie over the root.
    mounts: &'a [Mount],
    rootfs: &'a Path,
    never: bool,
}

impl Question<'_> {
    /// What is started, and by which init if there is one. `None`: that cannot be told.
    fn look(&self, host: &Host) -> Option<(Looked, Option<String>)> {
        // A hook may bring any file, and what is no program yet may be one by then.
        if self.bundle.has_own_users()
            || self.bundle.is_started_otherwise()
            || self.bundle.is_furnished()
        {
            return None;
        }
        let words = &self.process.args;
        let first = words.first().filter(|word| !word.is_empty())?;
        let path = match self.process.path() {
            Some(path) => path,
            // No name is looked up without it; what an init does then is its own affair.
            None if first.contains('/') => String::from("/nowhere"),
            None => return None,
        };
        let around = Surroundings::new(&path, &self.process.cwd);
        let mut root = Root::open(self.rootfs, self.mounts, self.process).ok()?;
        let may_come = |_: &[u8]| false;
        let mut search = Looker::new(&around, &mut root, &may_come);
        let looked = search.command(first, host).ok()?;
        if looked.verdict.runs()
            && let Some(Ok(started)) = search.started(words, host)
        {
            let init = looked.files.first().map(|file| file.path.clone());
            return Some((started, init));
        }
        Some((looked, None))
    }

    fn judge(&self, looked: &Looked, via: Option<&str>, host: &Host) -> Decision {
        let image = self.bundle.image();
        match &looked.verdict {
            Verdict::Native | Verdict::Compat32 | Verdict::Unknown { .. } => Decision::Go,
            // Nothing here runs on the cores themselves, and nothing was registered for it.
            Verdict::Emulated { .. } if host.emulated => Decision::Go,
            Verdict::Emulated { handler } if self.never => {
                Decision::Refuse(Refusal::emulation(looked, via, handler, host, image))
            }
            Verdict::Emulated { handler } => {
                Decision::GoWithWarning(Emulated::new(looked, via, handler, host, image))
            }
            Verdict::Refused { why, .. } if !host.handlers_observed && may_be_handled(*why) => {
                Decision::Go
            }
            Verdict::Refused { why, reason } => {
                Decision::Refuse(Refusal::new(looked, via, *why, reason, host, image))
            }
        }
    }
}

/// Whether a handler that is registered out of sight could run it all the same. Nobody registers
/// one for empty files, nor for programs that these cores run.
fn may_be_handled(why: Why) -> bool {
    match why {
        Why::Machine
        | Why::System
        | Why::Mode
        | Why::Level
        | Why::Pages
        | Why::Abi
        | Why::Format => true,
        Why::Empty | Why::Damaged | Why::Interpreter | Why::Depth => false,
    }
}

#[cfg(test)]
mod tests;
