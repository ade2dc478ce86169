//! The pipeline: from a choice to a store.

mod choice;

pub use choice::Choice;
