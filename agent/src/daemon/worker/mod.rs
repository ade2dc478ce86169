//! Everything that reads what strangers sent (registries' answers, layers) or that takes
//! memory in bulk runs in a process of its own, which lives for one pass and ends. The
//! daemon beside it stays small for years: no heap that has once been large, no parser that
//! can take it down, and what hangs can be killed.
//!
//! One socket, a JSON line a message: jobs go down one at a time, events and one end a job
//! come up. The worker is the same program, started with the same arguments.

mod child;
mod deliver;
mod hook;
mod parent;
mod trial;

use std::{collections::BTreeSet, time::Duration};

use serde::{Deserialize, Serialize};

pub use self::{child::serve, parent::Worker};
use crate::{
    desired::{Artifact, Verify},
    error::{Error, Result},
    event::Event,
    kind::Kind,
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
    pub verify: Verify,
    /// Files that are kept, instead of an image.
    pub artifact: Option<Artifact>,
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
    /// Of an image.
    pub snapshotter: Option<String>,
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
    /// What its events told of the store; known also of a job that is broken off.
    #[serde(skip)]
    pub moved: Bytes,
}

/// Adds up what a job's events tell of the store.
#[derive(Debug, Default)]
pub struct Moved {
    begun: BTreeSet<Digest>,
    bytes: Bytes,
}

impl Moved {
    pub fn observe(&mut self, event: &Event) {
        let bytes = &mut self.bytes;
        match event {
            // Taken up again later, it is what this job has fetched itself.
            Event::BlobStarted { digest, offset, .. } if self.begun.insert(digest.clone()) => {
                bytes.resumed = bytes.resumed.saturating_add(*offset);
            }
            Event::BlobProgress { bytes: more, .. } => {
                bytes.downloaded = bytes.downloaded.saturating_add(*more);
                bytes.written = bytes.written.saturating_add(*more);
            }
            _ => {}
        }
    }

    pub fn bytes(&self) -> Bytes {
        self.bytes
    }
}

/// What comes up.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Event(Event),
    Ended(Ended),
}

/// How a job ended.
#[derive(Debug, Serialize, Deserialize)]
struct Ended {
    done: Option<Done>,
    failed: Option<Error>,
    /// Of the failure, where the far side named a time (milliseconds).
    retry_after: Option<u64>,
    /// Whether the clock being set may be all that the failure needs.
    of_clock: bool,
    spent: Spent,
}

impl Ended {
    fn new(ended: Result<Done>, spent: Spent) -> Self {
        let failed = ended.as_ref().err();
        let retry_after = failed.and_then(Error::retry_after);
        Self {
            retry_after: retry_after
                .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            of_clock: failed.is_some_and(Error::is_of_clock),
            failed: failed.cloned(),
            done: ended.ok(),
            spent,
        }
    }

    /// With everything that a failure is scheduled by, which its report does not have.
    fn result(self) -> (Result<Done>, Spent) {
        let ended = match (self.done, self.failed) {
            (Some(done), None) => Ok(done),
            (_, Some(error)) => {
                let error = error.after(self.retry_after.map(Duration::from_millis));
                Err(if self.of_clock {
                    error.of_clock()
                } else {
                    error
                })
            }
            (None, None) => Err(Error::new(
                Kind::Internal,
                "a worker process ended a job without saying how",
            )
            .hint(super::REPORT)),
        };
        (ended, self.spent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_before_a_job_broke_off_is_known() {
        let mut moved = Moved::default();
        let reference = || "r.example/a:1".to_owned();
        let digest = Digest::of(b"1");
        let started = |offset| Event::BlobStarted {
            reference: reference(),
            digest: digest.clone(),
            size: 100,
            offset,
        };
        let more = |bytes| Event::BlobProgress {
            reference: reference(),
            digest: digest.clone(),
            bytes,
        };
        for event in [started(40), more(20), started(60), more(5)] {
            moved.observe(&event);
        }
        let bytes = moved.bytes();
        assert_eq!((bytes.resumed, bytes.written), (40, 25));
    }

    #[test]
    fn what_a_failure_is_scheduled_by_comes_up_with_it() {
        let error = || Error::new(Kind::Unavailable, "cannot fetch").because("not valid yet");
        for (error, wait, of_clock) in [
            (error(), None, false),
            (error().of_clock(), None, true),
            (
                error().after(Some(Duration::from_millis(1500))),
                Some(Duration::from_millis(1500)),
                false,
            ),
        ] {
            let said = Answer::Ended(Ended::new(Err(error), Spent::default()));
            let line = serde_json::to_string(&said).expect("plain data");
            let Ok(Answer::Ended(heard)) = serde_json::from_str(&line) else {
                panic!("another message: {line}");
            };
            let error = heard.result().0.expect_err("it failed");
            assert_eq!((error.retry_after(), error.is_of_clock()), (wait, of_clock));
            assert_eq!(error.kind(), Kind::Unavailable);
            assert_eq!(error.causes(), ["not valid yet"]);
        }
    }
}
