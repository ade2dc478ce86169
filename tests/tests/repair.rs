//! What a power cut or a failing disk did to an image is found, exactly, and healed without
//! fetching what is intact; what is sound is left alone.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use edgepull_tests::containerd::Version;
use edgepull_tests::edgepull::Run;
use edgepull_tests::faulty::{Action, Kind, Rule};
use edgepull_tests::image::{self, Image, Layer, Layout, digest_of, host};
use edgepull_tests::on_each_containerd;
use edgepull_tests::process::wait_for;
use edgepull_tests::scene::{NAMESPACE, Scene};
use edgepull_tests::tree;
use nix::sys::signal::Signal;
use serde_json::Value;

/// Everything that a layer may say twice, differently, or in another layer's words.
fn quirks() -> Layout {
    let layout = Layout::new();
    let base = Layer::new(&layout)
        .dir(".")
        .file("twice", 0o644, b"first")
        .file("twice", 0o644, b"the second is longer")
        .dir("usr/lib")
        .symlink("lib", "usr/lib")
        .file("lib/through", 0o644, b"through the link")
        .file("usr/lib/through", 0o644, b"not through it")
        .symlink("absolute", "/usr")
        .file("absolute/share/x", 0o644, b"inside")
        .file("turns/into/a", 0o644, b"directory")
        .file("turns", 0o644, b"a file now")
        .symlink("becomes", "usr")
        .file("becomes/lost", 0o644, b"in usr")
        .dir("becomes")
        .file("gone", 0o644, b"removed by its own layer")
        .whiteout("gone")
        .file("replaced", 0o644, b"removed, then here again")
        .whiteout("replaced")
        .file("replaced", 0o644, b"again")
        .file("opaque/kept", 0o644, b"unpacked before the marker")
        .opaque("opaque")
        .file("one", 0o4755, b"one inode")
        .hardlink("two", "one")
        .symlink("soft", "nowhere")
        .hardlink("soft-too", "soft")
        .file("empty", 0o644, b"")
        .pax(&[
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", "sparse"),
            ("GNU.sparse.realsize", "1048576"),
        ])
        .file("GNUSparseFile.0/sparse", 0o644, &sparse(b"data"));
    let upper = Layer::new(&layout)
        .whiteout("one")
        .file("one", 0o644, b"another")
        .whiteout("empty")
        .file("opaque/new", 0o644, b"new")
        .opaque("opaque")
        // The link is in the layer below, and a directory here.
        .file("lib/own", 0o644, b"own");
    let image = Image::new(&layout, host())
        .layer(base)
        .layer(upper)
        .finish();
    layout.tag("latest", image);
    layout
}

/// One piece of data, and a hole to the end.
fn sparse(data: &[u8]) -> Vec<u8> {
    let mut map = format!("1\n0\n{}\n", data.len()).into_bytes();
    map.resize(512, 0);
    map.extend_from_slice(data);
    map
}

fn repair(scene: &Scene, args: &[&str]) -> Run {
    let call = scene.verb("repair").arg(&scene.reference).args(args);
    call.run()
}

/// Directories of the layers, the lowest first.
fn layers(scene: &Scene) -> Vec<PathBuf> {
    let chain = scene.layout().chain(&scene.manifest());
    let mut dirs = tree::layer_dirs(&scene.daemon, NAMESPACE, &chain);
    dirs.reverse();
    dirs
}

/// Layer blobs of the image, the lowest first.
fn blobs(scene: &Scene) -> Vec<String> {
    scene.layout().parts(&scene.manifest()).split_off(1)
}

/// What a power cut does: the names are there, the bytes are not.
fn empty(dir: &Path) -> BTreeSet<String> {
    fn walk(root: &Path, dir: &Path, emptied: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            let found = fs::symlink_metadata(&path).unwrap();
            if found.is_dir() {
                walk(root, &path, emptied);
            } else if found.is_file() && found.len() > 0 {
                File::create(&path).unwrap();
                let name = path.strip_prefix(root).unwrap();
                emptied.insert(name.to_str().unwrap().to_owned());
            }
        }
    }
    let mut emptied = BTreeSet::new();
    walk(dir, dir, &mut emptied);
    emptied
}

fn damaged_files(report: &Value) -> BTreeSet<String> {
    let damage = report["damage"].as_array().unwrap();
    damage
        .iter()
        .map(|damage| {
            assert_eq!(damage["kind"], "file");
            damage["path"].as_str().unwrap().to_owned()
        })
        .collect()
}

fn blob_file(scene: &Scene, digest: &str) -> PathBuf {
    let hex = digest.strip_prefix("sha256:").unwrap();
    scene
        .daemon
        .root()
        .join("io.containerd.content.v1.content/blobs/sha256")
        .join(hex)
}

fn what_is_sound_is_left_alone(version: Version) {
    let samples: [fn() -> Layout; 6] = [
        image::hello,
        image::docker_types,
        image::attested,
        image::nested,
        image::tricky,
        quirks,
    ];
    for sample in samples {
        let scene = Scene::new(version, sample());
        scene.pull();
        scene.registry.forget();
        for args in [&["--check"][..], &[]] {
            let report = repair(&scene, args).exits(0).element();
            assert_eq!(report["verdict"], "sound", "{report:#}");
            assert_eq!(report["schema"], "edgepull.repair/1");
        }
        assert!(scene.registry.requests().is_empty(), "nobody was asked");
        assert!(scene.daemon.leases(NAMESPACE).is_empty());
        let views = scene.daemon.ctr(NAMESPACE, &["snapshots", "ls"]).ok();
        assert!(!views.text().contains("edgepull-recheck"));
    }
}

fn empty_files_are_found_and_unpacked_again(version: Version) {
    for sample in [image::hello, image::tricky, quirks] {
        let scene = Scene::new(version, sample());
        scene.pull();
        let chain = scene.layout().chain(&scene.manifest());
        let before = tree::layers(&scene.daemon, NAMESPACE, &chain);
        scene.registry.forget();
        let emptied = empty(&layers(&scene)[1]);
        assert!(!emptied.is_empty());

        let report = repair(&scene, &["--check"]).exits(31).element();
        assert_eq!(report["verdict"], "damaged");
        assert_eq!(damaged_files(&report), emptied);
        assert_eq!(report["damage"][0]["found"], "a file of 0 bytes");
        assert_eq!(report["damage"][0]["digest"], blobs(&scene)[1].as_str());

        let report = repair(&scene, &[]).exits(0).element();
        assert_eq!(report["verdict"], "repaired", "{report:#}");
        assert_eq!(damaged_files(&report), emptied);
        assert_eq!(report["bytes"]["downloaded"], 0);
        assert_eq!(scene.registry.count("GET", &Kind::Blob), 0);
        for (ours, theirs) in tree::layers(&scene.daemon, NAMESPACE, &chain)
            .iter()
            .zip(&before)
        {
            tree::assert_same("after repair", ours, theirs);
        }
        scene.daemon.collect_garbage(NAMESPACE);
        let report = repair(&scene, &["--check"]).exits(0).element();
        assert_eq!(report["verdict"], "sound");
    }
}

/// What a failing disk or a careless hand does: names and sizes stay as they were.
fn changed_contents_are_found_and_unpacked_again(version: Version) {
    fn walk(root: &Path, dir: &Path, changed: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            let found = fs::symlink_metadata(&path).unwrap();
            if found.is_dir() {
                walk(root, &path, changed);
            } else if found.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                let mut other = target.into_os_string().into_vec();
                *other.last_mut().unwrap() ^= 1;
                fs::remove_file(&path).unwrap();
                symlink(OsString::from_vec(other), &path).unwrap();
                changed.insert(name.to_owned());
            } else if found.is_file() && found.len() > 0 {
                let file = File::options().read(true).write(true).open(&path).unwrap();
                let mut byte = [0];
                file.read_exact_at(&mut byte, found.len() - 1).unwrap();
                file.write_all_at(&[byte[0] ^ 1], found.len() - 1).unwrap();
                changed.insert(name.to_owned());
            }
        }
    }
    for sample in [image::hello, image::tricky] {
        let scene = Scene::new(version, sample());
        scene.pull();
        let chain = scene.layout().chain(&scene.manifest());
        let before = tree::layers(&scene.daemon, NAMESPACE, &chain);
        scene.registry.forget();
        let mut changed = BTreeSet::new();
        let dir = &layers(&scene)[1];
        walk(dir, dir, &mut changed);
        assert!(!changed.is_empty());

        let report = repair(&scene, &["--check"]).exits(31).element();
        assert_eq!(report["verdict"], "damaged");
        let found = damaged_files(&report);
        // Of a file of several names one is told.
        assert!(found.is_subset(&changed), "{found:?} of {changed:?}");
        for path in changed.difference(&found) {
            let links = fs::symlink_metadata(dir.join(path)).unwrap().nlink();
            assert!(links > 1, "{path} of {changed:?}, {report:#}");
        }
        assert_eq!(report["damage"][0]["digest"], blobs(&scene)[1].as_str());

        let report = repair(&scene, &[]).exits(0).element();
        assert_eq!(report["verdict"], "repaired", "{report:#}");
        assert_eq!(damaged_files(&report), found);
        assert_eq!(scene.registry.count("GET", &Kind::Blob), 0);
        for (ours, theirs) in tree::layers(&scene.daemon, NAMESPACE, &chain)
            .iter()
            .zip(&before)
        {
            tree::assert_same("after repair", ours, theirs);
        }
        let report = repair(&scene, &["--check"]).exits(0).element();
        assert_eq!(report["verdict"], "sound");
    }
}

fn permissions_and_owners_are_set_again(version: Version) {
    let scene = Scene::new(version, quirks());
    scene.pull();
    let base = &layers(&scene)[0];
    let mode = |path: &str, mode| {
        fs::set_permissions(base.join(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("usr/lib", 0o700);
    mode("twice", 0o666);
    // Two names: an unpacker may have given it what the second says.
    mode("one", 0o600);
    chown(base.join("usr/share/x"), Some(7), Some(7)).unwrap();
    lchown(base.join("lib"), Some(7), None).unwrap();
    let report = repair(&scene, &["--check"]).exits(31).element();
    let found = damaged_files(&report);
    let wanted = ["lib", "twice", "usr/lib", "usr/share/x"].map(str::to_owned);
    assert_eq!(found, BTreeSet::from(wanted), "{report:#}");
    let report = repair(&scene, &[]).exits(0).element();
    assert_eq!(report["verdict"], "repaired", "{report:#}");
}

fn all_layers_at_once(version: Version) {
    let scene = Scene::new(version, image::hello());
    scene.pull();
    for dir in layers(&scene) {
        empty(&dir);
    }
    let report = repair(&scene, &[]).exits(0).element();
    assert_eq!(report["verdict"], "repaired", "{report:#}");
    scene.greets();
}

fn a_missing_snapshot_is_unpacked_again(version: Version) {
    let scene = Scene::new(version, image::hello());
    scene.pull();
    scene.registry.forget();
    let chain = scene.layout().chain(&scene.manifest());
    scene
        .daemon
        .ctr(NAMESPACE, &["snapshots", "rm", &chain[2]])
        .ok();
    let report = repair(&scene, &["--check"]).exits(31).element();
    // Garbage collection may have been quick to take those below, too.
    let damage = report["damage"].as_array().unwrap();
    assert!(damage.iter().all(|damage| damage["kind"] == "snapshot"));
    assert_eq!(damage.last().unwrap()["digest"], blobs(&scene)[2].as_str());
    let report = repair(&scene, &[]).exits(0).element();
    assert_eq!(report["verdict"], "repaired");
    assert_eq!(scene.registry.count("GET", &Kind::Blob), 0);
    scene.greets();
}

fn a_missing_blob_is_fetched_again_and_nothing_else(version: Version) {
    let scene = Scene::new(version, image::hello());
    scene.pull();
    let snapshots = scene.daemon.snapshots(NAMESPACE);
    let blob = blobs(&scene)[1].clone();
    scene.daemon.ctr(NAMESPACE, &["content", "rm", &blob]).ok();
    scene.daemon.collect_garbage(NAMESPACE);
    scene.registry.forget();
    let report = repair(&scene, &["--check"]).exits(31).element();
    assert_eq!(report["damage"][0]["kind"], "blob");
    assert_eq!(report["damage"][0]["digest"], blob.as_str());
    let report = repair(&scene, &[]).exits(0).element();
    assert_eq!(report["verdict"], "repaired", "{report:#}");
    assert_eq!(scene.registry.count("GET", &Kind::Blob), 1);
    let size = scene.layout().read(&blob).len();
    assert_eq!(report["bytes"]["downloaded"], size);
    assert_eq!(scene.daemon.snapshots(NAMESPACE), snapshots);
    assert_eq!(digest_of(&scene.daemon.blob(NAMESPACE, &blob)), blob);
}

fn a_damaged_blob_is_replaced(version: Version) {
    let scene = Scene::new(version, image::hello());
    scene.pull();
    let layer = blobs(&scene)[1].clone();
    let config = scene.layout().parts(&scene.manifest())[0].clone();
    for (what, blob, kind) in [
        ("a layer", layer, "blob"),
        ("the config", config, "document"),
        ("the manifest", scene.manifest(), "document"),
        ("the index", scene.top(), "document"),
    ] {
        let path = blob_file(&scene, &blob);
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"\0\0\0\0", 20).unwrap();
        scene.registry.forget();
        let report = repair(&scene, &["--check"]).exits(31).element();
        assert_eq!(report["damage"][0]["kind"], kind, "{what}: {report:#}");
        let report = repair(&scene, &[]).exits(0).element();
        assert_eq!(report["verdict"], "repaired", "{what}: {report:#}");
        assert!(scene.registry.count("GET", &Kind::Blob) <= 1, "{what}");
        assert_eq!(digest_of(&fs::read(&path).unwrap()), blob, "{what}");
        scene.daemon.collect_garbage(NAMESPACE);
        let report = repair(&scene, &["--check"]).exits(0).element();
        assert_eq!(report["verdict"], "sound", "{what}: {report:#}");
        assert_eq!(scene.daemon.blobs(NAMESPACE), scene.wanted_blobs(&host()));
        assert_eq!(scene.daemon.snapshots(NAMESPACE).len(), 3, "{what}");
    }
    scene.greets();
}

fn a_damaged_base_takes_every_image_upon_it_along(version: Version) {
    let scene = Scene::new(version, image::siblings());
    scene.pull();
    let other = scene.registry.reference("lab/app", "other");
    scene.verb("pull").arg(&other).run().exits(0);
    let snapshots = scene.daemon.snapshots(NAMESPACE);
    assert_eq!(snapshots.len(), 3);
    scene.registry.forget();
    empty(&layers(&scene)[0]);
    let report = repair(&scene, &[]).exits(0).element();
    assert_eq!(report["verdict"], "repaired", "{report:#}");
    assert_eq!(report["others"][0], other.as_str());
    assert_eq!(scene.registry.count("GET", &Kind::Blob), 0);
    scene.daemon.collect_garbage(NAMESPACE);
    assert_eq!(scene.daemon.snapshots(NAMESPACE), snapshots);
    // Without a reference: all of ours, each in its own row.
    let rows = scene.verb("repair").arg("--check").run().exits(0);
    let rows = rows.elements();
    assert_eq!(rows.len(), 2);
    assert!(
        rows.iter().all(|row| row["verdict"] == "sound"),
        "{rows:#?}"
    );
}

fn what_a_container_uses_is_not_taken_away(version: Version) {
    let scene = Scene::new(version, image::hello());
    scene.pull();
    let snapshots = scene.daemon.snapshots(NAMESPACE);
    let create = |id: &str| {
        let args = [
            "containers",
            "create",
            "--snapshotter",
            "overlayfs",
            &scene.reference,
            id,
        ];
        scene.daemon.ctr(NAMESPACE, &args).ok();
    };
    create("lab-user");
    empty(&layers(&scene)[0]);
    let run = repair(&scene, &[]);
    let error = run.fails(31, "store_damaged");
    assert!(error["message"].as_str().unwrap().contains("cannot repair"));
    assert_eq!(
        scene.daemon.snapshots(NAMESPACE),
        snapshots,
        "nothing was removed"
    );
    let text = repair_text(&scene);
    assert!(text.contains("container lab-user"), "{text}");
    scene
        .daemon
        .ctr(NAMESPACE, &["containers", "rm", "lab-user"])
        .ok();
    let report = repair(&scene, &[]).exits(0).element();
    assert_eq!(report["verdict"], "repaired");
    scene.greets();
}

/// The same for people.
fn repair_text(scene: &Scene) -> String {
    let run = edgepull_tests::edgepull::Edgepull::new(["repair"])
        .on(&scene.daemon, NAMESPACE)
        .arg(&scene.reference)
        .run()
        .exits(31);
    run.output.transcript()
}

/// More damage than a report lists, and a blob above it that is damaged, too.
fn whatever_is_not_listed_is_healed_as_well(version: Version) {
    let layout = Layout::new();
    let base = (0..70).fold(Layer::new(&layout), |base, n| {
        base.file(&format!("files/{n}"), 0o644, b"content")
    });
    let upper = Layer::new(&layout).file("upper", 0o644, b"content");
    let image = Image::new(&layout, host()).layer(base).layer(upper);
    layout.tag("latest", image.finish());
    let scene = Scene::new(version, layout);
    scene.pull();
    empty(&layers(&scene)[0]);
    let path = blob_file(&scene, &blobs(&scene)[1]);
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(b"damaged", 20).unwrap();
    let report = repair(&scene, &[]).exits(0).element();
    assert_eq!(report["verdict"], "repaired", "{report:#}");
    assert_eq!(report["damage"].as_array().unwrap().len(), 50);
    assert_eq!(report["more_damage"], 21);
}

/// Stopped in the middle nothing is lost: the image stays wanted, what is intact stays, and
/// the next call goes on.
fn a_repair_that_is_killed_goes_on_later(version: Version) {
    let scene = Scene::new(version, image::big(1, 6 << 20));
    scene.pull();
    let layers = layers(&scene);
    let blobs = blobs(&scene);
    empty(&layers[0]);
    let big = blob_file(&scene, &blobs[1]);
    let file = File::options().write(true).open(big).unwrap();
    file.write_all_at(b"damaged", 1 << 20).unwrap();
    let stall = Rule::on(Kind::Blob, Action::Stall(2 << 20)).times(1);
    scene.registry.script([stall]);
    scene.registry.forget();
    let call = scene.verb("repair").arg(&scene.reference).start();
    wait_for("the blob is asked for", Duration::from_secs(30), || {
        scene.registry.count("GET", &Kind::Blob) > 0 && scene.registry.blob_bytes() >= 2 << 20
    });
    call.running.signal(Signal::SIGKILL);
    call.wait();
    assert_eq!(scene.daemon.images(NAMESPACE), [scene.reference.as_str()]);
    scene.daemon.collect_garbage(NAMESPACE);
    let left = scene.daemon.blobs(NAMESPACE);
    for blob in scene.wanted_blobs(&host()) {
        assert_eq!(left.contains(&blob), blob != blobs[1], "{blob}");
    }
    let report = repair(&scene, &[]).exits(0).element();
    assert_eq!(report["verdict"], "repaired", "{report:#}");
    assert_eq!(
        scene.registry.count("GET", &Kind::Blob),
        2,
        "one blob, in two parts"
    );
    scene.greets();
    scene.daemon.collect_garbage(NAMESPACE);
    assert_eq!(scene.daemon.blobs(NAMESPACE), scene.wanted_blobs(&host()));
    assert!(scene.daemon.leases(NAMESPACE).is_empty());
}

/// The size of an image does not matter to the memory that looking at it takes.
fn a_check_needs_little_memory(version: Version) {
    let peak = |size: u64| {
        let scene = Scene::new(version, image::big(1, size));
        scene.pull();
        let call = scene.verb("repair").arg("--check").weighed();
        let run = call.arg(&scene.reference).run().exits(0);
        assert_eq!(run.element()["verdict"], "sound");
        run.peak_kib.unwrap()
    };
    let (small, large) = (peak(1 << 20), peak(48 << 20));
    println!("{version}: {small} KiB for 1 MiB, {large} KiB for 48 MiB");
    assert!(large < small + 8 * 1024, "{small} KiB, then {large} KiB");
}

/// Without the registry a damaged blob cannot be had, and the snapshot is left as it is.
fn without_a_registry_nothing_is_taken_away(version: Version) {
    let scene = Scene::new(version, image::hello());
    scene.pull();
    let snapshots = scene.daemon.snapshots(NAMESPACE);
    empty(&layers(&scene)[1]);
    let blob = blobs(&scene)[1].clone();
    let path = blob_file(&scene, &blob);
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(b"damaged", 20).unwrap();
    scene
        .registry
        .script([Rule::on(Kind::Blob, Action::status(404))]);
    let run = repair(&scene, &[]).exits(21);
    assert_eq!(run.element()["verdict"], "damaged");
    assert_eq!(scene.daemon.snapshots(NAMESPACE), snapshots);
    scene.registry.script([]);
    let report = repair(&scene, &[]).exits(0).element();
    assert_eq!(report["verdict"], "repaired", "{report:#}");
    scene.greets();
}

on_each_containerd!(
    whatever_is_not_listed_is_healed_as_well,
    a_repair_that_is_killed_goes_on_later,
    a_check_needs_little_memory,
    without_a_registry_nothing_is_taken_away,
    what_is_sound_is_left_alone,
    empty_files_are_found_and_unpacked_again,
    changed_contents_are_found_and_unpacked_again,
    permissions_and_owners_are_set_again,
    all_layers_at_once,
    a_missing_snapshot_is_unpacked_again,
    a_missing_blob_is_fetched_again_and_nothing_else,
    a_damaged_blob_is_replaced,
    a_damaged_base_takes_every_image_upon_it_along,
    what_a_container_uses_is_not_taken_away,
);

#[test]
fn what_is_not_there_is_said_so() {
    let scene = Scene::new(Version::V1_7, image::hello());
    repair(&scene, &[]).fails(21, "not_found");
    let rows = scene.verb("repair").run().exits(0).elements();
    assert!(rows.is_empty());
}

/// Only stored, or for another snapshotter: what can be looked at is, and the rest is named.
#[test]
fn what_cannot_be_looked_at_is_no_damage() {
    let scene = Scene::new(Version::V1_7, image::hello());
    scene.pull_with(&["--no-unpack"]).exits(0);
    let report = repair(&scene, &["--check"]).exits(0).element();
    assert_eq!(report["verdict"], "unchecked", "{report:#}");
    assert!(
        report["unchecked"][0]["reason"]
            .as_str()
            .unwrap()
            .contains("not unpacked")
    );

    let blob = blobs(&scene)[0].clone();
    let file = File::options()
        .write(true)
        .open(blob_file(&scene, &blob))
        .unwrap();
    file.write_all_at(b"\0\0\0\0", 20).unwrap();
    let report = repair(&scene, &[]).exits(0).element();
    assert_eq!(report["verdict"], "repaired", "{report:#}");
    assert!(
        scene.daemon.snapshots(NAMESPACE).is_empty(),
        "stored it stays"
    );
}
