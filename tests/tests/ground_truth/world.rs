//! Hosts and root directories: where a program is executed, and what is said of it there.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use edgepull_platform::executable::{Found, Needs, Verdict, judge_with};
use edgepull_platform::{Facts, detect};
use edgepull_tests::tools::Lab;

use super::programs::{self, Program};
use super::table::Truth;

/// Where emulators lie in the root directories.
const EMULATORS: &str = "emulators";

/// What executes the programs of an architecture.
enum Runner {
    /// This machine's kernel.
    Kernel,
    /// An emulator and its CPU.
    Emulator(String, String),
    /// Nothing here: this machine is not like that host.
    Nothing,
}

/// A line of `tests/programs/hosts/list`.
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) facts: edgepull_platform::Host,
    runner: Runner,
    /// For 32-bit programs.
    narrow: Option<Runner>,
    native: bool,
}

impl Host {
    pub(crate) fn is_native(&self) -> bool {
        self.native
    }

    /// Does it execute programs of that architecture on its cores?
    pub(crate) fn runs(&self, architecture: &str) -> bool {
        architecture == self.facts.kernel || architecture == "386" && self.narrow.is_some()
    }

    /// Are 32-bit x86 programs emulated?
    pub(crate) fn emulates_narrow(&self) -> bool {
        let runner = self.narrow.as_ref().unwrap_or(&self.runner);
        matches!(runner, Runner::Emulator(..))
    }

    /// Executes a program in a root directory.
    pub(crate) fn execute(&self, architecture: &str, root: &Path, path: &str) -> Truth {
        let runner = match &self.narrow {
            Some(narrow) if architecture == "386" => narrow,
            _ => &self.runner,
        };
        let enter = programs::directory(Lab::get().workspace()).join("enter");
        let mut command = Command::new(enter);
        command.arg(root);
        match runner {
            Runner::Nothing => return Truth::Unseen,
            Runner::Kernel => {}
            Runner::Emulator(name, cpu) => {
                command
                    .arg(format!("/{EMULATORS}/{name}"))
                    .args(["-cpu", cpu]);
            }
        }
        // What edgepull answers; the others do not look at it.
        command.args([path, "version"]).stdin(Stdio::null());
        let ended = command.output().unwrap();
        let mut text = String::from_utf8_lossy(&ended.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&ended.stderr));
        let said = |line: &str| line == "ran" || line.starts_with("edgepull ");
        if ended.status.success() && text.lines().any(said) {
            return Truth::Ran;
        }
        if let Some(signal) = ended.status.signal() {
            let name = nix::sys::signal::Signal::try_from(signal).unwrap();
            return Truth::Failed(name.to_string());
        }
        if let Some(error) = text.strip_prefix("execve: ") {
            let number = error.trim().parse().unwrap();
            return Truth::Failed(format!("{:?}", nix::errno::Errno::from_raw(number)));
        }
        assert_ne!(ended.status.code(), Some(125), "{text}");
        let why = text.trim().lines().next_back().unwrap_or_default();
        Truth::Failed(match why {
            // QEMU's words for what a kernel says by an error.
            _ if text.contains("Invalid ELF image for this architecture") => "ENOEXEC".to_owned(),
            _ if text.contains("Could not open '/l") => "ENOENT".to_owned(),
            _ if text.contains("Exec format error") => "ENOEXEC".to_owned(),
            _ if text.contains("Fatal glibc error") || text.contains("ISA level") => {
                "glibc".to_owned()
            }
            _ if text.contains("microarchitecture support") || text.contains("LSE support") => {
                "Go".to_owned()
            }
            _ => format!("exit {}", ended.status.code().unwrap()),
        })
    }
}

/// The hosts, as recorded.
pub(crate) fn hosts(workspace: &Path) -> Vec<Host> {
    let directory = workspace.join("tests/programs/hosts");
    let text = fs::read_to_string(directory.join("list")).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [name, emulator, cpu, narrow] = words[..] else {
                panic!("not four words: {line}");
            };
            let facts = detect(&Facts::recorded(&directory.join(name)).unwrap()).unwrap();
            let runner = |emulator: &str| match emulator {
                "native" if is_like_this(&facts) => Runner::Kernel,
                "native" => Runner::Nothing,
                emulator => Runner::Emulator(emulator.to_owned(), cpu.to_owned()),
            };
            Host {
                name: name.to_owned(),
                native: emulator == "native",
                runner: runner(emulator),
                narrow: (narrow != "-").then(|| runner(narrow)),
                facts,
            }
        })
        .collect()
}

/// Is this machine as recorded? Its level decides, and no handler may take what the kernel would.
fn is_like_this(facts: &edgepull_platform::Host) -> bool {
    let own = detect(&Facts::live().unwrap()).unwrap();
    let like = own.kernel == facts.kernel
        && own.cpu_level == facts.cpu_level
        && own.ia32 != Some(false)
        && own.runs.len() == facts.runs.len();
    if !like {
        eprintln!(
            "this machine is {} {:?}, not as the recorded one: its rows are not executed",
            own.kernel, own.cpu_level
        );
    }
    like
}

/// The root directories, by name; `none` has programs and no library.
pub(crate) struct Roots(BTreeMap<String, PathBuf>);

impl Roots {
    pub(crate) fn make(directory: &Path, programs: &[Program], hosts: &[Host]) -> Roots {
        let mut roots = BTreeMap::new();
        let built = programs::directory(Lab::get().workspace()).join("root");
        let names = programs
            .iter()
            .filter_map(|program| program.root.as_deref());
        for name in names.chain(["none"]) {
            if roots.contains_key(name) {
                continue;
            }
            let root = directory.join(name);
            fs::create_dir_all(root.join("bin")).unwrap();
            if name != "none" {
                copy_tree(&built.join(name), &root);
            }
            roots.insert(name.to_owned(), root);
        }
        for program in programs {
            let own = program.root.as_deref().filter(|root| *root != "none");
            for root in own.into_iter().chain(["none"]) {
                copy(&program.file, &roots[root].join("bin").join(&program.name));
            }
        }
        for host in hosts {
            for runner in std::iter::once(&host.runner).chain(&host.narrow) {
                if let Runner::Emulator(name, _) = runner {
                    let file = emulator(name);
                    for root in roots.values() {
                        let place = root.join(EMULATORS);
                        fs::create_dir_all(&place).unwrap();
                        if !place.join(name).exists() {
                            copy(&file, &place.join(name));
                        }
                    }
                }
            }
        }
        Roots(roots)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0[name].clone()
    }
}

fn emulator(name: &str) -> PathBuf {
    let places = ["/usr/bin", "/usr/local/bin"];
    let names = [format!("{name}-static"), name.to_owned()];
    let found = places
        .iter()
        .flat_map(|place| names.iter().map(move |name| Path::new(place).join(name)));
    found
        .into_iter()
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is missing: run tests/setup first"))
}

/// A second name for a file, or a copy where that cannot be.
fn copy(from: &Path, to: &Path) {
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    }
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&to).unwrap();
            copy_tree(&entry.path(), &to);
        } else {
            copy(&entry.path(), &to);
        }
    }
}

/// What `platform` says of a program in a root directory. There are no links in those, and the
/// working directory is the root.
pub(crate) fn verdict(host: &edgepull_platform::Host, root: &Path, path: &str) -> Verdict {
    let find = |path: &[u8]| {
        let path = String::from_utf8_lossy(path).into_owned();
        let file = root.join(path.trim_start_matches('/'));
        match fs::File::open(file) {
            Ok(file) => Found::File(Box::new(Needs::read(&file))),
            Err(_) => Found::Missing,
        }
    };
    let Found::File(needs) = find(path.as_bytes()) else {
        panic!("no {path} in {}", root.display());
    };
    judge_with(&needs, host, &mut { find }).verdict
}
