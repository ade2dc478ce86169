//! The daemon when something is in its way: engines that hang, stops in the middle of the
//! work, other settings, others who undo what it does.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::time::{Duration, Instant};

use edgepull_tests::agent::{Agent, NO_FLOOR, PATIENCE, request};
use edgepull_tests::containerd::{Setup, Version};
use edgepull_tests::faulty::{Action, Rule};
use edgepull_tests::image;
use edgepull_tests::process::{alive, send, wait_for};
use edgepull_tests::scene::{NAMESPACE, Scene};
use nix::sys::signal::Signal;

fn scene(version: Version) -> (Scene, Agent) {
    let scene = Scene::new(version, image::hello());
    let agent = Agent::new(&scene.daemon);
    (scene, agent)
}

/// Whoever waits for a pass must not read what was on the board before its end.
#[test]
fn who_asks_for_a_pass_hears_what_came_of_it() {
    let (scene, mut agent) = scene(Version::V1_7);
    agent.start();
    wait_for("the first pass", PATIENCE, || {
        agent.get("/readyz").is_some_and(|(code, _)| code == 200)
    });
    let dead = "127.0.0.1:1/lab/app:1";
    for round in 0..5 {
        let fresh = scene
            .registry
            .reference(&format!("lab/app{round}"), "latest");
        agent.declare("all.txt", &format!("{fresh}\n{dead}\n"));
        for (reference, state) in [(fresh.as_str(), "ready"), (dead, "failed")] {
            let path = format!("/v1/sync?wait=1&reference={reference}");
            let (code, body) = request(&agent.socket(), "POST", &path).unwrap();
            assert_eq!(code, 200, "{body}");
            let document: serde_json::Value = serde_json::from_str(&body).unwrap();
            let image = &document["images"][0];
            assert_eq!(image["state"], state, "{image:#}");
            assert!(image["progress"].is_null(), "{image:#}");
        }
    }
}

fn big(version: Version) -> (Scene, Agent) {
    let scene = Scene::with(Setup::new(version), image::big(1, 8 << 20), []);
    let agent = Agent::new(&scene.daemon);
    agent.configure(&format!("{NO_FLOOR}rate = \"64KiB\"\n"));
    agent.declare("a.txt", &scene.reference);
    (scene, agent)
}

fn wait_for_bytes(agent: &Agent, reference: &str) {
    wait_for("some of it", PATIENCE, || {
        agent
            .image(reference)
            .is_some_and(|image| image["progress"]["bytes"].as_u64() > Some(64 << 10))
    });
}

/// The state file, as the daemon left it.
fn state(agent: &Agent) -> serde_json::Value {
    let text = std::fs::read_to_string(agent.path("state/state.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn other_settings_count_for_what_is_being_pulled() {
    let (scene, mut agent) = big(Version::V1_7);
    agent.start();
    wait_for_bytes(&agent, &scene.reference);
    // At that rate it would take two minutes.
    agent.configure("");
    agent.wait_state(&scene.reference, "ready");
    // The one that was broken off is no failure.
    let (_, metrics) = agent.get("/metrics").unwrap();
    let tries = metrics.lines().filter_map(|line| {
        let (result, count) = line
            .strip_prefix("edgepull_pulls_total{result=\"")?
            .split_once("\"} ")?;
        (count != "0").then_some((result, count))
    });
    let tries: Vec<(&str, &str)> = tries.collect();
    assert_eq!(tries, [("pulled", "1")], "{metrics}");
}

/// A service manager sends its signal to every process of the unit: the worker that dies of
/// it has not failed.
#[test]
fn a_stop_in_the_middle_of_a_pull_is_no_failure() {
    for first in 0..2 {
        let (scene, mut agent) = big(Version::V1_7);
        agent.start();
        wait_for_bytes(&agent, &scene.reference);
        let workers = agent.workers();
        assert_eq!(workers.len(), 1);
        if first == 0 {
            send(workers[0], Signal::SIGTERM);
        }
        let begun = Instant::now();
        let run = agent.stop();
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "{:?}",
            begun.elapsed()
        );
        assert_eq!(run.output.code, Some(0), "{}", run.output.transcript());
        let state = state(&agent);
        assert_eq!(state["clean"], true, "{state:#}");
        assert!(
            state["images"].as_array().is_none_or(|images| images
                .iter()
                .all(|image| image["failures"] == 0 && image["error"].is_null())),
            "{state:#}"
        );
        assert!(!alive(workers[0]), "the worker is gone");
    }
}

/// Nobody answers, and the daemon stops in time all the same, in order.
#[test]
fn it_stops_while_containerd_hangs() {
    let (scene, mut agent) = scene(Version::V1_7);
    agent.declare("a.txt", &scene.reference);
    agent.start();
    agent.wait_state(&scene.reference, "ready");
    scene.daemon.pause();
    let socket = agent.socket();
    // It looks, and waits for the answer.
    let asked = std::thread::spawn(move || request(&socket, "POST", "/v1/sync?wait=1"));
    std::thread::sleep(Duration::from_millis(500));
    // Whatever else it is told meanwhile.
    for _ in 0..100 {
        agent.signal(Signal::SIGHUP);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(!asked.is_finished(), "it has an answer, of whom?");
    let begun = Instant::now();
    let run = agent.stop();
    let took = begun.elapsed();
    scene.daemon.resume();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(run.output.code, Some(0), "{}", run.output.transcript());
    assert_eq!(state(&agent)["clean"], true);
    drop(asked.join());
}

/// Another program fights for a pin: it is told, and the disk is not worn out by it.
#[test]
fn a_pin_that_is_undone_again_and_again_is_left_alone() {
    let (scene, mut agent) = scene(Version::V1_7);
    let one = &scene.reference;
    agent.declare("a.txt", one);
    agent.start();
    agent.wait_state(one, "ready");
    wait_for("a word about it", PATIENCE, || {
        let unpin = ["images", "label", one, "io.edgepull.pinned="];
        scene.daemon.ctr(NAMESPACE, &unpin).ok();
        agent.status()["images"]
            .as_array()
            .unwrap()
            .iter()
            .any(|image| image["error"].to_string().contains("another client"))
    });
    // What fails is tried again at growing intervals.
    let mut passes = std::collections::BTreeSet::new();
    let end = Instant::now() + Duration::from_secs(6);
    while Instant::now() < end {
        passes.insert(agent.status()["last_pass"].to_string());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(passes.len() <= 4, "{passes:?}");
}

/// Others' images come and go; none of it is a reason to look at ours.
#[test]
fn what_others_do_to_their_images_wakes_nobody() {
    let (scene, mut agent) = scene(Version::V1_7);
    agent.declare("a.txt", &scene.reference);
    agent.start();
    agent.wait_state(&scene.reference, "ready");
    let passes = || agent.status()["last_pass"].clone();
    let before = agent.wait_quiet();
    for n in 0..5 {
        let other = format!("r.example/other:{n}");
        scene
            .daemon
            .ctr(NAMESPACE, &["images", "tag", &scene.reference, &other])
            .ok();
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(passes(), before);
    // What is done to ours does.
    let ours = ["images", "label", &scene.reference, "lab=1"];
    scene.daemon.ctr(NAMESPACE, &ours).ok();
    wait_for("a pass", PATIENCE, || passes() != before);
}

/// What cannot be repaired now is not called ready, and is repaired when its registry is back.
#[test]
fn damage_that_cannot_be_mended_yet_is_told_and_mended_later() {
    let (scene, mut agent) = scene(Version::V1_7);
    agent.declare("a.txt", &scene.reference);
    agent.start();
    agent.wait_state(&scene.reference, "ready");
    agent.kill();
    scene.registry.script([Rule::always(Action::Close)]);
    let layer = scene.layout().parts(&scene.manifest())[1].clone();
    let path = scene
        .daemon
        .root()
        .join("io.containerd.content.v1.content/blobs/sha256")
        .join(layer.strip_prefix("sha256:").unwrap());
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"\0\0\0\0", 20).unwrap();
    agent.start();
    let image = agent.wait_state(&scene.reference, "failed");
    assert_eq!(image["error"]["kind"], "store_damaged", "{image:#}");
    assert!(image["next_try"].is_string(), "{image:#}");
    let damaged = agent.metric("edgepull_pulls_total", &["result=\"store_damaged\""]);
    assert!(damaged >= Some(1.0), "{damaged:?}");
    scene.registry.script([]);
    agent.wait_state(&scene.reference, "ready");
    scene.greets();
    // Compared once in this boot: the next stop without notice is no reason to read it all.
    let recheck = |agent: &Agent| state(agent)["images"][0]["recheck"].clone();
    wait_for("the state", PATIENCE, || recheck(&agent) == false);
    agent.kill();
    // While nobody can be asked, what is to be compared stays to be compared.
    scene.daemon.pause();
    agent.start();
    assert_eq!(state(&agent)["clean"], false);
    assert_eq!(recheck(&agent), false);
    scene.daemon.resume();
    agent.wait_state(&scene.reference, "ready");
}

#[test]
fn one_pass_without_an_engine_is_an_end_in_order() {
    let (mut scene, agent) = scene(Version::V1_7);
    agent.declare("a.txt", &scene.reference);
    scene.daemon.kill9();
    agent.call(["agent", "--once"]).run().exits(40);
    assert_eq!(state(&agent)["clean"], true);
}

/// Whoever changes `[metrics] listen` need not restart anything, nor free a port beforehand.
#[test]
fn scrapers_are_answered_where_the_configuration_says() {
    let (_scene, mut agent) = scene(Version::V1_7);
    let taken = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (first, second) = (taken(), taken());
    let address = |listener: &std::net::TcpListener| listener.local_addr().unwrap();
    let (first_at, second_at) = (address(&first), address(&second));
    let listen = |at| format!("[metrics]\nlisten = \"{at}\"\n");
    let scraped = |at: std::net::SocketAddr| {
        use std::io::{Read as _, Write as _};
        let mut answer = String::new();
        std::net::TcpStream::connect(at).is_ok_and(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
                .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                .is_ok()
                && stream.read_to_string(&mut answer).is_ok()
        }) && answer.contains("\nedgepull_build_info")
    };
    drop(second);
    agent.configure(&listen(first_at));
    agent.start();
    drop(first);
    wait_for("the port that was taken", PATIENCE, || scraped(first_at));
    agent.configure(&listen(second_at));
    wait_for("the other port", PATIENCE, || scraped(second_at));
    assert!(std::net::TcpStream::connect(first_at).is_err());
    agent.configure("");
    wait_for("no port", PATIENCE, || {
        std::net::TcpStream::connect(second_at).is_err()
    });
}
