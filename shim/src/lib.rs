//! The parts of `containerd-shim-edgepull-v1`; see ARCHITECTURE.md.

pub mod aside;
pub mod bundle;
pub mod cgroup;
pub mod child;
pub mod cli;
pub mod config;
pub mod error;
pub mod gate;
pub mod idmap;
pub mod journal;
pub mod log;
pub mod loopback;
pub mod mountinfo;
pub mod mounts;
pub mod oci;
pub mod polled;
pub mod publish;
pub mod stdio;
pub mod task;
pub mod wire;
