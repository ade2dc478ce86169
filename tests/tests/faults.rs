//! Registries that misbehave: success where it can be had, else the right kind and exit code.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::time::Duration;

use edgepull_tests::containerd::{Setup, Version};
use edgepull_tests::edgepull::Edgepull;
use edgepull_tests::faulty::{Action, Auth, Faulty, Kind, Rule};
use edgepull_tests::image::{self, digest_of, host, media};
use edgepull_tests::registry::{Registry, free_port};
use edgepull_tests::scene::{NAMESPACE, Scene};
use serde_json::Value;

const VERSION: Version = Version::V1_7;

fn scene(rules: impl IntoIterator<Item = Rule>) -> Scene {
    Scene::with(Setup::new(VERSION), image::hello(), rules)
}

fn header(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// The pull fails so, and leaves no record behind.
#[track_caller]
fn fails(rule: Rule, code: i32, kind: &str) -> Value {
    let scene = scene([rule]);
    let error = scene.pull_with(&[]).fails(code, kind);
    assert_eq!(error["registry"], scene.registry.host(), "{error}");
    assert!(scene.daemon.images(NAMESPACE).is_empty());
    error
}

/// The pull succeeds in spite of it, and the image runs.
#[track_caller]
fn copes(rules: impl IntoIterator<Item = Rule>) -> (Value, Scene) {
    let scene = scene(rules);
    let report = scene.pull();
    scene.greets();
    (report, scene)
}

#[test]
fn nobody_listens() {
    let reference = format!("127.0.0.1:{}/lab/app:1", free_port());
    let error = Edgepull::new(["inspect", &reference])
        .json()
        .run()
        .fails(23, "unavailable");
    assert_eq!(error["retryable"], true);
}

#[test]
fn no_such_host() {
    let call = Edgepull::new(["inspect", "no-such-registry.invalid/lab/app:1"]).json();
    call.run().fails(23, "unavailable");
}

#[test]
fn no_such_name_and_no_such_tag() {
    let registry = Registry::start();
    image::hello().push(&registry, "latest", "lab/app", "1");
    for reference in [
        registry.reference("lab/other", "1"),
        registry.reference("lab/app", "2"),
    ] {
        let run = Edgepull::new(["inspect", &reference]).json().run();
        let error = run.fails(21, "not_found");
        assert_eq!(error["reference"], reference.as_str());
    }
}

#[test]
fn a_pull_of_what_is_not_there() {
    fails(Rule::on(Kind::Tag, Action::status(404)), 21, "not_found");
}

#[test]
fn not_allowed() {
    fails(Rule::always(Action::status(401)), 20, "unauthorized");
    fails(Rule::on(Kind::Tag, Action::status(403)), 20, "unauthorized");
}

#[test]
fn the_token_is_refused() {
    let user = ("edge".to_owned(), "secret".to_owned());
    let registry = Faulty::start_with(image::hello(), Auth::Bearer(Some(user)), []);
    let reference = registry.reference("lab/app", "latest");
    for args in [&[][..], &["--creds", "edge:guess"]] {
        let run = Edgepull::new(["inspect", &reference])
            .args(args)
            .json()
            .run();
        let error = run.fails(20, "unauthorized");
        assert!(
            !error.to_string().contains("guess"),
            "a password in a message: {error}"
        );
    }
}

#[test]
fn too_many_requests() {
    let retry = vec![header("Retry-After", "1")];
    let always = Action::Answer(429, retry.clone(), Vec::new());
    fails(Rule::on(Kind::Tag, always.clone()), 22, "rate_limited");
    copes([Rule::on(Kind::Tag, always).times(1)]);
}

#[test]
fn the_registry_is_down() {
    fails(Rule::always(Action::status(503)), 23, "unavailable");
    fails(Rule::always(Action::Close), 23, "unavailable");
}

#[test]
fn the_registry_was_down_for_a_moment() {
    copes([Rule::on(Kind::Tag, Action::status(503)).times(1)]);
    copes([Rule::on(Kind::Blob, Action::status(500)).times(1)]);
    copes([Rule::on(Kind::Blob, Action::Close).times(1)]);
    copes([Rule::on(Kind::Blob, Action::Delay(Duration::from_millis(700))).times(2)]);
}

#[test]
fn a_manifest_that_is_no_json() {
    let body = Action::body(media::MANIFEST, "this is not a manifest");
    fails(Rule::on(Kind::Tag, body), 24, "invalid_content");
}

#[test]
fn a_login_page() {
    let page = Action::body(
        "text/html; charset=utf-8",
        "<!DOCTYPE html><html><head><title>Hotel Wi-Fi</title></head></html>",
    );
    // Somebody else answered: that is a network trouble, and the title tells whose.
    let error = fails(Rule::always(page), 23, "unavailable");
    assert!(error.to_string().contains("Hotel Wi-Fi"), "{error}");
}

#[test]
fn an_index_of_ten_megabytes() {
    let index = format!("{{\"schemaVersion\":2,\"x\":\"{}\"}}", "x".repeat(10 << 20));
    let scene = scene([Rule::on(Kind::Tag, Action::body(media::INDEX, index))]);
    let run = scene.verb("pull").arg(&scene.reference).weighed().run();
    let peak = run.peak_kib.unwrap();
    run.fails(24, "invalid_content");
    assert!(peak <= 32 << 10, "{peak} KiB");
    for request in scene.registry.requests() {
        assert!(
            request.method == "HEAD" || request.sent < 12 << 20,
            "not again and again"
        );
    }
}

#[test]
fn a_blob_that_is_not_what_its_digest_says() {
    fails(
        Rule::on(Kind::Blob, Action::FlipBit(200)),
        24,
        "invalid_content",
    );
    fails(Rule::on(Kind::Blob, Action::OneMore), 24, "invalid_content");
    fails(
        Rule::on(Kind::Manifest, Action::FlipBit(40)),
        24,
        "invalid_content",
    );
}

#[test]
fn one_flipped_bit_in_transit_is_fetched_again() {
    let layout = image::hello();
    let layer = layout.parts(&layout.manifest("latest", &host())).remove(2);
    let rule = Rule::on(Kind::Blob, Action::FlipBit(5000))
        .what(&layer)
        .times(1);
    let scene = Scene::with(Setup::new(VERSION), layout, [rule]);
    let run = scene.pull_with(&[]);
    if run.output.code != Some(0) {
        run.fails(24, "invalid_content");
        // No bad bytes may stay in the way of the next try.
        scene.pull();
    }
    scene.greets();
}

#[test]
fn a_digest_reference_with_another_body() {
    let layout = image::hello();
    let top = layout.digest("latest");
    let other = layout.read(&layout.manifest("latest", &host()));
    let lie = Action::body(media::INDEX, other);
    let scene = Scene::with(Setup::new(VERSION), layout, [Rule::on(Kind::Manifest, lie)]);
    let repository = scene.reference.rsplit_once(':').unwrap().0;
    let by_digest = format!("{repository}@{top}");
    scene
        .verb("pull")
        .arg(&by_digest)
        .run()
        .fails(24, "invalid_content");
}

#[test]
fn a_tag_whose_digest_header_lies() {
    // The body's own hash counts, and the report says that something is odd.
    let lie = Action::DigestHeader(Some(digest_of(b"something else")));
    let (report, scene) = copes([Rule::on(Kind::Tag, lie)]);
    assert_eq!(report["index_digest"], scene.top());
    assert!(
        !report["warnings"].as_array().unwrap().is_empty(),
        "{report}"
    );
}

#[test]
fn a_body_that_is_always_cut() {
    // Nothing at all: a byte per request would be progress, and resuming would get there.
    let scene = scene([Rule::on(Kind::Blob, Action::Truncate(0))]);
    let run = scene.pull_with(&[]);
    let code = run.output.code;
    assert!(matches!(code, Some(23 | 24)), "{}", run.output.transcript());
    let kind = if code == Some(23) {
        "unavailable"
    } else {
        "invalid_content"
    };
    run.fails(code.unwrap(), kind);
    assert!(scene.daemon.images(NAMESPACE).is_empty());
}

#[test]
fn a_body_that_is_cut_once_is_resumed() {
    let layout = image::hello();
    let layer = layout.parts(&layout.manifest("latest", &host())).remove(2);
    let size = layout.read(&layer).len() as u64;
    for cut in [Action::Truncate(size / 2), Action::Stall(size / 2)] {
        let rule = Rule::on(Kind::Blob, cut).what(&layer).times(1);
        let (report, scene) = copes([rule]);
        let sent: u64 = scene
            .registry
            .requests()
            .iter()
            .filter(|request| request.what == layer)
            .map(|request| request.sent)
            .sum();
        assert!(
            sent <= size + (64 << 10),
            "{report}\n{}",
            scene.registry.transcript()
        );
    }
}

#[test]
fn a_resume_that_the_registry_ignores() {
    let layout = image::hello();
    let layer = layout.parts(&layout.manifest("latest", &host())).remove(2);
    let size = layout.read(&layer).len() as u64;
    copes([
        Rule::on(Kind::Blob, Action::Truncate(size / 2))
            .what(&layer)
            .times(1),
        Rule::on(Kind::Blob, Action::IgnoreRange).what(&layer),
    ]);
}

#[test]
fn odd_but_usable_answers() {
    copes([Rule::on(Kind::Tag, Action::status(405)).method("HEAD")]);
    copes([Rule::on(Kind::Tag, Action::BareHead).method("HEAD")]);
    copes([Rule::always(Action::DigestHeader(None))]);
    copes([Rule::always(Action::Chunked)]);
    let odd = |kind: &str| Rule::on(Kind::Tag, Action::ContentType(Some(kind.into())));
    copes([odd("application/json; charset=utf-8")]);
    copes([odd("text/plain")]);
    copes([Rule::always(Action::ContentType(None))]);
}

#[test]
fn schema_1_is_not_supported() {
    let scene = Scene::new(VERSION, image::schema1());
    let error = scene.pull_with(&[]).fails(25, "unsupported");
    assert_eq!(error["retryable"], false);
    Edgepull::new(["inspect", &scene.reference])
        .json()
        .run()
        .fails(25, "unsupported");
}

#[test]
fn blobs_may_be_elsewhere_and_credentials_stay_here() {
    // As S3 does: a request with credentials of somebody else's is refused.
    let storage = Faulty::start(image::hello(), []);
    let to = format!(
        "http://{}",
        storage.host().replace("127.0.0.1", "localhost")
    );
    let user = ("edge".to_owned(), "secret".to_owned());
    let redirect = Rule::on(Kind::Blob, Action::Redirect(to));
    let registry = Faulty::start_with(image::hello(), Auth::Bearer(Some(user)), [redirect]);
    let daemon = Setup::new(VERSION).start();
    let reference = registry.reference("lab/app", "latest");
    let call = Edgepull::new(["pull", &reference, "--creds", "edge:secret"]);
    call.json().on(&daemon, NAMESPACE).run().exits(0);
    let there = storage.requests();
    assert!(there.len() >= 4, "{}", storage.transcript());
    assert!(
        there.iter().all(|request| !request.authorized()),
        "{}",
        storage.transcript()
    );
}

#[test]
fn a_redirect_without_end() {
    let registry = Faulty::start(image::hello(), []);
    let itself = format!("http://{}", registry.host());
    registry.script([Rule::on(Kind::Tag, Action::Redirect(itself))]);
    let reference = registry.reference("lab/app", "latest");
    let run = Edgepull::new(["inspect", &reference]).json().run();
    let code = run.output.code;
    assert!(matches!(code, Some(23 | 24)), "{}", run.output.transcript());
    assert!(registry.requests().len() <= 60, "{}", registry.transcript());
}
