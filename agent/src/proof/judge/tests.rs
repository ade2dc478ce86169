use bytes::Bytes;
use edgepull_platform::launch::testing::Files;

use super::super::{
    launch::Launch,
    testing::{AMD64, ARM64, host, program},
};
use super::*;
use crate::oci::Verified;

fn launch(json: &str) -> Launch {
    let text = format!(r#"{{"config":{json}}}"#);
    Launch::of(&Verified::of(Bytes::from(text))).expect("read")
}

fn layers() -> Vec<Digest> {
    vec![Digest::of(b"layer")]
}

fn proof(json: &str, files: &mut Files) -> Proof {
    prove(&launch(json), files, &layers(), &host("x86-v3"))
}

fn paths(proof: &Proof) -> Vec<&str> {
    proof.chain.iter().map(|link| link.path.as_str()).collect()
}

#[test]
fn a_command_is_followed_to_the_loader() {
    let loader = program(AMD64, None);
    let mut files = Files::default()
        .file("usr/lib/ld.so", true, &loader)
        .link("lib64", "usr/lib")
        .file("usr/bin/bash", true, &program(AMD64, Some("/lib64/ld.so")))
        .link("bin", "usr/bin")
        .link("usr/bin/sh", "bash")
        .file("entry.sh", true, b"#!/bin/sh\nexec \"$@\"\n");
    let native = proof(r#"{"Entrypoint":["/entry.sh"]}"#, &mut files);
    assert_eq!(native.verdict, Verdict::Native);
    assert_eq!(
        paths(&native),
        ["/entry.sh", "/usr/bin/bash", "/usr/lib/ld.so"]
    );
    assert_eq!(native.file().expect("one").path, "/usr/bin/bash");
    assert_eq!(native.machine.expect("told").to_string(), "linux/amd64");
    assert!(
        native
            .chain
            .iter()
            .all(|link| link.layer.as_ref() == layers().first())
    );
    let by_path = proof(r#"{"Cmd":["sh"]}"#, &mut files);
    assert_eq!(paths(&by_path), ["/usr/bin/bash", "/usr/lib/ld.so"]);
}

#[test]
fn a_program_for_other_cores_is_refused_wherever_it_stands_in_the_chain() {
    let mut files = Files::default()
        .file("bin/sh", true, &program(ARM64, None))
        .file("app", true, b"#!/bin/sh\n")
        .file("own", true, &program(AMD64, None))
        .file("sbin/tini", true, &program(AMD64, None));
    for (json, decisive) in [
        (r#"{"Cmd":["/bin/sh"]}"#, "/bin/sh"),
        (r#"{"Cmd":["/app"]}"#, "/bin/sh"),
        (
            r#"{"Entrypoint":["tini","-g","--"],"Cmd":["/app"]}"#,
            "/bin/sh",
        ),
    ] {
        let proof = proof(json, &mut files);
        assert_eq!(proof.refusal(), Some(Refusal::Machine), "{json}: {proof:?}");
        assert_eq!(proof.file().expect("one").path, decisive, "{json}");
        assert_eq!(proof.machine.expect("told").to_string(), "linux/arm64");
    }
    // What an entrypoint makes of its words is its own affair: told, and no more.
    let given = proof(r#"{"Entrypoint":["/own"],"Cmd":["/app"]}"#, &mut files);
    assert_eq!(given.verdict, Verdict::Native);
    assert!(given.reasons[0].contains("/app"), "{given:?}");
}

#[test]
fn what_cannot_be_found_is_unknown_and_never_refused() {
    let mut files = Files::default()
        .file("data", false, &program(AMD64, None))
        .link("exe", "/proc/self/exe")
        .file("bin/tini", true, &program(AMD64, None))
        .other("bin/pipe");
    for (json, told) in [
        ("{}", "names no command"),
        (r#"{"Cmd":[""]}"#, "names no command"),
        (r#"{"Cmd":["/gone"]}"#, "not in the image"),
        (r#"{"Cmd":["pipe"]}"#, "not in the image"),
        (r#"{"Cmd":["/data"]}"#, "nobody may execute it"),
        (r#"{"Cmd":["/exe"]}"#, "mounted"),
    ] {
        let proof = proof(json, &mut files);
        assert!(matches!(proof.verdict, Verdict::Unknown { .. }), "{json}");
        assert!(
            proof.reasons[0].contains(told),
            "{json}: {:?}",
            proof.reasons
        );
    }
    // An init by itself runs.
    let init = proof(
        r#"{"Entrypoint":["tini","--"],"Cmd":["/gone"]}"#,
        &mut files,
    );
    assert_eq!(init.verdict, Verdict::Native);
    assert!(init.reasons[0].contains("/gone"));
}

#[test]
fn an_empty_file_and_a_missing_loader_are_refused_by_name() {
    let mut files = Files::default().file("empty", true, b"").file(
        "app",
        true,
        &program(AMD64, Some("/lib/ld-musl-x86_64.so.1")),
    );
    let empty = proof(r#"{"Cmd":["/empty"]}"#, &mut files);
    assert_eq!(empty.refusal(), Some(Refusal::Empty));
    assert_eq!(empty.chain[0].kind, "empty");
    let lost = proof(r#"{"Cmd":["/app"]}"#, &mut files);
    assert_eq!(lost.refusal(), Some(Refusal::Interpreter));
    assert!(lost.reasons[0].contains("ld-musl-x86_64"));
}

#[test]
fn the_document_has_the_contracts_fields() {
    let mut files = Files::default().file("app", true, &program(AMD64, None));
    let proof = proof(r#"{"Cmd":["/app","-x"]}"#, &mut files);
    let json = serde_json::to_value(&proof).expect("plain data");
    assert_eq!(json["verdict"], "native");
    assert_eq!(json["entrypoint"], serde_json::json!(["/app", "-x"]));
    assert_eq!(json["chain"][0]["path"], "/app");
    assert_eq!(json["chain"][0]["kind"], "elf");
    assert_eq!(json["chain"][0]["platform"], "linux/amd64");
    assert_eq!(json["chain"][0]["needs"], "a static program for amd64");
    assert_eq!(json["reasons"], serde_json::json!([]));
}

#[test]
fn only_the_inits_own_separator_counts() {
    let mut files = Files::default()
        .file("bin/tini", true, &program(AMD64, None))
        .file("bin/app", true, &program(AMD64, None))
        .file("text", true, b"echo no first line\n")
        .file("other", true, &program(ARM64, None));
    for (entrypoint, verdict) in [
        (r#"["tini","-g","-e","143","--","/other"]"#, "refused"),
        (r#"["tini","app","--","/other"]"#, "native"),
        (r#"["tini","--","app","--","/other"]"#, "native"),
        (r#"["tini","-s"]"#, "native"),
        // It is started by execvp(3), which asks a shell.
        (r#"["tini","--","/text"]"#, "unknown"),
        (r#"["/text"]"#, "refused"),
    ] {
        let json = format!(r#"{{"Entrypoint":{entrypoint}}}"#);
        let proof = proof(&json, &mut files);
        assert_eq!(proof.verdict.name(), verdict, "{entrypoint}: {proof:?}");
    }
}

#[test]
fn what_a_mount_may_bring_is_not_missed() {
    let mut files = Files::default()
        .file("venv", true, b"#!/opt/venv/bin/python\n")
        .file("nix", true, b"#!/nix/store/x/bin/sh\n")
        .file("own", true, b"#!/usr/volume/sh\n")
        .file("gone", true, b"#!/usr/bin/python\n")
        .file("locked", true, b"#!/bin/locked\n")
        .file("bin/locked", false, &program(AMD64, None));
    for (command, verdict) in [
        ("/venv", "unknown"),
        ("/nix", "unknown"),
        ("/own", "unknown"),
        ("/gone", "refused"),
        ("/locked", "unknown"),
    ] {
        let json = format!(r#"{{"Cmd":["{command}"],"Volumes":{{"/usr/volume/":{{}}}}}}"#);
        let proof = proof(&json, &mut files);
        assert_eq!(proof.verdict.name(), verdict, "{command}: {proof:?}");
    }
}
