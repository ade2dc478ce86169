//! The OCI runtimes below the shim: crun as well as runc, however it is asked for; one that is too
//! old; checkpoints, where criu is there and where it is not.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use edgepull_tests::containerd::{Setup, Version};
use edgepull_tests::dock::{Dock, Make, Stdio, crun, wire};
use edgepull_tests::on_each_containerd;
use edgepull_tests::process::{self, wait_for};
use edgepull_tests::scene::NAMESPACE;
use edgepull_tests::tools::Lab;
use nix::sys::signal::Signal;
use prost::Message;
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);
const STATE: &str = "/run/containerd/runc";

/// True if crun made the container: it writes other names into its state than runc.
fn is_of_crun(state: &Path, id: &str) -> bool {
    state.join(id).join("status").is_file()
}

/// systemd gives containerd a socket to say on that it is ready. It is not a container's: runc would
/// wait for a word of it. No signal is ignored either, and no variable of ours is left.
fn a_container_begins_as_its_specification_says(version: Version) {
    let run = Lab::get().run_dir("notify");
    let socket = run.path().join("s");
    let _systemd = UnixDatagram::bind(&socket).unwrap();
    let setup = Setup::new(version).env("NOTIFY_SOCKET", &socket.to_string_lossy());
    let dock = Dock::with(setup);
    let make = dock.make("clean");
    let stdio = Stdio::out_err(&make.dir());
    let (out, _err) = (stdio.read_stdout(), stdio.read_stderr());
    let task = make
        .sh("env; grep SigIgn /proc/self/status; echo /run/*")
        .stdio(&stdio)
        .start();
    assert_eq!(task.wait(), 0);
    task.end();
    let seen = out.text();
    assert!(seen.contains("SigIgn:\t0000000000000000"), "{seen}");
    for foreign in ["NOTIFY_SOCKET", "/run/notify", "GOGC", "GOMEMLIMIT"] {
        assert!(!seen.contains(foreign), "{foreign}: {seen}");
    }
    let task = dock.make("other").args(&["sleep", "600"]).start();
    // Without a shell, which ignores some itself.
    let words = [
        "grep",
        "-q",
        "SigIgn:.0000000000000000",
        "/proc/self/status",
    ];
    let exec = task.exec("too").args(&words);
    exec.run();
    assert_eq!(exec.end(), 0, "an exec ignores nothing");
    task.end_by_force();
}

/// A process without root's rights may open again what it was given. runc makes them the process's
/// user's afterwards, and leaves the group.
fn the_streams_are_whose_the_options_say(version: Version) {
    let dock = Dock::new(version);
    let options = wire::RuncOptions {
        io_uid: 33,
        io_gid: 34,
        ..wire::RuncOptions::default()
    };
    let script = "for n in 0 1 2; do stat -L -c %u:%g /proc/self/fd/$n; done";
    let make = dock.make("owned").options(options.any());
    let stdio = Stdio::all(&make.dir());
    let streams = Stdio::all(&make.dir().join("exec"));
    let (out, _err) = (stdio.read_stdout(), stdio.read_stderr());
    let task = make
        .sh(&format!("{script}; exec sleep 600"))
        .stdio(&stdio)
        .start();
    let (said, _err) = (streams.read_stdout(), streams.read_stderr());
    let exec = task.exec("too").sh(script).stdio(&streams);
    exec.run();
    assert_eq!(exec.end(), 0);
    assert_eq!(said.text(), "0:34\n".repeat(3));
    task.end_by_force();
    assert_eq!(out.text(), "0:34\n".repeat(3));
    dock.is_clean();
}

/// For whoever wonders what a shim is at.
fn a_shim_tells_its_state_when_it_is_asked_by_a_signal(version: Version) {
    let dock = Dock::new(version);
    let task = dock.make("told").args(&["sleep", "600"]).start();
    let exec = task.exec("beside").args(&["sleep", "600"]);
    exec.run();
    process::send(dock.shim(), Signal::SIGUSR1);
    let words = format!("{} (Running, pid {}, 1 execs)", task.id(), task.pid);
    wait_for("its words", SOON, || dock.daemon.log().contains(&words));
    assert_eq!(task.status(), "RUNNING");
    exec.kill(9).unwrap();
    exec.end();
    task.end_by_force();
    dock.is_clean();
}

fn crun_does_what_runc_does(version: Version) {
    let dock = Dock::new(version);
    let events = dock.events();
    let make = dock.make("crun").oci_runtime(&crun());
    let stdio = Stdio::out_err(&make.dir());
    let (out, _err) = (stdio.read_stdout(), stdio.read_stderr());
    let task = make
        .sh("seq 1 100000; sleep 600")
        .spec(|spec| spec["linux"]["resources"]["pids"] = json!({"limit": 41}))
        .stdio(&stdio)
        .start();
    assert!(is_of_crun(&Path::new(STATE).join(NAMESPACE), task.id()));
    let exec = task.exec("exec").sh("kill -USR1 $$");
    exec.run();
    assert_eq!(exec.end(), 128 + 10);
    let pty = Stdio::terminal(&task.dir());
    let seen = pty.read_stdout();
    let exec = task.exec("tty").args(&["tty"]).stdio(&pty);
    exec.run();
    assert_eq!(exec.end(), 0);
    assert!(seen.text().starts_with("/dev/pts/"));
    let missing = task.exec("missing").args(&["/no/such/program"]);
    missing.add().unwrap();
    let said = missing.start().unwrap_err();
    assert!(said.message().contains("/no/such/program"), "{said:?}");
    dock.client().pause(task.id()).unwrap();
    assert_eq!(task.status(), "PAUSED");
    dock.client().resume(task.id()).unwrap();
    dock.client()
        .update(task.id(), &json!({"memory": {"limit": 64 << 20}}))
        .unwrap();
    assert_eq!(task.memory("memory.limit_in_bytes"), (64 << 20).to_string());
    let numbers = dock.client().metrics(task.id()).unwrap().unwrap();
    let numbers = wire::Metrics::decode(numbers.value.as_slice()).unwrap();
    assert_eq!(numbers.pids.unwrap().limit, 41);
    assert_eq!(numbers.memory.unwrap().usage.unwrap().limit, 64 << 20);
    assert!(
        dock.client()
            .pids(task.id())
            .unwrap()
            .iter()
            .any(|one| one.pid == task.pid)
    );
    task.kill(9).unwrap();
    assert_eq!(task.wait(), 137);
    assert!(task.kill(9).is_err());
    let id = task.id().to_owned();
    task.end();
    assert!(out.text().ends_with("\n100000\n"));
    events.wait(&id, "delete", "");
    let told = events.names(&id);
    for what in ["create", "start", "paused", "resumed", "exit", "delete"] {
        assert_eq!(
            told.iter().filter(|name| *name == what).count(),
            1,
            "{what}: {told:?}"
        );
    }
    dock.is_clean();
    let said = dock
        .make("missing")
        .oci_runtime(&crun())
        .args(&["no-such-program"])
        .refused();
    assert!(said.message().contains("no-such-program"), "{said:?}");
    dock.is_clean();
}

/// By either kind of options, and with a state directory of its own.
fn an_oci_runtime_is_asked_for_in_each_way(version: Version) {
    let dock = Dock::new(version);
    let binary = crun();
    let binary = binary.to_str().unwrap();
    let root = dock.daemon.dir().join("oci");
    let root = root.to_str().unwrap();
    let body = |text: String| wire::RuntimeOptions {
        config_body: text.into_bytes(),
        ..wire::RuntimeOptions::default()
    };
    let file = dock.daemon.dir().join("options.toml");
    fs::write(
        &file,
        format!("BinaryName = \"{binary}\"\nRoot = \"{root}\"\n"),
    )
    .unwrap();
    for options in [
        wire::RuncOptions {
            binary_name: binary.to_owned(),
            root: root.to_owned(),
            ..wire::RuncOptions::default()
        }
        .any(),
        body(format!("BinaryName = \"{binary}\"\nRoot = \"{root}\"\n")).any(),
        wire::RuntimeOptions {
            config_path: file.to_str().unwrap().to_owned(),
            ..wire::RuntimeOptions::default()
        }
        .any(),
    ] {
        let task = dock
            .make("asked")
            .options(options.clone())
            .args(&["sleep", "600"])
            .start();
        let state = Path::new(root).join(NAMESPACE);
        assert!(is_of_crun(&state, task.id()), "{options:?}");
        task.end_by_force();
        dock.is_clean();
        assert_eq!(fs::read_dir(state).unwrap().count(), 0);
    }
    // What cannot be read is said, and nothing is left.
    for (options, part) in [
        (body("BinaryName = 7".to_owned()).any(), "options"),
        (
            wire::RuncOptions {
                binary_name: "/no/such/runtime".to_owned(),
                ..wire::RuncOptions::default()
            }
            .any(),
            "/no/such/runtime",
        ),
    ] {
        let said = dock
            .make("wrong")
            .options(options)
            .args(&["true"])
            .refused();
        assert!(said.message().contains(part), "{said:?}");
        dock.is_clean();
    }
}

/// Debian 12's crun, with what containerd 1.7 and later write: said in words that help.
fn a_crun_that_is_too_old_is_named(version: Version) {
    let dock = Dock::new(version);
    let old = Lab::get().installed("crun");
    let said = dock
        .make("old")
        .oci_runtime(&old)
        .args(&["true"])
        .spec(|spec| spec["ociVersion"] = json!("1.2.0"))
        .refused();
    for part in ["unknown version", "crun 1.21"] {
        assert!(said.message().contains(part), "no `{part}` in {said:?}");
    }
    assert!(!said.message().contains('\n'), "{said:?}");
    dock.is_clean();
}

/// A counter that goes on where it was.
fn counting<'a>(dock: &'a Dock, name: &str) -> Make<'a> {
    dock.make(name)
        .sh("n=0; while :; do n=$((n+1)); echo $n >/tmp/new; mv /tmp/new /tmp/n; sleep 0.1; done")
}

fn count(dir: &Path) -> u32 {
    let text = fs::read_to_string(dir.join("upper/tmp/n")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

fn a_container_goes_on_from_its_checkpoint(version: Version) {
    let dock = Dock::new(version);
    let make = counting(&dock, "saved");
    let dir = make.dir();
    let task = make.start();
    wait_for("some counting", SOON, || count(&dir) > 5);
    let saved = dock.client().checkpoint(task.id(), None).unwrap();
    assert_eq!(task.status(), "RUNNING", "it goes on");
    let seen = count(&dir);
    task.end_by_force();
    let image = saved
        .into_iter()
        .find(|one| one.media_type.contains("checkpoint"))
        .expect("a checkpoint");
    let make = counting(&dock, "restored").checkpoint(image);
    let dir = make.dir();
    let task = make.created();
    task.start().unwrap();
    wait_for("a higher number", SOON, || count(&dir) > 0);
    assert!(
        count(&dir) + 5 > seen.min(5),
        "{} after {seen}",
        count(&dir)
    );
    assert!(count(&dir) > 5, "it did not begin again");
    assert_eq!(task.status(), "RUNNING");
    task.end_by_force();
    dock.is_clean();
}

fn a_checkpoint_without_criu_is_a_clear_error(version: Version) {
    let lab = Lab::get();
    let dirs = [
        lab.shim(),
        lab.tool("runc/usr/sbin/runc"),
        version.bin().join("containerd"),
        lab.installed("setpriv"),
    ];
    let path: Vec<&str> = dirs
        .iter()
        .map(|file| file.parent().unwrap().to_str().unwrap())
        .collect();
    let dock = Dock::with(Setup::new(version).env("PATH", &path.join(":")));
    let task = counting(&dock, "unsaved").start();
    let said = dock.client().checkpoint(task.id(), None).unwrap_err();
    assert!(said.message().contains("criu"), "{said:?}");
    assert!(!said.message().contains('\n'), "{said:?}");
    assert_eq!(task.status(), "RUNNING");
    task.end_by_force();
    dock.is_clean();
}

on_each_containerd!(
    a_container_begins_as_its_specification_says,
    the_streams_are_whose_the_options_say,
    a_shim_tells_its_state_when_it_is_asked_by_a_signal,
    crun_does_what_runc_does,
    an_oci_runtime_is_asked_for_in_each_way,
    a_crun_that_is_too_old_is_named,
    a_container_goes_on_from_its_checkpoint,
    a_checkpoint_without_criu_is_a_clear_error,
);
