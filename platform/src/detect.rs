//! Facts in, host out. Pure: the same facts give the same host anywhere.

use crate::binfmt;
use crate::cpu::CpuInfo;
use crate::error::DetectError;
use crate::facts::Facts;
use crate::host::{Evidence, Host, How, Runs};
use crate::order::vector;
use crate::platform::{Platform, printable};

mod arm;
mod emulation;
mod kernel;
mod x86;

/// What was found, with its sources, as it is found.
#[derive(Debug, Default)]
struct Findings {
    evidence: Vec<Evidence>,
    warnings: Vec<String>,
}

impl Findings {
    fn note(&mut self, fact: &str, value: impl AsRef<str>, source: &str) {
        self.evidence.push(Evidence {
            fact: fact.to_owned(),
            value: printable(value.as_ref()),
            source: source.to_owned(),
        });
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }
}

/// Works out the truth about a host. What its facts do not tell is null or an error, never a guess.
pub fn detect(facts: &Facts) -> Result<Host, DetectError> {
    let mut findings = Findings::default();
    let cpu = CpuInfo::parse(facts.file("proc/cpuinfo").unwrap_or_default());
    let os = system(facts, &mut findings)?;
    let base = kernel::base(facts, &cpu, &mut findings)?;
    let aarch32 = arm::aarch32(facts, &cpu, &base, &mut findings);
    let emulated = base.emulated
        || (base.kernel == "arm64" && base.userland == "arm" && aarch32 == Some(false));
    let aarch32_cpus = arm::aarch32_cpus(facts, &base, aarch32, &mut findings);
    let cpu_level = (base.kernel == "amd64" || base.userland == "amd64" && !emulated)
        .then(|| x86::level(&cpu, &mut findings))
        .flatten();
    let ia32 = if base.kernel == "amd64" {
        x86::ia32(facts, &mut findings)
    } else {
        None
    };
    let variant = match base.userland.as_str() {
        "arm64" => "v8".to_owned(),
        "arm" => arm::variant(facts, &cpu, &base, &mut findings)?,
        "amd64" if !emulated => cpu_level.unwrap_or_default().to_owned(),
        _ => String::new(),
    };
    let platform = Platform::linux(&base.userland, &variant);
    let mut host = Host {
        schema: Host::SCHEMA,
        os,
        architecture: base.userland.clone(),
        variant,
        userland: base.userland.clone(),
        kernel: base.kernel.clone(),
        machine: machine(facts, &cpu, &mut findings),
        page_size: page_size(facts, &base.kernel, &mut findings),
        aarch32_el0: aarch32,
        cpu_level: cpu_level.map(ToOwned::to_owned),
        runs: Vec::new(),
        kernel_also_execs: Vec::new(),
        aarch32_cpus,
        emulated,
        ia32,
        features: cpu.features().filter(|_| !emulated && !base.foreign_cpu),
        platform,
        handlers_observed: facts.handlers_observed(),
        handlers: Vec::new(),
        by_extension: Vec::new(),
        evidence: Vec::new(),
        warnings: Vec::new(),
    };
    host.runs = native(&host);
    host.kernel_also_execs = also_execs(&host);
    emulation::add(facts, &mut host, &mut findings);
    general_warnings(&host, &mut findings);
    host.evidence = findings.evidence;
    host.warnings = findings.warnings;
    Ok(host)
}

fn system(facts: &Facts, findings: &mut Findings) -> Result<String, DetectError> {
    match facts.probe("uname_sysname") {
        Some(name) if name.eq_ignore_ascii_case("linux") => findings.note("os", "linux", "uname"),
        Some(name) => return Err(DetectError::UnsupportedSystem(printable(name))),
        None => findings.note("os", "linux", "assumed: not recorded"),
    }
    if let Some(release) = facts.probe("uname_release") {
        findings.note("kernel_release", release, "uname");
    }
    Ok("linux".to_owned())
}

/// What the cores run for this userland, best first.
fn native(host: &Host) -> Vec<Runs> {
    let compat = |platform: &Platform| match (host.kernel.as_str(), platform.architecture()) {
        ("arm64", "arm") | ("amd64", "386") => How::Compat32,
        _ => How::Native,
    };
    vector(&host.platform)
        .into_iter()
        .filter(
            |platform| match (host.userland.as_str(), platform.architecture()) {
                ("arm64", "arm") => host.aarch32_el0 == Some(true),
                ("amd64", "386") => host.ia32 != Some(false),
                _ => true,
            },
        )
        .map(|platform| Runs {
            how: compat(&platform),
            platform,
            interpreter: None,
        })
        .collect()
}

/// What the kernel executes beyond its userland's architecture.
fn also_execs(host: &Host) -> Vec<Platform> {
    match (host.kernel.as_str(), host.userland.as_str()) {
        ("arm64", "arm") => vec![Platform::linux("arm64", "")],
        ("amd64", userland) if userland != "amd64" => {
            let level = host.cpu_level.as_deref().unwrap_or_default();
            let mut list = vector(&Platform::linux("amd64", level));
            list.retain(|platform| platform.architecture() != "386");
            list
        }
        _ => Vec::new(),
    }
}

/// Names that firmware carries when nobody filled them in.
const UNNAMED: &[&str] = &[
    "",
    "default string",
    "none",
    "not applicable",
    "not specified",
    "system product name",
    "to be filled by o.e.m.",
    "unknown",
];

fn machine(facts: &Facts, cpu: &CpuInfo, findings: &mut Findings) -> Option<String> {
    let files = [
        "proc/device-tree/model",
        "sys/firmware/devicetree/base/model",
        "sys/class/dmi/id/product_name",
    ];
    let tidy = |text: &str| printable(text.trim_matches(|c: char| c.is_whitespace() || c == '\0'));
    let named = |text: &String| !UNNAMED.contains(&text.to_ascii_lowercase().as_str());
    for path in files {
        if let Some(name) = facts.file(path).map(tidy).filter(named) {
            findings.note("machine", &name, path);
            return Some(name);
        }
    }
    // On x86 the key `model` is a number.
    let name = ["model", "machine"]
        .into_iter()
        .find_map(|key| cpu.first(key))
        .map(tidy);
    let name = name
        .filter(named)
        .filter(|name| name.parse::<u32>().is_err())?;
    findings.note("machine", &name, "proc/cpuinfo");
    Some(name)
}

fn page_size(facts: &Facts, kernel: &str, findings: &mut Findings) -> Option<u64> {
    let told = facts.probe("AT_PAGESZ").and_then(|text| {
        let size = text.parse::<u64>().ok()?;
        (size.is_power_of_two() && (4096..=1 << 20).contains(&size)).then_some(size)
    });
    if let Some(size) = told {
        findings.note("page_size", size.to_string(), "AT_PAGESZ");
        return Some(size);
    }
    // A 64-bit Arm kernel is built for one size, and its configuration says which.
    let built = [("4k", 4096), ("16k", 16384), ("64k", 65536)]
        .into_iter()
        .filter(|_| kernel == "arm64")
        .find(|(name, _)| facts.probe(&format!("kernel_config_arm64_{name}_pages")) == Some("y"));
    let (name, size) = built?;
    findings.note(
        "page_size",
        size.to_string(),
        &format!("CONFIG_ARM64_{}_PAGES", name.to_ascii_uppercase()),
    );
    Some(size)
}

fn general_warnings(host: &Host, findings: &mut Findings) {
    if host.emulated {
        findings.warn(
            "this userland runs under an emulator: nothing here runs on the cores themselves",
        );
    } else if host.kernel != host.userland {
        findings.warn(format!(
            "the kernel is {} but the userland is {}: a 32-bit engine selects 32-bit images",
            host.kernel, host.userland
        ));
    }
    if let Some(size) = host.page_size.filter(|size| *size > 4096) {
        let pages = size / 1024;
        if host
            .runs
            .iter()
            .any(|runs| runs.platform.architecture() == "arm")
        {
            findings.warn(format!(
                "pages are {pages} KiB: most 32-bit Arm programs are laid out for 4 KiB pages and crash at start"
            ));
        } else {
            findings.warn(format!(
                "pages are {pages} KiB: programs laid out for 4 KiB pages crash at start"
            ));
        }
    }
}

/// All architectures that a handler may stand for.
fn handled() -> impl Iterator<Item = &'static str> {
    binfmt::architectures()
}

#[cfg(test)]
mod tests;
