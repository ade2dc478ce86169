//! When: refresh intervals, windows of the day, host-stable jitter, growing waits after
//! failures. Pure: the time of day, the machine and randomness are parameters.

use std::time::Duration;

/// How often a present image is compared with its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refresh {
    /// Never; what a reference pinned by digest needs.
    Never,
    Every(Duration),
}
