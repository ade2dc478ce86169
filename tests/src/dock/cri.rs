//! containerd's CRI plugin, called as kubelet calls it (`runtime.v1.RuntimeService`).

use std::collections::HashMap;

use prost::Message;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic_prost::ProstCodec;

use super::Dock;
use super::client::{Answer, Client};

/// Where CRI keeps everything.
pub const K8S: &str = "k8s.io";

/// `NamespaceMode`: of the node.
const NODE: i32 = 2;
/// Of the container alone.
const CONTAINER: i32 = 1;

/// `PodSandboxMetadata`.
#[derive(Clone, PartialEq, Message)]
pub struct PodMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(uint32, tag = "4")]
    attempt: u32,
}

#[derive(Clone, PartialEq, Message)]
struct NamespaceOption {
    #[prost(int32, tag = "1")]
    network: i32,
    #[prost(int32, tag = "2")]
    pid: i32,
    #[prost(int32, tag = "3")]
    ipc: i32,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxSecurity {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<NamespaceOption>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxPod {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security: Option<SandboxSecurity>,
}

/// `PodSandboxConfig`.
#[derive(Clone, PartialEq, Message)]
pub struct PodConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<PodMetadata>,
    #[prost(string, tag = "3")]
    log_directory: String,
    #[prost(map = "string, string", tag = "7")]
    annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxPod>,
}

#[derive(Clone, PartialEq, Message)]
struct RunPod {
    #[prost(message, optional, tag = "1")]
    config: Option<PodConfig>,
    #[prost(string, tag = "2")]
    handler: String,
}

/// A message of one id, which many are.
#[derive(Clone, PartialEq, Message)]
pub struct One {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

/// `ContainerMetadata`.
#[derive(Clone, PartialEq, Message)]
pub struct Metadata {
    /// Its name in the pod.
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint32, tag = "2")]
    attempt: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Resources {
    #[prost(int64, tag = "4")]
    memory: i64,
    #[prost(int64, tag = "10")]
    swap: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerSecurity {
    #[prost(message, optional, tag = "3")]
    namespaces: Option<NamespaceOption>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxContainer {
    #[prost(message, optional, tag = "1")]
    resources: Option<Resources>,
    #[prost(message, optional, tag = "2")]
    security: Option<ContainerSecurity>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<One>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(map = "string, string", tag = "10")]
    annotations: HashMap<String, String>,
    #[prost(string, tag = "11")]
    log_path: String,
    #[prost(message, optional, tag = "15")]
    linux: Option<LinuxContainer>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    pod: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    pod_config: Option<PodConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct Stop {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(int64, tag = "2")]
    timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Exec {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, repeated, tag = "2")]
    command: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout: i64,
}

/// `ExecSyncResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct Executed {
    /// All of it.
    #[prost(bytes = "vec", tag = "1")]
    pub stdout: Vec<u8>,
    /// All of it.
    #[prost(bytes = "vec", tag = "2")]
    pub stderr: Vec<u8>,
    /// As the process ended.
    #[prost(int32, tag = "3")]
    pub exit_code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct StatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
}

/// `ContainerStatus`.
#[derive(Clone, PartialEq, Message)]
pub struct Status {
    /// 0 created, 1 running, 2 exited, 3 unknown.
    #[prost(int32, tag = "3")]
    pub state: i32,
    /// As its process ended.
    #[prost(int32, tag = "7")]
    pub exit_code: i32,
    /// In one word.
    #[prost(string, tag = "10")]
    pub reason: String,
    /// In more.
    #[prost(string, tag = "11")]
    pub message: String,
}

#[derive(Clone, PartialEq, Message)]
struct Containers {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Listed>,
}

/// A line of `ListContainers`.
#[derive(Clone, PartialEq, Message)]
pub struct Listed {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Its pod.
    #[prost(string, tag = "2")]
    pub pod: String,
    /// Its name.
    #[prost(message, optional, tag = "3")]
    pub metadata: Option<Metadata>,
    /// As in [`Status::state`].
    #[prost(int32, tag = "6")]
    pub state: i32,
}

#[derive(Clone, PartialEq, Message)]
struct StatsAnswer {
    #[prost(message, optional, tag = "1")]
    stats: Option<Stats>,
}

#[derive(Clone, PartialEq, Message)]
struct Number {
    #[prost(uint64, tag = "1")]
    value: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Usage {
    #[prost(message, optional, tag = "2")]
    usage: Option<Number>,
}

#[derive(Clone, PartialEq, Message)]
struct Stats {
    #[prost(message, optional, tag = "2")]
    cpu: Option<Usage>,
    #[prost(message, optional, tag = "3")]
    memory: Option<Usage>,
}

/// A pod without a connection.
#[derive(Debug)]
pub struct Kept {
    id: String,
    config: PodConfig,
}

impl Kept {
    /// After a restart of the daemon.
    pub fn again(self, dock: &Dock) -> Pod<'_> {
        Pod {
            dock,
            id: self.id,
            config: self.config,
        }
    }
}

/// A pod.
#[derive(Debug)]
pub struct Pod<'a> {
    dock: &'a Dock,
    /// Its sandbox.
    pub id: String,
    config: PodConfig,
}

impl Client {
    fn cri<T: Message + Default + 'static>(
        &self,
        method: &str,
        message: impl Message + Default + 'static,
    ) -> Answer<T> {
        let path = format!("/runtime.v1.RuntimeService/{method}");
        let path = PathAndQuery::try_from(path).expect("a method is a path");
        let mut grpc = Grpc::new(self.channel());
        self.call(async move {
            grpc.ready()
                .await
                .map_err(|e| tonic::Status::unavailable(e.to_string()))?;
            let codec = ProstCodec::default();
            grpc.unary(tonic::Request::new(message), path, codec).await
        })
    }
}

impl Dock {
    /// Runs a pod on the node's network, by this handler of CRI's configuration.
    #[track_caller]
    pub fn pod(&self, name: &str, handler: &str) -> Pod<'_> {
        let logs = self.daemon.dir().join("pods").join(name);
        std::fs::create_dir_all(&logs).unwrap();
        let namespaces = NamespaceOption {
            network: NODE,
            pid: CONTAINER,
            ipc: 0,
        };
        let config = PodConfig {
            metadata: Some(PodMetadata {
                name: name.to_owned(),
                uid: format!("uid-of-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            log_directory: logs.to_str().expect("a path of the lab is text").to_owned(),
            annotations: HashMap::new(),
            linux: Some(LinuxPod {
                cgroup_parent: String::new(),
                security: Some(SandboxSecurity {
                    namespaces: Some(namespaces),
                }),
            }),
        };
        let message = RunPod {
            config: Some(config.clone()),
            handler: handler.to_owned(),
        };
        let answer: Answer<One> = self.client().cri("RunPodSandbox", message);
        let id = answer
            .unwrap_or_else(|e| panic!("RunPodSandbox: {e:?}\n{}", self.daemon.log()))
            .id;
        self.watch_in(K8S, &id);
        Pod {
            dock: self,
            id,
            config,
        }
    }
}

impl Pod<'_> {
    /// Lets go of the connection.
    pub fn keep(self) -> Kept {
        Kept {
            id: self.id,
            config: self.config,
        }
    }

    /// Whether CRI answers (yet).
    pub fn is_answered(&self) -> bool {
        let answer = self
            .client()
            .cri::<Containers>("ListContainers", Nothing {});
        answer.is_ok()
    }

    fn client(&self) -> &Client {
        self.dock.client()
    }

    fn one(id: &str) -> One {
        One { id: id.to_owned() }
    }

    /// `CreateContainer`: its id. No limit is 0.
    pub fn create(&self, name: &str, image: &str, command: &[&str], limit: i64) -> Answer<String> {
        let config = ContainerConfig {
            metadata: Some(Metadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            image: Some(Self::one(image)),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            annotations: HashMap::new(),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainer {
                resources: Some(Resources {
                    memory: limit,
                    swap: limit,
                }),
                security: Some(ContainerSecurity {
                    namespaces: Some(NamespaceOption {
                        network: NODE,
                        pid: CONTAINER,
                        ipc: 0,
                    }),
                }),
            }),
        };
        let message = CreateContainer {
            pod: self.id.clone(),
            config: Some(config),
            pod_config: Some(self.config.clone()),
        };
        let id = self.client().cri::<One>("CreateContainer", message)?.id;
        self.dock.watch_in(K8S, &id);
        Ok(id)
    }

    /// `StartContainer`.
    pub fn start(&self, id: &str) -> Answer<()> {
        let answer = self
            .client()
            .cri::<Nothing>("StartContainer", Self::one(id));
        answer.map(|_| ())
    }

    /// Both, which must work.
    #[track_caller]
    pub fn run(&self, name: &str, image: &str, command: &[&str]) -> String {
        let id = self.create(name, image, command, 0).unwrap();
        self.start(&id)
            .unwrap_or_else(|e| panic!("StartContainer: {e:?}\n{}", self.dock.daemon.log()));
        id
    }

    /// `ExecSync`.
    #[track_caller]
    pub fn exec(&self, id: &str, command: &[&str]) -> Executed {
        let message = Exec {
            id: id.to_owned(),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: 60,
        };
        self.client().cri("ExecSync", message).unwrap()
    }

    /// `ContainerStatus`.
    #[track_caller]
    pub fn status(&self, id: &str) -> Status {
        let answer = self
            .client()
            .cri::<StatusAnswer>("ContainerStatus", Self::one(id));
        answer.unwrap().status.unwrap_or_default()
    }

    /// `ListContainers`, of all pods.
    #[track_caller]
    pub fn list(&self) -> Vec<Listed> {
        let answer = self
            .client()
            .cri::<Containers>("ListContainers", Nothing {});
        answer.unwrap().containers
    }

    /// `ContainerStats`: nanoseconds of processor time, bytes of memory.
    #[track_caller]
    pub fn stats(&self, id: &str) -> (u64, u64) {
        let answer = self
            .client()
            .cri::<StatsAnswer>("ContainerStats", Self::one(id));
        let stats = answer.unwrap().stats.unwrap_or_default();
        let number = |usage: Option<Usage>| {
            let usage = usage.unwrap_or_default().usage;
            usage.unwrap_or_default().value
        };
        (number(stats.cpu), number(stats.memory))
    }

    /// `StopContainer`.
    pub fn stop(&self, id: &str, timeout: i64) -> Answer<()> {
        let message = Stop {
            id: id.to_owned(),
            timeout,
        };
        let answer = self.client().cri::<Nothing>("StopContainer", message);
        answer.map(|_| ())
    }

    /// `RemoveContainer`.
    pub fn remove(&self, id: &str) -> Answer<()> {
        let answer = self
            .client()
            .cri::<Nothing>("RemoveContainer", Self::one(id));
        answer.map(|_| ())
    }

    /// `StopPodSandbox` and `RemovePodSandbox`, with all that is in it.
    #[track_caller]
    pub fn end(self) {
        let stop = self
            .client()
            .cri::<Nothing>("StopPodSandbox", Self::one(&self.id));
        stop.unwrap();
        let remove = self
            .client()
            .cri::<Nothing>("RemovePodSandbox", Self::one(&self.id));
        remove.unwrap();
    }

    /// What a container wrote to its standard output, as CRI's log has it.
    #[track_caller]
    pub fn log(&self, name: &str) -> String {
        let file = std::path::Path::new(&self.config.log_directory).join(format!("{name}.log"));
        let text = std::fs::read_to_string(file).unwrap();
        let lines = text.lines().filter_map(|line| {
            // A time, a stream, whether it is a whole line, and the line.
            let mut words = line.splitn(4, ' ').skip(1);
            let (stream, whole) = (words.next()?, words.next()?);
            let end = if whole == "F" { "\n" } else { "" };
            (stream == "stdout").then(|| format!("{}{end}", words.next().unwrap_or_default()))
        });
        lines.collect()
    }
}
