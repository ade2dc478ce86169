//! How a container's runtime is configured: `containerd.runc.v1.Options`, and the envelope that CRI
//! sends for every runtime whose name it does not know.

use prost::Message;

/// `containerd.runc.v1.Options`.
#[derive(Clone, PartialEq, Eq, Message, serde::Deserialize)]
#[serde(default)]
pub struct Options {
    #[prost(bool, tag = "1")]
    #[serde(rename = "NoPivotRoot", alias = "no_pivot_root")]
    pub no_pivot_root: bool,
    #[prost(bool, tag = "2")]
    #[serde(rename = "NoNewKeyring", alias = "no_new_keyring")]
    pub no_new_keyring: bool,
    #[prost(string, tag = "3")]
    #[serde(rename = "ShimCgroup", alias = "shim_cgroup")]
    pub shim_cgroup: String,
    #[prost(uint32, tag = "4")]
    #[serde(rename = "IoUid", alias = "io_uid")]
    pub io_uid: u32,
    #[prost(uint32, tag = "5")]
    #[serde(rename = "IoGid", alias = "io_gid")]
    pub io_gid: u32,
    #[prost(string, tag = "6")]
    #[serde(rename = "BinaryName", alias = "binary_name")]
    pub binary_name: String,
    #[prost(string, tag = "7")]
    #[serde(rename = "Root", alias = "root")]
    pub root: String,
    #[prost(bool, tag = "9")]
    #[serde(rename = "SystemdCgroup", alias = "systemd_cgroup")]
    pub systemd_cgroup: bool,
    #[prost(string, tag = "10")]
    #[serde(rename = "CriuImagePath", alias = "criu_image_path")]
    pub criu_image_path: String,
    #[prost(string, tag = "11")]
    #[serde(rename = "CriuWorkPath", alias = "criu_work_path")]
    pub criu_work_path: String,
}

/// The type of [`Options`].
pub const OPTIONS: &str = "containerd.runc.v1.Options";

/// `containerd.linux.runc.CreateOptions`: what clients of containerd 1.6 send to a runtime whose name
/// they do not know. Its fields for checkpoints are of no use here.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OldOptions {
    #[prost(bool, tag = "1")]
    pub no_pivot_root: bool,
    #[prost(bool, tag = "8")]
    pub no_new_keyring: bool,
    #[prost(string, tag = "9")]
    pub shim_cgroup: String,
    #[prost(uint32, tag = "10")]
    pub io_uid: u32,
    #[prost(uint32, tag = "11")]
    pub io_gid: u32,
    #[prost(string, tag = "12")]
    pub criu_work_path: String,
    #[prost(string, tag = "13")]
    pub criu_image_path: String,
}

/// The type of [`OldOptions`].
pub const OLD_OPTIONS: &str = "containerd.linux.runc.CreateOptions";

impl From<OldOptions> for Options {
    fn from(old: OldOptions) -> Options {
        Options {
            no_pivot_root: old.no_pivot_root,
            no_new_keyring: old.no_new_keyring,
            shim_cgroup: old.shim_cgroup,
            io_uid: old.io_uid,
            io_gid: old.io_gid,
            criu_image_path: old.criu_image_path,
            criu_work_path: old.criu_work_path,
            ..Options::default()
        }
    }
}

/// `containerd.linux.runc.RuncOptions`: the same clients', for the runtime itself.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OldRuntime {
    #[prost(string, tag = "1")]
    pub runtime: String,
    #[prost(string, tag = "2")]
    pub runtime_root: String,
    #[prost(bool, tag = "4")]
    pub systemd_cgroup: bool,
}

/// The type of [`OldRuntime`].
pub const OLD_RUNTIME: &str = "containerd.linux.runc.RuncOptions";

impl From<OldRuntime> for Options {
    fn from(old: OldRuntime) -> Options {
        Options {
            binary_name: old.runtime,
            root: old.runtime_root,
            systemd_cgroup: old.systemd_cgroup,
            ..Options::default()
        }
    }
}

/// `runtimeoptions.v1.Options`: the configuration as text, in TOML.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RuntimeOptions {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(string, tag = "2")]
    pub config_path: String,
    #[prost(bytes = "vec", tag = "3")]
    pub config_body: Vec<u8>,
}

/// The types of [`RuntimeOptions`]: before containerd 2.0 CRI had a name of its own for it.
pub const RUNTIME_OPTIONS: [&str; 2] =
    ["runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options"];

/// `containerd.runc.v1.CheckpointOptions`.
#[allow(clippy::struct_excessive_bools, reason = "as the message has them")]
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CheckpointOptions {
    #[prost(bool, tag = "1")]
    pub exit: bool,
    #[prost(bool, tag = "2")]
    pub open_tcp: bool,
    #[prost(bool, tag = "3")]
    pub external_unix_sockets: bool,
    #[prost(bool, tag = "4")]
    pub terminal: bool,
    #[prost(bool, tag = "5")]
    pub file_locks: bool,
    #[prost(string, repeated, tag = "6")]
    pub empty_namespaces: Vec<String>,
    #[prost(string, tag = "7")]
    pub cgroups_mode: String,
    #[prost(string, tag = "8")]
    pub image_path: String,
    #[prost(string, tag = "9")]
    pub work_path: String,
}

/// The type of the same message for the clients of [`OldOptions`], where the last two fields have each
/// other's number.
pub const OLD_CHECKPOINT_OPTIONS: &str = "containerd.linux.runc.CheckpointOptions";

/// The type of [`CheckpointOptions`].
pub const CHECKPOINT_OPTIONS: &str = "containerd.runc.v1.CheckpointOptions";

/// `containerd.runc.v1.ProcessDetails`: which exec a process is.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ProcessDetails {
    #[prost(string, tag = "1")]
    pub exec_id: String,
}

/// The type of [`ProcessDetails`].
pub const PROCESS_DETAILS: &str = "containerd.runc.v1.ProcessDetails";
