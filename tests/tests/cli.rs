//! The command line itself: usage, versions, text, streams.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use edgepull_tests::containerd::Version;
use edgepull_tests::edgepull::{Edgepull, Run};
use edgepull_tests::image;
use edgepull_tests::scene::Scene;

fn edgepull(args: &[&str]) -> Run {
    Edgepull::new(args).run()
}

/// All verbs of the contract. One that does not work yet is not in `--help`.
const VERBS: [&str; 23] = [
    "detect",
    "inspect",
    "explain",
    "check",
    "pull",
    "verify",
    "smoke",
    "agent",
    "status",
    "sync",
    "wait",
    "images",
    "rm",
    "prune",
    "repair",
    "export",
    "import",
    "index",
    "completions",
    "man",
    "version",
    "help",
    "no-such-verb",
];

#[test]
fn a_verb_is_in_the_help_or_a_usage_error() {
    let help = edgepull(&["--help"]).exits(0).text();
    let listed: Vec<&str> = help
        .lines()
        .filter(|line| line.starts_with("  ") && !line.trim_start().starts_with('-'))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    for verb in ["detect", "inspect", "explain", "check", "pull", "version"] {
        assert!(listed.contains(&verb), "{verb}: {help}");
    }
    for verb in VERBS {
        if listed.contains(&verb) {
            edgepull(&[verb, "--help"]).exits(0);
        } else if verb != "help" {
            let run = edgepull(&[verb]).exits(2);
            assert!(run.text().is_empty(), "{}", run.output.transcript());
        }
    }
}

#[test]
fn misuse_is_exit_2() {
    for args in [
        &["pull"][..],
        &["pull", "--no-such-flag", "a.example/b:1"],
        &["pull", "UPPER CASE/not a reference"],
        &["pull", "a.example/b@sha256:123"],
        &["check", "a.example/b:1", "--platform", "linux/"],
        &["check", "a.example/b:1", "--platform", "a/b/c/d"],
        &["inspect", "a.example/b:1", "--output", "yaml"],
        &["--config", "/no/such/config.toml", "detect"],
    ] {
        let run = edgepull(args).exits(2);
        assert!(!run.output.stderr.is_empty(), "{}", run.output.transcript());
        assert!(
            run.text().is_empty(),
            "stdout is data: {}",
            run.output.transcript()
        );
    }
}

#[test]
fn a_broken_reference_has_a_kind() {
    let run = Edgepull::new(["inspect", "a.example/UPPER:1"]).json().run();
    run.fails(2, "invalid_reference");
}

#[test]
fn the_version_is_the_same_everywhere() {
    let word = edgepull(&["version"]).exits(0).text();
    let flag = edgepull(&["--version"]).exits(0).text();
    let number = flag.split_whitespace().last().unwrap();
    assert!(word.contains(number), "{word} / {flag}");
    let run = Edgepull::new(["version"]).json().run().exits(0);
    assert!(run.document().to_string().contains(number));
}

#[test]
fn completions_and_the_manual_come_from_the_program() {
    for shell in ["bash", "zsh", "fish"] {
        let text = edgepull(&["completions", shell]).exits(0).text();
        assert!(
            text.contains("edgepull") && text.contains("pull"),
            "{shell}"
        );
    }
    edgepull(&["completions", "no-such-shell"]).exits(2);
    assert!(edgepull(&["man"]).exits(0).text().contains(".TH"));
}

/// `error:` one line, `caused by:` lines, then `wanted:`, `offered:`, `hint:`.
#[test]
fn a_missing_platform_is_told_in_full() {
    let scene = Scene::new(Version::V1_7, image::only_s390x());
    let call = Edgepull::new(["pull"])
        .on(&scene.daemon, "lab")
        .arg(&scene.reference);
    let run = call.run().exits(3);
    let text = &run.output.stderr;
    let line = |start: &str| {
        let found = text
            .lines()
            .position(|line| line.trim_start().starts_with(start));
        found.unwrap_or_else(|| panic!("no {start} line\n{}", run.output.transcript()))
    };
    let order = [
        line("error:"),
        line("wanted:"),
        line("offered:"),
        line("hint:"),
    ];
    assert!(order.is_sorted(), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[order[0]].contains(&scene.reference), "{text}");
    assert!(
        lines[order[1]].contains(&image::host().to_string()),
        "{text}"
    );
    assert!(lines[order[2]].contains("linux/s390x"), "{text}");
    assert!(lines[order[3]].len() > "hint: ".len(), "{text}");
    assert!(
        !text.contains('\u{1b}') && !text.contains("panicked"),
        "{text}"
    );
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    let scene = Scene::new(Version::V1_7, image::hello());
    let program = edgepull_tests::tools::Lab::get().edgepull();
    let script = format!(
        "{} inspect --output json {} | true; exit ${{PIPESTATUS[0]}}",
        program.display(),
        scene.reference
    );
    let mut shell = std::process::Command::new("bash");
    let output = edgepull_tests::process::run(shell.args(["-c", &script]));
    assert_eq!(output.code, Some(0), "{}", output.transcript());
    assert!(
        !output.stderr.contains("panicked"),
        "{}",
        output.transcript()
    );
}
