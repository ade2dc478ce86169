//! A host that misbehaves: containerd gone, killed or restarted, the disk full, ourselves killed.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::path::Path;
use std::time::Duration;

use edgepull_tests::containerd::{Setup, Version};
use edgepull_tests::disk::SmallDisk;
use edgepull_tests::edgepull::{Edgepull, Started};
use edgepull_tests::faulty::{Action, Kind, Rule};
use edgepull_tests::image::{self, host};
use edgepull_tests::on_each_containerd;
use edgepull_tests::process::wait_for;
use edgepull_tests::scene::{NAMESPACE, Scene};
use edgepull_tests::tools::Lab;
use nix::sys::signal::Signal;

/// 8 MiB in four layers, at a pace that leaves time to break something: about two seconds.
fn slow_scene(version: Version) -> Scene {
    let pace = Action::Slow(32 << 10, Duration::from_millis(25));
    Scene::with(
        Setup::new(version),
        image::big(4, 2 << 20),
        [Rule::on(Kind::Blob, pace)],
    )
}

/// A pull that has some bytes and lacks some.
#[track_caller]
fn in_the_middle(scene: &Scene) -> Started {
    let mut started = scene.verb("pull").arg(&scene.reference).start();
    wait_for("half of the bytes", Duration::from_secs(30), || {
        scene.registry.blob_bytes() > 4 << 20 || !started.running.is_running()
    });
    started
}

fn heal(scene: &Scene) {
    scene.registry.script([]);
    scene.pull();
    scene.greets();
    scene.daemon.collect_garbage(NAMESPACE);
    assert_eq!(scene.daemon.blobs(NAMESPACE), scene.wanted_blobs(&host()));
    scene.greets();
}

#[test]
fn no_containerd() {
    let registry = edgepull_tests::faulty::Faulty::start(image::hello(), []);
    let call = Edgepull::new(["pull", &registry.reference("lab/app", "latest")]).json();
    let call = call.args([
        "--address",
        "/no/such/containerd.sock",
        "--namespace",
        "lab",
    ]);
    let error = call.run().fails(40, "containerd_unavailable");
    assert!(
        error.to_string().contains("/no/such/containerd.sock"),
        "{error}"
    );
    assert_eq!(registry.blob_bytes(), 0);
}

#[test]
fn a_socket_that_is_no_containerd() {
    let call = Edgepull::new(["pull", "127.0.0.1:9/lab/app:1"]).json();
    let socket = call.home().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || while listener.accept().is_ok() {});
    let call = call
        .arg("--address")
        .arg(&socket)
        .args(["--namespace", "lab"]);
    call.run().fails(40, "containerd_unavailable");
}

fn containerd_is_killed(version: Version) {
    let mut scene = slow_scene(version);
    let pull = in_the_middle(&scene);
    scene.daemon.kill9();
    pull.wait().fails(40, "containerd_unavailable");
    scene.daemon.start_again();
    assert!(
        scene.daemon.images(NAMESPACE).is_empty(),
        "nothing half done is recorded"
    );
    heal(&scene);
}

fn containerd_is_restarted(version: Version) {
    let mut scene = slow_scene(version);
    let pull = in_the_middle(&scene);
    scene.daemon.restart();
    let run = pull.wait();
    match run.output.code {
        Some(0) => scene.greets(),
        _ => drop(run.fails(40, "containerd_unavailable")),
    }
    heal(&scene);
}

fn we_are_killed(version: Version) {
    let scene = slow_scene(version);
    let pull = in_the_middle(&scene);
    pull.running.signal(Signal::SIGKILL);
    let run = pull.wait();
    assert_eq!(run.output.code, None);
    let before = scene.registry.blob_bytes();
    assert!(scene.daemon.images(NAMESPACE).is_empty());
    scene.registry.script([]);
    let report = scene.pull();
    let total: u64 = scene
        .wanted_blobs(&host())
        .iter()
        .map(|digest| {
            std::fs::metadata(scene.layout().blob_path(digest))
                .unwrap()
                .len()
        })
        .sum();
    let bytes = |key: &str| report["bytes"][key].as_u64().unwrap();
    assert!(bytes("resumed") + bytes("reused") > 0, "{report}");
    assert!(bytes("downloaded") < total, "{report}");
    // What was in flight when we died may come again; four layers' worth of socket buffers.
    let sent = scene.registry.blob_bytes();
    assert!(
        sent - before < total - before + (8 << 20) / 2,
        "{before} then {sent} of {total}"
    );
    assert!(
        scene.daemon.leases(NAMESPACE).is_empty(),
        "the first pull's lease was found again"
    );
    heal(&scene);
}

fn we_are_interrupted(version: Version) {
    let scene = slow_scene(version);
    let pull = in_the_middle(&scene);
    pull.running.signal(Signal::SIGINT);
    let run = pull.wait().exits(130);
    assert!(run.output.took < Duration::from_secs(20));
    assert!(scene.daemon.images(NAMESPACE).is_empty());
    heal(&scene);
}

fn the_disk_is_full(version: Version) {
    let disk = SmallDisk::new(12 << 20);
    let setup = Setup::new(version).root(disk.path());
    let scene = Scene::with(setup, image::big(3, 5 << 20), []);
    let error = scene.pull_with(&[]).fails(30, "no_space");
    assert!(error["hint"].is_string(), "{error}");
    assert!(scene.daemon.images(NAMESPACE).is_empty());
    disk.resize(100 << 20);
    heal(&scene);
}

on_each_containerd!(
    containerd_is_killed,
    containerd_is_restarted,
    we_are_killed,
    we_are_interrupted,
    the_disk_is_full,
);

#[test]
fn the_disk_of_a_layout_is_full() {
    let disk = SmallDisk::new(6 << 20);
    let scene = Scene::new(Version::V2, image::big(3, 5 << 20));
    let store = format!("oci:{}", disk.path().join("layout").display());
    let pull = || Edgepull::new(["pull", &scene.reference, "--store", &store]).json();
    pull().run().fails(30, "no_space");
    disk.resize(100 << 20);
    pull().run().exits(0);
    assert!(
        Path::new(&store["oci:".len()..])
            .join("index.json")
            .exists()
    );
}

/// In a container the process has the same number each time: what an earlier one left when it was
/// killed is in nobody's way.
#[test]
fn a_view_that_was_left_behind_stops_no_check() {
    let scene = Scene::new(Version::V1_7, image::hello());
    scene.pull();
    let chain = scene.layout().chain(&scene.manifest());
    let top = chain.last().unwrap();
    let left = format!("edgepull-recheck-1-0 {top}");
    let view = ["snapshots", "view", &left, top];
    scene.daemon.ctr(NAMESPACE, &view).ok();
    let program = Lab::get().edgepull();
    let words = ["--pid", "--fork", "--"].map(Path::new);
    let call = Edgepull::of("unshare", words.into_iter().chain([&*program]));
    let call = call.args(["repair", "--check"]).json();
    let report = call.on(&scene.daemon, NAMESPACE).run().exits(0).element();
    assert_eq!(report["verdict"], "sound", "{report:#}");
    assert_eq!(report["unchecked"].as_array().map(Vec::len), Some(0));
}
