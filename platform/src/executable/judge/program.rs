//! An ELF program on the cores of a host.

use super::{Refusal, Verdict};
use crate::executable::{ArmAttributes, Elf, FloatAbi, Go, Type, Unread};
use crate::host::{Host, How};
use crate::platform::printable;

/// Judges a program, or a loader, that no handler takes.
pub(super) fn judge(elf: &Elf, size: Option<u64>, host: &Host) -> Verdict {
    let mode = match mode(elf, host) {
        Ok(mode) => mode,
        Err(verdict) => return verdict,
    };
    let checks = [
        structure(elf, size, host),
        abi(elf, host),
        pages(elf, host),
        x86(elf, host),
        sse2(elf, host),
        arm(elf, host),
        arm64(elf, host),
        kernel(elf, host),
    ];
    let mut found: Vec<Verdict> = checks.into_iter().flatten().collect();
    // Proof goes before doubt.
    if let Some(at) = found
        .iter()
        .position(|verdict| matches!(verdict, Verdict::Refused { .. }))
    {
        return found.swap_remove(at);
    }
    found.into_iter().next().unwrap_or(mode)
}

/// Do the cores run its machine's code under this kernel, and in which mode?
fn mode(elf: &Elf, host: &Host) -> Result<Verdict, Verdict> {
    // Kernels do not look at the byte order (`EI_DATA`), so nothing else of it can be trusted.
    if elf.is_swapped() {
        return Err(Verdict::unknown(
            "its header contradicts itself: the machine number makes sense only in the other byte order",
        ));
    }
    match elf.kind {
        Type::Executable | Type::Dynamic => {}
        Type::Relocatable => {
            return Err(Verdict::refused(
                Refusal::Format,
                "it is an object file, which has not been linked to a program",
            ));
        }
        Type::Core => {
            return Err(Verdict::refused(
                Refusal::Format,
                "it is a core dump, no program",
            ));
        }
        Type::Other(_) => {
            return Err(Verdict::refused(
                Refusal::Format,
                "it is an ELF file, but no program",
            ));
        }
    }
    if host.os != "linux" {
        return Err(Verdict::unknown(format!(
            "this host runs {}, whose rules are not known",
            printable(&host.os)
        )));
    }
    let Some(architecture) = elf.architecture() else {
        return Err(nameless(elf, host));
    };
    if host.emulated && architecture == host.userland {
        return Ok(Verdict::Emulated {
            handler: "the emulator that this userland runs under".to_owned(),
        });
    }
    if let Some(runs) = host
        .runs_natively()
        .find(|runs| runs.platform.architecture() == architecture)
    {
        if architecture == "386" && host.userland != "386" && host.ia32.is_none() {
            return Err(Verdict::unknown(
                "it is built for 32-bit x86, and whether this kernel starts such programs was not observed; most do",
            ));
        }
        return Ok(match runs.how {
            How::Compat32 => Verdict::Compat32,
            _ => Verdict::Native,
        });
    }
    let also = host
        .kernel_also_execs
        .iter()
        .any(|platform| platform.architecture() == architecture);
    if also || host.kernel == architecture {
        return Err(Verdict::unknown(format!(
            "it is built for {architecture}: this kernel would start it, but this host's userland is {}, whose container engines forbid it",
            host.userland
        )));
    }
    Err(match (host.kernel.as_str(), architecture) {
        ("arm64", "arm") if host.aarch32_el0 == Some(false) => Verdict::refused(
            Refusal::Mode,
            "it is built for 32-bit Arm, and this host has no 32-bit Arm mode: its cores or its kernel run 64-bit programs only",
        ),
        ("arm64", "arm") => Verdict::unknown(
            "it is built for 32-bit Arm, and whether this host has a 32-bit mode was not observed",
        ),
        ("amd64", "386") if host.ia32 == Some(false) => Verdict::refused(
            Refusal::Mode,
            "it is built for 32-bit x86, and this kernel starts no 32-bit programs (CONFIG_IA32_EMULATION or the boot parameter ia32_emulation)",
        ),
        ("riscv64", "riscv32") | ("mips64", "mips") | ("mips64le", "mipsle") => narrow(elf, host),
        _ => foreign(elf, host),
    })
}

/// Do the cores run its machine's code, and is nothing else in doubt about how a kernel reads it?
pub(super) fn is_for_cores(elf: &Elf, host: &Host) -> bool {
    mode(elf, host).is_ok()
}

fn foreign(elf: &Elf, host: &Host) -> Verdict {
    Verdict::refused(
        Refusal::Machine,
        format!(
            "it is built for {}, and this host's cores are {}; no emulator for it is registered here",
            elf.machine_name(),
            host.kernel
        ),
    )
}

fn narrow(elf: &Elf, host: &Host) -> Verdict {
    Verdict::unknown(format!(
        "it is built for {}: a {} kernel starts such programs only with an option that was not observed",
        elf.machine_name(),
        host.kernel
    ))
}

/// A machine, class and byte order that make no architecture with an OCI name.
fn nameless(elf: &Elf, host: &Host) -> Verdict {
    let ours = |architecture: &str| {
        architecture == host.kernel
            || host
                .runs
                .iter()
                .any(|runs| runs.platform.architecture() == architecture)
    };
    // The 32-bit siblings of 64-bit kernels: PowerPC, S/390, MIPS's n32.
    let sibling = !elf.wide
        && matches!(
            (host.kernel.as_str(), elf.machine, elf.little),
            ("ppc64le", 20, true) | ("ppc64", 20, false) | ("s390x", 22, false)
        );
    if sibling {
        return narrow(elf, host);
    }
    match elf.architecture_by_number() {
        // x86 kernels look at the machine number alone (`elf_check_arch`); x32 is an option.
        Some(architecture) if ours(architecture) => Verdict::unknown(format!(
            "it is {}, which some {} kernels start and others do not",
            elf.machine_name(),
            host.kernel
        )),
        _ => foreign(elf, host),
    }
}

fn structure(elf: &Elf, size: Option<u64>, host: &Host) -> Option<Verdict> {
    if let Some(fault) = elf.fault.as_ref().filter(|fault| fault.certain) {
        return Some(Verdict::refused(
            Refusal::Damaged,
            format!("the file {}: no kernel starts it", fault.text),
        ));
    }
    if let (Some(end), Some(size)) = (elf.cut_off, size) {
        let page = page_size(host).unwrap_or(65536);
        let mapped = size.checked_next_multiple_of(page).unwrap_or(size);
        let text = format!("the file is cut off: it has {size} bytes, and needs {end}");
        return Some(match elf.first_needed {
            Some(first) if first >= mapped => Verdict::refused(
                Refusal::Damaged,
                format!("{text}; what is executed first is not there"),
            ),
            _ => Verdict::unknown(text),
        });
    }
    if elf.unread == Some(Unread::Segments) {
        return Some(Verdict::unknown(
            "the part of the file that tells how to load it could not be read",
        ));
    }
    if let Some(system) = elf.system {
        return Some(Verdict::unknown(format!(
            "it is marked as a program for {system}, which a Linux kernel starts, but hardly to any good"
        )));
    }
    let fault = elf.fault.as_ref()?;
    Some(Verdict::unknown(format!("the file {}", fault.text)))
}

fn abi(elf: &Elf, host: &Host) -> Option<Verdict> {
    if elf.arm_eabi() != Some(0) {
        return None;
    }
    Some(if host.kernel == "arm64" && !host.emulated {
        Verdict::refused(
            Refusal::Abi,
            "it uses the 32-bit Arm ABI from before EABI, which 64-bit kernels do not start",
        )
    } else {
        Verdict::unknown(
            "it uses the 32-bit Arm ABI from before EABI, which kernels start only with CONFIG_OABI_COMPAT",
        )
    })
}

/// The page size, observed or fixed by the architecture.
fn page_size(host: &Host) -> Option<u64> {
    let fixed = matches!(
        host.kernel.as_str(),
        "amd64" | "386" | "arm" | "s390x" | "riscv64" | "riscv32"
    );
    host.page_size.or(fixed.then_some(4096))
}

fn pages(elf: &Elf, host: &Host) -> Option<Verdict> {
    // Emulators of user programs map by themselves, at any page size.
    if elf.loads.is_empty() || host.emulated {
        return None;
    }
    let Some(page) = page_size(host) else {
        let fits = elf.fits_pages(65536) && !elf.shares_pages(65536);
        return (!fits).then(|| {
            Verdict::unknown(format!(
                "it is laid out for {}, and this host's page size was not observed",
                laid_out(elf)
            ))
        });
    };
    let kib = page / 1024;
    if !elf.fits_pages(page) {
        return Some(Verdict::refused(
            Refusal::Pages,
            format!(
                "it is laid out for {}, and this kernel has pages of {kib} KiB: it would crash at start; it must be linked with -z max-page-size={page}, or the kernel be one with smaller pages",
                laid_out(elf)
            ),
        ));
    }
    elf.shares_pages(page).then(|| {
        Verdict::unknown(format!(
            "two of its segments with different rights share a page of {kib} KiB: it may crash"
        ))
    })
}

fn laid_out(elf: &Elf) -> String {
    match elf.largest_page() {
        Some(page) => format!("pages of at most {} KiB", page / 1024),
        None => "no usual page size".to_owned(),
    }
}

/// The x86-64 level that a file tells.
pub(super) fn x86_level(elf: &Elf) -> Option<u8> {
    let go = elf.go.as_ref().and_then(Go::amd64_level);
    go.max(elf.x86_level)
}

fn x86(elf: &Elf, host: &Host) -> Option<Verdict> {
    if !matches!(elf.architecture(), Some("amd64" | "386")) || host.emulated {
        return None;
    }
    let needed = x86_level(elf).filter(|level| *level > 1)?;
    let found = host
        .cpu_level
        .as_ref()
        .and_then(|level| level.strip_prefix('v')?.parse::<u8>().ok());
    let Some(found) = found else {
        return Some(Verdict::unknown(format!(
            "it needs a CPU of level x86-64-v{needed}, and this one's level was not observed"
        )));
    };
    if needed <= found {
        return None;
    }
    let text =
        format!("it needs a CPU of level x86-64-v{needed}, and this one is of level v{found}");
    let go = elf.go.as_ref().and_then(Go::amd64_level);
    // Go's runtime and glibc's loader check before anything else runs; nobody else does.
    let checked = go.is_some_and(|level| level > found)
        || elf
            .interpreter
            .as_ref()
            .is_some_and(|loader| name_of(loader).starts_with(b"ld-linux"));
    Some(if checked {
        Verdict::refused(Refusal::Level, text)
    } else {
        Verdict::unknown(format!(
            "{text}; nothing checks that, and it may never use what is missing"
        ))
    })
}

/// Go's runtime computes with floating point before anything else (`runtime.check`), with SSE2
/// unless it was told not to.
fn sse2(elf: &Elf, host: &Host) -> Option<Verdict> {
    let uses = elf.architecture() == Some("386")
        && elf.go.as_ref().and_then(|go| go.setting("GO386")) == Some("sse2");
    let lacks = host.has_feature("sse2") == Some(false);
    (uses && lacks && !host.emulated).then(|| {
        Verdict::refused(
            Refusal::Level,
            "it was built with GO386=sse2, and this CPU has no SSE2: it must be built with GO386=softfloat",
        )
    })
}

fn name_of(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

fn arm(elf: &Elf, host: &Host) -> Option<Verdict> {
    if elf.architecture() != Some("arm") || host.emulated {
        return None;
    }
    let own = if host.kernel == "arm64" {
        8
    } else {
        host.variant.strip_prefix('v')?.parse().ok()?
    };
    let go = elf.go.as_ref().and_then(Go::arm);
    // Features as a 32-bit kernel names them; 64-bit ones use other names, and their 32-bit mode
    // has all of these.
    let lacks = |name| host.kernel == "arm" && host.has_feature(name) == Some(false);
    let unit = |number: u8| match number {
        7.. => lacks("vfpv3") && lacks("vfpv3d16"),
        _ => lacks("vfp"),
    };
    // Its runtime looks for the unit before anything else (`checkgoarm`).
    if let Some((needed @ 6.., false)) = go
        && unit(needed)
    {
        return Some(Verdict::refused(
            Refusal::Level,
            format!(
                "it was built with GOARM={needed}, and this host's cores have no such floating-point unit"
            ),
        ));
    }
    // Nor does it get far without its version's atomic operations: LDREX from 6, DMB from 7 on
    // (`internal/runtime/atomic`).
    if let Some((needed, _)) = go.filter(|(needed, _)| *needed > own) {
        return Some(Verdict::refused(
            Refusal::Level,
            format!("it was built with GOARM={needed}, and this host is 32-bit Arm v{own}"),
        ));
    }
    if elf
        .arm
        .as_ref()
        .is_some_and(ArmAttributes::is_no_application)
    {
        return Some(Verdict::unknown(
            "its attributes say that it is for microcontrollers or real-time cores",
        ));
    }
    let told = elf.arm.as_ref().and_then(ArmAttributes::version);
    match told {
        Some(needed) if needed > own => {
            return Some(Verdict::unknown(format!(
                "some of its code is for 32-bit Arm v{needed}, and this host is v{own}: it crashes if that code is used"
            )));
        }
        None if own < 7 && go.is_none() => {
            return Some(Verdict::unknown(format!(
                "it does not tell for which version of 32-bit Arm it was built, and this host is v{own}"
            )));
        }
        _ => {}
    }
    let hard = elf.float_abi() == Some(FloatAbi::Hard);
    if own < 6 && hard && host.has_feature("vfp") != Some(true) {
        return Some(Verdict::unknown(format!(
            "it needs a floating-point unit (hard float), which cores of 32-bit Arm v{own} rarely have"
        )));
    }
    let unit = elf.arm.as_ref().and_then(|attributes| {
        if attributes.simd_arch.is_some_and(|simd| simd > 0) && lacks("neon") {
            return Some("NEON");
        }
        match attributes.fp_arch? {
            1 | 2 if lacks("vfp") => Some("VFP"),
            3 | 4 if lacks("vfpv3") && lacks("vfpv3d16") => Some("VFPv3"),
            5 | 6 if lacks("vfpv4") => Some("VFPv4"),
            _ => None,
        }
    })?;
    Some(Verdict::unknown(format!(
        "some of its code uses {unit}, which this host's cores lack: it crashes if that code is used"
    )))
}

/// What `GOARM64` asks for, by the kernel's names, as far as a program can see it (the mandatory
/// features of each version of the architecture that have a `HWCAP`).
const GOARM64: &[(&str, &[&str])] = &[
    ("v8.1", &["atomics", "crc32", "asimdrdm"]),
    ("v8.2", &["dcpop"]),
    ("v8.3", &["jscvt", "fcma", "lrcpc"]),
    ("v8.4", &["asimddp", "flagm", "ilrcpc", "uscat", "dit"]),
    ("v8.5", &["flagm2", "frint", "sb"]),
    ("v9.0", &["sve", "sve2"]),
];

fn arm64(elf: &Elf, host: &Host) -> Option<Verdict> {
    if elf.architecture() != Some("arm64") || host.emulated {
        return None;
    }
    let value = elf.go.as_ref()?.whole_setting("GOARM64")?;
    let mut words = value.split(',');
    let version = words.next().unwrap_or_default();
    let mut needed: Vec<&str> = Vec::new();
    for word in words {
        match word {
            "lse" => needed.push("atomics"),
            "crypto" => needed.extend(["aes", "pmull", "sha1", "sha2"]),
            _ => {
                return Some(Verdict::unknown(format!(
                    "it was built with GOARM64={}, whose meaning is not known",
                    printable(value)
                )));
            }
        }
    }
    if version != "v8.0" {
        let Some(last) = GOARM64.iter().position(|(name, _)| *name == version) else {
            return Some(Verdict::unknown(format!(
                "it was built with GOARM64={}, and whether this host's cores have all of that is not known",
                printable(value)
            )));
        };
        needed.extend(GOARM64.iter().take(last + 1).flat_map(|(_, names)| *names));
    }
    if needed.is_empty() {
        return None;
    }
    let Some(features) = &host.features else {
        return Some(Verdict::unknown(format!(
            "it was built with GOARM64={value}, and which extensions this host's cores have was not observed"
        )));
    };
    let missing: Vec<&str> = needed
        .into_iter()
        .filter(|name| !features.contains(*name))
        .collect();
    let text = format!(
        "it was built with GOARM64={value}, and this host's cores lack {}",
        missing.join(", ")
    );
    // Its runtime takes locks with these before anything else; of the rest it may use nothing.
    if missing.contains(&"atomics") {
        Some(Verdict::refused(Refusal::Level, text))
    } else if missing.is_empty() {
        None
    } else {
        Some(Verdict::unknown(format!(
            "{text}; nothing checks that, and it may never use what is missing"
        )))
    }
}

fn kernel(elf: &Elf, host: &Host) -> Option<Verdict> {
    let wanted = elf.oldest_kernel?;
    let release = host
        .evidence
        .iter()
        .find(|evidence| evidence.fact == "kernel_release")?;
    let found = release_numbers(&release.value)?;
    (wanted > found).then(|| {
        Verdict::unknown(format!(
            "its C library was built for Linux {}.{}.{} or newer, and this kernel is {}: up to glibc 2.35 it refuses to start",
            wanted.0, wanted.1, wanted.2, release.value
        ))
    })
}

/// The three numbers of a kernel's release.
fn release_numbers(release: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().ok());
    let major = numbers.next()??;
    let minor = numbers.next()??;
    Some((major, minor, numbers.next().flatten().unwrap_or(0)))
}
