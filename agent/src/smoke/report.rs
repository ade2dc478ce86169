//! What a run came to, and the wish to stop one.

use std::time::Duration;

use tokio::sync::watch;

use super::classify::Outcome;
use crate::{
    error::{Error, Result},
    kind::Kind,
};

/// What came of it.
#[derive(Debug, Clone)]
pub struct Report {
    pub outcome: Outcome,
    pub exit_code: Option<u32>,
    pub signal: Option<&'static str>,
    /// Of the program alone.
    pub duration: Duration,
    /// The ends of what it printed.
    pub stdout: String,
    pub stderr: String,
    pub reason: Option<String>,
    pub warnings: Vec<String>,
}

/// A wish to stop, which a run follows where it waits, and then cleans up.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<Option<String>>);

impl Stop {
    /// With the end to say it at: why.
    pub fn new() -> (watch::Sender<Option<String>>, Self) {
        let (tell, told) = watch::channel(None);
        (tell, Self(told))
    }

    /// `work`, unless it is asked to stop first.
    pub async fn unless<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            ended = work => ended,
            error = self.asked() => Err(error),
        }
    }

    pub(super) async fn asked(&self) -> Error {
        let mut told = self.0.clone();
        let why = match told.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            // Nobody can ask any more.
            Err(_) => std::future::pending().await,
        };
        Error::new(Kind::Cancelled, why)
    }
}

impl Report {
    /// Of an image that was not even started.
    pub(super) fn not_started(reason: String) -> Self {
        Self {
            outcome: Outcome::NotRunnable,
            exit_code: None,
            signal: None,
            duration: Duration::ZERO,
            stdout: String::new(),
            stderr: String::new(),
            reason: Some(reason),
            warnings: Vec::new(),
        }
    }

    /// The ends of both outputs as one text.
    pub fn output_tail(&self) -> String {
        let between = !self.stdout.is_empty() && !self.stdout.ends_with('\n');
        let between = if between && !self.stderr.is_empty() {
            "\n"
        } else {
            ""
        };
        format!("{}{between}{}", self.stdout, self.stderr)
    }

    /// The failure that goes with the outcome, if it is none to be glad of.
    pub fn error(&self, reference: &str) -> Option<Error> {
        let (kind, what) = match self.outcome {
            Outcome::Passed => return None,
            Outcome::Failed => (Kind::SmokeFailed, "ran and failed"),
            Outcome::Timeout => (Kind::Timeout, "did not end in time"),
            Outcome::NotRunnable => (Kind::NotRunnable, "cannot run on this host"),
        };
        let error = Error::new(kind, format_args!("`{reference}` {what}")).reference(reference);
        let error = error.retry(false);
        Some(match &self.reason {
            Some(reason) => error.because(reason),
            None => error,
        })
    }
}
