//! Where a kubelet begins to evict: below that, what we fetch would cost it pods.

use std::{fs::File, io::Read, path::Path};

/// Its usual place; kubeadm and most distributions write it there.
const CONFIG: &str = "var/lib/kubelet/config.yaml";
/// The kubelet's own directory: the file system that it calls `nodefs`.
pub(super) const NODEFS: &str = "var/lib/kubelet";
/// The most that is read (bytes).
const LARGEST: u64 = 1 << 20;

/// What must stay available on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Threshold {
    /// Hundredths of a percent of its size.
    Share(u64),
    Bytes(u64),
}

impl Threshold {
    /// In bytes, of a file system of `size` bytes.
    pub(super) fn of(self, size: u64) -> u64 {
        match self {
            Self::Share(share) => {
                let part = u128::from(size) * u128::from(share) / 10_000;
                u64::try_from(part).unwrap_or(u64::MAX)
            }
            Self::Bytes(bytes) => bytes,
        }
    }

    /// A percentage, or a quantity as Kubernetes writes it.
    fn parse(text: &str) -> Option<Self> {
        if let Some(percent) = text.strip_suffix('%') {
            return decimal(percent, 100)
                .filter(|share| *share <= 10_000)
                .map(Self::Share);
        }
        let split = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let unit = match unit {
            "" => 1,
            "k" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "T" => 1_000_000_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            _ => return None,
        };
        decimal(number, unit).map(Self::Bytes)
    }
}

/// A decimal number times `unit`.
fn decimal(text: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    // Nine digits are exact enough, and cannot overflow below.
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = fraction.parse::<u128>().unwrap_or(0) * u128::from(unit) / scale;
    let whole = u128::from(whole.parse::<u64>().ok()?) * u128::from(unit);
    u64::try_from(whole + part).ok()
}

/// The thresholds of a kubelet; `None` is one that it does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Eviction {
    pub(super) imagefs: Option<Threshold>,
    pub(super) nodefs: Option<Threshold>,
}

/// What a kubelet does without `evictionHard`.
const USUAL: Eviction = Eviction {
    imagefs: Some(Threshold::Share(15_00)),
    nodefs: Some(Threshold::Share(10_00)),
};

impl Eviction {
    /// Of the kubelet that is configured below `root`; `None` where none is.
    pub(super) fn read(root: &Path) -> Option<Self> {
        let mut text = String::new();
        let file = File::open(root.join(CONFIG)).ok()?;
        // What cannot be read has the usual thresholds: there is a kubelet.
        match file.take(LARGEST).read_to_string(&mut text) {
            Ok(_) => Some(Self::parse(&text)),
            Err(_) => Some(USUAL),
        }
    }

    /// Finds `evictionHard` in the text, a block of lines or in braces, YAML or JSON. This is
    /// no YAML reader: what it cannot make out is as if it were not there.
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !comment(line));
        let mut lines =
            lines.skip_while(|line| key(line).is_none_or(|(key, _)| key != "evictionHard"));
        let Some(first) = lines.next() else {
            return USUAL;
        };
        let (_, rest) = key(first).unwrap_or_default();
        // Whoever writes the section names all thresholds of it.
        let mut found = Self {
            imagefs: None,
            nodefs: None,
        };
        let note = |entry: &str| {
            if let Some((key, value)) = key(entry) {
                match key {
                    "imagefs.available" => found.imagefs = Threshold::parse(value),
                    "nodefs.available" => found.nodefs = Threshold::parse(value),
                    _ => {}
                }
            }
        };
        if let Some(rest) = rest.strip_prefix('{') {
            let rest = rest.to_owned() + &lines.collect::<String>();
            let inside = rest.split('}').next().unwrap_or_default();
            inside.split(',').for_each(note);
            return found;
        }
        let indent = depth(first);
        lines
            .take_while(|line| line.trim().is_empty() || depth(line) > indent)
            .for_each(note);
        found
    }
}

fn comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

fn depth(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Key and value, without quotes, comma and comment.
fn key(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once(':')?;
    let value = value.split(" #").next().unwrap_or_default();
    Some((bare(key), bare(value)))
}

fn bare(text: &str) -> &str {
    text.trim()
        .trim_end_matches(',')
        .trim_matches(|c| matches!(c, '"' | '\''))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn thresholds_are_read_as_kubernetes_writes_them() {
        for (text, read) in [
            ("15%", Some(Threshold::Share(1500))),
            ("7.5%", Some(Threshold::Share(750))),
            ("0%", Some(Threshold::Share(0))),
            ("101%", None),
            ("100Mi", Some(Threshold::Bytes(100 << 20))),
            ("1.5Gi", Some(Threshold::Bytes(3 << 29))),
            ("2G", Some(Threshold::Bytes(2_000_000_000))),
            ("4096", Some(Threshold::Bytes(4096))),
            ("-1Gi", None),
            ("Gi", None),
            ("1.2.3Gi", None),
            ("9999999999999999Ti", None),
            ("", None),
            ("%", None),
        ] {
            assert_eq!(Threshold::parse(text), read, "{text}");
        }
        assert_eq!(Threshold::Share(1500).of(1_000_000), 150_000);
        assert_eq!(Threshold::Bytes(7).of(1_000_000), 7);
    }

    #[test]
    fn the_section_is_found_in_every_form() {
        let none = Eviction {
            imagefs: None,
            nodefs: None,
        };
        let found = Eviction {
            imagefs: Some(Threshold::Share(2000)),
            nodefs: Some(Threshold::Bytes(1 << 30)),
        };
        for (text, read) in [
            ("", USUAL),
            (
                "kind: KubeletConfiguration\nevictionSoft:\n  imagefs.available: 1%\n",
                USUAL,
            ),
            ("# evictionHard: {}\n", USUAL),
            ("evictionHard: {}\n", none),
            (
                "evictionHard:\n  memory.available: 100Mi\nimagefs.available: 20%\n",
                none,
            ),
            (
                "evictionHard:\n  imagefs.available: \"20%\"  # ours\n\n  # more\n  memory.available: 100Mi\n  nodefs.available: 1Gi\nx: y\n",
                found,
            ),
            (
                "evictionHard: {imagefs.available: 20%, 'nodefs.available': '1Gi'}\n",
                found,
            ),
            (
                "{\"evictionHard\": {\"imagefs.available\": \"20%\", \"nodefs.available\": \"1Gi\"}}",
                USUAL,
            ),
            (
                "{\n  \"evictionHard\": {\n    \"imagefs.available\": \"20%\",\n    \"nodefs.available\": \"1Gi\"\n  },\n  \"x\": 1\n}",
                found,
            ),
            (
                "evictionHard:\n  imagefs.available: much\n  nodefs.available: 1Gi\n",
                Eviction {
                    imagefs: None,
                    ..found
                },
            ),
        ] {
            assert_eq!(Eviction::parse(text), read, "{text}");
        }
    }

    #[test]
    fn no_kubelet_has_no_threshold() {
        let root = tempfile::tempdir().expect("a folder");
        assert_eq!(Eviction::read(root.path()), None);
        std::fs::create_dir_all(root.path().join(NODEFS)).expect("a folder");
        std::fs::write(root.path().join(CONFIG), "kind: KubeletConfiguration").expect("a file");
        assert_eq!(Eviction::read(root.path()), Some(USUAL));
        std::fs::write(root.path().join(CONFIG), [0xff]).expect("a file");
        assert_eq!(Eviction::read(root.path()), Some(USUAL));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "[ -~\n]{0,200}", tail in "[ -~\n]{0,100}") {
            let _ = Eviction::parse(&text);
            let _ = Eviction::parse(&format!("evictionHard:{tail}"));
            let _ = Threshold::parse(&text).map(|threshold| threshold.of(u64::MAX));
        }
    }
}
