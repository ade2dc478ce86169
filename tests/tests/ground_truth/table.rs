//! The pairs as a document, and what two documents say differently.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};

use edgepull_platform::executable::Verdict;

use super::world::Host;

/// What happened.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Truth {
    /// It did what it should, to its end.
    Ran,
    /// It did not: a signal, the kernel's error, who refused, or the exit code.
    Failed(String),
    /// Nothing here could execute it.
    Unseen,
}

impl fmt::Display for Truth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Truth::Ran => f.write_str("ran"),
            Truth::Failed(how) => f.write_str(how),
            Truth::Unseen => f.write_str("not executed"),
        }
    }
}

/// A program on a host.
pub(crate) struct Pair {
    pub(crate) program: String,
    pub(crate) host: String,
    pub(crate) truth: Truth,
    pub(crate) verdict: Verdict,
    /// The file tells what it needs.
    pub(crate) tells: bool,
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            program,
            host,
            truth,
            verdict,
            ..
        } = self;
        write!(
            f,
            "{program} on {host}: {truth}, and the verdict is {verdict}"
        )
    }
}

impl Pair {
    /// It failed by what only its code tells.
    fn is_silent(&self) -> bool {
        self.verdict.runs() && matches!(self.truth, Truth::Failed(_))
    }
}

/// The text before the tables.
const HEAD: &str = "\
# Ground truth

What programs do on CPUs, beside what edgepull says of them. Made by `make ground-truth`: the programs
of `tests/programs/list` are executed under qemu-user with each host's CPU, or by the kernel itself
where the host is the one that made this table (`amd64-v4`); `tests/tests/ground_truth.rs` repeats it,
and compares the verdicts with this page.

A cell is what happened: what edgepull says. `ran` is a program that did all it should. A signal is
what the core or the kernel did, an errno what the kernel answered to `execve`, `glibc` and `Go` are
those that looked at the CPU themselves, `exit` is the loader's or emulator's own code.
";

/// The whole document.
pub(crate) fn write(pairs: &[Pair], hosts: &[Host]) -> String {
    let mut text = HEAD.to_owned();
    summary(&mut text, pairs);
    let mut architectures: Vec<&str> = Vec::new();
    for host in hosts {
        if !architectures.contains(&host.facts.kernel.as_str()) {
            architectures.push(&host.facts.kernel);
        }
    }
    for architecture in architectures {
        let own: Vec<&Host> = hosts
            .iter()
            .filter(|host| host.facts.kernel == architecture)
            .collect();
        grid(&mut text, architecture, pairs, &own);
    }
    reasons(&mut text, pairs);
    text
}

fn summary(text: &mut String, pairs: &[Pair]) {
    let seen = pairs.iter().filter(|pair| pair.truth != Truth::Unseen);
    let count = |test: fn(&Pair) -> bool| seen.clone().filter(|pair| test(pair)).count();
    let rows = [
        ("pairs", count(|_| true)),
        (
            "ran, and native or compat32",
            count(|pair| pair.truth == Truth::Ran && pair.verdict.runs()),
        ),
        (
            "failed, and refused",
            count(|pair| pair.truth != Truth::Ran && pair.verdict.name() == "refused"),
        ),
        (
            "ran, but refused",
            count(|pair| pair.truth == Truth::Ran && pair.verdict.name() == "refused"),
        ),
        (
            "failed, but native or compat32, though the file tells why",
            count(|pair| pair.is_silent() && pair.tells),
        ),
        (
            "failed, but native or compat32: only its code tells why",
            count(|pair| pair.is_silent() && !pair.tells),
        ),
        ("unknown", count(|pair| pair.verdict.name() == "unknown")),
    ];
    text.push_str("\n| | |\n|---|---:|\n");
    for (name, count) in rows {
        let _ = writeln!(text, "| {name} | {count} |");
    }
}

fn grid(text: &mut String, architecture: &str, pairs: &[Pair], hosts: &[&Host]) {
    let _ = write!(text, "\n## {architecture}\n\n| |");
    for host in hosts {
        let _ = write!(text, " {} |", host.name);
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(hosts.len()));
    text.push('\n');
    let mut cells: BTreeMap<&str, BTreeMap<&str, String>> = BTreeMap::new();
    for pair in pairs {
        if hosts.iter().any(|host| host.name == pair.host) {
            let cell = format!("{}: {}", pair.truth, pair.verdict.name());
            cells
                .entry(&pair.program)
                .or_default()
                .insert(&pair.host, cell);
        }
    }
    for (program, cells) in cells {
        let _ = write!(text, "| {program} |");
        for host in hosts {
            let cell = cells.get(host.name.as_str()).map_or("", String::as_str);
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
}

/// Every reason for not knowing, with the pairs that it stands for.
fn reasons(text: &mut String, pairs: &[Pair]) {
    let mut unknown: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut silent: BTreeSet<String> = BTreeSet::new();
    for pair in pairs {
        let name = format!("{} on {} ({})", pair.program, pair.host, pair.truth);
        if let Verdict::Unknown { reason } = &pair.verdict {
            unknown.entry(reason).or_default().insert(name);
        } else if pair.is_silent() {
            silent.insert(name);
        }
    }
    text.push_str("\n## Unknown, and why\n\n");
    for (reason, pairs) in unknown {
        let pairs: Vec<String> = pairs.into_iter().collect();
        let _ = writeln!(text, "- {reason}: {}", pairs.join(", "));
    }
    text.push_str(
        "\n## Native, and failed\n\nNothing but their code tells what these need: no note, no attribute, no setting.\n\n",
    );
    for name in silent {
        let _ = writeln!(text, "- {name}");
    }
}

/// The verdicts of a document, by program and host.
fn verdicts(document: &str) -> BTreeMap<(String, String), String> {
    let mut found = BTreeMap::new();
    let mut hosts: Vec<&str> = Vec::new();
    for line in document.lines() {
        if line.starts_with("## ") {
            hosts.clear();
        }
        let Some(line) = line
            .strip_prefix('|')
            .and_then(|line| line.strip_suffix('|'))
        else {
            continue;
        };
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if cells[0].is_empty() {
            hosts = cells[1..].to_vec();
            continue;
        }
        for (host, cell) in hosts.iter().zip(&cells[1..]) {
            if let Some((_, verdict)) = cell.rsplit_once(": ") {
                found.insert(
                    (cells[0].to_owned(), (*host).to_owned()),
                    verdict.to_owned(),
                );
            }
        }
    }
    found
}

/// What two documents say differently of the same programs on the same hosts.
pub(crate) fn differences(committed: &str, found: &str) -> Vec<String> {
    let (committed, found) = (verdicts(committed), verdicts(found));
    let keys: BTreeSet<_> = committed.keys().chain(found.keys()).collect();
    keys.into_iter()
        .filter(|key| committed.get(key) != found.get(key))
        .map(|key| {
            let say = |verdicts: &BTreeMap<_, String>| {
                verdicts
                    .get(key)
                    .cloned()
                    .unwrap_or_else(|| "nothing".to_owned())
            };
            format!(
                "{} on {}: {} there, {} now",
                key.0,
                key.1,
                say(&committed),
                say(&found)
            )
        })
        .collect()
}
