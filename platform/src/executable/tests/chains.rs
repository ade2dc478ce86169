//! Scripts, interpreters and loaders, each naming the next.

use std::collections::HashMap;

use super::verdicts::{GLIBC, told};
use super::*;

/// What it is, the files, the verdict, and how many files follow the first.
type Row<'a> = (&'a str, &'a [(&'a str, &'a [u8])], &'a str, usize);

/// The files of an image by path, and the first one's verdict.
fn in_image(files: &[(&str, &[u8])], host: &Host) -> Judgement {
    let image: HashMap<&[u8], Needs> = files
        .iter()
        .map(|(path, bytes)| (path.as_bytes(), read(bytes)))
        .collect();
    let (_, first) = files.first().expect("a file");
    judge_with(&read(first), host, &mut |path| {
        image
            .get(path)
            .map_or(Found::Missing, |needs| Found::File(Box::new(needs.clone())))
    })
}

#[test]
fn scripts_and_loaders() {
    let amd64 = Program::amd64().write();
    let arm64 = Program::arm64().write();
    let dynamic = Program::amd64().loader(GLIBC).write();
    let script = b"#!/bin/sh\n".as_slice();
    let rows: &[Row<'_>] = &[
        (
            "a script",
            &[("/run", script), ("/bin/sh", &amd64)],
            "native",
            1,
        ),
        (
            "a script of another machine",
            &[("/run", script), ("/bin/sh", &arm64)],
            "refused Machine",
            1,
        ),
        ("no shell", &[("/run", script)], "refused Interpreter", 0),
        (
            "an empty shell",
            &[("/run", script), ("/bin/sh", b"")],
            "refused Empty",
            1,
        ),
        (
            "CR LF",
            &[("/run", b"#!/bin/sh\r\n"), ("/bin/sh", &amd64)],
            "refused Interpreter",
            0,
        ),
        (
            "CR LF, and somebody has thought of it",
            &[("/run", b"#!/bin/sh\r\n"), ("/bin/sh\r", &amd64)],
            "unknown",
            1,
        ),
        (
            "CR LF in the argument",
            &[("/run", b"#!/usr/bin/env sh\r\n"), ("/usr/bin/env", &amd64)],
            "unknown",
            1,
        ),
        (
            "a loader",
            &[("/run", &dynamic), (GLIBC, &amd64)],
            "native",
            1,
        ),
        ("no loader", &[("/run", &dynamic)], "refused Interpreter", 0),
        (
            "a loader of another machine",
            &[("/run", &dynamic), (GLIBC, &arm64)],
            "refused Interpreter",
            1,
        ),
        (
            "a script as loader",
            &[("/run", &dynamic), (GLIBC, script)],
            "refused Interpreter",
            1,
        ),
        (
            "an empty loader",
            &[("/run", &dynamic), (GLIBC, b"")],
            "refused Interpreter",
            1,
        ),
        (
            "a script, a shell, a loader",
            &[("/run", script), ("/bin/sh", &dynamic), (GLIBC, &amd64)],
            "native",
            2,
        ),
        (
            "a script that is its own interpreter",
            &[("/bin/sh", script)],
            "refused Depth",
            5,
        ),
    ];
    for (name, files, wanted, length) in rows {
        let judgement = in_image(files, &host("amd64 v1"));
        assert_eq!(
            &told(&judgement.verdict),
            wanted,
            "{name}: {}",
            judgement.verdict
        );
        assert_eq!(judgement.chain.len(), *length, "{name}");
    }
    assert_eq!(
        told(&judge(&read(script), &host("amd64 v1"))),
        "unknown",
        "nobody looked"
    );
    let small = Program::arm64().only_4k().write();
    let dynamic = Program::arm64().loader("/lib/ld").write();
    let judgement = in_image(
        &[("/run", &dynamic), ("/lib/ld", &small)],
        &host("arm64 16k"),
    );
    assert_eq!(
        told(&judgement.verdict),
        "refused Pages",
        "the loader's layout counts, too"
    );
    assert!(
        judgement
            .verdict
            .to_string()
            .starts_with("refused: its loader /lib/ld: "),
        "{}",
        judgement.verdict
    );
}

/// Five scripts in a row run, a sixth does not, and a handler counts as one of them.
#[test]
fn the_depth_of_scripts() {
    let chain = |scripts: usize, program: &[u8], host: &Host| {
        let lines: Vec<(String, Vec<u8>)> = (0..scripts)
            .map(|at| (format!("/s{at}"), format!("#!/s{}\n", at + 1).into_bytes()))
            .chain([(format!("/s{scripts}"), program.to_vec())])
            .collect();
        let files: Vec<(&str, &[u8])> = lines
            .iter()
            .map(|(path, bytes)| (path.as_str(), bytes.as_slice()))
            .collect();
        told(&in_image(&files, host).verdict)
    };
    let (amd64, arm64) = (Program::amd64().write(), Program::arm64().write());
    assert_eq!(chain(5, &amd64, &host("amd64 v1")), "native");
    assert_eq!(chain(6, &amd64, &host("amd64 v1")), "refused Depth");
    assert_eq!(chain(4, &arm64, &emulating("F")), "emulated qemu-aarch64");
    assert_eq!(chain(5, &arm64, &emulating("F")), "refused Depth");
}
