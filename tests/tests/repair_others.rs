//! What a repair means for others: images that stand on the same layer, and whoever works
//! with it.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::fs;

use edgepull_tests::containerd::Version;
use edgepull_tests::faulty::{Action, Kind, Rule};
use edgepull_tests::image;
use edgepull_tests::on_each_containerd;
use edgepull_tests::scene::{NAMESPACE, Scene};
use edgepull_tests::tree;

/// Changes the file that both images have.
fn damage(scene: &Scene) {
    let chain = scene.layout().chain(&scene.manifest());
    let dirs = tree::layer_dirs(&scene.daemon, NAMESPACE, &chain);
    let base = dirs.last().unwrap().join("shared");
    assert_eq!(fs::read(&base).unwrap(), b"shared by both");
    fs::write(base, b"shared by none").unwrap();
}

fn the_others_are_unpacked_again_where_the_image_itself_cannot_be(version: Version) {
    let scene = Scene::new(version, image::siblings());
    scene.pull();
    let other = scene.registry.reference("lab/app", "other");
    scene.verb("pull").arg(&other).run().exits(0);
    assert_eq!(scene.daemon.snapshots(NAMESPACE).len(), 3);
    // As where layers are discarded once they are unpacked: nothing promises this one.
    let own = scene.layout().parts(&scene.manifest())[2].clone();
    let unheld = "containerd.io/gc.ref.content.l.1=";
    let manifest = scene.manifest();
    let label = ["content", "label", &manifest, unheld];
    scene.daemon.ctr(NAMESPACE, &label).ok();
    scene.daemon.ctr(NAMESPACE, &["content", "rm", &own]).ok();
    scene.daemon.collect_garbage(NAMESPACE);
    damage(&scene);
    let gone = Rule::on(Kind::Blob, Action::status(404));
    scene.registry.script([gone]);
    let repair = || scene.verb("repair").arg(&scene.reference).run();
    let report = repair().exits(21).element();
    assert_eq!(report["verdict"], "damaged", "{report:#}");
    assert_eq!(report["others"][0], other.as_str(), "{report:#}");
    let check = scene.verb("repair").arg("--check").arg(&other).run();
    assert_eq!(check.exits(0).element()["verdict"], "sound");

    scene.registry.script([]);
    let report = repair().exits(0).element();
    assert_eq!(report["verdict"], "repaired", "{report:#}");
    scene.daemon.collect_garbage(NAMESPACE);
    assert_eq!(scene.daemon.snapshots(NAMESPACE).len(), 3);
    assert!(scene.daemon.leases(NAMESPACE).is_empty());
}

fn what_was_only_stored_stays_only_stored(version: Version) {
    let scene = Scene::new(version, image::siblings());
    let other = scene.registry.reference("lab/app", "other");
    let store = scene.verb("pull").arg("--no-unpack").arg(&other);
    store.run().exits(0);
    scene.pull();
    let snapshots = scene.daemon.snapshots(NAMESPACE);
    assert_eq!(snapshots.len(), 2);
    damage(&scene);
    let call = scene.verb("repair").arg(&scene.reference);
    let report = call.run().exits(0).element();
    assert_eq!(report["verdict"], "repaired", "{report:#}");
    assert!(report["others"].as_array().unwrap().is_empty());
    assert_eq!(scene.daemon.snapshots(NAMESPACE), snapshots);
}

/// docker's containers are none to containerd: they have a snapshot of their own, on a
/// committed one of their own.
fn what_docker_keeps_for_a_container_is_not_taken_away(version: Version) {
    let scene = Scene::new(version, image::siblings());
    scene.pull();
    let chain = scene.layout().chain(&scene.manifest());
    for args in [
        &["prepare", "d0-init-key", &chain[1]][..],
        &["commit", "d0-init", "d0-init-key"],
    ] {
        let args = [&["snapshots"], args].concat();
        scene.daemon.ctr(NAMESPACE, &args).ok();
    }
    damage(&scene);
    let repair = || scene.verb("repair").arg(&scene.reference).run();
    repair().fails(31, "store_damaged");
    let left = scene.daemon.snapshots(NAMESPACE);
    assert!(
        left.iter().any(|(name, _)| name.contains("d0-init")),
        "{left:?}"
    );
    let remove = ["snapshots", "rm", "d0-init"];
    scene.daemon.ctr(NAMESPACE, &remove).ok();
    let report = repair().exits(0).element();
    assert_eq!(report["verdict"], "repaired", "{report:#}");
}

on_each_containerd!(
    the_others_are_unpacked_again_where_the_image_itself_cannot_be,
    what_was_only_stored_stays_only_stored,
    what_docker_keeps_for_a_container_is_not_taken_away,
);
