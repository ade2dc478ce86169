//! Machine numbers (`e_machine`), and which class and byte order makes which architecture.

/// Intel 80386.
pub const EM_386: u16 = 3;
/// PowerPC, 64-bit.
pub(super) const EM_PPC64: u16 = 21;
/// Arm, 32-bit.
pub const EM_ARM: u16 = 40;
/// AMD x86-64.
pub const EM_X86_64: u16 = 62;
/// Arm, 64-bit.
pub const EM_AARCH64: u16 = 183;

/// Machine, 64-bit, little endian, OCI name.
const ARCHITECTURES: &[(u16, bool, bool, &str)] = &[
    (EM_X86_64, true, true, "amd64"),
    (EM_386, false, true, "386"),
    // 80486, which x86 kernels take as well.
    (6, false, true, "386"),
    (EM_AARCH64, true, true, "arm64"),
    (EM_ARM, false, true, "arm"),
    (EM_PPC64, true, true, "ppc64le"),
    (EM_PPC64, true, false, "ppc64"),
    (22, true, false, "s390x"),
    (243, true, true, "riscv64"),
    (243, false, true, "riscv32"),
    (258, true, true, "loong64"),
    (8, true, true, "mips64le"),
    (8, true, false, "mips64"),
    (8, false, true, "mipsle"),
    (8, false, false, "mips"),
];

/// Names of machines, for those that have no OCI name, too.
const NAMES: &[(u16, &str)] = &[
    (2, "SPARC"),
    (EM_386, "x86"),
    (4, "Motorola 68000"),
    (6, "x86"),
    (8, "MIPS"),
    (15, "HP PA-RISC"),
    (18, "SPARC"),
    (20, "PowerPC"),
    (EM_PPC64, "PowerPC"),
    (22, "S/390"),
    (EM_ARM, "Arm"),
    (42, "SuperH"),
    (43, "SPARC"),
    (50, "Itanium"),
    (EM_X86_64, "x86-64"),
    (94, "Xtensa"),
    (EM_AARCH64, "Arm"),
    (189, "MicroBlaze"),
    (243, "RISC-V"),
    (247, "BPF"),
    (252, "C-SKY"),
    (258, "LoongArch"),
];

pub(super) fn architecture(machine: u16, wide: bool, little: bool) -> Option<&'static str> {
    ARCHITECTURES
        .iter()
        .find(|(number, w, l, _)| (*number, *w, *l) == (machine, wide, little))
        .map(|(.., name)| *name)
}

pub(super) fn is_known(machine: u16) -> bool {
    NAMES.iter().any(|(number, _)| *number == machine)
}

pub(super) fn describe(machine: u16, wide: bool, little: bool) -> String {
    if let Some(name) = architecture(machine, wide, little) {
        return name.to_owned();
    }
    let bits = if wide { "64-bit" } else { "32-bit" };
    let order = if little { "little" } else { "big" };
    let name = NAMES.iter().find(|(number, _)| *number == machine);
    match name {
        _ if (machine, wide, little) == (EM_X86_64, false, true) => {
            "x86-64 with 32-bit addresses (x32)".to_owned()
        }
        Some((_, name)) => format!("{bits} {order}-endian {name}"),
        None => format!("machine number {machine} ({bits}, {order}-endian)"),
    }
}
