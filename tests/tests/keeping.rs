//! `prune` lets go of what nothing declares, and of nothing else.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::collections::BTreeMap;
use std::fs;

use edgepull_tests::containerd::Version;
use edgepull_tests::edgepull::Run;
use edgepull_tests::image;
use edgepull_tests::on_each_containerd;
use edgepull_tests::scene::{NAMESPACE, Scene};
use serde_json::Value;

const K8S: &str = "k8s.io";
const PINNED: &str = "io.cri-containerd.pinned";

/// `edgepull prune`, with these references declared.
fn prune(scene: &Scene, namespace: &str, declared: &[&str], args: &[&str]) -> Run {
    let call = scene.verb_in(namespace, "prune").args(args);
    let directory = call.home().join("images.d");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("list.txt"), declared.join("\n")).unwrap();
    call.run()
}

/// What happened to each record.
fn actions(run: Run) -> BTreeMap<String, String> {
    let rows = run.exits(0).elements();
    rows.iter()
        .map(|row| {
            assert_eq!(row["schema"], "edgepull.prune/1");
            assert_eq!(row["error"], Value::Null, "{row:#}");
            let text = |key: &str| row[key].as_str().unwrap().to_owned();
            (text("reference"), text("action"))
        })
        .collect()
}

fn label(scene: &Scene, namespace: &str, name: &str, labels: &[&str]) {
    let mut args = vec!["images", "label", name];
    args.extend(labels);
    scene.daemon.ctr(namespace, &args).ok();
}

fn labels(scene: &Scene, namespace: &str, name: &str) -> BTreeMap<String, String> {
    let records = scene.daemon.image_records(namespace);
    let record = records.iter().find(|record| record.name == name).unwrap();
    record.labels.iter().cloned().collect()
}

/// A pull as the daemon's: `tag` of the sample image.
fn pulled_by_the_daemon(scene: &Scene, namespace: &str, repository: &str, pin: bool) -> String {
    let reference = scene.registry.reference(repository, "latest");
    let mut call = scene.verb_in(namespace, "pull").arg(&reference);
    if pin {
        call = call.arg("--pin");
    }
    call.run().exits(0);
    let by = if pin { "agent" } else { "" };
    for record in scene.daemon.image_records(namespace) {
        if record.digest == scene.top() && record.labels.iter().any(|(_, v)| v == "cli") {
            let by = format!("io.edgepull.pin={by}");
            let labels = ["io.edgepull.managed=agent", &by];
            label(scene, namespace, &record.name, &labels);
        }
    }
    reference
}

fn what_nothing_declares_is_removed(version: Version) {
    let scene = Scene::new(version, image::hello());
    let declared = pulled_by_the_daemon(&scene, NAMESPACE, "lab/declared", true);
    let old = pulled_by_the_daemon(&scene, NAMESPACE, "lab/old", true);
    let by_hand = scene.registry.reference("lab/hand", "latest");
    let call = scene.verb("pull").arg(&by_hand).arg("--pin");
    call.run().exits(0);
    let all = scene.daemon.images(NAMESPACE);

    let removed = BTreeMap::from([(old.clone(), "removed".to_owned())]);
    let would = prune(&scene, NAMESPACE, &[&declared], &["--dry-run"]);
    assert_eq!(actions(would), removed);
    assert_eq!(scene.daemon.images(NAMESPACE), all, "only said");
    assert_eq!(
        actions(prune(&scene, NAMESPACE, &[&declared], &[])),
        removed
    );
    assert_eq!(
        scene.daemon.images(NAMESPACE),
        [declared.clone(), by_hand.clone()]
    );
    assert!(actions(prune(&scene, NAMESPACE, &[&declared], &[])).is_empty());

    // Nothing at all is declared: still not what a person pulled.
    actions(prune(&scene, NAMESPACE, &[], &[]));
    assert_eq!(scene.daemon.images(NAMESPACE), [by_hand.as_str()]);
    assert_eq!(
        labels(&scene, NAMESPACE, &by_hand)["io.edgepull.pin"],
        "cli"
    );
}

fn what_was_here_before_is_only_unpinned(version: Version) {
    let scene = Scene::new(version, image::hello());
    scene.daemon.pull(NAMESPACE, &scene.reference).ok();
    let adopted = scene.reference.clone();
    scene.pull_with(&["--pin"]).exits(0);
    assert!(!labels(&scene, NAMESPACE, &adopted).contains_key("io.edgepull.managed"));
    label(&scene, NAMESPACE, &adopted, &["io.edgepull.pin=agent"]);
    let unpinned = BTreeMap::from([(adopted.clone(), "unpinned".to_owned())]);
    assert_eq!(actions(prune(&scene, NAMESPACE, &[], &[])), unpinned);
    let left = labels(&scene, NAMESPACE, &adopted);
    assert!(
        !left.keys().any(|key| key.starts_with("io.edgepull")),
        "{left:?}"
    );
}

fn what_a_container_uses_stays(version: Version) {
    let scene = Scene::new(version, image::hello());
    let old = pulled_by_the_daemon(&scene, NAMESPACE, "lab/old", true);
    let same = pulled_by_the_daemon(&scene, NAMESPACE, "lab/same", false);
    let create = [
        "containers",
        "create",
        "--snapshotter",
        "overlayfs",
        &old,
        "lab-prune",
    ];
    scene.daemon.ctr(NAMESPACE, &create).ok();
    let rows = prune(&scene, NAMESPACE, &[], &[]).exits(0).elements();
    for (row, (name, action)) in rows.iter().zip([(&old, "unpinned"), (&same, "kept")]) {
        assert_eq!(row["reference"], name.as_str());
        assert_eq!(
            row["action"], action,
            "by name, or by the snapshot it runs on"
        );
        assert_eq!(row["reason"], "container lab-prune uses it");
    }
    assert_eq!(scene.daemon.images(NAMESPACE), [old.clone(), same.clone()]);
    let remove = ["containers", "rm", "lab-prune"];
    scene.daemon.ctr(NAMESPACE, &remove).ok();
    assert_eq!(actions(prune(&scene, NAMESPACE, &[], &[])).len(), 2);
    scene.daemon.collect_garbage(NAMESPACE);
    assert!(scene.daemon.images(NAMESPACE).is_empty());
    assert!(scene.daemon.blobs(NAMESPACE).is_empty());
}

fn what_points_elsewhere_by_now_stays(version: Version) {
    let scene = Scene::new(version, image::hello());
    let old = pulled_by_the_daemon(&scene, NAMESPACE, "lab/old", false);
    let elsewhere = format!("io.edgepull.target={}", scene.manifest());
    label(&scene, NAMESPACE, &old, &[&elsewhere]);
    let rows = prune(&scene, NAMESPACE, &[], &[]).exits(0).elements();
    assert_eq!(rows[0]["action"], "kept");
    assert_eq!(scene.daemon.images(NAMESPACE), [old]);
}

fn kubelet_removes_its_own(version: Version) {
    let scene = Scene::new(version, image::hello());
    let old = pulled_by_the_daemon(&scene, K8S, "lab/old", true);
    let all = scene.daemon.images(K8S);
    assert_eq!(all.len(), 3);
    let declared = actions(prune(&scene, K8S, &[&old], &[]));
    assert!(
        declared.is_empty(),
        "with what stands beside it: {declared:?}"
    );
    // Of these somebody else pinned one, too.
    let theirs = all.iter().find(|name| name.contains('@')).unwrap();
    label(&scene, K8S, theirs, &["io.edgepull.pin="]);

    let rows = actions(prune(&scene, K8S, &[], &[]));
    for name in &all {
        let wanted = if name == theirs { "kept" } else { "unpinned" };
        assert_eq!(rows[name], wanted, "{name}");
        let pinned = labels(&scene, K8S, name).contains_key(PINNED);
        assert_eq!(pinned, name == theirs, "{name}");
    }
    assert_eq!(scene.daemon.images(K8S), all, "nothing is removed");
}

fn a_pin_says_whose_it_is(version: Version) {
    let scene = Scene::new(version, image::hello());
    let pull = || {
        let call = scene
            .verb_in(K8S, "pull")
            .arg(&scene.reference)
            .arg("--pin");
        call.run().exits(0).element()
    };
    pull();
    let names = scene.daemon.images(K8S);
    for name in &names {
        assert_eq!(
            labels(&scene, K8S, name)["io.edgepull.pin"],
            "cli",
            "{name}"
        );
    }
    // Somebody takes one away, and somebody else had another before us.
    label(
        &scene,
        K8S,
        &names[0],
        &["io.cri-containerd.pinned=", "io.edgepull.pin="],
    );
    label(&scene, K8S, &names[1], &["io.edgepull.pin="]);
    assert_eq!(
        pull()["status"],
        "pulled",
        "a pin that is gone is set again"
    );
    assert_eq!(labels(&scene, K8S, &names[0])["io.edgepull.pin"], "cli");
    let other = labels(&scene, K8S, &names[1]);
    assert_eq!(other[PINNED], "pinned");
    assert!(!other.contains_key("io.edgepull.pin"), "not ours");
}

on_each_containerd!(
    what_nothing_declares_is_removed,
    what_was_here_before_is_only_unpinned,
    what_a_container_uses_stays,
    what_points_elsewhere_by_now_stays,
    kubelet_removes_its_own,
    a_pin_says_whose_it_is,
);

#[test]
fn nothing_is_pruned_while_it_is_not_known_what_is_declared() {
    let scene = Scene::new(Version::V1_7, image::hello());
    let old = pulled_by_the_daemon(&scene, NAMESPACE, "lab/old", false);
    scene.verb("prune").run().exits(2);
    let call = scene.verb("prune");
    let directory = call.home().join("images.d");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("broken.toml"), "[[image]\n").unwrap();
    call.run().exits(2);
    assert_eq!(scene.daemon.images(NAMESPACE), [old]);
}
