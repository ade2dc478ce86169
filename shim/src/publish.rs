//! Events on their way to containerd: in order for each container, and none of them waits for
//! another container's.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::log;
use crate::wire::events::{Envelope, Event, ForwardRequest, SERVICE};
use crate::wire::ttrpc::Client;

/// How long containerd may take to answer.
const LIMIT: Duration = Duration::from_secs(5);
/// How often one event is tried, with a second more to wait each time: containerd may be restarting.
/// What happened meanwhile it asks for itself when it is back.
const TRIES: u32 = 6;
/// Events of one container that wait at most.
const MOST: usize = 1024;

/// Where events go.
#[derive(Debug, Clone)]
pub struct Publisher(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    namespace: String,
    /// Of containerd's ttrpc socket; empty where nobody wants events.
    address: String,
    client: RefCell<Option<Rc<Client>>>,
    queues: RefCell<HashMap<String, VecDeque<Envelope>>>,
    emptied: Notify,
}

impl Publisher {
    /// Nothing is connected before the first event.
    pub fn new(namespace: &str, address: &str) -> Publisher {
        let address = address.strip_prefix("unix://").unwrap_or(address);
        Publisher(Rc::new(Inner {
            namespace: namespace.to_owned(),
            address: address.to_owned(),
            client: RefCell::default(),
            queues: RefCell::default(),
            emptied: Notify::new(),
        }))
    }

    /// Takes an event of `container`; returns at once.
    pub fn publish(&self, container: &str, event: &Event) {
        if self.0.address.is_empty() {
            return;
        }
        let envelope = Envelope {
            timestamp: Some(SystemTime::now().into()),
            namespace: self.0.namespace.clone(),
            topic: event.topic().to_owned(),
            event: Some(event.to_any()),
        };
        let mut queues = self.0.queues.borrow_mut();
        if let Some(queue) = queues.get_mut(container) {
            if queue.len() >= MOST {
                log::warn(format!(
                    "too many events of {container} wait: {} is lost",
                    event.topic()
                ));
            } else {
                queue.push_back(envelope);
            }
            return;
        }
        queues.insert(container.to_owned(), VecDeque::from([envelope]));
        spawn_local(self.clone().drain(container.to_owned()));
    }

    /// Sends one container's events until there are no more.
    async fn drain(self, container: String) {
        loop {
            let next = self
                .0
                .queues
                .borrow()
                .get(&container)
                .and_then(|queue| queue.front().cloned());
            let Some(envelope) = next else { break };
            self.send(envelope).await;
            let mut queues = self.0.queues.borrow_mut();
            if let Some(queue) = queues.get_mut(&container) {
                queue.pop_front();
                if queue.is_empty() {
                    // In one step, so that the next event starts a task of its own.
                    queues.remove(&container);
                    break;
                }
            }
        }
        if self.0.queues.borrow().is_empty() {
            self.0.emptied.notify_waiters();
        }
    }

    async fn send(&self, envelope: Envelope) {
        let topic = envelope.topic.clone();
        let request = ForwardRequest {
            envelope: Some(envelope),
        };
        for tried in 1..=TRIES {
            match self.try_send(&request).await {
                Ok(()) => return,
                Err(error) if tried == TRIES => log::warn(format!("{topic} is lost: {error}")),
                Err(error) => {
                    log::debug(format!("{topic}: {error}"));
                    sleep(Duration::from_secs(tried.into())).await;
                }
            }
        }
    }

    async fn try_send(&self, request: &ForwardRequest) -> Result<(), String> {
        let known = self.0.client.borrow().clone();
        let client = if let Some(client) = known.filter(|client| !client.is_closed()) {
            client
        } else {
            let connecting = timeout(LIMIT, Client::connect(&self.0.address));
            let client = connecting
                .await
                .map_err(|_| "no connection in time".to_owned())?;
            let client = client.map_err(|error| format!("{}: {error}", self.0.address))?;
            let client = Rc::new(client);
            self.0.client.replace(Some(client.clone()));
            client
        };
        match client.call(SERVICE, "Forward", request, LIMIT).await {
            Ok(_) => Ok(()),
            Err(error) => {
                // A connection that answers no more is not asked again.
                if client.is_closed() || error.code() == crate::error::Code::DeadlineExceeded {
                    self.0.client.take();
                }
                Err(error.message().to_owned())
            }
        }
    }

    /// Waits until everything is sent, but no longer than `limit`.
    pub async fn flushed(&self, limit: Duration) {
        let empty = async {
            loop {
                let emptied = self.0.emptied.notified();
                if self.0.queues.borrow().is_empty() {
                    return;
                }
                emptied.await;
            }
        };
        let _ = timeout(limit, empty).await;
    }
}
