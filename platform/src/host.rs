//! The truth about a host, as values.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::binfmt::Handler;
use crate::platform::Platform;

/// How a host runs a platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// By the core, in the mode of the kernel and its userland.
    Native,
    /// By the core, in its 32-bit mode.
    Compat32,
    /// By a registered emulator.
    Emulated,
}

/// One platform that a host runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Runs {
    /// What runs.
    pub platform: Platform,
    /// In which way.
    pub how: How,
    /// The emulator, where there is one.
    pub interpreter: Option<String>,
}

/// One fact, its value, and where it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// What it is about.
    pub fact: String,
    /// What was found.
    pub value: String,
    /// The file, the probe or the rule.
    pub source: String,
}

/// The truth about a host. Serialised, it is the document of `detect` without `selects` and
/// `engine`, which only an engine can tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Always [`Host::SCHEMA`].
    pub schema: &'static str,
    /// The best platform of the userland, in normal form.
    pub platform: Platform,
    /// `linux`.
    pub os: String,
    /// The userland's architecture by its OCI name.
    pub architecture: String,
    /// The full fact: `v8`, `v7`, `v1` to `v4`, or empty.
    pub variant: String,
    /// What the userland is built for, by its OCI name.
    pub userland: String,
    /// What the kernel is built for, by its OCI name.
    pub kernel: String,
    /// The board or machine, where something names it.
    pub machine: Option<String>,
    /// The running kernel's page size.
    pub page_size: Option<u64>,
    /// Some core runs 32-bit Arm user code; false off Arm.
    pub aarch32_el0: Option<bool>,
    /// `v1` to `v4` on amd64.
    pub cpu_level: Option<String>,
    /// What this host runs, best first.
    pub runs: Vec<Runs>,
    /// What the kernel executes besides, though not in this userland's containers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernel_also_execs: Vec<Platform>,
    /// The CPUs with a 32-bit mode, where only some have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aarch32_cpus: Option<String>,
    /// The userland itself runs under an emulator.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub emulated: bool,
    /// Whether an amd64 kernel starts 32-bit x86 programs; null when only assumed, or off amd64.
    #[serde(skip)]
    pub ia32: Option<bool>,
    /// What every core has, by the kernel's names (`neon`, `atomics`, `sse2`); null when not observed,
    /// or where another machine's CPU is described.
    #[serde(skip)]
    pub features: Option<BTreeSet<String>>,
    /// Whether the kernel's table of handlers was seen, or is known not to exist. Where it was not,
    /// it counts as empty.
    #[serde(skip)]
    pub handlers_observed: bool,
    /// The enabled handlers that decide by a file's first bytes.
    #[serde(skip)]
    pub(crate) handlers: Vec<Handler>,
    /// The names of enabled handlers that decide by a file's name.
    #[serde(skip)]
    pub(crate) by_extension: Vec<String>,
    /// What the above rests on.
    pub evidence: Vec<Evidence>,
    /// What its owner should know, one sentence each.
    pub warnings: Vec<String>,
}

impl Host {
    /// The name of the document's form.
    pub const SCHEMA: &'static str = "edgepull.host/1";

    /// Whether every core has a feature, by the kernel's name of it. `None`: not observed.
    pub fn has_feature(&self, name: &str) -> Option<bool> {
        Some(self.features.as_ref()?.contains(name))
    }

    /// What this host runs on its cores, best first.
    pub fn runs_natively(&self) -> impl Iterator<Item = &Runs> {
        self.runs.iter().filter(|runs| runs.how != How::Emulated)
    }

    /// How this host runs `platform`, its version and features aside.
    pub fn how(&self, platform: &Platform) -> Option<&Runs> {
        self.runs
            .iter()
            .find(|runs| runs.platform.base() == platform.base())
    }

    /// Why `platform` cannot run on this host's cores, where that is proven. `None` is no proof.
    pub fn disproves(&self, platform: &Platform) -> Option<String> {
        if self
            .runs_natively()
            .any(|runs| runs.platform.base() == platform.base())
            || self
                .kernel_also_execs
                .iter()
                .any(|execs| execs.base() == platform.base())
        {
            return None;
        }
        if platform.os() != self.os {
            return Some(format!("this host runs {}, not {}", self.os, platform.os()));
        }
        match (self.kernel.as_str(), platform.architecture()) {
            ("arm64", "arm") => match self.aarch32_el0 {
                Some(false) => Some("this host has no 32-bit Arm mode".to_owned()),
                Some(true) if !matches!(platform.variant(), "v5" | "v6" | "v7" | "v8") => {
                    Some(format!(
                        "32-bit Arm {} is not known to this host",
                        platform.variant()
                    ))
                }
                _ => None,
            },
            ("amd64", "386") => match self.ia32 {
                Some(false) => Some("this kernel starts no 32-bit x86 programs".to_owned()),
                _ => None,
            },
            ("amd64", "amd64") => self.cpu_level.as_ref().map(|level| {
                format!(
                    "this CPU is of level {level}, which is below {}",
                    platform.variant()
                )
            }),
            ("arm", "arm") => Some(format!(
                "this host is 32-bit Arm {}, which is below {}",
                self.variant,
                platform.variant()
            )),
            ("arm64", "arm64") => None,
            (kernel, architecture) if kernel == architecture => None,
            (kernel, architecture) => Some(format!(
                "this host's cores are {kernel}, not {architecture}"
            )),
        }
    }
}
