//! What the bytes of an image prove: `verify`, and the policy of `pull`, `import` and the daemon.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::path::{Path, PathBuf};

use edgepull_tests::containerd::Version;
use edgepull_tests::edgepull::{Edgepull, Run};
use edgepull_tests::image::{self, AMD64, ARM_V7, ARM64, Image, Layer, Layout, Platform, host};
use edgepull_tests::on_each_containerd;
use edgepull_tests::scene::{NAMESPACE, Scene};
use edgepull_tests::tools::{Lab, RunDir};
use serde_json::{Value, json};

fn busybox(arch: &str) -> Vec<u8> {
    std::fs::read(Lab::get().tool(&format!("busybox-{arch}/bin/busybox"))).unwrap()
}

/// A program in one layer, over which others may lie.
fn program(
    platform: Platform,
    command: &[&str],
    layers: &[&dyn Fn(Layer<'_>) -> Layer<'_>],
) -> Layout {
    let layout = Layout::new();
    let mut image = Image::new(&layout, platform).entrypoint(command);
    for fill in layers {
        image = image.layer(fill(Layer::new(&layout)));
    }
    let entry = image.finish();
    image::published(layout, &[entry])
}

fn config(dir: &RunDir, text: &str) -> PathBuf {
    let path = dir.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    path
}

fn causes(error: &Value) -> String {
    error["causes"].to_string()
}

fn a_mislabelled_image_is_never_ready(version: Version) {
    let scene = Scene::new(version, image::arm_busybox_labelled(host()));
    let error = scene.pull_with(&["--pin"]).fails(11, "mislabelled");
    assert_eq!(error["wanted"], json!([host().to_string()]));
    assert!(
        error["offered"][0]
            .as_str()
            .unwrap()
            .starts_with("linux/arm"),
        "{error}"
    );
    let causes = causes(&error);
    let manifest = scene.manifest();
    let layer = scene.layout().json(&manifest)["layers"].clone();
    let layer = layer
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["digest"].as_str().unwrap());
    assert!(
        layer.into_iter().any(|layer| causes.contains(layer)),
        "{error}"
    );
    assert!(
        causes.contains("/bin/busybox") && causes.contains(&manifest),
        "{error}"
    );
    assert!(
        error["hint"].as_str().unwrap().contains("publisher"),
        "{error}"
    );
    assert_eq!(scene.daemon.images(NAMESPACE), Vec::<String>::new());

    // What is known is not fetched again.
    let before = scene.registry.requests().len();
    scene.pull_with(&[]).fails(11, "mislabelled");
    let again = scene.registry.requests().split_off(before);
    assert!(
        again
            .iter()
            .all(|request| !request.path.contains("/blobs/")),
        "{again:?}"
    );

    // By its label alone it is as good as any.
    let dir = Lab::get().run_dir("verify");
    let off = config(&dir, "[policy]\nimage = \"off\"\n");
    let by_label = scene
        .pull_with(&["--config", off.to_str().unwrap()])
        .exits(0)
        .element();
    assert_eq!(by_label["status"], "pulled");
    // Which does not help whoever asks for a proof, or pulls it by the bytes.
    scene
        .verb("verify")
        .arg(&scene.reference)
        .run()
        .fails(11, "mislabelled");
    scene.pull_with(&[]).fails(11, "mislabelled");
}

fn verify_follows_what_is_unpacked(version: Version) {
    let arch = host().arch;
    let tool = busybox(arch);
    let foreign = busybox(if arch == "arm64" { "amd64" } else { "arm64" });
    let layout = program(
        host(),
        &["entry.sh"],
        &[
            &|layer| {
                layer
                    .file("usr/bin/busybox", 0o755, &tool)
                    .symlink("bin", "usr/bin")
            },
            &|layer| {
                layer
                    .symlink("usr/bin/sh", "busybox")
                    .file("opt/entry.sh", 0o755, b"wrong")
            },
            &|layer| {
                layer
                    .file("usr/bin/entry.sh", 0o755, b"#!/bin/sh\necho hello\n")
                    .file("usr/bin/foreign", 0o755, &foreign)
                    .file("usr/bin/empty", 0o755, b"")
                    .whiteout("opt/entry.sh")
            },
        ],
    );
    let scene = Scene::new(version, layout);
    let verify = |command: &[&str]| {
        scene
            .verb("verify")
            .arg(&scene.reference)
            .arg("--")
            .args(command)
            .run()
    };
    let missing = scene
        .verb("verify")
        .arg(&scene.reference)
        .run()
        .fails(21, "not_found");
    assert!(
        missing["hint"].as_str().unwrap().contains("edgepull pull"),
        "{missing}"
    );
    assert_eq!(scene.pull()["verdict"], "native");

    let proof = scene
        .verb("verify")
        .arg(&scene.reference)
        .run()
        .exits(0)
        .document();
    assert_eq!(proof["schema"], "edgepull.verify/1");
    assert_eq!(proof["verdict"], "native");
    assert_eq!(proof["entrypoint"], json!(["entry.sh"]));
    assert_eq!(proof["namespace"], NAMESPACE);
    assert_eq!(proof["digest"], scene.manifest());
    assert_eq!(proof["reasons"], json!([]));
    let layers = scene.layout().json(&scene.manifest())["layers"].clone();
    let chain = proof["chain"].as_array().unwrap();
    let at: Vec<_> = chain
        .iter()
        .map(|link| (&link["path"], &link["kind"], &link["layer"]))
        .collect();
    assert_eq!(
        at,
        [
            (
                &json!("/usr/bin/entry.sh"),
                &json!("script"),
                &layers[2]["digest"]
            ),
            (
                &json!("/usr/bin/busybox"),
                &json!("elf"),
                &layers[0]["digest"]
            ),
        ]
    );
    for (command, code, kind) in [
        (&["/bin/foreign"][..], 11, "mislabelled"),
        (&["empty"], 10, "not_runnable"),
    ] {
        verify(command).fails(code, kind);
    }
    for command in [&["/opt/entry.sh"][..], &["nothing"], &["/proc/self/exe"]] {
        let unknown = verify(command).exits(0).document();
        assert_eq!(unknown["verdict"], "unknown", "{command:?}: {unknown}");
    }
    // Nothing of the looks is left.
    assert!(scene.daemon.leases(NAMESPACE).is_empty());
    let left = scene.daemon.snapshots(NAMESPACE);
    assert!(
        left.iter().all(|(name, _)| !name.contains("edgepull")),
        "{left:?}"
    );

    // As a power cut leaves a file.
    let file = snapshot_file(&scene, "usr/bin/busybox");
    std::fs::write(&file, b"").unwrap();
    let error = scene
        .verb("verify")
        .arg(&scene.reference)
        .run()
        .fails(10, "not_runnable");
    assert!(causes(&error).contains("empty"), "{error}");
    assert!(
        error["hint"].as_str().unwrap().contains("edgepull repair"),
        "{error}"
    );
    // Found right in this boot it is not looked at with each pull, but where something changed.
    assert_eq!(scene.pull()["status"], "present");
    let dir = Lab::get().run_dir("verify");
    let strict = config(&dir, "[policy]\nimage = \"strict\"\n");
    let args = ["--config", strict.to_str().unwrap()];
    let pulled = scene.pull_with(&args).fails(10, "not_runnable");
    assert!(causes(&pulled).contains("/usr/bin/busybox"), "{pulled}");
    scene.pull_with(&[]).fails(10, "not_runnable");
}

/// A file of the unpacked image, where overlayfs has it.
fn snapshot_file(scene: &Scene, path: &str) -> PathBuf {
    let root = scene
        .daemon
        .root()
        .join("io.containerd.snapshotter.v1.overlayfs/snapshots");
    std::fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path().join("fs").join(path))
        .find(|file| file.is_file())
        .unwrap()
}

on_each_containerd!(
    a_mislabelled_image_is_never_ready,
    verify_follows_what_is_unpacked
);

/// The only label of a single image may be wrong, and its bytes right.
#[test]
fn a_wrong_label_does_not_stop_an_image_that_runs() {
    let other = if host() == ARM64 { AMD64 } else { ARM64 };
    let scene = Scene::new(Version::V2, image::mislabelled_single(other, host()));
    // Whoever only asks for labels sees a label.
    scene.verb("check").arg(&scene.reference).run().exits(3);
    let strict = Lab::get().run_dir("verify");
    let strict = config(&strict, "[policy]\nimage = \"strict\"\n");
    scene
        .pull_with(&["--config", strict.to_str().unwrap()])
        .fails(11, "mislabelled");
    assert_eq!(scene.daemon.images(NAMESPACE), Vec::<String>::new());

    let pulled = scene.pull();
    assert_eq!(pulled["verdict"], "native", "{pulled}");
    assert_eq!(pulled["selected_platform"], other.to_string());
    let warning = pulled["warnings"][0].as_str().unwrap();
    assert!(warning.contains("the label is wrong"), "{pulled}");
    let ran = scene.daemon.run(NAMESPACE, &scene.reference, &[]).ok();
    assert_eq!(ran.text(), format!("hello from {}\n", other.arch));
    let again = scene.pull();
    assert_eq!(again["status"], "present", "{again}");
}

/// And where neither the label nor the bytes fit, it is what the label says.
#[test]
fn a_single_image_for_others_is_missing_its_platform() {
    let other = if host() == ARM64 { AMD64 } else { ARM64 };
    let scene = Scene::new(Version::V1_7, image::hello_single(other));
    let error = scene.pull_with(&[]).fails(3, "platform_missing");
    assert!(causes(&error).contains("/bin/busybox"), "{error}");
    assert_eq!(scene.daemon.images(NAMESPACE), Vec::<String>::new());
    // Without the bytes being looked at, nothing of its layers is fetched.
    let before = scene.registry.requests().len();
    scene
        .pull_with(&["--no-unpack"])
        .fails(3, "platform_missing");
    let asked = scene.registry.requests().split_off(before);
    assert!(asked.len() <= 2, "{asked:?}");
    // Asked for by its name, it is what was asked for.
    let platform = other.to_string();
    let pulled = scene
        .pull_with(&["--platform", &platform])
        .exits(0)
        .element();
    assert_eq!(pulled["selected_platform"], platform);
}

/// The platform that a user names is held to its bytes, too, whatever this host runs.
#[test]
fn a_platform_by_name_is_compared_with_its_bytes() {
    let scene = Scene::new(
        Version::V2,
        image::arm_busybox_labelled(Platform::new("linux", "s390x", "")),
    );
    let error = scene
        .pull_with(&["--platform", "linux/s390x"])
        .fails(11, "mislabelled");
    assert_eq!(error["wanted"], json!(["linux/s390x"]));
    let right = Scene::new(Version::V2, image::hello());
    let every = right.pull_with(&["--all-platforms"]).exits(0).elements();
    assert_eq!(every.len(), image::HELLO.len());
}

#[test]
fn an_archive_is_imported_by_its_bytes() {
    let scene = Scene::new(Version::V2, image::arm_busybox_labelled(host()));
    let dir = Lab::get().run_dir("verify");
    let file = dir.path().join("image.tar");
    scene.layout().archive(&file);
    let import = || scene.verb("import").arg(&file).run();
    import().fails(11, "mislabelled");
    assert_eq!(scene.daemon.images(NAMESPACE), Vec::<String>::new());
}

fn verify_local(reference: &str, args: &[&str]) -> Run {
    Edgepull::new(["verify", reference]).json().args(args).run()
}

/// The same answers without a daemon, from layouts and archives, for any recorded host.
#[test]
fn layouts_and_archives_are_judged_for_any_host() {
    let layout = image::hello();
    let dir = Lab::get().run_dir("verify");
    let archive = dir.path().join("image.tar");
    layout.archive(&archive);
    let by_dir = format!("oci:{}:latest", layout.path().display());
    let by_file = format!("oci-archive:{}:latest", archive.display());
    let hosts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../platform/tests/data/hosts");
    let sysroot = |name: &str| hosts.join(name).display().to_string();
    for reference in [&by_dir, &by_file] {
        assert_eq!(
            verify_local(reference, &[]).exits(0).document()["verdict"],
            "native"
        );
        for (name, platform, code, verdict) in [
            ("graviton4", "linux/arm64", 0, "native"),
            ("graviton4", "linux/arm/v7", 10, "refused"),
            ("pi5-16k", "linux/arm64", 0, "native"),
            // Debian's 32-bit programs are laid out for pages of 4 KiB: this one has 16 KiB, of the
            // other that was not recorded.
            ("pi5-16k", "linux/arm/v7", 10, "refused"),
            ("pi4-armhf-on-64", "linux/arm/v7", 0, "unknown"),
            ("x86-v3", "linux/amd64", 0, "native"),
            ("x86-v3", "linux/arm64", 10, "refused"),
        ] {
            let ran = verify_local(
                reference,
                &["--sysroot", &sysroot(name), "--platform", platform],
            );
            let proof = ran.exits(code).document();
            assert_eq!(proof["verdict"], verdict, "{name} {platform}: {proof}");
            assert_eq!(proof["selected_platform"], platform);
            assert_eq!(proof["chain"].as_array().unwrap().len(), 2, "{proof}");
        }
    }
    let every = verify_local(
        &by_dir,
        &[
            "--platform",
            "all",
            "--sysroot",
            &sysroot("pi4-armhf-on-64"),
        ],
    );
    assert_eq!(every.exits(10).elements().len(), image::HELLO.len());

    let wrong = image::arm_busybox_labelled(ARM64);
    let wrong = format!("oci:{}:latest", wrong.path().display());
    let args = ["--sysroot", &sysroot("graviton4")];
    let error = verify_local(&wrong, &args).fails(11, "mislabelled");
    assert_eq!(error["platform"], "host");
    assert_eq!(error["host"], "linux/arm64");
    let found = verify_local(&wrong, &args).document();
    assert_eq!(
        found["verdict"], "refused",
        "the proof is told with the failure: {found}"
    );
}

/// A directory for all layers names no layer; mounts that cannot be seen prove nothing.
#[test]
fn another_snapshotter_is_looked_at_as_far_as_it_can_be() {
    let scene = Scene::new(Version::V1_7, image::hello());
    let address = scene.daemon.address();
    let with = |verb: &str, more: &[&str]| {
        Edgepull::new([verb, &scene.reference, "--namespace", NAMESPACE])
            .json()
            .arg("--address")
            .arg(&address)
            .args(more)
            .run()
    };
    let native = &["--snapshotter", "native"][..];
    let pulled = with("pull", native).exits(0).element();
    assert_eq!(pulled["verdict"], "native", "{pulled}");
    let proof = with("verify", native).exits(0).document();
    assert_eq!(proof["verdict"], "native");
    assert_eq!(proof["chain"][0]["layer"], Value::Null, "{proof}");
    // Not unpacked there, its layers are read.
    let other = with("verify", &["--snapshotter", "overlayfs"]).exits(0);
    assert_ne!(other.document()["chain"][0]["layer"], Value::Null);
    with("verify", &["--platform", &ARM_V7.to_string()]).fails(21, "not_found");
}

#[test]
fn the_text_shows_the_chain() {
    let layout = image::hello();
    let reference = format!("oci:{}:latest", layout.path().display());
    let text = Edgepull::new(["verify", &reference]).run().exits(0).text();
    for part in ["verdict", "native", "/bin/busybox", "a static program for"] {
        assert!(text.contains(part), "{text}");
    }
}
