//! containerd's acceptable platforms for a host, best first; and what an engine will look up.

use crate::host::{Host, How};
use crate::platform::Platform;

/// The 32-bit tail of every arm64 host, and the descent of 32-bit Arm.
const ARM: &[&str] = &["v8", "v7", "v6", "v5"];
/// The descent of amd64; its baseline is the empty variant.
const AMD64: &[&str] = &["v4", "v3", "v2", ""];
/// For each Armv9.N, the newest Armv8.N it contains.
const ARM64_V9: &[(&str, u8)] = &[
    ("v9", 5),
    ("v9.1", 6),
    ("v9.2", 7),
    ("v9.3", 8),
    ("v9.4", 9),
    ("v9.5", 9),
    ("v9.6", 9),
    ("v9.7", 9),
];

/// What containerd's default matcher accepts on a host of this platform, best first.
///
/// Empty for an arm64 variant that containerd does not know: it matches nothing there.
/// A system that no container engine runs on (`zephyr`) accepts itself only.
pub fn vector(platform: &Platform) -> Vec<Platform> {
    match platform.os() {
        "linux" => by_architecture(platform),
        "windows" if platform.architecture() == "amd64" => by_architecture(platform),
        "darwin" | "freebsd" => vec![platform.clone(), platform.on("linux")],
        _ => vec![platform.clone()],
    }
}

fn by_architecture(platform: &Platform) -> Vec<Platform> {
    let variant = platform.variant();
    let from = |list: &[&str], architecture: &str| -> Option<Vec<Platform>> {
        let at = list.iter().position(|member| *member == variant)?;
        Some(
            list.iter()
                .skip(at)
                .map(|member| platform.with(architecture, member))
                .collect(),
        )
    };
    match platform.architecture() {
        "amd64" => match from(AMD64, "amd64") {
            Some(mut list) => {
                list.push(platform.with("386", ""));
                list
            }
            None => vec![platform.clone()],
        },
        "arm" => from(ARM, "arm").unwrap_or_else(|| vec![platform.clone()]),
        "arm64" => {
            let Some(versions) = arm64_versions(variant) else {
                return Vec::new();
            };
            let mut list: Vec<_> = versions
                .iter()
                .map(|version| platform.with("arm64", version))
                .collect();
            list.extend(ARM.iter().map(|member| platform.with("arm", member)));
            list
        }
        _ => vec![platform.clone()],
    }
}

/// The arm64 variants that a variant contains, newest first.
fn arm64_versions(variant: &str) -> Option<Vec<String>> {
    let mut versions = Vec::new();
    let newest_v8 = if let Some(at) = ARM64_V9.iter().position(|(name, _)| *name == variant) {
        versions.extend(
            ARM64_V9
                .iter()
                .take(at + 1)
                .rev()
                .map(|(name, _)| (*name).to_owned()),
        );
        ARM64_V9.get(at).map(|(_, v8)| *v8)?
    } else if variant.is_empty() {
        0
    } else {
        let minor = variant.strip_prefix("v8.")?;
        (1..=9).find(|candidate: &u8| candidate.to_string() == minor)?
    };
    versions.extend((1..=newest_v8).rev().map(|minor| format!("v8.{minor}")));
    versions.push(String::new());
    Some(versions)
}

/// A platform that the engine would look up, though this host cannot run it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Removed {
    /// The platform.
    pub platform: Platform,
    /// Why this host cannot run it.
    pub reason: String,
}

/// What the reader of the store will look up and the host can run, best first.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Selects {
    /// The list, best first.
    pub platforms: Vec<Platform>,
    /// What the engine would accept besides, and why it was left out.
    pub removed: Vec<Removed>,
}

/// The default vector of the platform that an engine reports, less what the host disproves.
pub fn selects_for_engine(engine: &Platform, host: &Host) -> Selects {
    let mut selects = Selects {
        platforms: Vec::new(),
        removed: Vec::new(),
    };
    for platform in vector(engine) {
        match host.disproves(&platform) {
            None => selects.platforms.push(platform),
            Some(reason) => selects.removed.push(Removed { platform, reason }),
        }
    }
    selects
}

/// Without an engine: what the host runs on its cores.
pub fn selects_without_engine(host: &Host) -> Selects {
    let platforms = host
        .runs
        .iter()
        .filter(|runs| runs.how != How::Emulated)
        .map(|runs| runs.platform.clone());
    Selects {
        platforms: platforms.collect(),
        removed: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
