//! When: refresh intervals, windows of the day, host-stable jitter, growing waits after
//! failures. Pure: the time of day, the machine and the failure are parameters.

mod backoff;
mod jitter;
mod refresh;
mod window;

pub use backoff::Backoff;
pub use jitter::Jitter;
pub use refresh::{ParseSpanError, Refresh, parse_span};
pub use window::{ParseWindowError, Window, Windows};

/// All that decides when something is done; `config` builds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub windows: Windows,
    pub jitter: Jitter,
    pub backoff: Backoff,
}
