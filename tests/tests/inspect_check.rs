//! `inspect`, `explain`, `check`: what a reference offers, and what of it is for this host.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use edgepull_tests::edgepull::{Edgepull, Run};
use edgepull_tests::faulty::{Faulty, Kind};
use edgepull_tests::image::{self, ARM64, HELLO, Layout, host, media};
use edgepull_tests::tools::Lab;
use serde_json::Value;

fn inspect(reference: &str, args: &[&str]) -> Value {
    let call = Edgepull::new(["inspect", reference]).args(args).json();
    call.run().exits(0).document()
}

fn entries(document: &Value) -> &Vec<Value> {
    let all = document["entries"].as_array().unwrap();
    for entry in all {
        for key in ["digest", "size", "platform", "kind", "verdict", "reason"] {
            assert!(entry.get(key).is_some(), "no {key}: {entry}");
        }
    }
    all
}

fn column<'a>(document: &'a Value, key: &str) -> Vec<&'a str> {
    entries(document)
        .iter()
        .map(|entry| entry[key].as_str().unwrap_or(""))
        .collect()
}

fn serve(layout: Layout) -> (Faulty, String) {
    let registry = Faulty::start(layout, []);
    let reference = registry.reference("lab/app", "latest");
    (registry, reference)
}

#[test]
fn every_entry_of_an_index_is_judged() {
    let (registry, reference) = serve(image::hello());
    let document = inspect(&reference, &[]);
    assert_eq!(document["digest"], registry.layout().digest("latest"));
    assert_eq!(document["media_type"], media::INDEX);
    let wanted: Vec<String> = HELLO.iter().map(ToString::to_string).collect();
    assert_eq!(column(&document, "platform"), wanted);
    assert_eq!(column(&document, "kind"), ["image"; 3]);
    let manifest = registry.layout().manifest("latest", &host());
    assert_eq!(document["selected"], manifest.as_str());
    assert_eq!(document["selected_leaf"], manifest.as_str());
    for entry in entries(&document) {
        if entry["digest"] == manifest.as_str() {
            assert_eq!(entry["verdict"], "selected");
        } else {
            let verdict = entry["verdict"].as_str().unwrap();
            assert!(
                matches!(verdict, "foreign" | "emulated" | "runnable"),
                "{entry}"
            );
            assert!(
                entry["reason"].as_str().is_some_and(|r| !r.is_empty()),
                "{entry}"
            );
        }
    }
    assert_eq!(
        registry.count("GET", &Kind::Blob),
        0,
        "layers are not touched"
    );
}

#[test]
fn another_platform_can_be_asked_for() {
    let (registry, reference) = serve(image::hello());
    let document = inspect(&reference, &["--platform", "linux/aarch64"]);
    let wanted = registry.layout().manifest("latest", &ARM64);
    assert_eq!(document["selected"], wanted.as_str());
}

#[test]
fn attestations_are_named_and_never_chosen() {
    let (_registry, reference) = serve(image::attested());
    let document = inspect(&reference, &[]);
    assert_eq!(
        column(&document, "kind"),
        ["image", "image", "attestation", "attestation"]
    );
    assert_eq!(column(&document, "verdict")[2..], ["skipped", "skipped"]);
}

#[test]
fn an_artifact_for_another_system_is_not_an_image_for_this_one() {
    let (_registry, reference) = serve(image::zephyr());
    let document = inspect(&reference, &["--platform", "linux/arm/v7"]);
    assert_eq!(
        column(&document, "kind"),
        ["image", "image", "image", "artifact"]
    );
    assert_eq!(column(&document, "platform")[3], "zephyr/arm/v7");
    assert_eq!(document["selected"], entries(&document)[2]["digest"]);
    let document = inspect(&reference, &["--platform", "zephyr/armv7"]);
    assert_eq!(document["selected"], entries(&document)[3]["digest"]);
}

#[test]
fn a_nested_index_is_followed() {
    let (registry, reference) = serve(image::nested());
    let document = inspect(&reference, &[]);
    let outer = registry.layout().json(&registry.layout().digest("latest"));
    let inner = outer["manifests"][0]["digest"].as_str().unwrap();
    assert_eq!(document["selected"], inner);
    let leaf = document["selected_leaf"].as_str().unwrap();
    let config = registry.layout().json(leaf)["config"]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(registry.layout().json(&config)["architecture"], host().arch);
}

#[test]
fn windows_entries_are_foreign() {
    let (_registry, reference) = serve(image::windows());
    let document = inspect(&reference, &["--platform", "linux/amd64"]);
    assert_eq!(
        column(&document, "verdict"),
        ["foreign", "foreign", "selected"]
    );
}

#[test]
fn docker_lists_and_single_manifests_read_the_same() {
    let (registry, reference) = serve(image::docker_types());
    let document = inspect(&reference, &[]);
    assert_eq!(document["media_type"], media::DOCKER_LIST);
    assert_eq!(
        document["selected"],
        registry.layout().manifest("latest", &host())
    );

    let (registry, reference) = serve(image::hello_single(host()));
    let document = inspect(&reference, &[]);
    assert_eq!(document["digest"], registry.layout().digest("latest"));
    assert_eq!(document["media_type"], media::MANIFEST);
    assert_eq!(document["selected_leaf"], document["digest"]);
}

#[test]
fn nothing_for_this_host_is_still_a_readable_document() {
    let (_registry, reference) = serve(image::only_s390x());
    let document = inspect(&reference, &[]);
    assert_eq!(document["selected"], Value::Null);
    assert_eq!(document["selected_leaf"], Value::Null);
    assert_eq!(column(&document, "verdict"), ["foreign"]);
}

#[test]
fn layouts_and_archives_are_references_too() {
    let layout = image::hello();
    let dir = Lab::get().run_dir("arc");
    let archive = dir.path().join("hello.tar");
    layout.archive(&archive);
    let manifest = layout.manifest("latest", &host());
    for reference in [
        format!("oci:{}:latest", layout.path().display()),
        format!("oci:{}", layout.path().display()),
        format!(
            "oci:{}@{}",
            layout.path().display(),
            layout.digest("latest")
        ),
        format!("oci-archive:{}", archive.display()),
    ] {
        let document = inspect(&reference, &[]);
        assert_eq!(document["selected"], manifest.as_str(), "{reference}");
    }
}

#[test]
fn explain_tells_a_person() {
    let (_registry, reference) = serve(image::hello());
    let run = Edgepull::new(["explain", &reference]).run().exits(0);
    for platform in HELLO {
        assert!(
            run.text().contains(&platform.to_string()),
            "{}",
            run.output.transcript()
        );
    }
}

fn check(args: &[&str]) -> Run {
    Edgepull::new(["check"]).args(args).json().run()
}

#[test]
fn check_says_yes() {
    let (registry, reference) = serve(image::hello());
    let element = check(&[&reference]).exits(0).element();
    assert_eq!(element["ok"], true);
    assert_eq!(element["error"], Value::Null);
    assert_eq!(element["reference"], reference.as_str());
    // The contract does not say which of the two.
    let manifest = registry.layout().manifest("latest", &host());
    let digest = element["digest"].as_str().unwrap();
    assert!(
        digest == manifest || digest == registry.layout().digest("latest"),
        "{element}"
    );
    assert!(element["schema"].is_string());
}

#[test]
fn check_says_which_platform_is_missing() {
    // The day the arm64 job broke, and the publisher's tool hid it.
    let (_registry, reference) = serve(image::akraino(false));
    let platforms = ["--platform", "linux/amd64", "--platform", "linux/arm64"];
    let run = check(&[&[reference.as_str()], &platforms[..]].concat()).exits(3);
    let elements = run.elements();
    assert_eq!(elements.len(), 2);
    assert_eq!(elements[0]["ok"], true);
    assert_eq!(elements[1]["ok"], false);
    assert_eq!(elements[1]["digest"], Value::Null);
    let error = &elements[1]["error"];
    assert_eq!(error["kind"], "platform_missing");
    assert_eq!(error["offered"], serde_json::json!(["linux/amd64"]));
    assert_eq!(error["wanted"], serde_json::json!(["linux/arm64"]));
}

#[test]
fn the_worst_of_several_is_the_exit_code() {
    let (registry, _) = serve(image::only_s390x());
    let missing = registry.reference("lab/app", "latest");
    let unknown = registry.reference("lab/app", "no-such-tag");
    let elements = check(&[&missing, &unknown]).exits(21).elements();
    assert_eq!(elements[0]["error"]["kind"], "platform_missing");
    assert_eq!(elements[1]["error"]["kind"], "not_found");
}

#[test]
fn check_takes_layouts() {
    let layout = image::hello();
    let reference = format!("oci:{}:latest", layout.path().display());
    let run = check(&[&reference, "--platform", "linux/arm/v7"]).exits(0);
    assert_eq!(run.element()["ok"], true);
    check(&[&reference, "--platform", "linux/riscv64"]).exits(3);
}
