//! Several pullers at once, ours and others: each blob once, nobody fails.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use edgepull_tests::containerd::{Setup, Version};
use edgepull_tests::faulty::{Action, Kind, Rule};
use edgepull_tests::image;
use edgepull_tests::on_each_containerd;
use edgepull_tests::process::wait_for;
use edgepull_tests::scene::{NAMESPACE, Scene};

/// Slow enough that both are in the middle of it at the same time: about half a second a blob.
fn slowly() -> Rule {
    Rule::on(
        Kind::Blob,
        Action::Slow(64 << 10, Duration::from_millis(40)),
    )
}

fn scene(version: Version) -> Scene {
    Scene::with(Setup::new(version), image::hello(), [slowly()])
}

/// No layer is fetched twice. The config is not counted: each pull reads it to choose and to
/// plan, before it can know that another one is about to write it.
#[track_caller]
fn each_layer_once(scene: &Scene) {
    let manifest: serde_json::Value =
        serde_json::from_slice(&scene.layout().read(&scene.manifest())).unwrap();
    let config = manifest["config"]["digest"].as_str().unwrap();
    let mut sent: BTreeMap<String, u64> = BTreeMap::new();
    for request in scene.registry.requests() {
        if request.kind == Kind::Blob && request.what != config {
            *sent.entry(request.what.clone()).or_default() += request.sent;
        }
    }
    for (digest, bytes) in sent {
        let size = std::fs::metadata(scene.layout().blob_path(&digest))
            .unwrap()
            .len();
        assert!(
            bytes <= size,
            "{digest} twice:\n{}",
            scene.registry.transcript()
        );
    }
}

fn two_of_ours_share_one_download(version: Version) {
    let scene = scene(version);
    let start = || scene.verb("pull").arg(&scene.reference).start();
    let (one, other) = (start(), start());
    let (one, other) = (
        one.wait().exits(0).element(),
        other.wait().exits(0).element(),
    );
    let states = [
        one["status"].as_str().unwrap(),
        other["status"].as_str().unwrap(),
    ];
    assert!(states.contains(&"pulled"), "{states:?}");
    assert!(
        states.iter().all(|s| matches!(*s, "pulled" | "present")),
        "{states:?}"
    );
    each_layer_once(&scene);
    assert!(scene.daemon.leases(NAMESPACE).is_empty());
    scene.greets();
}

fn ours_and_ctr_at_once(version: Version) {
    let scene = scene(version);
    let theirs = scene
        .daemon
        .ctr_spawn(NAMESPACE, &scene.daemon.pull_args(&scene.reference));
    let ours = scene.verb("pull").arg(&scene.reference).start();
    theirs.wait().ok();
    ours.wait().exits(0);
    // `ctr` asks again for what it finds locked; we never fetch what another is fetching.
    scene.greets();
    scene.daemon.collect_garbage(NAMESPACE);
    scene.greets();
}

fn ctr_begins_and_we_wait(version: Version) {
    let scene = scene(version);
    let theirs = scene
        .daemon
        .ctr_spawn(NAMESPACE, &scene.daemon.pull_args(&scene.reference));
    wait_for("ctr fetches a layer", Duration::from_secs(10), || {
        scene.registry.blob_bytes() > 100_000
    });
    scene.pull();
    theirs.wait().ok();
    scene.greets();
}

on_each_containerd!(
    two_of_ours_share_one_download,
    ours_and_ctr_at_once,
    ctr_begins_and_we_wait,
);

#[test]
fn two_images_with_a_layer_in_common() {
    let scene = scene(Version::V2);
    let other = scene.registry.reference("lab/other", "latest");
    let one = scene.verb("pull").arg(&scene.reference).start();
    let two = scene.verb("pull").arg(&other).start();
    one.wait().exits(0);
    two.wait().exits(0);
    each_layer_once(&scene);
    scene.greets();
}

#[test]
fn one_call_with_several_references() {
    let scene = scene(Version::V1_7);
    let others = ["lab/b", "lab/c"].map(|name| scene.registry.reference(name, "latest"));
    let call = scene.verb("pull").arg(&scene.reference).args(&others);
    let elements = call.run().exits(0).elements();
    let references: Vec<&str> = elements
        .iter()
        .map(|e| e["reference"].as_str().unwrap())
        .collect();
    assert_eq!(
        references,
        [scene.reference.as_str(), &others[0], &others[1]],
        "in order"
    );
    each_layer_once(&scene);
}
