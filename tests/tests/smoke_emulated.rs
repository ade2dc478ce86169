//! `smoke` for platforms that the machine only emulates, and the recipe for CI that uses it.
//! A machine of amd64 is what emulates here.
#![cfg(target_arch = "x86_64")]
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::fs;

use edgepull_tests::containerd::Version;
use edgepull_tests::emulated::Emulating;
use edgepull_tests::image;
use edgepull_tests::registry::Registry;
use edgepull_tests::scene::NAMESPACE;
use edgepull_tests::tools::Lab;

#[test]
fn other_machines_images_run_by_their_emulators() {
    let machine = Emulating::start(Version::V1_7);
    let layout = image::hello();
    let reference = format!("oci:{}", layout.path().display());
    let run = machine
        .edgepull("smoke")
        .args([&reference, "--platform", "all"])
        .run()
        .exits(0);
    let told: Vec<_> = run
        .elements()
        .iter()
        .map(|row| {
            let emulated = row["reason"]
                .as_str()
                .is_some_and(|r| r.contains("emulation (/"));
            let text = |key: &str| row[key].as_str().unwrap().to_owned();
            (
                text("selected_platform"),
                text("outcome"),
                text("output_tail"),
                emulated,
            )
        })
        .collect();
    let row = |platform: &str, arch: &str, emulated| {
        let output = format!("hello from {arch}\n");
        (platform.to_owned(), "passed".to_owned(), output, emulated)
    };
    assert_eq!(
        told,
        [
            row("linux/amd64", "amd64", false),
            row("linux/arm64", "arm64", true),
            row("linux/arm/v7", "arm", true),
        ]
    );
    // Nothing emulates this one.
    let other = image::only_s390x();
    let reference = format!("oci:{}", other.path().display());
    let args = [reference.as_str(), "--platform", "linux/s390x"];
    machine
        .edgepull("smoke")
        .args(args)
        .run()
        .fails(10, "not_runnable");
}

/// The very script, with a project's images: one is not published for arm64, one is broken.
#[test]
fn the_recipe_for_ci_finds_what_is_missing_and_what_is_broken() {
    let machine = Emulating::start(Version::V2);
    let registry = Registry::start();
    let push = |layout: &image::Layout, tag: &str| {
        layout.push(&registry, "latest", "akraino/validation", tag);
        registry.reference("akraino/validation", tag)
    };
    let whole = push(&image::akraino(true), "os-latest");
    let half = push(&image::akraino(false), "mysql-latest");
    let broken = push(
        &image::program(&["/bin/sh", "-c", "exit 7"], &[]),
        "ui-latest",
    );
    let dir = Lab::get().run_dir("ci");
    let validate = |list: &str, code: i32| {
        let file = dir.path().join("images.txt");
        fs::write(&file, list).unwrap();
        let reports = dir.path().join("reports");
        let _none = fs::remove_dir_all(&reports);
        let script = Lab::get().workspace().join("examples/ci/validate.sh");
        let run = machine
            .call(&script)
            .arg(&file)
            .arg(&reports)
            .env("EDGEPULL", Lab::get().edgepull())
            .env("CONTAINERD_ADDRESS", machine.address())
            .env("CONTAINERD_NAMESPACE", NAMESPACE)
            .run()
            .exits(code);
        let mut files: Vec<_> = fs::read_dir(&reports).unwrap().flatten().collect();
        files.sort_by_key(fs::DirEntry::file_name);
        let all: String = files
            .iter()
            .map(|file| fs::read_to_string(file.path()).unwrap())
            .collect();
        (run.text(), all)
    };
    let both = "linux/amd64 linux/arm64";
    let (text, reports) = validate(
        &format!(
            "# a remark\n{whole} {both}\n\n{whole} linux/arm64 timeout=50s -- /bin/true # again\n"
        ),
        0,
    );
    assert_eq!(
        text.matches("\npassed ").count(),
        3 + 2,
        "with the table: {text}"
    );
    assert!(
        reports.contains("tests=\"1\" failures=\"0\" errors=\"0\""),
        "{reports}"
    );
    let (text, reports) = validate(&format!("{half} {both}\n{whole} {both}\n"), 3);
    assert!(text.contains("platform_missing"), "{text}");
    assert!(
        reports.contains("<error type=\"platform_missing\""),
        "{reports}"
    );
    assert!(
        reports.contains("tests=\"2\" failures=\"0\" errors=\"1\""),
        "{reports}"
    );
    let (_, reports) = validate(&format!("{broken} linux/amd64"), 12);
    assert!(
        reports.contains("<failure type=\"smoke_failed\" message=\"exit code 7\">"),
        "{reports}"
    );
    validate(&format!("{whole} nonsense\n"), 2);
}
