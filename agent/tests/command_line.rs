//! The binary on layouts, without containerd and without a network: what scripts rely on.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, process::ExitStatusExt},
    path::Path,
    process::{Command, Output, Stdio},
};

use edgepull::oci::Digest;
use serde_json::{Value, json};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgepull"));
    command.args(args).env_clear().stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    command(args).output().expect("it runs")
}

fn code(output: &Output) -> i32 {
    output
        .status
        .code()
        .unwrap_or_else(|| panic!("signal {:?}", output.status.signal()))
}

fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "{error}\n{}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

fn put(dir: &Path, bytes: &[u8], media_type: &str) -> Value {
    let digest = Digest::of(bytes);
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("made");
    fs::write(blobs.join(digest.hex()), bytes).expect("written");
    json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
}

/// A layout of one image, or of `index` around it.
fn layout(dir: &Path, platform: &Value, index: Option<&dyn Fn(Value) -> Value>) {
    let mut config = platform.clone();
    config["rootfs"] = json!({"type": "layers", "diff_ids": []});
    let config = put(dir, config.to_string().as_bytes(), CONFIG);
    let manifest =
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []});
    let mut root = put(dir, manifest.to_string().as_bytes(), MANIFEST);
    if let Some(index) = index {
        root = put(dir, index(root).to_string().as_bytes(), INDEX);
    }
    root["annotations"] = json!({"org.opencontainers.image.ref.name": "a.example/app:1"});
    let index = json!({"schemaVersion": 2, "manifests": [root]});
    fs::write(dir.join("index.json"), index.to_string()).expect("written");
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("written");
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

fn s390x() -> Value {
    json!({"os": "linux", "architecture": "s390x"})
}

#[test]
fn all_platforms_of_a_single_image_are_checked_and_exported() {
    let dir = temporary();
    layout(dir.path(), &s390x(), None);
    let reference = format!("oci:{}", dir.path().display());
    let output = run(&["check", &reference, "--platform", "all", "-o", "json"]);
    let rows = document(&output);
    assert_eq!(code(&output), 0, "{rows}");
    assert_eq!(rows[0]["selected_platform"], "linux/s390x");
    assert_eq!(rows[0]["platform"], "linux/s390x");

    let to = dir.path().join("out.tar");
    let to = to.to_str().expect("plain");
    let output = run(&[
        "export",
        &reference,
        "--platform",
        "all",
        "--to",
        to,
        "-o",
        "json",
    ]);
    let rows = document(&output);
    assert_eq!(code(&output), 0, "{rows}");
    assert_eq!(rows.as_array().map(Vec::len), Some(1), "{rows}");
    let archive = format!("oci-archive:{to}");
    let output = run(&[
        "inspect",
        &archive,
        "--platform",
        "linux/s390x",
        "-o",
        "json",
    ]);
    assert_eq!(
        document(&output)["selected_leaf"],
        rows[0]["manifest_digest"]
    );
}

#[test]
fn nothing_to_export_is_a_failure_and_no_archive() {
    let dir = temporary();
    layout(
        dir.path(),
        &s390x(),
        Some(&|_| json!({"schemaVersion": 2, "manifests": []})),
    );
    let reference = format!("oci:{}", dir.path().display());
    let to = dir.path().join("out.tar");
    let to = to.to_str().expect("plain");
    let output = run(&[
        "export",
        &reference,
        "--platform",
        "all",
        "--to",
        to,
        "-o",
        "json",
    ]);
    assert_eq!(code(&output), 3, "{}", document(&output));
    assert_eq!(document(&output)[0]["error"]["kind"], "platform_missing");
    assert!(!Path::new(to).exists());
}

#[test]
fn what_cannot_be_read_is_not_called_a_missing_platform() {
    let dir = temporary();
    layout(dir.path(), &s390x(), None);
    fs::remove_dir_all(dir.path().join("blobs")).expect("removed");
    let reference = format!("oci:{}", dir.path().display());
    let output = run(&["check", &reference, "--platform", "all", "-o", "json"]);
    assert_eq!(document(&output)[0]["error"]["kind"], "not_found");
    assert_eq!(code(&output), 21);
}

#[test]
fn wrong_usage_is_json_where_json_was_asked_for() {
    for args in [
        &["-o", "json", "pull"][..],
        &["inspect", "--no-such-flag", "--output=json"],
        &["no-such-verb", "-ojson"],
        &[
            "check",
            "a.example/b:1",
            "--platform",
            "linux/",
            "-o",
            "json",
        ],
    ] {
        let output = run(args);
        assert_eq!(code(&output), 2, "{args:?}");
        let error = &document(&output)["error"];
        assert_eq!(error["kind"], "usage", "{args:?}: {error}");
        assert!(!output.stderr.is_empty());
    }
    let output = run(&["pull"]);
    assert_eq!(code(&output), 2);
    assert!(output.stdout.is_empty(), "text goes to stderr");
    assert_eq!(code(&run(&["--help"])), 0);
    assert_eq!(code(&run(&[])), 2);
    let output = command(&["inspect"])
        .arg(OsStr::from_bytes(b"\xff\x1b[2J"))
        .output()
        .expect("it runs");
    assert_eq!(code(&output), 2);
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure_and_a_closed_pipe_is_not() {
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("a full device");
    let status = command(&["version"])
        .stdout(full)
        .stderr(Stdio::null())
        .status()
        .expect("it runs");
    assert_eq!(status.code(), Some(30));
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let status = command(&["man"])
        .stdout(writer.try_clone().expect("a copy"))
        .stderr(writer)
        .status()
        .expect("it runs");
    assert_eq!(status.code(), Some(0));
}

/// Text from an index: nothing in it may act on a terminal or make a line of its own.
#[test]
fn a_hostile_index_cannot_write_to_the_terminal() {
    const EVIL: &str = "x\u{1b}]0;t\u{7}\u{1b}[2J\u{9b}1m\r\nselected sha256:0\u{202e}";
    let dir = temporary();
    let index = |manifest: Value| {
        let entry = |os: &str, variant: &str, media_type: &str| {
            json!({"mediaType": media_type, "digest": manifest["digest"], "size": manifest["size"],
                "artifactType": EVIL, "annotations": {EVIL: EVIL},
                "platform": {"os": os, "architecture": "arm", "variant": variant,
                    "os.version": EVIL, "os.features": [EVIL]}})
        };
        json!({"schemaVersion": 2, "annotations": {EVIL: EVIL}, "manifests": [
            entry(EVIL, EVIL, MANIFEST), entry("linux", EVIL, MANIFEST),
            entry("linux", "v7", EVIL), entry("linux", "v6", MANIFEST)]})
    };
    layout(dir.path(), &s390x(), Some(&index));
    let reference = format!("oci:{}", dir.path().display());
    for args in [
        &["inspect", &reference, "--platform", "linux/arm/v7"][..],
        &["explain", &reference, "--platform", "linux/s390x"],
        &["explain", &reference, "--platform", "linux/arm/v6"],
        &["check", &reference, "--platform", "linux/arm/v7"],
        &["check", &reference, "--platform", "all"],
        &["check", &reference, "--platform", "all", "-o", "json"],
        &[
            "inspect",
            &reference,
            "--platform",
            "linux/s390x",
            "-o",
            "json",
        ],
    ] {
        let output = run(args);
        for bytes in [&output.stdout, &output.stderr] {
            let text = String::from_utf8(bytes.clone()).expect("UTF-8");
            for line in text.lines() {
                assert!(
                    !line.chars().any(|c| c.is_control() || c == '\u{202e}'),
                    "{args:?}: {line:?}"
                );
                assert!(!line.starts_with("selected sha256:0"), "{args:?}: {text}");
            }
        }
    }
}

#[test]
fn variables_that_are_set_to_nothing_are_not_set() {
    for name in [
        "CONTAINERD_ADDRESS",
        "CONTAINERD_NAMESPACE",
        "CONTAINERD_SNAPSHOTTER",
        "REGISTRY_AUTH_FILE",
        "EDGEPULL_LOG",
        "DOCKER_AUTH_CONFIG",
    ] {
        let dir = temporary();
        layout(dir.path(), &s390x(), None);
        let reference = format!("oci:{}", dir.path().display());
        let output = command(&["check", &reference, "--platform", "linux/s390x"])
            .env(name, "")
            .output()
            .expect("it runs");
        assert_eq!(
            code(&output),
            0,
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    // But an empty option is a mistake.
    assert_eq!(code(&run(&["detect", "--address", ""])), 2);
}

#[test]
fn a_local_store_is_not_taken_for_an_image_of_that_name() {
    for args in [
        &["pull", "oci:img", "--store", "oci:/nonexistent"][..],
        &["pull", "oci-archive:a.tar"],
        &["rm", "oci:img"],
    ] {
        let output = run(&[args, &["-o", "json"]].concat());
        assert_eq!(code(&output), 2, "{args:?}");
        assert_eq!(document(&output)["error"]["kind"], "invalid_reference");
    }
    let output = run(&["inspect", "oci:img", "--platform", "all", "-o", "json"]);
    assert_eq!(document(&output)["error"]["kind"], "usage");
}

/// A registry that takes the connection and never answers.
#[test]
fn a_signal_ends_a_pull_with_130_and_leaves_nothing_half_done() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("bound").port();
    for (signal, name) in [("INT", "SIGINT"), ("TERM", "SIGTERM")] {
        let dir = temporary();
        let archive = dir.path().join("a.tar");
        let store = format!("oci-archive:{}", archive.display());
        let reference = format!("127.0.0.1:{port}/app:1");
        let child = command(&["pull", &reference, "--store", &store, "-o", "json"])
            .args(["--progress", "json", "--platform", "linux/amd64"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        let (_held, _) = silent.accept().expect("it asks");
        let status = Command::new("kill")
            .args([format!("-{signal}"), child.id().to_string()])
            .status()
            .expect("kill");
        assert!(status.success());
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(code(&output), 130);
        let error = &document(&output)["error"];
        assert_eq!(error["kind"], "cancelled");
        assert_eq!(error["message"], format!("stopped by {name}"));
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 0);
        // With `--progress json` every line on stderr is JSON.
        let lines = String::from_utf8(output.stderr).expect("UTF-8");
        assert!(lines.lines().count() >= 2, "{lines}");
        for line in lines.lines() {
            let event: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            assert!(event["event"].is_string(), "{line}");
        }
    }
}
