//! The daemon: declared images in, verdicts out.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::time::Duration;

use edgepull_tests::agent::{Agent, PATIENCE, request};
use edgepull_tests::containerd::{Setup, Version};
use edgepull_tests::faulty::{Action, Faulty, Kind, Rule};
use edgepull_tests::image;
use edgepull_tests::on_each_containerd;
use edgepull_tests::process::wait_for;
use edgepull_tests::scene::{NAMESPACE, Scene};
use nix::sys::signal::Signal;

/// The pin outside Kubernetes.
const PINNED: (&str, &str) = ("io.edgepull.pinned", "true");

fn scene(version: Version) -> (Scene, Agent) {
    let scene = Scene::new(version, image::hello());
    let agent = Agent::new(&scene.daemon);
    (scene, agent)
}

fn has_label(scene: &Scene, reference: &str, label: (&str, &str)) -> bool {
    scene
        .daemon
        .image_records(NAMESPACE)
        .iter()
        .filter(|record| record.name == reference)
        .any(|record| {
            record
                .labels
                .contains(&(label.0.to_owned(), label.1.to_owned()))
        })
}

fn a_declared_image_is_there_and_usable(version: Version) {
    let (scene, mut agent) = scene(version);
    agent.declare(
        "app.txt",
        &format!("# the application\n{}\n", scene.reference),
    );
    agent.start();
    let image = agent.wait_state(&scene.reference, "ready");
    assert_eq!(image["digest"], scene.top());
    assert_eq!(image["pinned"], true, "{image:#}");
    assert_eq!(image["platform"], "host");
    scene.greets();
    let record = &scene.daemon.image_records(NAMESPACE)[0];
    let label = |key: &str| {
        record
            .labels
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, v)| v.clone())
    };
    assert_eq!(label("io.edgepull.managed").as_deref(), Some("agent"));
    assert_eq!(label(PINNED.0).as_deref(), Some(PINNED.1));
    assert!(scene.daemon.leases(NAMESPACE).is_empty());
    let (code, body) = agent.get("/readyz").unwrap();
    assert_eq!(code, 200, "{body}");

    // Stopped, it leaves quickly and says nothing bad; started, it asks the registry nothing.
    let stopped = agent.stop();
    assert_eq!(
        stopped.output.code,
        Some(0),
        "{}",
        stopped.output.transcript()
    );
    scene.registry.forget();
    agent.start();
    agent.wait_state(&scene.reference, "ready");
    wait_for("the first pass", PATIENCE, || {
        agent.get("/readyz").is_some_and(|(code, _)| code == 200)
    });
    assert!(
        scene.registry.content_requests().is_empty(),
        "not due for hours: {}",
        scene.registry.transcript()
    );
}

fn what_somebody_removed_comes_back(version: Version) {
    let (scene, mut agent) = scene(version);
    agent.declare("app.txt", &scene.reference);
    agent.start();
    agent.wait_state(&scene.reference, "ready");
    let ctr = |args: &[&str]| scene.daemon.ctr(NAMESPACE, args).ok();
    ctr(&["images", "rm", "--sync", &scene.reference]);
    wait_for("the image", PATIENCE, || {
        scene.daemon.images(NAMESPACE).contains(&scene.reference)
    });
    agent.wait_state(&scene.reference, "ready");
    // Its pin, too, without a word to the registry.
    scene.registry.forget();
    ctr(&[
        "images",
        "label",
        &scene.reference,
        &format!("{}=", PINNED.0),
    ]);
    wait_for("the pin", PATIENCE, || {
        has_label(&scene, &scene.reference, PINNED)
    });
    assert!(
        scene.registry.content_requests().is_empty(),
        "{}",
        scene.registry.transcript()
    );
}

fn containerd_may_come_late_and_go(version: Version) {
    let (mut scene, mut agent) = scene(version);
    agent.declare("app.txt", &scene.reference);
    scene.daemon.pause();
    scene.daemon.kill9();
    agent.start();
    wait_for("the missing engine", PATIENCE, || {
        agent.status()["engine_error"]["kind"] == "containerd_unavailable"
    });
    let (code, body) = agent.get("/readyz").unwrap();
    assert_eq!(code, 503, "{body}");
    scene.daemon.start_again();
    agent.wait_state(&scene.reference, "ready");
    scene.daemon.kill9();
    wait_for("the engine that left", PATIENCE, || {
        agent.status()["engine"]["reachable"] == false
    });
    // What is on the disk is still there, but nobody can vouch for it.
    assert_eq!(agent.get("/readyz").unwrap().0, 503);
    scene.daemon.start_again();
    wait_for("the engine that came back", PATIENCE, || {
        agent.get("/readyz").is_some_and(|(code, _)| code == 200)
    });
    agent.wait_state(&scene.reference, "ready");
}

on_each_containerd!(
    a_declared_image_is_there_and_usable,
    what_somebody_removed_comes_back,
    containerd_may_come_late_and_go,
);

#[test]
fn one_bad_image_does_not_hold_up_the_others() {
    let (scene, mut agent) = scene(Version::V1_7);
    let nobody = Faulty::start(
        image::only_s390x(),
        [Rule::on(Kind::Tag, Action::status(404)).what("gone")],
    );
    let foreign = nobody.reference("lab/mainframe", "latest");
    let gone = nobody.reference("lab/app", "gone");
    let dead = "127.0.0.1:1/lab/app:1";
    agent.declare(
        "all.txt",
        &format!("{foreign}\n{gone}\n{dead}\n{}\n", scene.reference),
    );
    agent.start();
    agent.wait_state(&scene.reference, "ready");
    let foreign = agent.wait_state(&foreign, "missing_platform");
    assert_eq!(foreign["error"]["kind"], "platform_missing");
    assert_eq!(foreign["error"]["offered"][0], "linux/s390x");
    for (reference, kind) in [(gone.as_str(), "not_found"), (dead, "unavailable")] {
        let image = agent.wait_state(reference, "failed");
        assert_eq!(image["error"]["kind"], kind, "{image:#}");
        assert!(image["next_try"].is_string(), "{image:#}");
    }
    // A missing platform is the publisher's affair, not this device's.
    assert_eq!(agent.get("/readyz").unwrap().0, 200);
    let missing = agent.metric("edgepull_image_platform_missing", &["lab/mainframe"]);
    assert_eq!(missing, Some(1.0));
    let ready = agent.metric("edgepull_image_ready", &[&scene.reference]);
    assert_eq!(ready, Some(1.0));
    let pulled = agent.metric("edgepull_pulls_total", &["result=\"pulled\""]);
    assert_eq!(pulled, Some(1.0));
    // As the verbs say it.
    let run = agent.call(["wait", "--timeout", "1s"]).run();
    assert_eq!(run.output.code, Some(124), "{}", run.output.transcript());
    agent.declare(
        "all.txt",
        &format!(
            "{}\n{}\n",
            nobody.reference("lab/mainframe", "latest"),
            scene.reference
        ),
    );
    agent.call(["wait", "--timeout", "60s"]).run().exits(3);
    agent.declare("all.txt", &scene.reference);
    agent.call(["wait", "--timeout", "60s"]).run().exits(0);
    agent.call(["status", "--ready"]).run().exits(0);
}

#[test]
fn a_moved_tag_is_followed_and_the_image_before_it_kept() {
    let layout = image::hello();
    let first = layout.digest("latest");
    let (scene, mut agent) = {
        let scene = Scene::new(Version::V1_7, layout);
        let agent = Agent::new(&scene.daemon);
        (scene, agent)
    };
    agent.declare(
        "app.toml",
        &format!(
            "[[image]]\nreference = \"{}\"\nrefresh = \"1m\"\n",
            scene.reference
        ),
    );
    agent.start();
    agent.wait_state(&scene.reference, "ready");
    // The tag moves: another document of another kind, with other bytes.
    let other = image::tricky();
    let moved = Faulty::start(other, []);
    scene.registry.script([
        Rule::on(
            Kind::Tag,
            Action::Redirect(format!("http://{}", moved.host())),
        ),
        Rule::on(
            Kind::Manifest,
            Action::Redirect(format!("http://{}", moved.host())),
        ),
        Rule::on(
            Kind::Blob,
            Action::Redirect(format!("http://{}", moved.host())),
        ),
    ]);
    let second = moved.layout().digest("latest");
    assert_ne!(first, second);
    agent.call(["sync"]).run().exits(0);
    let image = agent.wait_state(&scene.reference, "ready");
    assert_eq!(image["digest"], second, "{image:#}");
    scene.daemon.collect_garbage(NAMESPACE);
    let repository = scene.reference.rsplit_once(':').unwrap().0;
    let kept = format!("{repository}@{first}");
    assert!(
        scene.daemon.images(NAMESPACE).contains(&kept),
        "{:?}",
        scene.daemon.images(NAMESPACE)
    );
    scene.daemon.run(NAMESPACE, &kept, &[]).ok();
}

#[test]
fn configuration_is_followed_and_a_fault_in_it_changes_nothing() {
    let (scene, mut agent) = scene(Version::V1_7);
    agent.declare("a.txt", &scene.reference);
    agent.start();
    agent.wait_state(&scene.reference, "ready");
    // A file that is broken keeps what it said before, and says where it is wrong.
    let other = scene.registry.reference("lab/other", "latest");
    agent.declare("b.toml", "[[image]]\nreference = 7\n");
    wait_for("the fault", PATIENCE, || {
        agent.status()["faults"]
            .as_array()
            .is_some_and(|all| !all.is_empty())
    });
    let fault = agent.status()["faults"][0].clone();
    assert_eq!(fault["kind"], "config", "{fault:#}");
    let text = fault.to_string();
    assert!(text.contains("b.toml") && text.contains("line 2"), "{text}");
    assert_eq!(agent.image(&scene.reference).unwrap()["state"], "ready");
    agent.declare(
        "b.toml",
        &format!("[[image]]\nreference = \"{other}\"\npin = false\n"),
    );
    let image = agent.wait_state(&other, "ready");
    assert_eq!(image["pinned"], false);
    assert_eq!(agent.status()["faults"].as_array().map(Vec::len), Some(0));
    // config.toml as well, by signal.
    agent.configure("[limits]\nrates = 1\n");
    agent.signal(Signal::SIGHUP);
    wait_for("the fault", PATIENCE, || {
        agent.status()["faults"]
            .to_string()
            .contains("limits.rates")
    });
    agent.configure("");
    wait_for("the end of the fault", PATIENCE, || {
        agent.status()["faults"]
            .as_array()
            .is_some_and(Vec::is_empty)
    });
    agent.undeclare("b.toml");
    wait_for("the end of the image", PATIENCE, || {
        agent.image(&other).is_none()
    });
    // Nothing is removed unless somebody says so.
    assert!(scene.daemon.images(NAMESPACE).contains(&other));
    agent.stop();

    let check = |agent: &Agent| agent.call(["agent", "--check-config"]).run();
    check(&agent).exits(0);
    agent.declare(
        "b.toml",
        "[[image]]\nreference = \"a\"\nverify = \"always\"\n",
    );
    let run = check(&agent).exits(2);
    assert!(
        run.output.stderr.contains("line 3"),
        "{}",
        run.output.transcript()
    );
}

#[test]
fn one_pass_and_its_exit_code() {
    let (scene, agent) = scene(Version::V1_7);
    agent.declare("a.txt", &scene.reference);
    let run = agent.call(["agent", "--once"]).json().run().exits(0);
    let status = run.document();
    assert_eq!(status["schema"], "edgepull.status/1");
    assert_eq!(status["images"][0]["state"], "ready", "{status:#}");
    scene.greets();
    agent.declare("b.txt", "127.0.0.1:1/lab/app:1\n");
    let run = agent.call(["agent", "--once"]).json().run().exits(23);
    assert_eq!(run.document()["images"][1]["error"]["kind"], "unavailable");
}

/// Killed in the middle of a layer, the next run goes on where the store is.
#[test]
fn what_was_fetched_survives_kill_9() {
    const SIZE: u64 = 24 << 20;
    let scene = Scene::with(
        Setup::new(Version::V1_7),
        image::big(1, SIZE),
        [Rule::on(
            Kind::Blob,
            Action::Slow(256 << 10, Duration::from_millis(25)),
        )],
    );
    let mut agent = Agent::new(&scene.daemon);
    agent.declare("a.txt", &scene.reference);
    agent.start();
    wait_for("half of it", PATIENCE, || {
        agent
            .image(&scene.reference)
            .is_some_and(|image| image["progress"]["bytes"].as_u64() > Some(SIZE / 2))
    });
    let workers = agent.workers();
    assert_eq!(workers.len(), 1);
    agent.kill();
    wait_for("the worker's end", PATIENCE, || {
        !edgepull_tests::process::alive(workers[0])
    });
    scene.registry.script([]);
    let before = scene.registry.blob_bytes();
    agent.start();
    agent.wait_state(&scene.reference, "ready");
    let twice = scene.registry.blob_bytes().saturating_sub(before);
    assert!(twice < SIZE * 3 / 4, "{twice} bytes after {before}");
    assert!(agent.metric("edgepull_resumed_bytes_total", &[]) > Some(1.0));
}

#[test]
fn only_what_is_asked_for_is_answered() {
    let (_scene, mut agent) = scene(Version::V1_7);
    agent.start();
    let host = agent.get("/v1/host").unwrap();
    assert_eq!(host.0, 200);
    assert!(host.1.contains("edgepull.host/1"), "{}", host.1);
    assert_eq!(agent.get("/nothing").unwrap().0, 404);
    assert_eq!(
        request(&agent.socket(), "POST", "/v1/status").unwrap().0,
        405
    );
    // A second daemon would fight with the first.
    let run = agent.call(["agent"]).run();
    assert_ne!(run.output.code, Some(0), "{}", run.output.transcript());
    assert!(agent.is_running());
}
