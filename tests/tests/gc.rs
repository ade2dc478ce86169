//! What was pulled survives garbage collection, and what was removed does not linger.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use edgepull_tests::containerd::Version;
use edgepull_tests::image::{self, host};
use edgepull_tests::on_each_containerd;
use edgepull_tests::scene::{NAMESPACE, Scene};

fn what_was_pulled_stays(version: Version) {
    let mut scene = Scene::new(version, image::hello());
    scene.pull();
    let snapshots = scene.daemon.snapshots(NAMESPACE);
    assert_eq!(snapshots.len(), 3);
    assert!(
        scene.daemon.leases(NAMESPACE).is_empty(),
        "the lease is gone"
    );
    scene.daemon.collect_garbage(NAMESPACE);
    assert_eq!(scene.daemon.blobs(NAMESPACE), scene.wanted_blobs(&host()));
    assert_eq!(scene.daemon.snapshots(NAMESPACE), snapshots);
    scene.daemon.restart();
    scene.daemon.collect_garbage(NAMESPACE);
    assert_eq!(scene.daemon.blobs(NAMESPACE), scene.wanted_blobs(&host()));
    assert_eq!(scene.daemon.snapshots(NAMESPACE), snapshots);
    scene.greets();
}

fn what_was_removed_goes(version: Version) {
    let scene = Scene::new(version, image::hello());
    scene.pull();
    let remove = ["images", "rm", "--sync", &scene.reference];
    scene.daemon.ctr(NAMESPACE, &remove).ok();
    scene.daemon.collect_garbage(NAMESPACE);
    assert!(
        scene.daemon.blobs(NAMESPACE).is_empty(),
        "no hidden root holds anything"
    );
    assert!(scene.daemon.snapshots(NAMESPACE).is_empty());
}

fn a_pull_that_shares_layers_keeps_both(version: Version) {
    let scene = Scene::new(version, image::hello());
    scene.pull();
    let other = scene.registry.reference("lab/other", "latest");
    let report = scene.verb("pull").arg(&other).run().exits(0).element();
    assert_eq!(
        report["bytes"]["downloaded"], 0,
        "every blob is here already"
    );
    let remove = ["images", "rm", "--sync", &scene.reference];
    scene.daemon.ctr(NAMESPACE, &remove).ok();
    scene.daemon.collect_garbage(NAMESPACE);
    assert_eq!(scene.daemon.blobs(NAMESPACE), scene.wanted_blobs(&host()));
    assert_eq!(scene.daemon.snapshots(NAMESPACE).len(), 3);
}

on_each_containerd!(
    what_was_pulled_stays,
    what_was_removed_goes,
    a_pull_that_shares_layers_keeps_both,
);
