//! The value type.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::ParsePlatformError;
use crate::normalize::{canonical, canonical_os, is_system, lenient_architecture, lenient_variant};

/// Longer input is refused unread.
const LONGEST_INPUT: usize = 512;

/// A normalised platform. It exists only in normal form: made from what a person typed by
/// [`Platform::parse`], or from what an index or a config says by [`Platform::from_label`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: String,
    os_version: Option<String>,
    os_features: Vec<String>,
}

/// A platform as an index entry or an image config spells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Label {
    /// `os`
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub os: String,
    /// `architecture`
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub architecture: String,
    /// `variant`
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub variant: String,
    /// `os.version`
    #[serde(
        rename = "os.version",
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub os_version: String,
    /// `os.features`
    #[serde(
        rename = "os.features",
        deserialize_with = "nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
}

fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Platform {
    /// Reads what a person typed; see the crate's documentation for the grammar. A missing
    /// system means linux; a system alone means this program's own architecture, as in containerd.
    pub fn parse(input: &str) -> Result<Platform, ParsePlatformError> {
        if input.is_empty() {
            return Err(ParsePlatformError::Empty);
        }
        if input.len() > LONGEST_INPUT {
            return Err(ParsePlatformError::TooLong(input.len()));
        }
        let mut parts = input.split('/');
        let first = parts.next().unwrap_or_default();
        let second = parts.next();
        let third = parts.next();
        if parts.next().is_some() {
            return Err(ParsePlatformError::TooManyParts(input.to_owned()));
        }
        for part in [second, third].into_iter().flatten() {
            check_name(input, part)?;
        }
        let (os, architecture, variant) = match (second, third) {
            (None, _) => {
                if let Some(found) = lenient_architecture(first) {
                    return Ok(Platform::assemble("linux", found, OsOptions::default()));
                }
                (first, None, None)
            }
            (Some(variant), None) if lenient_architecture(first).is_some() => {
                ("linux", Some(first), Some(variant))
            }
            (Some(architecture), variant) => (first, Some(architecture), variant),
        };
        let (os, options) = split_os(input, os)?;
        // It would read back as an architecture.
        if lenient_architecture(os).is_some() {
            return Err(ParsePlatformError::BadPart(input.to_owned(), os.to_owned()));
        }
        let found = match architecture {
            None if is_system(os) => own_architecture(),
            None => return Err(ParsePlatformError::Unknown(input.to_owned())),
            Some(name) => {
                let (architecture, implied) =
                    lenient_architecture(name).unwrap_or_else(|| canonical(name, ""));
                match variant {
                    None => (architecture, implied),
                    Some(typed) => {
                        let variant = lenient_variant(&architecture, typed);
                        (architecture, variant)
                    }
                }
            }
        };
        let platform = Platform::assemble(os, found, options);
        // The printed form can be longer than what was typed (`arm` is `arm/v7`); what is
        // printed must be accepted again.
        let printed = platform.to_string().len();
        if printed > LONGEST_INPUT {
            return Err(ParsePlatformError::TooLong(printed));
        }
        Ok(platform)
    }

    /// What an index entry or a config says, under containerd's normalisation and nothing else.
    ///
    /// An empty `os` means linux. `None` when neither `os` nor `architecture` is there: such a
    /// label names no platform and matches nothing. With an `os` and no architecture it matches
    /// nothing either, but can be shown (`linux/?`).
    pub fn from_label(label: &Label) -> Option<Platform> {
        if label.os.is_empty() && label.architecture.is_empty() {
            return None;
        }
        let options = OsOptions {
            version: label.os_version.clone(),
            features: label.os_features.clone(),
        };
        let found = canonical(&label.architecture, &label.variant);
        Some(Platform::assemble(&label.os, found, options))
    }

    /// A linux platform from canonical names.
    pub(crate) fn linux(architecture: &str, variant: &str) -> Platform {
        Platform::assemble(
            "linux",
            canonical(architecture, variant),
            OsOptions::default(),
        )
    }

    fn assemble(
        os: &str,
        (architecture, variant): (String, String),
        options: OsOptions,
    ) -> Platform {
        let OsOptions {
            version,
            mut features,
        } = options;
        features.retain(|feature| !feature.is_empty());
        features.sort_unstable();
        features.dedup();
        Platform {
            os: canonical_os(os),
            architecture,
            variant,
            os_version: Some(version).filter(|version| !version.is_empty()),
            os_features: features,
        }
    }

    /// The same system, with another architecture and variant.
    pub(crate) fn with(&self, architecture: &str, variant: &str) -> Platform {
        let (architecture, variant) = canonical(architecture, variant);
        Platform {
            architecture,
            variant,
            ..self.clone()
        }
    }

    /// The same architecture on another system, without the system's version.
    pub(crate) fn on(&self, os: &str) -> Platform {
        Platform {
            os: canonical_os(os),
            os_version: None,
            ..self.clone()
        }
    }

    /// The operating system, lower case: `linux`, `windows`, `darwin`, `zephyr`.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// The architecture by its OCI name: `amd64`, `arm64`, `arm`. Empty only for a label without one.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The variant in normal form: empty for arm64 v8 and amd64 v1.
    pub fn variant(&self) -> &str {
        &self.variant
    }

    /// The system's version, which decides on Windows only.
    pub fn os_version(&self) -> Option<&str> {
        self.os_version.as_deref()
    }

    /// What the system must have, sorted, without repetition.
    pub fn os_features(&self) -> &[String] {
        &self.os_features
    }

    /// `os/architecture[/variant]` without version and features; a missing architecture is `?`.
    pub fn base(&self) -> String {
        let mut text = Escaped(&self.os).to_string();
        text.push('/');
        text.push_str(if self.architecture.is_empty() {
            "?"
        } else {
            ""
        });
        text.push_str(&Escaped(&self.architecture).to_string());
        if !self.variant.is_empty() {
            text.push('/');
            text.push_str(&Escaped(&self.variant).to_string());
        }
        text
    }

    /// For a message: [`Platform::base`], then version and features in words.
    pub fn described(&self) -> String {
        let version = self
            .os_version
            .iter()
            .map(|version| format!(" (os.version {})", printable(version)));
        let features = Some(self.os_features.join(",")).filter(|features| !features.is_empty());
        let features = features
            .iter()
            .map(|features| format!(" (os.features {})", printable(features)));
        std::iter::once(self.base())
            .chain(version)
            .chain(features)
            .collect()
    }
}

/// What stands in the parentheses after a system.
#[derive(Debug, Default)]
struct OsOptions {
    version: String,
    features: Vec<String>,
}

/// This program's own architecture and variant, frozen at build like Go's.
pub(crate) fn own_architecture() -> (String, String) {
    let name = match std::env::consts::ARCH {
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        "mips64" if cfg!(target_endian = "little") => "mips64le",
        "mips" if cfg!(target_endian = "little") => "mipsle",
        "arm" if cfg!(not(target_feature = "v7")) => "armel",
        name => name,
    };
    lenient_architecture(name).unwrap_or_else(|| canonical(name, ""))
}

fn is_name(part: &str) -> bool {
    !part.is_empty()
        && part
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

fn check_name(input: &str, part: &str) -> Result<(), ParsePlatformError> {
    if is_name(part) {
        Ok(())
    } else {
        Err(ParsePlatformError::BadPart(
            input.to_owned(),
            part.to_owned(),
        ))
    }
}

/// Splits `os`, `os(version)`, `os(+feature)`, `os(version+feature+feature)`.
fn split_os<'a>(input: &str, part: &'a str) -> Result<(&'a str, OsOptions), ParsePlatformError> {
    let Some((os, rest)) = part.split_once('(') else {
        check_name(input, part)?;
        return Ok((part, OsOptions::default()));
    };
    check_name(input, os)?;
    let bad = || ParsePlatformError::BadOsOptions(input.to_owned());
    let inner = rest.strip_suffix(')').ok_or_else(bad)?;
    let mut pieces = inner
        .split('+')
        .map(|piece| unescape(piece).ok_or_else(bad));
    let version = pieces.next().unwrap_or(Ok(String::new()))?;
    let features = pieces.collect::<Result<Vec<_>, _>>()?;
    if features.iter().any(String::is_empty) {
        return Err(bad());
    }
    Ok((os, OsOptions { version, features }))
}

/// Undoes [`Escaped`]. `None` for characters that must be escaped, and for bad escapes.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut plain = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let high = hex(bytes.next()?)?;
                let low = hex(bytes.next()?)?;
                plain.push(high << 4 | low);
            }
            _ if is_plain(byte) => plain.push(byte),
            _ => return None,
        }
    }
    String::from_utf8(plain).ok()
}

fn hex(digit: u8) -> Option<u8> {
    u8::try_from(char::from(digit).to_digit(16)?).ok()
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-')
}

/// Percent-encodes whatever would make the printed form ambiguous, or upset a terminal.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes() {
            if is_plain(byte) {
                write!(f, "{}", char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

/// Foreign text for a message: control characters become `?`, and it ends at some point.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .take(200)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = self.base();
        let (os, rest) = base.split_once('/').unwrap_or((&base, ""));
        f.write_str(os)?;
        if self.os_version.is_some() || !self.os_features.is_empty() {
            write!(
                f,
                "({}",
                Escaped(self.os_version.as_deref().unwrap_or_default())
            )?;
            for feature in &self.os_features {
                write!(f, "+{}", Escaped(feature))?;
            }
            f.write_str(")")?;
        }
        write!(f, "/{rest}")
    }
}

impl std::str::FromStr for Platform {
    type Err = ParsePlatformError;

    fn from_str(input: &str) -> Result<Platform, ParsePlatformError> {
        Platform::parse(input)
    }
}

impl Serialize for Platform {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Platform {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Platform, D::Error> {
        let text = String::deserialize(deserializer)?;
        Platform::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
