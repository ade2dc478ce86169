//! Programs on CPUs: what happens, beside what `platform::executable` says of it.
//!
//! `tests/programs/list` names the programs, `tests/programs/hosts/list` the hosts. Each program is
//! executed as on that host: by this machine's kernel where the host is like it, else under qemu-user
//! with the host's CPU, in a root directory with the program's own loader and library, or without.
//! Nothing that ran may be refused, and nothing that failed for what its file and the host's facts
//! tell may be called native. The table is written to `target/ground-truth.md`; docs/ground-truth.md
//! is a copy, which `make ground-truth` renews.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::collections::BTreeSet;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use edgepull_platform::executable::Verdict;
use edgepull_tests::tools::Lab;

#[path = "ground_truth/programs.rs"]
mod programs;
#[path = "ground_truth/scripts.rs"]
mod scripts;
#[path = "ground_truth/table.rs"]
mod table;
#[path = "ground_truth/world.rs"]
mod world;

use programs::Program;
use table::{Pair, Truth};
use world::{Host, Roots};

/// One of each architecture, tried on all others.
const FOREIGN: &[&str] = &[
    "386-musl",
    "amd64-musl",
    "arm-v7-musl",
    "arm64-musl",
    "ppc64le-musl",
    "riscv64-musl",
    "s390x-musl",
];

/// Where damaged files are tried: what happens is the loader's doing, not the CPU's.
const FOR_DAMAGED: &[&str] = &["amd64-v4", "cortex-a15", "cortex-a72"];

/// A program that is to be executed on a host, and where.
struct Case<'a> {
    program: &'a Program,
    host: &'a Host,
    /// Its name in the table.
    name: String,
    root: &'a str,
}

fn cases<'a>(programs: &'a [Program], hosts: &'a [Host]) -> Vec<Case<'a>> {
    let mut cases = Vec::new();
    let mut without = BTreeSet::new();
    for program in programs {
        for host in hosts {
            let own = host.runs(&program.architecture);
            // The emulators of programs do not do what kernels of 64-bit Arm do with 32-bit ones.
            let told = !(host.facts.kernel == "arm64" && program.architecture == "arm");
            let foreign = !own && told && FOREIGN.contains(&program.name.as_str());
            // Go's programs do not get far under qemu-i386.
            let own = own && !(program.name.starts_with("386-go") && host.emulates_narrow());
            let place = !program.damaged || FOR_DAMAGED.contains(&host.name.as_str());
            if !(own && place || foreign) {
                continue;
            }
            let case = |name: String, root| Case {
                program,
                host,
                name,
                root,
            };
            cases.push(case(
                program.name.clone(),
                program.root.as_deref().unwrap_or("none"),
            ));
            if program.root.is_some() && !program.damaged && without.insert(&program.name) {
                cases.push(case(format!("{} without its loader", program.name), "none"));
            }
        }
    }
    cases
}

fn pair(case: &Case<'_>, roots: &Roots) -> Pair {
    let root = roots.path(case.root);
    let path = format!("/bin/{}", case.program.name);
    Pair {
        program: case.name.clone(),
        host: case.host.name.clone(),
        truth: case.host.execute(&case.program.architecture, &root, &path),
        verdict: world::verdict(&case.host.facts, &root, &path),
        tells: case.program.tells,
    }
}

/// Everything, as many at once as there are cores.
fn all_pairs() -> (Vec<Pair>, Vec<Host>) {
    let lab = Lab::get();
    let programs = programs::read(lab.workspace());
    let hosts = world::hosts(lab.workspace());
    let directory = lab.run_dir("truth");
    let roots = Roots::make(directory.path(), &programs, &hosts);
    let cases = cases(&programs, &hosts);
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    let workers = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let pair = pair(case, &roots);
                    found.lock().unwrap().push(pair);
                }
            });
        }
    });
    let mut pairs = found.into_inner().unwrap();
    let native = hosts.iter().find(|host| host.is_native()).unwrap();
    pairs.extend(scripts::pairs(directory.path(), native));
    (pairs, hosts)
}

#[test]
fn verdicts_are_what_happens() {
    let (pairs, hosts) = all_pairs();
    let document = table::write(&pairs, &hosts);
    let workspace = Lab::get().workspace();
    fs::create_dir_all(workspace.join("target")).unwrap();
    fs::write(workspace.join("target/ground-truth.md"), &document).unwrap();

    let mut wrong = Vec::new();
    let (mut seen, mut unknown) = (0, 0);
    for pair in &pairs {
        if let Truth::Unseen = pair.truth {
            continue;
        }
        seen += 1;
        let ran = pair.truth == Truth::Ran;
        match &pair.verdict {
            Verdict::Refused { .. } if ran => wrong.push(format!("falsely refused: {pair}")),
            Verdict::Unknown { .. } => unknown += 1,
            verdict if verdict.runs() && !ran && pair.tells => {
                wrong.push(format!("falsely {}: {pair}", verdict.name()));
            }
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen >= 150, "only {seen} pairs were seen");
    assert!(
        unknown * 10 <= seen,
        "{unknown} of {seen} pairs are unknown"
    );

    let committed = workspace.join("docs/ground-truth.md");
    if std::env::var_os("EDGEPULL_GROUND_TRUTH").is_some_and(|value| value == "write") {
        fs::write(&committed, &document).unwrap();
        return;
    }
    let committed = fs::read_to_string(committed).unwrap_or_default();
    let differences = table::differences(&committed, &document);
    assert!(
        differences.is_empty(),
        "docs/ground-truth.md says otherwise (`make ground-truth` renews it):\n{}",
        differences.join("\n")
    );
}
