//! The table, for people.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::time::Duration;

use edgepull_tests::tools::Lab;

use super::row::Row;
use super::run::Line;

impl Line {
    /// A row that could not be judged.
    pub(crate) fn broken(row: &Row, why: String) -> Self {
        Self {
            name: row.name,
            source: row.source,
            outcome: String::new(),
            asks: [0; 4],
            bytes: 0,
            twice: 0,
            left: String::new(),
            took: Duration::ZERO,
            wrong: vec![why],
            story: String::new(),
        }
    }
}

/// Known faults are forgiven, and must still be there.
pub(crate) fn settle(lines: &mut [Line], known: &[(&str, &str)]) {
    for line in lines {
        let Some((_, why)) = known.iter().find(|(name, _)| *name == line.name) else {
            continue;
        };
        if line.wrong.is_empty() {
            line.wrong
                .push("passes now: take it out of KNOWN_FAULTS".to_owned());
        } else {
            line.outcome = format!("{} (known fault: {why})", line.outcome);
            line.wrong.clear();
        }
    }
}

/// Prints the table; the whole of it is also written below `target/`.
pub(crate) fn publish(lines: &[Line], took: Duration, whole: bool) {
    let mut text = String::from(
        "| row | source | ends with | tag | manifest | blob | token | bytes | twice | left | ms |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for line in lines {
        let [tag, manifest, blob, token] = line.asks;
        let mark = if line.wrong.is_empty() {
            ""
        } else {
            "**FAILS** "
        };
        let _infallible = writeln!(
            text,
            "| {mark}{} | {} | {} | {tag} | {manifest} | {blob} | {token} | {} | {} | {} | {} |",
            line.name,
            line.source,
            line.outcome,
            line.bytes,
            line.twice,
            line.left,
            line.took.as_millis()
        );
    }
    let failing = lines.iter().filter(|line| !line.wrong.is_empty()).count();
    let _infallible = writeln!(
        text,
        "\n{} rows, {failing} failing, {} s",
        lines.len(),
        took.as_secs()
    );
    // Not by the macro, whose output a passing test swallows.
    let _closed = writeln!(std::io::stderr(), "{text}");
    if whole {
        let file = Lab::get().workspace().join("target/wild.md");
        fs::write(&file, text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
}

/// What went wrong, row by row.
pub(crate) fn failures(lines: &[Line]) -> String {
    let mut text = String::new();
    for line in lines.iter().filter(|line| !line.wrong.is_empty()) {
        let _infallible = writeln!(
            text,
            "\n=== {} ({})\n- {}\n{}",
            line.name,
            line.source,
            line.wrong.join("\n- "),
            shortened(&line.story)
        );
    }
    text
}

/// Traces are long: containerd's frames and the pool of connections tell nothing here.
fn shortened(story: &str) -> String {
    let noise = [
        " TRACE ",
        "Connection{",
        "service.ready",
        " idle connection ",
    ];
    let lines: Vec<&str> = story
        .lines()
        .filter(|line| !noise.iter().any(|word| line.contains(word)))
        .collect();
    if lines.len() <= 140 {
        return lines.join("\n");
    }
    format!(
        "{}\n   … {} lines …\n{}",
        lines[..60].join("\n"),
        lines.len() - 140,
        lines[lines.len() - 80..].join("\n")
    )
}
