//! Images made by code: the same bytes on every run, on every machine.

mod build;
mod layer;
mod layout;
mod programs;
mod push;
mod samples;
pub mod seeds;

pub use build::{Image, Platform, media};
pub use layer::{Layer, Noise};
pub use layout::{Blob, Layout, digest_of};
pub use programs::{dynamic, nothing, program, programs, static_elf, with_platforms};
pub use samples::{
    AMD64, ARM_V7, ARM64, HELLO, akraino, apart, arm_busybox_labelled, attested, bare_config_only,
    big, docker_types, hello, hello_single, host, many_systems, mislabelled_single, nested,
    only_s390x, published, schema1, siblings, tricky, windows, zephyr,
};
