//! Scripts, executed by this machine's own kernel in a root directory with a shell.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use edgepull_tests::tools::Lab;

use super::programs;
use super::table::Pair;
use super::world::{self, Host};

/// Name and text of each. They lie in /bin, and the working directory is the root.
fn scripts() -> Vec<(&'static str, Vec<u8>)> {
    let long = format!("#!/{}/sh\necho ran\n", "x".repeat(300));
    let mut texts: Vec<(&'static str, Vec<u8>)> = [
        ("plain", "#!/bin/sh\necho ran\n"),
        ("with blanks", "#! \t/bin/sh -e \necho ran\n"),
        ("CR LF", "#!/bin/sh\r\necho ran\r\n"),
        ("CR LF after an argument", "#!/bin/sh -e\r\necho ran\r\n"),
        ("missing interpreter", "#!/bin/python3\nprint('ran')\n"),
        ("env", "#!/bin/env sh\necho ran\n"),
        ("env with several words", "#!/bin/env sh -e\necho ran\n"),
        ("env -S", "#!/bin/env -S sh -e\necho ran\n"),
        ("relative path", "#!bin/sh\necho ran\n"),
        ("one line without an end", "#!/bin/greet"),
        ("no interpreter", "#!\necho ran\n"),
        ("no interpreter but blanks", "#!  \t\necho ran\n"),
        ("no first line", "echo ran\n"),
        ("byte order mark", "\u{feff}#!/bin/sh\necho ran\n"),
        ("path beyond 256 bytes", long.as_str()),
        ("for a program of arm64", "#!/bin/arm64\n"),
        ("for an empty file", "#!/bin/empty\n"),
        ("for a directory", "#!/bin\necho ran\n"),
        ("for a program without its loader", "#!/bin/unloaded\n"),
        ("chain of 1", "#!/bin/sh\necho ran\n"),
        ("chain of 2", "#!/bin/chain of 1"),
    ]
    .map(|(name, text)| (name, text.as_bytes().to_vec()))
    .into();
    texts.retain(|(name, _)| !name.starts_with("chain"));
    texts
}

/// A script for a script and so on, that many in all.
fn chain(directory: &Path, length: usize) -> String {
    let mut interpreter = "/bin/sh".to_owned();
    for place in 1..=length {
        let name = format!("chain-{length}-{place}");
        // A shell at the end reads the last script that was started, which each of them is for it.
        write(
            &directory.join(&name),
            format!("#!{interpreter}\necho ran\n").as_bytes(),
        );
        interpreter = format!("/bin/{name}");
    }
    interpreter
}

fn write(file: &Path, text: &[u8]) {
    fs::write(file, text).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}

pub(crate) fn pairs(directory: &Path, host: &Host) -> Vec<Pair> {
    let lab = Lab::get();
    let built = programs::directory(lab.workspace()).join("bin");
    let root = directory.join("scripts");
    let bin = root.join("bin");
    fs::create_dir_all(&bin).unwrap();
    let busybox = lab.tool("busybox-amd64/bin/busybox");
    let files = [
        ("sh", busybox.clone()),
        ("env", busybox),
        ("greet", built.join("amd64-musl")),
        ("arm64", built.join("arm64-musl")),
        ("empty", built.join("amd64-empty")),
        ("unloaded", built.join("amd64-glibc")),
    ];
    for (name, file) in files {
        fs::copy(&file, bin.join(name)).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
    let mut cases: Vec<(String, String)> = Vec::new();
    for (name, text) in scripts() {
        let file = format!("script-{}", name.replace(' ', "-"));
        write(&bin.join(&file), &text);
        cases.push((format!("script, {name}"), format!("/bin/{file}")));
    }
    for length in [2, 4, 5, 6, 7] {
        let path = chain(&bin, length);
        cases.push((format!("script, {length} in a row"), path));
    }
    cases
        .into_iter()
        .map(|(program, path)| Pair {
            host: host.name.clone(),
            truth: host.execute("amd64", &root, &path),
            verdict: world::verdict(&host.facts, &root, &path),
            // What words `env` knows is its own affair.
            tells: program != "script, env -S",
            program,
        })
        .collect()
}
