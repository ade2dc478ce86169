//! Messages that the client's library does not have.

use prost::Message;
use prost_types::Any;

/// `containerd.runc.v1.Options`.
#[derive(Clone, PartialEq, Message)]
pub struct RuncOptions {
    /// No `pivot_root`.
    #[prost(bool, tag = "1")]
    pub no_pivot_root: bool,
    /// No new keyring.
    #[prost(bool, tag = "2")]
    pub no_new_keyring: bool,
    /// The control group of the shim itself.
    #[prost(string, tag = "3")]
    pub shim_cgroup: String,
    /// Owner of the pipes.
    #[prost(uint32, tag = "4")]
    pub io_uid: u32,
    /// Group of the pipes.
    #[prost(uint32, tag = "5")]
    pub io_gid: u32,
    /// The OCI runtime.
    #[prost(string, tag = "6")]
    pub binary_name: String,
    /// Its state directory.
    #[prost(string, tag = "7")]
    pub root: String,
    /// Control groups by systemd.
    #[prost(bool, tag = "9")]
    pub systemd_cgroup: bool,
}

impl RuncOptions {
    /// As a container's record carries it.
    pub fn any(&self) -> Any {
        any("containerd.runc.v1.Options", self)
    }
}

/// `runtimeoptions.v1.Options`.
#[derive(Clone, PartialEq, Message)]
pub struct RuntimeOptions {
    /// What the configuration is of.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// A file.
    #[prost(string, tag = "2")]
    pub config_path: String,
    /// Or its text.
    #[prost(bytes = "vec", tag = "3")]
    pub config_body: Vec<u8>,
}

impl RuntimeOptions {
    /// As a container's record carries it.
    pub fn any(&self) -> Any {
        any("runtimeoptions.v1.Options", self)
    }
}

/// `containerd.runc.v1.CheckpointOptions`.
#[derive(Clone, PartialEq, Message)]
pub struct CheckpointOptions {
    /// End the container.
    #[prost(bool, tag = "1")]
    pub exit: bool,
    /// Where the images go.
    #[prost(string, tag = "8")]
    pub image_path: String,
    /// Where criu works.
    #[prost(string, tag = "9")]
    pub work_path: String,
}

impl CheckpointOptions {
    /// As a call carries it.
    pub fn any(&self) -> Any {
        any("containerd.runc.v1.CheckpointOptions", self)
    }
}

/// `containerd.runc.v1.ProcessDetails`.
#[derive(Clone, PartialEq, Message)]
pub struct ProcessDetails {
    /// The exec.
    #[prost(string, tag = "1")]
    pub exec_id: String,
}

/// What is asked of `io.containerd.cgroups.v1.Metrics`.
#[derive(Clone, PartialEq, Message)]
pub struct Metrics {
    /// Processes.
    #[prost(message, optional, tag = "2")]
    pub pids: Option<Pids>,
    /// Processor time.
    #[prost(message, optional, tag = "3")]
    pub cpu: Option<Cpu>,
    /// Memory.
    #[prost(message, optional, tag = "4")]
    pub memory: Option<Memory>,
}

/// `PidsStat`.
#[derive(Clone, PartialEq, Message)]
pub struct Pids {
    /// Now.
    #[prost(uint64, tag = "1")]
    pub current: u64,
    /// At most.
    #[prost(uint64, tag = "2")]
    pub limit: u64,
}

/// `CPUStat`.
#[derive(Clone, PartialEq, Message)]
pub struct Cpu {
    /// Time used.
    #[prost(message, optional, tag = "1")]
    pub usage: Option<CpuUsage>,
}

/// `CPUUsage`, in nanoseconds.
#[derive(Clone, PartialEq, Message)]
pub struct CpuUsage {
    /// All.
    #[prost(uint64, tag = "1")]
    pub total: u64,
    /// Of the kernel for it.
    #[prost(uint64, tag = "2")]
    pub kernel: u64,
    /// Of its own.
    #[prost(uint64, tag = "3")]
    pub user: u64,
}

/// `MemoryStat`.
#[derive(Clone, PartialEq, Message)]
pub struct Memory {
    /// Page cache.
    #[prost(uint64, tag = "1")]
    pub cache: u64,
    /// Anonymous.
    #[prost(uint64, tag = "2")]
    pub rss: u64,
    /// All.
    #[prost(message, optional, tag = "33")]
    pub usage: Option<MemoryEntry>,
}

/// `MemoryEntry`, in bytes.
#[derive(Clone, PartialEq, Message)]
pub struct MemoryEntry {
    /// At most.
    #[prost(uint64, tag = "1")]
    pub limit: u64,
    /// Now.
    #[prost(uint64, tag = "2")]
    pub usage: u64,
    /// The most there ever was.
    #[prost(uint64, tag = "3")]
    pub max: u64,
}

fn any(name: &str, message: &impl Message) -> Any {
    Any {
        type_url: name.to_owned(),
        value: message.encode_to_vec(),
    }
}
