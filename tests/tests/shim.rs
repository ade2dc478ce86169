//! The shim by containerd's Task API: each method, each event, each way to be refused.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::fs;
use std::thread;

use edgepull_tests::containerd::Version;
use edgepull_tests::dock::{Code, Dock, Stdio, rootfs, running, wire};
use edgepull_tests::on_each_containerd;
use edgepull_tests::process::{self, wait_for};
use prost::Message;
use serde_json::json;

const SOON: std::time::Duration = std::time::Duration::from_secs(60);

fn a_life_is_told_from_create_to_delete(version: Version) {
    let dock = Dock::new(version);
    let events = dock.events();
    let task = dock.make("life").args(&["sleep", "600"]).created();
    assert_eq!(task.status(), "CREATED");
    assert!(process::alive(task.pid), "{}", task.pid);
    assert_eq!(task.start().unwrap(), task.pid);
    assert_eq!(task.status(), "RUNNING");
    let exec = task.exec("probe").sh("exit 5");
    exec.add().unwrap();
    let pid = exec.start().unwrap();
    assert_eq!(exec.wait(), 5);
    assert_eq!(exec.status(), "STOPPED");
    assert_eq!(exec.delete().unwrap(), 5);
    task.kill(9).unwrap();
    assert_eq!(task.wait(), 137);
    assert_eq!(task.status(), "STOPPED");
    let (id, init) = (task.id().to_owned(), task.pid);
    assert_eq!(task.delete().unwrap(), 137);
    events.wait(&id, "delete", "");
    let names = [
        "create",
        "start",
        "exec-added probe",
        "exec-started probe",
        "exit probe",
        "exit",
        "delete",
    ];
    assert_eq!(events.names(&id), names);
    let told: Vec<(u32, u32)> = events
        .about(&id)
        .iter()
        .map(|e| (e.pid, e.status))
        .collect();
    let expected = [
        (init, 0),
        (init, 0),
        (0, 0),
        (pid, 0),
        (pid, 5),
        (init, 137),
        (init, 137),
    ];
    assert_eq!(told, expected);
    // An end is told with the id of what ended: the container's own for its first process.
    assert_eq!(events.wait(&id, "exit", &id).pid, init);
    dock.is_clean();
}

fn pause_and_resume(version: Version) {
    let dock = Dock::new(version);
    let events = dock.events();
    let task = running(&dock, "pause");
    let exec = task.exec("sleeper").args(&["sleep", "600"]);
    exec.run();
    dock.client().pause(task.id()).unwrap();
    assert_eq!(task.status(), "PAUSED");
    assert_eq!(exec.status(), "PAUSED");
    let added = task
        .exec("late")
        .add()
        .and_then(|()| task.exec("late").start().map(|_| ()));
    let refused = added.unwrap_err();
    assert!(refused.message().contains("paused"), "{refused:?}");
    assert!(
        !events
            .names(task.id())
            .iter()
            .any(|name| name == "exec-started late")
    );
    dock.client().resume(task.id()).unwrap();
    assert_eq!(task.status(), "RUNNING");
    assert_eq!(exec.status(), "RUNNING");
    events.wait(task.id(), "resumed", "");
    let told = events.names(task.id());
    let (pause, resume) = (position(&told, "paused"), position(&told, "resumed"));
    assert!(pause < resume, "{told:?}");
    // One that is killed while it is paused ends as any other.
    dock.client().pause(task.id()).unwrap();
    task.end_by_force();
    dock.is_clean();
}

fn position(names: &[String], name: &str) -> usize {
    let at = names.iter().position(|one| one == name);
    at.unwrap_or_else(|| panic!("no {name} in {names:?}"))
}

fn exit_codes_and_signals(version: Version) {
    let dock = Dock::new(version);
    for (script, status) in [("exit 0", 0), ("exit 3", 3), ("exit 255", 255)] {
        assert_eq!(dock.sh("exit", script).end(), status, "{script}");
    }
    let task = running(&dock, "signals");
    for (n, (script, status)) in [
        ("exit 0", 0),
        ("exit 77", 77),
        ("kill -SEGV $$", 139),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
        ("kill -34 $$", 162),
    ]
    .into_iter()
    .enumerate()
    {
        let exec = task.exec(&format!("exec{n}")).sh(script);
        exec.run();
        assert_eq!(exec.end(), status, "{script}");
    }
    task.end_by_force();
    dock.is_clean();
}

/// Any number reaches both, those of real time as well.
fn signals_of_any_number(version: Version) {
    let dock = Dock::new(version);
    let script =
        "trap 'exit 41' 40; trap 'exit 16' TERM; touch /tmp/ready; while :; do sleep 0.05; done";
    for (signal, status) in [(40, 41), (15, 16)] {
        let task = dock.make("init").sh(script);
        let ready = task.dir().join("upper/tmp/ready");
        let task = task.start();
        wait_for("the trap", SOON, || ready.exists());
        task.kill(signal).unwrap();
        assert_eq!(task.end(), status);
    }
    let task = running(&dock, "exec");
    for signal in [1, 15, 31, 34, 40, 64] {
        let exec = task.exec(&format!("of{signal}")).args(&["sleep", "600"]);
        let name = format!("/proc/{}/comm", exec.run());
        // Until then it is runc's own, which swallows some of them.
        wait_for("the command itself", SOON, || {
            fs::read_to_string(&name).unwrap() == "sleep\n"
        });
        exec.kill(signal).unwrap();
        assert_eq!(exec.end(), 128 + signal, "signal {signal}");
    }
    assert_eq!(task.status(), "RUNNING");
    task.end_by_force();
    dock.is_clean();
}

fn everybody_who_waits_is_told(version: Version) {
    let dock = Dock::new(version);
    let task = running(&dock, "waited");
    let exec = task.exec("exec").args(&["sleep", "600"]);
    exec.run();
    let waiters: Vec<_> = (0..8)
        .map(|n| {
            let client = dock.connect();
            let (id, exec) = (task.id().to_owned(), if n % 2 == 0 { "" } else { "exec" });
            thread::spawn(move || (exec, client.wait(&id, exec).unwrap().exit_status))
        })
        .collect();
    // While they wait, others are answered.
    assert_eq!(task.status(), "RUNNING");
    exec.kill(15).unwrap();
    assert_eq!(exec.wait(), 143);
    task.kill(9).unwrap();
    for waiter in waiters {
        let (exec, status) = waiter.join().unwrap();
        assert_eq!(status, if exec.is_empty() { 137 } else { 143 });
    }
    // And whoever asks afterwards is answered at once.
    assert_eq!(exec.end(), 143);
    assert_eq!(task.end(), 137);
    dock.is_clean();
}

fn what_is_not_there_cannot_be_killed(version: Version) {
    let dock = Dock::new(version);
    let client = dock.client();
    assert_eq!(
        client.kill("nobody", "", 9, false).unwrap_err().code(),
        Code::NotFound
    );
    let task = running(&dock, "kill");
    assert_eq!(
        task.exec("nobody").kill(9).unwrap_err().code(),
        Code::NotFound
    );
    let exec = task.exec("added").args(&["true"]);
    exec.add().unwrap();
    assert_eq!(exec.kill(9).unwrap_err().code(), Code::FailedPrecondition);
    exec.start().unwrap();
    exec.wait();
    assert_eq!(exec.kill(9).unwrap_err().code(), Code::NotFound);
    exec.delete().unwrap();
    task.kill(9).unwrap();
    task.wait();
    assert_eq!(task.kill(9).unwrap_err().code(), Code::NotFound);
    assert_eq!(
        task.kill_all(9)
            .map_err(|e| e.code())
            .err()
            .unwrap_or(Code::NotFound),
        Code::NotFound
    );
    task.delete().unwrap();
    dock.is_clean();
}

/// Where the container has no namespace of its own for processes, the kernel ends nothing with the
/// first one.
fn nothing_outlives_the_first_process(version: Version) {
    let dock = Dock::new(version);
    let events = dock.events();
    let shared = |name: &str| {
        dock.make(name).spec(|spec| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "pid");
        })
    };
    let pid_of = |make: &std::path::Path| -> u32 {
        let file = make.join("upper/tmp/pid");
        wait_for("a background process", SOON, || file.exists());
        let text = std::fs::read_to_string(file).unwrap();
        text.trim().parse().unwrap()
    };
    // By its own end.
    let script = "sleep 600 & echo $! >/tmp/p; mv /tmp/p /tmp/pid; read x </dev/zero; sleep 600";
    let make = shared("shared").sh(&script.replace("read x </dev/zero; sleep 600", "sleep 600"));
    let dir = make.dir();
    let task = make.start();
    let child = pid_of(&dir);
    let exec = task.exec("exec").args(&["sleep", "600"]);
    let exec_pid = exec.run();
    assert!(process::alive(child));
    task.kill(9).unwrap();
    assert_eq!(task.wait(), 137);
    dock.wait_dead(child);
    dock.wait_dead(exec_pid);
    // The end of the first process is the last that is told.
    events.wait(task.id(), "exit", task.id());
    let told = events.names(task.id());
    assert!(
        position(&told, "exit exec") < position(&told, "exit"),
        "{told:?}"
    );
    exec.delete().unwrap();
    task.end();
    // By one signal to all of them.
    let make = shared("all").sh(script);
    let dir = make.dir();
    let task = make.start();
    let child = pid_of(&dir);
    task.kill_all(9).unwrap();
    assert_eq!(task.wait(), 137);
    dock.wait_dead(child);
    task.end();
    dock.is_clean();
}

fn processes_are_listed_with_their_execs(version: Version) {
    let dock = Dock::new(version);
    let make = dock
        .make("pids")
        .sh("sleep 600 & echo $! >/tmp/p; mv /tmp/p /tmp/pid; wait");
    let ready = make.dir().join("upper/tmp/pid");
    let task = make.start();
    wait_for("a background process", SOON, || ready.exists());
    let exec = task.exec("listed").args(&["sleep", "600"]);
    let pid = exec.run();
    let pids = dock.client().pids(task.id()).unwrap();
    assert_eq!(pids.len(), 3, "{pids:?}");
    let named: Vec<(u32, String)> = pids
        .iter()
        .filter_map(|one| {
            let info = one.info.as_ref()?;
            assert!(
                info.type_url.ends_with("containerd.runc.v1.ProcessDetails"),
                "{info:?}"
            );
            let details = wire::ProcessDetails::decode(info.value.as_slice()).unwrap();
            Some((one.pid, details.exec_id))
        })
        .collect();
    assert_eq!(named, [(pid, "listed".to_owned())]);
    assert!(pids.iter().any(|one| one.pid == task.pid));
    task.kill(9).unwrap();
    exec.end();
    task.end();
    dock.is_clean();
}

fn limits_and_numbers(version: Version) {
    const LIMIT: u64 = 64 << 20;
    let dock = Dock::new(version);
    let task = dock
        .make("numbers")
        .sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; touch /tmp/ready; sleep 600; true")
        .spec(|spec| spec["linux"]["resources"]["pids"] = json!({"limit": 37}));
    let ready = task.dir().join("upper/tmp/ready");
    let task = task.start();
    wait_for("some work", SOON, || ready.exists());
    let numbers = || {
        let any = dock.client().metrics(task.id()).unwrap().expect("metrics");
        // This machine has control groups of the first version (or both, which count as that).
        assert!(
            any.type_url.ends_with("io.containerd.cgroups.v1.Metrics"),
            "{any:?}"
        );
        wire::Metrics::decode(any.value.as_slice()).unwrap()
    };
    let before = numbers();
    let pids = before.pids.unwrap();
    assert_eq!((pids.current, pids.limit), (2, 37), "sh and sleep");
    assert!(before.cpu.unwrap().usage.unwrap().total > 0);
    let usage = before.memory.unwrap().usage.unwrap();
    assert!(usage.usage > 0 && usage.max >= usage.usage, "{usage:?}");
    assert_ne!(usage.limit, LIMIT);
    let resources = json!({"memory": {"limit": LIMIT}, "cpu": {"shares": 512}});
    dock.client().update(task.id(), &resources).unwrap();
    assert_eq!(task.memory("memory.limit_in_bytes"), LIMIT.to_string());
    assert_eq!(task.memory("cpu.shares"), "512");
    assert_eq!(numbers().memory.unwrap().usage.unwrap().limit, LIMIT);
    let wrong = dock
        .client()
        .update(task.id(), &json!({"memory": {"limit": 1}}));
    assert!(
        wrong.is_err(),
        "a limit of one byte is refused by the kernel"
    );
    let id = task.id().to_owned();
    task.kill(9).unwrap();
    task.end();
    let gone = dock.client().metrics(&id);
    assert!(matches!(gone, Ok(None)), "{gone:?}");
    dock.is_clean();
}

fn memory_that_runs_out_is_told(version: Version) {
    let dock = Dock::new(version);
    let events = dock.events();
    let limit = json!({"limit": 16 << 20, "swap": 16 << 20});
    let task = dock
        .make("oom")
        .sh("x=a; while :; do x=$x$x; done")
        .spec(|spec| spec["linux"]["resources"]["memory"] = limit.clone())
        .start();
    assert_eq!(task.wait(), 137);
    events.wait(task.id(), "oom", "");
    events.wait(task.id(), "exit", task.id());
    let told = events.names(task.id());
    assert!(position(&told, "oom") < position(&told, "exit"), "{told:?}");
    // Of an exec as well, which does not end the container.
    let other = dock
        .make("oom-exec")
        .args(&["sleep", "600"])
        .spec(|spec| spec["linux"]["resources"]["memory"] = limit)
        .start();
    let exec = other.exec("eater").sh("x=a; while :; do x=$x$x; done");
    exec.run();
    assert_eq!(exec.end(), 137);
    events.wait(other.id(), "oom", "");
    task.end();
    other.end_by_force();
    dock.is_clean();
}

fn execs_that_are_refused(version: Version) {
    let dock = Dock::new(version);
    let events = dock.events();
    let task = running(&dock, "execs");
    let exec = task.exec("twice").args(&["sleep", "600"]);
    exec.add().unwrap();
    assert_eq!(exec.add().unwrap_err().code(), Code::AlreadyExists);
    exec.start().unwrap();
    assert_eq!(exec.add().unwrap_err().code(), Code::AlreadyExists);
    let running = exec.delete().unwrap_err();
    assert!(running.message().contains("running"), "{running:?}");
    exec.kill(9).unwrap();
    assert_eq!(exec.end(), 137);
    assert_eq!(exec.delete().unwrap_err().code(), Code::NotFound);
    // The id is free again.
    exec.run();
    exec.kill(9).unwrap();
    assert_eq!(exec.end(), 137);
    // runc's own words for what it cannot start; the container goes on.
    let missing = task.exec("missing").args(&["/no/such/program"]);
    missing.add().unwrap();
    let said = missing.start().unwrap_err();
    assert!(said.message().contains("/no/such/program"), "{said:?}");
    assert!(said.message().contains("no such file"), "{said:?}");
    missing.delete().unwrap();
    // As one that was never started.
    let never = task.exec("never");
    never.add().unwrap();
    never.delete().unwrap();
    // One that was added before the end, and is started after it.
    let late = task.exec("late");
    late.add().unwrap();
    task.kill(9).unwrap();
    task.wait();
    assert_eq!(late.start().unwrap_err().code(), Code::FailedPrecondition);
    let told = events.names(task.id());
    for absent in [
        "exec-started missing",
        "exit missing",
        "exec-started never",
        "exec-started late",
    ] {
        assert!(!told.iter().any(|name| name == absent), "{told:?}");
    }
    let _of_a_stopped_one = late.delete();
    let id = task.id().to_owned();
    task.end();
    assert_eq!(
        dock.client().delete(&id).unwrap_err().code(),
        Code::NotFound
    );
    dock.is_clean();
}

/// The second start is refused, and changes nothing.
fn what_runs_cannot_be_started(version: Version) {
    let dock = Dock::new(version);
    let events = dock.events();
    let task = running(&dock, "started");
    assert!(task.start().is_err());
    let exec = task.exec("twice").args(&["sleep", "600"]);
    let pid = exec.run();
    assert!(exec.start().is_err());
    assert_eq!(task.status(), "RUNNING");
    assert_eq!(exec.status(), "RUNNING");
    assert_eq!(dock.client().pids(task.id()).unwrap().len(), 2);
    exec.kill(9).unwrap();
    assert_eq!(exec.wait(), 137);
    // Nor does what has ended start again.
    assert!(exec.start().is_err());
    assert_eq!(exec.end(), 137);
    task.kill(9).unwrap();
    task.wait();
    assert!(task.start().is_err());
    assert_eq!(events.wait(task.id(), "exit", "twice").pid, pid);
    let told = events.names(task.id());
    let starts = told.iter().filter(|name| name.contains("start"));
    assert_eq!(starts.count(), 2, "{told:?}");
    task.end();
    dock.is_clean();
}

fn what_runs_cannot_be_deleted(version: Version) {
    let dock = Dock::new(version);
    let task = running(&dock, "delete");
    let refused = task.delete().unwrap_err();
    assert!(refused.message().contains("running"), "{refused:?}");
    assert!(
        matches!(refused.code(), Code::FailedPrecondition | Code::Unknown),
        "{refused:?}"
    );
    assert_eq!(task.status(), "RUNNING");
    // The same id once more.
    let again = dock
        .client()
        .create(containerd_client::services::v1::CreateTaskRequest {
            container_id: task.id().to_owned(),
            ..Default::default()
        });
    assert_eq!(again.unwrap_err().code(), Code::AlreadyExists);
    task.end_by_force();
    // One that was created and never started can go.
    let created = dock.make("created").args(&["sleep", "600"]).created();
    created.kill(9).unwrap();
    assert_eq!(created.end(), 137);
    dock.is_clean();
}

fn what_cannot_be_created_leaves_nothing(version: Version) {
    let dock = Dock::new(version);
    let events = dock.events();
    let missing = dock.make("missing").args(&["no-such-program"]);
    let id = missing.id().to_owned();
    let said = missing.refused();
    assert!(said.message().contains("no-such-program"), "{said:?}");
    assert!(
        said.message().contains("executable file not found"),
        "{said:?}"
    );
    dock.is_clean();
    // A mount that fails, after one that did not.
    let broken = dock.make("mounts").mounts(vec![
        mount("bind", rootfs().to_str().unwrap(), &["rbind", "ro"]),
        mount("nosuchfilesystem", "none", &[]),
    ]);
    let said = broken.refused();
    assert!(said.message().contains("mount"), "{said:?}");
    dock.is_clean();
    // And what the OCI runtime does not like in the specification.
    let wrong = dock.make("wrong").args(&["true"]).spec(|spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|one| one["type"] != "network");
        namespaces.push(json!({"type": "network", "path": "/no/such/namespace"}));
    });
    let said = wrong.refused();
    assert!(
        said.message().contains("OCI runtime create failed"),
        "{said:?}"
    );
    assert!(said.message().contains("/no/such/namespace"), "{said:?}");
    dock.is_clean();
    let started = events.names(&id).into_iter().any(|name| name == "start");
    assert!(!started, "{:?}", events.names(&id));
}

fn mount(kind: &str, source: &str, options: &[&str]) -> containerd_client::types::Mount {
    containerd_client::types::Mount {
        r#type: kind.to_owned(),
        source: source.to_owned(),
        target: String::new(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
    }
}

fn a_terminal_has_its_size(version: Version) {
    let dock = Dock::new(version);
    let make = dock.make("tty");
    let stdio = Stdio::terminal(&make.dir());
    let out = stdio.read_stdout();
    let task = make
        .sh("until [ \"$(stty size)\" = '33 99' ]; do sleep 0.02; done 2>/dev/null; stty size; tty")
        .stdio(&stdio)
        .start();
    dock.client().resize(task.id(), "", 99, 33).unwrap();
    assert_eq!(task.end(), 0);
    assert_eq!(out.text(), "33 99\r\n/dev/pts/0\r\n");
    // Of an exec, and of what has none: no error.
    let task = running(&dock, "exec-tty");
    let stdio = Stdio::terminal(&task.dir());
    let out = stdio.read_stdout();
    let exec = task
        .exec("tty")
        .sh("until [ \"$(stty size)\" = '11 222' ]; do sleep 0.02; done 2>/dev/null; stty size")
        .stdio(&stdio);
    exec.run();
    dock.client().resize(task.id(), "tty", 222, 11).unwrap();
    assert_eq!(exec.end(), 0);
    assert_eq!(out.text(), "11 222\r\n");
    dock.client().resize(task.id(), "", 80, 24).unwrap();
    task.end_by_force();
    dock.is_clean();
}

on_each_containerd!(
    a_life_is_told_from_create_to_delete,
    pause_and_resume,
    exit_codes_and_signals,
    signals_of_any_number,
    everybody_who_waits_is_told,
    what_is_not_there_cannot_be_killed,
    nothing_outlives_the_first_process,
    processes_are_listed_with_their_execs,
    limits_and_numbers,
    memory_that_runs_out_is_told,
    execs_that_are_refused,
    what_runs_cannot_be_started,
    what_runs_cannot_be_deleted,
    what_cannot_be_created_leaves_nothing,
    a_terminal_has_its_size,
);
