//! The namespace of Kubernetes: the records kubelet would have made, and the pin.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::collections::BTreeMap;

use edgepull_tests::agent::{Agent, PATIENCE};
use edgepull_tests::containerd::{Setup, Version};
use edgepull_tests::edgepull::Edgepull;
use edgepull_tests::image;
use edgepull_tests::on_each_containerd;
use edgepull_tests::process::wait_for;
use edgepull_tests::scene::{NAMESPACE, Scene, greeting};

const K8S: &str = "k8s.io";
const MANAGED: &str = "io.cri-containerd.image";
const PINNED: &str = "io.cri-containerd.pinned";

type Records = BTreeMap<String, BTreeMap<String, String>>;

fn records(scene: &Scene) -> Records {
    let all = scene.daemon.image_records(K8S);
    for record in &all {
        assert_eq!(record.digest, scene.top(), "{record:?}");
    }
    all.into_iter()
        .map(|record| (record.name, record.labels.into_iter().collect()))
        .collect()
}

/// Tag, digest and config id, sorted by name as [`Records`] is.
fn names(scene: &Scene) -> [String; 3] {
    let repository = scene.reference.rsplit_once(':').unwrap().0;
    let config = scene.layout().parts(&scene.manifest()).remove(0);
    let mut names = [
        scene.reference.clone(),
        format!("{repository}@{}", scene.top()),
        config,
    ];
    names.sort();
    names
}

/// Errors that CRI tells.
fn complaints(scene: &Scene) -> Vec<String> {
    let log = scene.daemon.log();
    log.lines()
        // That there is no network configuration is true, and no concern of ours.
        .filter(|line| line.contains("level=error") && !line.contains("cni"))
        .map(str::to_owned)
        .collect()
}

#[track_caller]
fn as_kubelet_would(records: &Records, scene: &Scene) {
    let found: Vec<&String> = records.keys().collect();
    assert_eq!(found, names(scene).iter().collect::<Vec<_>>());
    for (name, labels) in records {
        assert_eq!(
            labels.get(MANAGED).map(String::as_str),
            Some("managed"),
            "{name}"
        );
    }
}

fn three_records_without_cri(version: Version) {
    let scene = Scene::new(version, image::hello());
    scene
        .verb_in(K8S, "pull")
        .arg(&scene.reference)
        .run()
        .exits(0);
    as_kubelet_would(&records(&scene), &scene);
    assert_eq!(
        scene.daemon.run(K8S, &scene.reference, &[]).ok().text(),
        greeting()
    );
    scene.daemon.collect_garbage(K8S);
    as_kubelet_would(&records(&scene), &scene);
}

fn three_records_with_cri(version: Version) {
    let mut scene = Scene::with(Setup::new(version).cri(), image::hello(), []);
    scene
        .verb_in(K8S, "pull")
        .arg(&scene.reference)
        .run()
        .exits(0);
    as_kubelet_would(&records(&scene), &scene);
    // CRI reads them all again when it starts, and leaves them as they are.
    scene.daemon.restart();
    as_kubelet_would(&records(&scene), &scene);
    let complaints = complaints(&scene);
    assert!(complaints.is_empty(), "{complaints:#?}");
}

fn a_pin_is_where_kubelet_does_not_drop_it(version: Version) {
    let scene = Scene::new(version, image::hello());
    let call = scene
        .verb_in(K8S, "pull")
        .arg(&scene.reference)
        .arg("--pin");
    call.run().exits(0);
    let records = records(&scene);
    as_kubelet_would(&records, &scene);
    for (name, labels) in &records {
        // A re-pull by kubelet drops labels of the tag's record; the others keep theirs.
        if *name != scene.reference {
            assert_eq!(
                labels.get(PINNED).map(String::as_str),
                Some("pinned"),
                "{name}"
            );
        }
    }
}

fn without_a_pin_there_is_none(version: Version) {
    let scene = Scene::new(version, image::hello());
    scene
        .verb_in(K8S, "pull")
        .arg(&scene.reference)
        .run()
        .exits(0);
    for (name, labels) in records(&scene) {
        assert!(!labels.contains_key(PINNED), "{name}");
    }
}

on_each_containerd!(
    three_records_without_cri,
    three_records_with_cri,
    a_pin_is_where_kubelet_does_not_drop_it,
    without_a_pin_there_is_none,
);

/// Docker with the containerd image store reads the namespace `moby`.
#[test]
fn docker_runs_what_we_pulled() {
    let scene = Scene::new(Version::V2, image::hello());
    let docker = edgepull_tests::docker::Docker::start(&scene.daemon);
    scene
        .verb_in("moby", "pull")
        .arg(&scene.reference)
        .run()
        .exits(0);
    assert_eq!(
        scene.daemon.images("moby"),
        [scene.reference.as_str()],
        "one record, no CRI's"
    );
    assert_eq!(docker.tags(), [scene.reference.as_str()]);
    let (code, text) = docker.run(&scene.reference);
    assert_eq!((code, text.replace('\r', "")), (0, greeting()));
}

/// Without a flag, what kubelet's containers will be made of is what CRI is set to.
fn the_snapshotter_of_cri_is_used(version: Version) {
    let table = if version == Version::V2 {
        "[plugins.\"io.containerd.cri.v1.images\"]\nsnapshotter = \"native\"\n"
    } else {
        "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n"
    };
    let setup = Setup::new(version).cri().config(table);
    let scene = Scene::with(setup, image::hello(), []);
    let report = Edgepull::new(["pull", &scene.reference])
        .json()
        .arg("--address")
        .arg(scene.daemon.address())
        .args(["--namespace", K8S])
        .run()
        .exits(0)
        .element();
    assert_eq!(report["snapshotter"], "native", "{report}");
}

on_each_containerd!(the_snapshotter_of_cri_is_used);

/// What kubelet would have made is what the daemon makes, keeps pinned, and brings again.
fn the_daemon_keeps_an_image_as_kubelet_would(version: Version) {
    let mut scene = Scene::with(Setup::new(version).cri(), image::hello(), []);
    let mut agent = Agent::new(&scene.daemon);
    let reference = scene.reference.clone();
    let declared = format!("[[image]]\nreference = \"{reference}\"\nnamespace = \"{K8S}\"\n");
    agent.declare("app.toml", &declared);
    agent.start();
    let kept = |scene: &Scene, agent: &Agent| {
        let image = agent.wait_state(&reference, "ready");
        assert_eq!(image["namespace"], K8S, "{image:#}");
        let pinned = |labels: &BTreeMap<String, String>| {
            labels.get(PINNED).map(String::as_str) == Some("pinned")
        };
        wait_for("the records and the pin", PATIENCE, || {
            let records = records(scene);
            let others = records.iter().filter(|(name, _)| **name != reference);
            records.keys().eq(&names(scene)) && others.map(|(_, labels)| labels).all(pinned)
        });
        as_kubelet_would(&records(scene), scene);
    };
    kept(&scene, &agent);
    assert_eq!(
        scene.daemon.run(K8S, &reference, &[]).ok().text(),
        greeting()
    );
    assert!(scene.daemon.images(NAMESPACE).is_empty());

    // CRI reads them all again when it starts.
    scene.daemon.restart();
    wait_for("the engine", PATIENCE, || {
        agent.get("/readyz").is_some_and(|(code, _)| code == 200)
    });
    kept(&scene, &agent);
    let complaints = complaints(&scene);
    assert!(complaints.is_empty(), "{complaints:#?}");

    // Of each record by itself, and of all at once, it is noticed.
    for name in names(&scene) {
        scene.daemon.ctr(K8S, &["images", "rm", &name]).ok();
        kept(&scene, &agent);
    }
    let all = names(&scene);
    let remove = ["images", "rm", "--sync", &all[0], &all[1], &all[2]];
    scene.daemon.ctr(K8S, &remove).ok();
    kept(&scene, &agent);
    let again = scene.daemon.run(K8S, &reference, &[]).ok();
    assert_eq!(again.text(), greeting());
}

on_each_containerd!(the_daemon_keeps_an_image_as_kubelet_would);
