//! One process that clients know of: a container's init, or an exec.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use nix::unistd::Pid;
use tokio::sync::{Mutex, watch};

use crate::child::Exit;
use crate::stdio::{Io, Stdio};
use crate::wire::task::{StateResponse, Status};

/// Where a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// An init that waits for `Start`; an exec that was only announced.
    Created,
    Running,
    /// An init whose container is frozen.
    Paused,
    Stopped,
}

/// A process.
#[derive(Debug)]
pub(super) struct Process {
    /// The exec's id; empty for an init.
    pub exec_id: String,
    pub stdio: Stdio,
    pub state: Cell<State>,
    pid: Cell<Option<Pid>>,
    io: RefCell<Option<Rc<Io>>>,
    /// A client may say that there is no input before there is anything to close.
    stdin_is_closed: Cell<bool>,
    exit: watch::Sender<Option<Exit>>,
    /// Held while it is being started or deleted. Its exit is told only when nobody holds it, so
    /// that a start is always told before the exit.
    pub turn: Mutex<()>,
}

impl Process {
    pub(super) fn new(exec_id: &str, stdio: Stdio) -> Process {
        Process {
            exec_id: exec_id.to_owned(),
            stdio,
            state: Cell::new(State::Created),
            pid: Cell::default(),
            io: RefCell::default(),
            stdin_is_closed: Cell::default(),
            exit: watch::Sender::new(None),
            turn: Mutex::new(()),
        }
    }

    pub(super) fn pid(&self) -> Option<Pid> {
        self.pid.get()
    }

    /// Its number, for answers; 0 where it has none.
    pub(super) fn number(&self) -> u32 {
        number(self.pid.get())
    }

    pub(super) fn set_pid(&self, pid: Pid) {
        self.pid.set(Some(pid));
    }

    /// It runs, and reads what there is to read.
    pub(super) fn set_running(&self) {
        self.state.set(State::Running);
        if let Some(io) = self.io() {
            io.begin_input();
        }
    }

    /// There will be no more input than what the client has written.
    pub(super) fn close_stdin(&self) {
        self.stdin_is_closed.set(true);
        if let Some(io) = self.io() {
            io.close_stdin();
        }
    }

    pub(super) fn set_io(&self, io: Io) {
        if self.stdin_is_closed.get() {
            io.close_stdin();
        }
        self.io.replace(Some(Rc::new(io)));
    }

    pub(super) fn io(&self) -> Option<Rc<Io>> {
        self.io.borrow().clone()
    }

    pub(super) fn take_io(&self) -> Option<Rc<Io>> {
        self.io.take()
    }

    /// How it ended, if it did.
    pub(super) fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// It has ended.
    pub(super) fn set_exit(&self, exit: Exit) {
        self.state.set(State::Stopped);
        self.exit.send_replace(Some(exit));
    }

    /// It never ran, and never will: whoever waits must not wait for good. It stays what it was,
    /// created.
    pub(super) fn give_up(&self) {
        self.exit.send_replace(Some(Exit {
            status: 255,
            at: std::time::SystemTime::now(),
        }));
    }

    /// Waits for the end.
    pub(super) async fn exited(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        loop {
            if let Some(exit) = *exit.borrow_and_update() {
                return exit;
            }
            if exit.changed().await.is_err() {
                // The sender lives in `self`.
                std::future::pending::<()>().await;
            }
        }
    }

    /// As `State` answers; `paused` says that the whole container is frozen.
    pub(super) fn answer(&self, id: &str, bundle: &str, paused: bool) -> StateResponse {
        let status = match self.state.get() {
            State::Created => Status::Created,
            State::Running if paused => Status::Paused,
            State::Running => Status::Running,
            State::Paused => Status::Paused,
            State::Stopped => Status::Stopped,
        };
        let exit = self.exit();
        StateResponse {
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            pid: self.number(),
            status: status as i32,
            stdin: self.stdio.stdin.clone(),
            stdout: self.stdio.stdout.clone(),
            stderr: self.stdio.stderr.clone(),
            terminal: self.stdio.terminal,
            exit_status: exit.map_or(0, status_of),
            exited_at: exit.map(|exit| exit.at.into()),
            exec_id: self.exec_id.clone(),
        }
    }
}

pub(super) fn number(pid: Option<Pid>) -> u32 {
    pid.and_then(|pid| u32::try_from(pid.as_raw()).ok())
        .unwrap_or(0)
}

/// An exit's status, as it is sent.
pub(super) fn status_of(exit: Exit) -> u32 {
    u32::try_from(exit.status).unwrap_or(255)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_started_stays_created_and_nobody_waits_for_it() {
        let process = Process::new("e", Stdio::default());
        process.give_up();
        let exit = crate::child::testing::run(process.exited());
        assert_eq!(exit.status, 255);
        let answer = process.answer("c", "/bundle", false);
        assert_eq!(answer.status, Status::Created as i32);
    }
}
