//! The daemon: one loop over plan and steps, and those who ask it.

mod answer;
pub mod client;
mod handle;
pub mod journal;
pub mod notify;
mod patience;
mod refusals;
pub mod socket;
mod stream;
pub mod watch;

pub use self::{
    handle::{Ask, Handle},
    refusals::count_refusals,
};

/// Where the daemon is asked.
pub const SOCKET: &str = "/run/edgepull/edgepull.sock";
/// Where the shim tells which containers it refused to start.
pub const REFUSALS: &str = "/run/edgepull/refusals.sock";
