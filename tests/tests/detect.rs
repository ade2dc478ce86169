//! `detect`: the truth about this host, in the shape that is promised.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::process::Command;

use edgepull_tests::containerd::{Containerd, Version};
use edgepull_tests::edgepull::Edgepull;
use edgepull_tests::image::host;
use edgepull_tests::on_each_containerd;
use edgepull_tests::process;
use edgepull_tests::tools::Lab;
use serde_json::Value;

fn printed(program: &str, args: &[&str]) -> String {
    let output = process::run(Command::new(program).args(args)).ok();
    output.text().trim().to_owned()
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_str().unwrap())
        .collect()
}

#[test]
fn the_document_has_every_field_and_agrees_with_the_machine() {
    let document = Edgepull::new(["detect"]).json().run().exits(0).document();
    assert_eq!(document["schema"], "edgepull.host/1");
    for key in [
        "platform",
        "os",
        "architecture",
        "variant",
        "userland",
        "kernel",
        "machine",
        "page_size",
        "aarch32_el0",
        "cpu_level",
        "runs",
        "selects",
        "engine",
        "evidence",
        "warnings",
    ] {
        assert!(document.get(key).is_some(), "no {key}: {document}");
    }
    assert_eq!(document["os"], "linux");
    assert_eq!(document["architecture"], host().arch);
    let pages: u64 = printed("getconf", &["PAGESIZE"]).parse().unwrap();
    assert_eq!(document["page_size"], pages);
    if host().arch == "amd64" {
        assert_eq!(
            document["aarch32_el0"], false,
            "no core of amd64 runs Arm code"
        );
        assert!(document["cpu_level"].is_string());
    }
    let runs = document["runs"].as_array().unwrap();
    assert_eq!(runs[0]["how"], "native");
    for run in runs {
        assert!(
            run["platform"].is_string() && run.get("interpreter").is_some(),
            "{run}"
        );
        assert!(
            matches!(
                run["how"].as_str(),
                Some("native" | "compat32" | "emulated")
            ),
            "{run}"
        );
    }
    let evidence = document["evidence"].as_array().unwrap();
    assert!(!evidence.is_empty());
    for row in evidence {
        for key in ["fact", "value", "source"] {
            assert!(row.get(key).is_some(), "no {key}: {row}");
        }
    }
}

#[test]
fn the_text_names_the_platform() {
    let run = Edgepull::new(["detect"]).run().exits(0);
    assert!(
        run.text().contains(&host().to_string()),
        "{}",
        run.output.transcript()
    );
    assert!(!run.text().contains('\u{1b}'), "no colour into a pipe");
}

fn the_engine_is_named(version: Version) {
    let daemon = Containerd::start(version);
    let run = Edgepull::new(["detect"])
        .json()
        .on(&daemon, "lab")
        .run()
        .exits(0);
    let document = run.document();
    let engine = &document["engine"];
    assert_eq!(engine["address"], daemon.address().to_str().unwrap());
    assert!(
        engine["version"]
            .as_str()
            .unwrap()
            .contains(&version.exact()),
        "{engine}"
    );
    assert_eq!(engine["platform"], host().to_string());
    let selects = strings(&document["selects"]);
    assert_eq!(selects[0], host().to_string());
    if host().arch == "amd64" {
        // containerd's own vector for amd64, less nothing: 386 is assumed unless disproved.
        assert!(
            selects == ["linux/amd64", "linux/386"] || selects == ["linux/amd64"],
            "{selects:?}"
        );
    }
}

on_each_containerd!(the_engine_is_named);

#[test]
fn a_recorded_host_is_judged_as_that_host() {
    let dir = Lab::get().run_dir("rec");
    let record = dir.path().join("host");
    Edgepull::new(["detect", "--record"])
        .arg(&record)
        .run()
        .exits(0);
    let live = Edgepull::new(["detect"]).json().run().exits(0).document();
    let recorded = Edgepull::new(["detect", "--sysroot"])
        .arg(&record)
        .json()
        .run()
        .exits(0)
        .document();
    for key in [
        "platform",
        "os",
        "architecture",
        "variant",
        "kernel",
        "page_size",
        "runs",
    ] {
        assert_eq!(recorded[key], live[key], "{key}");
    }
}
