//! Transfers that break and go on: what it takes, what is fetched twice, and what ends them.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::time::Duration;

use edgepull_tests::containerd::{Setup, Version};
use edgepull_tests::edgepull::{Edgepull, Run};
use edgepull_tests::fault_proxy::{Fault, FaultProxy};
use edgepull_tests::faulty::{
    Action, Auth, Faulty, Kind, Request, Rule, SECRET_TOKEN, SIGNATURE, Signed, Tokens,
};
use edgepull_tests::image::{self, Layout, digest_of, host};
use edgepull_tests::on_each_containerd;
use edgepull_tests::process::wait_for;
use edgepull_tests::scene::{NAMESPACE, Scene};
use nix::sys::signal::Signal;
use serde_json::Value;

const VERSION: Version = Version::V1_7;
const MIB: u64 = 1 << 20;

/// The big layer of `image::big(1, …)`, and its size.
fn big_layer(layout: &Layout) -> (String, u64) {
    let parts = layout.parts(&layout.manifest("latest", &host()));
    let sized = parts.into_iter().map(|digest| {
        let size = std::fs::metadata(layout.blob_path(&digest)).unwrap().len();
        (digest, size)
    });
    sized.max_by_key(|(_, size)| *size).unwrap()
}

fn sent(requests: &[Request], digest: &str) -> u64 {
    let about = requests.iter().filter(|request| request.what == digest);
    about.map(|request| request.sent).sum()
}

fn asked(requests: &[Request], digest: &str) -> usize {
    requests
        .iter()
        .filter(|request| request.what == digest)
        .count()
}

#[track_caller]
fn bytes(report: &Value, key: &str) -> u64 {
    report["bytes"][key].as_u64().unwrap()
}

/// Below a temporary home, so that it goes with the call.
fn to_layout(call: Edgepull) -> Edgepull {
    let dir = call.home().join("layout");
    call.arg("--store").arg(format!("oci:{}", dir.display()))
}

/// `edgepull pull` through links that break, into containerd and into a layout.
fn through_resets(size: u64, each: std::ops::Range<u64>, twice: f64) {
    // The link is the narrow place, as it is at the edge: else the reset also destroys what
    // waits in the sender's buffer, which never came over the link.
    let scene = Scene::with(Setup::new(VERSION), image::big(1, size), [steady()]);
    let (layer, size) = big_layer(scene.layout());
    let rounds = [
        (Fault::Reset(each.clone()), false),
        (Fault::Reset(each.clone()), true),
        (Fault::Cut(each.clone()), true),
    ];
    for (seed, (fault, into_layout)) in (1..).zip(rounds) {
        let proxy = FaultProxy::start(scene.registry.host(), seed, fault.clone());
        let reference = format!("{}/lab/app:latest", proxy.host());
        let call = Edgepull::new(["pull", &reference]).json();
        let run = if into_layout {
            to_layout(call).run()
        } else {
            call.on(&scene.daemon, NAMESPACE).run()
        };
        let report = run.exits(0).element();
        assert_eq!(report["status"], "pulled", "{report}");
        let through = sent(&proxy.requests(), &layer);
        let again = through - size;
        let connections = u64::from(proxy.connections());
        println!("{fault:?}: {size} bytes, {again} twice, {connections} connections");
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let share = again as f64 / size as f64;
        assert!(share <= twice, "{again} of {size} bytes twice");
        assert!(connections > size / each.end);
    }
}

#[test]
fn a_layer_through_a_link_that_resets() {
    through_resets(24 * MIB, 100_000..800_000, 0.01);
}

#[test]
#[ignore = "the size that is promised; takes minutes"]
fn a_layer_of_200_megabytes_through_a_link_that_resets() {
    through_resets(200 * MIB, MIB..8 * MIB, 0.01);
}

/// For each request for the layer but the first, the bytes before its first one that the requests
/// before it had brought already and that it brings again.
fn overlaps(requests: &[Request], layer: &str) -> Vec<u64> {
    let mut brought = 0;
    let mut overlaps = Vec::new();
    for request in requests.iter().filter(|request| request.what == layer) {
        let range = request
            .header("range")
            .and_then(|range| range.strip_prefix("bytes="));
        let start = range.map_or(0, |range| range.split('-').next().unwrap().parse().unwrap());
        overlaps.push(brought - start);
        brought = start + request.sent;
    }
    overlaps.split_off(1)
}

/// A pull that is killed at `moments` (bytes of the layer that the registry has sent), each
/// time begun again; the most that was fetched twice for one kill.
fn killed_at(scene: &Scene, moments: impl IntoIterator<Item = u64>) -> u64 {
    let (layer, size) = big_layer(scene.layout());
    let so_far = || sent(&scene.registry.requests(), &layer);
    let (mut kills, mut stored) = (0, 0);
    for moment in moments {
        let before = so_far();
        let pull = scene.verb("pull").arg(&scene.reference).start();
        let mut pull_running = pull;
        wait_for("bytes", Duration::from_secs(60), || {
            so_far() >= before + moment || !pull_running.running.is_running()
        });
        if !pull_running.running.is_running() {
            let _ended = pull_running.wait();
            break;
        }
        pull_running.running.signal(Signal::SIGKILL);
        let killed = pull_running.wait();
        assert_eq!(killed.output.code, None);
        kills += 1;
        stored += moment;
        if stored >= size {
            break;
        }
    }
    assert!(scene.daemon.images(NAMESPACE).is_empty(), "{kills} kills");
    let before = so_far();
    let report = scene.pull();
    let resumed = bytes(&report, "resumed");
    let again = so_far() - size;
    println!(
        "{kills} kills: {size} bytes, {again} twice, the last run began at {resumed} and fetched {}",
        so_far() - before
    );
    assert!(kills > 0);
    assert!(resumed > 0, "{report}");
    // What the last run says is what the store had, and what the registry sent.
    assert!(so_far() - before <= size - resumed + MIB, "{report}");
    scene.greets();
    let each = overlaps(&scene.registry.requests(), &layer);
    println!("fetched twice for each: {each:?}");
    assert_eq!(each.len() as u64, kills);
    assert_eq!(each.iter().sum::<u64>(), again);
    each.into_iter().max().unwrap()
}

/// Fast enough for many runs, slow enough to be killed in the middle.
fn steady() -> Rule {
    Rule::on(Kind::Blob, Action::Slow(64 << 10, Duration::from_millis(4)))
}

fn killed_again_and_again(version: Version) {
    let scene = Scene::with(Setup::new(version), image::big(1, 24 * MIB), [steady()]);
    let again = killed_at(&scene, [5, 3, 6].map(|mib| mib * MIB + 123_456));
    assert!(again <= 4 * MIB, "{again} bytes fetched twice for one kill");
}

fn containerd_restarts_within_a_layer(version: Version) {
    let mut scene = Scene::with(Setup::new(version), image::big(1, 24 * MIB), [steady()]);
    let (layer, size) = big_layer(scene.layout());
    let pull = scene.verb("pull").arg(&scene.reference).start();
    wait_for("bytes", Duration::from_secs(60), || {
        sent(&scene.registry.requests(), &layer) >= 8 * MIB
    });
    scene.daemon.restart();
    let run = pull.wait();
    if run.output.code != Some(0) {
        run.fails(40, "containerd_unavailable");
        scene.pull();
    }
    let again = sent(&scene.registry.requests(), &layer) - size;
    assert!(again <= 4 * MIB, "{again} bytes fetched twice");
    scene.greets();
}

on_each_containerd!(killed_again_and_again, containerd_restarts_within_a_layer);

#[test]
#[ignore = "ten restarts of the daemon; takes a minute"]
fn containerd_is_killed_at_10_moments() {
    let mut scene = Scene::with(Setup::new(VERSION), image::big(3, 24 * MIB), [steady()]);
    let total: u64 = scene
        .wanted_blobs(&host())
        .iter()
        .map(|digest| {
            std::fs::metadata(scene.layout().blob_path(digest))
                .unwrap()
                .len()
        })
        .sum();
    let (mut kills, mut completed) = (0_u64, 0);
    while kills < 10 {
        // The same moments on every run, spread over what is still to be fetched.
        let moment = scene.registry.blob_bytes() + MIB + kills * 0x9e37_79b9 % (6 * MIB);
        let mut pull = scene.verb("pull").arg(&scene.reference).start();
        wait_for("bytes", Duration::from_secs(60), || {
            scene.registry.blob_bytes() >= moment || !pull.running.is_running()
        });
        scene.daemon.kill9();
        // Sometimes it comes back at once, sometimes the pull has to give up.
        if kills % 3 != 2 {
            scene.daemon.start_again();
        }
        kills += 1;
        let run = pull.wait();
        let run_completed = run.output.code == Some(0);
        if !run_completed {
            run.fails(40, "containerd_unavailable");
        }
        if kills % 3 == 0 {
            scene.daemon.start_again();
        }
        if run_completed {
            completed += 1;
            // From the start, for the moments that are left.
            let name = &scene.reference;
            scene.daemon.ctr(NAMESPACE, &["images", "rm", name]).ok();
            scene.daemon.collect_garbage(NAMESPACE);
        }
    }
    scene.pull();
    let again = scene.registry.blob_bytes() - (completed + 1) * total;
    println!("{kills} kills, {completed} pulls completed: {again} bytes of {total} twice");
    assert!(again <= kills * 3 * 4 * MIB);
    for digest in scene.daemon.blobs(NAMESPACE) {
        let found = digest_of(&scene.daemon.blob(NAMESPACE, &digest));
        assert_eq!(found, digest, "the store holds what it should not");
    }
    assert!(scene.daemon.leases(NAMESPACE).is_empty());
    scene.greets();
}

#[test]
#[ignore = "the size that is promised; takes minutes"]
fn killed_at_20_moments_of_200_megabytes() {
    let scene = Scene::with(Setup::new(VERSION), image::big(1, 200 * MIB), [steady()]);
    // Between 1 and 16 MiB apart, the same on every run.
    let moments = (1..=20_u64).map(|n| MIB + n * 0x9e37_79b9 % (15 * MIB));
    let again = killed_at(&scene, moments);
    assert!(again <= 4 * MIB, "{again} bytes fetched twice for one kill");
}

#[test]
fn a_layout_keeps_what_a_killed_pull_fetched() {
    let registry = Faulty::start(image::big(1, 24 * MIB), [steady()]);
    let (layer, size) = big_layer(registry.layout());
    let reference = registry.reference("lab/app", "latest");
    let lasting = Edgepull::new(["version"]);
    let store = format!("oci:{}", lasting.home().join("layout").display());
    let pull = || Edgepull::new(["pull", &reference, "--store", &store]).json();
    let killed = pull().start();
    let so_far = || sent(&registry.requests(), &layer);
    wait_for("bytes", Duration::from_secs(60), || so_far() >= 8 * MIB);
    killed.running.signal(Signal::SIGKILL);
    killed.wait();
    let report = pull().run().exits(0).element();
    assert!(bytes(&report, "resumed") > 3 * MIB, "{report}");
    assert!(so_far() - size <= 4 * MIB, "{}", registry.transcript());
}

/// The one layer of `hello` that is no base, served by these rules.
fn layer_of_hello() -> (Layout, String, u64) {
    let layout = image::hello();
    let layer = layout.parts(&layout.manifest("latest", &host())).remove(2);
    let size = std::fs::metadata(layout.blob_path(&layer)).unwrap().len();
    (layout, layer, size)
}

/// The first answer with the layer is cut in its middle, and later ones are as `rule` has it.
#[track_caller]
fn cut_and_then(action: Action) -> (Run, Scene, String, u64) {
    let (layout, layer, size) = layer_of_hello();
    let rules = [
        Rule::on(Kind::Blob, Action::Truncate(size / 2))
            .what(&layer)
            .times(1),
        Rule::on(Kind::Blob, action).what(&layer),
    ];
    let scene = Scene::with(Setup::new(VERSION), layout, rules);
    (scene.pull_with(&[]), scene, layer, size)
}

#[test]
fn wrong_answers_to_a_range_cost_one_more_request() {
    for action in [
        Action::IgnoreRange,
        Action::RefuseRange,
        Action::Shift(true),
    ] {
        let (run, scene, layer, size) = cut_and_then(action.clone());
        run.exits(0);
        scene.greets();
        let requests = scene.registry.requests();
        assert!(
            asked(&requests, &layer) <= 3,
            "{action:?}\n{}",
            scene.registry.transcript()
        );
        assert!(sent(&requests, &layer) <= size / 2 + 2 * size);
    }
}

#[test]
fn bytes_of_two_answers_that_do_not_fit_are_fetched_once_whole() {
    // The headers are right, the bytes are those of one later: only the digest tells.
    let (layout, layer, size) = layer_of_hello();
    let rules = [
        Rule::on(Kind::Blob, Action::Truncate(size / 2))
            .what(&layer)
            .times(1),
        Rule::on(Kind::Blob, Action::Shift(false))
            .what(&layer)
            .times(1),
    ];
    let scene = Scene::with(Setup::new(VERSION), layout, rules);
    scene.pull();
    scene.greets();
    let requests = scene.registry.requests();
    // The half, the wrong rest, the one byte that it lacks, and the whole.
    assert_eq!(
        asked(&requests, &layer),
        4,
        "{}",
        scene.registry.transcript()
    );
    assert_eq!(requests.last().unwrap().header("range"), None);
}

#[test]
fn a_blob_that_never_fits_ends_as_invalid() {
    let (layout, layer, size) = layer_of_hello();
    let scene = Scene::with(
        Setup::new(VERSION),
        layout,
        [
            Rule::on(Kind::Blob, Action::Truncate(size / 2))
                .what(&layer)
                .times(1),
            Rule::on(Kind::Blob, Action::FlipBit(size - 9)).what(&layer),
        ],
    );
    scene.pull_with(&[]).fails(24, "invalid_content");
    let requests = scene.registry.requests();
    assert_eq!(
        asked(&requests, &layer),
        3,
        "{}",
        scene.registry.transcript()
    );
    assert!(scene.daemon.images(NAMESPACE).is_empty());
}

/// Requests for layers until the pull gives up.
fn until_it_gives_up(action: &Action, into_layout: bool) -> usize {
    let layout = image::big(3, MIB);
    let (layer, _) = big_layer(&layout);
    let config = layout.parts(&layout.manifest("latest", &host())).remove(0);
    let rules = [
        Rule::on(Kind::Blob, Action::IgnoreRange).what(&config),
        Rule::on(Kind::Blob, action.clone()),
    ];
    let registry = Faulty::start(layout, rules);
    let reference = registry.reference("lab/app", "latest");
    let call = Edgepull::new(["pull", &reference]).json();
    let error = if into_layout {
        to_layout(call).run().fails(23, "unavailable")
    } else {
        let daemon = Setup::new(VERSION).start();
        let error = call.on(&daemon, NAMESPACE).run();
        assert!(daemon.images(NAMESPACE).is_empty());
        error.fails(23, "unavailable")
    };
    assert_eq!(error["retryable"], true, "{error}");
    let mut requests = registry.content_requests();
    requests.retain(|request| request.kind == Kind::Blob && request.what != config);
    assert!(asked(&requests, &layer) <= 5, "{}", registry.transcript());
    requests.len()
}

#[test]
fn a_server_that_gives_nothing_gets_few_requests() {
    let cases = [
        (Action::status(503), false),
        // Progress so small that it is none.
        (Action::Truncate(1), false),
        (Action::Reset(0), true),
        (Action::Truncate(0), true),
        (Action::Close, true),
    ];
    std::thread::scope(|scope| {
        for (action, into_layout) in cases {
            scope.spawn(move || {
                let count = until_it_gives_up(&action, into_layout);
                println!("{action:?}: {count} requests for layers");
                // Three layers at once, five times each at most, and the first that fails
                // ends the pull.
                assert!((5..=15).contains(&count), "{action:?}: {count}");
            });
        }
    });
}

#[test]
fn a_token_that_ends_within_a_layer() {
    let (layout, layer, size) = layer_of_hello();
    let daemon = Setup::new(VERSION).start();
    // Manifests, configs and the first half of the layer; then another token is needed.
    let cut = Rule::on(Kind::Blob, Action::Truncate(size / 2))
        .what(&layer)
        .times(1);
    let tokens = Tokens {
        uses: Some(2),
        ..Tokens::default()
    };
    let registry = Faulty::start_with(layout, Auth::Tokens(tokens), [cut]);
    let reference = registry.reference("lab/app", "latest");
    let call = Edgepull::new(["pull", &reference]).json();
    call.on(&daemon, NAMESPACE).run().exits(0);
    let mut requests = registry.requests();
    let refused = |request: &Request| request.what == layer && request.status == 401;
    assert!(requests.iter().any(refused), "{}", registry.transcript());
    requests.retain(|request| !refused(request));
    assert_eq!(sent(&requests, &layer), size, "{}", registry.transcript());
    // Other blobs come at the same time.
    let last = requests.iter().rfind(|request| request.what == layer);
    assert_eq!(last.unwrap().status, 206);
}

#[test]
fn a_signed_address_that_ends_within_a_layer() {
    let (layout, layer, size) = layer_of_hello();
    let terms = Signed {
        bytes: Some(size / 3),
        ..Signed::default()
    };
    let storage = Faulty::start_with(image::hello(), Auth::Storage(terms), []);
    let to = format!(
        "http://{}",
        storage.host().replace("127.0.0.1", "localhost")
    );
    let sign = Rule::on(Kind::Blob, Action::Sign(to));
    let auth = Auth::user("edge", "p4ssw0rd");
    let registry = Faulty::start_with(layout, auth, [sign]);
    let daemon = Setup::new(VERSION).start();
    let reference = registry.reference("lab/app", "latest");
    let call = Edgepull::new(["pull", &reference, "--creds", "edge:p4ssw0rd", "-vv"]);
    let run = call.json().on(&daemon, NAMESPACE).run().exits(0);
    let there = storage.requests();
    assert_eq!(sent(&there, &layer), size, "{}", storage.transcript());
    assert!(asked(&there, &layer) >= 3);
    assert!(there.iter().all(|request| !request.authorized()));
    // Neither the password nor the tokens nor the signatures are anybody else's business.
    let output = run.output.transcript();
    let output = output.split_once("exit:").unwrap().1;
    assert!(output.contains("/blobs/"), "requests are logged:\n{output}");
    for secret in ["p4ssw0rd", SECRET_TOKEN, SIGNATURE, "ZWRnZTpwNHNzdzByZA"] {
        assert!(!output.contains(secret), "{secret} in:\n{output}");
    }
}

#[test]
fn a_registry_that_asks_to_wait_is_not_asked_again() {
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let limited = Action::Answer(
        429,
        vec![
            header("Retry-After", "3600"),
            header("RateLimit-Limit", "100;w=21600"),
            header("RateLimit-Remaining", "0;w=21600"),
            header("Date", "Tue, 14 Nov 2023 22:13:20 GMT"),
        ],
        b"you have pulled too much\nmore".to_vec(),
    );
    let registry = Faulty::start(image::hello(), [Rule::on(Kind::Tag, limited)]);
    let references = ["1", "2", "3"].map(|tag| registry.reference("lab/app", tag));
    let run = to_layout(Edgepull::new(["pull"]).args(&references).json()).run();
    assert_eq!(run.output.code, Some(22), "{}", run.output.transcript());
    for row in run.elements() {
        let error = row["error"].to_string();
        for part in [
            "rate_limited",
            "you have pulled too much",
            "100 requests in 6 h, 0 left",
            "2023-11-14T23:13:20Z",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert_eq!(row["error"]["retryable"], true);
    }
    assert_eq!(registry.requests().len(), 1, "{}", registry.transcript());
}

#[test]
fn a_rate_is_kept_by_all_pulls_of_a_call() {
    let registry = Faulty::start(image::big(1, 3 * MIB), []);
    let references = ["one", "two"].map(|name| registry.reference(name, "latest"));
    let dirs = Edgepull::new(["version"]);
    let store = |n: u8| format!("oci:{}", dirs.home().join(n.to_string()).display());
    let pull = |rate: &[&str], n| {
        let call = Edgepull::new(["pull", "--store", &store(n)]).args(&references);
        call.args(rate).json().run().exits(0)
    };
    let limited = pull(&["--limit-rate", "1M"], 1);
    // 3 MiB, and the second finds them in the layout; what a socket holds is not counted.
    assert!(limited.output.took >= Duration::from_millis(2_500));
    let text = limited.output.transcript();
    assert_eq!(limited.elements().len(), 2, "{text}");
    for wrong in ["0", "5kB", "fast", "-1", "1e9"] {
        let rate = format!("--limit-rate={wrong}");
        let call = Edgepull::new(["pull", &references[0], &rate, "--store", &store(2)]);
        let error = call.json().run().fails(2, "usage");
        assert!(error.to_string().contains("limit-rate"), "{error}");
    }
}
