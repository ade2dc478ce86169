//! Processes that this process is the parent of: those that it starts (the OCI runtime, loggers),
//! and those that come to it as their subreaper (a container's init, what `exec` left).
//!
//! One loop reaps them all ([`reap_forever`]), so nothing else may wait for a child: not std's
//! `Child::wait`, not tokio's processes. Everything here is of one thread, which makes the two
//! classical races impossible: a process that ends before anybody asks for it is kept by the
//! [`Watch`] that was opened before it could be started, and what was reaped is never looked up
//! by a number that may belong to another by then.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::rc::{Rc, Weak};
use std::time::SystemTime;

use nix::libc;
use nix::sys::resource::{Resource, rlim_t, setrlimit};
use nix::unistd::Pid;
use rustix::process::WaitOptions;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, or 128 and the signal.
    pub status: i32,
    /// When that was seen.
    pub at: SystemTime,
}

/// The end of a process, to come.
#[derive(Debug)]
pub struct Ending(oneshot::Receiver<Exit>);

impl Ending {
    /// Waits for the end.
    pub async fn exit(self) -> Exit {
        // The sender is dropped with the registry alone, which lives as long as the thread.
        self.0.await.unwrap_or(Exit {
            status: 255,
            at: SystemTime::now(),
        })
    }
}

/// What a watch has seen.
type Kept = RefCell<Vec<(Pid, Exit)>>;

#[derive(Default)]
struct Registry {
    /// Who waits for whom.
    waiting: HashMap<Pid, oneshot::Sender<Exit>>,
    /// Who wants to know of everybody.
    watches: Vec<Weak<Kept>>,
}

thread_local! {
    static REGISTRY: RefCell<Registry> = RefCell::default();
}

fn register(pid: Pid) -> Ending {
    let (sender, receiver) = oneshot::channel();
    REGISTRY.with_borrow_mut(|registry| registry.waiting.insert(pid, sender));
    Ending(receiver)
}

/// Whether `pid` is a child that somebody waits for and that was not reaped: then the number is its own.
pub fn is_waited_for(pid: Pid) -> bool {
    REGISTRY.with_borrow(|registry| registry.waiting.contains_key(&pid))
}

/// A process that was started here.
#[derive(Debug)]
pub struct Child {
    pub pid: Pid,
    pub ending: Ending,
    /// The parent's ends of the pipes that the command asked for.
    pub stdin: Option<std::process::ChildStdin>,
    pub stdout: Option<std::process::ChildStdout>,
    pub stderr: Option<std::process::ChildStderr>,
}

thread_local! {
    /// How many descriptors a process may have that is not this one: containers inherit it.
    static DESCRIPTORS: Cell<Option<(rlim_t, rlim_t)>> = const { Cell::new(None) };
}

/// What is started here gets this limit of descriptors, whatever this process itself has.
pub fn remember_limit(soft: rlim_t, hard: rlim_t) {
    DESCRIPTORS.set(Some((soft, hard)));
}

/// Starts a process, as clean as if nobody had been before it: no signal is ignored, the limit of
/// descriptors is the usual one, and systemd waits for no word of it. Its end is seen by [`Reaper`]
/// alone.
pub fn spawn(command: &mut Command) -> io::Result<Child> {
    // runc would hand it to the container, and wait for a word that never comes.
    command.env_remove("NOTIFY_SOCKET");
    let limit = DESCRIPTORS.get();
    let clean = move || {
        for signal in 1..=64 {
            // What is ignored stays so in all that comes after; musl leaves three of its own.
            set_default(signal);
        }
        if let Some((soft, hard)) = limit {
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        }
        Ok(())
    };
    #[allow(
        unsafe_code,
        reason = "what is set between fork and exec can be set nowhere else"
    )]
    // SAFETY: calls of the system, which allocate nothing and take no lock.
    unsafe {
        command.pre_exec(clean);
    }
    let mut child = command.spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    let pid = Pid::from_raw(pid);
    Ok(Child {
        pid,
        // No reaping can come between: it happens on this thread, between two awaits.
        ending: register(pid),
        stdin: child.stdin.take(),
        stdout: child.stdout.take(),
        stderr: child.stderr.take(),
    })
}

/// `rt_sigaction(2)` itself, since C libraries keep some numbers for themselves.
fn set_default(signal: i32) {
    /// What the kernel has as `struct sigaction` is shorter on every architecture: all zeros are
    /// the default handler, no flags and an empty mask.
    const DEFAULT: [u64; 8] = [0; 8];
    /// Bytes in the kernel's set of signals.
    const SET: usize = 8;
    #[allow(unsafe_code, reason = "no library sets all of them")]
    // SAFETY: the kernel reads the structure, which is long enough, and writes nothing. A signal
    // that cannot be set is refused.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            DEFAULT.as_ptr(),
            std::ptr::null::<u64>(),
            SET,
        );
    }
}

/// Keeps what ends from now on, so that a process whose number becomes known later is not missed.
#[derive(Debug, Default)]
pub struct Watch(Rc<Kept>);

impl Watch {
    /// Begins; before whatever starts the process.
    pub fn begin() -> Watch {
        let watch = Watch::default();
        REGISTRY.with_borrow_mut(|registry| {
            registry.watches.retain(|other| other.strong_count() > 0);
            registry.watches.push(Rc::downgrade(&watch.0));
        });
        watch
    }

    /// The end of `pid`, whether it came already or not.
    pub fn claim(&self, pid: Pid) -> Ending {
        let known = self.0.borrow();
        let Some((_, exit)) = known.iter().rev().find(|(reaped, _)| *reaped == pid) else {
            return register(pid);
        };
        let (sender, receiver) = oneshot::channel();
        // The receiver is here; it cannot be gone.
        let _ = sender.send(*exit);
        Ending(receiver)
    }
}

/// The loop; to be begun before the first child.
#[derive(Debug)]
pub struct Reaper(Signal);

impl Reaper {
    pub fn new() -> io::Result<Reaper> {
        Ok(Reaper(signal(SignalKind::child())?))
    }

    /// Reaps until the process ends.
    pub async fn reap_forever(mut self) {
        loop {
            reap();
            if self.0.recv().await.is_none() {
                return;
            }
        }
    }
}

/// Takes every child that has ended. One signal may stand for many.
fn reap() {
    loop {
        let (pid, status) = match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => (Pid::from_raw(pid.as_raw_nonzero().get()), status),
            Err(rustix::io::Errno::INTR) => continue,
            // Nobody has ended, or there is nobody.
            Ok(None) | Err(_) => return,
        };
        // Real-time signals are numbers without a name, so this is no enumeration.
        let Some(status) = status
            .exit_status()
            .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
        else {
            continue;
        };
        let exit = Exit {
            status,
            at: SystemTime::now(),
        };
        REGISTRY.with_borrow_mut(|registry| {
            if let Some(sender) = registry.waiting.remove(&pid) {
                // Nobody may be interested any more.
                let _ = sender.send(exit);
                return;
            }
            registry.watches.retain(|watch| {
                let Some(kept) = watch.upgrade() else {
                    return false;
                };
                kept.borrow_mut().push((pid, exit));
                true
            });
        });
    }
}

/// Running tests that have children.
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
pub(crate) mod testing {
    use std::future::Future;
    use std::sync::{Mutex, PoisonError};

    use tokio::task::LocalSet;

    use super::Reaper;

    /// Reaping takes the children of the whole process, and tests are threads of one.
    static ALONE: Mutex<()> = Mutex::new(());

    /// Runs a test as the shim runs: on one thread, which reaps. No other test of this kind runs
    /// meanwhile.
    pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, async {
            tokio::task::spawn_local(Reaper::new().unwrap().reap_forever());
            test.await
        })
    }
}
