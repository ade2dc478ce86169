//! What we leave in containerd is what its own client leaves, but for listed differences.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use edgepull_tests::containerd::{Containerd, Version};
use edgepull_tests::image::{self, Layout};
use edgepull_tests::on_each_containerd;
use edgepull_tests::scene::{NAMESPACE, Scene, without_own_labels};
use edgepull_tests::tree;

const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

/// Labels that another version of containerd's client writes and this one does not, or the other
/// way round, by key; each with its reason.
const DIFFERENCES: &[&str] = &[
    // `ctr images pull` of these versions unpacks by itself and leaves it out; containerd's
    // unpacker, which CRI and the transfer service use, writes it. Its value is checked below.
    SNAPSHOT_REF,
    // 2.3+ only, for its own erofs snapshotter; the lab's newest is older.
    "containerd.io/snapshot/diff-id",
    "containerd.io/snapshot/parent-chain-id",
];

/// Blobs and their labels, without edgepull's own.
fn content_labels(daemon: &Containerd) -> Vec<(String, Vec<(String, String)>)> {
    let mut blobs = daemon.content_labels(NAMESPACE);
    for (_, labels) in &mut blobs {
        labels.retain(|(key, _)| key != "io.edgepull.proof");
    }
    blobs
}

fn compare(name: &str, version: Version, layout: Layout) {
    let ours = Scene::new(version, layout);
    let theirs = Containerd::start(version);
    ours.pull();
    theirs.pull(NAMESPACE, &ours.reference).ok();

    assert_eq!(
        content_labels(&ours.daemon),
        content_labels(&theirs),
        "{name}: blobs and their labels"
    );

    let mut our_records = ours.daemon.image_records(NAMESPACE);
    for record in &mut our_records {
        record.labels = without_own_labels(&record.labels);
    }
    assert_eq!(
        our_records,
        theirs.image_records(NAMESPACE),
        "{name}: image records"
    );

    let our_snapshots = ours.daemon.snapshots(NAMESPACE);
    assert_eq!(
        our_snapshots,
        theirs.snapshots(NAMESPACE),
        "{name}: snapshots and parents"
    );
    for (snapshot, _) in &our_snapshots {
        let labels = ours.daemon.snapshot(NAMESPACE, snapshot)["Labels"].clone();
        assert_eq!(
            labels[SNAPSHOT_REF],
            snapshot.as_str(),
            "{name}: {snapshot}"
        );
        let labels = |daemon: &Containerd| {
            let mut info = daemon.snapshot(NAMESPACE, snapshot)["Labels"].clone();
            if let Some(labels) = info.as_object_mut() {
                labels.retain(|key, _| !DIFFERENCES.contains(&key.as_str()));
                if labels.is_empty() {
                    // containerd prints no labels as null.
                    info = serde_json::Value::Null;
                }
            }
            info
        };
        assert_eq!(
            labels(&ours.daemon),
            labels(&theirs),
            "{name}: labels of {snapshot}"
        );
    }

    let chain = ours.layout().chain(&ours.manifest());
    let our_trees = tree::layers(&ours.daemon, NAMESPACE, &chain);
    let their_trees = tree::layers(&theirs, NAMESPACE, &chain);
    for (at, (our, their)) in our_trees.iter().zip(&their_trees).enumerate() {
        tree::assert_same(&format!("{name}: layer {at}"), our, their);
    }
}

fn a_plain_image(version: Version) {
    compare("hello", version, image::hello());
}

fn an_image_that_is_hard_to_unpack(version: Version) {
    compare("tricky", version, image::tricky());
}

fn docker_media_types(version: Version) {
    compare("docker types", version, image::docker_types());
}

fn an_index_with_attestations(version: Version) {
    compare("attested", version, image::attested());
}

fn an_index_within_an_index(version: Version) {
    compare("nested", version, image::nested());
}

fn a_single_manifest(version: Version) {
    compare("single", version, image::hello_single(image::host()));
}

on_each_containerd!(
    a_plain_image,
    an_image_that_is_hard_to_unpack,
    docker_media_types,
    an_index_with_attestations,
    an_index_within_an_index,
    a_single_manifest,
);

/// The comparison itself: two pulls by `ctr` are the same, and a change is seen.
#[test]
fn the_comparison_sees_what_differs() {
    let one = Scene::new(Version::V1_7, image::tricky());
    let other = Containerd::start(Version::V1_7);
    one.daemon.pull(NAMESPACE, &one.reference).ok();
    other.pull(NAMESPACE, &one.reference).ok();
    let chain = one.layout().chain(&one.manifest());
    let left = tree::layers(&one.daemon, NAMESPACE, &chain);
    let mut right = tree::layers(&other, NAMESPACE, &chain);
    assert_eq!(left, right);
    let attributes: String = left
        .iter()
        .flat_map(|tree| tree.values().cloned())
        .collect();
    for name in [
        "security.capability",
        "user.edgepull",
        "trusted.overlay.opaque",
    ] {
        assert!(attributes.contains(name), "{name} is compared");
    }
    let first = right[0].values_mut().next().unwrap();
    first.push('!');
    assert_ne!(left, right);
    assert_eq!(content_labels(&one.daemon), content_labels(&other));
}
