//! Hundreds of passes with faults at random: nothing grows, and at the end everything is as
//! declared.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::time::{Duration, Instant};

use edgepull_tests::agent::{Agent, PATIENCE};
use edgepull_tests::containerd::Version;
use edgepull_tests::faulty::{Action, Kind, Rule};
use edgepull_tests::image;
use edgepull_tests::process::wait_for;
use edgepull_tests::scene::{NAMESPACE, Scene};
use edgepull_tests::weight::Weight;

/// Images that are declared at most.
const IMAGES: usize = 12;

/// A generator whose sequence is the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

fn passes(agent: &Agent) -> String {
    agent.status()["last_pass"].to_string()
}

#[track_caller]
fn one_pass(agent: &Agent) {
    let before = passes(agent);
    let answer = edgepull_tests::agent::request(&agent.socket(), "POST", "/v1/sync?wait=1");
    assert!(
        answer.is_some(),
        "the daemon does not answer: {:#}",
        agent.status()
    );
    wait_for("a pass", PATIENCE, || passes(agent) != before);
}

fn soak(rounds: u32) {
    let mut scene = Scene::new(Version::V1_7, image::hello());
    let mut agent = Agent::new(&scene.daemon);
    let references: Vec<String> = (0..IMAGES)
        .map(|n| scene.registry.reference(&format!("lab/app{n}"), "latest"))
        .collect();
    let declare = |agent: &Agent, some: usize| {
        agent.declare("all.txt", &references[..some].join("\n"));
    };
    declare(&agent, IMAGES);
    agent.start();
    agent.call(["wait", "--timeout", "90s"]).run().exits(0);
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut weights: Vec<Weight> = Vec::new();
    let begun = Instant::now();
    for round in 0..rounds {
        let fault = dice.roll(8);
        println!("round {round}: {fault}");
        match fault {
            0 => scene.registry.script([
                Rule::always(Action::Close),
                Rule::always(Action::status(503)),
            ]),
            1 => scene
                .registry
                .script([Rule::on(Kind::Blob, Action::Reset(1000)).times(3)]),
            2 if round % 5 == 0 => scene.daemon.restart(),
            3 => {
                let one = &references[usize::try_from(dice.roll(IMAGES as u64)).unwrap()];
                // It may be gone already.
                scene
                    .daemon
                    .ctr(NAMESPACE, &["images", "rm", "--sync", one]);
            }
            4 => declare(
                &agent,
                1 + usize::try_from(dice.roll(IMAGES as u64)).unwrap(),
            ),
            5 => agent.signal(nix::sys::signal::Signal::SIGHUP),
            _ => scene.registry.script([]),
        }
        one_pass(&agent);
        if round % (rounds / 10).max(1) == 0 {
            weights.push(Weight::of(agent.pid()));
        }
    }
    scene.registry.script([]);
    declare(&agent, IMAGES);
    wait_for("the last declaration", PATIENCE, || {
        agent.status()["images"].as_array().map(Vec::len) == Some(IMAGES)
    });
    one_pass(&agent);
    agent.call(["wait", "--timeout", "90s"]).run().exits(0);
    let there = scene.daemon.images(NAMESPACE);
    assert!(
        references.iter().all(|one| there.contains(one)),
        "{there:?}"
    );
    assert!(scene.daemon.leases(NAMESPACE).is_empty());
    weights.push(Weight::of(agent.pid()));
    println!("{rounds} passes in {:?}: {weights:?}", begun.elapsed());
    let (early, last) = (weights[1], weights[weights.len() - 1]);
    assert!(
        last.rss_kib < early.rss_kib + 2048,
        "memory grows: {weights:?}"
    );
    // A connection that is just being closed.
    assert!(
        last.files <= early.files + 4,
        "files stay open: {weights:?}"
    );
    // One that writes the state has a few seconds more to live.
    assert!(last.tasks <= early.tasks + 1, "tasks stay: {weights:?}");
    wait_for("the end of the last worker", PATIENCE, || {
        agent.workers().is_empty()
    });
    let stopped = agent.stop();
    assert_eq!(
        stopped.output.code,
        Some(0),
        "{}",
        stopped.output.transcript()
    );
    assert!(begun.elapsed() < Duration::from_secs(600));
}

#[test]
fn fifty_passes_with_faults() {
    soak(50);
}

/// Takes minutes: `make soak` runs it.
#[test]
#[ignore = "takes minutes"]
fn five_hundred_passes_with_faults() {
    soak(500);
}
