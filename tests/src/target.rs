//! The files of `dist/`, for every target that they are shipped for, on the least able CPU
//! of each: natively where this machine is of that architecture, else under qemu-user.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::edgepull::Edgepull;
use crate::tools::{in_path, refuse_stale};

/// A line of `cross/targets`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Rust's name.
    pub triple: String,
    /// The platform, as edgepull prints it.
    pub platform: String,
    emulator: String,
    cpu: String,
}

impl Target {
    /// Every target.
    pub fn all() -> Vec<Self> {
        let path = workspace().join("cross/targets");
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        text.lines()
            .filter_map(|line| {
                let line = line.split('#').next()?;
                let mut words = line.split_whitespace().map(str::to_owned);
                let (triple, platform) = (words.next()?, words.next()?);
                let mut last = words.skip(3);
                Some(Self {
                    triple,
                    platform,
                    emulator: last.next().expect("an emulator"),
                    cpu: last.next().expect("a CPU"),
                })
            })
            .collect()
    }

    /// The targets for Arm.
    pub fn arm() -> Vec<Self> {
        let mut all = Self::all();
        all.retain(|target| target.platform.starts_with("linux/arm"));
        assert_eq!(all.len(), 3, "cross/targets");
        all
    }

    /// The target for this machine.
    #[track_caller]
    pub fn here() -> Self {
        let found = Self::all()
            .into_iter()
            .find(|target| target.triple.starts_with(env::consts::ARCH));
        found.expect("this machine's architecture is in cross/targets")
    }

    /// The target of that name.
    pub fn named(triple: &str) -> Self {
        let found = Self::all().into_iter().find(|t| t.triple == triple);
        found.unwrap_or_else(|| panic!("cross/targets has no {triple}"))
    }

    /// The file that is shipped.
    #[track_caller]
    pub fn file(&self) -> PathBuf {
        self.program("edgepull")
    }

    /// The runtime shim that is shipped.
    #[track_caller]
    pub fn shim(&self) -> PathBuf {
        self.program("containerd-shim-edgepull-v1")
    }

    #[track_caller]
    fn program(&self, name: &str) -> PathBuf {
        let dist =
            env::var_os("EDGEPULL_DIST").map_or_else(|| workspace().join("dist"), PathBuf::from);
        let file = dist.join(&self.triple).join(name);
        assert!(
            file.is_file(),
            "{} is missing: run `make dist` first (or name its place in EDGEPULL_DIST)",
            file.display()
        );
        let rules = workspace()
            .join("build/cross/target")
            .join(&self.triple)
            .join(format!("release/{name}.d"));
        refuse_stale(&file, &rules, "make dist");
        file
    }

    /// What runs the file: nothing, or the emulator with the CPU of this target.
    #[track_caller]
    pub fn runner(&self) -> Vec<PathBuf> {
        if self.emulator == Self::here().emulator {
            return Vec::new();
        }
        let names = [format!("{}-static", self.emulator), self.emulator.clone()];
        let emulator = names.iter().find_map(|name| in_path(name));
        let emulator = emulator
            .unwrap_or_else(|| panic!("{} is missing: run tests/setup first", self.emulator));
        vec![emulator, "-cpu".into(), self.cpu.clone().into()]
    }

    /// The shipped file on this target's CPU, as a plain command.
    #[track_caller]
    pub fn command(&self) -> Command {
        let mut words = self.runner();
        words.push(self.file());
        let mut command = Command::new(words.remove(0));
        command.args(words);
        command
    }

    /// The same with `ARGS…` and nothing of the caller's own settings.
    #[track_caller]
    pub fn edgepull<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Edgepull {
        let mut words = self.runner();
        words.push(self.file());
        let program = words.remove(0);
        Edgepull::of(program, words).args(args)
    }
}

fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
