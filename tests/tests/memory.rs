//! A large image is pulled in little memory, by the file that is shipped: the pages of an
//! unoptimised program are half as much again.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use edgepull_tests::containerd::Version;
use edgepull_tests::image;
use edgepull_tests::process::note;
use edgepull_tests::scene::{NAMESPACE, Scene};
use edgepull_tests::target::Target;
use edgepull_tests::tools::Lab;

/// What a pull may have resident at its peak.
const LIMIT_KIB: u64 = 32 << 10;
/// Six layers of 50 MiB: larger than any cache a pull could get away with.
const LAYERS: u64 = 6;
const EACH: u64 = 50 << 20;

#[track_caller]
fn light(what: &str, peak_kib: Option<u64>) {
    let peak = peak_kib.unwrap();
    note(&format!("{what}: peak {peak} KiB"));
    assert!(peak <= LIMIT_KIB, "{what}: {peak} KiB");
}

#[test]
fn a_pull_into_containerd() {
    let scene = Scene::new(Version::V1_7, image::big(LAYERS, EACH));
    let pull = || {
        let call = Target::here().edgepull(["pull", &scene.reference]).json();
        call.on(&scene.daemon, NAMESPACE).weighed().run().exits(0)
    };
    let run = pull();
    let report = run.element();
    assert!(report["bytes"]["downloaded"].as_u64().unwrap() > LAYERS * EACH);
    light("containerd", run.peak_kib);
    scene.greets();
    light("warm", pull().peak_kib);
}

#[test]
fn a_pull_into_a_layout() {
    let scene = Scene::new(Version::V2, image::big(LAYERS, EACH));
    let dir = Lab::get().run_dir("oci");
    let store = format!("oci:{}", dir.path().join("layout").display());
    let args = ["pull", &scene.reference, "--store", &store];
    let call = Target::here().edgepull(args).json();
    let run = call.weighed().run().exits(0);
    light("layout", run.peak_kib);
}
