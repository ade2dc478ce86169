//! What a shim tells the daemon of containers that it did not start: in the metric, in the status
//! document and in its text, across a daemon that is killed, and through a flood.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use edgepull_tests::agent::{Agent, PATIENCE};
use edgepull_tests::process::wait_for;
use serde_json::json;

const METRIC: &str = "edgepull_refused_starts_total";

/// A shim: it never waits.
struct Shim(UnixDatagram, PathBuf);

impl Shim {
    fn of(agent: &Agent) -> Shim {
        let socket = UnixDatagram::unbound().unwrap();
        socket.set_nonblocking(true).unwrap();
        Shim(socket, agent.path("run/refusals.sock"))
    }

    fn tells(&self, datagram: &str) -> bool {
        self.0.send_to(datagram.as_bytes(), &self.1).is_ok()
    }
}

fn refused(reason: &str, image: &str) -> String {
    json!({
        "reason": reason,
        "message": format!("cannot run here: /app of {image}"),
        "container": "web",
        "namespace": "k8s.io",
        "reference": image,
        "pod": "shop/web-0",
        "of_a_later_version": [1],
    })
    .to_string()
}

#[test]
fn refused_starts_are_counted_and_shown() {
    let mut agent = Agent::alone();
    agent.start();
    let shim = Shim::of(&agent);
    wait_for("the socket", PATIENCE, || shim.1.exists());
    let mode = fs::metadata(&shim.1).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "sending is for root alone");
    // Each reason is there before anything happens.
    assert_eq!(agent.metric(METRIC, &["reason=\"pages\""]), Some(0.0));
    for datagram in ["no document", "{}", "[1]"] {
        assert!(shim.tells(datagram));
    }
    for image in ["a.example/x:1", "a.example/x:1", "a.example/y:1"] {
        assert!(shim.tells(&refused("machine", image)));
    }
    wait_for("the count", PATIENCE, || {
        agent.metric(METRIC, &["reason=\"machine\""]) == Some(3.0)
    });
    let rows = agent.status()["refused_starts"].clone();
    assert_eq!(rows.as_array().map(Vec::len), Some(2), "{rows:#}");
    assert_eq!(rows[0]["reference"], "a.example/y:1");
    assert_eq!(rows[1]["count"], 2);
    assert_eq!(rows[1]["reason"], "machine");
    let text = agent.call(["status"]).run().exits(0).output.stdout;
    let text = String::from_utf8_lossy(&text);
    let line = "not started: a container of pod shop/web-0 (k8s.io), 2 times: cannot run here: /app of a.example/x:1";
    assert!(text.contains(line), "{text}");

    // One that was killed leaves its socket; the next one takes its place.
    agent.kill();
    assert!(shim.1.exists() && !shim.tells(&refused("machine", "nobody")));
    agent.start();
    wait_for("the socket", PATIENCE, || {
        shim.tells(&refused("empty", "a.example/x:1"))
    });
    wait_for("the count", PATIENCE, || {
        agent.metric(METRIC, &["reason=\"empty\""]) == Some(1.0)
    });

    // Whoever floods it is not waited for, does not wait, and holds up nobody.
    let flood = refused("mode", "a.example/z:1");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        shim.tells(&flood);
    }
    assert!(agent.status()["refused_starts"].is_array());
    let count = agent.metric(METRIC, &["reason=\"mode\""]).unwrap();
    assert!((1.0..500.0).contains(&count), "{count} of a flood");
    agent.stop();
}
