//! Which architecture the kernel has, and which one the userland was built for.

use super::Findings;
use crate::cpu::{CpuInfo, Shape};
use crate::error::DetectError;
use crate::facts::Facts;
use crate::normalize::lenient_architecture;
use crate::platform::printable;

/// The two architectures that everything else rests on, by their OCI names.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) kernel: String,
    pub(super) userland: String,
    /// The cores cannot be running this userland by themselves.
    pub(super) emulated: bool,
    /// The CPU description is the emulator's host's.
    pub(super) foreign_cpu: bool,
}

pub(super) fn base(
    facts: &Facts,
    cpu: &CpuInfo,
    findings: &mut Findings,
) -> Result<Base, DetectError> {
    let claimed = claimed(facts, cpu, findings)?;
    let cores = by_shape(cpu);
    let foreign_cpu = cores.is_some_and(|cores| family(cores) != family(&claimed));
    let kernel = match cores {
        Some(cores) if foreign_cpu => {
            findings.note(
                "kernel",
                cores,
                "proc/cpuinfo: uname names another architecture, as under an emulator",
            );
            cores.to_owned()
        }
        _ => claimed.clone(),
    };
    let userland = userland(facts, &claimed, findings);
    if let Some(emulator) = facts.probe("emulator") {
        findings.note("emulator", emulator, "recorded");
    }
    let emulated =
        foreign_cpu || facts.probe("emulator").is_some() || !executes(&kernel, &userland);
    Ok(Base {
        kernel,
        userland,
        emulated,
        foreign_cpu,
    })
}

/// Does a kernel start programs of this architecture on the cores?
fn executes(kernel: &str, userland: &str) -> bool {
    kernel == userland || matches!((kernel, userland), ("arm64", "arm") | ("amd64", "386"))
}

fn family(architecture: &str) -> &str {
    match architecture {
        "amd64" => "386",
        "arm64" => "arm",
        "ppc64le" => "ppc64",
        "mips64le" => "mips64",
        other => other,
    }
}

/// What the kernel says it is: by `uname`, else by the form of the CPU description.
fn claimed(facts: &Facts, cpu: &CpuInfo, findings: &mut Findings) -> Result<String, DetectError> {
    let Some(machine) = facts
        .probe("uname_machine")
        .filter(|machine| !machine.is_empty())
    else {
        let architecture = by_shape(cpu).ok_or(DetectError::NoArchitecture)?;
        findings.note("kernel", architecture, "the form of proc/cpuinfo");
        return Ok(architecture.to_owned());
    };
    findings.note("uname_machine", machine, "uname");
    let unknown = || DetectError::UnknownMachine(printable(machine));
    let architecture = match machine {
        // Only a 64-bit kernel says armv8l, to a program with the 32-bit personality; some can be
        // told to say armv7l instead, but their CPU description gives them away.
        "aarch64" | "arm64" | "armv8l" => "arm64",
        _ if machine.starts_with("armv") && machine.ends_with('l') => {
            if cpu.has_arm64_features() || cpu.arm_name_version() == Some(8) {
                findings.note("kernel", "arm64", "proc/cpuinfo describes a 64-bit kernel");
                "arm64"
            } else {
                "arm"
            }
        }
        // uname does not tell the byte order.
        "mips64" => match facts.probe("userland") {
            Some("mips64el") => "mips64le",
            Some("mips64") => "mips64",
            _ => return Err(unknown()),
        },
        "x86_64" => "amd64",
        "i386" | "i486" | "i586" | "i686" => "386",
        "ppc64le" | "ppc64" | "s390x" | "riscv64" | "riscv32" => machine,
        "loongarch64" => "loong64",
        _ => return Err(unknown()),
    };
    Ok(architecture.to_owned())
}

/// The architecture by the form of the CPU description, where the form decides it.
fn by_shape(cpu: &CpuInfo) -> Option<&'static str> {
    match cpu.shape() {
        Shape::X86 if cpu.has_long_mode() => Some("amd64"),
        Shape::X86 => Some("386"),
        Shape::Arm if cpu.has_arm64_features() || cpu.arm_name_version() == Some(8) => {
            Some("arm64")
        }
        Shape::Arm if cpu.arm_name_version().is_some() => Some("arm"),
        Shape::S390 => Some("s390x"),
        Shape::Riscv => Some("riscv64"),
        Shape::Loong => Some("loong64"),
        // The byte order is not told.
        Shape::Arm | Shape::Power | Shape::Unknown => None,
    }
}

/// What the userland was built for; without evidence, what the kernel says it is.
fn userland(facts: &Facts, claimed: &str, findings: &mut Findings) -> String {
    if let Some(name) = facts.probe("userland")
        && let Some((architecture, _)) = lenient_architecture(name)
    {
        findings.note(
            "userland",
            name,
            "its packages' or this program's architecture",
        );
        return architecture;
    }
    let narrow = match claimed {
        "arm64" => Some("arm"),
        "amd64" => Some("386"),
        _ => None,
    };
    if let (Some("32"), Some(narrow)) = (facts.probe("userland_bits"), narrow) {
        findings.note("userland", "32-bit", "userland_bits");
        return narrow.to_owned();
    }
    let platform = facts.probe("AT_PLATFORM").unwrap_or_default();
    let told = match claimed {
        "arm64" if platform.starts_with('v') && platform.ends_with('l') => Some("arm"),
        "arm64" if platform == "aarch64" => Some("arm64"),
        "amd64" if matches!(platform, "i386" | "i486" | "i586" | "i686") => Some("386"),
        "amd64" if platform == "x86_64" => Some("amd64"),
        _ => None,
    };
    if let Some(told) = told {
        findings.note("userland", platform, "AT_PLATFORM");
        return told.to_owned();
    }
    // A 64-bit kernel that answers with a 32-bit name does so for a 32-bit environment.
    if claimed == "arm64"
        && facts
            .probe("uname_machine")
            .is_some_and(|machine| machine.starts_with("armv"))
    {
        findings.note("userland", "arm", "uname under the 32-bit personality");
        return "arm".to_owned();
    }
    findings.note("userland", claimed, "assumed: as the kernel");
    claimed.to_owned()
}
