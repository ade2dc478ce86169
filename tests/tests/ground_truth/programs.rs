//! The list of programs, and where `tests/programs/build` put them.

use std::fs;
use std::path::{Path, PathBuf};

/// A line of `tests/programs/list`.
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) architecture: String,
    /// The root directory with its loader.
    pub(crate) root: Option<String>,
    /// The file tells what it needs, beyond its code.
    pub(crate) tells: bool,
    /// Made by damaging another.
    pub(crate) damaged: bool,
    pub(crate) file: PathBuf,
}

/// Where the programs and the root directories are.
pub(crate) fn directory(workspace: &Path) -> PathBuf {
    std::env::var_os("EDGEPULL_PROGRAMS")
        .map_or_else(|| workspace.join("build/programs"), PathBuf::from)
}

pub(crate) fn read(workspace: &Path) -> Vec<Program> {
    let text = fs::read_to_string(workspace.join("tests/programs/list")).unwrap();
    let built = directory(workspace).join("bin");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.split_whitespace();
            let mut next = || {
                words
                    .next()
                    .unwrap_or_else(|| panic!("a short line: {line}"))
            };
            let (name, root, tells, way) = (next(), next(), next(), next());
            let file = built.join(name);
            assert!(
                file.is_file(),
                "{} is missing: run tests/programs/build (after tests/setup and make dist)",
                file.display()
            );
            Program {
                name: name.to_owned(),
                architecture: name.split('-').next().unwrap().to_owned(),
                root: (root != "-").then(|| root.to_owned()),
                tells: match tells {
                    "yes" => true,
                    "no" => false,
                    other => panic!("neither yes nor no: {other}"),
                },
                damaged: matches!(way, "cut" | "byte" | "zeros" | "text"),
                file,
            }
        })
        .collect()
}
