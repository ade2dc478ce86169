//! The text of `/proc/cpuinfo`, and what it says of a CPU.

use std::collections::BTreeSet;

/// A CPU description: one list of keys and values for each processor, and for the tail.
#[derive(Debug, Default)]
pub(crate) struct CpuInfo {
    blocks: Vec<Vec<(String, String)>>,
}

/// Which architecture's kernel wrote a description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    X86,
    Arm,
    S390,
    Power,
    Riscv,
    Loong,
    Unknown,
}

/// Flags that each level of x86-64 adds, as the kernel spells them: SSE3 is `pni`, LZCNT is `abm`.
const LEVELS: &[(&str, &[&str])] = &[
    (
        "v1",
        &[
            "cmov", "cx8", "fpu", "fxsr", "mmx", "syscall", "sse", "sse2",
        ],
    ),
    (
        "v2",
        &[
            "cx16", "lahf_lm", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2",
        ],
    ),
    (
        "v3",
        &[
            "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave",
        ],
    ),
    (
        "v4",
        &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"],
    ),
];

impl CpuInfo {
    /// Reads any text; what has no colon is dropped.
    pub(crate) fn parse(text: &str) -> CpuInfo {
        let mut blocks = vec![Vec::new()];
        for line in text.lines() {
            if line.trim().is_empty() {
                blocks.push(Vec::new());
            } else if let Some((key, value)) = line.split_once(':')
                && let Some(block) = blocks.last_mut()
            {
                block.push((key.trim().to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
        blocks.retain(|block| !block.is_empty());
        CpuInfo { blocks }
    }

    /// All values of a key, in order.
    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.blocks
            .iter()
            .flatten()
            .filter(move |(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// The first value of a key.
    pub(crate) fn first<'a>(&'a self, key: &'a str) -> Option<&'a str> {
        self.all(key).next()
    }

    /// Which kernel wrote it.
    pub(crate) fn shape(&self) -> Shape {
        let has = |key: &'static str| self.first(key).is_some();
        let isa = self.first("isa").unwrap_or_default().to_ascii_lowercase();
        if self
            .first("vendor_id")
            .is_some_and(|vendor| vendor.starts_with("IBM"))
        {
            Shape::S390
        } else if has("cpu implementer") || has("cpu architecture") {
            Shape::Arm
        } else if has("flags") {
            Shape::X86
        } else if has("hart") || isa.starts_with("rv") {
            Shape::Riscv
        } else if isa.contains("loongarch") {
            Shape::Loong
        } else if has("cpu")
            && self
                .first("revision")
                .is_some_and(|revision| revision.contains("pvr"))
        {
            Shape::Power
        } else {
            Shape::Unknown
        }
    }

    /// What every core has: words that each line of features or flags has. `None` where there is
    /// no such line, or an empty one, as a kernel without a 32-bit mode writes.
    pub(crate) fn features(&self) -> Option<BTreeSet<String>> {
        let key = match self.shape() {
            Shape::Arm => "features",
            Shape::X86 => "flags",
            _ => return None,
        };
        let words = |line: &str| -> BTreeSet<String> {
            line.split_ascii_whitespace().map(str::to_owned).collect()
        };
        let common = self
            .all(key)
            .map(words)
            .reduce(|common, line| &common & &line)?;
        (!common.is_empty()).then_some(common)
    }

    /// The processor's name, under any of the keys that Arm kernels have used. A bare number
    /// under `processor` is an index.
    pub(crate) fn arm_name(&self) -> Option<&str> {
        ["model name", "processor name", "processor"]
            .into_iter()
            .flat_map(|key| {
                self.blocks
                    .iter()
                    .flatten()
                    .filter(move |(name, _)| name == key)
            })
            .map(|(_, value)| value.as_str())
            .find(|value| value.parse::<u32>().is_err())
    }

    /// The instruction set in the processor's name: 7 for `... (v7l)`.
    pub(crate) fn arm_name_version(&self) -> Option<u8> {
        let (_, rest) = self.arm_name()?.rsplit_once("(v")?;
        let (digits, _) = rest.split_once(['l', 'b', ')'])?;
        digits.parse().ok()
    }

    /// Does a 64-bit kernel's description show 64-bit features?
    pub(crate) fn has_arm64_features(&self) -> bool {
        self.first("features").is_some_and(|features| {
            features
                .split_ascii_whitespace()
                .any(|name| name == "asimd" || name == "fp")
        }) || self.first("cpu architecture") == Some("AArch64")
            || self
                .arm_name()
                .is_some_and(|name| name.starts_with("AArch64"))
    }

    /// The implementer and part number of every core, without repetition.
    pub(crate) fn arm_cores(&self) -> Vec<(u32, u32)> {
        let mut cores: Vec<_> = self
            .all("cpu implementer")
            .filter_map(hex)
            .zip(self.all("cpu part").filter_map(hex))
            .collect();
        cores.sort_unstable();
        cores.dedup();
        cores
    }

    /// The x86-64 level that every processor has, by its flags.
    pub(crate) fn x86_level(&self) -> Option<&'static str> {
        let mut lists: Vec<&str> = self.all("flags").collect();
        lists.sort_unstable();
        lists.dedup();
        lists.into_iter().map(level_of).min()?
    }

    /// Is the 64-bit mode of x86 among the flags?
    pub(crate) fn has_long_mode(&self) -> bool {
        self.first("flags")
            .is_some_and(|flags| flags.split_ascii_whitespace().any(|flag| flag == "lm"))
    }
}

fn hex(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

fn level_of(flags: &str) -> Option<&'static str> {
    let flags: std::collections::HashSet<&str> = flags.split_ascii_whitespace().collect();
    LEVELS
        .iter()
        .take_while(|(_, needs)| needs.iter().all(|flag| flags.contains(flag)))
        .last()
        .map(|(level, _)| *level)
}

/// What is known of a 64-bit core's 32-bit mode: a cross-check, never the decision, because
/// hypervisors and firmware can hide the mode and kernels can lack it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aarch32 {
    Yes,
    No,
}

/// 64-bit cores by implementer and part number.
const CORES: &[(u32, &[u32], Aarch32)] = &[
    // A35, A53, A57, A72, A73; A55, A75; A76, A77, A78, A78AE, A78C, X1, X1C; N1, V1, N2; A710.
    (
        0x41,
        &[
            0xd04, 0xd03, 0xd07, 0xd08, 0xd09, 0xd05, 0xd0a, 0xd0b, 0xd0d, 0xd41, 0xd42, 0xd4b,
            0xd44, 0xd4c, 0xd0c, 0xd40, 0xd49, 0xd47,
        ],
        Aarch32::Yes,
    ),
    // A34; A65, A65AE, E1; A715, X2, X3; V2; A520, A720, X4, V3AE, V3, X925, A725, N3, A320.
    (
        0x41,
        &[
            0xd02, 0xd06, 0xd43, 0xd4a, 0xd4d, 0xd48, 0xd4e, 0xd4f, 0xd80, 0xd81, 0xd82, 0xd83,
            0xd84, 0xd85, 0xd87, 0xd8e, 0xd8f,
        ],
        Aarch32::No,
    ),
    // Azure Cobalt 100.
    (0x6d, &[0xd49], Aarch32::Yes),
    // Ampere-1a; ThunderX; Oryon.
    (0xc0, &[0xac4], Aarch32::No),
    (0x43, &[0x0a0, 0x0a1, 0x0a2, 0x0a3], Aarch32::No),
    (0x51, &[0x001], Aarch32::No),
];

/// Apple's cores have no 32-bit mode at all.
const APPLE: u32 = 0x61;

/// What the table says of a core.
pub(crate) fn aarch32_of(core: (u32, u32)) -> Option<Aarch32> {
    if core.0 == APPLE {
        return Some(Aarch32::No);
    }
    CORES
        .iter()
        .find(|(implementer, parts, _)| *implementer == core.0 && parts.contains(&core.1))
        .map(|(.., answer)| *answer)
}

/// Cores of Arm's sixth generation, which may call themselves the seventh: ARM1136, ARM1156,
/// ARM1176 and the multi-core ARM11.
pub(crate) fn is_armv6_core(core: (u32, u32)) -> bool {
    core.0 == 0x41 && matches!(core.1, 0xb36 | 0xb56 | 0xb76 | 0xb02)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_by_flags() {
        let all: Vec<&str> = LEVELS
            .iter()
            .flat_map(|(_, flags)| flags.iter().copied())
            .collect();
        let level = |drop: &str| {
            let flags: Vec<_> = all.iter().copied().filter(|flag| *flag != drop).collect();
            CpuInfo::parse(&format!("flags\t: {}\n", flags.join(" "))).x86_level()
        };
        assert_eq!(level(""), Some("v4"));
        for (at, (_, flags)) in LEVELS.iter().enumerate() {
            let below = at
                .checked_sub(1)
                .and_then(|below| LEVELS.get(below))
                .map(|(level, _)| *level);
            for flag in *flags {
                assert_eq!(level(flag), below, "without {flag}");
            }
        }
    }

    /// The levels as glibc defines them, written out a second time.
    #[test]
    fn levels_are_complete() {
        let v1 = "cmov cx8 fpu fxsr mmx syscall sse sse2";
        let v2 = "cx16 lahf_lm popcnt pni ssse3 sse4_1 sse4_2";
        let v3 = "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave";
        let v4 = "avx512f avx512bw avx512cd avx512dq avx512vl";
        let written: Vec<String> = LEVELS.iter().map(|(_, flags)| flags.join(" ")).collect();
        assert_eq!(written, [v1, v2, v3, v4]);
    }

    #[test]
    fn cores_with_and_without_a_32_bit_mode() {
        for (core, expected) in [
            ((0x41, 0xd03), Some(Aarch32::Yes)),
            ((0x41, 0xd0b), Some(Aarch32::Yes)),
            ((0x41, 0xd49), Some(Aarch32::Yes)),
            ((0x6d, 0xd49), Some(Aarch32::Yes)),
            ((0x41, 0xd4f), Some(Aarch32::No)),
            ((0x41, 0xd02), Some(Aarch32::No)),
            ((0x43, 0x0a1), Some(Aarch32::No)),
            ((0x61, 0x024), Some(Aarch32::No)),
            ((0xc0, 0xac4), Some(Aarch32::No)),
            ((0x51, 0x001), Some(Aarch32::No)),
            // An option of the core, by revision.
            ((0x41, 0xd46), None),
            ((0x43, 0xd4f), None),
        ] {
            assert_eq!(aarch32_of(core), expected, "{core:x?}");
        }
        assert!(
            [0xb36, 0xb56, 0xb76, 0xb02]
                .into_iter()
                .all(|part| is_armv6_core((0x41, part)))
        );
        assert!(!is_armv6_core((0x41, 0xc07)) && !is_armv6_core((0x42, 0xb76)));
    }

    #[test]
    fn the_weakest_processor_decides() {
        let v1 = LEVELS
            .first()
            .map(|(_, flags)| flags.join(" "))
            .unwrap_or_default();
        let v2 = format!(
            "{v1} {}",
            LEVELS
                .get(1)
                .map(|(_, flags)| flags.join(" "))
                .unwrap_or_default()
        );
        let text = format!("processor: 0\nflags: {v2}\n\nprocessor: 1\nflags: {v1}\n");
        assert_eq!(CpuInfo::parse(&text).x86_level(), Some("v1"));
    }

    #[test]
    fn names_of_arm_processors() {
        for (text, version) in [
            (
                "processor : 0\nmodel name : ARMv6-compatible processor rev 7 (v6l)\n",
                Some(6),
            ),
            (
                "Processor : ARMv7 Processor rev 2 (v7l)\nprocessor : 0\n",
                Some(7),
            ),
            (
                "Processor name : Feroceon 88F6281 rev 1 (v5l) @ 1.2 GHz\n",
                Some(5),
            ),
            ("processor : 0\nCPU architecture: 8\n", None),
            ("model name : ARM (v\n", None),
        ] {
            assert_eq!(CpuInfo::parse(text).arm_name_version(), version, "{text}");
        }
    }

    #[test]
    fn a_key_may_start_with_a_hash() {
        let info = CpuInfo::parse("vendor_id : IBM/S390\n# processors : 3\n");
        assert_eq!(info.first("# processors"), Some("3"));
        assert_eq!(info.shape(), Shape::S390);
    }
}
