//! What a file needs to be executed, read from its bytes, and whether a host has it.
//!
//! [`Needs::read`] looks at a file through [`Bytes`], at most 1 MiB of it in bounded reads, whatever
//! its headers say. [`judge`] compares that with a [`Host`]; [`judge_with`] also follows scripts to
//! their interpreters and programs to their loaders, with the caller looking them up. Nothing is
//! read from the running system.
//!
//! # The rule
//!
//! Nothing that could run is refused; nothing that decisive evidence excludes is native; where
//! evidence is missing the answer is unknown. Native says that the cores run this machine's code
//! and that nothing in the file speaks against this host; it is no promise that the program works.
//!
//! # Verdicts
//!
//! First row that applies; of those on the structure of ELF files and below, proof goes before doubt:
//! one that refuses before one that does not know.
//!
//! | the file | the host | verdict |
//! |---|---|---|
//! | cannot be read | | unknown |
//! | first 256 bytes taken by an enabled handler | handler without F | its program missing in the image: refused; not looked for: unknown |
//! | the same, x86-64 level 3 or 4, or a fault in its structure | | unknown: what the emulator plays is not told |
//! | the same, anything else | | emulated, also what the cores would run |
//! | `#!` line without interpreter, or with a path beyond the 256 bytes | | refused |
//! | script | | its interpreter's; alone, unknown; a sixth level is refused, and a handler is one |
//! | script, with a CR or several words for `env` in its argument | its interpreter runs | unknown |
//! | empty, only zeros, text, Java, PE, Mach-O, anything unknown | no handler by file name | refused |
//! | the same | such a handler | unknown |
//! | WebAssembly; bFLT or a.out | | unknown: a runtime, or an old kernel, may start it |
//! | ELF, object file or core dump | | refused |
//! | ELF of a machine that the cores do not run | | refused |
//! | ELF with the cores' machine and another class, or with a wrong byte order | | unknown: kernels differ |
//! | ELF for 32-bit Arm | arm64 without `AArch32` | refused; not observed: unknown |
//! | ELF for 32-bit x86 | amd64 without `CONFIG_IA32_EMULATION` | refused; not observed: unknown |
//! | ELF for 32-bit Arm from before EABI | arm64 | refused; 32-bit kernel: unknown |
//! | ELF for the kernel, not for its 32-bit userland | | unknown: engines there forbid it |
//! | ELF with a structure that no kernel takes, or cut off before its first instruction | | refused |
//! | ELF cut off elsewhere, with odd segments, without code at its start, marked for another system, a library | | unknown |
//! | `PT_LOAD` not congruent with the page size | page size known | refused; not observed: unknown |
//! | segments of different rights in one page | | unknown |
//! | x86 level declared as needed, glibc's loader; or `GOAMD64` | lower level | refused; level not observed: unknown |
//! | x86 level declared as needed, static or another loader | lower level | unknown: nobody checks |
//! | `GOARM` above the variant | arm v5, v6 | refused |
//! | Arm attributes above the variant; no attributes on v5, v6; hard float on v5 | | unknown: they bound, they do not prove |
//! | `GOARM` 6 or 7 with floating point | 32-bit Arm whose features lack VFP, or `VFPv3` | refused |
//! | attributes with NEON, VFP, `VFPv3` or `VFPv4` | 32-bit Arm whose features lack it | unknown |
//! | `GOARM64` above v8.0, or with `lse` | arm64 whose features lack `atomics` | refused |
//! | the same, or with `crypto` | arm64 whose features lack another, or were not observed | unknown |
//! | `GO386=sse2` | flags without `sse2` | refused |
//! | C library for newer kernels | older `kernel_release` | unknown: glibc from 2.36 on does not check |
//! | interpreter missing; loader missing and not emulated | | refused, also what is unknown so far |
//! | loader's own verdict refused or unknown | | that |
//! | anything else | 32-bit mode | compat32 |
//! | anything else | | native; on an emulated userland, emulated |
//!
//! A table of handlers that was not observed counts as empty, as in [`Host::runs`].
//!
//! # Where the rules are from
//!
//! gABI (ELF header, program header, sections, notes); ARM IHI 0044 (ELF for the Arm architecture:
//! `e_flags`) and ARM IHI 0045 (build attributes); the x86-64 psABI and the Linux extensions to gABI
//! (`GNU_PROPERTY_X86_ISA_1_NEEDED`); Linux `fs/binfmt_elf.c`, `fs/binfmt_script.c`,
//! `fs/binfmt_misc.c`, `fs/exec.c`, `arch/{arm,arm64,x86}/include/asm/elf.h`; glibc
//! `elf/dl-load.c`, `sysdeps/x86/dl-prop.h`; Go `src/debug/buildinfo`, `src/runtime`.

use crate::platform::{Platform, printable};

mod bytes;
mod elf;
mod foreign;
mod golang;
mod judge;
mod script;

pub use bytes::{Bytes, Head};
pub use elf::{
    ArmAttributes, EM_386, EM_AARCH64, EM_ARM, EM_X86_64, Elf, Fault, FloatAbi, Load, Type, Unread,
};
pub use foreign::{MachO, Pe, Wasm};
pub use golang::Go;
pub use judge::{Found, Judgement, Refusal, Step, Verdict, judge, judge_with};
pub use script::{BINPRM_BUF_SIZE, BadLine, DEEPEST, Pitfall, Script};

use bytes::Reader;

#[cfg(doc)]
use crate::host::Host;

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// It could not be read.
    Unreadable,
    /// No bytes at all, as after a power cut.
    Empty,
    /// Zeros only, as far as the kernel looks: as after a power cut.
    Zeros,
    /// ELF.
    Elf(Box<Elf>),
    /// A script with an interpreter.
    Script(Script),
    /// `#!` without an interpreter that the kernel could start.
    BadScript(BadLine),
    /// WebAssembly.
    Wasm(Wasm),
    /// For Windows or DOS.
    Pe(Pe),
    /// For macOS.
    MachO(MachO),
    /// A Java class.
    Java,
    /// A format of old or special kernels: bFLT, a.out.
    OldFormat(&'static str),
    /// Text without `#!`.
    Text {
        /// A byte order mark hides the `#!` that follows it.
        hidden_script: bool,
    },
    /// Anything else.
    Unknown,
}

impl Kind {
    /// In one word, for reports.
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Unreadable => "unreadable",
            Kind::Empty => "empty",
            Kind::Zeros => "zeros",
            Kind::Elf(_) => "elf",
            Kind::Script(_) | Kind::BadScript(_) => "script",
            Kind::Wasm(_) => "wasm",
            Kind::Pe(_) => "pe",
            Kind::MachO(_) => "mach-o",
            Kind::Java => "java",
            Kind::OldFormat(name) => name,
            Kind::Text { .. } => "text",
            Kind::Unknown => "unknown",
        }
    }
}

/// What a file needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// What it is, with its needs.
    pub kind: Kind,
    /// Its size, where it is known.
    pub size: Option<u64>,
    /// Its first [`BINPRM_BUF_SIZE`] bytes, filled up with zeros: what handlers look at.
    head: Vec<u8>,
}

impl Needs {
    /// Looks at a file.
    pub fn read(bytes: &dyn Bytes) -> Needs {
        let reader = Reader::new(bytes);
        let mut needs = Needs {
            kind: Kind::Unreadable,
            size: reader.size(),
            head: Vec::new(),
        };
        let Ok(mut head) = reader.up_to(0, BINPRM_BUF_SIZE) else {
            return needs;
        };
        let length = head.len();
        head.resize(BINPRM_BUF_SIZE, 0);
        needs.kind = kind(&head, length, &reader);
        needs.head = head;
        needs
    }

    /// The ELF file, if it is one.
    pub fn elf(&self) -> Option<&Elf> {
        match &self.kind {
            Kind::Elf(elf) => Some(elf),
            _ => None,
        }
    }

    /// The file that is needed next: a script's interpreter or a program's loader.
    pub fn next(&self) -> Option<&[u8]> {
        match &self.kind {
            Kind::Script(script) => Some(&script.interpreter),
            Kind::Elf(elf) => elf.interpreter.as_deref(),
            _ => None,
        }
    }

    /// The platform that the file itself tells, where it tells one.
    pub fn platform(&self) -> Option<Platform> {
        match &self.kind {
            Kind::Elf(elf) if elf.system.is_none() => {
                let architecture = elf.architecture()?;
                let variant = match architecture {
                    "arm" => {
                        let go = elf.go.as_ref().and_then(Go::arm).map(|(number, _)| number);
                        let told = go.or(elf.arm.as_ref().and_then(ArmAttributes::version))?;
                        format!("v{told}")
                    }
                    "amd64" => {
                        let go = elf.go.as_ref().and_then(Go::amd64_level);
                        match go.max(elf.x86_level) {
                            Some(level @ 2..) => format!("v{level}"),
                            _ => String::new(),
                        }
                    }
                    _ => String::new(),
                };
                Some(Platform::linux(architecture, &variant))
            }
            Kind::Wasm(_) => Platform::parse("wasi/wasm").ok(),
            Kind::Pe(pe) => Platform::parse(&format!("windows/{}", pe.architecture()?)).ok(),
            Kind::MachO(file) => match file.architectures.as_slice() {
                [Some(only)] => Platform::parse(&format!("darwin/{only}")).ok(),
                _ => None,
            },
            _ => None,
        }
    }

    /// The same, and where the file tells no version of an architecture, the architecture alone.
    pub fn machine(&self) -> Option<Platform> {
        self.platform().or_else(|| {
            let elf = self.elf().filter(|elf| elf.system.is_none())?;
            Some(Platform::linux(elf.architecture()?, ""))
        })
    }

    /// What it is, in a few words: `a program for arm64`, `a script for /bin/sh`.
    pub fn describe(&self) -> String {
        match &self.kind {
            Kind::Unreadable => "a file that could not be read".to_owned(),
            Kind::Empty => "an empty file".to_owned(),
            Kind::Zeros => "a file of zeros".to_owned(),
            Kind::Elf(elf) => describe_elf(elf),
            Kind::Script(script) => format!("a script for {}", path(&script.interpreter)),
            Kind::BadScript(_) => "a script without a usable first line".to_owned(),
            Kind::Wasm(Wasm::Component) => "a WebAssembly component".to_owned(),
            Kind::Wasm(_) => "a WebAssembly module".to_owned(),
            Kind::Pe(pe) => match (pe.machine, pe.architecture()) {
                (_, Some(architecture)) => format!("a Windows program for {architecture}"),
                (Some(_), None) => "a Windows program".to_owned(),
                (None, None) => "a DOS or Windows program".to_owned(),
            },
            Kind::MachO(file) => {
                let names: Vec<&str> = file.architectures.iter().flatten().copied().collect();
                if names.is_empty() {
                    "a macOS program".to_owned()
                } else {
                    format!("a macOS program for {}", names.join(" and "))
                }
            }
            Kind::Java => "a Java class".to_owned(),
            Kind::OldFormat(name) => format!("a program in the old format {name}"),
            Kind::Text { .. } => "text without a `#!` line".to_owned(),
            Kind::Unknown => "a file of an unknown kind".to_owned(),
        }
    }
}

fn describe_elf(elf: &Elf) -> String {
    let what = match elf.kind {
        Type::Relocatable => "an object file",
        Type::Core => "a core dump",
        Type::Executable | Type::Dynamic if elf.go.is_some() => "a Go program",
        Type::Dynamic if elf.is_static() && elf.entry == 0 => "a library",
        Type::Executable | Type::Dynamic if elf.is_static() => "a static program",
        _ => "a program",
    };
    let float = match elf.float_abi() {
        Some(FloatAbi::Hard) => ", hard float",
        Some(FloatAbi::Soft) => ", soft float",
        None => "",
    };
    format!("{what} for {}{float}", elf.machine_name())
}

fn kind(head: &[u8], length: usize, reader: &Reader<'_>) -> Kind {
    if length == 0 {
        return Kind::Empty;
    }
    if head.starts_with(b"\x7fELF")
        && let Some(elf) = Elf::read(head, reader)
    {
        return Kind::Elf(Box::new(elf));
    }
    if let Some(line) = script::read(head) {
        return line.map_or_else(Kind::BadScript, Kind::Script);
    }
    if let Some(wasm) = foreign::wasm(head) {
        return Kind::Wasm(wasm);
    }
    if let Some(pe) = foreign::pe(head, reader) {
        return Kind::Pe(pe);
    }
    if foreign::is_java(head) {
        return Kind::Java;
    }
    if let Some(file) = foreign::mach_o(head, reader) {
        return Kind::MachO(file);
    }
    if head.starts_with(b"bFLT") {
        return Kind::OldFormat("bFLT");
    }
    // OMAGIC, NMAGIC, ZMAGIC, QMAGIC of 80386 and of no machine at all.
    if matches!(
        head,
        [0x07 | 0x08 | 0x0b, 0x01, 0x64 | 0, 0, ..] | [0xcc, 0x00, 0x64 | 0, 0, ..]
    ) {
        return Kind::OldFormat("a.out");
    }
    let seen = head.get(..length).unwrap_or(head);
    if seen.iter().all(|byte| *byte == 0) {
        return Kind::Zeros;
    }
    if is_text(seen) {
        return Kind::Text {
            hidden_script: seen.starts_with(b"\xef\xbb\xbf#!"),
        };
    }
    Kind::Unknown
}

/// No control characters but those of text. Bytes from 128 on are letters somewhere.
fn is_text(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .all(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | 0x0c | 0x1b | 0x20..=0x7e | 0x80..))
}

/// A path for people: without control characters, and a carriage return shown.
fn path(bytes: &[u8]) -> String {
    printable(&String::from_utf8_lossy(bytes).replace('\r', "\\r"))
}

#[cfg(test)]
mod tests;
