//! Programs that no Linux kernel starts by itself: Wasm, PE, Mach-O, Java.

use super::bytes::{Layout, Reader};

const LITTLE: Layout = Layout {
    wide: false,
    little: true,
};
const BIG: Layout = Layout {
    wide: false,
    little: false,
};

/// More architectures than any fat file has; a Java class has a number from 45 on in that place.
const MOST_FAT: u32 = 44;

/// A WebAssembly binary (core specification, "Binary Format", "Modules"; the component model's
/// "Binary Format").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wasm {
    /// A core module.
    Module,
    /// A component.
    Component,
    /// A version that is not known.
    Other(u32),
}

/// A program for Windows or DOS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pe {
    /// The COFF machine; `None` for DOS, or where it could not be read.
    pub machine: Option<u16>,
}

impl Pe {
    /// The OCI name of its architecture.
    pub fn architecture(self) -> Option<&'static str> {
        match self.machine? {
            0x8664 => Some("amd64"),
            0x014c => Some("386"),
            0xaa64 => Some("arm64"),
            0x01c0 | 0x01c2 | 0x01c4 => Some("arm"),
            0x5064 => Some("riscv64"),
            _ => None,
        }
    }
}

/// A program for macOS and its relatives: the architectures in it, by their OCI names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachO {
    /// Several programs in one file.
    pub fat: bool,
    /// One for each program; `None` is one without a name.
    pub architectures: Vec<Option<&'static str>>,
}

pub(super) fn wasm(head: &[u8]) -> Option<Wasm> {
    let version = LITTLE.u32(head.strip_prefix(b"\0asm")?, 0)?;
    Some(match version {
        1 => Wasm::Module,
        // Layer 1, whatever the version.
        _ if version >> 16 == 1 => Wasm::Component,
        _ => Wasm::Other(version),
    })
}

pub(super) fn pe(head: &[u8], reader: &Reader<'_>) -> Option<Pe> {
    if !head.starts_with(b"MZ") {
        return None;
    }
    let header = LITTLE
        .u32(head, 0x3c)
        .and_then(|at| reader.exactly(u64::from(at), 6).ok())
        .filter(|header| header.starts_with(b"PE\0\0"));
    Some(Pe {
        machine: header.and_then(|header| LITTLE.u16(&header, 4)),
    })
}

pub(super) fn mach_o(head: &[u8], reader: &Reader<'_>) -> Option<MachO> {
    let single = |layout: Layout| MachO {
        fat: false,
        architectures: vec![layout.u32(head, 4).and_then(cpu)],
    };
    match BIG.u32(head, 0)? {
        0xfeed_face | 0xfeed_facf => Some(single(BIG)),
        0xcefa_edfe | 0xcffa_edfe => Some(single(LITTLE)),
        0xcafe_babe => fat(head, reader, 20),
        0xcafe_babf => fat(head, reader, 32),
        _ => None,
    }
}

fn fat(head: &[u8], reader: &Reader<'_>, size: usize) -> Option<MachO> {
    let count = BIG.u32(head, 4).filter(|count| *count <= MOST_FAT)?;
    let table = reader
        .up_to(8, size * usize::try_from(count).ok()?)
        .unwrap_or_default();
    Some(MachO {
        fat: true,
        architectures: table
            .chunks_exact(size)
            .map(|entry| BIG.u32(entry, 0).and_then(cpu))
            .collect(),
    })
}

fn cpu(number: u32) -> Option<&'static str> {
    match number {
        7 => Some("386"),
        0x0100_0007 => Some("amd64"),
        12 => Some("arm"),
        0x0100_000c => Some("arm64"),
        _ => None,
    }
}

pub(super) fn is_java(head: &[u8]) -> bool {
    BIG.u32(head, 0) == Some(0xcafe_babe) && BIG.u32(head, 4).is_some_and(|word| word > MOST_FAT)
}
