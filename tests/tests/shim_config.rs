//! What `examples/shim/` has to copy, read by those who will read it: containerd of each version and
//! Kubernetes' schemas.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use edgepull_tests::containerd::Version;
use edgepull_tests::process::{self, Output};
use edgepull_tests::tools::Lab;

const PROGRAM: &str = "/usr/bin/containerd-shim-edgepull-v1";

fn example(name: &str) -> PathBuf {
    Lab::get().workspace().join("examples/shim").join(name)
}

/// A text with its optional parts in force.
fn with_options(text: &str) -> String {
    let lines = text
        .lines()
        .map(|line| line.strip_prefix("#: ").unwrap_or(line));
    lines.flat_map(|line| [line, "\n"]).collect()
}

fn dump(version: Version, text: &str) -> Output {
    let dir = Lab::get().run_dir("config");
    let path = dir.path().join("config.toml");
    fs::write(&path, text).unwrap();
    let daemon = version.bin().join("containerd");
    process::run(
        Command::new(daemon)
            .arg("-c")
            .arg(&path)
            .args(["config", "dump"]),
    )
}

/// What containerd makes of one of CRI's runtimes: the lines of its table, and of its options.
#[track_caller]
fn runtime(version: Version, dumped: &str, name: &str) -> Vec<String> {
    let plugin = match version {
        Version::V2 => "io.containerd.cri.v1.runtime",
        _ => "io.containerd.grpc.v1.cri",
    };
    // 1.x quotes one way, 2.x the other.
    let dumped = dumped.replace('\'', "\"");
    let head = format!("[plugins.\"{plugin}\".containerd.runtimes.{name}]");
    let mut lines = dumped
        .lines()
        .map(str::trim)
        .skip_while(|line| *line != head);
    assert!(lines.next().is_some(), "no {head}:\n{dumped}");
    let options = head.replace(']', ".options]");
    lines
        .take_while(|line| !line.starts_with('[') || *line == options)
        .map(str::to_owned)
        .collect()
}

/// containerd does not stop at keys that it does not know; 2.x says which.
#[track_caller]
fn nothing_is_unknown(output: &Output) {
    let said = output.stderr.to_lowercase();
    assert!(!said.contains("unknown key"), "{}", output.transcript());
}

#[track_caller]
fn ours(version: Version, output: Output) -> String {
    let output = output.ok();
    nothing_is_unknown(&output);
    let dumped = output.text();
    let lines = runtime(version, &dumped, "edgepull").join("\n");
    let lines = lines.replace('\'', "\"");
    // What 1.6 does with a path and with options: `a_handler_is_chosen_by_pod` and its neighbours.
    let named = if version == Version::V1_6 {
        [
            "runtime_type = \"io.containerd.edgepull.v1\"".to_owned(),
            "TypeUrl = \"runtimeoptions.v1.Options\"".to_owned(),
            "ConfigPath = \"/etc/containerd/edgepull-runc.toml\"".to_owned(),
        ]
    } else {
        [
            "runtime_type = \"io.containerd.runc.v2\"".to_owned(),
            format!("runtime_path = \"{PROGRAM}\""),
            "SystemdCgroup = true".to_owned(),
        ]
    };
    let annotations = "pod_annotations = [\"io.edgepull.*\"]".to_owned();
    for wanted in named.into_iter().chain([annotations]) {
        assert!(lines.contains(&wanted), "{version}: no {wanted}:\n{lines}");
    }
    // CRI does not start without its default runtime, and 1.x drops its own where others are named.
    runtime(version, &dumped, "runc");
    dumped
}

fn snippet(version: Version) -> String {
    let name = match version {
        Version::V2 => "containerd-2.toml",
        Version::V1_6 => "containerd-1.6.toml",
        Version::V1_7 => "containerd-1.toml",
    };
    fs::read_to_string(example(name)).unwrap()
}

#[test]
fn each_containerd_takes_its_snippet() {
    for version in Version::ALL {
        let text = snippet(version);
        let dumped = ours(version, dump(version, &text));
        let crun = runtime(version, &dumped, "edgepull-crun").join("\n");
        let wanted = match version {
            Version::V1_6 => "/etc/containerd/edgepull-crun.toml",
            _ => "/usr/bin/crun",
        };
        assert!(crun.contains(wanted), "{crun}");

        let dumped = ours(version, dump(version, &with_options(&text)));
        if version != Version::V1_6 {
            let named = runtime(version, &dumped, "edgepull-named").join("\n");
            assert!(named.contains("io.containerd.edgepull.v1"), "{named}");
        }
        let default = dumped.replace('\'', "\"");
        assert!(
            default.contains("default_runtime_name = \"edgepull\""),
            "{default}"
        );
    }
}

/// That the test above can fail.
#[test]
fn a_key_that_is_misspelt_is_seen() {
    for version in [Version::V1_7, Version::V2] {
        let text = snippet(version).replace("runtime_path", "runtime_paht");
        let output = dump(version, &text).ok();
        let lines = runtime(version, &output.text(), "edgepull").join("\n");
        assert!(!lines.contains(PROGRAM), "{version}: {lines}");
    }
}

/// k3s puts its own configuration where the template says `base`; here it is what that begins with.
#[test]
fn the_templates_of_k3s_are_right_for_its_containerd() {
    for (name, version) in [
        ("k3s/config.toml.tmpl", Version::V1_7),
        ("k3s/config-v3.toml.tmpl", Version::V2),
    ] {
        let text = fs::read_to_string(example(name)).unwrap();
        let base = match version {
            Version::V2 => {
                "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n"
            }
            _ => "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n",
        };
        let base = format!("{base}  runtime_type = \"io.containerd.runc.v2\"\n");
        assert!(text.starts_with("{{ template \"base\" . }}\n"), "{text}");
        let text = text
            .replace("{{ template \"base\" . }}", &base)
            .replace("{{ .SystemdCgroup }}", "true");
        assert!(!text.contains("{{"), "{text}");
        ours(version, dump(version, &text));
    }
}

fn validate(path: &Path, release: &str) -> Output {
    // A path of the build folder stands in the script's first line.
    process::run(
        Command::new(Lab::get().tool("kubernetes-validate/bin/python3"))
            .arg(Lab::get().tool("kubernetes-validate/bin/kubernetes-validate"))
            .args(["--strict", "--kubernetes-version", release])
            .arg(path),
    )
}

#[test]
fn the_manifest_fits_the_schemas_and_the_runtime() {
    let manifest = example("kubernetes.yaml");
    for release in ["1.28", "1.37"] {
        let said = validate(&manifest, release).ok();
        let passed = (said.text() + &said.stderr).matches(" passed ").count();
        assert_eq!(passed, 2, "{}", said.transcript());
    }
    let text = fs::read_to_string(&manifest).unwrap();
    assert!(text.contains("\nhandler: edgepull\n"), "{text}");
    let dir = Lab::get().run_dir("manifest");
    let path = dir.path().join("bad.yaml");
    fs::write(&path, text.replace("handler:", "handlers:")).unwrap();
    assert_ne!(validate(&path, "1.37").code, Some(0));
}
