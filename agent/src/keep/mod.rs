//! What keeps an image as it should be, once it is here: observing, pins, earlier targets,
//! pruning, repair, and the room that a pull needs.

mod choose;
mod files;
mod judge;
mod layers;
pub mod observe;
pub mod pin;
pub mod previous;
pub mod prune;
pub mod recheck;
mod release;
pub mod repair;
pub mod space;
mod stand;
mod users;

pub use choose::config_of;
pub use pin::{Pinned, set_pin};
pub use previous::{hold_previous, trim};
pub use prune::{Action, PruneOptions, PrunedRow, prune};
pub use recheck::{Damage, DamageKind, Report, Sound, Unchecked, Verdict, recheck};
pub use release::{Released, ReleasedRow, release};
pub use repair::{Repair, Repaired};

/// Value of `io.edgepull.managed` on what the daemon creates, and of `io.edgepull.pin` on
/// what it pins. Only that is undeclared when it is declared no more: what a person pulled
/// by hand (`cli`) is nobody's but theirs.
pub const AGENT: &str = "agent";
