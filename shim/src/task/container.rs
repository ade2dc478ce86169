//! One container, and what is done to it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::bundle::Bundle;
use crate::cgroup::Cgroup;
use crate::error::{Code, Error, Result};
use crate::oci::Runtime;
use crate::wire::options::Options;

use super::process::{Process, State};

/// A container.
#[derive(Debug)]
pub(super) struct Container {
    pub id: String,
    pub bundle: Bundle,
    pub runtime: Runtime,
    pub options: Options,
    pub init: Rc<Process>,
    pub execs: RefCell<BTreeMap<String, Rc<Process>>>,
    /// The processes of execs, as JSON, until they start.
    pub specs: RefCell<BTreeMap<String, serde_json::Value>>,
    /// Whether the shim mounted its root.
    pub mounted: bool,
    /// Whether its processes outlive its init.
    pub shares_pids: bool,
    /// Its init was reaped; nothing may be started in it any more.
    pub init_gone: Cell<bool>,
    /// Held (to read) by each `Kill` until it has its answer: the runtime tells its caller of the end
    /// first, and who hears of it deletes the container and hangs up.
    pub kills: tokio::sync::RwLock<()>,
    pub cgroup: RefCell<Option<Rc<Cgroup>>>,
    /// Where it is restored from at `Start`.
    pub checkpoint: RefCell<Option<Restore>>,
    /// What watches for the kernel's killings, until the end.
    pub watcher: RefCell<Option<tokio::task::AbortHandle>>,
}

/// What `Start` needs for a container that comes from a checkpoint.
#[derive(Debug)]
pub(super) struct Restore {
    pub images: std::path::PathBuf,
    pub console: Option<crate::oci::console::Console>,
    pub ends: Option<crate::oci::Ends>,
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(watcher) = self.watcher.take() {
            watcher.abort();
        }
    }
}

impl Container {
    /// Its init, or one of its execs.
    pub(super) fn process(&self, exec_id: &str) -> Result<Rc<Process>> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        let execs = self.execs.borrow();
        execs
            .get(exec_id)
            .cloned()
            .ok_or_else(|| Error::not_found(format!("process does not exist {exec_id}")))
    }

    pub(super) fn is_paused(&self) -> bool {
        self.init.state.get() == State::Paused
    }

    /// Its execs, whatever they are at.
    pub(super) fn all_execs(&self) -> Vec<Rc<Process>> {
        self.execs.borrow().values().cloned().collect()
    }

    /// Whether something may be executed in it now.
    pub(super) fn may_exec(&self) -> Result<()> {
        let word = match self.init.state.get() {
            State::Created | State::Running => return Ok(()),
            State::Paused => "paused",
            State::Stopped => "stopped",
        };
        Err(Error::new(
            Code::FailedPrecondition,
            format!("cannot exec in a {word} state"),
        ))
    }
}
