//! Many containers and many processes: short ones, at once, one after another; and that none of them
//! leaves anything with the machine, the shim or containerd.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::thread;

use edgepull_tests::containerd::Version;
use edgepull_tests::dock::{Dock, Held, running};
use edgepull_tests::on_each_containerd;

const GROUP: &str = "io.containerd.runc.v2.group";

/// How many cycles a test goes through; more of them by `EDGEPULL_CYCLES` (`make soak`).
fn cycles(usual: usize) -> usize {
    std::env::var("EDGEPULL_CYCLES").map_or(usual, |text| text.parse().unwrap())
}

fn the_end_of_short_ones_is_not_missed(version: Version) {
    let dock = Dock::new(version);
    let events = dock.events();
    let ids: Vec<String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let each = (0..50).map(|n| {
                        let make = dock.make("short").args(&[["true", "false"][n % 2]]);
                        let id = make.id().to_owned();
                        assert_eq!(make.start().end() as usize, n % 2);
                        id
                    });
                    each.collect::<Vec<_>>()
                })
            })
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap())
            .collect()
    });
    assert_eq!(ids.len(), 200);
    for id in &ids {
        events.wait(id, "delete", "");
        assert_eq!(events.names(id), ["create", "start", "exit", "delete"]);
    }
    dock.is_clean();
}

/// Fifty at once, of which some end at once, some fail, and some cannot be started.
fn a_storm_of_execs(version: Version) {
    let dock = Dock::new(version);
    let events = dock.events();
    let task = running(&dock, "storm");
    let shim = dock.shim();
    let storm = |name: &str| {
        thread::scope(|scope| {
            for n in 0..50 {
                let (task, name) = (&task, format!("{name}{n}"));
                scope.spawn(move || match n % 5 {
                    0 => {
                        let exec = task.exec(&name).args(&["/no/such/program"]);
                        exec.add().unwrap();
                        let said = exec.start().unwrap_err();
                        assert!(said.message().contains("/no/such/program"), "{said:?}");
                        exec.delete().unwrap();
                    }
                    1 => {
                        let exec = task.exec(&name).sh("exit 9");
                        exec.run();
                        assert_eq!(exec.end(), 9);
                    }
                    _ => {
                        let exec = task.exec(&name).args(&["true"]);
                        exec.run();
                        assert_eq!(exec.end(), 0);
                    }
                });
            }
        });
    };
    storm("warm");
    let before = Held::by(shim);
    storm("a");
    storm("b");
    let after = Held::by(shim);
    assert!(
        after.files.len() <= before.files.len() + 1,
        "{before:#?}\n{after:#?}"
    );
    assert!(
        after.threads <= before.threads + 1,
        "{before:#?}\n{after:#?}"
    );
    assert_eq!(task.status(), "RUNNING");
    assert_eq!(dock.client().pids(task.id()).unwrap().len(), 1);
    for name in ["warm", "a", "b"] {
        for n in (0..50).filter(|n| n % 5 != 0) {
            events.wait(task.id(), "exit", &format!("{name}{n}"));
        }
    }
    // Each has three events, in their order; the ends of those that did not start are not told.
    let names = events.names(task.id());
    let at = |what: &str| names.iter().position(|name| *name == what);
    for n in 0..50 {
        let (added, started, ended) = (
            at(&format!("exec-added a{n}")),
            at(&format!("exec-started a{n}")),
            at(&format!("exit a{n}")),
        );
        assert!(added.is_some(), "a{n}");
        if n % 5 == 0 {
            assert_eq!((started, ended), (None, None), "a{n}");
        } else {
            assert!(added < started && started < ended, "a{n}: {names:?}");
        }
    }
    task.end_by_force();
    dock.is_clean();
}

fn a_hundred_at_once(version: Version) {
    let dock = Dock::new(version);
    let tasks: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..10)
            .map(|_| {
                scope.spawn(|| {
                    (0..10)
                        .map(|_| running(&dock, "hundred"))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap())
            .collect()
    });
    assert_eq!(tasks.len(), 100);
    assert_eq!(dock.shims().len(), 100);
    for task in &tasks {
        assert_eq!(task.status(), "RUNNING");
    }
    thread::scope(|scope| {
        for task in tasks {
            scope.spawn(move || task.end_by_force());
        }
    });
    dock.is_clean();
}

/// By shims of their own: what containerd holds of them must go as well.
fn one_after_another_leaves_nothing(version: Version) {
    let dock = Dock::new(version);
    let round = |times: usize| {
        for n in 0..times {
            match n % 3 {
                0 => assert_eq!(dock.sh("cycle", "exit 4").end(), 4),
                1 => running(&dock, "cycle").end_by_force(),
                _ => {
                    let refused = dock.make("cycle").args(&["/no/such/program"]).refused();
                    assert!(
                        refused.message().contains("/no/such/program"),
                        "{refused:?}"
                    );
                }
            }
        }
        dock.is_clean();
        Held::by(dock.daemon.pid())
    };
    let before = round(30);
    let after = round(cycles(300));
    // Its own connections come and go.
    assert!(
        after.files.len() <= before.files.len() + 5,
        "{before:#?}\n{after:#?}"
    );
}

/// In the shim of a group, which lives on: it has to give back everything itself.
fn a_shim_that_stays_keeps_nothing(version: Version) {
    let dock = Dock::new(version);
    let group = dock.id("group");
    let stays = dock
        .make("stays")
        .args(&["sleep", "600"])
        .annotation(GROUP, &group)
        .start();
    let shim = dock.shim();
    let round = |times: usize| {
        for n in 0..times {
            let make = dock.make("cycle").annotation(GROUP, &group);
            match n % 3 {
                0 => assert_eq!(make.sh("exit 4").start().end(), 4),
                1 => {
                    let task = make.args(&["sleep", "600"]).start();
                    let exec = task.exec("exec").args(&["true"]);
                    exec.run();
                    exec.end();
                    task.end_by_force();
                }
                _ => {
                    make.args(&["/no/such/program"]).refused();
                }
            }
        }
        assert_eq!(dock.shim(), shim);
        (Held::by(shim), edgepull_tests::weight::Weight::of(shim))
    };
    let (before, light) = round(30);
    let (after, heavy) = round(cycles(200));
    assert!(
        after.files.len() <= before.files.len() + 1,
        "{before:#?}\n{after:#?}"
    );
    assert!(
        after.threads <= before.threads + 1,
        "{before:#?}\n{after:#?}"
    );
    assert!(heavy.own_kib < light.own_kib + 512, "{light:?}\n{heavy:?}");
    assert_eq!(stays.status(), "RUNNING");
    stays.end_by_force();
    dock.is_clean();
}

on_each_containerd!(
    the_end_of_short_ones_is_not_missed,
    a_storm_of_execs,
    a_hundred_at_once,
    one_after_another_leaves_nothing,
    a_shim_that_stays_keeps_nothing,
);
