//! Everything that reads what strangers sent (registries' answers, layers) or that takes
//! memory in bulk runs in a process of its own, which lives for one pass and ends. The
//! daemon beside it stays small for years: no heap that has once been large, no parser that
//! can take it down, and what hangs can be killed.
//!
//! One socket, a JSON line a message: jobs go down one at a time, events and one end a job
//! come up. The worker is the same program, started with the same arguments.

mod child;
mod parent;

use serde::{Deserialize, Serialize};

pub use self::{child::serve, parent::Worker};
use crate::{
    error::Error,
    event::Event,
    oci::Digest,
    pull::{Bytes, Status},
};

/// The first line: the configuration as the daemon holds it, which may be older, and better,
/// than the file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) config: String,
}

/// One image to work on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    pub work: Work,
    /// As it is declared.
    pub reference: String,
    pub platform: String,
    pub namespace: String,
    pub pin: bool,
    pub keep_previous: usize,
}

/// What to do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Ask its registry, fetch what is missing, unpack, record.
    Pull,
    /// Compare it with what it should be, and mend it.
    Recheck,
}

/// A job that ended well.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Done {
    Pulled(Box<Pulled>),
    Rechecked(Box<Rechecked>),
}

/// An image that is here.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pulled {
    pub status: Status,
    /// What its record points at.
    pub digest: Digest,
    pub manifest: Digest,
    /// The platform that its label names.
    pub platform: Option<String>,
    pub snapshotter: String,
    pub bytes: Bytes,
    pub warnings: Vec<String>,
}

/// An image that was compared with what it should be, and is that now.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Rechecked {
    /// Whether something had to be mended.
    pub repaired: bool,
    /// What was damaged, in words.
    pub damage: Vec<String>,
    /// Why some of it could not be looked at.
    pub unchecked: Vec<String>,
    /// Bytes that were downloaded for it.
    pub fetched: u64,
}

/// What a job took, however it ended.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Spent {
    /// Requests since the job before, by registry and answer (an HTTP status, or `error`).
    pub requests: Vec<(String, String, u64)>,
    /// Bytes since then, by registry and source.
    pub bytes: Vec<(String, String, u64)>,
    /// What registries said is left of their limits, by registry.
    pub remaining: Vec<(String, u64)>,
}

/// What comes up.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Event(Event),
    Ended {
        done: Option<Done>,
        failed: Option<Error>,
        /// Of the failure, where the far side named a time (milliseconds).
        retry_after: Option<u64>,
        spent: Spent,
    },
}
