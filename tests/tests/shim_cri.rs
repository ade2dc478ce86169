//! Kubernetes: the shim below containerd's own CRI plugin, both ways it can be configured
//! (a runtime of its own name; the path of `io.containerd.runc.v2`), called as kubelet calls it.
//!
//! Pods are on the node's network, so that no plugin for networks is needed.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::fmt::Write as _;
use std::time::Duration;

use edgepull_tests::containerd::{Setup, Version};
use edgepull_tests::dock::cri::{K8S, Pod};
use edgepull_tests::dock::{Dock, crun, numbers};
use edgepull_tests::faulty::Faulty;
use edgepull_tests::image::{self, AMD64, ARM64, host};
use edgepull_tests::on_each_containerd;
use edgepull_tests::process::{self, wait_for};
use edgepull_tests::tools::Lab;
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(60);
const RUNNING: i32 = 1;
const EXITED: i32 = 2;

/// A runtime by its name, by its path with runc, by its path with crun.
const HANDLERS: [&str; 3] = ["named", "path", "crun"];

struct Cluster {
    dock: Dock,
    image: String,
}

fn handlers(version: Version) -> &'static [&'static str] {
    // The path of a runtime is not in the configuration of 1.6.
    if version == Version::V1_6 {
        &HANDLERS[..1]
    } else {
        &HANDLERS
    }
}

impl Cluster {
    fn new(version: Version) -> Self {
        let pause = Faulty::start(image::program(&["/bin/sleep", "100000"], &[]), []);
        let sandbox = pause.reference("lab/pause", "latest");
        let apps = Faulty::start(image::hello(), []);
        let image = apps.reference("lab/app", "latest");
        let v2 = version == Version::V2;
        let plugin = if v2 {
            "io.containerd.cri.v1.runtime"
        } else {
            "io.containerd.grpc.v1.cri"
        };
        let (table, key) = if v2 {
            ("io.containerd.cri.v1.images\".pinned_images", "sandbox")
        } else {
            ("io.containerd.grpc.v1.cri\"", "sandbox_image")
        };
        let mut config = format!("[plugins.\"{table}]\n{key} = \"{sandbox}\"\n");
        if v2 {
            let _infallible = writeln!(config, "[plugins.\"{plugin}\"]");
        }
        // Not every machine that tests are run on lets root give a process a better score.
        config.push_str("restrict_oom_score_adj = true\n");
        let _infallible = write!(
            config,
            "[plugins.\"{plugin}\".containerd]\ndefault_runtime_name = \"named\"\n"
        );
        let table = format!("plugins.\"{plugin}\".containerd.runtimes");
        let _infallible = write!(
            config,
            "[{table}.named]\nruntime_type = \"io.containerd.edgepull.v1\"\n"
        );
        if handlers(version).len() > 1 {
            let shim = Lab::get().shim();
            for name in ["path", "crun"] {
                let _infallible = write!(
                    config,
                    "[{table}.{name}]\nruntime_type = \"io.containerd.runc.v2\"\nruntime_path = \"{}\"\n",
                    shim.display()
                );
            }
            let _infallible = write!(
                config,
                "[{table}.crun.options]\nBinaryName = \"{}\"\n",
                crun().display()
            );
        }
        let dock = Dock::with(Setup::new(version).cri().config(&config));
        for reference in [&sandbox, &image] {
            dock.daemon.pull(K8S, reference).ok();
        }
        Self { dock, image }
    }

    #[track_caller]
    fn is_clean(&self) {
        self.dock.is_clean();
    }
}

#[track_caller]
fn exited(pod: &Pod<'_>, id: &str) -> i32 {
    wait_for("the end of a container", SOON, || {
        pod.status(id).state == EXITED
    });
    pod.status(id).exit_code
}

fn a_pod_has_one_shim(version: Version) {
    let cluster = Cluster::new(version);
    for handler in handlers(version) {
        let pod = cluster.dock.pod(&format!("one-{handler}"), handler);
        let shim = cluster.dock.shim();
        let sleeps = pod.run("sleeps", &cluster.image, &["/bin/sleep", "600"]);
        // 1.6 itself loses the end of a log if a container ends while it reads (with any shim).
        let then = ["exit 0", "sleep 600"][usize::from(version == Version::V1_6)];
        let script = format!("/bin/busybox seq 1 170000; {then}");
        let counts = pod.run("counts", &cluster.image, &["/bin/sh", "-c", &script]);
        assert_eq!(cluster.dock.shim(), shim, "{handler}");
        // All that it wrote is in its log: more than a megabyte.
        let expected = String::from_utf8(numbers(170_000, "\n")).unwrap();
        assert!(expected.len() > 1 << 20);
        wait_for("the log", SOON, || {
            pod.log("counts").len() >= expected.len()
        });
        assert!(pod.log("counts") == expected, "it is not what was written");
        if version == Version::V1_6 {
            pod.stop(&counts, 0).unwrap();
        } else {
            assert_eq!(exited(&pod, &counts), 0);
        }
        // Execs.
        let done = pod.exec(
            &sleeps,
            &["/bin/sh", "-c", "echo out; echo err >&2; exit 3"],
        );
        assert_eq!(
            (
                done.stdout.as_slice(),
                done.stderr.as_slice(),
                done.exit_code
            ),
            (b"out\n".as_slice(), b"err\n".as_slice(), 3)
        );
        let much = pod.exec(&sleeps, &["/bin/busybox", "seq", "1", "170000"]);
        assert!(
            much.stdout == expected.as_bytes(),
            "{} bytes",
            much.stdout.len()
        );
        let (cpu, memory) = pod.stats(&sleeps);
        assert!(cpu > 0 && memory > 0, "{cpu} ns, {memory} bytes");
        let mut listed: Vec<(String, i32)> = pod
            .list()
            .into_iter()
            .map(|one| (one.metadata.unwrap_or_default().name, one.state))
            .collect();
        listed.sort();
        assert_eq!(
            listed,
            [
                ("counts".to_owned(), EXITED),
                ("sleeps".to_owned(), RUNNING)
            ]
        );
        // SIGTERM is nothing to a first process that has no handler: it is killed then.
        pod.stop(&sleeps, 1).unwrap();
        assert_eq!(exited(&pod, &sleeps), 137);
        pod.remove(&sleeps).unwrap();
        let again = pod.run("again", &cluster.image, &["/bin/sh", "-c", "exit 7"]);
        assert_eq!(exited(&pod, &again), 7);
        assert_eq!(pod.status(&again).reason, "Error");
        assert_eq!(cluster.dock.shim(), shim);
        pod.end();
        cluster.is_clean();
    }
}

/// What `kubectl describe pod` shows.
fn what_cannot_run_is_said_by_cri(version: Version) {
    let cluster = Cluster::new(version);
    let foreign = if host() == AMD64 { ARM64 } else { AMD64 };
    let wrong = Faulty::start(image::mislabelled_single(host(), foreign), []);
    let image = wrong.reference("lab/wrong", "latest");
    cluster.dock.daemon.pull(K8S, &image).ok();
    for handler in handlers(version) {
        let pod = cluster.dock.pod(&format!("wrong-{handler}"), handler);
        let shim = cluster.dock.shim();
        let id = pod.create("wrong", &image, &[], 0).unwrap();
        let said = pod.start(&id).unwrap_err();
        for part in [
            "/bin/busybox",
            foreign.arch,
            &format!("linux/{}", host().arch),
            "edgepull check",
        ] {
            assert!(
                said.message().contains(part),
                "no `{part}` in: {}",
                said.message()
            );
        }
        let status = pod.status(&id);
        assert_eq!(status.state, EXITED);
        assert!(status.message.contains("/bin/busybox"), "{status:?}");
        pod.remove(&id).unwrap();
        // The pod goes on.
        let fine = pod.run("fine", &cluster.image, &[]);
        assert_eq!(exited(&pod, &fine), 0);
        assert_eq!(pod.log("fine"), format!("hello from {}\n", host().arch));
        assert_eq!(cluster.dock.shim(), shim);
        pod.end();
        cluster.is_clean();
    }
}

fn who_runs_out_of_memory_is_oom_killed(version: Version) {
    let cluster = Cluster::new(version);
    for handler in handlers(version) {
        let pod = cluster.dock.pod(&format!("oom-{handler}"), handler);
        let eats = ["/bin/sh", "-c", "x=a; while :; do x=$x$x; done"];
        let id = pod.create("eats", &cluster.image, &eats, 16 << 20).unwrap();
        pod.start(&id).unwrap();
        assert_eq!(exited(&pod, &id), 137);
        assert_eq!(pod.status(&id).reason, "OOMKilled", "{handler}");
        pod.end();
        cluster.is_clean();
    }
}

/// A restart of containerd, as an upgrade makes it; then a shim that dies.
fn pods_outlive_containerd_and_not_their_shim(version: Version) {
    let mut cluster = Cluster::new(version);
    let pod = cluster.dock.pod("lives", HANDLERS[0]);
    let id = pod.run("sleeps", &cluster.image, &["/bin/sleep", "600"]);
    let shim = cluster.dock.shim();
    let kept = pod.keep();
    cluster.dock.daemon.kill9();
    cluster.dock.daemon.start_again();
    cluster.dock.connect_again();
    let pod = kept.again(&cluster.dock);
    wait_for("CRI", SOON, || pod.is_answered());
    assert_eq!(cluster.dock.shim(), shim);
    assert_eq!(pod.status(&id).state, RUNNING);
    assert_eq!(pod.exec(&id, &["/bin/sh", "-c", "exit 4"]).exit_code, 4);
    process::send(shim, Signal::SIGKILL);
    wait_for("the end of the container", SOON, || {
        pod.status(&id).state == EXITED
    });
    pod.end();
    cluster.is_clean();
}

on_each_containerd!(
    a_pod_has_one_shim,
    what_cannot_run_is_said_by_cri,
    who_runs_out_of_memory_is_oom_killed,
    pods_outlive_containerd_and_not_their_shim,
);
