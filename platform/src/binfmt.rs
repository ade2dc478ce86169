//! Interpreters that the kernel starts for foreign programs, from its own table's text.
//!
//! What a handler takes is decided by its magic against a synthetic header of each architecture,
//! never by its name.

/// An ELF header as far as a handler may look.
const HEADER: usize = 64;
/// Longer magic than the kernel accepts.
const LONGEST_MAGIC: usize = 256;

/// A registered interpreter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Handler {
    /// Its name in the table.
    pub(crate) name: String,
    /// Whether it is switched on.
    pub(crate) enabled: bool,
    /// The program it starts; with the flag F it need not exist under this path.
    pub(crate) interpreter: String,
    /// Letters, as the kernel prints them.
    pub(crate) flags: String,
    offset: usize,
    magic: Vec<u8>,
    mask: Vec<u8>,
}

/// Architectures with an ELF machine: OCI name, machine, 64-bit, little endian.
const MACHINES: &[(&str, u16, bool, bool)] = &[
    ("amd64", 62, true, true),
    ("arm64", 183, true, true),
    ("arm", 40, false, true),
    ("386", 3, false, true),
    ("riscv64", 243, true, true),
    ("ppc64le", 21, true, true),
    ("s390x", 22, true, false),
    ("loong64", 258, true, true),
    ("mips64le", 8, true, true),
    ("mips64", 8, true, false),
    ("ppc64", 21, true, false),
];

/// The OCI names of all architectures that can be recognised, in the order of reports.
pub(crate) fn architectures() -> impl Iterator<Item = &'static str> {
    MACHINES.iter().map(|(name, ..)| *name)
}

impl Handler {
    /// Reads an entry. Unknown lines and letters are ignored. `None` if it takes no magic.
    pub(crate) fn parse(name: &str, text: &str) -> Option<Handler> {
        let mut handler = Handler {
            name: name.to_owned(),
            ..Handler::default()
        };
        for line in text.lines() {
            let (key, value) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
            let value = value.trim();
            match key {
                "enabled" => handler.enabled = true,
                "interpreter" => value.clone_into(&mut handler.interpreter),
                "flags:" => value.clone_into(&mut handler.flags),
                // The kernel's number; on a 32-bit host, too, one beyond every file is one.
                "offset" => {
                    let offset: u64 = value.parse().ok()?;
                    handler.offset = usize::try_from(offset).unwrap_or(usize::MAX);
                }
                "magic" => handler.magic = bytes(value)?,
                "mask" => handler.mask = bytes(value)?,
                _ => {}
            }
        }
        (!handler.magic.is_empty()).then_some(handler)
    }

    /// Can it start programs where its own file is not visible, as in a container?
    pub(crate) fn works_in_containers(&self) -> bool {
        self.flags.contains('F')
    }

    /// Does it take programs of an architecture?
    pub(crate) fn takes(&self, architecture: &str) -> bool {
        MACHINES
            .iter()
            .filter(|(name, ..)| *name == architecture)
            .any(|(_, machine, wide, little)| {
                [2, 3]
                    .iter()
                    .any(|kind| self.matches(&header(*machine, *wide, *little, *kind)))
            })
    }

    /// Does it take a file that starts with these bytes? The kernel fills up short files with zeros.
    pub(crate) fn matches(&self, header: &[u8]) -> bool {
        let masks = self.mask.iter().copied().chain(std::iter::repeat(0xff));
        let Some(window) = header.get(self.offset..) else {
            return false;
        };
        window.len() >= self.magic.len()
            && window
                .iter()
                .zip(&self.magic)
                .zip(masks)
                .all(|((found, wanted), mask)| (found ^ wanted) & mask == 0)
    }
}

/// The start of a program: `kind` 2 is an executable, 3 a position-independent one.
fn header(machine: u16, wide: bool, little: bool, kind: u16) -> Vec<u8> {
    let mut header = vec![
        0x7f,
        b'E',
        b'L',
        b'F',
        if wide { 2 } else { 1 },
        if little { 1 } else { 2 },
        1,
    ];
    header.resize(16, 0);
    let half = |value: u16| {
        if little {
            value.to_le_bytes()
        } else {
            value.to_be_bytes()
        }
    };
    let word = |value: u32| {
        if little {
            value.to_le_bytes()
        } else {
            value.to_be_bytes()
        }
    };
    header.extend(half(kind));
    header.extend(half(machine));
    header.extend(word(1));
    header.resize(HEADER, 0);
    header
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    if !hex.len().is_multiple_of(2) || hex.len() > 2 * LONGEST_MAGIC {
        return None;
    }
    let digits: Option<Vec<u8>> = hex
        .chars()
        .map(|digit| u8::try_from(digit.to_digit(16)?).ok())
        .collect();
    Some(
        digits?
            .chunks_exact(2)
            .filter_map(|pair| Some(pair.first()? << 4 | pair.last()?))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARM64: &str = "enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: POF\noffset 0\n\
        magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n";

    fn takes(text: &str) -> Vec<&'static str> {
        let handler = Handler::parse("any-name", text).expect("a handler");
        architectures()
            .filter(|architecture| handler.takes(architecture))
            .collect()
    }

    #[test]
    fn magic_decides_not_the_name() {
        assert_eq!(takes(ARM64), ["arm64"]);
        let arm = ARM64
            .replace("7f454c4602", "7f454c4601")
            .replace("0200b700", "02002800");
        assert_eq!(takes(&arm), ["arm"]);
        let s390x = ARM64
            .replace("7f454c460201", "7f454c460202")
            .replace("0200b700", "00020016");
        assert_eq!(takes(&s390x.replace("fffeffffff", "fffffeffff")), ["s390x"]);
        assert_eq!(takes("enabled\noffset 0\nmagic 4d5a\n"), [""; 0]);
        // Bits outside the mask do not count.
        assert_eq!(
            takes(&ARM64.replace("magic 7f454c4602010100", "magic 7f454c4602010142")),
            ["arm64"]
        );
        assert_eq!(
            takes(&ARM64.replace("magic 7f454c46020101", "magic 7f454c46020102")),
            [""; 0]
        );
    }

    #[test]
    fn without_a_mask_every_bit_counts() {
        let exact: Vec<&str> = ARM64
            .lines()
            .filter(|line| !line.starts_with("mask"))
            .collect();
        let exact = exact.join("\n");
        assert_eq!(takes(&exact), ["arm64"]);
        assert_eq!(takes(&exact.replace("0200b700", "0400b700")), [""; 0]);
    }

    #[test]
    fn state_and_flags() {
        let handler = Handler::parse("x", ARM64).expect("a handler");
        assert!(handler.enabled && handler.works_in_containers());
        let off = ARM64
            .replace("enabled", "disabled")
            .replace("POF", "OC")
            .replace("flags", "bpf-interpreter z\nflags");
        let handler = Handler::parse("x", &off).expect("a handler");
        assert!(!handler.enabled && !handler.works_in_containers());
    }

    #[test]
    fn nonsense_is_no_handler() {
        for text in [
            "",
            "enabled",
            "enabled\nextension .exe",
            "magic 7f4",
            "magic zz",
            "offset -1\nmagic 7f",
            "magic ",
        ] {
            assert_eq!(Handler::parse("x", text), None, "{text}");
        }
        let far = Handler::parse("x", "enabled\noffset 18446744073709551615\nmagic 7f")
            .expect("a handler");
        assert!(architectures().all(|architecture| !far.takes(architecture)));
    }
}
