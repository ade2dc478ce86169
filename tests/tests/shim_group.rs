//! Containers that share a shim: one process, and each container by itself.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::fs;
use std::thread;

use edgepull_tests::containerd::{Setup, Version};
use edgepull_tests::dock::{Dock, Stdio, Task};
use edgepull_tests::on_each_containerd;
use edgepull_tests::process;
use edgepull_tests::tools::Lab;
use nix::sys::signal::Signal;

const GROUP: &str = "io.containerd.runc.v2.group";
const POD: &str = "io.kubernetes.cri.sandbox-id";

fn in_group<'a>(dock: &'a Dock, key: &str, group: &str) -> Task<'a> {
    dock.make("grouped")
        .args(&["sleep", "600"])
        .annotation(key, group)
        .start()
}

fn three_in_one_are_apart(version: Version) {
    for key in [GROUP, POD] {
        let dock = Dock::new(version);
        let events = dock.events();
        let group = dock.id("group");
        let [first, second, third] = [0; 3].map(|_| in_group(&dock, key, &group));
        let shim = dock.shim();
        // The first one's bundle goes, where the shim began.
        let id = first.id().to_owned();
        first.end_by_force();
        events.wait(&id, "delete", "");
        assert_eq!(dock.shim(), shim);
        // An end of one is not the others'.
        second.kill(9).unwrap();
        assert_eq!(second.wait(), 137);
        assert_eq!(third.status(), "RUNNING");
        let stdio = Stdio::out_err(&third.dir());
        let (out, _err) = (stdio.read_stdout(), stdio.read_stderr());
        let exec = third
            .exec("exec")
            .args(&["echo", "still here"])
            .stdio(&stdio);
        exec.run();
        assert_eq!(exec.end(), 0);
        assert_eq!(out.text(), "still here\n");
        second.end();
        // And a new one joins.
        let fourth = in_group(&dock, key, &group);
        assert_eq!(dock.shim(), shim);
        let ids = [third.id().to_owned(), fourth.id().to_owned()];
        third.end_by_force();
        fourth.end_by_force();
        for id in ids {
            let told = events.names(&id);
            assert_eq!(told.first().map(String::as_str), Some("create"), "{told:?}");
        }
        dock.is_clean();
        // With the same name, once there is no such shim any more.
        in_group(&dock, key, &group).end_by_force();
        dock.is_clean();
    }
}

fn whoever_races_shares(version: Version) {
    let dock = Dock::new(version);
    for _ in 0..5 {
        let group = dock.id("group");
        let tasks: Vec<Task<'_>> = thread::scope(|scope| {
            let makers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| in_group(&dock, GROUP, &group)))
                .collect();
            makers
                .into_iter()
                .map(|maker| maker.join().unwrap())
                .collect()
        });
        dock.shim();
        thread::scope(|scope| {
            for task in tasks {
                scope.spawn(move || task.end_by_force());
            }
        });
        dock.is_clean();
    }
}

/// The last one goes while the next one comes: neither is lost.
fn the_last_and_the_next_can_meet(version: Version) {
    let dock = Dock::new(version);
    let group = dock.id("group");
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let task = dock
                        .make("meets")
                        .sh("exit 6")
                        .annotation(GROUP, &group)
                        .start();
                    assert_eq!(task.end(), 6);
                }
            });
        }
    });
    dock.is_clean();
}

/// A shim that is killed takes its containers with it, and nothing of them stays.
fn a_killed_shim_takes_all_of_them(version: Version) {
    let dock = Dock::new(version);
    let events = dock.events();
    let group = dock.id("group");
    let tasks = [0; 3].map(|_| in_group(&dock, GROUP, &group));
    let apart = in_group(&dock, GROUP, &dock.id("other"));
    let shims = dock.shims();
    assert_eq!(shims.len(), 2, "{shims:?}");
    let of_three = |pid: &u32| process::children_of(*pid).contains(&tasks[0].pid);
    let shim = shims.into_iter().find(of_three).unwrap();
    process::send(shim, Signal::SIGKILL);
    for task in &tasks {
        let exit = events.wait(task.id(), "exit", "");
        assert_eq!((exit.pid, exit.status), (task.pid, 137), "{exit:?}");
        dock.wait_dead(task.pid);
        dock.client().delete_container(task.id()).unwrap();
    }
    assert_eq!(apart.status(), "RUNNING");
    apart.end_by_force();
    dock.is_clean();
}

/// `[shim] group = "host"`: so many in one process, whatever they are.
fn a_host_has_as_few_as_it_wants(version: Version) {
    let config = Lab::get().run_dir("shim-config");
    let file = config.path().join("config.toml");
    fs::write(&file, "[shim]\ngroup = \"host\"\ngroup_most = 3\n").unwrap();
    let dock = Dock::with(Setup::new(version).env("EDGEPULL_CONFIG", file.to_str().unwrap()));
    for n in 0..4 {
        dock.watch(&format!("edgepull-host/{n}"));
    }
    let tasks: Vec<_> = (0..7)
        .map(|_| dock.make("host").args(&["sleep", "600"]).start())
        .collect();
    assert_eq!(dock.shims().len(), 3);
    for task in tasks {
        task.end_by_force();
    }
    dock.is_clean();
}

on_each_containerd!(
    three_in_one_are_apart,
    whoever_races_shares,
    the_last_and_the_next_can_meet,
    a_killed_shim_takes_all_of_them,
    a_host_has_as_few_as_it_wants,
);
