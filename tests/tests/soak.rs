//! Hundreds of passes with faults at random: nothing grows, and at the end everything is as
//! declared.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use edgepull_tests::agent::{Agent, PATIENCE, request};
use edgepull_tests::containerd::Version;
use edgepull_tests::faulty::{Action, Kind, Rule};
use edgepull_tests::image;
use edgepull_tests::process::wait_for;
use edgepull_tests::scene::{NAMESPACE, Scene};
use edgepull_tests::weight::Weight;
use nix::sys::signal::Signal;
use serde_json::Value;

/// Images that are declared at most.
const IMAGES: usize = 12;
/// What a transfer that is reset has brought before.
const BEFORE_RESET: u64 = 1000;
/// For all of it; five hundred passes take a good half of it.
const LIMIT: Duration = Duration::from_secs(900);

/// A generator whose sequence is the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides as u64).unwrap()
    }
}

/// What really happened: a soak whose faults meet nothing proves nothing.
#[derive(Debug, Default)]
struct Tally {
    removed: usize,
    /// Passes in which an image could not be had.
    failed: usize,
    closed: usize,
    refused: usize,
    reset: usize,
    restarts: usize,
    blobs: usize,
    blob_bytes: u64,
    /// Layers that were removed and have not come again.
    missing: BTreeSet<String>,
}

impl Tally {
    /// Takes up what the registry was asked since the last time.
    fn count(&mut self, scene: &Scene) {
        for request in scene.registry.requests() {
            self.closed += usize::from(request.status == 0);
            self.refused += usize::from(request.status == 503);
            if request.kind == Kind::Blob && matches!(request.status, 200 | 206) {
                self.reset += usize::from(request.sent == BEFORE_RESET);
                self.blobs += 1;
                self.blob_bytes += request.sent;
                self.missing.remove(&request.what);
            }
        }
        scene.registry.forget();
    }
}

struct Soak {
    scene: Scene,
    agent: Agent,
    references: Vec<String>,
    /// The layer of each image; no two share one.
    layers: Vec<String>,
    declared: usize,
    dice: Dice,
    tally: Tally,
}

impl Soak {
    fn new() -> Self {
        let scene = Scene::new(Version::V1_7, image::apart(IMAGES));
        let names: Vec<String> = (0..IMAGES).map(|n| format!("app{n}")).collect();
        let reference = |name: &String| scene.registry.reference("lab/app", name);
        let layer = |name: &String| {
            let manifest = scene.layout().manifest(name, &image::host());
            scene.layout().parts(&manifest)[1].clone()
        };
        let references = names.iter().map(reference).collect();
        let layers: Vec<String> = names.iter().map(layer).collect();
        assert_eq!(layers.iter().collect::<BTreeSet<_>>().len(), IMAGES);
        Self {
            agent: Agent::new(&scene.daemon),
            references,
            layers,
            declared: 0,
            dice: Dice(0x9e37_79b9_7f4a_7c15),
            tally: Tally::default(),
            scene,
        }
    }

    fn declare(&mut self, some: usize) {
        self.declared = some;
        self.agent
            .declare("all.txt", &self.references[..some].join("\n"));
    }

    /// Removes one of the declared images with all that is only its, so that it has to come
    /// again; the image.
    fn remove_one(&mut self) -> usize {
        let one = self.dice.roll(self.declared);
        // It may be gone already, since a round that could not bring it back.
        if self.tally.missing.insert(self.layers[one].clone()) {
            let remove = ["images", "rm", "--sync", &self.references[one]];
            self.scene.daemon.ctr(NAMESPACE, &remove).ok();
            self.tally.removed += 1;
        }
        one
    }

    /// What is declared is pulled, or not; the document at the end of the pass.
    #[track_caller]
    fn pass(&mut self) -> Value {
        let before = self.agent.status()["last_pass"].clone();
        let answer = request(&self.agent.socket(), "POST", "/v1/sync?wait=1");
        let (code, body) = answer.unwrap_or_else(|| panic!("no answer: {:#}", self.agent.status()));
        assert_eq!(code, 200, "{body}");
        wait_for("a pass", PATIENCE, || {
            self.agent.status()["last_pass"] != before
        });
        self.tally.count(&self.scene);
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}"))
    }

    /// One fault, and the pass that meets it.
    #[track_caller]
    fn round(&mut self, round: u32) {
        let fault = self.dice.roll(8);
        let mut lost = None;
        match fault {
            0 => {
                // Nobody answers, then one who can do nothing.
                self.scene.registry.script([
                    Rule::always(Action::Close).times(3),
                    Rule::always(Action::status(503)),
                ]);
                lost = Some(self.remove_one());
            }
            1 => {
                let reset = Action::Reset(BEFORE_RESET);
                self.scene
                    .registry
                    .script([Rule::on(Kind::Blob, reset).times(3)]);
                self.remove_one();
            }
            2 => {
                self.scene.daemon.restart();
                self.tally.restarts += 1;
            }
            3 => {
                self.remove_one();
            }
            4 => {
                let some = 1 + self.dice.roll(IMAGES);
                self.declare(some);
            }
            5 => self.agent.signal(Signal::SIGHUP),
            _ => {}
        }
        let begun = Instant::now();
        let document = self.pass();
        println!("round {round}: {fault}, {:?}", begun.elapsed());
        let images = document["images"].as_array().unwrap();
        assert_eq!(images.len(), self.declared, "{document:#}");
        if let Some(lost) = lost {
            let lost = &self.references[lost];
            let image = images.iter().find(|image| image["reference"] == **lost);
            assert_eq!(image.unwrap()["state"], "failed", "{document:#}");
            self.tally.failed += 1;
            self.scene.registry.script([]);
        } else {
            let is_ready = |image: &Value| image["state"] == "ready";
            assert!(images.iter().all(is_ready), "{document:#}");
        }
    }
}

fn soak(rounds: u32) {
    let mut soak = Soak::new();
    soak.declare(IMAGES);
    soak.agent.start();
    let wait = |soak: &Soak| {
        let call = soak.agent.call(["wait", "--timeout", "90s"]);
        call.run().exits(0)
    };
    wait(&soak);
    soak.scene.registry.forget();
    let mut weights: Vec<Weight> = Vec::new();
    let mut leases = Vec::new();
    let begun = Instant::now();
    for round in 0..rounds {
        soak.round(round);
        if round % (rounds / 10).max(1) == 0 {
            weights.push(Weight::of(soak.agent.pid()));
            leases.push(soak.scene.daemon.leases(NAMESPACE).len());
        }
    }
    let tally = std::mem::take(&mut soak.tally);
    soak.declare(IMAGES);
    wait_for("the last declaration", PATIENCE, || {
        soak.agent.status()["images"].as_array().map(Vec::len) == Some(IMAGES)
    });
    soak.tally.missing.clone_from(&tally.missing);
    soak.pass();
    wait(&soak);
    let there = soak.scene.daemon.images(NAMESPACE);
    assert!(
        soak.references.iter().all(|one| there.contains(one)),
        "{there:?}"
    );
    assert!(soak.scene.daemon.leases(NAMESPACE).is_empty());
    weights.push(Weight::of(soak.agent.pid()));
    println!("{rounds} passes in {:?}: {weights:#?}", begun.elapsed());
    println!("leases: {leases:?}; {tally:#?}");
    soak.tally.count(&soak.scene);
    assert!(
        soak.tally.missing.is_empty(),
        "what was removed did not come from the registry again: {tally:?}"
    );
    let met = [
        tally.removed,
        tally.failed,
        tally.closed,
        tally.refused,
        tally.reset,
        tally.restarts,
    ];
    assert!(!met.contains(&0), "a fault that met nothing: {tally:?}");
    assert!(tally.blobs >= tally.removed, "{tally:?}");
    let (early, last) = (weights[1], weights[weights.len() - 1]);
    assert!(
        last.rss_kib < early.rss_kib + 2048,
        "memory grows: {weights:?}"
    );
    // A pull that failed may keep what it has for its next try, one each.
    assert!(
        leases.iter().all(|held| *held <= IMAGES),
        "leases stay: {leases:?}"
    );
    // A connection that is just being closed.
    assert!(
        last.files <= early.files + 4,
        "files stay open: {weights:?}"
    );
    // One that writes the state has a few seconds more to live.
    assert!(last.tasks <= early.tasks + 1, "tasks stay: {weights:?}");
    wait_for("the end of the last worker", PATIENCE, || {
        soak.agent.workers().is_empty()
    });
    let stopped = soak.agent.stop();
    assert_eq!(
        stopped.output.code,
        Some(0),
        "{}",
        stopped.output.transcript()
    );
    assert!(begun.elapsed() < LIMIT);
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
