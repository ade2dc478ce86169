//! What is killed: the shim, containerd, a container's first process, at any moment. What can go on
//! does, what cannot is told, and nothing is left.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use edgepull_tests::containerd::Version;
use edgepull_tests::dock::{Code, Dock, Stdio, numbers, running, sha256, sockets_of};
use edgepull_tests::on_each_containerd;
use edgepull_tests::process::{self, wait_for};
use edgepull_tests::scene::NAMESPACE;
use nix::sys::signal::Signal;
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);

fn a_killed_shim_is_told_and_cleaned_up(version: Version) {
    let dock = Dock::new(version);
    let events = dock.events();
    let task = running(&dock, "shim");
    let exec = task.exec("exec").args(&["sleep", "600"]);
    let inner = exec.run();
    let id = task.id().to_owned();
    process::send(dock.shim(), Signal::SIGKILL);
    let exit = events.wait(&id, "exit", "");
    assert_eq!((exit.pid, exit.status), (task.pid, 137), "{exit:?}");
    events.wait(&id, "delete", "");
    dock.wait_dead(task.pid);
    dock.wait_dead(inner);
    assert_eq!(
        dock.client().state(&id, "").unwrap_err().code(),
        Code::NotFound
    );
    dock.client().delete_container(&id).unwrap();
    dock.is_clean();
    // The same name starts again.
    let again = dock.make_again(&id).args(&["sleep", "600"]).start();
    assert_ne!(again.pid, task.pid);
    again.end_by_force();
    dock.is_clean();
}

fn a_killed_first_process_is_told(version: Version) {
    let dock = Dock::new(version);
    let events = dock.events();
    let task = running(&dock, "init");
    process::send(task.pid, Signal::SIGKILL);
    assert_eq!(task.wait(), 137);
    assert_eq!(events.wait(task.id(), "exit", task.id()).status, 137);
    assert_eq!(task.end(), 137);
    // Before it was started.
    let task = dock.make("created").args(&["sleep", "600"]).created();
    process::send(task.pid, Signal::SIGKILL);
    assert_eq!(task.wait(), 137);
    assert_eq!(task.end(), 137);
    dock.is_clean();
}

/// containerd is killed and comes again: the container does not notice, and its streams go on.
fn a_container_outlives_containerd(version: Version) {
    let mut dock = Dock::new(version);
    let make = dock.make("outlives");
    let stdio = Stdio::out_err(&make.dir());
    let out = stdio.read_stdout();
    let data = make.dir().join("data");
    fs::create_dir_all(&data).unwrap();
    let script = "seq 1 1000; until [ -e /sys/go ]; do sleep 0.05; done; seq 1001 400000; echo end >&2; \
                  until [ -e /sys/stop ]; do sleep 0.05; done; exit 21";
    let task = make
        .sh(script)
        .stdio(&stdio)
        .spec(|spec| {
            let mounts = spec["mounts"].as_array_mut().unwrap();
            mounts.retain(|mount| mount["destination"] != "/sys");
            mounts.push(json!({
                "destination": "/sys", "type": "bind", "source": data, "options": ["rbind", "ro"],
            }));
        })
        .start();
    let (id, pid) = (task.id().to_owned(), task.pid);
    let shim = dock.shim();
    drop(task);
    dock.daemon.kill9();
    // While nobody is there it writes more than any pipe holds.
    fs::write(data.join("go"), "").unwrap();
    assert_eq!(first_line(&stdio.stderr), "end\n");
    assert!(process::alive(shim) && process::alive(pid));
    dock.daemon.start_again();
    dock.connect_again();
    assert_eq!(dock.shim(), shim);
    let client = dock.client();
    let status = client.state(&id, "").unwrap();
    assert_eq!(status.status().as_str_name(), "RUNNING");
    fs::write(data.join("stop"), "").unwrap();
    assert_eq!(client.wait(&id, "").unwrap().exit_status, 21);
    assert_eq!(client.delete(&id).unwrap().exit_status, 21);
    client.delete_container(&id).unwrap();
    let expected = numbers(400_000, "\n");
    let (bytes, digest) = out.all();
    assert_eq!(bytes.len(), expected.len());
    assert_eq!(digest, sha256(&expected));
    dock.is_clean();
}

fn first_line(fifo: &str) -> String {
    let mut line = String::new();
    BufReader::new(File::open(fifo).unwrap())
        .read_line(&mut line)
        .unwrap();
    line
}

/// One that ends while containerd is away ended as it did: its exit is there for whoever asks.
fn an_end_that_nobody_saw_is_kept(version: Version) {
    let mut dock = Dock::new(version);
    let task = running(&dock, "unseen");
    let (id, pid) = (task.id().to_owned(), task.pid);
    drop(task);
    dock.daemon.kill9();
    process::send(pid, Signal::SIGKILL);
    dock.wait_dead(pid);
    dock.daemon.start_again();
    dock.connect_again();
    let client = dock.client();
    assert_eq!(client.wait(&id, "").unwrap().exit_status, 137);
    assert_eq!(client.delete(&id).unwrap().exit_status, 137);
    client.delete_container(&id).unwrap();
    dock.is_clean();
}

/// What goes on is taken up again, whether containerd was killed or stopped.
fn containerd_finds_its_containers_again(version: Version) {
    let mut dock = Dock::new(version);
    let task = running(&dock, "found");
    let paused = running(&dock, "paused");
    dock.client().pause(paused.id()).unwrap();
    let exec = task.exec("before").args(&["sleep", "600"]);
    exec.run();
    let ids = [task.id().to_owned(), paused.id().to_owned()];
    drop(exec);
    drop((task, paused));
    for kill in [true, false] {
        if kill {
            dock.daemon.kill9();
            dock.daemon.start_again();
        } else {
            dock.daemon.restart();
        }
        dock.connect_again();
        let events = dock.events();
        let client = dock.client();
        let status = |id: &str, exec: &str| {
            let state = client.state(id, exec).unwrap();
            state.status().as_str_name()
        };
        assert_eq!(status(&ids[0], ""), "RUNNING");
        assert_eq!(status(&ids[0], "before"), "RUNNING");
        assert_eq!(status(&ids[1], ""), "PAUSED");
        assert_eq!(dock.shims().len(), 2);
        // Events come to the new one.
        client.resume(&ids[1]).unwrap();
        events.wait(&ids[1], "resumed", "");
        client.pause(&ids[1]).unwrap();
        events.wait(&ids[1], "paused", "");
    }
    let events = dock.events();
    let client = dock.client();
    client.kill(&ids[0], "before", 9, false).unwrap();
    assert_eq!(events.wait(&ids[0], "exit", "before").status, 137);
    client.resume(&ids[1]).unwrap();
    for id in &ids {
        client.kill(id, "", 9, false).unwrap();
        assert_eq!(client.wait(id, "").unwrap().exit_status, 137);
        client.delete(id).unwrap();
        client.delete_container(id).unwrap();
    }
    dock.is_clean();
}

/// Both are gone: what the machine did not end itself, containerd cleans up when it comes.
fn containerd_cleans_up_after_both_were_killed(version: Version) {
    let mut dock = Dock::new(version);
    let task = running(&dock, "both");
    let (id, pid) = (task.id().to_owned(), task.pid);
    let shim = dock.shim();
    drop(task);
    dock.daemon.kill9();
    process::send(shim, Signal::SIGKILL);
    wait_for("the end of the shim", SOON, || !process::alive(shim));
    dock.daemon.start_again();
    dock.connect_again();
    wait_for("the end of the container", SOON, || {
        !process::alive(pid) && dock.client().state(&id, "").is_err()
    });
    dock.client().delete_container(&id).unwrap();
    dock.is_clean();
    // Nor does a dead socket stand in the way of the same name.
    let left = sockets_of(&dock.daemon.address(), NAMESPACE, &id);
    assert!(left.iter().all(|socket| !socket.exists()));
    dock.make_again(&id).args(&["true"]).start().end();
    dock.is_clean();
}

/// Small, and the same for a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// A life from create to delete, over and over, while something is killed: whatever the moment, all
/// can be cleaned up by what any client would do, and nothing stays.
fn at_any_moment(version: Version) {
    let clock = || {
        u64::try_from(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_nanos(),
        )
        .unwrap()
    };
    let named = std::env::var("EDGEPULL_SEED")
        .ok()
        .map(|text| text.parse().unwrap());
    let seed: u64 = named.unwrap_or_else(clock) | 1;
    eprintln!("EDGEPULL_SEED={seed}");
    let mut dice = Dice(seed);
    let mut dock = Dock::new(version);
    for round in 0..15 {
        let victim =
            ["shim", "containerd", "init", "both"][usize::try_from(dice.below(4)).unwrap()];
        let pause = Duration::from_micros(dice.below(400_000));
        let id = dock.id("moment");
        thread::scope(|scope| {
            scope.spawn(|| live(&dock, &id));
            thread::sleep(pause);
            // Its first process, if there is one yet.
            let file = dock.bundle(&id).join("init.pid");
            let init = fs::read_to_string(file)
                .ok()
                .and_then(|text| text.trim().parse().ok());
            match (victim, init) {
                ("init", Some(pid)) => process::send(pid, Signal::SIGKILL),
                ("containerd", _) => process::send(dock.daemon.pid(), Signal::SIGKILL),
                ("both", _) => {
                    process::send(dock.daemon.pid(), Signal::SIGKILL);
                    for shim in dock.shims() {
                        process::send(shim, Signal::SIGKILL);
                    }
                }
                _ => {
                    for shim in dock.shims() {
                        process::send(shim, Signal::SIGKILL);
                    }
                }
            }
        });
        if matches!(victim, "containerd" | "both") {
            dock.daemon.kill9();
            dock.forget_half_removed(&id);
            dock.daemon.start_again();
            dock.connect_again();
        }
        let what = format!("seed {seed}, round {round}, {victim} after {pause:?}");
        let client = dock.client();
        wait_for(&format!("a clean-up ({what})"), SOON, || {
            let _ended = client.kill(&id, "", 9, true);
            let _gone = client.delete(&id);
            let state = client.state(&id, "").map_err(|e| e.code());
            state.err() == Some(Code::NotFound)
        });
        let _there_or_not = client.delete_container(&id);
        eprintln!("{what}");
        dock.is_clean();
    }
    // And all is well.
    assert_eq!(dock.sh("after", "exit 5").end(), 5);
    dock.is_clean();
}

/// Each step may fail from here on.
fn live(dock: &Dock, id: &str) {
    let Ok(task) = dock.make_again(id).args(&["sleep", "600"]).try_create() else {
        return;
    };
    let _started = task.start();
    for n in 0..3 {
        let exec = task.exec(&format!("e{n}")).args(&["true"]);
        if exec.add().and_then(|()| exec.start()).is_ok() {
            let _deleted = exec.try_end();
        }
    }
    let _killed = task.kill(9);
    let _ended = task.try_wait();
    let _deleted = task.delete();
}

on_each_containerd!(
    a_killed_shim_is_told_and_cleaned_up,
    a_killed_first_process_is_told,
    a_container_outlives_containerd,
    an_end_that_nobody_saw_is_kept,
    containerd_finds_its_containers_again,
    containerd_cleans_up_after_both_were_killed,
    at_any_moment,
);
