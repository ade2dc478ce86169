//! Whether what an image starts can run on a host: its entrypoint, looked up in its root file
//! system, and judged by its bytes.
//!
//! The rules about files are `edgepull_platform::executable`'s. Here are those about images: what
//! a config starts ([`Launch`]), where that is among the layers, and what a policy makes of an answer
//! ([`Policy`]). Evidence that cannot be had makes a verdict unknown, never wrong.

mod archive;
mod judge;
mod launch;
mod layers;
mod policy;
#[cfg(test)]
mod testing;
mod unpacked;

pub use self::{
    archive::of_layers,
    judge::{Link, Proof, prove},
    launch::{DEFAULT_PATH, Launch},
    policy::{Emulation, Judged, Policy, Promise},
    unpacked::{of_mounts, of_snapshot, texts},
};
