//! When the memory is written down, and by whom: a slow card's sync takes longer than the
//! service manager waits for a sign of life, so the loop's task does not do it itself.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::journal;
use crate::{
    error::{Error, Result},
    kind::Kind,
    reconcile::{Memory, StateFile},
};

/// What came of single images is not worth a write each time: flash wears out, and hundreds
/// of images whose registry is away fail within a second.
const SAVE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Saving {
    file: Arc<Mutex<StateFile>>,
    /// When it was last tried.
    last: Option<Instant>,
    /// The failure that was told last.
    told: Option<Error>,
}

impl Saving {
    pub(super) fn new(file: StateFile) -> Self {
        Self {
            file: Arc::new(Mutex::new(file)),
            last: None,
            told: None,
        }
    }

    /// At the beginning and at the end, when nothing else has to go on meanwhile.
    pub(super) fn now(&mut self, memory: &Memory) -> Result<()> {
        self.file
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .save(memory)
    }

    /// Within a pass: not each time.
    pub(super) async fn soon(&mut self, memory: &Memory) {
        if self.last.is_none_or(|last| last.elapsed() >= SAVE) {
            self.later(memory).await;
        }
    }

    /// On another thread; what is the same as in the file is not written.
    pub(super) async fn later(&mut self, memory: &Memory) {
        self.last = Some(Instant::now());
        let (file, memory) = (Arc::clone(&self.file), memory.clone());
        let save = move || {
            file.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .save(&memory)
        };
        let saved = tokio::task::spawn_blocking(save).await.unwrap_or_else(|_| {
            Err(Error::new(
                Kind::Internal,
                "the thread that writes the state ended early",
            ))
        });
        let error = saved.err();
        // A disk that is full is full in every pass.
        if let Some(error) = &error
            && self
                .told
                .as_ref()
                .is_none_or(|told| !told.says_the_same(error))
        {
            journal::report(error, None);
        }
        self.told = error;
    }
}
