//! What `deploy/` has, checked without a cluster: manifests against Kubernetes' own schemas, alert
//! rules by Prometheus' own tool, every metric against the list in docs/metrics.md.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use edgepull_tests::edgepull::Edgepull;
use edgepull_tests::process::{self, Output};
use edgepull_tests::tools::Lab;
use serde_json::{Value, json};

fn file(path: &str) -> PathBuf {
    Lab::get().workspace().join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(file(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

const MANIFESTS: [&str; 2] = [
    "deploy/kubernetes/containerd.yaml",
    "deploy/kubernetes/k3s.yaml",
];

/// The oldest and the newest release that the schemas in the lab have and that is in use.
const KUBERNETES: [&str; 2] = ["1.28", "1.37"];

fn validate(path: &Path, release: &str) -> Output {
    let tool = Lab::get().tool("kubernetes-validate/bin/kubernetes-validate");
    // A path of the build folder stands in the script's first line.
    process::run(
        Command::new(Lab::get().tool("kubernetes-validate/bin/python3"))
            .arg(tool)
            .args(["--strict", "--kubernetes-version", release])
            .arg(path),
    )
}

#[test]
fn manifests_fit_the_schemas_of_kubernetes() {
    for manifest in MANIFESTS {
        for release in KUBERNETES {
            let said = validate(&file(manifest), release).ok();
            let passed = (said.text() + &said.stderr).matches(" passed ").count();
            assert_eq!(passed, 4, "{}", said.transcript());
        }
    }
}

#[test]
fn a_manifest_with_an_unknown_field_does_not_fit() {
    let dir = Lab::get().run_dir("manifest");
    let path = dir.path().join("bad.yaml");
    let text = read(MANIFESTS[0]).replace("readOnlyRootFilesystem", "readonlyRootFilesystem");
    fs::write(&path, text).unwrap();
    assert_ne!(validate(&path, KUBERNETES[1]).code, Some(0));
}

#[test]
fn manifests_differ_in_paths_alone() {
    let plain = |path: &str| -> Vec<String> {
        read(path)
            .lines()
            .skip_while(|line| *line != "---")
            .map(|line| {
                line.replace(
                    "/var/lib/rancher/k3s/agent/etc/containerd",
                    "/etc/containerd",
                )
                .replace(
                    "/var/lib/rancher/k3s/agent/containerd",
                    "/var/lib/containerd",
                )
                .replace("/run/k3s/containerd", "/run/containerd")
            })
            .collect()
    };
    assert_eq!(plain(MANIFESTS[0]), plain(MANIFESTS[1]));
}

#[test]
fn promtool_takes_the_rules_and_they_fire() {
    let promtool = |args: [&str; 3]| {
        process::run(
            Command::new(Lab::get().tool("prometheus/usr/bin/promtool"))
                .args(args)
                .current_dir(file("deploy/prometheus")),
        )
        .ok()
    };
    promtool(["check", "rules", "edgepull.rules.yml"]);
    promtool(["test", "rules", "edgepull.test.yml"]);
}

#[test]
fn promtool_takes_what_the_dashboard_asks() {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/edgepull.json")).unwrap();
    let mut expressions = Vec::new();
    strings(&dashboard, "expr", &mut expressions);
    let rules: Vec<Value> = expressions
        .iter()
        .enumerate()
        .map(|(at, expression)| {
            let expression = expression
                .replace("$__rate_interval", "5m")
                .replace("$job", ".*")
                .replace("$instance", ".*");
            json!({ "record": format!("panel:{at}"), "expr": expression })
        })
        .collect();
    assert!(rules.len() > 10);
    let dir = Lab::get().run_dir("panels");
    let path = dir.path().join("panels.yml");
    // JSON is YAML.
    let text = json!({ "groups": [{ "name": "panels", "rules": rules }] }).to_string();
    fs::write(&path, text).unwrap();
    process::run(
        Command::new(Lab::get().tool("prometheus/usr/bin/promtool"))
            .args(["check", "rules"])
            .arg(&path),
    )
    .ok();
}

/// The text of a `|` block of a manifest, by its key.
fn block(manifest: &str, key: &str) -> String {
    let text = read(manifest);
    let after = text
        .split_once(&format!("  {key}: |\n"))
        .unwrap_or_else(|| panic!("{manifest} has no {key}"))
        .1;
    let lines = after.lines().map_while(|line| line.strip_prefix("    "));
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

#[test]
fn what_the_config_maps_hold_is_right_for_the_daemon() {
    for manifest in MANIFESTS {
        let dir = Lab::get().run_dir("config");
        let config = dir.path().join("config.toml");
        fs::create_dir(dir.path().join("images.d")).unwrap();
        fs::write(&config, block(manifest, "config.toml")).unwrap();
        let images = block(manifest, "site.txt") + "docker.io/library/nginx:1.27\n";
        fs::write(dir.path().join("images.d/site.txt"), images).unwrap();
        let checked = Edgepull::new(["agent", "--check-config", "--config"])
            .arg(&config)
            .run();
        checked.exits(0);
    }
}

/// Metrics and their labels, out of the table in docs/metrics.md.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let text = read("docs/metrics.md");
    let rows = text.lines().filter(|line| line.starts_with("| `edgepull_"));
    let mut all = BTreeMap::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let name = cells[1].trim_matches('`').to_owned();
        let mut labels: BTreeSet<String> = cells[3]
            .split(',')
            .map(|label| label.trim().trim_matches('`').to_owned())
            .filter(|label| !label.is_empty())
            .collect();
        // What Prometheus adds.
        labels.extend(["job", "instance"].map(str::to_owned));
        if cells[2] == "histogram" {
            labels.insert("le".to_owned());
            for part in ["bucket", "sum", "count"] {
                all.insert(format!("{name}_{part}"), labels.clone());
            }
        } else {
            all.insert(name, labels);
        }
    }
    assert!(all.len() > 12, "docs/metrics.md has no table of metrics");
    all
}

/// Every metric that an expression names, with the labels of its matchers.
fn used(expression: &str) -> Vec<(String, Vec<String>)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for (at, _) in expression.match_indices("edgepull_") {
        if expression[..at].ends_with(is_name) {
            continue;
        }
        let name: String = expression[at..]
            .chars()
            .take_while(|c| is_name(*c))
            .collect();
        let rest = &expression[at + name.len()..];
        let matchers = rest
            .strip_prefix('{')
            .and_then(|rest| rest.split('}').next())
            .unwrap_or_default();
        let labels = matchers
            .split(',')
            .filter_map(|matcher| matcher.split(['=', '!']).next())
            .map(|label| label.trim().to_owned())
            .filter(|label| !label.is_empty())
            .collect();
        found.push((name, labels));
    }
    found
}

/// Every string below `key` in a document.
fn strings(document: &Value, key: &str, found: &mut Vec<String>) {
    match document {
        Value::Object(map) => {
            for (name, value) in map {
                match value {
                    Value::String(text) if name == key => found.push(text.clone()),
                    other => strings(other, key, found),
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|value| strings(value, key, found)),
        _ => {}
    }
}

#[test]
fn dashboard_and_rules_use_metrics_that_exist() {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/edgepull.json")).unwrap();
    let mut expressions = Vec::new();
    strings(&dashboard, "expr", &mut expressions);
    strings(&dashboard, "query", &mut expressions);
    let rules = read("deploy/prometheus/edgepull.rules.yml");
    let alerts = rules.lines().filter_map(|line| {
        let expression = line.trim().strip_prefix("expr: ")?;
        Some(expression.to_owned())
    });
    let before = expressions.len();
    expressions.extend(alerts);
    assert!(before > 15 && expressions.len() > before + 8);

    let documented = documented();
    let mut seen = BTreeSet::new();
    for expression in &expressions {
        for (metric, labels) in used(expression) {
            let known = documented
                .get(&metric)
                .unwrap_or_else(|| panic!("no metric {metric}: {expression}"));
            for label in labels {
                assert!(
                    known.contains(&label),
                    "{metric} has no {label}: {expression}"
                );
            }
            seen.insert(metric);
        }
    }
    // And nothing that is measured goes unseen.
    let unseen: Vec<&String> = documented
        .keys()
        .filter(|name| {
            !seen.contains(*name) && !name.ends_with("_sum") && !name.ends_with("_count")
        })
        .collect();
    assert_eq!(
        unseen,
        [""; 0].iter().collect::<Vec<_>>(),
        "in no panel and no rule"
    );
}

#[test]
fn the_dashboard_is_laid_out() {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/edgepull.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut taken = BTreeSet::new();
    for panel in panels {
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{panel}");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "overlaps: {}", panel["title"]);
            }
        }
    }
}

/// Every document of the tree.
const DOCUMENTS: [&str; 15] = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "SPECIFICATION.md",
    "cross/README.md",
    "docs/ci.md",
    "docs/containerd-shim-edgepull-v1.8.md",
    "docs/control-socket.md",
    "docs/deploy.md",
    "docs/edgepull-hosts.5.md",
    "docs/edgepull-images.5.md",
    "docs/metrics.md",
    "docs/shim.md",
];

#[test]
fn documents_lead_to_files() {
    let mut links = 0;
    for document in DOCUMENTS {
        let text = read(document);
        let folder = file(document).parent().unwrap().to_owned();
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap();
            if !target.starts_with("http") {
                assert!(folder.join(target).exists(), "{document}: {target}");
                links += 1;
            }
        }
    }
    assert!(links > 15);
}

/// The text of every source file below `dir`.
fn sources(dir: &Path, all: &mut String) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|end| end == "rs") {
            all.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_promise_names_tests_that_exist() {
    let mut code = String::new();
    for dir in [
        "agent/src",
        "agent/tests",
        "platform/src",
        "platform/tests",
        "shim/src",
        "tests",
    ] {
        sources(&file(dir), &mut code);
    }
    let text = read("SPECIFICATION.md");
    let mut named = 0;
    for row in text.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let held_by = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        for name in held_by.split('`').skip(1).step_by(2) {
            if name.contains('/') {
                assert!(file(name).exists(), "{name}: {row}");
            } else if name.contains('_') {
                assert!(code.contains(&format!("fn {name}(")), "{name}: {row}");
            }
            named += 1;
        }
    }
    assert!(named > 80, "{named}");
}
