//! The parts of `containerd-shim-edgepull-v1`; see ARCHITECTURE.md.

pub mod bundle;
pub mod child;
pub mod error;
pub mod log;
pub mod mounts;
pub mod oci;
pub mod publish;
pub mod wire;
