//! A second pull of what is here: one request, no byte written.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use edgepull_tests::containerd::{Containerd, Version};
use edgepull_tests::edgepull::Edgepull;
use edgepull_tests::faulty::{Auth, Faulty, Kind};
use edgepull_tests::image;
use edgepull_tests::on_each_containerd;
use edgepull_tests::scene::{NAMESPACE, Scene};
use serde_json::Value;

#[track_caller]
fn is_warm(report: &Value) {
    assert_eq!(report["status"], "present", "{report}");
    assert_eq!(report["error"], Value::Null);
    for key in ["downloaded", "resumed", "written"] {
        assert_eq!(report["bytes"][key], 0, "{key}: {report}");
    }
}

fn one_request_tells_that_nothing_changed(version: Version) {
    let scene = Scene::new(version, image::hello());
    scene.pull();
    let records = scene.daemon.image_records(NAMESPACE);
    scene.registry.forget();
    let report = scene.pull();
    is_warm(&report);
    assert_eq!(report["index_digest"], scene.top());
    assert_eq!(report["manifest_digest"], scene.manifest());
    let asked = scene.registry.content_requests();
    assert!(asked.len() <= 1, "{}", scene.registry.transcript());
    assert_eq!(report["requests"], scene.registry.requests().len());
    assert_eq!(scene.daemon.image_records(NAMESPACE), records);
    assert!(scene.daemon.leases(NAMESPACE).is_empty());
}

fn a_digest_that_is_here_needs_no_content(version: Version) {
    let scene = Scene::new(version, image::hello());
    let repository = scene.reference.rsplit_once(':').unwrap().0;
    let by_digest = format!("{repository}@{}", scene.top());
    scene.verb("pull").arg(&by_digest).run().exits(0);
    scene.registry.forget();
    let report = scene.verb("pull").arg(&by_digest).run().exits(0).element();
    is_warm(&report);
    assert!(
        scene.registry.content_requests().len() <= 1,
        "{}",
        scene.registry.transcript()
    );
}

/// One HEAD for each of a hundred images in one call; the registry wants tokens, and after the
/// first image everybody knows that.
#[test]
fn a_hundred_images_cost_a_hundred_heads() {
    const IMAGES: usize = 100;
    let daemon = Containerd::start(Version::V1_7);
    let registry = Faulty::start_with(image::hello(), Auth::Bearer(None), []);
    let references: Vec<String> = (0..IMAGES)
        .map(|n| registry.reference(&format!("lab/app{n}"), "latest"))
        .collect();
    let pull = || {
        let call = Edgepull::new(["pull"]).json().on(&daemon, NAMESPACE);
        call.args(&references).run().exits(0).elements()
    };
    assert_eq!(pull().len(), IMAGES);
    registry.forget();
    let reports = pull();
    assert_eq!(reports.len(), IMAGES);
    reports.iter().for_each(is_warm);
    let asked = registry.requests();
    let content: Vec<_> = asked.iter().filter(|request| !request.is_auth()).collect();
    assert!(content.iter().all(|request| request.method == "HEAD"));
    assert_eq!(content.len(), IMAGES, "{}", registry.transcript());
    let tokens = registry.count("GET", &Kind::Token);
    assert!(tokens <= IMAGES, "{tokens} tokens");
    let challenges = asked.iter().filter(|request| request.status == 401).count();
    assert!(challenges <= 1, "{challenges} were asked without a token");
}

fn what_ctr_pulled_is_ours(version: Version) {
    let scene = Scene::new(version, image::hello());
    scene.daemon.pull(NAMESPACE, &scene.reference).ok();
    scene.registry.forget();
    let report = scene.pull();
    is_warm(&report);
    assert!(
        scene.registry.content_requests().len() <= 1,
        "{}",
        scene.registry.transcript()
    );
}

fn what_we_pulled_is_theirs(version: Version) {
    let scene = Scene::new(version, image::hello());
    scene.pull();
    scene.registry.forget();
    scene.daemon.pull(NAMESPACE, &scene.reference).ok();
    assert_eq!(
        scene.registry.blob_bytes(),
        0,
        "{}",
        scene.registry.transcript()
    );
}

on_each_containerd!(
    one_request_tells_that_nothing_changed,
    a_digest_that_is_here_needs_no_content,
    what_ctr_pulled_is_ours,
    what_we_pulled_is_theirs,
);

#[test]
fn authentication_does_not_count_but_nothing_else_may_come_with_it() {
    let user = ("edge".to_owned(), "secret".to_owned());
    for auth in [
        Auth::Bearer(Some(user.clone())),
        Auth::Basic(user.0.clone(), user.1.clone()),
    ] {
        let registry = Faulty::start_with(image::hello(), auth, []);
        let daemon = Containerd::start(Version::V1_7);
        let reference = registry.reference("lab/app", "latest");
        let pull = || {
            let call = Edgepull::new(["pull", &reference])
                .json()
                .on(&daemon, NAMESPACE);
            call.args(["--creds", "edge:secret"])
                .run()
                .exits(0)
                .element()
        };
        pull();
        registry.forget();
        is_warm(&pull());
        assert!(
            registry.content_requests().len() <= 1,
            "{}",
            registry.transcript()
        );
        assert!(registry.requests().len() <= 4, "{}", registry.transcript());
    }
}

/// The tag moved: only what is new is fetched.
#[test]
fn a_moved_tag_costs_what_changed() {
    let layout = image::hello();
    let old = layout.find("latest").unwrap();
    layout.tag("v1", old);
    let scene = Scene::new(Version::V2, layout);
    scene.pull();
    // The attested image has the same layers under another index.
    let other = image::attested();
    for digest in other.blobs() {
        scene.layout().put(&other.read(&digest));
    }
    scene.layout().tag("latest", other.find("latest").unwrap());
    scene.registry.forget();
    let report = scene.pull();
    assert_eq!(report["status"], "pulled");
    assert_eq!(report["index_digest"], other.digest("latest"));
    let size = other.read(&other.digest("latest")).len();
    assert_eq!(
        report["bytes"]["downloaded"], size,
        "the index alone is new: {report}"
    );
}
