//! `prune` lets go of what nothing declares, and of nothing else.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::collections::BTreeMap;
use std::fs;

use edgepull_tests::agent::Agent;
use edgepull_tests::containerd::{ImageRecord, Version};
use edgepull_tests::edgepull::{Edgepull, Run};
use edgepull_tests::image;
use edgepull_tests::on_each_containerd;
use edgepull_tests::scene::{NAMESPACE, Scene};
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

const K8S: &str = "k8s.io";
const PINNED: &str = "io.cri-containerd.pinned";

/// `edgepull prune`, with these references declared.
fn prune(scene: &Scene, namespace: &str, declared: &[&str], args: &[&str]) -> Run {
    let call = scene.verb_in(namespace, "prune").args(args);
    let directory = call.home().join("images.d");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("list.txt"), declared.join("\n")).unwrap();
    call.run()
}

/// What happened to each record.
fn actions(run: Run) -> BTreeMap<String, String> {
    let rows = run.exits(0).elements();
    rows.iter()
        .map(|row| {
            assert_eq!(row["schema"], "edgepull.prune/1");
            assert_eq!(row["error"], Value::Null, "{row:#}");
            let text = |key: &str| row[key].as_str().unwrap().to_owned();
            (text("reference"), text("action"))
        })
        .collect()
}

fn label(scene: &Scene, namespace: &str, name: &str, labels: &[&str]) {
    let mut args = vec!["images", "label", name];
    args.extend(labels);
    scene.daemon.ctr(namespace, &args).ok();
}

fn labels(scene: &Scene, namespace: &str, name: &str) -> BTreeMap<String, String> {
    let records = scene.daemon.image_records(namespace);
    let record = records.iter().find(|record| record.name == name).unwrap();
    record.labels.iter().cloned().collect()
}

/// A pull as the daemon's: `tag` of the sample image.
fn pulled_by_the_daemon(scene: &Scene, namespace: &str, repository: &str, pin: bool) -> String {
    let reference = scene.registry.reference(repository, "latest");
    let mut call = scene.verb_in(namespace, "pull").arg(&reference);
    if pin {
        call = call.arg("--pin");
    }
    call.run().exits(0);
    let by = if pin { "agent" } else { "" };
    for record in scene.daemon.image_records(namespace) {
        if record.digest == scene.top() && record.labels.iter().any(|(_, v)| v == "cli") {
            let by = format!("io.edgepull.pin={by}");
            let labels = ["io.edgepull.managed=agent", &by];
            label(scene, namespace, &record.name, &labels);
        }
    }
    reference
}

fn what_nothing_declares_is_removed(version: Version) {
    let scene = Scene::new(version, image::hello());
    let declared = pulled_by_the_daemon(&scene, NAMESPACE, "lab/declared", true);
    let old = pulled_by_the_daemon(&scene, NAMESPACE, "lab/old", true);
    let by_hand = scene.registry.reference("lab/hand", "latest");
    let call = scene.verb("pull").arg(&by_hand).arg("--pin");
    call.run().exits(0);
    let all = scene.daemon.images(NAMESPACE);

    let removed = BTreeMap::from([(old.clone(), "removed".to_owned())]);
    let would = prune(&scene, NAMESPACE, &[&declared], &["--dry-run"]);
    assert_eq!(actions(would), removed);
    assert_eq!(scene.daemon.images(NAMESPACE), all, "only said");
    assert_eq!(
        actions(prune(&scene, NAMESPACE, &[&declared], &[])),
        removed
    );
    assert_eq!(
        scene.daemon.images(NAMESPACE),
        [declared.clone(), by_hand.clone()]
    );
    assert!(actions(prune(&scene, NAMESPACE, &[&declared], &[])).is_empty());

    // Nothing at all is declared: still not what a person pulled.
    actions(prune(&scene, NAMESPACE, &[], &[]));
    assert_eq!(scene.daemon.images(NAMESPACE), [by_hand.as_str()]);
    assert_eq!(
        labels(&scene, NAMESPACE, &by_hand)["io.edgepull.pin"],
        "cli"
    );
}

fn what_was_here_before_is_only_unpinned(version: Version) {
    let scene = Scene::new(version, image::hello());
    scene.daemon.pull(NAMESPACE, &scene.reference).ok();
    let adopted = scene.reference.clone();
    scene.pull_with(&["--pin"]).exits(0);
    assert!(!labels(&scene, NAMESPACE, &adopted).contains_key("io.edgepull.managed"));
    label(&scene, NAMESPACE, &adopted, &["io.edgepull.pin=agent"]);
    let unpinned = BTreeMap::from([(adopted.clone(), "unpinned".to_owned())]);
    assert_eq!(actions(prune(&scene, NAMESPACE, &[], &[])), unpinned);
    let left = labels(&scene, NAMESPACE, &adopted);
    assert!(
        !left.keys().any(|key| key.starts_with("io.edgepull")),
        "{left:?}"
    );
}

fn what_a_container_uses_stays(version: Version) {
    let scene = Scene::new(version, image::hello());
    let old = pulled_by_the_daemon(&scene, NAMESPACE, "lab/old", true);
    let same = pulled_by_the_daemon(&scene, NAMESPACE, "lab/same", false);
    let create = [
        "containers",
        "create",
        "--snapshotter",
        "overlayfs",
        &old,
        "lab-prune",
    ];
    scene.daemon.ctr(NAMESPACE, &create).ok();
    let rows = prune(&scene, NAMESPACE, &[], &[]).exits(0).elements();
    for (row, (name, action)) in rows.iter().zip([(&old, "unpinned"), (&same, "kept")]) {
        assert_eq!(row["reference"], name.as_str());
        assert_eq!(
            row["action"], action,
            "by name, or by the snapshot it runs on"
        );
        assert_eq!(row["reason"], "container lab-prune uses it");
    }
    assert_eq!(scene.daemon.images(NAMESPACE), [old.clone(), same.clone()]);
    let remove = ["containers", "rm", "lab-prune"];
    scene.daemon.ctr(NAMESPACE, &remove).ok();
    assert_eq!(actions(prune(&scene, NAMESPACE, &[], &[])).len(), 2);
    scene.daemon.collect_garbage(NAMESPACE);
    assert!(scene.daemon.images(NAMESPACE).is_empty());
    assert!(scene.daemon.blobs(NAMESPACE).is_empty());
}

/// docker's containers are none to containerd, and do not stand on the image itself.
fn what_docker_made_a_container_from_stays(version: Version) {
    let scene = Scene::new(version, image::hello());
    let old = pulled_by_the_daemon(&scene, NAMESPACE, "lab/old", false);
    let chain = scene.layout().chain(&scene.manifest());
    for args in [
        &["prepare", "d0-init-key", chain.last().unwrap()][..],
        &["commit", "d0-init", "d0-init-key"],
        &["prepare", "d0", "d0-init"],
    ] {
        let args = [&["snapshots"], args].concat();
        scene.daemon.ctr(NAMESPACE, &args).ok();
    }
    let rows = prune(&scene, NAMESPACE, &[], &[]).exits(0).elements();
    assert_eq!(rows[0]["action"], "kept", "{rows:#?}");
    assert_eq!(rows[0]["reason"], "snapshot d0 uses it");
    for name in ["d0", "d0-init"] {
        scene.daemon.ctr(NAMESPACE, &["snapshots", "rm", name]).ok();
    }
    let removed = BTreeMap::from([(old, "removed".to_owned())]);
    assert_eq!(actions(prune(&scene, NAMESPACE, &[], &[])), removed);
}

fn what_points_elsewhere_by_now_stays(version: Version) {
    let scene = Scene::new(version, image::hello());
    let old = pulled_by_the_daemon(&scene, NAMESPACE, "lab/old", false);
    let elsewhere = format!("io.edgepull.target={}", scene.manifest());
    label(&scene, NAMESPACE, &old, &[&elsewhere]);
    let rows = prune(&scene, NAMESPACE, &[], &[]).exits(0).elements();
    assert_eq!(rows[0]["action"], "kept");
    assert_eq!(scene.daemon.images(NAMESPACE), [old]);
}

fn kubelet_removes_its_own(version: Version) {
    let scene = Scene::new(version, image::hello());
    let old = pulled_by_the_daemon(&scene, K8S, "lab/old", true);
    let all = scene.daemon.images(K8S);
    assert_eq!(all.len(), 3);
    let declared = actions(prune(&scene, K8S, &[&old], &[]));
    assert!(
        declared.is_empty(),
        "with what stands beside it: {declared:?}"
    );
    // Of these somebody else pinned one, too.
    let theirs = all.iter().find(|name| name.contains('@')).unwrap();
    label(&scene, K8S, theirs, &["io.edgepull.pin="]);

    let rows = actions(prune(&scene, K8S, &[], &[]));
    for name in &all {
        let wanted = if name == theirs { "kept" } else { "unpinned" };
        assert_eq!(rows[name], wanted, "{name}");
        let pinned = labels(&scene, K8S, name).contains_key(PINNED);
        assert_eq!(pinned, name == theirs, "{name}");
    }
    assert_eq!(scene.daemon.images(K8S), all, "nothing is removed");
}

fn a_pin_says_whose_it_is(version: Version) {
    let scene = Scene::new(version, image::hello());
    let pull = || {
        let call = scene
            .verb_in(K8S, "pull")
            .arg(&scene.reference)
            .arg("--pin");
        call.run().exits(0).element()
    };
    pull();
    let names = scene.daemon.images(K8S);
    for name in &names {
        assert_eq!(
            labels(&scene, K8S, name)["io.edgepull.pin"],
            "cli",
            "{name}"
        );
    }
    // Somebody takes one away, and somebody else had another before us.
    label(
        &scene,
        K8S,
        &names[0],
        &["io.cri-containerd.pinned=", "io.edgepull.pin="],
    );
    label(&scene, K8S, &names[1], &["io.edgepull.pin="]);
    assert_eq!(
        pull()["status"],
        "pulled",
        "a pin that is gone is set again"
    );
    assert_eq!(labels(&scene, K8S, &names[0])["io.edgepull.pin"], "cli");
    let other = labels(&scene, K8S, &names[1]);
    assert_eq!(other[PINNED], "pinned");
    assert!(!other.contains_key("io.edgepull.pin"), "not ours");
}

/// `edgepull prune --release` on everything that this containerd has: no namespace is named,
/// nothing says what is declared.
fn release(scene: &Scene, args: &[&str]) -> Run {
    Edgepull::new(["prune", "--release"])
        .json()
        .arg("--address")
        .arg(scene.daemon.address())
        .args(args)
        .run()
}

/// What was done, by namespace and name; names of leases begin with `edgepull-`.
fn released(run: Run) -> BTreeMap<(String, String), String> {
    let rows = run.exits(0).elements();
    rows.iter()
        .map(|row| {
            assert_eq!(row["schema"], "edgepull.prune/1");
            assert_eq!(row["error"], Value::Null, "{row:#}");
            let text = |key: &str| row[key].as_str().unwrap().to_owned();
            assert_eq!(row["digest"].is_null(), text("action") == "released");
            let name = (text("namespace"), text("reference"));
            (name, text("action"))
        })
        .collect()
}

fn leaving_a_host_it_takes_what_is_its_own_and_no_image(version: Version) {
    let scene = Scene::new(version, image::hello());
    let records = |namespace: &str| scene.daemon.image_records(namespace);
    let agents = pulled_by_the_daemon(&scene, NAMESPACE, "lab/agents", true);
    let held = pulled_by_the_daemon(&scene, NAMESPACE, "lab/held", false);
    let previous = [
        "io.edgepull.previous=lab/agents:latest",
        "io.edgepull.previous-since=2026-01-01T00:00:00Z",
    ];
    label(&scene, NAMESPACE, &held, &previous);
    let by_hand = scene.registry.reference("lab/hand", "latest");
    let call = scene.verb("pull").arg(&by_hand).arg("--pin");
    call.run().exits(0);
    let theirs = scene.registry.reference("lab/theirs", "latest");
    scene.daemon.pull(NAMESPACE, &theirs).ok();
    label(
        &scene,
        NAMESPACE,
        &theirs,
        &["io.cri-containerd.pinned=pinned"],
    );
    pulled_by_the_daemon(&scene, K8S, "lab/agents", true);
    // A pull that was broken off.
    let lease = "edgepull-00000000000000000000000000000000-1";
    let create = ["leases", "create", "--id", lease, "io.edgepull.lease=0"];
    scene.daemon.ctr(K8S, &create).ok();
    let create = ["leases", "create", "--id", "edgepull-lookalike"];
    scene.daemon.ctr(K8S, &create).ok();
    let all = [records(NAMESPACE), records(K8S)];

    let would = released(release(&scene, &["--dry-run"]));
    let key = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
    let mut wanted: BTreeMap<(String, String), String> = records(K8S)
        .iter()
        .map(|record| (key(K8S, &record.name), "unpinned".to_owned()))
        .collect();
    assert_eq!(wanted.len(), 3);
    for name in [&agents, &held, &by_hand] {
        wanted.insert(key(NAMESPACE, name), "unpinned".to_owned());
    }
    wanted.insert(key(K8S, lease), "released".to_owned());
    assert_eq!(would, wanted);
    assert_eq!([records(NAMESPACE), records(K8S)], all, "only said");

    // One namespace, if it is named; then the rest.
    let one = released(release(&scene, &["--namespace", NAMESPACE]));
    assert_eq!(one.len(), 3, "{one:?}");
    assert_eq!(records(K8S), all[1]);
    let rest = released(release(&scene, &[]));
    assert_eq!(
        one.into_iter().chain(rest).collect::<BTreeMap<_, _>>(),
        wanted
    );

    let names = |records: &[ImageRecord]| -> Vec<(String, String)> {
        let pair = |record: &ImageRecord| (record.name.clone(), record.digest.clone());
        records.iter().map(pair).collect()
    };
    for (namespace, before) in [(NAMESPACE, &all[0]), (K8S, &all[1])] {
        let after = records(namespace);
        assert_eq!(
            names(&after),
            names(before),
            "no record is deleted or moved"
        );
        for record in &after {
            let is = |key: &str| record.labels.iter().any(|(k, _)| k == key);
            let gone = [
                "io.edgepull.pin",
                "io.edgepull.pinned",
                "io.edgepull.previous",
            ];
            assert!(!gone.iter().any(|key| is(key)), "{record:?}");
            assert_eq!(is(PINNED), record.name == theirs, "{record:?}");
        }
    }
    let left = scene.daemon.ctr(K8S, &["leases", "ls", "-q"]).ok();
    assert_eq!(left.text().trim(), "edgepull-lookalike");
    assert!(released(release(&scene, &[])).is_empty());
}

on_each_containerd!(
    leaving_a_host_it_takes_what_is_its_own_and_no_image,
    what_nothing_declares_is_removed,
    what_was_here_before_is_only_unpinned,
    what_a_container_uses_stays,
    what_docker_made_a_container_from_stays,
    what_points_elsewhere_by_now_stays,
    kubelet_removes_its_own,
    a_pin_says_whose_it_is,
);

#[test]
fn nothing_is_pruned_while_it_is_not_known_what_is_declared() {
    let scene = Scene::new(Version::V1_7, image::hello());
    let old = pulled_by_the_daemon(&scene, NAMESPACE, "lab/old", false);
    scene.verb("prune").run().exits(2);
    let call = scene.verb("prune");
    let directory = call.home().join("images.d");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("broken.toml"), "[[image]\n").unwrap();
    call.run().exits(2);
    assert_eq!(scene.daemon.images(NAMESPACE), [old]);
}

#[test]
fn there_is_nothing_to_release_where_no_engine_is() {
    let run = Edgepull::new(["prune", "--release", "--address", "/nonexistent.sock"]).run();
    let run = run.exits(0);
    assert_eq!(run.output.text(), "");
    assert!(run.output.stderr.contains("no container engine answers"));
}

#[test]
fn nothing_is_released_under_a_daemon_that_runs() {
    let scene = Scene::new(Version::V1_7, image::hello());
    let mut agent = Agent::new(&scene.daemon);
    agent.declare("mine.txt", &scene.reference);
    agent.start();
    agent.wait_state(&scene.reference, "ready");
    let refused = agent.call(["prune", "--release"]).run().exits(2);
    assert!(
        refused.output.stderr.contains("stop it first"),
        "{}",
        refused.output.stderr
    );
    agent.stop();
    // One pass of it, `agent --once`, has no socket; the state is its own meanwhile.
    let lock = fs::File::open(agent.path("state/lock")).unwrap();
    let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).unwrap();
    let refused = agent.call(["prune", "--release"]).run().exits(2);
    let said = &refused.output.stderr;
    assert!(said.contains("wait until it has ended"), "{said}");
    drop(lock);
    let done = agent.call(["prune", "--release"]).run().exits(0);
    let line = format!(
        "unpinned {} in {NAMESPACE} (edgepull pinned it)\n",
        scene.reference
    );
    assert_eq!(done.output.text(), line);
    assert!(!labels(&scene, NAMESPACE, &scene.reference).contains_key("io.edgepull.pin"));
}
