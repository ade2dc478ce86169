//! Facts in, host out.

use crate::error::DetectError;
use crate::facts::Facts;
use crate::host::Host;

/// Works out the truth about a host. Pure.
pub fn detect(_facts: &Facts) -> Result<Host, DetectError> {
    Err(DetectError::NoArchitecture)
}
