//! Recorded hosts and published indexes through the binary, against what is expected of them.
//!
//! `EDGEPULL_FIXTURES` names the directory with `hosts` and `indexes`; without it
//! `shared/fixtures` beside the workspace's parent is used if it exists.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use edgepull::oci::Digest;
use serde_json::{Value, json};

fn fixtures(kind: &str) -> Option<PathBuf> {
    let given = std::env::var_os("EDGEPULL_FIXTURES").map(PathBuf::from);
    let named = given.is_some();
    let dir = given
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures"))
        .join(kind);
    if dir.is_dir() {
        return Some(dir);
    }
    assert!(!named, "EDGEPULL_FIXTURES has no {}", dir.display());
    eprintln!(
        "NOT TESTED: the fixtures {} are absent; EDGEPULL_FIXTURES names their place",
        dir.display()
    );
    None
}

fn json(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn run(args: &[&str]) -> (Output, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_edgepull"))
        .args(args)
        .args(["-o", "json"])
        .env_clear()
        .output()
        .expect("it runs");
    let document = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "{args:?}: {error}: {}",
            String::from_utf8_lossy(&output.stderr)
        )
    });
    (output, document)
}

fn sorted(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    paths
}

#[test]
fn hosts() {
    let Some(dir) = fixtures("hosts") else { return };
    let mut wrong = Vec::new();
    for host in sorted(&dir).iter().filter(|path| path.is_dir()) {
        let expect = json(&host.join("expect.json"));
        let path = host.to_str().expect("a plain name");
        let (output, found) = run(&["--sysroot", path, "detect"]);
        let runs: Vec<&Value> = found["runs"]
            .as_array()
            .expect("a list")
            .iter()
            .filter(|runs| runs["how"] != "emulated")
            .map(|runs| &runs["platform"])
            .collect();
        for key in [
            "os",
            "architecture",
            "variant",
            "aarch32_el0",
            "page_size",
            "can_run",
        ] {
            let Some(wanted) = expect.get(key) else {
                continue;
            };
            let is = if key == "can_run" {
                json!(runs)
            } else {
                found[key].clone()
            };
            if *wanted != is {
                wrong.push(format!("{path}: {key}: expected {wanted}, found {is}"));
            }
        }
        assert!(output.status.success(), "{path}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Blobs of which a fixture knows the platform only from elsewhere, and texts that were
/// cut from a document with digests that are none.
const NOT_WHOLE: [&str; 2] = ["hello-world-platformless", "cosign-bundle-referrers"];

/// A layout with `document`, and with all that is known of what it refers to.
fn layout(at: &Path, blobs: &Path, document: &[u8], media_type: &str) -> String {
    let digest = Digest::of(document);
    for algorithm in sorted(blobs) {
        let to = at
            .join("blobs")
            .join(algorithm.file_name().expect("a name"));
        fs::create_dir_all(&to).expect("made");
        for blob in sorted(&algorithm) {
            fs::copy(&blob, to.join(blob.file_name().expect("a name"))).expect("copied");
        }
    }
    fs::write(at.join("blobs/sha256").join(digest.hex()), document).expect("written");
    fs::write(at.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("written");
    let entry = json!({"mediaType": media_type, "digest": digest, "size": document.len()});
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    fs::write(at.join("index.json"), index.to_string()).expect("written");
    format!("oci:{}@{digest}", at.display())
}

/// The arguments that make the program that host.
fn host(key: &str, recorded: &Path) -> [String; 2] {
    let probes = match key.split_once(';') {
        Some((_, "no-ia32")) => "uname_machine=x86_64\ncmdline_ia32_emulation=0\n",
        Some(_) => "uname_machine=aarch64\npersonality_per_linux32=einval\n",
        None => {
            let platform = match key.split_once(':') {
                Some((platform, version)) => {
                    let (os, rest) = platform.split_once('/').expect("two parts");
                    format!("{os}({})/{rest}", version.trim_end_matches(".x"))
                }
                None => key.to_owned(),
            };
            return ["--platform".to_owned(), platform];
        }
    };
    fs::create_dir_all(recorded.join("proc")).expect("made");
    fs::write(
        recorded.join("probes"),
        format!("uname_sysname=Linux\n{probes}"),
    )
    .expect("written");
    ["--sysroot".to_owned(), recorded.display().to_string()]
}

#[test]
fn indexes_and_manifests() {
    let Some(dir) = fixtures("indexes") else {
        return;
    };
    let mut wrong = Vec::new();
    for path in sorted(&dir) {
        let Some(name) = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_suffix(".expect.json"))
        else {
            continue;
        };
        let expect = json(&path);
        let document = fs::read(dir.join(format!("{name}.json"))).expect("the document");
        let place = tempfile::tempdir().expect("a directory");
        let media_type = match (expect["mediaType"].as_str(), expect["class"].as_str()) {
            (Some(media_type), _) => media_type,
            (None, Some("schema1")) => "application/vnd.docker.distribution.manifest.v1+prettyjws",
            (None, Some(_)) => "application/vnd.oci.image.manifest.v1+json",
            (None, None) => "application/vnd.oci.image.index.v1+json",
        };
        let at = place.path().join("layout");
        let reference = layout(&at, &dir.join("blobs"), &document, media_type);
        if expect["kind"] == "index" {
            if !NOT_WHOLE.contains(&name) {
                index(name, &expect, &reference, place.path(), &mut wrong);
            }
        } else {
            manifest(name, &expect, &reference, &mut wrong);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn index(name: &str, expect: &Value, reference: &str, place: &Path, wrong: &mut Vec<String>) {
    let selections = expect["selections"].as_object().expect("selections");
    let base = |key: &str| match key {
        "linux/amd64/v2" | "linux/amd64/v3" => "linux/amd64".to_owned(),
        "linux/arm/v8" => "linux/arm/v7".to_owned(),
        key => key.to_owned(),
    };
    let mut keys: Vec<&str> = selections.keys().map(String::as_str).collect();
    for more in ["linux/amd64/v2", "linux/amd64/v3", "linux/arm/v8"] {
        if !keys.contains(&more) {
            keys.push(more);
        }
    }
    for key in keys {
        let host = host(key, &place.join("host"));
        let (output, found) = run(&["inspect", reference, &host[0], &host[1]]);
        let wanted = selections
            .get(key)
            .or_else(|| selections.get(&base(key)))
            .unwrap_or(&Value::Null);
        // A type that nobody knows is refused, and named.
        let unknown = found["error"]["message"].is_string() && found.get("entries").is_none();
        if unknown && wanted.is_null() && output.status.code() == Some(25) {
            continue;
        }
        let mut tell = |what: &str, wanted: &Value, is: &Value| {
            if wanted != is {
                wrong.push(format!(
                    "{name} {key}: {what}: expected {wanted}, found {is}"
                ));
            }
        };
        tell("exit code", &json!(0), &json!(output.status.code()));
        tell("selected", wanted, &found["selected"]);
        if let Some(leaf) = expect.get("leaf").and_then(|leaf| leaf.get(key)) {
            tell("leaf", leaf, &found["selected_leaf"]);
        }
    }
}

fn manifest(name: &str, expect: &Value, reference: &str, wrong: &mut Vec<String>) {
    let (output, found) = run(&["inspect", reference, "--platform", "linux/amd64"]);
    let code = output.status.code();
    let told = (&found["error"]["kind"], found["error"]["message"].as_str());
    let refused = matches!(told, (Value::String(_), Some(text)) if !text.is_empty());
    let entry = &found["entries"][0];
    let is_right = match expect["class"].as_str() {
        Some("schema1" | "malformed") => refused && code == Some(25),
        // One without a config or without sizes is refused, the others are delivered.
        Some("artifact" | "signature" | "attestation") => {
            (refused && code == Some(24)) || (entry["kind"] == "artifact" && code == Some(0))
        }
        _ => entry["kind"] == "image" && code == Some(0),
    };
    if !is_right {
        wrong.push(format!("{name}: {code:?} {found}"));
    }
}
