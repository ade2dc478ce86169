//! An image run for real, once, to see what comes of it.
//!
//! Everything of a run is found by one id: the container, its snapshot, its lease and its place
//! below the runtime directory. It is taken away at the end, however that comes; what a killed
//! process leaves is taken away by the next call ([`Smoke::sweep`]), or goes with the lease.
//!
//! Nothing is recorded: layers that were not in the store are held by the lease alone.

mod classify;
mod clean;
pub mod junit;
mod limits;
mod output;
mod place;
mod report;
mod rootfs;
mod run;
mod spec;
mod user;
mod wanted;

pub use classify::Outcome;
pub use clean::sweep;
pub use report::{Report, Stop};
pub use run::{Image, Smoke};

use std::time::Duration;

/// The runtime that containerd's own clients use.
pub const RUNTIME: &str = "io.containerd.runc.v2";
/// What a container may take of the memory (bytes), unless somebody says otherwise.
pub const MEMORY: u64 = 512 << 20;
/// How long a program may run, unless somebody says otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// How long a program is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// It must end by then.
    Ends(Duration),
    /// It is enough that it still runs then: a service.
    Alive(Duration),
}

impl Watch {
    fn limit(self) -> Duration {
        match self {
            Self::Ends(limit) | Self::Alive(limit) => limit,
        }
    }
}
