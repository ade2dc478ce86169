//! The build attributes of 32-bit Arm files (ARM IHI 0045, "Addenda to, and Errata in, the ABI").

use crate::executable::bytes::Layout;

const TAG_FILE: u64 = 1;
const TAG_CPU_RAW_NAME: u64 = 4;
const TAG_CPU_NAME: u64 = 5;
const TAG_CPU_ARCH: u64 = 6;
const TAG_CPU_ARCH_PROFILE: u64 = 7;
const TAG_FP_ARCH: u64 = 10;
const TAG_ADVANCED_SIMD_ARCH: u64 = 12;
const TAG_ABI_VFP_ARGS: u64 = 28;
const TAG_COMPATIBILITY: u64 = 32;

/// What the attributes say; `None` where a tag is not there. They are the maximum over
/// everything that was linked, code that is only used where the core has it included: they are a
/// bound, no proof.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ArmAttributes {
    /// `Tag_CPU_arch`
    pub cpu_arch: Option<u64>,
    /// `Tag_CPU_arch_profile`: `A`, `R`, `M`, `S` as ASCII, or 0.
    pub profile: Option<u64>,
    /// `Tag_FP_arch`: 0 none, 1 `VFPv1` and so on, 8 ARMv8-A's.
    pub fp_arch: Option<u64>,
    /// `Tag_Advanced_SIMD_arch`: 0 none, 1 and more NEON.
    pub simd_arch: Option<u64>,
    /// `Tag_ABI_VFP_args`: 0 base, 1 VFP registers, 2 private, 3 compatible with both.
    pub vfp_args: Option<u64>,
}

impl ArmAttributes {
    /// The version of the architecture, 5 to 8: the smallest OCI variant that surely runs it.
    /// `None`: not told, or no code for applications.
    pub fn version(&self) -> Option<u8> {
        match self.cpu_arch? {
            0..=5 => Some(5),
            6 | 7 | 9 => Some(6),
            // v6T2 has Thumb-2, which no core but ARM1156 has below v7.
            8 | 10 => Some(7),
            14 | 18..=20 | 22 => Some(8),
            _ => None,
        }
    }

    /// Code for microcontrollers or real-time cores.
    pub fn is_no_application(&self) -> bool {
        matches!(self.cpu_arch, Some(11..=13 | 15..=17 | 21))
            || matches!(self.profile, Some(profile) if profile == u64::from(b'M') || profile == u64::from(b'R'))
    }

    fn take(&mut self, tag: u64, value: u64) {
        match tag {
            TAG_CPU_ARCH => self.cpu_arch = Some(value),
            TAG_CPU_ARCH_PROFILE => self.profile = Some(value),
            TAG_FP_ARCH => self.fp_arch = Some(value),
            TAG_ADVANCED_SIMD_ARCH => self.simd_arch = Some(value),
            TAG_ABI_VFP_ARGS => self.vfp_args = Some(value),
            _ => {}
        }
    }
}

/// Reads a section: `A`, then parts of {length, vendor, {tag, size, attributes}}.
pub(super) fn read(layout: Layout, bytes: &[u8]) -> Option<ArmAttributes> {
    let mut rest = bytes.strip_prefix(b"A")?;
    let mut found = None;
    while let Some(length) = layout.u32(rest, 0) {
        let length = usize::try_from(length).ok()?.min(rest.len());
        let (part, next) = rest.split_at_checked(length).filter(|_| length >= 5)?;
        rest = next;
        if let Some(part) = part.get(4..).and_then(|part| part.strip_prefix(b"aeabi\0")) {
            vendor(
                layout,
                part,
                found.get_or_insert_with(ArmAttributes::default),
            );
        }
    }
    found
}

fn vendor(layout: Layout, mut rest: &[u8], found: &mut ArmAttributes) {
    while let Some((tag, after)) = uleb(rest) {
        let header = rest.len() - after.len() + 4;
        let Some(size) = layout
            .u32(after, 0)
            .and_then(|size| usize::try_from(size).ok())
            .map(|size| size.min(rest.len()))
            .filter(|size| *size >= header)
        else {
            return;
        };
        let (part, next) = rest.split_at(size);
        rest = next;
        // Those of single sections or symbols say nothing of the whole.
        if tag == TAG_FILE {
            attributes(part.get(header..).unwrap_or_default(), found);
        }
    }
}

fn attributes(mut rest: &[u8], found: &mut ArmAttributes) {
    while let Some((tag, after)) = uleb(rest) {
        let text = matches!(tag, TAG_CPU_RAW_NAME | TAG_CPU_NAME) || tag > 32 && tag % 2 == 1;
        let (value, after) = if text {
            (None, after)
        } else {
            match uleb(after) {
                Some((value, after)) => (Some(value), after),
                None => return,
            }
        };
        rest = if text || tag == TAG_COMPATIBILITY {
            match after.iter().position(|byte| *byte == 0) {
                Some(end) => after.get(end + 1..).unwrap_or_default(),
                None => return,
            }
        } else {
            after
        };
        if let Some(value) = value {
            found.take(tag, value);
        }
    }
}

/// A number of 7 bits a byte, the lowest first.
fn uleb(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (at, byte) in bytes.iter().enumerate().take(9) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, bytes.get(at + 1..)?));
        }
    }
    None
}
