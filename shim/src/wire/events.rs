//! The events of a task (`containerd.events`), and the call that hands them to containerd
//! (`containerd.services.events.ttrpc.v1.Events/Forward`).

use prost::Message;

use super::{Any, Mount, Timestamp};

/// The service that takes events.
pub const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";

#[derive(Clone, PartialEq, Message)]
pub struct ForwardRequest {
    #[prost(message, optional, tag = "1")]
    pub envelope: Option<Envelope>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Envelope {
    #[prost(message, optional, tag = "1")]
    pub timestamp: Option<Timestamp>,
    #[prost(string, tag = "2")]
    pub namespace: String,
    #[prost(string, tag = "3")]
    pub topic: String,
    #[prost(message, optional, tag = "4")]
    pub event: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TaskCreate {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub bundle: String,
    #[prost(message, repeated, tag = "3")]
    pub rootfs: Vec<Mount>,
    #[prost(message, optional, tag = "4")]
    pub io: Option<TaskIo>,
    #[prost(string, tag = "5")]
    pub checkpoint: String,
    #[prost(uint32, tag = "6")]
    pub pid: u32,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskIo {
    #[prost(string, tag = "1")]
    pub stdin: String,
    #[prost(string, tag = "2")]
    pub stdout: String,
    #[prost(string, tag = "3")]
    pub stderr: String,
    #[prost(bool, tag = "4")]
    pub terminal: bool,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskStart {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(uint32, tag = "2")]
    pub pid: u32,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskDelete {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    #[prost(uint32, tag = "3")]
    pub exit_status: u32,
    #[prost(message, optional, tag = "4")]
    pub exited_at: Option<Timestamp>,
    /// An exec; empty for the task itself.
    #[prost(string, tag = "5")]
    pub id: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskExit {
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// The container itself, or the exec.
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(uint32, tag = "3")]
    pub pid: u32,
    #[prost(uint32, tag = "4")]
    pub exit_status: u32,
    #[prost(message, optional, tag = "5")]
    pub exited_at: Option<Timestamp>,
}

/// `TaskOOM`, `TaskPaused`, `TaskResumed`: a container's id alone.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OfContainer {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// `TaskExecAdded`, and with a pid `TaskExecStarted`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OfExec {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(uint32, tag = "3")]
    pub pid: u32,
}

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Create(TaskCreate),
    Start(TaskStart),
    ExecAdded(OfExec),
    ExecStarted(OfExec),
    Exit(TaskExit),
    Delete(TaskDelete),
    Paused(OfContainer),
    Resumed(OfContainer),
    Oom(OfContainer),
}

impl Event {
    /// Its topic, as subscribers filter by it.
    pub fn topic(&self) -> &'static str {
        match self {
            Event::Create(_) => "/tasks/create",
            Event::Start(_) => "/tasks/start",
            Event::ExecAdded(_) => "/tasks/exec-added",
            Event::ExecStarted(_) => "/tasks/exec-started",
            Event::Exit(_) => "/tasks/exit",
            Event::Delete(_) => "/tasks/delete",
            Event::Paused(_) => "/tasks/paused",
            Event::Resumed(_) => "/tasks/resumed",
            Event::Oom(_) => "/tasks/oom",
        }
    }

    /// As it is sent.
    pub fn to_any(&self) -> Any {
        match self {
            Event::Create(event) => Any::new("containerd.events.TaskCreate", event),
            Event::Start(event) => Any::new("containerd.events.TaskStart", event),
            Event::ExecAdded(event) => Any::new("containerd.events.TaskExecAdded", event),
            Event::ExecStarted(event) => Any::new("containerd.events.TaskExecStarted", event),
            Event::Exit(event) => Any::new("containerd.events.TaskExit", event),
            Event::Delete(event) => Any::new("containerd.events.TaskDelete", event),
            Event::Paused(event) => Any::new("containerd.events.TaskPaused", event),
            Event::Resumed(event) => Any::new("containerd.events.TaskResumed", event),
            Event::Oom(event) => Any::new("containerd.events.TaskOOM", event),
        }
    }
}
