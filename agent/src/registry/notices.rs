//! Oddities that did not stop the work, but that the user should hear of.

use std::sync::{Arc, Mutex, PoisonError};

/// More distinct oddities than this in one process say nothing new.
const MAX: usize = 64;

/// A shared, bounded list without repeats.
#[derive(Debug, Clone, Default)]
pub(super) struct Notices(Arc<Mutex<Vec<String>>>);

impl Notices {
    pub(super) fn say(&self, text: impl Into<String>) {
        let text = text.into();
        tracing::warn!("{text}");
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() < MAX && !said.contains(&text) {
            said.push(text);
        }
    }

    /// What was said since the last call.
    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
