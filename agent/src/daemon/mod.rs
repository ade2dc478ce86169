//! The daemon: one loop over plan and steps, and those who ask it.

mod act;
mod answer;
pub mod client;
mod declared;
mod dispute;
mod engines;
mod handle;
mod host_document;
pub mod journal;
mod lock;
mod look;
pub mod notify;
mod patience;
mod pruning;
mod pulse;
mod refusals;
mod run;
mod saving;
mod session;
pub mod socket;
mod start;
mod stream;
pub mod watch;
pub mod worker;

pub use self::{
    handle::{Ask, Handle},
    host_document::{EngineRow, HostDocument},
    lock::Lock,
    refusals::count_refusals,
    run::Places,
    start::{once, run},
};

/// The next step after what should not have happened.
const REPORT: &str = "please report it, with `edgepull version` and the daemon's journal";

/// Where the daemon is asked.
pub const SOCKET: &str = "/run/edgepull/edgepull.sock";
