//! Pods: the shim under containerd's own CRI plugin, asked as kubelet asks, by both ways of naming it
//! in containerd's configuration.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use edgepull_tests::containerd::Version;
use edgepull_tests::cri::{
    BY_NAME, BY_PATH, CRUN, GO, Kubelet, Pods, give_network, handlers, running_as, wire,
};
use edgepull_tests::dock::{Code, Dock, is_foreign, numbers};
use edgepull_tests::image::{AMD64, host};
use edgepull_tests::on_each_containerd;
use edgepull_tests::process::{self, wait_for};
use edgepull_tests::tools::Lab;
use nix::sys::signal::Signal;

const SHIM: &str = "containerd-shim-edgepull-v1";
const GO_SHIM: &str = "containerd-shim-runc-v2";

/// A time to sleep that no other process of this machine sleeps.
fn apart() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{}{n:03}", std::process::id())
}

/// What must be the same however the shim is named.
fn each_way(version: Version, test: impl Fn(&Pods, &Kubelet<'_>, &str)) {
    let pods = Pods::new(version);
    let kubelet = pods.kubelet();
    for handler in handlers(version) {
        test(&pods, &kubelet, handler);
        pods.dock.is_clean();
    }
}

fn a_pod_is_one_process(version: Version) {
    each_way(version, |pods, kubelet, handler| {
        let pod = kubelet.pod(handler);
        let shim = pods.dock.shim();
        if !is_foreign() {
            assert_eq!(pods.programs(), [SHIM], "{handler}");
        }
        let [one, two] = ["one", "two"].map(|name| kubelet.run(&pod, name, &["sleep", "600"]));
        assert_eq!(pods.dock.shim(), shim);
        assert_eq!(kubelet.pod_status(&pod).state, wire::READY);
        assert_eq!(kubelet.pod_status(&pod).runtime_handler, handler);
        let mut ids = [one.id.clone(), two.id.clone()];
        ids.sort();
        assert_eq!(kubelet.containers(&pod), ids);
        for container in [&one, &two] {
            let status = kubelet.status(container);
            assert_eq!(status.state, wire::RUNNING, "{status:?}");
            assert!(status.started_at > 0 && status.finished_at == 0);
            // Of the two OCI runtimes crun alone has such a file.
            let state = Path::new("/run/containerd/runc/k8s.io").join(&container.id);
            assert!(state.is_dir());
            assert_eq!(state.join("status").exists(), handler == CRUN, "{handler}");
            // By itself among its processes.
            assert_eq!(kubelet.says(container, "echo $PPID"), "0\n");
            assert_eq!(
                kubelet.says(container, "cat /proc/1/cmdline"),
                "sleep\x00600\0"
            );
        }
        // One that ends leaves the other, and another one can come.
        kubelet.stop(&one, 0).unwrap();
        kubelet.remove(&one).unwrap();
        assert_eq!(kubelet.status(&two).state, wire::RUNNING);
        kubelet.run(&pod, "three", &["sleep", "600"]);
        assert_eq!(pods.dock.shim(), shim);
        kubelet.end(&pod);
    });
}

fn an_exec_is_told_in_full(version: Version) {
    each_way(version, |_, kubelet, handler| {
        let pod = kubelet.pod(handler);
        let container = kubelet.run(&pod, "app", &["sleep", "600"]);
        let script = "echo to out; echo to err >&2; exit 42";
        let said = kubelet.exec(&container, &["sh", "-c", script], 30).unwrap();
        assert_eq!(said.exit_code, 42);
        assert_eq!(said.stdout, b"to out\n");
        assert_eq!(said.stderr, b"to err\n");
        let said = kubelet.says(&container, "seq 1 200000");
        assert_eq!(said.lines().count(), 200_000);
        assert!(said.ends_with("\n200000\n"));
        // A program that is not there, as runc says it.
        let said = kubelet.exec(&container, &["/no/such/program"], 30);
        assert!(
            said.unwrap_err().message().contains("/no/such/program"),
            "by name"
        );
        // What takes too long is ended.
        let seconds = apart();
        let begun = Instant::now();
        let late = kubelet.exec(&container, &["sleep", &seconds], 1);
        assert_eq!(late.unwrap_err().code(), Code::DeadlineExceeded);
        assert!(begun.elapsed() < Duration::from_secs(30));
        assert_eq!(running_as(&format!("sleep {seconds}")), [0; 0]);
        assert_eq!(kubelet.says(&container, "echo on"), "on\n");
        assert_eq!(kubelet.status(&container).state, wire::RUNNING);
        kubelet.end(&pod);
    });
}

/// What an exec left behind holds its streams: the shim lets go of them when it is told to delete it.
fn an_exec_is_not_held_up_by_what_it_left(version: Version) {
    each_way(version, |_, kubelet, handler| {
        let pod = kubelet.pod(handler);
        let container = kubelet.run(&pod, "app", &["sleep", "600"]);
        let line = format!("sleep {}", apart());
        let script = format!("echo before; {line} & true");
        // Since 1.7, by containerd's `drain_exec_sync_io_timeout`.
        if version != Version::V1_6 {
            let begun = Instant::now();
            let said = kubelet.exec(&container, &["sh", "-c", &script], 60);
            let said = said.unwrap_err();
            assert!(said.message().contains("held by other"), "{said:?}");
            assert!(begun.elapsed() < Duration::from_secs(40));
            assert_eq!(running_as(&line).len(), 1);
        }
        assert_eq!(kubelet.says(&container, "echo on"), "on\n");
        kubelet.end(&pod);
        assert_eq!(running_as(&line), [0; 0]);
    });
}

fn a_log_is_complete_and_in_order(version: Version) {
    each_way(version, |_, kubelet, handler| {
        let pod = kubelet.pod(handler);
        // 1.2 MB to one, some to the other, and a line longer than an entry can be. 1.6 by itself loses the
        // end of a log where the container ends while it reads.
        let then = ["exit 0", "sleep 600"][usize::from(version == Version::V1_6)];
        let script = "seq 1 180000; seq 1 9000 >&2; head -c 70000 /dev/zero | tr '\\0' x; echo";
        let container = kubelet.sh(&pod, "log", &format!("{script}; {then}"));
        let text = |last| String::from_utf8(numbers(last, "\n")).unwrap();
        let wanted = text(180_000) + &"x".repeat(70_000) + "\n";
        assert!(wanted.len() > 1_000_000);
        wait_for("the log", Duration::from_secs(60), || {
            container.wrote("stdout").len() >= wanted.len()
                && container.wrote("stderr").ends_with("\n9000\n")
        });
        if version == Version::V1_6 {
            kubelet.stop(&container, 0).unwrap();
        } else {
            assert_eq!(kubelet.ended(&container).exit_code, 0);
        }
        let wrote = container.wrote("stdout");
        assert!(
            wrote == wanted,
            "{} of {} bytes, the last {:?}",
            wrote.len(),
            wanted.len(),
            &wrote[wrote.len().saturating_sub(40)..]
        );
        assert_eq!(container.wrote("stderr"), text(9_000));
        assert!(container.log().iter().any(|line| !line.full));
        kubelet.end(&pod);
    });
}

fn an_end_has_its_code_and_reason(version: Version) {
    each_way(version, |_, kubelet, handler| {
        let pod = kubelet.pod(handler);
        for (name, script, code, reason) in [
            ("well", "true", 0, "Completed"),
            ("badly", "exit 3", 3, "Error"),
            ("crash", "sh -c 'kill -SEGV $$'; exit $?", 139, "Error"),
        ] {
            let container = kubelet.sh(&pod, name, script);
            let ended = kubelet.ended(&container);
            assert_eq!(
                (ended.exit_code, ended.reason.as_str()),
                (code, reason),
                "{ended:?}"
            );
            assert!(ended.finished_at > 0, "{ended:?}");
            assert!(kubelet.exec(&container, &["true"], 30).is_err());
            kubelet.remove(&container).unwrap();
        }
        assert_eq!(kubelet.pod_status(&pod).state, wire::READY);
        kubelet.end(&pod);
    });
}

fn a_stop_gives_grace(version: Version) {
    each_way(version, |_, kubelet, handler| {
        let pod = kubelet.pod(handler);
        let tells = "echo ready; sleep 600 & wait";
        let heeds = kubelet.sh(
            &pod,
            "heeds",
            &format!("trap 'echo stopped; exit 7' TERM; {tells}"),
        );
        let deaf = kubelet.sh(&pod, "deaf", &format!("trap '' TERM; {tells}"));
        for container in [&heeds, &deaf] {
            wait_for("its first word", Duration::from_secs(30), || {
                container.wrote("stdout").starts_with("ready\n")
            });
        }
        let begun = Instant::now();
        kubelet.stop(&heeds, 60).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(50));
        let ended = kubelet.ended(&heeds);
        assert_eq!((ended.exit_code, ended.reason.as_str()), (7, "Error"));
        assert_eq!(heeds.wrote("stdout"), "ready\nstopped\n");
        let begun = Instant::now();
        kubelet.stop(&deaf, 2).unwrap();
        assert!(begun.elapsed() >= Duration::from_secs(2));
        assert_eq!(kubelet.ended(&deaf).exit_code, 137);
        // Again is no error.
        kubelet.stop(&deaf, 2).unwrap();
        kubelet.end(&pod);
    });
}

fn what_cannot_run_is_told_to_kubelet(version: Version) {
    let arch = if host() == AMD64 { "arm64" } else { "amd64" };
    each_way(version, |pods, kubelet, handler| {
        if handler == CRUN {
            // The lab's may be a script, and what is neither runc nor crun is not looked at before.
            return;
        }
        let pod = kubelet.pod(handler);
        let other = kubelet.run(&pod, "other", &["sleep", "600"]);
        let container = kubelet
            .create(&pod, "foreign", &["/foreign"], |_| ())
            .unwrap();
        let said = kubelet.start(&container).expect_err(handler);
        let this = format!("linux/{}", host().arch);
        let ended = kubelet.status(&container);
        // What `kubectl describe pod` shows is the message of the status.
        for line in [said.message(), &ended.message] {
            for part in ["/foreign", arch, &this, "edgepull check"] {
                assert!(line.contains(part), "no `{part}` in: {line}");
            }
            assert!(!line.contains('\n') && !line.contains("exec format"));
        }
        assert_eq!(ended.state, wire::EXITED, "{ended:?}");
        assert_eq!(
            (ended.exit_code, ended.reason.as_str()),
            (128, "StartError")
        );
        assert!(!pods.bundle(&container.id).exists());
        kubelet.remove(&container).unwrap();
        let refused = kubelet.exec(&other, &["/foreign"], 30).unwrap_err();
        assert!(refused.message().contains(arch), "{refused:?}");
        assert_eq!(kubelet.status(&other).state, wire::RUNNING);
        kubelet.end(&pod);
    });
}

fn too_much_memory_is_its_reason(version: Version) {
    each_way(version, |_, kubelet, handler| {
        let pod = kubelet.pod(handler);
        let eats = ["sh", "-c", "x=a; while :; do x=$x$x; done"];
        let limit = |config: &mut wire::ContainerConfig| {
            let linux = config.linux.as_mut().unwrap();
            let resources = linux.resources.as_mut().unwrap();
            resources.memory_limit_in_bytes = 16 << 20;
            resources.memory_swap_limit_in_bytes = 16 << 20;
        };
        let container = kubelet.create(&pod, "greedy", &eats, limit).unwrap();
        kubelet.start(&container).unwrap();
        let ended = kubelet.ended(&container);
        assert_eq!(
            (ended.exit_code, ended.reason.as_str()),
            (137, "OOMKilled"),
            "{ended:?}"
        );
        kubelet.end(&pod);
    });
}

fn limits_and_figures_are_of_the_container(version: Version) {
    each_way(version, |_, kubelet, handler| {
        let pod = kubelet.pod(handler);
        let script = "dd if=/dev/zero of=/dev/shm/held bs=1M count=20; echo held; sleep 600";
        let container = kubelet.sh(&pod, "holds", script);
        wait_for("20 MB held", Duration::from_secs(30), || {
            container.wrote("stdout").contains("held\n")
        });
        let stats = kubelet.stats(&container);
        let held = stats.memory.unwrap().working_set_bytes.unwrap().value;
        assert!((20 << 20..60 << 20).contains(&held), "{stats:?}");
        let used = stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value;
        assert!(used > 0, "{stats:?}");
        kubelet.limit_memory(&container, 64 << 20).unwrap();
        let group = Path::new("/sys/fs/cgroup/memory/k8s.io").join(&container.id);
        let limit = fs::read_to_string(group.join("memory.limit_in_bytes")).unwrap();
        assert_eq!(limit.trim(), (64 << 20).to_string());
        kubelet.end(&pod);
    });
}

fn a_killed_containerd_finds_its_pods_again(version: Version) {
    let mut pods = Pods::new(version);
    for handler in handlers(version) {
        let kubelet = pods.kubelet();
        let pod = kubelet.pod(handler);
        let stays = kubelet.run(&pod, "stays", &["sleep", "600"]);
        let dir = pods.dock.daemon.dir().join(handler);
        fs::create_dir(&dir).unwrap();
        let fifo = dir.join("fifo");
        let waits = kubelet
            .create(
                &pod,
                "waits",
                &["sh", "-c", "echo before; read line < /tell/fifo; exit 5"],
                |config| {
                    config.mounts.push(wire::Mount {
                        container_path: "/tell".to_owned(),
                        host_path: dir.to_str().unwrap().to_owned(),
                        ..wire::Mount::default()
                    });
                },
            )
            .unwrap();
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        kubelet.start(&waits).unwrap();
        let shim = pods.dock.shim();
        drop(kubelet);
        pods.dock.daemon.kill9();
        // Ends while nobody looks.
        fs::write(&fifo, "now\n").unwrap();
        let line = "sh -c echo before; read line < /tell/fifo; exit 5";
        wait_for("its end", Duration::from_secs(30), || {
            running_as(line).is_empty()
        });
        pods.dock.daemon.start_again();
        let kubelet = pods.kubelet();
        assert_eq!(pods.dock.shim(), shim);
        assert_eq!(kubelet.pod_status(&pod).state, wire::READY);
        assert_eq!(kubelet.status(&stays).state, wire::RUNNING);
        assert_eq!(kubelet.says(&stays, "echo here"), "here\n");
        // Of other shims' containers containerd, since 1.7, says `Unknown` and 255 then.
        let ended = kubelet.ended(&waits);
        let seen = (ended.exit_code, ended.reason.as_str());
        assert_eq!(seen, (5, "Error"), "{ended:?}");
        let after = kubelet.sh(&pod, "after", "exit 6");
        assert_eq!(kubelet.ended(&after).exit_code, 6);
        kubelet.stop(&stays, 0).unwrap();
        assert_eq!(kubelet.ended(&stays).exit_code, 137);
        kubelet.run(&pod, "new", &["sleep", "600"]);
        assert_eq!(pods.dock.shim(), shim);
        kubelet.end(&pod);
        pods.dock.is_clean();
    }
}

fn a_killed_shim_is_a_pod_that_is_not_ready(version: Version) {
    each_way(version, |pods, kubelet, handler| {
        let pod = kubelet.pod(handler);
        let container = kubelet.run(&pod, "app", &["sleep", "600"]);
        process::send(pods.dock.shim(), Signal::SIGKILL);
        let ended = kubelet.ended(&container);
        // Who comes first says it: the connection that broke (255) or the shim's `delete`.
        assert!([137, 255].contains(&ended.exit_code), "{ended:?}");
        assert_eq!(ended.reason, "Error", "{ended:?}");
        wait_for("the pod's end", Duration::from_secs(30), || {
            kubelet.pod_status(&pod).state == wire::NOT_READY
        });
        kubelet.end(&pod);
    });
}

fn ten_pods_at_once(version: Version) {
    let pods = Pods::new(version);
    thread::scope(|scope| {
        for n in 0..10 {
            let (pods, handlers) = (&pods, handlers(version));
            scope.spawn(move || {
                let kubelet = pods.kubelet();
                let pod = kubelet.pod(handlers[n % handlers.len()]);
                let stays = kubelet.run(&pod, "stays", &["sleep", "600"]);
                let ends = kubelet.sh(&pod, "ends", &format!("echo {n}; exit {n}"));
                assert_eq!(usize::try_from(kubelet.ended(&ends).exit_code), Ok(n));
                assert_eq!(ends.wrote("stdout"), format!("{n}\n"));
                let said = kubelet.says(&stays, &format!("echo pod {n}"));
                assert_eq!(said, format!("pod {n}\n"));
                // Half of them stopped as kubelet does, half removed with all that runs in them.
                if n < 5 {
                    kubelet.end(&pod);
                } else {
                    kubelet.remove_pod(&pod).unwrap();
                }
            });
        }
    });
    pods.dock.is_clean();
}

/// A `RuntimeClass` names a handler: pods of one node have different shims.
fn a_handler_is_chosen_by_pod(version: Version) {
    let pods = Pods::new(version);
    let kubelet = pods.kubelet();
    let usual = kubelet.pod("");
    assert_eq!(pods.programs(), [GO_SHIM]);
    let all = [GO, BY_NAME, BY_PATH].map(|handler| kubelet.pod(handler));
    if !is_foreign() {
        let by_path = if version == Version::V1_6 {
            GO_SHIM
        } else {
            SHIM
        };
        assert_eq!(pods.programs(), [SHIM, by_path, GO_SHIM, GO_SHIM]);
    }
    for pod in all.iter().chain([&usual]) {
        let container = kubelet.run(pod, "app", &["sleep", "600"]);
        assert_eq!(kubelet.says(&container, "echo hello"), "hello\n");
    }
    assert_eq!(pods.dock.shims().len(), 4);
    let unknown = kubelet.pod_with("no-such-handler", |_| ()).unwrap_err();
    assert!(unknown.message().contains("no-such-handler"), "{unknown:?}");
    for pod in all.iter().chain([&usual]) {
        kubelet.end(pod);
    }
    pods.dock.is_clean();
}

/// `shareProcessNamespace`: a container's end is the end of what it started, and of nothing else.
fn a_shared_pid_namespace_is_left_to_the_others(version: Version) {
    each_way(version, |_, kubelet, handler| {
        let pod = kubelet
            .pod_with(handler, |config| {
                let context = config.linux.as_mut().unwrap().security_context.as_mut();
                context.unwrap().namespace_options.as_mut().unwrap().pid = wire::POD;
            })
            .unwrap();
        let other = kubelet.run(&pod, "other", &["sleep", "600"]);
        let line = format!("sleep {}", apart());
        let container = kubelet.sh(&pod, "ends", &format!("{line} & exit 4"));
        assert_eq!(kubelet.ended(&container).exit_code, 4);
        assert_eq!(running_as(&line), [0; 0]);
        assert_eq!(kubelet.status(&other).state, wire::RUNNING);
        assert_eq!(kubelet.pod_status(&pod).state, wire::READY);
        kubelet.end(&pod);
    });
}

/// containerd hangs up when it has deleted a task; a pod is not removed where its `Kill` is lost by it.
fn a_kill_is_answered_before_its_task_goes(version: Version) {
    let dock = Dock::new(version);
    let runc = Lab::get().tool("runc/usr/sbin/runc");
    let slow = dock.daemon.dir().join("slow");
    let script = format!(
        "#!/bin/sh\n'{}' \"$@\" || exit\ncase \" $* \" in *' kill '*) sleep 2;; esac\n",
        runc.display()
    );
    fs::write(&slow, script).unwrap();
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).unwrap();
    let make = dock.make("slow").args(&["sleep", "600"]).oci_runtime(&slow);
    let task = make.start();
    thread::scope(|scope| {
        let killer = scope.spawn(|| dock.connect().kill(task.id(), "", 9, false));
        assert_eq!(task.wait(), 137);
        assert!(!killer.is_finished(), "the kill was not slow");
        dock.client().delete(task.id()).unwrap();
        killer.join().unwrap().unwrap();
    });
    dock.client().delete_container(task.id()).unwrap();
    dock.is_clean();
}

/// `hostUsers: false`: root of the pod is nobody of this machine, and owns its files nevertheless.
#[test]
fn a_pod_has_users_of_its_own() {
    let pods = Pods::new(Version::V2);
    give_network(&pods);
    let kubelet = pods.kubelet();
    let about = kubelet.about();
    let features = |name: &str| {
        let handler = about.runtime_handlers.iter().find(|h| h.name == name);
        handler.unwrap().features
    };
    // What the shim says of its OCI runtime is what kubelet reads first; containerd asks those alone
    // whose type is runc's.
    assert_eq!(features(BY_PATH), features(GO));
    assert!(features(GO).is_some() && !features(GO).unwrap().user_namespaces);
    assert!(features(CRUN).unwrap().user_namespaces);
    let ids = wire::IdMapping {
        host_id: 1_000_000,
        container_id: 0,
        length: 65_536,
    };
    let pod = kubelet
        .pod_with(CRUN, |config| {
            let context = config.linux.as_mut().unwrap().security_context.as_mut();
            let options = context.unwrap().namespace_options.as_mut().unwrap();
            options.network = wire::POD;
            options.userns_options = Some(wire::UserNamespace {
                mode: wire::POD,
                uids: vec![ids.clone()],
                gids: vec![ids.clone()],
            });
        })
        .unwrap();
    let seconds = apart();
    let container = kubelet.run(&pod, "app", &["sleep", &seconds]);
    let map = kubelet.says(&container, "cat /proc/self/uid_map");
    let words: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(words, ["0", "1000000", "65536"]);
    let owners = kubelet.says(&container, "stat -c %u:%g /bin/busybox /etc/hosts; id -u");
    assert_eq!(owners, "0:0\n0:0\n0\n");
    kubelet.says(&container, "echo mine > /etc/mine");
    let pid = running_as(&format!("sleep {seconds}"))[0];
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("\nUid:\t1000000\t"), "{status}");
    kubelet.end(&pod);
    pods.dock.is_clean();
}

on_each_containerd!(
    a_pod_is_one_process,
    an_exec_is_told_in_full,
    an_exec_is_not_held_up_by_what_it_left,
    a_log_is_complete_and_in_order,
    an_end_has_its_code_and_reason,
    a_stop_gives_grace,
    what_cannot_run_is_told_to_kubelet,
    too_much_memory_is_its_reason,
    limits_and_figures_are_of_the_container,
    a_killed_containerd_finds_its_pods_again,
    a_killed_shim_is_a_pod_that_is_not_ready,
    ten_pods_at_once,
    a_handler_is_chosen_by_pod,
    a_shared_pid_namespace_is_left_to_the_others,
    a_kill_is_answered_before_its_task_goes,
);
