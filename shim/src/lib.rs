//! The parts of `containerd-shim-edgepull-v1`; see ARCHITECTURE.md.

pub mod child;
pub mod config;
pub mod error;
pub mod gate;
pub mod journal;
