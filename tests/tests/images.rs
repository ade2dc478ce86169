//! `images` tells what edgepull put here, `rm` takes it away, and nothing that is somebody else's.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use edgepull_tests::containerd::Version;
use edgepull_tests::image;
use edgepull_tests::on_each_containerd;
use edgepull_tests::scene::{NAMESPACE, Scene};
use serde_json::{Value, json};

/// References, who manages them and whether they are pinned, as `images` has them.
fn listed(scene: &Scene, args: &[&str]) -> Vec<(String, Value, bool)> {
    let rows = scene.verb("images").args(args).run().exits(0).elements();
    rows.iter()
        .map(|row| {
            assert_eq!(row["schema"], "edgepull.image/1");
            assert_eq!(row["namespace"], NAMESPACE);
            assert_eq!(row["digest"], scene.top());
            let name = row["reference"].as_str().unwrap().to_owned();
            (
                name,
                row["managed"].clone(),
                row["pinned"].as_bool().unwrap(),
            )
        })
        .collect()
}

fn others_images_stay_unless_forced(version: Version) {
    let scene = Scene::new(version, image::hello());
    let ours = scene.reference.clone();
    scene.pull_with(&["--pin"]).exits(0);
    let theirs = scene.registry.reference("lab/theirs", "latest");
    scene.daemon.pull(NAMESPACE, &theirs).ok();

    let own = (ours.clone(), json!("cli"), true);
    assert_eq!(listed(&scene, &[]), [own.clone()]);
    assert_eq!(
        listed(&scene, &["--all"]),
        [own.clone(), (theirs.clone(), Value::Null, false)]
    );

    let rm = |args: &[&str]| scene.verb("rm").args(args).run();
    let refused = rm(&[&theirs]).exits(2).element();
    assert_eq!(refused["error"]["kind"], "usage");
    assert_eq!(refused["records"], json!([]));
    assert_eq!(listed(&scene, &["--all"]).len(), 2);

    // What is not there keeps nothing else from going; the worst of it is the exit code.
    let nowhere = scene.registry.reference("lab/nowhere", "latest");
    let rows = rm(&[&nowhere, &ours]).exits(21).elements();
    assert_eq!(rows[0]["error"]["kind"], "not_found");
    assert_eq!(rows[1]["records"], json!([ours]));
    assert_eq!(rows[1]["error"], Value::Null);
    assert_eq!(listed(&scene, &[]), []);
    // Both were the same content, which is still somebody's.
    assert!(!scene.daemon.blobs(NAMESPACE).is_empty());

    let forced = rm(&["--force", &theirs]).exits(0).element();
    assert_eq!(forced["records"], json!([theirs]));
    assert_eq!(scene.daemon.images(NAMESPACE), [""; 0]);
    assert_eq!(
        scene.daemon.blobs(NAMESPACE),
        [""; 0],
        "it waits for the garbage collection"
    );
}

fn what_stands_beside_it_for_cri_goes_with_it(version: Version) {
    const K8S: &str = "k8s.io";
    let scene = Scene::new(version, image::hello());
    let pull = scene.verb_in(K8S, "pull").arg(&scene.reference);
    pull.run().exits(0);
    assert_eq!(scene.daemon.images(K8S).len(), 3);
    let rm = scene.verb_in(K8S, "rm").arg(&scene.reference);
    let row = rm.run().exits(0).element();
    assert_eq!(row["records"].as_array().unwrap().len(), 3, "{row:#}");
    assert_eq!(row["records"][0], json!(scene.reference));
    assert_eq!(scene.daemon.images(K8S), [""; 0]);
    assert_eq!(scene.daemon.blobs(K8S), [""; 0]);
}

on_each_containerd!(
    others_images_stay_unless_forced,
    what_stands_beside_it_for_cri_goes_with_it,
);
