//! What the tests of this module share: hosts that were recorded, and small programs.

use std::path::Path;

use edgepull_platform::{Facts, Host, detect};

/// `x86-v3`, `pi4-armhf-on-64`, `pi5-16k`, `pi-zero` or `graviton4`.
pub(super) fn host(name: &str) -> Host {
    let hosts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../platform/tests/data/hosts");
    detect(&Facts::recorded(&hosts.join(name)).expect("recorded")).expect("a host")
}

pub(super) const AMD64: u16 = 62;
pub(super) const ARM64: u16 = 183;
pub(super) const ARM: u16 = 40;
pub(super) const I386: u16 = 3;

/// A program for `machine` of one segment, with a loader or static (gABI: ELF header, program
/// headers).
pub(super) fn program(machine: u16, loader: Option<&str>) -> Vec<u8> {
    let wide = matches!(machine, AMD64 | ARM64);
    let word = |value: u64| -> Vec<u8> {
        let bytes = value.to_le_bytes();
        bytes[..if wide { 8 } else { 4 }].to_vec()
    };
    let (header, entry): (u64, u64) = if wide { (64, 56) } else { (52, 32) };
    let count = 1 + u16::from(loader.is_some());
    let text = loader.map_or_else(Vec::new, |path| [path.as_bytes(), b"\0"].concat());
    let at = header + entry * u64::from(count);
    let size = at + text.len() as u64 + 16;
    let mut bytes = b"\x7fELF".to_vec();
    bytes.extend([if wide { 2 } else { 1 }, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend(2_u16.to_le_bytes());
    bytes.extend(machine.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(word(0x40_0000 + at + text.len() as u64));
    bytes.extend(word(header));
    bytes.extend(word(0));
    let flags: u32 = if machine == ARM { 0x0500_0000 } else { 0 };
    bytes.extend(flags.to_le_bytes());
    for half in [header, entry, u64::from(count), 0, 0, 0] {
        bytes.extend(&half.to_le_bytes()[..2]);
    }
    let mut segment = |kind: u32, offset: u64, length: u64| {
        let middle: Vec<u8> = [
            offset,
            0x40_0000 + offset,
            0x40_0000 + offset,
            length,
            length,
        ]
        .into_iter()
        .flat_map(word)
        .collect();
        bytes.extend(kind.to_le_bytes());
        if wide {
            bytes.extend(5_u32.to_le_bytes());
        }
        bytes.extend(middle);
        if !wide {
            bytes.extend(5_u32.to_le_bytes());
        }
        bytes.extend(word(0x1_0000));
    };
    if loader.is_some() {
        segment(3, at, text.len() as u64);
    }
    segment(1, 0, size);
    bytes.extend(text);
    bytes.resize(usize::try_from(size).expect("small"), 0x90);
    bytes
}
