//! `only`: on which hosts a declared image is wanted. Pure.

use std::collections::BTreeMap;

use edgepull_platform::Platform;

use super::Traits;

/// Conditions that all have to hold; an absent one does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Only {
    /// Architectures by their OCI names.
    pub(super) arch: Option<Vec<String>>,
    /// A pattern for the machine's model.
    pub(super) model: Option<String>,
    /// Labels that the host has, with these values.
    pub(super) labels: BTreeMap<String, String>,
}

impl Only {
    pub(super) fn takes(&self, host: &Traits) -> bool {
        let arch = self
            .arch
            .as_ref()
            .is_none_or(|list| list.contains(&host.arch));
        let model = self.model.as_ref().is_none_or(|pattern| {
            let model = host.model.as_deref();
            model.is_some_and(|model| fits(pattern, model))
        });
        let labels = self
            .labels
            .iter()
            .all(|(name, value)| host.labels.get(name) == Some(value));
        arch && model && labels
    }
}

/// The OCI name of an architecture as people write it (`aarch64`, `x86_64`, `armhf`).
pub(super) fn architecture(name: &str) -> Option<String> {
    let alone = Platform::parse(name).ok().filter(|_| !name.contains('/'))?;
    // A system alone would be taken for this program's own architecture on it.
    let under = Platform::parse(&format!("linux/{name}")).ok()?;
    let same = alone.os() == "linux" && alone.architecture() == under.architecture();
    same.then(|| alone.architecture().to_owned())
}

/// `*` is any text, `?` any one character, all else itself.
fn fits(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut read) = (0, 0);
    // Where the last `*` stood, and how far the text was read then.
    let mut star: Option<(usize, usize)> = None;
    while let Some(found) = text.get(read) {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, read));
                at += 1;
            }
            Some(wanted) if *wanted == '?' || wanted == found => {
                at += 1;
                read += 1;
            }
            _ => {
                let Some((star_at, star_read)) = star else {
                    return false;
                };
                at = star_at + 1;
                read = star_read + 1;
                star = Some((star_at, read));
            }
        }
    }
    pattern.iter().skip(at).all(|left| *left == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Refresh;

    #[test]
    fn patterns() {
        let pi = "Raspberry Pi 4 Model B Rev 1.4";
        for (pattern, text, is) in [
            ("Raspberry Pi 4*", pi, true),
            ("*Pi ? Model*", pi, true),
            ("*1.4", pi, true),
            (pi, pi, true),
            ("**", pi, true),
            ("*", "", true),
            ("", "", true),
            ("Raspberry Pi 5*", pi, false),
            ("Raspberry Pi 4", pi, false),
            ("raspberry*", pi, false),
            ("", pi, false),
            ("?", "", false),
            ("a*b*c", "abbbd", false),
            ("a*b*c", "abxbxc", true),
            ("?ö?", "xöx", true),
        ] {
            assert_eq!(fits(pattern, text), is, "{pattern} {text}");
        }
    }

    #[test]
    fn architectures_as_people_write_them() {
        for (name, oci) in [
            ("arm64", Some("arm64")),
            ("aarch64", Some("arm64")),
            ("x86_64", Some("amd64")),
            ("armhf", Some("arm")),
            ("riscv64", Some("riscv64")),
            ("linux", None),
            ("windows", None),
            ("arm46", None),
            ("linux/arm64", None),
            ("arm/v7", None),
            ("", None),
        ] {
            assert_eq!(architecture(name).as_deref(), oci, "{name}");
        }
    }

    #[test]
    fn every_condition_counts() {
        let labels = |list: &[(&str, &str)]| {
            let pairs = list.iter();
            pairs
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect()
        };
        let host = Traits {
            arch: "arm64".to_owned(),
            model: Some("Raspberry Pi 4 Model B".to_owned()),
            labels: labels(&[("site", "berlin"), ("line", "2")]),
            namespace: "default".to_owned(),
            default_refresh: Refresh::Never,
        };
        let only = |arch: Option<&str>, model: Option<&str>, list: &[(&str, &str)]| Only {
            arch: arch.map(|arch| vec!["amd64".to_owned(), arch.to_owned()]),
            model: model.map(str::to_owned),
            labels: labels(list),
        };
        for (only, takes) in [
            (only(None, None, &[]), true),
            (
                only(Some("arm64"), Some("*Pi 4*"), &[("site", "berlin")]),
                true,
            ),
            (only(Some("arm"), None, &[]), false),
            (only(None, Some("*Pi 5*"), &[]), false),
            (only(None, None, &[("site", "paris")]), false),
            (only(None, None, &[("rack", "1")]), false),
            (
                only(None, None, &[("site", "berlin"), ("line", "3")]),
                false,
            ),
        ] {
            assert_eq!(only.takes(&host), takes, "{only:?}");
        }
        let nameless = Traits {
            model: None,
            ..host
        };
        assert!(!only(None, Some("*"), &[]).takes(&nameless));
    }

    proptest::proptest! {
        #[test]
        fn a_text_fits_itself_and_whatever_is_left_out_of_it(text in "[ab ]{0,12}", cut in 0_usize..12) {
            proptest::prop_assert!(fits(&text, &text));
            let cut = cut.min(text.len());
            let begins = format!("{}*", &text[..cut]);
            let ends = format!("*{}", &text[cut..]);
            proptest::prop_assert!(fits(&begins, &text) && fits(&ends, &text));
            proptest::prop_assert!(fits(&"?".repeat(text.len()), &text));
        }
    }
}
