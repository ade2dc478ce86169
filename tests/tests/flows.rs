//! Two publishers' flows from end to end, in the shapes that their tools write: FITA, whose
//! references hold images for gateways and an artifact for the devices behind them, and Akraino,
//! whose lists lose a platform without a word.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::fs;
use std::path::Path;
use std::process::Command;

use edgepull_tests::agent::{Agent, PATIENCE};
use edgepull_tests::containerd::{Containerd, Version};
use edgepull_tests::edgepull::Edgepull;
use edgepull_tests::faulty::{Action, Faulty, Kind, Rule};
use edgepull_tests::image::seeds::{self, ZEPHYR};
use edgepull_tests::image::{AMD64, ARM_V7, ARM64, Layout, Platform, digest_of, host};
use edgepull_tests::process::{self, wait_for};
use edgepull_tests::scene::NAMESPACE;
use edgepull_tests::target::Target;
use edgepull_tests::tools::Lab;
use serde_json::Value;

const REPOSITORY: &str = "fita/temperature_sensor";

fn fita() -> (Faulty, String, String) {
    let layout = Layout::new();
    let artifact = seeds::fita(&layout, "0.1.0");
    let registry = Faulty::start(layout, []);
    let reference = registry.reference(REPOSITORY, "latest");
    (registry, reference, artifact)
}

fn akraino(listed: &[Platform]) -> (Faulty, String) {
    let layout = Layout::new();
    seeds::akraino_layer(&layout, "os", listed);
    let registry = Faulty::start(layout, []);
    let reference = registry.reference("akraino/validation", "os-latest");
    (registry, reference)
}

fn recorded(name: &str) -> String {
    let workspace = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let dir = workspace.join("platform/tests/data/hosts").join(name);
    assert!(dir.is_dir(), "{}", dir.display());
    dir.display().to_string()
}

/// What skopeo finds for a platform in what we wrote; the manifest's digest.
fn skopeo(layout: &Layout, tag: &str, platform: Platform) -> String {
    let to = Lab::get().run_dir("skopeo");
    let mut call = Command::new(Lab::get().installed("skopeo"));
    call.args([
        "--override-os",
        platform.os,
        "--override-arch",
        platform.arch,
    ]);
    if !platform.variant.is_empty() {
        call.args(["--override-variant", platform.variant]);
    }
    call.args(["--insecure-policy", "copy", "--quiet"])
        .arg(format!("oci:{}:{tag}", layout.path().display()))
        .arg(format!("oci:{}:x", to.path().display()));
    process::run(&mut call).ok();
    Layout::at(to.path()).digest("x")
}

#[test]
fn the_shapes_are_those_of_their_tools_to_the_byte() {
    assert_eq!(
        digest_of(seeds::FITA_CONFIG.as_bytes()),
        "sha256:adba4503d29e172aaf92b9d0c81cff1db0dbc995171e7d9f40d3412514ec47b8"
    );
    // The list that manifest-tool makes of two of the published hello-world images.
    let list = seeds::akraino_list(&[
        (
            "sha256:7e9b6e7ba2842c91cf49f3e214d04a7a496f8214356f41d81a6e6dcad11f11e3",
            525,
            "amd64",
        ),
        (
            "sha256:efebf0f7aee69450f99deafe11121afa720abed733943e50581a9dc7540689c8",
            525,
            "arm64",
        ),
    ]);
    assert_eq!(
        digest_of(list.as_bytes()),
        "sha256:0807e28949843e1f4db3c1e484bdc7524196cee70720a142fe93db7190821a61"
    );
    // What we wrote is what other tools read.
    let layout = Layout::new();
    let artifact = seeds::fita(&layout, "0.1.0");
    assert_eq!(skopeo(&layout, "latest", ZEPHYR), artifact);
    for platform in [AMD64, ARM64, ARM_V7] {
        let expected = layout.manifest("latest", &platform);
        assert_eq!(skopeo(&layout, "latest", platform), expected, "{platform}");
    }
}

/// One reference: each kind of gateway gets its image, by its own program and as a recorded host.
#[test]
fn every_host_gets_its_own_of_fita_and_of_akraino() {
    let (fita_registry, fita, _) = fita();
    let (akraino_registry, akraino) = akraino(&[AMD64, ARM64]);
    let own = |registry: &Faulty, tag: &str, platform: Platform| {
        registry.layout().manifest(tag, &platform)
    };
    for (name, platform) in [
        ("pi4-armhf-on-64", ARM_V7),
        ("graviton4", ARM64),
        ("x86-v3", AMD64),
    ] {
        let dir = Lab::get().run_dir("store");
        let store = format!("oci:{}", dir.path().join("l").display());
        let pull = |reference: &str| {
            let args = ["--sysroot", &recorded(name), "pull", "--store", &store];
            Edgepull::new(args).json().arg(reference).run()
        };
        let found = pull(&fita).exits(0).element();
        let expected = own(&fita_registry, "latest", platform);
        assert_eq!(found["manifest_digest"], expected.as_str(), "{name}");
        let proven = |tag: &str| {
            let stored = format!("{store}:{tag}");
            let args = ["--sysroot", &recorded(name), "verify", &stored];
            let proof = Edgepull::new(args).json().run().exits(0).document();
            assert_ne!(proof["verdict"], "refused", "{name}: {proof}");
            assert!(!proof["chain"].as_array().unwrap().is_empty(), "{proof}");
        };
        proven("latest");
        if platform == ARM_V7 {
            // Akraino builds for two machines; this one is told what it would take.
            let error = pull(&akraino).fails(3, "platform_missing");
            assert_eq!(error["offered"].as_array().unwrap().len(), 2, "{error}");
            continue;
        }
        let found = pull(&akraino).exits(0).element();
        let expected = own(&akraino_registry, "os-latest", platform);
        assert_eq!(found["manifest_digest"], expected.as_str(), "{name}");
        proven("os-latest");
    }
    let daemon = Containerd::start(Version::V2);
    for (triple, platform) in [
        ("x86_64-unknown-linux-musl", AMD64),
        ("aarch64-unknown-linux-musl", ARM64),
        ("armv7-unknown-linux-musleabihf", ARM_V7),
    ] {
        let target = Target::named(triple);
        let text = platform.to_string();
        let call = target.edgepull(["pull", "--no-unpack", "--platform", &text]);
        let found = call.json().on(&daemon, NAMESPACE).arg(&fita).run();
        let found = found.exits(0).element();
        let expected = own(&fita_registry, "latest", platform);
        assert_eq!(found["manifest_digest"], expected.as_str(), "{triple}");
        let dir = Lab::get().run_dir("files");
        let call = target.edgepull(["pull", "--platform", "zephyr/armv7", "--artifact-dir"]);
        let call = call.arg(dir.path()).json().on(&daemon, NAMESPACE);
        call.arg(&fita).run().exits(0);
        assert_files(dir.path(), "0.1.0");
    }
    // The gateway runs what it got.
    let call = Edgepull::new(["pull", &fita]).json().on(&daemon, NAMESPACE);
    call.run().exits(0);
    let said = daemon.run(NAMESPACE, &fita, &[]).ok().text();
    assert_eq!(said.trim(), format!("hello from {}", host().arch));
    for reference in [&fita, &akraino] {
        let call = Edgepull::new(["smoke", reference]).json();
        let tried = call.on(&daemon, NAMESPACE).run().exits(0).element();
        assert_eq!(tried["outcome"], "passed", "{tried}");
        assert_eq!(tried["selected_platform"], host().to_string());
    }
}

fn assert_files(dir: &Path, version: &str) {
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    assert_eq!(read("service.json"), seeds::service(version));
    assert_eq!(read("config.json"), seeds::FITA_CONFIG);
}

fn pull_files(reference: &str, dir: &Path) -> Edgepull {
    Edgepull::new(["pull", "--platform", "zephyr/armv7", "--artifact-dir"])
        .arg(dir)
        .json()
        .arg(reference)
}

/// Without any engine: both files and a record of them; the second call is one HEAD.
#[test]
fn the_proxy_of_far_edge_devices_gets_both_files_and_pays_for_them_once() {
    let (registry, reference, artifact) = fita();
    let dir = Lab::get().run_dir("files");
    let dir = dir.path().join("deep/sensor");
    let found = pull_files(&reference, &dir).run().exits(0).element();
    assert_eq!(found["status"], "pulled");
    assert_eq!(found["manifest_digest"], artifact.as_str());
    assert_eq!(
        found["index_digest"],
        registry.layout().digest("latest").as_str()
    );
    assert_eq!(found["selected_platform"], "zephyr/arm/v7");
    assert_files(&dir, "0.1.0");
    let record: Value =
        serde_json::from_slice(&fs::read(dir.join(".edgepull.json")).unwrap()).unwrap();
    assert_eq!(record["schema"], "edgepull.artifact/1");
    assert_eq!(record["manifest_digest"], artifact.as_str());
    let names: Vec<&str> = record["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["service.json", "config.json"]);

    registry.forget();
    let again = pull_files(&reference, &dir).run().exits(0).element();
    assert_eq!(again["status"], "present");
    assert_eq!(again["bytes"]["downloaded"], 0);
    assert_eq!(again["files"], found["files"]);
    let requests = registry.content_requests();
    assert_eq!(requests.len(), 1, "{}", registry.transcript());
    assert_eq!(requests[0].method, "HEAD");

    // What was changed is mended, and only that is fetched.
    fs::write(dir.join("service.json"), "{}").unwrap();
    registry.forget();
    pull_files(&reference, &dir).run().exits(0);
    assert_files(&dir, "0.1.0");
    let service = digest_of(seeds::service("0.1.0").as_bytes());
    let blobs: Vec<_> = registry
        .requests()
        .into_iter()
        .filter(|r| r.kind == Kind::Blob && r.sent > 100)
        .collect();
    assert!(
        blobs.iter().all(|r| r.what == service),
        "{}",
        registry.transcript()
    );

    // A gateway's image needs its engine, whatever directory is named.
    let call = Edgepull::new(["pull", "--artifact-dir"])
        .arg(&dir)
        .json()
        .arg(&reference);
    call.run().fails(40, "containerd_unavailable");

    // A broken transfer leaves what was there.
    seeds::fita(registry.layout(), "0.2.0");
    let next = digest_of(seeds::service("0.2.0").as_bytes());
    registry.script([Rule::on(Kind::Blob, Action::status(404)).what(&next)]);
    pull_files(&reference, &dir).run().fails(21, "not_found");
    assert_files(&dir, "0.1.0");
    registry.script([]);
    pull_files(&reference, &dir).run().exits(0);
    assert_files(&dir, "0.2.0");
}

/// The manifest alone under a tag of its own, as `oras push` leaves it.
#[test]
fn a_single_artifact_needs_no_index() {
    let layout = Layout::new();
    let artifact = seeds::fita_artifact(&layout, "0.1.0");
    layout.tag(
        "0.1.0",
        artifact.descriptor("application/vnd.oci.image.manifest.v1+json"),
    );
    let registry = Faulty::start(layout, []);
    let reference = registry.reference("fita/services/temperature_sensor", "0.1.0");
    let dir = Lab::get().run_dir("files");
    let found = pull_files(&reference, dir.path()).run().exits(0).element();
    assert_eq!(found["manifest_digest"], artifact.digest.as_str());
    assert_eq!(found["index_digest"], Value::Null);
    assert_files(dir.path(), "0.1.0");
    // Its platform is in the config only, and counts.
    let other = Lab::get().run_dir("files");
    let call = Edgepull::new(["pull", "--platform", "zephyr/arm64", "--artifact-dir"]);
    let call = call.arg(other.path()).json().arg(&reference).run();
    call.fails(3, "platform_missing");
    // The directory is the artifact's.
    let (registry, reference, _) = fita();
    let error = pull_files(&reference, dir.path()).run().fails(2, "usage");
    assert!(
        error["causes"].to_string().contains("another artifact"),
        "{error}"
    );
    assert_files(dir.path(), "0.1.0");
    drop(registry);
}

/// Once for each change, over restarts, again until it ends well; no engine anywhere.
#[test]
fn the_daemon_keeps_files_fresh_and_calls_the_hook_until_it_succeeds() {
    let (registry, reference, first) = fita();
    let mut agent = Agent::alone();
    let (dir, calls, gate) = (agent.path("files"), agent.path("calls"), agent.path("gate"));
    let script = format!(
        "#!/bin/sh\necho \"$EDGEPULL_DIGEST $EDGEPULL_PLATFORM $1\" >>{}\n[ -e {} ] || {{ echo gate is closed; exit 7; }}\n",
        calls.display(),
        gate.display()
    );
    let hook = agent.path("hook");
    fs::write(&hook, script).unwrap();
    process::run(Command::new("chmod").arg("755").arg(&hook)).ok();
    agent.declare(
        "fita.toml",
        &format!(
            "[[image]]\nreference = \"{reference}\"\nplatforms = [\"zephyr/armv7\"]\n\
             artifact_dir = \"{}\"\nhook = [\"{}\", \"now\"]\nrefresh = \"1m\"\n",
            dir.display(),
            hook.display()
        ),
    );
    let called = || fs::read_to_string(&calls).unwrap_or_default();
    agent.start();
    let failed = agent.wait_state(&reference, "failed");
    assert_eq!(failed["error"]["kind"], "internal", "{failed:#}");
    let causes = failed["error"].to_string();
    assert!(causes.contains("was not done"), "{failed:#}");
    assert_files(&dir, "0.1.0");
    assert!(called().starts_with(&format!("{first} zephyr/arm/v7 now\n")));

    fs::write(&gate, "").unwrap();
    agent.call(["sync"]).run().exits(0);
    let ready = agent.wait_state(&reference, "ready");
    assert_eq!(ready["digest"], registry.layout().digest("latest").as_str());
    assert_eq!(ready["selected_platform"], "zephyr/arm/v7");
    let ready = agent.metric("edgepull_image_ready", &[&reference]);
    assert_eq!(ready, Some(1.0));
    let so_far = called();
    // Neither a look at the registry nor a restart is a change.
    agent.call(["sync"]).run().exits(0);
    agent.stop();
    agent.start();
    agent.call(["sync"]).run().exits(0);
    agent.wait_state(&reference, "ready");
    assert_eq!(called(), so_far);

    let second = seeds::fita(registry.layout(), "0.2.0");
    agent.call(["sync"]).run().exits(0);
    assert_files(&dir, "0.2.0");
    assert_eq!(called(), format!("{so_far}{second} zephyr/arm/v7 now\n"));
    // What goes comes back; what is not declared any more stays.
    fs::remove_file(dir.join("config.json")).unwrap();
    agent.call(["sync"]).run().exits(0);
    assert_files(&dir, "0.2.0");
    agent.undeclare("fita.toml");
    wait_for("nothing declared", PATIENCE, || {
        agent.image(&reference).is_none()
    });
    agent.call(["sync"]).run().exits(0);
    assert_files(&dir, "0.2.0");
    agent.stop();
}

/// The day an arm64 job broke: the list has amd64 alone, and nothing failed in CI.
#[test]
fn a_platform_that_was_dropped_is_reported_for_its_publisher() {
    let (registry, reference) = akraino(&[AMD64]);
    let check = Edgepull::new(["check", "--platform", "linux/arm64"]);
    let checked = check.json().arg(&reference).run();
    let error = checked.fails(3, "platform_missing");
    let dir = Lab::get().run_dir("store");
    let store = format!("oci:{}", dir.path().join("l").display());
    let host = recorded("graviton4");
    registry.forget();
    let call = Edgepull::new(["--sysroot", &host, "pull", "--store", &store]);
    let pulled = call.json().arg(&reference).run();
    let pulled = pulled.fails(3, "platform_missing");
    for error in [&error, &pulled] {
        assert_eq!(error["wanted"][0], "linux/arm64", "{error:#}");
        assert_eq!(error["offered"], serde_json::json!(["linux/amd64"]));
        let causes = error["causes"].to_string();
        assert!(causes.contains("without a word"), "{causes}");
        let hint = error["hint"].as_str().unwrap();
        assert!(hint.contains("built for linux/amd64 alone"), "{hint}");
        assert!(hint.contains("build it for linux/arm64"), "{hint}");
        assert!(
            hint.contains("akraino/validation:os-arm64-latest"),
            "{hint}"
        );
    }
    // It is there, and is nobody's choice but a person's.
    let asked = registry.requests();
    assert!(asked.iter().all(|r| r.what != "os-arm64-latest"));
    let single = registry.reference("akraino/validation", "os-arm64-latest");
    Edgepull::new(["check", "--platform", "linux/arm64", &single])
        .run()
        .exits(0);
    // A tag of one architecture is not guessed upon once more.
    let other = registry.reference("akraino/validation", "os-amd64-latest");
    let error = Edgepull::new(["check", "--platform", "linux/arm64", &other])
        .json()
        .run();
    let error = error.fails(3, "platform_missing");
    assert!(
        !error["hint"].as_str().unwrap().contains("os-amd64-arm64"),
        "{error}"
    );
}
