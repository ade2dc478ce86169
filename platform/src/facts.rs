//! Raw facts about a host: files as text, and probes that no file shows.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::FactsError;

/// Raw facts about a host, read from the running system or from a recorded host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    probes: BTreeMap<String, String>,
    files: BTreeMap<String, String>,
}

impl Facts {
    /// The running system.
    pub fn live() -> Result<Facts, FactsError> {
        Ok(Facts::default())
    }
    /// A recorded host.
    pub fn recorded(_dir: &Path) -> Result<Facts, FactsError> {
        Ok(Facts::default())
    }
    /// Writes these facts as a recorded host.
    pub fn record(&self, _dir: &Path) -> Result<(), FactsError> {
        Ok(())
    }
}
