//! What a document claims about a blob, before the blob is seen.

use std::collections::BTreeMap;

use edgepull_platform::Label;
use serde::{Deserialize, Serialize};

use super::{Digest, MediaType};

/// A content descriptor (image-spec descriptor.md): a claim, not a proof.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Descriptor {
    #[serde(rename = "mediaType", alias = "mediatype", default = "unknown")]
    pub media_type: MediaType,
    pub digest: Digest,
    /// Bytes; at most 1 PiB.
    #[serde(deserialize_with = "size")]
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Label>,
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
    #[serde(
        default,
        rename = "artifactType",
        skip_serializing_if = "Option::is_none"
    )]
    pub artifact_type: Option<String>,
    /// Where a foreign layer may be fetched besides its registry.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub urls: Vec<String>,
    /// The blob itself, base64, when the publisher embedded it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
}

/// More than any blob has, and little enough that the sizes of all blobs that one
/// document may list can be added up.
const MAX_SIZE: u64 = 1 << 50;

fn size<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let size = u64::deserialize(deserializer)?;
    if size > MAX_SIZE {
        return Err(serde::de::Error::custom(format_args!(
            "a blob of {size} bytes is announced, more than any blob has"
        )));
    }
    Ok(size)
}

fn unknown() -> MediaType {
    MediaType::Other(String::new())
}

/// Go's encoder writes `null` for an empty map or list.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl Descriptor {
    pub fn new(media_type: MediaType, digest: Digest, size: u64) -> Self {
        Self {
            media_type,
            digest,
            size,
            platform: None,
            annotations: BTreeMap::new(),
            artifact_type: None,
            urls: Vec::new(),
            data: None,
        }
    }

    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }
}
