//! The shape that ARCHITECTURE.md describes, checked: which crate and which module may
//! use which, and how long a file may be.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_path_buf()
}

/// Normal dependencies of one workspace member.
fn dependencies(metadata: &Value, name: &str) -> BTreeSet<String> {
    let package = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .find(|package| package["name"] == name)
        .unwrap_or_else(|| panic!("no package {name}"));
    package["dependencies"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|dependency| dependency["kind"].is_null())
        .map(|dependency| dependency["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn crates_depend_in_one_direction() {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(workspace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let platform = dependencies(&metadata, "edgepull-platform");
    assert_eq!(
        platform,
        ["nix", "serde", "thiserror"].map(str::to_owned).into(),
        "platform is pure: no async, no network, no TLS"
    );
    let agent = dependencies(&metadata, "edgepull");
    assert!(agent.contains("edgepull-platform"));
    assert!(!agent.contains("edgepull-tests"));
    let shim = dependencies(&metadata, "edgepull-shim");
    assert_eq!(
        shim,
        [
            "dlmalloc",
            "edgepull-platform",
            "nix",
            "prost",
            "ring",
            "rustix",
            "serde",
            "serde_json",
            "tokio",
            "toml"
        ]
        .map(str::to_owned)
        .into(),
        "one runs for each pod: nothing of the agent, no HTTP, no TLS, and each crate has its reason"
    );
    let tests = dependencies(&metadata, "edgepull-tests");
    assert!(
        !tests.iter().any(|name| name.starts_with("edgepull")),
        "the scenarios know the program by its command line alone"
    );
}

/// Modules of the agent from the bottom up; one may use those before it, and of its own
/// row nobody but itself.
const AGENT: &[&[&str]] = &[
    &["kind"],
    &["error", "redact"],
    &["oci", "table"],
    &[
        "event", "engine", "source", "choice", "schedule", "pressure", "clock",
    ],
    &["registry", "containerd", "layout", "resolve", "desired"],
    &["proof"],
    &["pull", "config", "asked", "reconcile"],
    &["keep", "session", "smoke"],
    &["status", "metrics"],
    &["daemon"],
    &["cli"],
];

/// The same of the shim.
const SHIM: &[&[&str]] = &[
    &[
        "error",
        "journal",
        "log",
        "polled",
        "child",
        "aside",
        "mountinfo",
    ],
    &["wire", "config", "idmap", "loopback"],
    &["bundle", "mounts", "stdio", "cgroup", "publish", "gate"],
    &["oci"],
    &["task"],
    &["cli"],
];

fn layer_of(layers: &[&[&str]], module: &str) -> usize {
    layers
        .iter()
        .position(|row| row.contains(&module))
        .unwrap_or_else(|| {
            panic!("module {module} has no layer: give it one here and in ARCHITECTURE.md")
        })
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The names after `crate::`, of single paths and of `use crate::{…}` groups.
fn uses(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let word = |s: &str| -> String {
        s.chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect()
    };
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0_i32;
            let mut start = true;
            for (i, c) in group.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => start = true,
                    c if c.is_alphabetic() && depth == 0 && start => {
                        names.insert(word(&group[i..]));
                        start = false;
                    }
                    _ => {}
                }
            }
        } else {
            names.insert(word(rest));
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

#[test]
fn modules_of_the_agent_look_down_only() {
    look_down_only("agent/src", AGENT);
}

#[test]
fn modules_of_the_shim_look_down_only() {
    look_down_only("shim/src", SHIM);
}

#[track_caller]
fn look_down_only(src: &str, layers: &[&[&str]]) {
    let src = workspace().join(src);
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let inner = file.strip_prefix(&src).unwrap();
        let first = inner
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_string_lossy();
        let module = first.trim_end_matches(".rs").to_owned();
        if module == "lib" || module == "main" {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        // Tests may reach for anything.
        let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
        for used in uses(code) {
            if used != module
                && layers.iter().flat_map(|row| row.iter()).any(|m| *m == used)
                && layer_of(layers, &used) >= layer_of(layers, &module)
            {
                wrong.push(format!("{} uses {used}", inner.display()));
            }
        }
        layer_of(layers, &module);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_are_short_enough_to_hold_in_the_head() {
    let mut files = Vec::new();
    for part in [
        "platform/src",
        "agent/src",
        "agent/tests",
        "shim/src",
        "tests/src",
        "tests/tests",
    ] {
        sources(&workspace().join(part), &mut files);
    }
    for file in files {
        let lines = fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= 600, "{} has {lines} lines", file.display());
    }
}
