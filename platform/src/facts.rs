//! Raw facts about a host: files as text, and probes that no file shows.
//!
//! Everything is read from below one root, with a limit on every file; what cannot be read was
//! not observed. For a recorded host nothing of the running system counts, so links that lead
//! out of its root are not followed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use crate::error::FactsError;

mod live;

/// The file of a recorded host that holds its probes.
const PROBES: &str = "probes";
/// The directory of the kernel's table of interpreters.
const BINFMT: &str = "proc/sys/fs/binfmt_misc";
/// The CPU description of a large server is about a megabyte.
const LONGEST_CPUINFO: u64 = 4 << 20;
/// What of it a quick look reads: the first processors of many, all of a small board's.
const QUICK_CPUINFO: u64 = 16 << 10;
/// No other file of interest comes near this.
const LONGEST_FILE: u64 = 1 << 20;
/// More than the kernel prints of one interpreter.
const LONGEST_HANDLER: u64 = 64 << 10;
/// More interpreters than anybody registers.
const MOST_HANDLERS: usize = 256;

/// The files that hold facts, relative to the root.
const FILES: &[(&str, u64)] = &[
    ("proc/cpuinfo", LONGEST_CPUINFO),
    ("proc/device-tree/model", LONGEST_FILE),
    ("sys/firmware/devicetree/base/model", LONGEST_FILE),
    ("sys/class/dmi/id/product_name", LONGEST_FILE),
    ("sys/devices/system/cpu/aarch32_el0", LONGEST_FILE),
    ("proc/sys/abi/swp", LONGEST_FILE),
    ("proc/sys/abi/cp15_barrier", LONGEST_FILE),
    ("proc/sys/abi/setend", LONGEST_FILE),
    ("proc/sys/abi/vsyscall32", LONGEST_FILE),
];

/// Boot parameters that change what runs. No other is kept: a command line may hold secrets.
const BOOT_PARAMETERS: &[(&str, &str)] = &[("ia32_emulation", "cmdline_ia32_emulation")];

/// Build options of the kernel that decide what runs.
const KERNEL_OPTIONS: &[(&str, &str)] = &[
    ("CONFIG_COMPAT", "kernel_config_compat"),
    ("CONFIG_IA32_EMULATION", "kernel_config_ia32_emulation"),
    (
        "CONFIG_IA32_EMULATION_DEFAULT_DISABLED",
        "kernel_config_ia32_emulation_default_disabled",
    ),
    ("CONFIG_ARM64_4K_PAGES", "kernel_config_arm64_4k_pages"),
    ("CONFIG_ARM64_16K_PAGES", "kernel_config_arm64_16k_pages"),
    ("CONFIG_ARM64_64K_PAGES", "kernel_config_arm64_64k_pages"),
];

/// Raw facts about a host, from the running system or from a recorded host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    probes: BTreeMap<String, String>,
    files: BTreeMap<String, String>,
    /// The kernel has no table of interpreters, so none is registered.
    no_table: bool,
}

impl Facts {
    /// The running system, and what this process can ask of it.
    pub fn live() -> Result<Facts, FactsError> {
        let mut facts = Facts {
            probes: live::probes()?,
            ..Facts::default()
        };
        facts.read_files(Path::new("/"));
        Ok(facts)
    }

    /// The running system, as far as a program of this process's own width needs it, in a fraction of
    /// the time of [`Facts::live`]: no probe of a 32-bit mode, no build options, no name of the
    /// machine, and of the CPU description the first processors. Handlers come by
    /// [`Facts::with_handlers`].
    pub fn quick() -> Result<Facts, FactsError> {
        let root = Path::new("/");
        let mut facts = Facts {
            probes: live::quick_probes()?,
            ..Facts::default()
        };
        if let Some(text) = read_below(root, "proc/cpuinfo", QUICK_CPUINFO) {
            let text = whole_processors(text);
            facts.files.insert("proc/cpuinfo".to_owned(), text);
        }
        facts.read_boot_parameters(root);
        Ok(facts)
    }

    /// These facts with the interpreters that are registered now. `elsewhere` is a directory where
    /// the kernel's table is mounted, too, and is asked for where it is not mounted in its own place.
    pub fn with_handlers(&self, elsewhere: impl FnOnce() -> Option<PathBuf>) -> Facts {
        let mut facts = self.clone();
        let root = Path::new("/");
        facts.files.retain(|path, _| !path.starts_with(BINFMT));
        facts.read_table(&root.join(BINFMT), read);
        if facts.handlers_observed() {
            return facts;
        }
        let systems = read(&root.join("proc/filesystems"), LONGEST_FILE);
        facts.no_table = systems.is_some_and(|text| !has_table(&text));
        if !facts.no_table
            && let Some(directory) = elsewhere()
        {
            facts.read_table(&directory, read);
        }
        facts
    }

    /// A recorded host: a directory with `probes` and the files as they stood on the device.
    pub fn recorded(dir: &Path) -> Result<Facts, FactsError> {
        let root = fs::canonicalize(dir).map_err(|source| FactsError::Unreadable {
            path: dir.to_owned(),
            source,
        })?;
        if !root.is_dir() {
            let source = std::io::Error::from(std::io::ErrorKind::NotADirectory);
            return Err(FactsError::Unreadable {
                path: dir.to_owned(),
                source,
            });
        }
        let mut facts = Facts::default();
        let probes = read_below(&root, PROBES, LONGEST_FILE);
        if let Some(text) = &probes {
            facts.probes = parse_probes(text);
        }
        facts.read_files(&root);
        if probes.is_none() && facts.files.is_empty() {
            return Err(FactsError::NoFacts {
                path: dir.to_owned(),
            });
        }
        Ok(facts)
    }

    /// A host from the text of its `probes` and of its files, each by its path below the root.
    /// Paths that are not plain relative ones are dropped.
    pub fn from_texts<'a>(
        probes: &str,
        files: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Facts {
        let files = files
            .into_iter()
            .filter(|(path, _)| is_plain_relative(path))
            .map(|(path, text)| (path.to_owned(), text.to_owned()))
            .collect();
        Facts {
            probes: parse_probes(probes),
            files,
            no_table: false,
        }
    }

    /// Writes these facts as a recorded host. Serial numbers are zeroed.
    pub fn record(&self, dir: &Path) -> Result<(), FactsError> {
        let probes: Vec<String> = self
            .probes
            .iter()
            .map(|(key, value)| format!("{key}={}\n", one_line(value)))
            .collect();
        write_below(dir, PROBES, &probes.concat())?;
        for (path, text) in &self.files {
            if path == "proc/cpuinfo" {
                write_below(dir, path, &without_serial(text))?;
            } else {
                write_below(dir, path, text)?;
            }
        }
        Ok(())
    }

    /// A probe's value, if it was observed.
    pub(crate) fn probe(&self, key: &str) -> Option<&str> {
        self.probes.get(key).map(String::as_str)
    }

    /// A file's text, if it was observed.
    pub(crate) fn file(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }

    /// The registered interpreters: name and text. `None` if the table was not observed.
    pub(crate) fn handlers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().filter_map(|(path, text)| {
            let name = path.strip_prefix(BINFMT)?.strip_prefix('/')?;
            (name != "status" && name != "register").then_some((name, text.as_str()))
        })
    }

    /// Whether the kernel's table of interpreters is switched on, as far as observed.
    pub(crate) fn handlers_enabled(&self) -> bool {
        self.file("proc/sys/fs/binfmt_misc/status")
            .is_none_or(|status| status.trim() != "disabled")
    }

    /// Whether it is known which interpreters are registered. The file `status` is always there.
    pub(crate) fn handlers_observed(&self) -> bool {
        self.no_table || self.files.keys().any(|path| path.starts_with(BINFMT))
    }

    fn read_files(&mut self, root: &Path) {
        for (path, limit) in FILES {
            if let Some(text) = read_below(root, path, *limit) {
                self.files.insert((*path).to_owned(), text);
            }
        }
        self.read_handlers(root);
        self.read_boot_parameters(root);
        let release = self
            .probe("uname_release")
            .filter(|release| !release.contains('/'));
        if let Some(config) = release
            .and_then(|release| read_below(root, &format!("boot/config-{release}"), LONGEST_FILE))
        {
            for (option, probe) in KERNEL_OPTIONS {
                if let Some(value) = kernel_option(&config, option) {
                    self.probes
                        .entry((*probe).to_owned())
                        .or_insert_with(|| value.to_owned());
                }
            }
        }
    }

    fn read_boot_parameters(&mut self, root: &Path) {
        let Some(command_line) = read_below(root, "proc/cmdline", LONGEST_FILE) else {
            return;
        };
        for (parameter, probe) in BOOT_PARAMETERS {
            if let Some(value) = boot_parameter(&command_line, parameter) {
                self.probes
                    .entry((*probe).to_owned())
                    .or_insert_with(|| value.to_owned());
            }
        }
    }

    fn read_handlers(&mut self, root: &Path) {
        if let Some(directory) = resolve(root, BINFMT) {
            self.read_table(&directory, |path, limit| {
                let name = path.strip_prefix(root).ok()?;
                read_below(root, name.to_str()?, limit)
            });
        }
    }

    fn read_table(&mut self, directory: &Path, read: impl Fn(&Path, u64) -> Option<String>) {
        let Ok(entries) = fs::read_dir(directory) else {
            return;
        };
        for entry in entries.flatten().take(MOST_HANDLERS) {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name != "register"
                && let Some(text) = read(&directory.join(&name), LONGEST_HANDLER)
            {
                self.files.insert(format!("{BINFMT}/{name}"), text);
            }
        }
    }
}

/// The real path of `path` below `root`, unless it is missing or leads out of `root`.
fn resolve(root: &Path, path: &str) -> Option<PathBuf> {
    let real = fs::canonicalize(root.join(path)).ok()?;
    real.starts_with(root).then_some(real)
}

/// Whether the kernel knows of a table of interpreters, by `/proc/filesystems`.
fn has_table(filesystems: &str) -> bool {
    let names = filesystems
        .lines()
        .filter_map(|line| line.split_whitespace().last());
    names.into_iter().any(|name| name == "binfmt_misc")
}

/// A regular file's text, up to a limit. `None` for whatever cannot be read.
fn read_below(root: &Path, path: &str, limit: u64) -> Option<String> {
    read(&resolve(root, path)?, limit)
}

fn read(path: &Path, limit: u64) -> Option<String> {
    // A pipe or a device would block.
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    fs::File::open(path)
        .ok()?
        .take(limit)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// A CPU description without the processor in which it was cut off, if it was.
fn whole_processors(mut text: String) -> String {
    if text.len() as u64 >= QUICK_CPUINFO
        && let Some(end) = text.rfind("\n\n")
    {
        text.truncate(end + 1);
    }
    text
}

fn write_below(dir: &Path, path: &str, text: &str) -> Result<(), FactsError> {
    let path = dir.join(path);
    let failed = |source| FactsError::Write {
        path: path.clone(),
        source,
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    fs::write(&path, text).map_err(failed)
}

fn is_plain_relative(path: &str) -> bool {
    !path.is_empty()
        && Path::new(path)
            .components()
            .all(|component| matches!(component, Component::Normal(_)))
}

/// `key=value` lines; ` #` starts a comment.
fn parse_probes(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .filter_map(|line| {
            let (key, value) = line.split_once('=')?;
            let end = value.find(" #").into_iter().chain(value.find("\t#")).min();
            let value = end.and_then(|end| value.get(..end)).unwrap_or(value);
            // A comment right after `=` leaves an empty value, which is a fact.
            let value = if value.starts_with('#') { "" } else { value };
            Some((key.trim().to_owned(), value.trim().to_owned()))
        })
        .filter(|(key, _)| !key.is_empty())
        .collect()
}

fn one_line(value: &str) -> String {
    value
        .replace(|c: char| c.is_control(), " ")
        .replace(" #", " ")
}

/// Hides the board's serial number, keeping its width.
fn without_serial(cpuinfo: &str) -> String {
    let mut text = String::with_capacity(cpuinfo.len());
    for line in cpuinfo.split_inclusive('\n') {
        match line.split_once(':') {
            Some((key, value)) if key.trim().eq_ignore_ascii_case("serial") => {
                text.push_str(key);
                text.push(':');
                text.extend(
                    value
                        .chars()
                        .map(|c| if c.is_ascii_alphanumeric() { '0' } else { c }),
                );
            }
            _ => text.push_str(line),
        }
    }
    text
}

/// The last value of a parameter of the kernel's command line.
fn boot_parameter<'a>(command_line: &'a str, name: &str) -> Option<&'a str> {
    command_line
        .split_ascii_whitespace()
        .rev()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// `y`, `m` or `n` of an option in the text of a kernel configuration.
fn kernel_option<'a>(config: &'a str, name: &str) -> Option<&'a str> {
    config.lines().find_map(|line| {
        if let Some(value) = line
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('='))
        {
            return Some(value.trim());
        }
        let unset = line.strip_prefix("# ")?.strip_prefix(name)?;
        (unset == " is not set").then_some("n")
    })
}

#[cfg(test)]
mod tests;
