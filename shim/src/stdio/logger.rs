//! Programs that take the output of a process.
//!
//! A logger has the process' output on descriptors 3 (stdout) and 4 (stderr), straight from the
//! process: nothing is copied here. On descriptor 5 it says that it is ready.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::pin::pin;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::Interest;
use tokio::time::{Instant, timeout, timeout_at};

use super::uri::LoggerCommand;
use super::{Owner, open};
use crate::child::{self, Ending};
use crate::error::{Code, Error, Result};
use crate::log;
use crate::polled::Polled;

/// How long a logger may take to say that it is ready.
pub(super) const READY: Duration = Duration::from_secs(30);

/// How long a logger has to end by itself once its input has.
const BY_ITSELF: Duration = Duration::from_secs(1);

/// How long a logger has to end once it was asked to.
pub(super) const ASKED: Duration = Duration::from_secs(12);

/// The descriptors that a logger finds its pipes at: stdout, stderr, and whether it is ready.
const FIRST: i32 = 3;
const LAST: i32 = 5;

/// A running logger.
#[derive(Debug)]
pub(super) struct Logger {
    pid: Pid,
    /// Taken when somebody waits for it.
    ending: Option<Ending>,
    name: String,
}

impl Logger {
    /// Starts a logger that reads `stdout` and `stderr`, and waits until it is ready, at most
    /// `limit`.
    pub(super) async fn start(
        logger: &LoggerCommand,
        owner: &Owner,
        [stdout, stderr]: [OwnedFd; 2],
        limit: Duration,
    ) -> Result<Logger> {
        let name = format!("logger {} of {}", logger.path.display(), owner.container);
        let cannot_start = |error| Error::io(format!("cannot start the {name}"), error);
        let (ready, says_ready) = open::pipe(&Owner {
            uid: 0,
            gid: 0,
            ..owner.clone()
        })?;
        open::set_nonblocking(&ready)?;
        let running = {
            let pipes = [stdout, stderr, says_ready];
            let mut command = Command::new(&logger.path);
            command
                .args(&logger.arguments)
                .env_clear()
                .env("CONTAINER_ID", &owner.container)
                .env("CONTAINER_NAMESPACE", &owner.namespace)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let _taken = give(&mut command, &pipes).map_err(cannot_start)?;
            child::spawn(&mut command).map_err(cannot_start)?
        };
        let logger_is_strict = logger.strict;
        let logger = Logger {
            pid: running.pid,
            ending: Some(running.ending),
            name,
        };
        let failed = match timeout(limit, byte(ready)).await {
            Ok(Ok(Some(_))) => return Ok(logger),
            Ok(Ok(None)) if !logger_is_strict => return Ok(logger),
            Ok(Ok(None)) => Error::unknown(format!(
                "the {} ended, or closed descriptor 5, without saying that it is ready; see its \
                 own log",
                logger.name
            )),
            Ok(Err(error)) => Error::io(format!("cannot hear from the {}", logger.name), error),
            Err(_) => Error::new(
                Code::DeadlineExceeded,
                format!(
                    "the {} did not say within {} s that it is ready: it has to write to or close \
                     descriptor 5",
                    logger.name,
                    limit.as_secs()
                ),
            ),
        };
        logger.signal(Signal::SIGKILL);
        Err(failed)
    }

    /// Ends the logger: it has had all its input. Kills it at `deadline`.
    pub(super) async fn close(mut self, deadline: Instant) {
        let Some(ending) = self.ending.take() else {
            return;
        };
        let mut exit = pin!(ending.exit());
        // One that ends with its input has written all of it.
        if timeout(BY_ITSELF, &mut exit).await.is_ok() {
            return;
        }
        self.signal(Signal::SIGTERM);
        if timeout_at(deadline, &mut exit).await.is_err() {
            log::warn(format_args!("the {} does not end; it is killed", self.name));
            self.signal(Signal::SIGKILL);
            exit.await;
        }
    }

    fn signal(&self, signal: Signal) {
        // One that was reaped has given its number back.
        if child::is_waited_for(self.pid) {
            let _ = kill(self.pid, signal);
        }
    }
}

/// Lets `command` find `pipes` at descriptors 3 to 5. What it returns has to live until the start.
fn give(command: &mut Command, pipes: &[OwnedFd; 3]) -> io::Result<Vec<OwnedFd>> {
    // Copies with greater numbers than those that they get, so that putting one in its place
    // cannot close another. Every number up to 5 is in use then, by what was there or by fillers:
    // the pipe on which a failed exec is reported is none of them either.
    let mut taken = Vec::new();
    let mut sources = [0; 3];
    for (source, pipe) in sources.iter_mut().zip(pipes) {
        *source = loop {
            let copy = fcntl(pipe, FcntlArg::F_DUPFD_CLOEXEC(FIRST))?;
            #[allow(unsafe_code, reason = "fcntl gives a number, not an owned descriptor")]
            // SAFETY: the descriptor is new, and nobody else's.
            let copy = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(copy) };
            let number = copy.as_raw_fd();
            taken.push(copy);
            if number > LAST {
                break number;
            }
        };
    }
    let place = move || {
        for (target, source) in (FIRST..).zip(sources) {
            #[allow(unsafe_code, reason = "no wrapper takes a number that nobody owns")]
            // SAFETY: it takes two numbers, and is one of the calls allowed after a fork.
            let placed = unsafe { libc::dup2(source, target) };
            if placed < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    #[allow(
        unsafe_code,
        reason = "the descriptors of a child can be placed in the child alone"
    )]
    // SAFETY: `place` only calls dup2, and allocates nothing.
    unsafe {
        command.pre_exec(place);
    }
    Ok(taken)
}

/// Waits for a byte, or for the end.
async fn byte(pipe: OwnedFd) -> io::Result<Option<u8>> {
    let pipe = Polled::new(pipe, Interest::READABLE).map_err(|(_, error)| error)?;
    loop {
        pipe.readable().await?;
        let mut byte = [0];
        match rustix::io::read(&pipe, &mut byte) {
            Ok(read) => return Ok((read > 0).then_some(byte[0])),
            Err(rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
