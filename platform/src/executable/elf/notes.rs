//! Notes: {length of name, length of content, type, name, content}, padded (gABI, "Note Section").
//! The GNU properties are the Linux Extensions to gABI; their x86 numbers the x86-64 psABI's.

use super::{EM_386, EM_X86_64, Elf};
use crate::executable::bytes::Layout;
use crate::executable::golang::Go;

const NT_GNU_ABI_TAG: u32 = 1;
const NT_GNU_PROPERTY_TYPE_0: u32 = 5;
const GNU_PROPERTY_X86_ISA_1_NEEDED: u32 = 0xc000_8002;
const NT_GO_BUILD_ID: u32 = 4;

/// More notes than any linker writes.
const MOST: usize = 256;

pub(super) fn read(elf: &mut Elf, layout: Layout, bytes: &[u8], align: u64) {
    let align = if align == 8 { 8 } else { 4 };
    let mut rest = bytes;
    for _ in 0..MOST {
        let Some((name, content, kind, next)) = note(layout, rest, align) else {
            return;
        };
        match name {
            b"GNU\0" if kind == NT_GNU_ABI_TAG => abi_tag(elf, layout, content),
            b"GNU\0" if kind == NT_GNU_PROPERTY_TYPE_0 => properties(elf, layout, content),
            b"Go\0\0" if kind == NT_GO_BUILD_ID => {
                elf.go.get_or_insert_with(Go::default);
            }
            b"FreeBSD\0" if kind == 1 => elf.system = Some("FreeBSD"),
            b"NetBSD\0" if kind == 1 => elf.system = Some("NetBSD"),
            b"OpenBSD\0" if kind == 1 => elf.system = Some("OpenBSD"),
            _ => {}
        }
        rest = next;
    }
}

type Note<'a> = (&'a [u8], &'a [u8], u32, &'a [u8]);

fn note(layout: Layout, bytes: &[u8], align: usize) -> Option<Note<'_>> {
    let length = |at| usize::try_from(layout.u32(bytes, at)?).ok();
    let name_end = length(0)?.checked_add(12)?;
    let name = bytes.get(12..name_end)?;
    let start = name_end.checked_next_multiple_of(align)?;
    let end = start.checked_add(length(4)?)?;
    let content = bytes.get(start..end)?;
    let next = end.checked_next_multiple_of(align)?;
    Some((
        name,
        content,
        layout.u32(bytes, 8)?,
        bytes.get(next..).unwrap_or_default(),
    ))
}

fn abi_tag(elf: &mut Elf, layout: Layout, content: &[u8]) {
    let word = |at| layout.u32(content, at);
    let (Some(system), Some(major), Some(minor), Some(patch)) =
        (word(0), word(4), word(8), word(12))
    else {
        return;
    };
    match system {
        0 => elf.oldest_kernel = Some((major, minor, patch)),
        1 => elf.system = Some("Hurd"),
        2 => elf.system = Some("Solaris"),
        3 => elf.system = Some("FreeBSD"),
        _ => {}
    }
}

fn properties(elf: &mut Elf, layout: Layout, mut rest: &[u8]) {
    let align = if layout.wide { 8 } else { 4 };
    while let (Some(kind), Some(size)) = (layout.u32(rest, 0), layout.u32(rest, 4)) {
        let end = usize::try_from(size)
            .ok()
            .and_then(|size| size.checked_add(8));
        let Some(content) = end.and_then(|end| rest.get(8..end)) else {
            return;
        };
        if kind == GNU_PROPERTY_X86_ISA_1_NEEDED
            && matches!(elf.machine, EM_X86_64 | EM_386)
            && let Some(bits) = layout.u32(content, 0)
        {
            elf.x86_level = level(bits).max(elf.x86_level);
        }
        let next = end.and_then(|end| end.checked_next_multiple_of(align));
        rest = next.and_then(|next| rest.get(next..)).unwrap_or_default();
    }
}

/// Bit 0 is the baseline, each further one a level. Later bits have no meaning yet.
fn level(bits: u32) -> Option<u8> {
    [(8, 4), (4, 3), (2, 2), (1, 1)]
        .into_iter()
        .find(|(bit, _)| bits & bit != 0)
        .map(|(_, level)| level)
}
