//! `make bench`, the shim's part: containers by it and by containerd's own shim of the same version,
//! in turns. Prints tables; decides nothing. `memory`, `times`, `gate` as arguments: that alone.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and stops where it fails"
)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use edgepull_tests::containerd::{Containerd, Version};
use edgepull_tests::shims::Shims;
use edgepull_tests::target::Target;
use edgepull_tests::tools::Lab;
use edgepull_tests::weight::Pages;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Calls of each kind, for a median.
const ROUNDS: usize = 31;
/// Containers at once.
const MANY: [usize; 3] = [1, 10, 50];

fn main() {
    let shim = Target::here().shim();
    println!("{}: {} KiB\n", shim.display(), size(&shim));
    let mut versions = Version::ALL.to_vec();
    // One of them by itself, where the others are not of interest.
    if let Some(only) = std::env::var_os("EDGEPULL_BENCH_CONTAINERD") {
        versions.retain(|version| *version.exact() == *only);
    }
    one_kind_of_cgroups();
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted = |part: &str| wanted.is_empty() || wanted.iter().any(|word| word == part);
    if is_wanted("memory") {
        memory(&versions, &shim);
    }
    if is_wanted("times") {
        times(&versions, &shim);
    }
    if is_wanted("gate") {
        gate(&versions, &shim);
    }
}

/// No crun wants control groups of both versions at once: where this machine has them, nobody here
/// sees the second version.
fn one_kind_of_cgroups() {
    let unified = Path::new("/sys/fs/cgroup/unified");
    let controllers = fs::read_to_string(unified.join("cgroup.controllers"));
    if controllers.unwrap_or_default().trim().is_empty() {
        return;
    }
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
    umount2(unified, MntFlags::MNT_DETACH).unwrap();
}

fn size(file: &Path) -> u64 {
    fs::metadata(file).unwrap().len() / 1024
}

fn of(shims: &[Pages], which: impl Fn(&Pages) -> u64) -> u64 {
    shims.iter().map(which).sum()
}

fn memory(versions: &[Version], shim: &Path) {
    println!(
        "memory of shims at rest, KiB: private dirty of one; PSS of all, for so many containers"
    );
    println!(
        "{:<12} {:<9} {:>6} {:>6} {:>7} {:>7} {:>7} {:>10}",
        "containerd", "shim", "file", "dirty", "1", "10", "50", "50 in one"
    );
    for version in versions {
        for own in [true, false] {
            let (file, dirty, shares) = apart(*version, own, shim);
            let grouped = together(*version, own, shim);
            println!(
                "{:<12} {:<9} {file:>6} {dirty:>6} {:>7} {:>7} {:>7} {grouped:>10}",
                version.exact(),
                name(own),
                shares[0],
                shares[1],
                shares[2],
            );
        }
    }
}

fn shims<'a>(daemon: &'a Containerd, own: bool, shim: &Path) -> Shims<'a> {
    if own {
        Shims::new(daemon, shim)
    } else {
        Shims::of_containerd(daemon)
    }
}

/// The file, what one of many has written, what all of so many have.
fn apart(version: Version, own: bool, shim: &Path) -> (u64, u64, Vec<u64>) {
    let daemon = Containerd::start(version);
    let apart = shims(&daemon, own, shim);
    let mut dirty = 0;
    let mut shares = Vec::new();
    let mut here = 0;
    for wanted in MANY {
        for n in here..wanted {
            apart.start(&apart.id(n));
        }
        here = wanted;
        let pages = apart.weigh(wanted);
        shares.push(of(&pages, |pages| pages.share));
        dirty = of(&pages, |pages| pages.private_dirty) / pages.len() as u64;
    }
    (size(apart.program()), dirty, shares)
}

/// What one with as many containers has.
fn together(version: Version, own: bool, shim: &Path) -> u64 {
    let daemon = Containerd::start(version);
    let together = shims(&daemon, own, shim).grouped("bench");
    for n in 0..MANY[MANY.len() - 1] {
        together.start(&together.id(n));
    }
    of(&together.weigh(1), |pages| pages.share)
}

fn name(own: bool) -> &'static str {
    if own { "edgepull" } else { "runc.v2" }
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

/// The OCI runtimes that the lab has.
fn runtimes() -> Vec<(&'static str, Option<PathBuf>)> {
    let crun = Lab::get().dir().join("crun/usr/bin/crun");
    let mut all = vec![("runc", None)];
    if crun.exists() {
        all.push(("crun", Some(crun)));
    }
    all
}

fn times(versions: &[Version], shim: &Path) {
    println!(
        "\nmedian of {ROUNDS}, in turns, ms: `ctr run --rm` and `ctr task exec` of `true`, the bare `start`"
    );
    println!(
        "{:<12} {:<5} {:<9} {:>7} {:>7} {:>7}",
        "containerd", "by", "shim", "run", "exec", "start"
    );
    for version in versions {
        for (oci, program) in runtimes() {
            let daemon = Containerd::start(*version);
            let both = [Shims::new(&daemon, shim), Shims::of_containerd(&daemon)].map(|shims| {
                match &program {
                    Some(program) => shims.by(program),
                    None => shims,
                }
            });
            let mut runs = [Vec::new(), Vec::new()];
            let mut execs = [Vec::new(), Vec::new()];
            let mut starts = [Vec::new(), Vec::new()];
            for (which, shims) in both.iter().enumerate() {
                shims.start(&shims.id(which));
            }
            for round in 0..ROUNDS {
                for turn in 0..2 {
                    // Who begins takes turns.
                    let which = (round + turn) % 2;
                    let shims = &both[which];
                    let id = shims.id(10 + 2 * round + which);
                    let begun = Instant::now();
                    shims.run(&["--rm"], &id, &["true"]).ok();
                    runs[which].push(begun.elapsed());
                    let begun = Instant::now();
                    let exec = format!("e{round}");
                    shims.exec(&shims.id(which), &exec, &["true"]).ok();
                    execs[which].push(begun.elapsed());
                    starts[which].push(shims.bare_start(&format!("bare-{round}-{which}")));
                }
            }
            for which in 0..2 {
                println!(
                    "{:<12} {oci:<5} {:<9} {:>7.1} {:>7.1} {:>7.1}",
                    version.exact(),
                    name(which == 0),
                    median(&mut runs[which]),
                    median(&mut execs[which]),
                    median(&mut starts[which]),
                );
            }
        }
    }
}

/// What the look before a start takes: the same with it and without, which is by an OCI runtime of
/// a name that the shim does not know.
fn gate(versions: &[Version], shim: &Path) {
    println!("\nthe gate, median of {ROUNDS} `ctr run --rm` in turns, ms");
    println!(
        "{:<12} {:>7} {:>8} {:>8}",
        "containerd", "with", "without", "refused"
    );
    for version in versions {
        let daemon = Containerd::start(*version);
        let real = Lab::get().tool("runc/usr/sbin/runc");
        let other = daemon.dir().join("ungated");
        symlink(&real, &other).unwrap();
        let both = [
            Shims::new(&daemon, shim).by(&real),
            Shims::new(&daemon, shim).by(&other),
        ];
        let mut runs = [Vec::new(), Vec::new()];
        let mut refused = Vec::new();
        for round in 0..ROUNDS {
            for turn in 0..2 {
                let which = (round + turn) % 2;
                let id = both[0].id(3 * round + which);
                let begun = Instant::now();
                both[which].run(&["--rm"], &id, &["true"]).ok();
                runs[which].push(begun.elapsed());
            }
            let begun = Instant::now();
            let said = both[0].run(&["--rm"], &both[0].id(3 * round + 2), &["/foreign"]);
            refused.push(begun.elapsed());
            assert!(
                said.stderr.contains("cannot run here"),
                "{}",
                said.transcript()
            );
        }
        println!(
            "{:<12} {:>7.1} {:>8.1} {:>8.1}",
            version.exact(),
            median(&mut runs[0]),
            median(&mut runs[1]),
            median(&mut refused)
        );
    }
}
