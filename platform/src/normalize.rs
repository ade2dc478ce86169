//! The name tables, as data, and the two functions that use them.
//!
//! [`canonical`] is containerd's normalisation and nothing else; [`lenient_architecture`] and
//! [`lenient_variant`] add the spellings that people type.

/// Operating systems that may stand alone in user input (Go's list, and what indexes carry besides).
const SYSTEMS: &[&str] = &[
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "macos",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "wasi",
    "wasip1",
    "wasip2",
    "windows",
    "zephyr",
    "zos",
];

/// Architectures that may stand alone in user input, in their canonical names.
const ARCHITECTURES: &[&str] = &[
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "armbe",
    "arm64",
    "arm64be",
    "loong64",
    "mips",
    "mipsle",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "ppc",
    "ppc64",
    "ppc64le",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
];

/// Spellings people type that containerd does not know: name, architecture, variant.
/// (`uname -m`, Debian's names, compiler names.)
const SPELLINGS: &[(&str, &str, &str)] = &[
    ("i486", "386", ""),
    ("i586", "386", ""),
    ("i686", "386", ""),
    ("x86", "386", ""),
    ("ia32", "386", ""),
    ("x64", "amd64", ""),
    ("x86-64-v1", "amd64", ""),
    ("x86-64-v2", "amd64", "v2"),
    ("x86-64-v3", "amd64", "v3"),
    ("x86-64-v4", "amd64", "v4"),
    ("x86_64_v2", "amd64", "v2"),
    ("x86_64_v3", "amd64", "v3"),
    ("x86_64_v4", "amd64", "v4"),
    ("amd64v1", "amd64", ""),
    ("amd64v2", "amd64", "v2"),
    ("amd64v3", "amd64", "v3"),
    ("amd64v4", "amd64", "v4"),
    ("arm64v8", "arm64", ""),
    ("armv8", "arm", "v8"),
    ("armv8l", "arm", "v8"),
    ("arm32v8", "arm", "v8"),
    ("armv7", "arm", "v7"),
    ("armv7a", "arm", "v7"),
    ("armv7l", "arm", "v7"),
    ("armv7hf", "arm", "v7"),
    ("arm32v7", "arm", "v7"),
    ("armv6", "arm", "v6"),
    ("armv6l", "arm", "v6"),
    ("armv6hf", "arm", "v6"),
    ("arm32v6", "arm", "v6"),
    ("armv5", "arm", "v5"),
    ("armv5l", "arm", "v5"),
    ("armv5te", "arm", "v5"),
    ("armv5tel", "arm", "v5"),
    ("armv5tejl", "arm", "v5"),
    ("arm32v5", "arm", "v5"),
    ("loongarch64", "loong64", ""),
    ("mips64el", "mips64le", ""),
    ("mipsel", "mipsle", ""),
    ("powerpc64le", "ppc64le", ""),
    ("ppc64el", "ppc64le", ""),
    ("rv64", "riscv64", ""),
    ("wasm32", "wasm", ""),
];

/// Spellings of a variant, by architecture, that containerd keeps as they are: as typed, as meant.
const VARIANT_SPELLINGS: &[(&str, &str, &str)] = &[
    ("arm", "armv8", "v8"),
    ("arm", "v8l", "v8"),
    ("arm", "8l", "v8"),
    ("arm", "armv7", "v7"),
    ("arm", "v7l", "v7"),
    ("arm", "7l", "v7"),
    ("arm", "v7a", "v7"),
    ("arm", "v7hf", "v7"),
    ("arm", "armv6", "v6"),
    ("arm", "v6l", "v6"),
    ("arm", "6l", "v6"),
    ("arm", "v6hf", "v6"),
    ("arm", "armv5", "v5"),
    ("arm", "v5l", "v5"),
    ("arm", "v5te", "v5"),
    ("arm", "v5tel", "v5"),
    ("arm64", "armv8", ""),
    ("arm64", "armv8-a", ""),
    ("arm64", "v8l", ""),
    ("arm64", "armv9", "v9"),
    ("amd64", "1", ""),
    ("amd64", "2", "v2"),
    ("amd64", "3", "v3"),
    ("amd64", "4", "v4"),
    ("amd64", "x86-64-v2", "v2"),
    ("amd64", "x86-64-v3", "v3"),
    ("amd64", "x86-64-v4", "v4"),
];

/// containerd's normalisation of an operating system. Empty means linux.
pub(crate) fn canonical_os(os: &str) -> String {
    let lower = os.to_ascii_lowercase();
    match lower.as_str() {
        "" => "linux".to_owned(),
        "macos" => "darwin".to_owned(),
        _ => lower,
    }
}

/// containerd's normalisation of an architecture and its variant, and nothing else.
pub(crate) fn canonical(architecture: &str, variant: &str) -> (String, String) {
    let architecture = architecture.to_ascii_lowercase();
    let variant = variant.to_ascii_lowercase();
    let (architecture, variant) = match architecture.as_str() {
        "i386" => ("386", ""),
        "x86_64" | "x86-64" | "amd64" => (
            "amd64",
            if variant == "v1" {
                ""
            } else {
                variant.as_str()
            },
        ),
        "aarch64" | "arm64" => (
            "arm64",
            match variant.as_str() {
                "8" | "v8" | "v8.0" => "",
                "9" | "9.0" | "v9.0" => "v9",
                other => other,
            },
        ),
        "armhf" => ("arm", "v7"),
        "armel" => ("arm", "v6"),
        "arm" => (
            "arm",
            match variant.as_str() {
                "" | "7" => "v7",
                "5" => "v5",
                "6" => "v6",
                "8" => "v8",
                other => other,
            },
        ),
        other => (other, variant.as_str()),
    };
    (architecture.to_owned(), variant.to_owned())
}

/// Is this the name of an operating system that may stand alone?
pub(crate) fn is_system(name: &str) -> bool {
    SYSTEMS.contains(&name.to_ascii_lowercase().as_str())
}

/// What an architecture typed by a person means: architecture and variant, both canonical.
/// `None`: no such name.
pub(crate) fn lenient_architecture(name: &str) -> Option<(String, String)> {
    let lower = name.to_ascii_lowercase();
    if let Some((_, architecture, variant)) =
        SPELLINGS.iter().find(|(spelling, ..)| *spelling == lower)
    {
        return Some(((*architecture).to_owned(), (*variant).to_owned()));
    }
    let (architecture, variant) = canonical(&lower, "");
    ARCHITECTURES
        .contains(&architecture.as_str())
        .then_some((architecture, variant))
}

/// What a variant typed by a person means for a canonical architecture.
pub(crate) fn lenient_variant(architecture: &str, variant: &str) -> String {
    let lower = variant.to_ascii_lowercase();
    VARIANT_SPELLINGS
        .iter()
        .find(|(of, spelling, _)| *of == architecture && *spelling == lower)
        .map_or_else(
            || canonical(architecture, &lower).1,
            |(_, _, meant)| (*meant).to_owned(),
        )
}

/// A known name for a variant that containerd matches with nothing, for a hint.
pub(crate) fn known_spelling(architecture: &str, variant: &str) -> Option<String> {
    VARIANT_SPELLINGS
        .iter()
        .find(|(of, spelling, _)| *of == architecture && *spelling == variant)
        .map(|(_, _, meant)| (*meant).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerd_table() {
        for (input, expected) in [
            (("i386", "v1"), ("386", "")),
            (("x86_64", "v1"), ("amd64", "")),
            (("X86-64", ""), ("amd64", "")),
            (("amd64", "V3"), ("amd64", "v3")),
            (("aarch64", "8"), ("arm64", "")),
            (("arm64", "v8.0"), ("arm64", "")),
            (("arm64", "v8.1"), ("arm64", "v8.1")),
            (("arm64", "9.0"), ("arm64", "v9")),
            (("armhf", "v6"), ("arm", "v7")),
            (("armel", ""), ("arm", "v6")),
            (("arm", ""), ("arm", "v7")),
            (("arm", "5"), ("arm", "v5")),
            (("arm", "8"), ("arm", "v8")),
            (("arm", "armv7"), ("arm", "armv7")),
            (("armv7", ""), ("armv7", "")),
            (("Sun4M", "X"), ("sun4m", "x")),
        ] {
            let (architecture, variant) = canonical(input.0, input.1);
            assert_eq!(
                (architecture.as_str(), variant.as_str()),
                expected,
                "{input:?}"
            );
        }
    }

    #[test]
    fn spelling_tables_lead_to_canonical_names() {
        for (name, architecture, variant) in SPELLINGS {
            let (a, v) = canonical(architecture, variant);
            assert_eq!(
                (a.as_str(), v.as_str()),
                (*architecture, *variant),
                "{name}"
            );
            assert!(ARCHITECTURES.contains(architecture), "{name}");
        }
        for (architecture, name, variant) in VARIANT_SPELLINGS {
            assert_eq!(
                canonical(architecture, variant).1,
                *variant,
                "{architecture} {name}"
            );
        }
    }
}
