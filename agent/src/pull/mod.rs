//! The pipeline: from a chosen image in a source to an image in containerd, fetched,
//! verified, unpacked, synced and recorded.

pub mod artifact;
mod fetch;
mod hold;
pub mod image;
mod jury;
pub mod plan;
mod present;
mod room;
mod run;
mod unpack;

pub use crate::choice::Choice;
pub use hold::{Held, Holder};
pub use image::{Found, Puller};
pub use jury::{Jury, Look};
pub use present::is_present;
pub use room::{Need, Room, grown};
pub use run::{Bytes, Outcome, Request, Status, lock_name, pull_into};
