//! x86: the level of the CPU, and whether the kernel starts 32-bit programs.

use super::Findings;
use crate::cpu::CpuInfo;
use crate::facts::Facts;

/// The level by the flags; a model's name decides nothing.
pub(super) fn level(cpu: &CpuInfo, findings: &mut Findings) -> Option<&'static str> {
    let level = cpu.x86_level();
    match level {
        Some(level) => findings.note("cpu_level", level, "flags in proc/cpuinfo"),
        None if cpu.first("flags").is_some() => {
            findings.warn("the CPU's flags do not even make x86-64 level v1: they are incomplete");
        }
        None => {}
    }
    level
}

/// Does an amd64 kernel start 32-bit programs? `None`: nothing tells, and distributions say yes.
pub(super) fn ia32(facts: &Facts, findings: &mut Findings) -> Option<bool> {
    let boot = facts
        .probe("cmdline_ia32_emulation")
        .and_then(|value| match value {
            "0" | "n" | "N" | "off" | "no" | "false" => Some(false),
            "1" | "y" | "Y" | "on" | "yes" | "true" => Some(true),
            _ => None,
        });
    let built = facts.probe("kernel_config_ia32_emulation");
    let by_default = facts.probe("kernel_config_ia32_emulation_default_disabled") != Some("y");
    let (answer, source) = if built == Some("n") {
        (Some(false), "CONFIG_IA32_EMULATION")
    } else if let Some(boot) = boot {
        (Some(boot), "the boot parameter ia32_emulation")
    } else if !by_default {
        (Some(false), "CONFIG_IA32_EMULATION_DEFAULT_DISABLED")
    } else if built == Some("y") {
        (Some(true), "CONFIG_IA32_EMULATION")
    } else if facts.file("proc/sys/abi/vsyscall32").is_some() {
        (
            None,
            "compiled in, by proc/sys/abi/vsyscall32; whether switched on was not observed",
        )
    } else {
        (None, "not observed; distributions switch it on")
    };
    let value = match answer {
        Some(true) => "yes",
        Some(false) => "no",
        None => "assumed",
    };
    findings.note("runs_386", value, source);
    answer
}
