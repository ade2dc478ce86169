//! edgepull: the right container image, already on the edge device.
//!
//! The library behind the binary `edgepull`. `ARCHITECTURE.md` has the map of the
//! modules; a module uses only what stands above it there.

#![forbid(unsafe_code)]

pub mod asked;
pub mod choice;
pub mod cli;
pub mod clock;
pub mod config;
pub mod containerd;
pub mod daemon;
pub mod desired;
pub mod engine;
pub mod error;
pub mod event;
pub mod keep;
pub mod kind;
pub mod layout;
pub mod metrics;
pub mod oci;
pub mod pressure;
pub mod proof;
pub mod pull;
pub mod reconcile;
pub mod redact;
pub mod registry;
pub mod resolve;
pub mod schedule;
pub mod session;
pub mod smoke;
pub mod source;
pub mod status;
mod table;
