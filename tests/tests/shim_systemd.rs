//! The shim as the package brings it, on a machine with systemd and control groups of version 2: the
//! groups are systemd's to make, containers outlive a restart of containerd, and what was refused is
//! found where people look for it.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::time::Duration;

use edgepull_tests::device::Device;
use edgepull_tests::image;
use edgepull_tests::process::{Output, wait_for};
use serde_json::Value;

const NAMESPACE: &str = "shims";
const IMAGE: &str = "lab.example/app:latest";
const SOON: Duration = Duration::from_secs(30);

/// A device whose containerd has an image.
#[track_caller]
fn device() -> Device {
    let device = Device::start();
    let archive = "/root/image.tar";
    image::program(&["/bin/sleep", "1000"], &[]).archive(&device.machine.path(archive));
    let base = IMAGE.split(':').next().unwrap();
    let import = ["images", "import", "--base-name", base, archive];
    device.machine.ctr(NAMESPACE, &import).ok();
    device
}

fn run(device: &Device, flags: &[&str], id: &str, command: &[&str]) -> Output {
    let runtime = ["run", "--runtime", "io.containerd.edgepull.v1"];
    let args = [&runtime, flags, &[IMAGE, id], command].concat();
    device.machine.ctr(NAMESPACE, &args)
}

/// The process of a container.
#[track_caller]
fn pid(device: &Device, id: &str) -> String {
    let list = device.machine.ctr(NAMESPACE, &["tasks", "ls"]).ok().text();
    let mut rows = list.lines().map(|line| line.split_whitespace());
    let pid = rows.find_map(|mut row| (row.next() == Some(id)).then(|| row.next()).flatten());
    pid.unwrap_or_else(|| panic!("no {id} in {list}"))
        .to_owned()
}

#[test]
fn a_container_is_a_scope_of_systemd_and_outlives_containerd() {
    const SCOPE: &str = "lab-one.scope";
    let device = device();
    let ctr = |args: &[&str]| device.machine.ctr(NAMESPACE, args);
    let shims = || {
        let words = ["pgrep", "-f", "containerd-shim-edgepull"];
        device.machine.run(words).text()
    };
    let options = "/root/options.toml";
    device.machine.write(options, "SystemdCgroup = true\n");
    let groups = "edgepull-lab.slice:lab:one";
    let flags = [
        "--runtime-config-path",
        options,
        "--cgroup",
        groups,
        "--detach",
        // The machine's control groups of this version have no such controller.
        "--cpu-shares",
        "0",
    ];
    run(&device, &flags, "one", &["sleep", "1000"]).ok();
    assert_eq!(device.machine.property(SCOPE, "ActiveState"), "active");
    let place = format!("/proc/{}/cgroup", pid(&device, "one"));
    let groups = device.machine.run(["cat", &place]).ok().text();
    let mut lines = groups.lines();
    let group = lines.find_map(|line| line.strip_prefix("0::")).unwrap();
    let wanted = format!("/edgepull.slice/edgepull-lab.slice/{SCOPE}");
    assert_eq!(group, wanted, "{groups}");
    // What every group of this version has, whatever controllers there are.
    let metrics = ctr(&["tasks", "metrics", "--format", "json", "one"]).ok();
    let metrics: Value = serde_json::from_str(&metrics.text()).unwrap();
    assert!(metrics["cpu"]["usage_usec"].as_u64() > Some(0), "{metrics}");

    ctr(&["tasks", "pause", "one"]).ok();
    let events = format!("/sys/fs/cgroup{group}/cgroup.events");
    let events = device.machine.run(["cat", &events]).ok().text();
    assert!(events.contains("frozen 1"), "{events}");
    ctr(&["tasks", "resume", "one"]).ok();

    let before = device.machine.property("containerd.service", "MainPID");
    let running = shims();
    assert_eq!(running.lines().count(), 1, "{running}");
    device
        .machine
        .run(["systemctl", "restart", "containerd"])
        .ok();
    assert_ne!(
        device.machine.property("containerd.service", "MainPID"),
        before
    );
    assert_eq!(shims(), running, "the same shim");
    wait_for("containerd", SOON, || {
        ctr(&["tasks", "exec", "--exec-id", "e", "one", "true"]).code == Some(0)
    });

    ctr(&["tasks", "kill", "--signal", "KILL", "one"]).ok();
    wait_for("the end", SOON, || {
        let list = ctr(&["tasks", "ls"]).ok().text();
        list.contains("STOPPED")
    });
    // `ctr` says it, and ends well itself.
    let deleted = ctr(&["tasks", "delete", "one"]).ok();
    let told = deleted.stderr.contains("exit code 137");
    assert!(told, "{}", deleted.transcript());
    ctr(&["containers", "delete", "one"]).ok();
    wait_for("nothing of it", SOON, || {
        shims().is_empty() && device.machine.property(SCOPE, "ActiveState") == "inactive"
    });
}

#[test]
fn a_refusal_is_in_the_journal_and_in_the_status() {
    let device = device();
    let refused = run(&device, &["--rm"], "bad", &["/empty"]);
    assert_ne!(refused.code, Some(0));
    assert!(
        refused.stderr.contains("is empty"),
        "{}",
        refused.transcript()
    );
    let id = "MESSAGE_ID=b517af57002a4a57abfee016fcb18259";
    let mut record = Value::Null;
    wait_for("a record", SOON, || {
        let said = device.machine.run(["journalctl", "--output", "json", id]);
        record = serde_json::from_str(&said.text()).unwrap_or_default();
        !record.is_null()
    });
    assert_eq!(record["CONTAINER_ID"], "bad", "{record}");
    assert_eq!(record["CONTAINER_NAMESPACE"], NAMESPACE, "{record}");
    assert_eq!(record["EDGEPULL_REASON"], "empty", "{record}");
    assert_eq!(record["PRIORITY"], "3", "{record}");
    let text = record["MESSAGE"].as_str().unwrap();
    assert!(refused.stderr.contains(text), "{text}\n{}", refused.stderr);
    // What people read who ask for an explanation.
    let said = device
        .machine
        .run(["journalctl", "--catalog", "--no-pager", id]);
    assert!(said.text().contains("edgepull verify"), "{}", said.text());
    let rows = &device.status()["refused_starts"];
    assert_eq!(rows[0]["container"], "bad", "{rows}");
    assert_eq!(rows[0]["reason"], "empty", "{rows}");
}
