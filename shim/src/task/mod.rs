//! The Task service: containers, and the calls about them.
//!
//! Everything is of one thread, so what stands between two awaits happens at once. Nothing is
//! locked for all containers: a slow runtime holds up its own container alone, and of that only what
//! has to be in order ([`process::Process::turn`]).

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use prost::Message;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::aside::Aside;
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::publish::Publisher;
use crate::wire::group::{self, HoldRequest, HoldResponse};
use crate::wire::task::{self, ProcessRequest, ShutdownRequest};
use crate::wire::ttrpc::{Answer, Call, Request, Service};
use crate::wire::{Any, Empty};

mod admit;
mod calls;
mod container;
mod create;
mod delete;
mod exec;
mod exit;
mod process;

use container::Container;

/// How long a place that `start` asked for is kept for its `Create`.
const HELD: Duration = Duration::from_secs(30);

/// All containers of this shim.
#[derive(Debug, Clone)]
pub struct Tasks(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    namespace: String,
    config: Config,
    publisher: Publisher,
    looks: Aside,
    unmounts: Aside,
    containers: RefCell<HashMap<String, Rc<Container>>>,
    /// Ids of containers that are being created.
    creating: RefCell<HashSet<String>>,
    /// Ids that `start` sends here, and until when their `Create` is waited for.
    held: RefCell<HashMap<String, Instant>>,
    /// Somebody wanted the end, which waits for those that are held or being created.
    asked: Cell<bool>,
    /// How many are connected.
    connections: Cell<usize>,
    ending: Cell<bool>,
    end: Notify,
}

impl Tasks {
    pub fn new(namespace: &str, config: Config, publisher: Publisher) -> Tasks {
        Tasks(Rc::new(Inner {
            namespace: namespace.to_owned(),
            config,
            publisher,
            looks: Aside::default(),
            unmounts: Aside::default(),
            containers: RefCell::default(),
            creating: RefCell::default(),
            held: RefCell::default(),
            asked: Cell::new(false),
            connections: Cell::new(0),
            ending: Cell::new(false),
            end: Notify::new(),
        }))
    }

    /// Comes when a `Shutdown` found no container. From then on nothing is created any more.
    pub async fn ended(&self) {
        loop {
            let end = self.0.end.notified();
            if self.0.ending.get() {
                return;
            }
            end.await;
        }
    }

    /// Counts a connection as long as the returned value is there. Without any, and without a
    /// container, a shim ends after a while: whoever started it is gone.
    pub fn connected(&self) -> Connected {
        let connections = &self.0.connections;
        connections.set(connections.get() + 1);
        Connected(self.0.clone())
    }

    /// What it holds, for the log.
    pub fn describe(&self) -> String {
        let containers = self.0.containers.borrow();
        let mut words: Vec<String> = containers
            .values()
            .map(|one| {
                let execs = one.execs.borrow().len();
                format!(
                    "{} ({:?}, pid {}, {execs} execs)",
                    one.id,
                    one.init.state.get(),
                    one.init.number()
                )
            })
            .collect();
        words.sort_unstable();
        let creating = self.0.creating.borrow().len();
        format!(
            "{} containers, {creating} being created: {}",
            words.len(),
            words.join(", ")
        )
    }
}

/// A connection; see [`Tasks::connected`].
#[derive(Debug)]
pub struct Connected(Rc<Inner>);

impl Drop for Connected {
    fn drop(&mut self) {
        let left = self.0.connections.get().saturating_sub(1);
        self.0.connections.set(left);
        if left > 0 || !self.0.is_empty() {
            return;
        }
        let tasks = self.0.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(HELD).await;
            if tasks.connections.get() == 0 {
                tasks.shutdown();
            }
        });
    }
}

impl Inner {
    fn is_empty(&self) -> bool {
        self.containers.borrow().is_empty() && self.creating.borrow().is_empty()
    }

    fn container(&self, id: &str) -> Result<Rc<Container>> {
        let containers = self.containers.borrow();
        containers.get(id).cloned().ok_or_else(|| {
            Error::not_found(format!("container not created: {}", id.escape_debug()))
        })
    }

    /// Keeps this shim for a container that comes soon, if it takes one more.
    fn hold(&self, request: &HoldRequest) -> HoldResponse {
        let now = Instant::now();
        let mut held = self.held.borrow_mut();
        held.retain(|_, until| *until > now);
        let here = self.containers.borrow().len() + self.creating.borrow().len() + held.len();
        let most = usize::try_from(request.most).unwrap_or(usize::MAX);
        let granted = !self.ending.get() && (most == 0 || here < most);
        if granted {
            held.insert(request.id.clone(), now + HELD);
        }
        HoldResponse { granted }
    }

    /// Ends the shim when it has nothing to do; while something is on its way, that is remembered.
    fn shutdown(self: &Rc<Self>) {
        if !self.containers.borrow().is_empty() {
            return;
        }
        self.asked.set(true);
        self.end_if_asked();
    }

    fn end_if_asked(self: &Rc<Self>) {
        if !self.asked.get() || !self.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut held = self.held.borrow_mut();
        held.retain(|_, until| *until > now);
        let Some(until) = held.values().max().copied() else {
            self.ending.set(true);
            self.end.notify_waiters();
            return;
        };
        // Those that are waited for may never come, and nobody asks again.
        let tasks = Rc::clone(self);
        tokio::task::spawn_local(async move {
            tokio::time::sleep_until(until).await;
            tasks.end_if_asked();
        });
    }
}

/// A call's message.
fn read<M: Message + Default>(payload: &[u8]) -> Result<M> {
    M::decode(payload).map_err(|error| Error::invalid(format!("unreadable message: {error}")))
}

fn answer(result: Result<impl Message>) -> Result<Vec<u8>> {
    result.map(|message| message.encode_to_vec())
}

impl Service for Tasks {
    fn call(&self, request: Request, call: Call) -> Answer {
        let tasks = self.0.clone();
        if request.service == group::SERVICE && request.method == "Hold" {
            return Box::pin(async move {
                let request = read(&request.payload)?;
                answer(Ok(tasks.hold(&request)))
            });
        }
        if !task::SERVICES.contains(&request.service.as_str()) {
            let message = format!(
                "service {}: not implemented",
                request.service.escape_debug()
            );
            return Box::pin(async move { Err(Error::new(Code::Unimplemented, message)) });
        }
        Box::pin(tasks.method(request, call))
    }
}

impl Inner {
    async fn method(self: Rc<Inner>, request: Request, call: Call) -> Result<Vec<u8>> {
        let payload = request.payload.as_slice();
        let deadline = call.deadline;
        match request.method.as_str() {
            "Create" => answer(self.create(read(payload)?, &call).await),
            "Start" => answer(self.start(read(payload)?, deadline).await),
            "Delete" => answer(self.delete(read(payload)?).await),
            "Exec" => answer(self.exec(read(payload)?)),
            "State" => answer(self.state(&read(payload)?)),
            "Pids" => answer(self.pids(&read(payload)?, deadline).await),
            "Pause" => answer(self.pause(&read(payload)?, deadline).await),
            "Resume" => answer(self.resume(&read(payload)?, deadline).await),
            "Checkpoint" => answer(self.checkpoint(&read(payload)?).await),
            "Kill" => answer(self.kill(&read(payload)?, deadline).await),
            "ResizePty" => answer(self.resize(&read(payload)?)),
            "CloseIO" => answer(self.close_io(&read(payload)?)),
            "Update" => answer(self.update(&read(payload)?, deadline).await),
            "Wait" => answer(self.wait(&read(payload)?, &call).await),
            "Stats" => answer(self.stats(&read(payload)?)),
            "Connect" => answer(Ok(self.connect(&read::<ProcessRequest>(payload)?))),
            "Shutdown" => {
                read::<ShutdownRequest>(payload)?;
                self.shutdown();
                answer(Ok(Empty {}))
            }
            other => Err(Error::new(
                Code::Unimplemented,
                format!("method {}: not implemented", other.escape_debug()),
            )),
        }
    }
}

/// What an `Any` holds where the type is known from the call.
fn value(any: Option<&Any>) -> &[u8] {
    any.map_or(&[], |any| any.value.as_slice())
}
