//! What a command starts in a root file system: looked up as a runtime looks it up, followed to
//! its interpreters and its loader, and judged.
//!
//! The rules about single files are [`crate::executable`]'s. Here are those about places: the
//! directories of `PATH`, the working directory, links that lead nowhere but inside the root, and
//! the programs that only start another. What holds the files is a [`Tree`]; what it cannot see
//! makes an answer unknown, never wrong.

mod inits;
mod look;
mod surroundings;
#[doc(hidden)]
pub mod testing;
mod tree;

pub use inits::started_by_init;
pub use look::{Looked, Looker, Seen};
pub use surroundings::{DEFAULT_PATH, Surroundings};
pub use tree::{FileNode, LONGEST, MOST_LINKS, Node, Place, Tree, Unseen, components, follow};
