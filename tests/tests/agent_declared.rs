//! The daemon follows what is declared and configured: where images are wanted, what is let go of,
//! when somebody is asked, where it is told.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::{Duration, Instant};

use edgepull_tests::agent::{Agent, PATIENCE};
use edgepull_tests::containerd::Version;
use edgepull_tests::faulty::{Action, Faulty, Kind, Rule};
use edgepull_tests::image;
use edgepull_tests::process::{self, wait_for};
use edgepull_tests::scene::{NAMESPACE, Scene};
use nix::sys::signal::Signal;

fn scene() -> (Scene, Agent) {
    let scene = Scene::new(Version::V1_7, image::hello());
    let agent = Agent::new(&scene.daemon);
    (scene, agent)
}

/// A file that is only linked to may be anywhere: nothing tells of its changes but the signal.
#[test]
fn by_a_signal_everything_is_read_again() {
    let (scene, mut agent) = scene();
    let other = scene.registry.reference("lab/other", "latest");
    std::fs::write(agent.path("elsewhere"), &scene.reference).unwrap();
    symlink(agent.path("elsewhere"), agent.path("images.d/linked.txt")).unwrap();
    agent.start();
    agent.wait_state(&scene.reference, "ready");
    agent.wait_quiet();
    std::fs::write(agent.path("elsewhere"), &other).unwrap();
    // Longer than a change that is noticed takes to be taken up.
    std::thread::sleep(Duration::from_secs(2));
    assert!(agent.image(&other).is_none(), "who told?");
    agent.signal(Signal::SIGHUP);
    agent.wait_state(&other, "ready");
    assert!(agent.image(&scene.reference).is_none());
}

/// Kept apart by containerd, and by the daemon.
#[test]
fn each_namespace_has_its_own() {
    const OTHER: &str = "other";
    let (scene, mut agent) = scene();
    let reference = &scene.reference;
    agent.declare(
        "all.toml",
        &format!(
            "[[image]]\nreference = \"{reference}\"\n\
             [[image]]\nreference = \"{reference}\"\nnamespace = \"{OTHER}\"\npin = false\n"
        ),
    );
    agent.start();
    let ready = |namespace: &str| {
        let status = agent.status();
        let images = status["images"].as_array().unwrap();
        assert_eq!(images.len(), 2, "{status:#}");
        let image = images.iter().find(|image| image["namespace"] == namespace);
        image.unwrap()["state"] == "ready"
    };
    let both = || ready(NAMESPACE) && ready(OTHER);
    wait_for("both", PATIENCE, both);
    let labels = |namespace: &str| -> BTreeSet<String> {
        let records = scene.daemon.image_records(namespace);
        let record = records.iter().find(|record| record.name == *reference);
        let labels = record.unwrap().labels.iter();
        labels.map(|(key, _)| key.clone()).collect()
    };
    assert!(labels(NAMESPACE).contains("io.edgepull.pinned"));
    assert!(!labels(OTHER).contains("io.edgepull.pinned"));
    for namespace in [NAMESPACE, OTHER] {
        scene.daemon.collect_garbage(namespace);
        scene.daemon.run(namespace, reference, &[]).ok();
        assert!(scene.daemon.leases(namespace).is_empty());
    }
    // The layers came once; documents are read for each.
    let parts = scene.layout().parts(&scene.manifest());
    for blob in &parts[1..] {
        let requests = scene.registry.requests();
        let sent = requests.iter().filter(|r| r.what == *blob && r.sent > 0);
        assert_eq!(sent.count(), 1, "{}", scene.registry.transcript());
    }

    // What is taken away in one is noticed there, and comes again there.
    let remove = ["images", "rm", "--sync", reference];
    scene.daemon.ctr(OTHER, &remove).ok();
    wait_for("the image", PATIENCE, || {
        scene.daemon.images(OTHER).contains(reference)
    });
    wait_for("both", PATIENCE, both);
    scene.daemon.run(OTHER, reference, &[]).ok();

    // And is not wanted there any more.
    agent.declare(
        "all.toml",
        &format!("[[image]]\nreference = \"{reference}\"\n"),
    );
    wait_for("one", PATIENCE, || {
        agent.status()["images"].as_array().unwrap().len() == 1
    });
    scene.daemon.ctr(OTHER, &remove).ok();
    agent.call(["sync"]).run().exits(0);
    assert!(scene.daemon.images(OTHER).is_empty());
}

/// `[schedule] prune`: what the daemon brought and nobody declares goes in time, and nothing else;
/// and nothing at all while somebody cannot be understood.
#[test]
fn what_is_declared_no_more_goes_after_its_time() {
    let (scene, mut agent) = scene();
    let name = |name: &str| scene.registry.reference(&format!("lab/{name}"), "latest");
    let (stays, used, by_hand) = (name("stays"), name("used"), name("hand"));
    // Others stand on the same layers; on these nobody.
    let other = Faulty::start(image::tricky(), []);
    let goes = other.reference("lab/goes", "latest");
    agent.configure("[schedule]\nprune = \"1m\"\n");
    agent.declare("all.txt", &[&*stays, &goes, &used].join("\n"));
    agent.start();
    for reference in [&stays, &goes, &used] {
        agent.wait_state(reference, "ready");
    }
    agent.call(["pull", &by_hand]).run().exits(0);
    let create = ["--snapshotter", "overlayfs", &used, "lab-declared"];
    let create = [&["containers", "create"], &create[..]].concat();
    scene.daemon.ctr(NAMESPACE, &create).ok();

    let there = || -> BTreeSet<String> { scene.daemon.images(NAMESPACE).into_iter().collect() };
    let set = |names: &[&String]| names.iter().copied().cloned().collect::<BTreeSet<String>>();
    let all = set(&[&stays, &goes, &used, &by_hand]);
    assert_eq!(there(), all);
    agent.declare("all.txt", &stays);
    wait_for("the new list", PATIENCE, || agent.image(&goes).is_none());
    agent.call(["sync"]).run().exits(0);
    let begun = Instant::now();
    // Perhaps it is declared there.
    agent.declare("broken.toml", "[[image]]\nreference = 7\n");
    wait_for("the fault", PATIENCE, || {
        agent.status()["faults"].as_array().map(Vec::len) == Some(1)
    });
    std::thread::sleep(Duration::from_secs(64).saturating_sub(begun.elapsed()));
    // With the fault that is told.
    agent.call(["sync"]).run().exits(2);
    assert_eq!(there(), all, "not all that is declared can be read");

    agent.undeclare("broken.toml");
    wait_for("the end of it", 3 * PATIENCE, || !there().contains(&goes));
    agent.call(["sync"]).run().exits(0);
    assert_eq!(there(), set(&[&stays, &used, &by_hand]));
    assert_eq!(agent.image(&stays).unwrap()["state"], "ready");
    scene.daemon.run(NAMESPACE, &stays, &[]).ok();
}

/// Fewer earlier images are kept as soon as fewer are to be kept.
#[test]
fn of_the_images_before_only_as_many_are_kept_as_declared() {
    let layouts = [image::hello(), image::tricky(), image::docker_types()];
    let digests = layouts.each_ref().map(|layout| layout.digest("latest"));
    let registries = layouts.map(|layout| Faulty::start(layout, []));
    let (scene, mut agent) = scene();
    let reference = &scene.reference;
    let repository = reference.rsplit_once(':').unwrap().0;
    let declare = |agent: &Agent, keep: usize| {
        let text = format!("[[image]]\nreference = \"{reference}\"\nkeep_previous = {keep}\n");
        agent.declare("app.toml", &text);
    };
    declare(&agent, 2);
    for (registry, digest) in registries.iter().zip(&digests) {
        // The tag moves.
        let to = format!("http://{}", registry.host());
        scene.registry.script([Rule::always(Action::Redirect(to))]);
        if registry.host() == registries[0].host() {
            agent.start();
        } else {
            agent.call(["sync"]).run().exits(0);
        }
        let image = agent.wait_state(reference, "ready");
        assert_eq!(image["digest"], **digest, "{image:#}");
    }
    let earlier = || -> BTreeSet<String> {
        let mut names: BTreeSet<String> = scene.daemon.images(NAMESPACE).into_iter().collect();
        assert!(names.remove(reference), "{names:?}");
        names
    };
    let named = |which: &[usize]| -> BTreeSet<String> {
        let name = |at: &usize| format!("{repository}@{}", digests[*at]);
        which.iter().map(name).collect()
    };
    assert_eq!(earlier(), named(&[0, 1]));
    for (keep, left) in [(1, named(&[1])), (0, named(&[]))] {
        declare(&agent, keep);
        wait_for("the end of one", PATIENCE, || earlier() == left);
    }
    scene.daemon.collect_garbage(NAMESPACE);
    let image = agent.wait_state(reference, "ready");
    assert_eq!(image["digest"], *digests[2]);
}

/// Seconds since 1970.
fn seconds(at: &str) -> i64 {
    let date = process::run(Command::new("date").args(["-u", "-d", at, "+%s"])).ok();
    date.text().trim().parse().unwrap()
}

/// A registry that says when to come back is left alone until then.
#[test]
fn a_registry_that_says_when_to_come_back_is_not_asked_before() {
    const WAIT: i64 = 600;
    let (scene, mut agent) = scene();
    let header = ("Retry-After".to_owned(), WAIT.to_string());
    let busy = Action::Answer(429, vec![header], b"later\n".to_vec());
    scene.registry.script([Rule::on(Kind::Tag, busy)]);
    agent.declare("a.txt", &scene.reference);
    agent.start();
    let image = agent.wait_state(&scene.reference, "failed");
    assert_eq!(image["error"]["kind"], "rate_limited", "{image:#}");
    let next = image["next_try"].as_str().unwrap().to_owned();
    let after = seconds(&next) - seconds("now");
    // And a spread on top: it said so to the whole fleet.
    assert!(
        (WAIT - 30..=WAIT + 120).contains(&after),
        "{after} s: {next}"
    );
    let refused = agent.metric("edgepull_pulls_total", &["result=\"rate_limited\""]);
    assert_eq!(refused, Some(1.0));

    // Neither a restart nor another declaration is a reason.
    scene.registry.script([]);
    scene.registry.forget();
    agent.stop();
    agent.start();
    agent.declare("b.txt", "# nothing\n");
    let image = agent.wait_state(&scene.reference, "failed");
    assert_eq!(image["next_try"], *next, "{image:#}");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(scene.registry.transcript(), "");
    // Somebody who asks is.
    agent.call(["sync"]).run().exits(0);
    agent.wait_state(&scene.reference, "ready");
}

/// For whoever cannot reach the socket: the same text, whole at any time.
#[test]
fn the_textfile_is_what_the_socket_says() {
    let (scene, mut agent) = scene();
    let file = agent.path("edgepull.prom");
    agent.configure(&format!("[metrics]\ntextfile = \"{}\"\n", file.display()));
    agent.declare("a.txt", &scene.reference);
    agent.start();
    agent.wait_state(&scene.reference, "ready");
    let read = || std::fs::read_to_string(&file).unwrap_or_default();
    wait_for("the same text", PATIENCE, || {
        let (code, text) = agent.get("/metrics").unwrap();
        assert_eq!(code, 200);
        text == read()
    });
    let ready = format!("edgepull_image_ready{{reference=\"{}\"", scene.reference);
    let line = |start: &str| -> String {
        let text = read();
        let found = text.lines().find(|line| line.starts_with(start));
        found
            .unwrap_or_else(|| panic!("{start}: {text}"))
            .to_owned()
    };
    assert!(line(&ready).ends_with(" 1"), "{}", line(&ready));
    // It follows.
    agent.undeclare("a.txt");
    wait_for("the end of the series", PATIENCE, || {
        let text = read();
        assert!(text.contains("edgepull_build_info"), "half of it: {text}");
        !text.contains(&ready)
    });
}
