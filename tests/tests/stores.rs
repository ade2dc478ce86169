//! Stores without containerd, and the way to a host without a network.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::path::Path;
use std::process::Command;

use edgepull_tests::containerd::{Containerd, Version};
use edgepull_tests::edgepull::Edgepull;
use edgepull_tests::faulty::Faulty;
use edgepull_tests::image::{self, Layout, digest_of, host};
use edgepull_tests::on_each_containerd;
use edgepull_tests::process::{self, Output};
use edgepull_tests::scene::{NAMESPACE, Scene, greeting};
use edgepull_tests::tools::Lab;

fn skopeo(args: &[&str]) -> Output {
    process::run(Command::new(Lab::get().installed("skopeo")).args(args)).ok()
}

fn pull_to(reference: &str, store: &str) -> serde_json::Value {
    let call = Edgepull::new(["pull", reference, "--store", store]).json();
    call.run().exits(0).element()
}

#[track_caller]
fn sound(dir: &Path) {
    assert!(dir.join("oci-layout").exists());
    let layout = Layout::at(dir);
    for digest in layout.blobs() {
        assert_eq!(digest_of(&layout.read(&digest)), digest);
    }
}

#[test]
fn a_layout_is_what_skopeo_reads() {
    let registry = Faulty::start(image::hello(), []);
    let reference = registry.reference("lab/app", "latest");
    let dir = Lab::get().run_dir("oci");
    let path = dir.path().join("layout");
    let store = format!("oci:{}", path.display());
    let report = pull_to(&reference, &store);
    assert_eq!(report["status"], "pulled");
    assert_eq!(report["index_digest"], registry.layout().digest("latest"));
    sound(&path);
    let raw = skopeo(&["inspect", "--raw", &store]);
    assert_eq!(
        digest_of(&raw.stdout),
        registry.layout().digest("latest"),
        "the index as it was"
    );
    let copy = format!("oci:{}:copied", dir.path().join("copy").display());
    skopeo(&["copy", "--quiet", &store, &copy]);
    Edgepull::new(["inspect", &store]).json().run().exits(0);

    // Again: nothing to do.
    registry.forget();
    let report = pull_to(&reference, &store);
    assert_eq!(report["status"], "present");
    assert_eq!(report["bytes"]["written"], 0);
    assert!(
        registry.content_requests().len() <= 1,
        "{}",
        registry.transcript()
    );
}

#[test]
fn a_layout_holds_several_images() {
    let one = Faulty::start(image::hello(), []);
    let other = Faulty::start(image::hello_single(host()), []);
    let dir = Lab::get().run_dir("oci");
    let path = dir.path().join("layout");
    let store = format!("oci:{}", path.display());
    pull_to(&one.reference("lab/one", "latest"), &store);
    pull_to(&other.reference("lab/other", "latest"), &store);
    sound(&path);
    assert_eq!(Layout::at(&path).entries().len(), 2);
}

#[test]
fn a_layout_is_written_by_two_at_once() {
    let one = Faulty::start(image::hello(), []);
    let dir = Lab::get().run_dir("oci");
    let path = dir.path().join("layout");
    let store = format!("oci:{}", path.display());
    let start = |name: &str| {
        let reference = one.reference(name, "latest");
        let call = Edgepull::new(["pull", &reference, "--store", &store]).json();
        call.start()
    };
    let calls = [start("lab/a"), start("lab/b"), start("lab/a")];
    for call in calls {
        call.wait().exits(0);
    }
    sound(&path);
    assert_eq!(Layout::at(&path).entries().len(), 2);
}

#[test]
fn a_layout_that_lost_bytes_is_healed() {
    let registry = Faulty::start(image::hello(), []);
    let reference = registry.reference("lab/app", "latest");
    let dir = Lab::get().run_dir("oci");
    let path = dir.path().join("layout");
    let store = format!("oci:{}", path.display());
    pull_to(&reference, &store);
    let layer = registry
        .layout()
        .parts(&registry.layout().manifest("latest", &host()))
        .remove(1);
    std::fs::write(Layout::at(&path).blob_path(&layer), b"").unwrap();
    pull_to(&reference, &store);
    sound(&path);
}

fn an_archive_is_imported_by_ctr(version: Version) {
    let registry = Faulty::start(image::hello(), []);
    let reference = registry.reference("lab/app", "latest");
    let dir = Lab::get().run_dir("arc");
    let file = dir.path().join("image.tar");
    let store = format!("oci-archive:{}", file.display());
    pull_to(&reference, &store);
    let raw = skopeo(&["inspect", "--raw", &store]);
    assert_eq!(digest_of(&raw.stdout), registry.layout().digest("latest"));

    let daemon = Containerd::start(version);
    let mut args = vec!["images", "import"];
    if version == Version::V2 {
        args.push("--local");
    }
    args.push(file.to_str().unwrap());
    daemon.ctr(NAMESPACE, &args).ok();
    let names = daemon.images(NAMESPACE);
    assert_eq!(names, [reference.as_str()], "under its own name");
    assert_eq!(
        daemon.run(NAMESPACE, &reference, &[]).ok().text(),
        greeting()
    );
}

fn export_and_import_carry_an_image_over(version: Version) {
    let scene = Scene::new(version, image::hello());
    scene.pull();
    let dir = Lab::get().run_dir("exp");
    let file = dir.path().join("image.tar");
    let run = scene
        .verb("export")
        .arg(&scene.reference)
        .arg("--to")
        .arg(&file)
        .run();
    let report = run.exits(0).element();
    assert_eq!(report["index_digest"], scene.top());
    assert_eq!(
        scene
            .registry
            .count("GET", &edgepull_tests::faulty::Kind::Blob),
        4,
        "from the store"
    );

    let island = Containerd::start(version);
    let import = || {
        Edgepull::new(["import"])
            .json()
            .on(&island, NAMESPACE)
            .arg(&file)
    };
    let report = import().run().exits(0).element();
    assert_eq!(report["status"], "pulled");
    assert_eq!(report["reference"], scene.reference.as_str());
    assert_eq!(island.images(NAMESPACE), [scene.reference.as_str()]);
    island.collect_garbage(NAMESPACE);
    assert_eq!(island.blobs(NAMESPACE), scene.wanted_blobs(&host()));
    let ran = island.run(NAMESPACE, &scene.reference, &[]).ok();
    assert_eq!(ran.text(), greeting());
    let report = import().run().exits(0).element();
    assert_eq!(report["status"], "present");
    assert_eq!(report["bytes"]["written"], 0);
}

on_each_containerd!(
    an_archive_is_imported_by_ctr,
    export_and_import_carry_an_image_over
);

#[test]
fn an_archive_without_this_platform_is_refused() {
    let layout = image::only_s390x();
    let dir = Lab::get().run_dir("imp");
    let file = dir.path().join("image.tar");
    layout.archive(&file);
    let daemon = Containerd::start(Version::V1_7);
    let import = Edgepull::new(["import"])
        .json()
        .on(&daemon, NAMESPACE)
        .arg(&file);
    import.run().fails(3, "platform_missing");
    assert!(daemon.images(NAMESPACE).is_empty());
}
