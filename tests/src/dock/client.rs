//! containerd's own services, one method each: what `ctr` cannot say precisely.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    CheckpointTaskRequest, CloseIoRequest, Container, CreateContainerRequest, CreateTaskRequest,
    DeleteContainerRequest, DeleteProcessRequest, DeleteResponse, DeleteTaskRequest,
    ExecProcessRequest, GetRequest, KillRequest, ListPidsRequest, MetricsRequest, PauseTaskRequest,
    ResizePtyRequest, ResumeTaskRequest, StartRequest, UpdateTaskRequest, WaitRequest,
    WaitResponse,
};
use containerd_client::types::Descriptor;
use containerd_client::types::v1::{Process, ProcessInfo};
use prost_types::Any;
use serde_json::Value;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// No call takes longer; one that does fails the test.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a call says.
pub type Answer<T> = Result<T, Status>;

/// A connection of its own. Not shared between threads: each makes one.
#[derive(Debug)]
pub struct Client {
    runtime: tokio::runtime::Runtime,
    channel: Channel,
    namespace: String,
}

/// A runtime for one thread.
pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made")
}

impl Client {
    /// To the daemon at this socket.
    #[track_caller]
    pub fn new(socket: &Path, namespace: &str) -> Self {
        let runtime = runtime();
        let channel = runtime
            .block_on(containerd_client::connect(socket))
            .unwrap_or_else(|e| panic!("no containerd at {}: {e:?}", socket.display()));
        Self {
            runtime,
            channel,
            namespace: namespace.to_owned(),
        }
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let namespace = self.namespace.parse().expect("a namespace is plain text");
        request
            .metadata_mut()
            .insert("containerd-namespace", namespace);
        request
    }

    pub(crate) fn call<T>(
        &self,
        work: impl Future<Output = Answer<tonic::Response<T>>>,
    ) -> Answer<T> {
        let done = self
            .runtime
            .block_on(async { tokio::time::timeout(PATIENCE, work).await });
        done.unwrap_or_else(|_| panic!("a call was not answered within {PATIENCE:?}"))
            .map(tonic::Response::into_inner)
    }

    fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel())
    }

    fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel())
    }

    /// Makes a container's record.
    pub fn create_container(&self, container: Container) -> Answer<()> {
        let request = self.request(CreateContainerRequest {
            container: Some(container),
        });
        self.call(self.containers().create(request)).map(|_| ())
    }

    /// Removes it.
    pub fn delete_container(&self, id: &str) -> Answer<()> {
        let request = self.request(DeleteContainerRequest { id: id.to_owned() });
        self.call(self.containers().delete(request))
    }

    /// Task.Create; the pid.
    pub fn create(&self, request: CreateTaskRequest) -> Answer<u32> {
        let request = self.request(request);
        self.call(self.tasks().create(request)).map(|r| r.pid)
    }

    /// Task.Start of the task (no exec id) or of an exec; the pid.
    pub fn start(&self, id: &str, exec: &str) -> Answer<u32> {
        let request = self.request(StartRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
        });
        self.call(self.tasks().start(request)).map(|r| r.pid)
    }

    /// Task.Delete.
    pub fn delete(&self, id: &str) -> Answer<DeleteResponse> {
        let request = self.request(DeleteTaskRequest {
            container_id: id.to_owned(),
        });
        self.call(self.tasks().delete(request))
    }

    /// Task.Delete of an exec.
    pub fn delete_exec(&self, id: &str, exec: &str) -> Answer<DeleteResponse> {
        let request = self.request(DeleteProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
        });
        self.call(self.tasks().delete_process(request))
    }

    /// Task.State, as containerd passes it on.
    pub fn state(&self, id: &str, exec: &str) -> Answer<Process> {
        let request = self.request(GetRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
        });
        let answer = self.call(self.tasks().get(request))?;
        Ok(answer.process.unwrap_or_default())
    }

    /// Task.Kill.
    pub fn kill(&self, id: &str, exec: &str, signal: u32, all: bool) -> Answer<()> {
        let request = self.request(KillRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            signal,
            all,
        });
        self.call(self.tasks().kill(request))
    }

    /// Task.Exec.
    pub fn exec(&self, request: ExecProcessRequest) -> Answer<()> {
        let request = self.request(request);
        self.call(self.tasks().exec(request))
    }

    /// Task.ResizePty.
    pub fn resize(&self, id: &str, exec: &str, width: u32, height: u32) -> Answer<()> {
        let request = self.request(ResizePtyRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            width,
            height,
        });
        self.call(self.tasks().resize_pty(request))
    }

    /// Task.CloseIO of the standard input.
    pub fn close_stdin(&self, id: &str, exec: &str) -> Answer<()> {
        let request = self.request(CloseIoRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            stdin: true,
        });
        self.call(self.tasks().close_io(request))
    }

    /// Task.Pause.
    pub fn pause(&self, id: &str) -> Answer<()> {
        let request = self.request(PauseTaskRequest {
            container_id: id.to_owned(),
        });
        self.call(self.tasks().pause(request))
    }

    /// Task.Resume.
    pub fn resume(&self, id: &str) -> Answer<()> {
        let request = self.request(ResumeTaskRequest {
            container_id: id.to_owned(),
        });
        self.call(self.tasks().resume(request))
    }

    /// Task.Pids.
    pub fn pids(&self, id: &str) -> Answer<Vec<ProcessInfo>> {
        let request = self.request(ListPidsRequest {
            container_id: id.to_owned(),
        });
        self.call(self.tasks().list_pids(request))
            .map(|r| r.processes)
    }

    /// Task.Checkpoint; where containerd put it.
    pub fn checkpoint(&self, id: &str, options: Option<Any>) -> Answer<Vec<Descriptor>> {
        let request = self.request(CheckpointTaskRequest {
            container_id: id.to_owned(),
            parent_checkpoint: String::new(),
            options,
        });
        self.call(self.tasks().checkpoint(request))
            .map(|r| r.descriptors)
    }

    /// Task.Update with OCI resources.
    pub fn update(&self, id: &str, resources: &Value) -> Answer<()> {
        let request = self.request(UpdateTaskRequest {
            container_id: id.to_owned(),
            resources: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
                    .to_owned(),
                value: resources.to_string().into_bytes(),
            }),
            annotations: std::collections::HashMap::new(),
        });
        self.call(self.tasks().update(request))
    }

    /// Task.Stats, as containerd passes them on: nothing where it has none.
    pub fn metrics(&self, id: &str) -> Answer<Option<Any>> {
        let request = self.request(MetricsRequest {
            filters: vec![format!("id=={id}")],
        });
        let answer = self.call(self.tasks().metrics(request))?;
        Ok(answer.metrics.into_iter().find_map(|metric| metric.data))
    }

    /// Task.Wait.
    pub fn wait(&self, id: &str, exec: &str) -> Answer<WaitResponse> {
        let request = self.request(WaitRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
        });
        self.call(self.tasks().wait(request))
    }
}
