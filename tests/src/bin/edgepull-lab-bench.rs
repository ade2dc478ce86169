//! `make bench`: the same image pulled by edgepull and by containerd's own client, one
//! after the other in one run, cold and warm. Prints a table; decides nothing.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and stops where it fails"
)]

use std::process::Command;
use std::time::{Duration, Instant};

use edgepull_tests::containerd::{Containerd, Version};
use edgepull_tests::edgepull::Edgepull;
use edgepull_tests::image;
use edgepull_tests::registry::Registry;
use edgepull_tests::tools::Lab;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

const NAMESPACE: &str = "bench";
const ROUNDS: usize = 3;
const LAYERS: u64 = 4;
const LAYER: u64 = 24 << 20;
const IMAGES: usize = 100;
const PROOFS: u32 = 50;

fn main() {
    let registry = Registry::start();
    image::big(LAYERS, LAYER).push(&registry, "latest", "bench/app", "latest");
    let reference = registry.reference("bench/app", "latest");
    println!(
        "{LAYERS} layers of {} MiB over loopback, {} rounds; program {}\n",
        LAYER >> 20,
        ROUNDS,
        Lab::get().edgepull().display()
    );
    println!(
        "{:<12} {:<10} {:>12} {:>12} {:>14}",
        "containerd", "client", "cold, ms", "warm, ms", "peak RSS, KiB"
    );
    for version in [Version::V1_6, Version::V1_7, Version::V2] {
        for round in 0..ROUNDS {
            // Who begins takes turns, so that a cold page cache is shared fairly.
            let order: [fn(Version, &str); 2] = if round % 2 == 0 {
                [ours, theirs]
            } else {
                [theirs, ours]
            };
            for pull in order {
                pull(version, &reference);
            }
        }
    }
    freshness();
    proofs();
}

/// The entrypoint of an image that is present, looked at: a script, its interpreter and the layers
/// that they are in.
fn proofs() {
    let registry = Registry::start();
    image::hello().push(&registry, "latest", "bench/hello", "latest");
    let reference = registry.reference("bench/hello", "latest");
    println!(
        "\nverify of an image that is present, {PROOFS} times; a call each\n{:<12} {:>15} {:>9}",
        "containerd", "processor, ms", "wall, ms"
    );
    for version in [Version::V1_6, Version::V1_7, Version::V2] {
        let daemon = Containerd::start(version);
        let call = |verb: &str| {
            let call = Edgepull::new([verb, &reference]);
            call.json().on(&daemon, NAMESPACE).run().exits(0)
        };
        call("pull");
        let (before, started) = (of_children(), Instant::now());
        for _ in 0..PROOFS {
            call("verify");
        }
        let each = |all: Duration| all.as_secs_f64() * 1000.0 / f64::from(PROOFS);
        println!(
            "{:<12} {:>15.1} {:>9.1}",
            version.exact(),
            each(of_children().saturating_sub(before)),
            each(started.elapsed())
        );
    }
}

/// Processor time of the processes that were waited for: not of daemons that run.
fn of_children() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let parts = [usage.user_time(), usage.system_time()];
    let micros = parts
        .iter()
        .map(|time| u64::try_from(time.num_microseconds()).unwrap());
    Duration::from_micros(micros.sum())
}

/// Images that are all here, asked for once more: what a device does most of its life.
fn freshness() {
    let registry = Registry::start();
    let layout = image::hello();
    let references: Vec<String> = (0..IMAGES)
        .map(|n| {
            let repository = format!("bench/app{n}");
            layout.push(&registry, "latest", &repository, "latest");
            registry.reference(&repository, "latest")
        })
        .collect();
    println!(
        "\n{IMAGES} images that are present, checked for freshness\n{:<12} {:<38} {:>9} {:>9}",
        "containerd", "client", "ms", "requests"
    );
    for version in [Version::V1_6, Version::V1_7, Version::V2] {
        let daemon = Containerd::start(version);
        let ours = || {
            let call = Edgepull::new(["pull"]).json().on(&daemon, NAMESPACE);
            call.args(&references).run().exits(0).elements()
        };
        let theirs = || {
            for reference in &references {
                daemon.pull(NAMESPACE, reference).ok();
            }
        };
        ours();
        for (client, pull) in [
            ("edgepull, one call", &(|| drop(ours())) as &dyn Fn()),
            ("ctr, one call for each", &theirs),
        ] {
            let before = registry.requests().len();
            let started = Instant::now();
            pull();
            println!(
                "{:<12} {client:<38} {:>9} {:>9}",
                version.exact(),
                started.elapsed().as_millis(),
                registry.requests().len() - before
            );
        }
    }
}

fn ours(version: Version, reference: &str) {
    let daemon = Containerd::start(version);
    let run = || {
        let started = Instant::now();
        let run = Edgepull::new(["pull", reference])
            .json()
            .on(&daemon, NAMESPACE)
            .weighed()
            .run()
            .exits(0);
        (started.elapsed().as_millis(), run.peak_kib)
    };
    let (cold, peak) = run();
    let (warm, _) = run();
    row(
        &daemon,
        "edgepull",
        cold,
        warm,
        peak.map(|peak| peak.to_string()),
    );
}

fn theirs(version: Version, reference: &str) {
    let daemon = Containerd::start(version);
    let run = || {
        let started = Instant::now();
        daemon.pull(NAMESPACE, reference).ok();
        started.elapsed().as_millis()
    };
    let cold = run();
    let warm = run();
    row(&daemon, "ctr", cold, warm, peak_of_ctr(&daemon, reference));
}

/// The peak of a pull by `ctr` into an empty namespace, through the same helper.
fn peak_of_ctr(daemon: &Containerd, reference: &str) -> Option<String> {
    let helper = Lab::get().edgepull().with_file_name("edgepull-lab-peak");
    let report = daemon.dir().join("peak");
    let status = Command::new(helper)
        .arg(&report)
        .arg(daemon.version().bin().join("ctr"))
        .arg("-a")
        .arg(daemon.address())
        .args(["-n", "bench-peak"])
        .args(daemon.pull_args(reference))
        .stdout(std::process::Stdio::null())
        .status()
        .ok()?;
    status
        .success()
        .then(|| std::fs::read_to_string(report).ok())
        .flatten()
}

fn row(daemon: &Containerd, client: &str, cold: u128, warm: u128, peak: Option<String>) {
    println!(
        "{:<12} {client:<10} {cold:>12} {warm:>12} {:>14}",
        daemon.version().exact(),
        peak.unwrap_or_else(|| "-".to_owned())
    );
}
