//! What the shipped shim weighs: bounds that a device with little memory was promised.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use edgepull_tests::containerd::{Containerd, Version};
use edgepull_tests::shims::Shims;
use edgepull_tests::target::Target;
use edgepull_tests::weight::{Pages, Weight};

const CONTAINERS: usize = 50;
/// Of one shim, in KiB.
const DIRTY: u64 = 600_000 / 1024;
/// Of fifty shims together, in KiB.
const APART: u64 = 30_000_000 / 1024;
/// Of one shim with fifty containers, in KiB.
const GROUPED: u64 = 3_000_000 / 1024;

fn sum(all: &[Pages]) -> u64 {
    all.iter().map(|pages| pages.share).sum()
}

fn started(shims: &Shims<'_>) {
    for n in 0..CONTAINERS {
        shims.start(&shims.id(n));
    }
}

#[test]
fn fifty_shims_are_small() {
    let daemon = Containerd::start(Version::V1_7);
    let shims = Shims::new(&daemon, &Target::here().shim());
    started(&shims);
    // After work, too: what a call needed is given back, or used again.
    for n in 0..20 {
        shims.exec(&shims.id(0), &format!("e{n}"), &["true"]).ok();
    }
    let pages = shims.weigh(CONTAINERS);
    for server in shims.servers(CONTAINERS) {
        assert_eq!(Weight::of(server).tasks, 1, "threads of {server}");
    }
    let most = pages.iter().map(|pages| pages.private_dirty).max();
    assert!(most <= Some(DIRTY), "{most:?} KiB of {DIRTY}: {pages:?}");
    assert!(sum(&pages) <= APART, "{} KiB of {APART}", sum(&pages));
}

#[test]
fn one_shim_takes_fifty_containers_in_little_memory() {
    let daemon = Containerd::start(Version::V1_7);
    let shims = Shims::new(&daemon, &Target::here().shim()).grouped("weighed");
    started(&shims);
    let pages = shims.weigh(1);
    assert!(sum(&pages) <= GROUPED, "{pages:?}, more than {GROUPED} KiB");
}
