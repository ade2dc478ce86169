//! The file that is shipped, as a daemon on a host with little memory: small whenever it has
//! nothing to do, whatever it did before; and frugal with its registry.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use edgepull_tests::agent::Agent;
use edgepull_tests::containerd::Version;
use edgepull_tests::faulty::{Auth, Faulty, Tokens};
use edgepull_tests::image;
use edgepull_tests::process::note;
use edgepull_tests::scene::Scene;
use edgepull_tests::target::Target;
use edgepull_tests::weight::{Weight, wait_alone};

/// What the daemon may have resident while it waits.
const LIMIT_KIB: u64 = 10 << 10;
const IMAGES: usize = 256;
/// Six layers of 50 MiB.
const LAYERS: u64 = 6;
const EACH: u64 = 50 << 20;

#[track_caller]
fn small(agent: &Agent, when: &str) {
    wait_alone(agent.pid());
    let weight = Weight::of(agent.pid());
    note(&format!("{when}: {weight:?}"));
    assert!(weight.rss_kib <= LIMIT_KIB, "{when}: {weight:?}");
}

#[test]
fn idle_it_has_ten_megabytes_at_most_and_a_pass_costs_one_question_an_image() {
    let scene = Scene::new(Version::V1_7, image::hello());
    let mut agent = Agent::new(&scene.daemon).shipped(&Target::here());
    let references: Vec<String> = (0..IMAGES)
        .map(|n| scene.registry.reference(&format!("lab/app{n}"), "latest"))
        .collect();
    agent.declare("all.txt", &references.join("\n"));
    agent.start();
    agent.call(["wait", "--timeout", "90s"]).run().exits(0);
    small(&agent, "after 256 pulls");
    agent.stop();

    scene.registry.forget();
    agent.start();
    agent.call(["wait", "--timeout", "90s"]).run().exits(0);
    small(&agent, "after a start with all of them present");
    assert_eq!(scene.registry.transcript(), "", "nothing is due");

    for auth in [Auth::Open, Auth::Tokens(Tokens::default())] {
        scene.registry.demand(auth.clone());
        scene.registry.forget();
        agent.call(["sync"]).run().exits(0);
        small(&agent, "after a pass of 256 present images");
        let asked = scene.registry.content_requests();
        let others = asked.iter().filter(|request| request.method != "HEAD");
        assert_eq!(others.count(), 0, "{}", scene.registry.transcript());
        assert_eq!(asked.len(), IMAGES, "{auth:?}");
    }

    let large = Faulty::start(image::big(LAYERS, EACH), []);
    let reference = large.reference("lab/big", "latest");
    agent.declare("big.txt", &reference);
    agent.wait_state(&reference, "ready");
    assert!(large.blob_bytes() > LAYERS * EACH);
    small(&agent, "after a pull of 300 MB");
    let stopped = agent.stop();
    assert_eq!(
        stopped.output.code,
        Some(0),
        "{}",
        stopped.output.transcript()
    );
}
