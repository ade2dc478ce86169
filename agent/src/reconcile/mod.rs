//! From what is desired and what is observed to steps: a pure plan, and what is
//! remembered of earlier tries.

mod memory;
mod plan;
mod state_file;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::{
    memory::{Memory, Record},
    plan::{Plan, plan},
    state_file::StateFile,
};

use crate::oci::Digest;

/// What the engine has of one desired image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// What the record under the reference's own name points at.
    pub target: Option<Digest>,
    /// Everything that a container needs is there: records, documents, config, snapshots.
    pub complete: bool,
    /// Every record of the image carries the pin.
    pub pinned: bool,
    /// Earlier targets that are held for a rollback, the youngest first.
    pub previous: Vec<Digest>,
}

/// What is remembered of one desired image; it survives restarts in the state file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remembered {
    /// The registry was asked and answered, or the image was pulled.
    pub last_check: Option<Timestamp>,
    pub last_success: Option<Timestamp>,
    /// Tries that failed since the last success.
    pub failures: u32,
    /// Not before this, after a failure.
    pub next_try: Option<Timestamp>,
    /// The last failure as the JSON of the contract.
    pub error: Option<serde_json::Value>,
    /// That was of a pull, and of what only a registry or a publisher can mend: what needs
    /// neither does not wait, and does not make it good.
    pub of_fetching: bool,
    /// Its files have to be compared with its layers, because the host or the daemon
    /// stopped without notice.
    pub recheck: bool,
    /// They were compared in this boot of the host, so that no power was lost since.
    pub sound: bool,
}

/// One thing to do for one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Compare its files with its layers, and mend what is damaged.
    Recheck,
    /// Resolve and fetch what is missing.
    Pull(Why),
    /// Make its records carry the pin, or not carry ours.
    Pin(bool),
    /// Let go of earlier targets beyond those to keep.
    Trim,
}

/// Why an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// There is no record, or something below it is missing.
    Missing,
    /// Its time to be compared with the registry has come.
    Due,
    /// Somebody asked for it (`sync`).
    Asked,
}
