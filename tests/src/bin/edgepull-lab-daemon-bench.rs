//! `make bench`, the daemon: what the shipped file takes of a host, waiting and at work, and
//! what the same images cost with containerd's own client. Prints a table; decides nothing.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and stops where it fails"
)]

use std::fmt::Display;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use edgepull_tests::agent::{Agent, PATIENCE};
use edgepull_tests::containerd::Version;
use edgepull_tests::faulty::{Auth, Faulty, Kind, Tokens};
use edgepull_tests::image;
use edgepull_tests::process::{run, tied, wait_for};
use edgepull_tests::scene::{NAMESPACE, Scene};
use edgepull_tests::target::Target;
use edgepull_tests::tools::Lab;
use edgepull_tests::weight::{Weight, wait_alone};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

const IMAGES: usize = 256;
/// So many by the other client, which takes its time.
const BY_CTR: usize = 64;
const LAYERS: u64 = 6;
const LAYER: u64 = 50 << 20;
/// Wake-ups are counted for so long; `EDGEPULL_BENCH_IDLE` names other seconds.
const IDLE: Duration = Duration::from_secs(120);
/// As in systemd/edgepull.service.
const WATCHDOG: Duration = Duration::from_secs(60);
/// After its last work a program still closes connections.
const SETTLED: Duration = Duration::from_secs(5);

fn main() {
    let shipped = Target::here();
    let scene = Scene::new(Version::V1_7, image::hello());
    println!(
        "\nthe daemon, {} on containerd {}\n{:<62} {:>12}   bound",
        shipped.file().display(),
        scene.daemon.version().exact(),
        "figure",
        "measured"
    );
    let mut agent = Agent::new(&scene.daemon).shipped(&shipped);
    // Records for each image would be work of whoever reads them.
    agent.set("EDGEPULL_LOG", "edgepull=warn");
    let references: Vec<String> = (0..IMAGES)
        .map(|n| scene.registry.reference(&format!("bench/app{n}"), "latest"))
        .collect();

    agent.declare("all.txt", &references[0]);
    agent.start();
    wait(&agent);
    resident("1 image present", &agent);
    let wakes = wake_ups(&agent);
    row("wake-ups a minute, waiting, no watchdog", wakes, "0");
    agent.stop();

    agent.declare("all.txt", &references.join("\n"));
    let begun = Instant::now();
    agent.start();
    wait(&agent);
    let seconds = begun.elapsed().as_secs_f64();
    row(
        format_args!("first pass: {IMAGES} images of {} blobs pulled, s", 4),
        format_args!("{seconds:.2}"),
        "",
    );
    resident(&format!("after pulling {IMAGES} images"), &agent);
    agent.stop();

    let begun = Instant::now();
    agent.start();
    wait_for("readiness", PATIENCE, || {
        agent.get("/readyz").is_some_and(|(code, _)| code == 200)
    });
    row(
        format_args!("ready after start, {IMAGES} images present, ms"),
        begun.elapsed().as_millis(),
        "1000",
    );
    wait(&agent);
    resident(
        &format!("after a start with {IMAGES} images present"),
        &agent,
    );
    for (name, auth) in [
        ("open", Auth::Open),
        ("tokens", Auth::Tokens(Tokens::default())),
    ] {
        scene.registry.demand(auth);
        pass(name, &scene, &agent);
    }
    resident(&format!("after passes of {IMAGES} present images"), &agent);
    by_ctr(&scene, &references[..BY_CTR]);

    let large = Faulty::start(image::big(LAYERS, LAYER), []);
    let reference = large.reference("bench/big", "latest");
    agent.declare("big.txt", &reference);
    agent.wait_state(&reference, "ready");
    resident("after pulling an image of 300 MB", &agent);
    agent.stop();

    let notify = watched(&mut agent);
    agent.start();
    wait(&agent);
    let wakes = wake_ups(&agent);
    row(
        "wake-ups a minute, waiting, watchdog of 60 s",
        wakes,
        "< 10",
    );
    agent.stop();
    drop(notify);

    agent.undeclare("big.txt");
    agent.declare("all.txt", &references[0]);
    emulated(&scene, &mut agent);
}

fn row(figure: impl Display, measured: impl Display, bound: impl Display) {
    println!(
        "{:<62} {:>12}   {bound}",
        figure.to_string(),
        measured.to_string()
    );
}

/// Until everything is here and the daemon is alone.
fn wait(agent: &Agent) {
    agent.call(["wait", "--timeout", "90s"]).run().exits(0);
    wait_alone(agent.pid());
}

fn resident(when: &str, agent: &Agent) {
    wait_alone(agent.pid());
    std::thread::sleep(SETTLED);
    let weight = Weight::of(agent.pid());
    row(
        format_args!("resident, {when}, KiB"),
        weight.rss_kib,
        "10240",
    );
}

fn wake_ups(agent: &Agent) -> String {
    std::thread::sleep(SETTLED);
    // A thread that ends takes its count along; the one that wrote the state lives a while.
    wait_for("the last helping thread to end", PATIENCE, || {
        Weight::of(agent.pid()).tasks == 1
    });
    let idle = std::env::var("EDGEPULL_BENCH_IDLE")
        .ok()
        .and_then(|seconds| seconds.parse().ok())
        .map_or(IDLE, Duration::from_secs);
    let before = Weight::of(agent.pid());
    std::thread::sleep(idle);
    let after = Weight::of(agent.pid());
    let count = f64::from(u32::try_from(after.sleeps - before.sleeps).unwrap());
    format!("{:.1}", count * 60.0 / idle.as_secs_f64())
}

/// Somebody who listens as systemd does, and wants to be told that the daemon lives.
fn watched(agent: &mut Agent) -> UnixDatagram {
    let path = agent.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let heard = socket.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut text = [0; 4096];
        while heard.recv(&mut text).is_ok_and(|length| length > 0) {}
    });
    agent.set("NOTIFY_SOCKET", path);
    agent.set("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
    socket
}

/// One pass over images that are all here.
fn pass(name: &str, scene: &Scene, agent: &Agent) {
    scene.registry.forget();
    let before = Weight::of(agent.pid());
    let containerd = Weight::of(scene.daemon.pid());
    let begun = Instant::now();
    agent.call(["sync"]).run().exits(0);
    let wall = begun.elapsed();
    wait_alone(agent.pid());
    let spent = Weight::of(agent.pid()).spent_since(&before);
    let its = Weight::of(scene.daemon.pid()).spent_since(&containerd);
    let asked = scene.registry.content_requests();
    let heads = asked.iter().filter(|r| r.method == "HEAD").count();
    let title = format!("a pass of {IMAGES} present images, {name}");
    row(format_args!("{title}: HEADs"), heads, IMAGES);
    row(
        format_args!("{title}: other requests for content"),
        asked.len() - heads,
        "0",
    );
    let tokens = scene.registry.count("GET", &Kind::Token);
    row(format_args!("{title}: tokens"), tokens, "");
    row(format_args!("{title}: wall, ms"), wall.as_millis(), "");
    row(
        format_args!("{title}: processor, ms"),
        spent.as_millis(),
        "",
    );
    row(
        format_args!("{title}: containerd's, ms"),
        its.as_millis(),
        "",
    );
}

fn by_ctr(scene: &Scene, references: &[String]) {
    scene.registry.demand(Auth::Open);
    scene.registry.forget();
    let before = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let containerd = Weight::of(scene.daemon.pid());
    let begun = Instant::now();
    for reference in references {
        scene.daemon.pull(NAMESPACE, reference).ok();
    }
    let wall = begun.elapsed();
    let after = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let spent =
        (after.user_time() + after.system_time()) - (before.user_time() + before.system_time());
    let times = IMAGES / references.len();
    let title = format!(
        "the same by ctr ({} of them, times {times})",
        references.len()
    );
    row(
        format_args!("{title}: requests"),
        scene.registry.requests().len() * times,
        "",
    );
    row(
        format_args!("{title}: wall, ms"),
        wall.as_millis() * u128::try_from(times).unwrap(),
        "",
    );
    row(
        format_args!("{title}: processor, ms"),
        spent.num_milliseconds() * i64::try_from(times).unwrap(),
        "",
    );
    let its = Weight::of(scene.daemon.pid()).spent_since(&containerd);
    row(
        format_args!("{title}: containerd's, ms"),
        its.as_millis() * u128::try_from(times).unwrap(),
        "",
    );
}

/// The daemon for the smallest boards under an emulator, beside a program that does nothing.
/// The emulator keeps what it has translated, which grows with all that ever ran and is in no
/// real device; so the program's own pages are counted apart.
fn emulated(scene: &Scene, agent: &mut Agent) {
    let target = Target::named("arm-unknown-linux-musleabihf");
    let empty = empty(&scene.daemon.dir().join("empty"));
    let mut words = target.runner();
    words.push(empty);
    let mut command = tied(&words[0]);
    let mut child = command.args(&words[1..]).spawn().unwrap();
    std::thread::sleep(SETTLED);
    let nothing = Emulated::of(child.id());
    child.kill().unwrap();
    child.wait().unwrap();

    agent.ship(&target);
    agent.start();
    wait(agent);
    std::thread::sleep(SETTLED);
    let daemon = Emulated::of(agent.pid());
    agent.stop();
    agent.ship(&Target::here());
    for (what, nothing, daemon) in [
        ("with the emulator", nothing.all, daemon.all),
        ("its own pages and its file's", nothing.guest, daemon.guest),
        ("its own pages", nothing.own, daemon.own),
    ] {
        let title = format!("under qemu-arm, {what}");
        row(format_args!("{title}: an empty program, KiB"), nothing, "");
        row(
            format_args!("{title}: 1 image present, KiB"),
            daemon,
            nothing + 4096,
        );
    }
}

/// Resident memory of an emulated program of 32 bits, in KiB.
struct Emulated {
    /// With the emulator and its translations.
    all: u64,
    /// Of the program itself: what it has in its 4 GiB.
    guest: u64,
    /// The same without what is of its file.
    own: u64,
}

impl Emulated {
    fn of(pid: u32) -> Self {
        let mut found = Self {
            all: Weight::of(pid).rss_kib,
            guest: 0,
            own: 0,
        };
        let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
        let mut inside = false;
        for line in maps.lines() {
            let mut words = line.split_whitespace();
            let (Some(first), second) = (words.next(), words.next()) else {
                continue;
            };
            if let Some((start, _)) = first.split_once('-')
                && let Ok(start) = u64::from_str_radix(start, 16)
            {
                inside = u32::try_from(start).is_ok();
            } else if inside && let Some(Ok(kib)) = second.map(str::parse::<u64>) {
                match first {
                    "Rss:" => found.guest += kib,
                    "Anonymous:" => found.own += kib,
                    _ => {}
                }
            }
        }
        found
    }
}

/// A static program that sleeps, by the compiler that the shipped files are built with.
fn empty(at: &Path) -> PathBuf {
    let python = Lab::get().workspace().join("build/cross/tools/bin/python");
    assert!(
        python.is_file(),
        "{} is missing: run `make dist` first",
        python.display()
    );
    let source = at.with_extension("c");
    std::fs::write(
        &source,
        "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n",
    )
    .unwrap();
    let mut compile = Command::new(python);
    compile
        .args(["-m", "ziglang", "cc", "-target", "arm-linux-musleabihf"])
        .args(["-mcpu=arm1176jzf_s", "-static", "-Os", "-o"])
        .arg(at)
        .arg(source)
        .stdin(Stdio::null());
    run(&mut compile).ok();
    at.to_path_buf()
}
