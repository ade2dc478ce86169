//! Content digests, and the two kinds of layer identity that look like them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A digest algorithm registered by the OCI image specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    const fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// A content digest: algorithm, colon, lower-case hexadecimal of the right length
/// (image-spec descriptor.md, "Digests").
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    /// `algorithm:hex`, as it is used on every wire.
    text: Box<str>,
}

/// Why a text is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseDigestError {
    #[error("a digest reads `sha256:` and 64 hexadecimal digits; this has no colon")]
    NoColon,
    #[error("the digest algorithm `{0}` is not supported (sha256 and sha512 are)")]
    Algorithm(String),
    #[error("a {algorithm} digest has {expected} lower-case hexadecimal digits", algorithm = .0.name(), expected = .0.hex_len())]
    Hex(Algorithm),
}

impl Digest {
    pub fn parse(text: &str) -> Result<Self, ParseDigestError> {
        let (name, hex) = text.split_once(':').ok_or(ParseDigestError::NoColon)?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            // Bounded: this text may come from a registry and go into a log.
            other => {
                return Err(ParseDigestError::Algorithm(
                    other.chars().take(32).collect(),
                ));
            }
        };
        let is_hex = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if hex.len() != algorithm.hex_len() || !is_hex {
            return Err(ParseDigestError::Hex(algorithm));
        }
        Ok(Self {
            algorithm,
            text: text.into(),
        })
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hexadecimal part.
    pub fn hex(&self) -> &str {
        self.text.split_once(':').map_or("", |(_, hex)| hex)
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `sha256:` and the first twelve digits, for people.
    pub fn short(&self) -> String {
        let hex: String = self.hex().chars().take(12).collect();
        format!("{}:{hex}", self.algorithm.name())
    }

    /// The sha256 digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

/// A running hash. `Clone` forks it, which is how a resumed download keeps its state.
#[derive(Clone)]
pub struct Hasher {
    algorithm: Algorithm,
    context: ring::digest::Context,
}

impl Hasher {
    pub fn new(algorithm: Algorithm) -> Self {
        let context = ring::digest::Context::new(match algorithm {
            Algorithm::Sha256 => &ring::digest::SHA256,
            Algorithm::Sha512 => &ring::digest::SHA512,
        });
        Self { algorithm, context }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    pub fn finish(self) -> Digest {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let hash = self.context.finish();
        let mut text = String::with_capacity(8 + 2 * hash.as_ref().len());
        text.push_str(self.algorithm.name());
        text.push(':');
        for byte in hash.as_ref() {
            text.push(char::from(HEX[usize::from(byte >> 4)]));
            text.push(char::from(HEX[usize::from(byte & 15)]));
        }
        Digest {
            algorithm: self.algorithm,
            text: text.into(),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher")
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// The digest of a layer's uncompressed tar (config `rootfs.diff_ids`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiffId(pub Digest);

impl fmt::Display for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The identity of a stack of layers (image-spec config.md, "Layer `ChainID`"),
/// and the name of its committed snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ChainId(Digest);

impl ChainId {
    /// The chain of every layer, from the bottom up: `chain[i]` names layers `0..=i`.
    pub fn of_layers(diff_ids: &[DiffId]) -> Vec<Self> {
        let mut chain: Vec<Self> = Vec::with_capacity(diff_ids.len());
        for diff_id in diff_ids {
            let next = match chain.last() {
                None => diff_id.0.clone(),
                Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
            };
            chain.push(Self(next));
        }
        chain
    }

    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn parses_only_the_registered_forms() {
        assert_eq!(Digest::parse(EMPTY).expect("a digest").as_str(), EMPTY);
        assert_eq!(Digest::parse("latest"), Err(ParseDigestError::NoColon));
        assert_eq!(
            Digest::parse("sha256:abc"),
            Err(ParseDigestError::Hex(Algorithm::Sha256))
        );
        assert_eq!(
            Digest::parse(&EMPTY.to_uppercase().replace("SHA256", "sha256")),
            Err(ParseDigestError::Hex(Algorithm::Sha256))
        );
        assert_eq!(
            Digest::parse("md5:00"),
            Err(ParseDigestError::Algorithm("md5".to_owned()))
        );
    }

    #[test]
    fn hashes_like_the_standard() {
        assert_eq!(Digest::of(b"").as_str(), EMPTY);
        let mut hasher = Hasher::new(Algorithm::Sha512);
        hasher.update(b"");
        assert_eq!(hasher.finish().hex().len(), 128);
    }

    #[test]
    fn chain_ids_hash_the_parent_and_a_space() {
        let a = DiffId(Digest::of(b"a"));
        let b = DiffId(Digest::of(b"b"));
        let chain = ChainId::of_layers(&[a.clone(), b.clone()]);
        assert_eq!(chain[0].as_str(), a.0.as_str());
        assert_eq!(
            chain[1].as_str(),
            Digest::of(format!("{a} {b}").as_bytes()).as_str()
        );
        assert!(ChainId::of_layers(&[]).is_empty());
    }
}
