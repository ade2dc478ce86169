//! What containerd publishes, written down in its order.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use containerd_client::events as types;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::{PublishRequest, SubscribeRequest};
use containerd_client::types::Envelope;
use prost::Message;
use prost_types::Any;

use super::client::{Client, runtime};
use crate::process::wait_for;

/// Published by ourselves until it is heard: a subscription is not acknowledged otherwise.
const READY: &str = "/lab/listening";

/// An event about a task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// The last part of its topic: `create`, `exec-started`, `exit`, …
    pub what: String,
    /// The container.
    pub container: String,
    /// The process, where the event names one: the exec's id, or the container's.
    pub process: String,
    /// Its pid, where the event names one.
    pub pid: u32,
    /// Its exit status, where the event is about an end.
    pub status: u32,
}

impl Event {
    fn read(envelope: &Envelope) -> Option<Self> {
        let what = envelope.topic.strip_prefix("/tasks/")?.to_owned();
        let Any { type_url, value } = envelope.event.clone()?;
        let value = value.as_slice();
        let (container, process, pid, status) = match type_url.rsplit(['/', '.']).next()? {
            "TaskCreate" => {
                let e = types::TaskCreate::decode(value).ok()?;
                (e.container_id, String::new(), e.pid, 0)
            }
            "TaskStart" => {
                let e = types::TaskStart::decode(value).ok()?;
                (e.container_id, String::new(), e.pid, 0)
            }
            "TaskExecAdded" => {
                let e = types::TaskExecAdded::decode(value).ok()?;
                (e.container_id, e.exec_id, 0, 0)
            }
            "TaskExecStarted" => {
                let e = types::TaskExecStarted::decode(value).ok()?;
                (e.container_id, e.exec_id, e.pid, 0)
            }
            "TaskExit" => {
                let e = types::TaskExit::decode(value).ok()?;
                (e.container_id, e.id, e.pid, e.exit_status)
            }
            "TaskDelete" => {
                let e = types::TaskDelete::decode(value).ok()?;
                (e.container_id, e.id, e.pid, e.exit_status)
            }
            "TaskOOM" => (
                types::TaskOom::decode(value).ok()?.container_id,
                String::new(),
                0,
                0,
            ),
            "TaskPaused" => (
                types::TaskPaused::decode(value).ok()?.container_id,
                String::new(),
                0,
                0,
            ),
            "TaskResumed" => (
                types::TaskResumed::decode(value).ok()?.container_id,
                String::new(),
                0,
                0,
            ),
            "TaskCheckpointed" => {
                let e = types::TaskCheckpointed::decode(value).ok()?;
                (e.container_id, e.checkpoint, 0, 0)
            }
            _ => return None,
        };
        Some(Self {
            what,
            container,
            process,
            pid,
            status,
        })
    }
}

#[derive(Debug, Default)]
struct Heard {
    ready: bool,
    events: Vec<Event>,
    // A task event that is not what its topic says.
    unread: Vec<String>,
}

/// A subscription. Dropped: over.
#[derive(Debug)]
pub struct Events {
    heard: Arc<Mutex<Heard>>,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Events {
    /// From now on, of every task of the daemon.
    #[track_caller]
    pub(super) fn of(socket: &Path, client: &Client) -> Self {
        let heard = Arc::new(Mutex::new(Heard::default()));
        let (end, ended) = tokio::sync::oneshot::channel();
        let (to, socket) = (Arc::clone(&heard), socket.to_path_buf());
        let thread = thread::spawn(move || {
            runtime().block_on(async {
                tokio::select! {
                    () = listen(&socket, &to) => {}
                    _ended = ended => {}
                }
            });
        });
        let events = Self {
            heard,
            end: Some(end),
            thread: Some(thread),
        };
        wait_for("a subscription", Duration::from_secs(30), || {
            let request = client.request(PublishRequest {
                topic: READY.to_owned(),
                event: Some(Any::default()),
            });
            let mut service = EventsClient::new(client.channel());
            client.call(service.publish(request)).unwrap();
            events.with(|heard| heard.ready)
        });
        events
    }

    fn with<T>(&self, look: impl FnOnce(&Heard) -> T) -> T {
        look(&self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All of a container, in their order.
    #[track_caller]
    pub fn about(&self, container: &str) -> Vec<Event> {
        self.with(|heard| {
            assert!(heard.unread.is_empty(), "{:?}", heard.unread);
            let mut events = heard.events.clone();
            events.retain(|event| event.container == container);
            events
        })
    }

    /// `what` or `what process` of every event of a container, in their order.
    #[track_caller]
    pub fn names(&self, container: &str) -> Vec<String> {
        let name = |event: Event| {
            if event.process.is_empty() || event.process == container {
                event.what
            } else {
                format!("{} {}", event.what, event.process)
            }
        };
        self.about(container).into_iter().map(name).collect()
    }

    /// Waits for one, and returns it.
    #[track_caller]
    pub fn wait(&self, container: &str, what: &str, process: &str) -> Event {
        let mut found = None;
        wait_for(
            &format!("the event {what} {process} of {container}"),
            Duration::from_secs(60),
            || {
                let mut all = self.about(container).into_iter();
                found = all.find(|event| {
                    event.what == what && (process.is_empty() || event.process == process)
                });
                found.is_some()
            },
        );
        found.expect("it was waited for")
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

async fn listen(socket: &Path, to: &Mutex<Heard>) {
    let Ok(channel) = containerd_client::connect(socket).await else {
        return;
    };
    let request = SubscribeRequest::default();
    let Ok(stream) = EventsClient::new(channel).subscribe(request).await else {
        return;
    };
    let mut stream = stream.into_inner();
    // The end of the daemon is the end of what it tells.
    while let Ok(Some(envelope)) = stream.message().await {
        let mut heard = to.lock().unwrap_or_else(PoisonError::into_inner);
        if envelope.topic == READY {
            heard.ready = true;
        } else if let Some(event) = Event::read(&envelope) {
            heard.events.push(event);
        } else if envelope.topic.starts_with("/tasks/") {
            heard.unread.push(format!("{envelope:?}"));
        }
    }
}
