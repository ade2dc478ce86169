//! `pull`: the report, what is in the store afterwards, and that the image runs.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use edgepull_tests::containerd::{Containerd, Version};
use edgepull_tests::edgepull::Edgepull;
use edgepull_tests::faulty::{Auth, Faulty, Kind};
use edgepull_tests::http;
use edgepull_tests::image::{self, ARM64, Layout, host};
use edgepull_tests::on_each_containerd;
use edgepull_tests::registry::{PASSWORD, Registry, USER};
use edgepull_tests::scene::{NAMESPACE, Scene, greeting};
use serde_json::{Value, json};

fn the_report_is_complete_and_the_image_runs(version: Version) {
    let scene = Scene::new(version, image::hello());
    let report = scene.pull();
    for key in [
        "schema",
        "reference",
        "platform",
        "selected_platform",
        "namespace",
        "snapshotter",
        "index_digest",
        "manifest_digest",
        "status",
        "verdict",
        "bytes",
        "requests",
        "duration_ms",
        "warnings",
        "error",
    ] {
        assert!(report.get(key).is_some(), "no {key}: {report}");
    }
    assert_eq!(report["status"], "pulled");
    assert_eq!(report["reference"], scene.reference.as_str());
    assert_eq!(report["selected_platform"], host().to_string());
    assert_eq!(report["namespace"], NAMESPACE);
    assert_eq!(report["snapshotter"], "overlayfs");
    assert_eq!(report["index_digest"], scene.top());
    assert_eq!(report["manifest_digest"], scene.manifest());
    assert_eq!(report["error"], Value::Null);
    // Until there is evidence from the bytes, the label decides.
    assert!(
        matches!(report["verdict"].as_str(), Some("native" | "unknown")),
        "{report}"
    );

    let wanted = scene.wanted_blobs(&host());
    let size: u64 = wanted
        .iter()
        .map(|digest| {
            std::fs::metadata(scene.layout().blob_path(digest))
                .unwrap()
                .len()
        })
        .sum();
    assert_eq!(report["bytes"]["downloaded"], size, "each byte once");
    assert_eq!(report["bytes"]["resumed"], 0);
    assert_eq!(report["bytes"]["reused"], 0);
    assert!(report["bytes"]["written"].as_u64().unwrap() >= size);
    let asked = scene.registry.requests().len();
    assert_eq!(report["requests"], asked, "{}", scene.registry.transcript());

    assert_eq!(
        scene.daemon.blobs(NAMESPACE),
        wanted,
        "and nothing of other platforms"
    );
    assert_eq!(scene.daemon.images(NAMESPACE), [scene.reference.as_str()]);
    assert!(scene.daemon.leases(NAMESPACE).is_empty());
    scene.greets();
}

type Shape = (&'static str, fn() -> Layout);

fn every_shape_of_index_can_be_pulled(version: Version) {
    let shapes: [Shape; 7] = [
        ("docker types", image::docker_types),
        ("attested", image::attested),
        ("nested", image::nested),
        ("with an artifact", image::zephyr),
        ("no platform in the entry", image::bare_config_only),
        ("a single manifest", || image::hello_single(host())),
        ("windows first", image::windows),
    ];
    for (name, layout) in shapes {
        if name == "windows first" && host() != image::AMD64 {
            continue; // that sample's linux image is for amd64
        }
        let scene = Scene::new(version, layout());
        let report = scene.pull();
        assert_eq!(report["status"], "pulled", "{name}");
        if name == "a single manifest" {
            assert_eq!(report["index_digest"], Value::Null);
        }
        scene.greets();
    }
}

fn a_tricky_image_runs(version: Version) {
    let scene = Scene::new(version, image::tricky());
    scene.pull();
    scene.greets();
    let script = "ls /keep /hidden; stat -c %a:%u:%g:%n /sticky /bin/suid; \
                  stat -c %h /links/one; cat /links/soft";
    let ran = scene
        .daemon
        .run(NAMESPACE, &scene.reference, &["/bin/sh", "-c", script]);
    assert_eq!(
        ran.ok().text(),
        "/hidden:\nnew\n\n/keep:\nstays\n1777:5:6:/sticky\n4755:7:8:/bin/suid\n2\nnow a file"
    );
}

fn a_digest_can_be_pulled(version: Version) {
    let scene = Scene::new(version, image::hello());
    let repository = scene.reference.rsplit_once(':').unwrap().0;
    let by_digest = format!("{repository}@{}", scene.top());
    let report = scene.verb("pull").arg(&by_digest).run().exits(0).element();
    assert_eq!(report["index_digest"], scene.top());
    assert_eq!(scene.daemon.images(NAMESPACE), [by_digest.as_str()]);
    assert_eq!(
        scene.daemon.run(NAMESPACE, &by_digest, &[]).ok().text(),
        greeting()
    );
    // A tag beside a digest is dropped from the name, as every client does.
    let both = format!("{}@{}", scene.reference, scene.top());
    scene.verb("pull").arg(&both).run().exits(0);
    assert_eq!(scene.daemon.images(NAMESPACE), [by_digest.as_str()]);
}

fn a_missing_platform_is_exit_3_and_nothing_is_fetched(version: Version) {
    let scene = Scene::new(version, image::only_s390x());
    let error = scene.pull_with(&[]).fails(3, "platform_missing");
    assert_eq!(error["reference"], scene.reference.as_str());
    assert_eq!(error["offered"], json!(["linux/s390x"]));
    assert_eq!(error["wanted"][0], host().to_string());
    assert!(
        error["hint"].as_str().is_some_and(|hint| !hint.is_empty()),
        "{error}"
    );
    assert_eq!(error["retryable"], false);
    assert_eq!(
        scene.registry.count("GET", &Kind::Blob),
        0,
        "{}",
        scene.registry.transcript()
    );
    assert!(scene.daemon.images(NAMESPACE).is_empty());
    assert!(scene.daemon.leases(NAMESPACE).is_empty());
}

fn all_platforms_can_be_pulled(version: Version) {
    let scene = Scene::new(version, image::hello());
    let run = scene.pull_with(&["--all-platforms"]).exits(0);
    for element in run.elements() {
        assert_eq!(element["status"], "pulled", "{element}");
    }
    assert_eq!(scene.daemon.blobs(NAMESPACE), scene.layout().blobs());
    scene.greets();
    scene.daemon.collect_garbage(NAMESPACE);
    assert_eq!(scene.daemon.blobs(NAMESPACE), scene.layout().blobs());
}

on_each_containerd!(
    the_report_is_complete_and_the_image_runs,
    every_shape_of_index_can_be_pulled,
    a_tricky_image_runs,
    a_digest_can_be_pulled,
    a_missing_platform_is_exit_3_and_nothing_is_fetched,
    all_platforms_can_be_pulled,
);

#[test]
fn one_missing_platform_does_not_stop_the_others() {
    let scene = Scene::new(Version::V1_7, image::hello());
    let bad = Faulty::start(image::only_s390x(), []);
    let bad = bad.reference("lab/app", "latest");
    let call = scene.verb("pull").arg(&bad).arg(&scene.reference);
    let elements = call.run().exits(3).elements();
    assert_eq!(elements.len(), 2);
    assert_eq!(elements[0]["status"], "failed");
    assert_eq!(elements[1]["status"], "pulled");
    scene.greets();
}

#[test]
fn another_platform_is_taken_when_it_is_asked_for() {
    if host() == ARM64 {
        return; // not another one
    }
    let scene = Scene::new(Version::V2, image::hello());
    let report = scene
        .pull_with(&["--platform", "linux/arm64"])
        .exits(0)
        .element();
    assert_eq!(report["platform"], "linux/arm64");
    assert_eq!(report["selected_platform"], "linux/arm64");
    let manifest = scene.layout().manifest("latest", &ARM64);
    assert_eq!(report["manifest_digest"], manifest);
    assert_eq!(scene.daemon.blobs(NAMESPACE), scene.wanted_blobs(&ARM64));
    let mut chain = scene.layout().chain(&manifest);
    chain.sort();
    let names: Vec<String> = scene
        .daemon
        .snapshots(NAMESPACE)
        .into_iter()
        .map(|s| s.0)
        .collect();
    assert_eq!(names, chain);
}

#[test]
fn several_platforms_give_one_element_each() {
    let scene = Scene::new(Version::V1_7, image::hello());
    let args = ["--platform", "linux/amd64", "--platform", "linux/arm/v7"];
    let elements = scene.pull_with(&args).exits(0).elements();
    assert_eq!(elements.len(), 2);
    assert_eq!(elements[0]["platform"], "linux/amd64");
    assert_eq!(elements[1]["platform"], "linux/arm/v7");
}

#[test]
fn exactly_the_asked_variant_is_taken_unless_fallback_is_allowed() {
    let scene = Scene::new(Version::V1_7, image::hello());
    scene
        .pull_with(&["--platform", "linux/amd64/v3"])
        .fails(3, "platform_missing");
    scene
        .pull_with(&["--platform", "linux/amd64/v3,fallback"])
        .exits(0);
}

#[test]
fn unpacking_can_be_left_out() {
    let scene = Scene::new(Version::V1_7, image::hello());
    scene.pull_with(&["--no-unpack"]).exits(0);
    assert!(scene.daemon.snapshots(NAMESPACE).is_empty());
    assert_eq!(scene.daemon.blobs(NAMESPACE), scene.wanted_blobs(&host()));
    // What was left out can be made up for.
    scene.pull();
    assert_eq!(scene.daemon.snapshots(NAMESPACE).len(), 3);
    scene.greets();
}

#[test]
fn an_artifact_is_delivered_as_its_file() {
    let scene = Scene::new(Version::V2, image::zephyr());
    let call = scene.verb("pull").arg(&scene.reference);
    let dir = call.home().join("out");
    let call = call
        .args(["--platform", "zephyr/arm/v7", "--artifact-dir"])
        .arg(&dir);
    let started = call.start();
    let (run, file) = started.wait_and(|| std::fs::read(dir.join("service.json")));
    let report = run.exits(0).element();
    assert_eq!(report["selected_platform"], "zephyr/arm/v7");
    let manifest = scene
        .layout()
        .json(report["manifest_digest"].as_str().unwrap());
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    assert_eq!(file.unwrap(), scene.layout().read(layer));
    assert!(
        scene.daemon.snapshots(NAMESPACE).is_empty(),
        "never unpacked"
    );
}

#[test]
fn progress_can_be_json_lines() {
    let scene = Scene::new(Version::V1_7, image::hello());
    let run = scene.pull_with(&["--progress", "json"]).exits(0);
    assert!(!run.output.stderr.is_empty());
    for line in run.output.stderr.lines() {
        let value: Result<Value, _> = serde_json::from_str(line);
        assert!(value.is_ok(), "{line}");
    }
    let quiet = scene.pull_with(&["--progress", "none"]).exits(0);
    assert!(
        quiet.output.stderr.is_empty(),
        "{}",
        quiet.output.transcript()
    );
}

/// Each way to give credentials, and what a registry with basic authentication says to none.
#[test]
fn credentials_come_from_where_the_contract_says() {
    let registry = Registry::start_with_password();
    image::hello().push(&registry, "latest", "lab/secret", "1");
    let reference = registry.reference("lab/secret", "1");
    let auth = json!({"auths": {
        registry.host(): {"auth": http::base64(format!("{USER}:{PASSWORD}").as_bytes())},
    }})
    .to_string();
    let inspect = || Edgepull::new(["inspect", &reference]).json();

    inspect().run().fails(20, "unauthorized");
    let wrong = inspect().args(["--creds", "edge:wrong"]).run();
    let error = wrong.fails(20, "unauthorized");
    assert!(
        !error.to_string().contains("wrong"),
        "a password in a message: {error}"
    );
    inspect()
        .args(["--creds", &format!("{USER}:{PASSWORD}")])
        .run()
        .exits(0);

    let call = inspect();
    let file = call.home().join("auth.json");
    std::fs::write(&file, &auth).unwrap();
    call.arg("--authfile").arg(&file).run().exits(0);
    let call = inspect();
    let file = call.home().join("auth.json");
    std::fs::write(&file, &auth).unwrap();
    call.env("REGISTRY_AUTH_FILE", &file).run().exits(0);
    inspect().env("DOCKER_AUTH_CONFIG", &auth).run().exits(0);
    let call = inspect();
    // DOCKER_CONFIG is this call's home.
    std::fs::write(call.home().join("config.json"), &auth).unwrap();
    call.run().exits(0);
    let call = inspect();
    let dir = call.home().join("creds");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("registry-auth.json"), &auth).unwrap();
    call.env("CREDENTIALS_DIRECTORY", &dir).run().exits(0);
}

#[test]
fn a_token_is_fetched_and_used() {
    let daemon = Containerd::start(Version::V1_7);
    for (user, args) in [
        (None, vec![]),
        (
            Some(("edge".to_owned(), "secret".to_owned())),
            vec!["--creds", "edge:secret"],
        ),
    ] {
        let registry = Faulty::start_with(image::hello(), Auth::Bearer(user), []);
        let reference = registry.reference("lab/app", "latest");
        let call = Edgepull::new(["pull", &reference])
            .json()
            .on(&daemon, NAMESPACE);
        call.args(args).run().exits(0);
        let tokens = registry.count("GET", &Kind::Token) + registry.count("POST", &Kind::Token);
        assert!((1..=2).contains(&tokens), "{}", registry.transcript());
    }
}
