//! `smoke` that is interrupted in every way: nothing of a run stays, or the next call takes it.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::time::Duration;

use edgepull_tests::containerd::{Containerd, Setup, Version};
use edgepull_tests::edgepull::Started;
use edgepull_tests::faulty::{Action, Kind, Rule};
use edgepull_tests::image::{self, Layout};
use edgepull_tests::on_each_containerd;
use edgepull_tests::process::{self, wait_for};
use edgepull_tests::scene::{NAMESPACE, Scene, greeting};
use edgepull_tests::smoking::{Stand, cgroups, runs, smoke, smoke_ref};
use edgepull_tests::sysbox::SysBox;
use edgepull_tests::tools::Lab;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

/// Waits until the container of the only run works; its id.
#[track_caller]
fn running(daemon: &Containerd) -> String {
    let mut id = None;
    wait_for("a container that runs", SOON, || {
        id = runs(daemon).pop();
        id.as_ref().is_some_and(|id| {
            let tasks = daemon.ctr(NAMESPACE, &["tasks", "ls"]).text();
            tasks
                .lines()
                .any(|line| line.starts_with(id.as_str()) && line.contains("RUNNING"))
        })
    });
    id.unwrap()
}

#[track_caller]
fn service(daemon: &Containerd) -> (Started, String, Layout) {
    let layout = image::program(&["/bin/sh", "-c", "echo ready; exec sleep 1000"], &[]);
    let call = smoke(daemon, &layout).args(["--timeout", "10m"]).start();
    let id = running(daemon);
    assert!(
        !cgroups(&id).is_empty(),
        "it has a control group of its own"
    );
    // Whoever uses a directory of the lab ends with it.
    (call, id, layout)
}

fn a_signal_ends_it_and_all_is_taken_away(version: Version) {
    let daemon = Containerd::start(version);
    let signal = if version == Version::V1_7 {
        Signal::SIGINT
    } else {
        Signal::SIGTERM
    };
    let (call, id, _layout) = service(&daemon);
    call.running.signal(signal);
    let error = call.wait().fails(130, "cancelled");
    assert!(
        error["message"].as_str().unwrap().contains(signal.as_str()),
        "{error:#}"
    );
    Stand::nothing().is_left(&daemon);
    assert!(cgroups(&id).is_empty());
}

fn what_a_killed_one_leaves_is_taken_by_the_next(version: Version) {
    let daemon = Containerd::start(version);
    let (call, id, _layout) = service(&daemon);
    call.running.signal(Signal::SIGKILL);
    assert_eq!(call.wait().output.code, None);
    assert_eq!(runs(&daemon), [id.as_str()], "its container still runs");
    let other = image::hello();
    let row = smoke(&daemon, &other).run().exits(0).element();
    assert_eq!(row["outcome"], "passed");
    Stand::nothing().is_left(&daemon);
    assert!(cgroups(&id).is_empty());
}

fn containerd_may_restart_meanwhile(version: Version) {
    let mut daemon = Containerd::start(version);
    let script = "echo before; while [ ! -e /tmp/go ]; do sleep 1; n=x$n; [ $n = xxxxx ] && echo >/tmp/go; done; echo after; exit 5";
    let layout = image::program(&["/bin/sh", "-c", script], &[]);
    let call = smoke(&daemon, &layout).start();
    running(&daemon);
    daemon.restart();
    let row = call.wait().exits(12).element();
    assert_eq!(row["exit_code"], json!(5), "{row:#}");
    assert_eq!(row["output_tail"], "before\nafter\n");
    Stand::nothing().is_left(&daemon);
}

on_each_containerd!(
    a_signal_ends_it_and_all_is_taken_away,
    what_a_killed_one_leaves_is_taken_by_the_next,
    containerd_may_restart_meanwhile,
);

/// A signal while a layer is on its way.
#[test]
fn stopped_while_it_fetches_nothing_stays() {
    // The config comes, and of the first layer ten bytes.
    let stall = Rule::on(Kind::Blob, Action::Stall(10)).after(1);
    let scene = Scene::with(Setup::new(Version::V2), image::hello(), [stall]);
    let call = smoke_ref(&scene.daemon, &scene.reference).start();
    wait_for("a layer on its way", SOON, || {
        scene.registry.count("GET", &Kind::Blob) > 1
    });
    call.running.signal(Signal::SIGTERM);
    call.wait().fails(130, "cancelled");
    Stand::nothing().is_left(&scene.daemon);
    let active = scene.daemon.ctr(NAMESPACE, &["content", "active"]).ok();
    assert_eq!(active.text().lines().count(), 1, "{}", active.text());
}

/// A power cut takes locks and processes; containerd still knows the container.
#[test]
fn after_a_power_cut_the_next_call_cleans_up() {
    let mut machine = SysBox::start(Version::V1_7);
    let service = image::program(&["/bin/sh", "-c", "exec sleep 1000"], &[]);
    let hello = image::hello();
    let program = Lab::get().edgepull().display().to_string();
    let (first, second) = (
        format!("oci:{}", service.path().display()),
        format!("oci:{}", hello.path().display()),
    );
    let mut call = machine.command([&program, "smoke", "-n", "lab", &first]);
    let mut call = process::spawn(&mut call);
    let containers = |machine: &SysBox| {
        let list = machine.ctr("lab", &["containers", "ls", "-q"]);
        list.text().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    wait_for("a container", SOON, || {
        assert!(call.is_running(), "it ended");
        containers(&machine).len() == 1
    });
    // So that the cut does not take what containerd has just written.
    machine.run(["sync"]).ok();
    machine.pull_the_plug();
    call.wait();
    machine.boot();
    assert_eq!(containers(&machine).len(), 1, "it is still known");
    machine.run([&program, "smoke", "-n", "lab", &second]).ok();
    assert_eq!(containers(&machine).len(), 0);
    for list in [
        &["snapshots", "ls"][..],
        &["leases", "ls", "-q"],
        &["content", "ls", "-q"],
    ] {
        let left = machine.ctr("lab", list).ok().text();
        let left: Vec<_> = left
            .lines()
            .filter(|line| !line.starts_with("KEY "))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Two at once do not take each other's away.
#[test]
fn one_that_still_runs_is_left_alone() {
    let daemon = Containerd::start(Version::V2);
    let (call, id, _layout) = service(&daemon);
    let other = image::hello();
    smoke(&daemon, &other).run().exits(0);
    assert_eq!(running(&daemon), id);
    call.running.signal(Signal::SIGTERM);
    call.wait().exits(130);
    Stand::nothing().is_left(&daemon);
}

/// A machine with one tree of control groups, of version 2, without any controller, as a small
/// board may have it.
#[test]
fn what_cannot_be_limited_is_told_and_runs() {
    let machine = SysBox::start(Version::V2);
    let layout = image::hello();
    let (program, reference) = (
        Lab::get().edgepull().display().to_string(),
        format!("oci:{}", layout.path().display()),
    );
    let run = machine.run([&program, "smoke", "-n", "lab", "-o", "json", &reference]);
    let rows: Value = serde_json::from_slice(&run.ok().stdout).unwrap();
    assert_eq!(rows[0]["outcome"], "passed", "{rows:#}");
    assert_eq!(rows[0]["output_tail"], greeting());
    let warnings = rows[0]["warnings"].to_string();
    for controller in ["memory", "pids", "cpu"] {
        assert!(warnings.contains(controller), "{warnings}");
    }
    assert!(machine.has("/run/edgepull/smoke"));
    let left = machine.run([
        "find",
        "/run/edgepull/smoke",
        "/sys/fs/cgroup",
        "-name",
        "edgepull-*",
    ]);
    assert_eq!(left.ok().text(), "");
}

/// containerd that is away for good is told, and the rest is done by the next call.
#[test]
fn a_containerd_that_dies_is_told() {
    let mut daemon = Containerd::start(Version::V1_7);
    let (call, id, _layout) = service(&daemon);
    daemon.kill9();
    let error = call.wait().fails(40, "containerd_unavailable");
    assert_eq!(error["retryable"], true);
    assert_eq!(runs(&daemon), [id.as_str()], "the next call has to know");
    daemon.start_again();
    let other = image::hello();
    smoke(&daemon, &other).run().exits(0);
    Stand::nothing().is_left(&daemon);
    assert!(cgroups(&id).is_empty());
}
