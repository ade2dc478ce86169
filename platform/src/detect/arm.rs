//! 32-bit Arm: the variant of a host, and the 32-bit mode of 64-bit cores.

use super::Findings;
use super::kernel::Base;
use crate::cpu::{Aarch32, CpuInfo, aarch32_of, is_armv6_core};
use crate::error::DetectError;
use crate::facts::Facts;

/// The file that lists the CPUs with a 32-bit mode, where only some have it.
const MASK: &str = "sys/devices/system/cpu/aarch32_el0";

/// Files of a kernel with support for old 32-bit instructions. They say nothing of the cores.
const DEPRECATED: &[&str] = &[
    "proc/sys/abi/swp",
    "proc/sys/abi/cp15_barrier",
    "proc/sys/abi/setend",
];

/// The variant of a 32-bit Arm userland, by the most reliable source there is. The number under
/// `CPU architecture` comes last: it describes memory management, and cores of the sixth generation say 7.
pub(super) fn variant(
    facts: &Facts,
    cpu: &CpuInfo,
    base: &Base,
    findings: &mut Findings,
) -> Result<String, DetectError> {
    if base.kernel == "arm64" && !base.emulated {
        findings.note("variant", "v8", "a 64-bit Arm kernel");
        return Ok("v8".to_owned());
    }
    let uname = facts
        .probe("uname_machine")
        .and_then(|machine| leading_number(machine.strip_prefix("armv")?));
    let platform = facts
        .probe("AT_PLATFORM")
        .and_then(|platform| leading_number(platform.strip_prefix('v')?));
    let described = !base.foreign_cpu;
    let name = cpu.arm_name_version().filter(|_| described);
    let part = (described && cpu.arm_cores().into_iter().any(is_armv6_core)).then_some(6);
    let number = cpu
        .first("cpu architecture")
        .filter(|_| described)
        .and_then(leading_number);
    let (version, source) = [
        (name, "the processor's name in proc/cpuinfo"),
        (uname, "uname"),
        (platform, "AT_PLATFORM"),
        (part, "CPU part in proc/cpuinfo"),
        (number, "CPU architecture in proc/cpuinfo"),
    ]
    .into_iter()
    .find_map(|(version, source)| {
        Some((version.filter(|version| (3..=8).contains(version))?, source))
    })
    .ok_or(DetectError::NoArmVariant)?;
    let variant = format!("v{version}");
    findings.note("variant", &variant, source);
    if let Some(number) = number.filter(|number| *number != version) {
        findings.warn(format!(
            "the CPU calls its architecture {number}, but it is {variant}: engines that believe the number pull images that crash"
        ));
    }
    if let Some(uname) = uname.filter(|uname| *uname != version) {
        findings.warn(format!("uname says v{uname}, but this host is {variant}"));
    }
    Ok(variant)
}

fn leading_number(text: &str) -> Option<u8> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.get(..end)?.parse().ok()
}

/// Does some core run 32-bit Arm user code under this kernel? `None`: nothing tells.
pub(super) fn aarch32(
    facts: &Facts,
    cpu: &CpuInfo,
    base: &Base,
    findings: &mut Findings,
) -> Option<bool> {
    let (answer, value, source) = match base.kernel.as_str() {
        "arm" if base.emulated => return None,
        "arm" => (Some(true), "yes", "a 32-bit Arm kernel"),
        "arm64" => observed(facts, base),
        _ => (Some(false), "no", "not an Arm host"),
    };
    findings.note("aarch32_el0", value, source);
    if base.kernel == "arm64" {
        for path in DEPRECATED {
            if facts.file(path).is_some() {
                findings.note("kernel_compat", "compiled in", path);
            }
        }
        cross_check(cpu, answer, findings);
    }
    answer
}

fn observed(facts: &Facts, base: &Base) -> (Option<bool>, &'static str, &'static str) {
    let personality = facts.probe("personality_per_linux32").or_else(|| {
        match facts.probe("lscpu_op_modes")?.trim() {
            "64-bit" => Some("einval"),
            modes if modes.contains("32-bit") => Some("ok"),
            _ => None,
        }
    });
    let machine = facts.probe("uname_machine_under_linux32");
    let yes = (Some(true), "yes");
    let no = (Some(false), "no");
    let ((answer, value), source) = if personality == Some("einval") {
        (no, "personality(PER_LINUX32): the cores have no such mode")
    } else if machine.is_some_and(|machine| machine.starts_with("arm")) {
        (yes, "uname under personality(PER_LINUX32)")
    } else if machine.is_some() {
        (
            no,
            "uname under personality(PER_LINUX32): a kernel without CONFIG_COMPAT",
        )
    } else if facts.probe("kernel_config_compat") == Some("n") {
        (no, "CONFIG_COMPAT")
    } else if facts.probe("features_under_linux32") == Some("") {
        (
            no,
            "no Features under personality(PER_LINUX32): a kernel without CONFIG_COMPAT",
        )
    } else if personality == Some("ok") {
        (
            yes,
            "personality(PER_LINUX32), and nothing speaks against it",
        )
    } else if base.userland == "arm" && !base.emulated {
        (yes, "a 32-bit Arm userland runs here")
    } else if mask(facts).is_some() {
        (yes, MASK)
    } else if facts
        .probe("uname_machine")
        .is_some_and(|machine| machine.starts_with("armv"))
    {
        (yes, "uname under the 32-bit personality")
    } else {
        ((None, "unknown"), "not observed")
    };
    (answer, value, source)
}

/// What the cores' documentation says, as a hint and to notice contradictions.
fn cross_check(cpu: &CpuInfo, answer: Option<bool>, findings: &mut Findings) {
    let known: Vec<Aarch32> = cpu.arm_cores().into_iter().filter_map(aarch32_of).collect();
    let has = known.contains(&Aarch32::Yes);
    let lacks = known.contains(&Aarch32::No);
    let (value, warning) = match (has, lacks, answer) {
        (false, false, _) => return,
        (true, true, Some(false)) => (
            "some cores have it",
            Some(
                "some cores have a 32-bit Arm mode, but the kernel uses it only when booted with allow_mismatched_32bit_el0",
            ),
        ),
        (true, true, _) => ("some cores have it", None),
        (true, false, Some(false)) => (
            "the cores have it",
            Some(
                "the cores have a 32-bit Arm mode, but this kernel or its hypervisor does not offer it",
            ),
        ),
        (true, false, _) => ("the cores have it", None),
        (false, true, Some(true)) => (
            "the cores lack it",
            Some("32-bit Arm was observed on cores that are documented without it"),
        ),
        (false, true, _) => ("the cores lack it", None),
    };
    findings.note(
        "aarch32_el0_hint",
        value,
        "CPU part in proc/cpuinfo: a hint, not a proof",
    );
    if let Some(warning) = warning {
        findings.warn(warning);
    }
}

fn mask(facts: &Facts) -> Option<&str> {
    facts
        .file(MASK)
        .map(str::trim)
        .filter(|mask| !mask.is_empty())
}

/// The CPUs with a 32-bit mode, where the kernel lists them.
pub(super) fn aarch32_cpus(
    facts: &Facts,
    base: &Base,
    aarch32: Option<bool>,
    findings: &mut Findings,
) -> Option<String> {
    if base.kernel != "arm64" || aarch32 != Some(true) {
        return None;
    }
    let cpus = mask(facts)?;
    let cpus: String = cpus
        .chars()
        .filter(|c| c.is_ascii_digit() || matches!(c, ',' | '-'))
        .take(1024)
        .collect();
    findings.note("aarch32_cpus", &cpus, MASK);
    findings.warn(format!(
        "only the CPUs {cpus} run 32-bit Arm: such programs are confined to them"
    ));
    Some(cpus)
}
