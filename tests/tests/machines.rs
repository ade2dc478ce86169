//! The ground truth that no emulator of programs shows: page sizes and missing 32-bit modes.
//!
//! Debian's arm64 kernels with pages of 4 and 16 KiB run under qemu-system on CPUs with and without
//! `AArch32`. Their only process records the host with edgepull itself (`detect --record`), executes
//! the programs of `tests/programs/list` for Arm, and tells the console. The verdicts are those for
//! the host as it recorded itself.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use edgepull_platform::executable::{Found, Needs, Verdict, judge_with};
use edgepull_platform::{Facts, Host, detect};
use edgepull_tests::process::run_within;
use edgepull_tests::tools::Lab;

/// The longest that a machine may take; it takes some 10 seconds.
const PATIENCE: Duration = Duration::from_secs(240);

/// A kernel on a CPU, and what must be found out about it.
struct Machine {
    kernel: &'static str,
    cpu: &'static str,
    page_size: u64,
    aarch32: bool,
}

const MACHINES: &[Machine] = &[
    Machine {
        kernel: "arm64",
        cpu: "cortex-a53",
        page_size: 4096,
        aarch32: true,
    },
    Machine {
        kernel: "arm64",
        cpu: "cortex-a72",
        page_size: 4096,
        aarch32: true,
    },
    Machine {
        kernel: "arm64",
        cpu: "a64fx",
        page_size: 4096,
        aarch32: false,
    },
    Machine {
        kernel: "arm64-16k",
        cpu: "cortex-a76",
        page_size: 16384,
        aarch32: true,
    },
];

/// How a program fails whose loader found no library to its liking.
const LIBRARY: &str = "library";

/// What the only process of a machine does.
const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /sys /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
/bin/edgepull detect --record /recorded >/dev/null || echo "@failed detect"
cd /recorded
for f in $($b find . -type f); do
  echo "@file $f"
  $b cat "$f" | $b base64
  echo "@end"
done
while read -r root program; do
  said=$(/enter "$root" "/bin/$program" version 2>&1 </dev/null)
  code=$?
  echo "@ran $root $program $code $(echo "$said" | $b tail -n 1)"
done </list
echo "@done"
$b poweroff -f
"#;

/// A line of `tests/programs/list`.
struct Program {
    name: String,
    root: String,
    tells: bool,
}

fn programs(workspace: &Path) -> Vec<Program> {
    let text = fs::read_to_string(workspace.join("tests/programs/list")).unwrap();
    let lines = text.lines().filter(|line| line.starts_with("arm"));
    let mut programs: Vec<Program> = lines
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            Program {
                name: words[0].to_owned(),
                root: words[1].replace('-', "none"),
                tells: words[2] == "yes",
            }
        })
        .collect();
    for extra in ["amd64-musl", "amd64-empty", "amd64-zeros"] {
        programs.push(Program {
            name: extra.to_owned(),
            root: "none".to_owned(),
            tells: true,
        });
    }
    programs
}

fn built(lab: &Lab) -> PathBuf {
    std::env::var_os("EDGEPULL_PROGRAMS")
        .map_or_else(|| lab.workspace().join("build/programs"), PathBuf::from)
}

/// The first file system, in the kernel's own archive format (`newc`).
struct Archive(Vec<u8>);

impl Archive {
    fn add(&mut self, path: &str, mode: u32, content: &[u8]) {
        let mut header = "070701".to_owned();
        let numbers = [
            0,
            mode,
            0,
            0,
            1,
            0,
            u32::try_from(content.len()).unwrap(),
            0,
            0,
            0,
            0,
            u32::try_from(path.len() + 1).unwrap(),
            0,
        ];
        for number in numbers {
            write!(header, "{number:08X}").unwrap();
        }
        self.0.extend(header.as_bytes());
        self.0.extend(path.as_bytes());
        self.0.push(0);
        self.pad();
        self.0.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// A file with the directories above it.
    fn file(&mut self, path: &str, content: &[u8]) {
        for (at, _) in path.match_indices('/') {
            self.add(&path[..at], 0o040_755, &[]);
        }
        self.add(path, 0o100_755, content);
    }

    fn tree(&mut self, from: &Path, to: &str) {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{to}/{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                self.tree(&entry.path(), &path);
            } else {
                self.file(&path, &fs::read(entry.path()).unwrap());
            }
        }
    }
}

/// The archive, and the root directories that it holds, for the verdicts.
fn archive(lab: &Lab, directory: &Path, programs: &[Program]) -> PathBuf {
    let built = built(lab);
    let mut archive = Archive(Vec::new());
    let mut list = String::new();
    let read = |path: &Path| {
        fs::read(path).unwrap_or_else(|e| {
            panic!("{}: {e}: run tests/programs/build", path.display());
        })
    };
    archive.add("dev", 0o040_755, &[]);
    archive.file("init", INIT.as_bytes());
    archive.file("enter", &read(&built.join("enter-arm64")));
    archive.file("bin/busybox", &read(&lab.tool("busybox-arm64/bin/busybox")));
    archive.file("bin/edgepull", &read(&built.join("bin/arm64-edgepull")));
    for root in ["arm64", "armhf", "armel"] {
        archive.tree(&built.join("root").join(root), root);
    }
    for program in programs {
        let content = read(&built.join("bin").join(&program.name));
        archive.file(&format!("{}/bin/{}", program.root, program.name), &content);
        writeln!(list, "/{} {}", program.root, program.name).unwrap();
    }
    archive.file("list", list.as_bytes());
    archive.add("TRAILER!!!", 0, &[]);
    let path = directory.join("initrd");
    fs::write(&path, &archive.0).unwrap();
    path
}

/// All that a machine says.
fn console(lab: &Lab, machine: &Machine, archive: &Path) -> String {
    let boot = lab.tool(&format!("kernel-{}/boot", machine.kernel));
    let kernel = fs::read_dir(boot).unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_name()?.to_str()?;
        name.starts_with("vmlinuz").then_some(path)
    });
    let tree = lab.tool("qemu-system");
    // With the libraries that were unpacked beside it, whatever this machine has.
    let mut command = Command::new(tree.join("lib64/ld-linux-x86-64.so.2"));
    let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"]
        .map(|path| tree.join(path).display().to_string());
    command
        .args(["--library-path", &libraries.join(":")])
        .arg(tree.join("usr/bin/qemu-system-aarch64"))
        .args([
            "-M",
            "virt,gic-version=3",
            "-cpu",
            machine.cpu,
            "-m",
            "1024",
            "-nic",
            "none",
        ])
        .args([
            "-nodefaults",
            "-nographic",
            "-serial",
            "stdio",
            "-no-reboot",
        ])
        .arg("-kernel")
        .arg(kernel.expect("a kernel"))
        .arg("-initrd")
        .arg(archive)
        .args(["-append", "console=ttyAMA0 quiet panic=-1 rdinit=/init"])
        .stdin(Stdio::null());
    let ended = run_within(&mut command, PATIENCE);
    let text = ended.text().replace('\r', "");
    assert!(
        text.contains("@done") && !text.contains("@failed"),
        "{}",
        ended.transcript()
    );
    text
}

fn decode(text: &str) -> Vec<u8> {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::new();
    let (mut held, mut bits) = (0u32, 0);
    for letter in text.bytes() {
        if let Some(value) = LETTERS.iter().position(|known| *known == letter) {
            held = held << 6 | u32::try_from(value).unwrap();
            bits += 6;
            if bits >= 8 {
                bits -= 8;
                bytes.push(u8::try_from(held >> bits & 0xff).unwrap());
            }
        }
    }
    bytes
}

/// The host as the machine recorded itself, written below a directory.
fn recorded(console: &str, directory: &Path) -> Host {
    let mut file: Option<(PathBuf, String)> = None;
    for line in console.lines() {
        if let Some(path) = line.strip_prefix("@file ./") {
            file = Some((directory.join(path), String::new()));
        } else if line == "@end" {
            let (path, text) = file.take().expect("a file");
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, decode(&text)).unwrap();
        } else if let Some((_, text)) = &mut file {
            text.push_str(line);
        }
    }
    detect(&Facts::recorded(directory).unwrap()).unwrap()
}

/// What became of each program: `None` where it ran.
fn outcomes(console: &str) -> BTreeMap<String, Option<String>> {
    let lines = console
        .lines()
        .filter_map(|line| line.strip_prefix("@ran "));
    lines
        .map(|line| {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            let (code, said) = (words[2], words.get(3).copied().unwrap_or_default());
            let ran = code == "0" && (said == "ran" || said.starts_with("edgepull "));
            let how = match said.strip_prefix("execve: ") {
                Some(number) => {
                    format!("{:?}", nix::errno::Errno::from_raw(number.parse().unwrap()))
                }
                None if said.contains("error while loading shared libraries") => LIBRARY.to_owned(),
                None => match code.parse::<i32>().unwrap() {
                    signal @ 129.. => {
                        let signal = nix::sys::signal::Signal::try_from(signal - 128);
                        signal.unwrap().to_string()
                    }
                    code => format!("exit {code}"),
                },
            };
            (words[1].to_owned(), (!ran).then_some(how))
        })
        .collect()
}

fn verdict(lab: &Lab, host: &Host, program: &Program) -> Verdict {
    let built = built(lab);
    let root = built.join("root").join(&program.root);
    let needs = |path: &Path| fs::File::open(path).ok().map(|file| Needs::read(&file));
    let first = needs(&built.join("bin").join(&program.name)).unwrap();
    let mut find = |path: &[u8]| {
        let path = String::from_utf8_lossy(path).into_owned();
        match needs(&root.join(path.trim_start_matches('/'))) {
            Some(needs) => Found::File(Box::new(needs)),
            None => Found::Missing,
        }
    };
    judge_with(&first, host, &mut find).verdict
}

#[test]
fn verdicts_are_what_happens_on_machines() {
    let lab = Lab::get();
    let programs = programs(lab.workspace());
    let directory = lab.run_dir("machines");
    let archive = archive(lab, directory.path(), &programs);
    let consoles: Vec<String> = thread::scope(|scope| {
        let running: Vec<_> = MACHINES
            .iter()
            .map(|machine| scope.spawn(|| console(lab, machine, &archive)))
            .collect();
        running
            .into_iter()
            .map(|machine| machine.join().unwrap())
            .collect()
    });

    let mut wrong = Vec::new();
    let (mut seen, mut unknown, mut congruence, mut mode) = (0, Vec::new(), 0, 0);
    let mut libraries = 0;
    let mut table = String::new();
    let mut rows: BTreeMap<&str, String> = BTreeMap::new();
    for (machine, console) in MACHINES.iter().zip(&consoles) {
        let name = format!("{} on {}", machine.kernel, machine.cpu);
        let host = recorded(console, &directory.path().join(name.replace(' ', "-")));
        assert_eq!(host.kernel, "arm64", "{name}");
        assert!(!host.emulated, "{name}");
        assert_eq!(host.page_size, Some(machine.page_size), "{name}");
        assert_eq!(host.aarch32_el0, Some(machine.aarch32), "{name}");
        let outcomes = outcomes(console);
        assert_eq!(outcomes.len(), programs.len(), "{name}: {console}");
        for program in &programs {
            let outcome = &outcomes[&program.name];
            let verdict = verdict(lab, &host, program);
            let how = outcome.as_deref().unwrap_or("ran");
            let line = format!(
                "{} on {name}: {how}, and the verdict is {verdict}",
                program.name
            );
            writeln!(table, "{line}").unwrap();
            let row = rows.entry(&program.name).or_default();
            write!(row, " {how}: {} |", verdict.name()).unwrap();
            seen += 1;
            match &verdict {
                Verdict::Refused { reason, .. } => {
                    congruence += usize::from(reason.contains("laid out"));
                    mode += usize::from(reason.contains("32-bit Arm mode"));
                    if outcome.is_none() {
                        wrong.push(format!("falsely refused: {line}"));
                    }
                }
                Verdict::Unknown { .. } => unknown.push(line),
                // Libraries behind the loader are not looked at.
                _ if how == LIBRARY => libraries += 1,
                _ if outcome.is_some() && program.tells => {
                    wrong.push(format!("falsely {}: {line}", verdict.name()));
                }
                _ => {}
            }
        }
    }
    let _ = fs::create_dir_all(lab.workspace().join("target"));
    fs::write(lab.workspace().join("target/machines.txt"), &table).unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        congruence >= 2 && mode >= 20,
        "{congruence} refused for their pages, {mode} for a missing mode:\n{table}"
    );
    assert!(libraries <= 2, "{table}");
    assert!(
        unknown.len() * 10 <= seen,
        "{} of {seen} are unknown:\n{}",
        unknown.len(),
        unknown.join("\n")
    );
    document(lab, &rows);
}

/// The page of the docs must say the same; `make ground-truth` writes it.
fn document(lab: &Lab, rows: &BTreeMap<&str, String>) {
    let mut text = HEAD.to_owned();
    for machine in MACHINES {
        let (kernel, cpu) = (machine.kernel, machine.cpu);
        write!(text, " {kernel} on {cpu} |").unwrap();
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(MACHINES.len()));
    for (program, cells) in rows {
        write!(text, "\n| {program} |{cells}").unwrap();
    }
    text.push('\n');
    let path = lab.workspace().join("docs/ground-truth-machines.md");
    if std::env::var_os("EDGEPULL_GROUND_TRUTH").is_some_and(|value| value == "write") {
        fs::write(path, text).unwrap();
        return;
    }
    let committed = fs::read_to_string(path).unwrap_or_default();
    assert_eq!(
        committed, text,
        "docs/ground-truth-machines.md says otherwise (`make ground-truth` renews it)"
    );
}

/// The text before the table.
const HEAD: &str = "\
# Ground truth: pages and 32-bit modes

What programs do on whole machines, beside what edgepull says of them by the host that it recorded
there itself (`detect --record`). Made by `make ground-truth`: Debian's arm64 kernels with pages of 4 KiB
(`arm64`) and 16 KiB (`arm64-16k`) under qemu-system; `a64fx` has no 32-bit Arm mode.
`tests/tests/machines.rs` repeats it, and compares it with this page.

A cell is what happened: what edgepull says. `library` is a program whose loader found a library that
is laid out for smaller pages: libraries behind the loader are not looked at.

| |";
