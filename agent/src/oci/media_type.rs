//! Media types of the image world; the unknown is kept verbatim.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A media type, parameters cut off. Docker and OCI spellings of one thing stay
/// apart, because bytes are stored and labelled as they were published.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum MediaType {
    OciIndex,
    OciManifest,
    OciConfig,
    DockerManifestList,
    DockerManifest,
    DockerConfig,
    /// `application/vnd.docker.distribution.manifest.v1+json`, signed or not.
    DockerSchema1(String),
    /// A root file system layer, OCI or Docker, distributable or not.
    Layer {
        text: String,
        compression: Compression,
        foreign: bool,
    },
    Other(String),
}

/// What a layer's media type says about its compression. What the bytes say
/// decides when they are read: Docker's types are used loosely.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl MediaType {
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    const SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1";

    /// Parses a media type or a `Content-Type`; parameters after `;` are dropped.
    pub fn parse(text: &str) -> Self {
        let text = text.split(';').next().unwrap_or_default().trim();
        match text {
            Self::OCI_INDEX => Self::OciIndex,
            Self::OCI_MANIFEST => Self::OciManifest,
            Self::OCI_CONFIG => Self::OciConfig,
            Self::DOCKER_LIST => Self::DockerManifestList,
            Self::DOCKER_MANIFEST => Self::DockerManifest,
            Self::DOCKER_CONFIG => Self::DockerConfig,
            other if other.starts_with(Self::SCHEMA1) => Self::DockerSchema1(other.to_owned()),
            other => Self::layer(other).unwrap_or_else(|| Self::Other(other.to_owned())),
        }
    }

    fn layer(text: &str) -> Option<Self> {
        let (rest, foreign) = if let Some(rest) =
            text.strip_prefix("application/vnd.oci.image.layer.nondistributable.v1.tar")
        {
            (rest, true)
        } else if let Some(rest) = text.strip_prefix("application/vnd.oci.image.layer.v1.tar") {
            (rest, false)
        } else if let Some(rest) =
            text.strip_prefix("application/vnd.docker.image.rootfs.foreign.diff.tar")
        {
            (rest, true)
        } else {
            let rest = text.strip_prefix("application/vnd.docker.image.rootfs.diff.tar")?;
            (rest, false)
        };
        let compression = match rest {
            "" => Compression::None,
            "+gzip" | ".gzip" => Compression::Gzip,
            "+zstd" | ".zstd" => Compression::Zstd,
            // Encrypted layers and other suffixes are not layers that we can unpack.
            _ => return None,
        };
        Some(Self::Layer {
            text: text.to_owned(),
            compression,
            foreign,
        })
    }

    pub fn as_str(&self) -> &str {
        match self {
            Self::OciIndex => Self::OCI_INDEX,
            Self::OciManifest => Self::OCI_MANIFEST,
            Self::OciConfig => Self::OCI_CONFIG,
            Self::DockerManifestList => Self::DOCKER_LIST,
            Self::DockerManifest => Self::DOCKER_MANIFEST,
            Self::DockerConfig => Self::DOCKER_CONFIG,
            Self::DockerSchema1(text) | Self::Layer { text, .. } | Self::Other(text) => text,
        }
    }

    pub fn is_index(&self) -> bool {
        matches!(self, Self::OciIndex | Self::DockerManifestList)
    }

    pub fn is_manifest(&self) -> bool {
        matches!(self, Self::OciManifest | Self::DockerManifest)
    }

    pub fn is_image_config(&self) -> bool {
        matches!(self, Self::OciConfig | Self::DockerConfig)
    }

    pub fn is_layer(&self) -> bool {
        matches!(self, Self::Layer { .. })
    }

    /// A root file system layer, even one in a form that cannot be unpacked here
    /// (encrypted, an unknown compression).
    pub fn is_layer_like(&self) -> bool {
        self.is_layer()
            || [
                "application/vnd.oci.image.layer.",
                "application/vnd.docker.image.rootfs.",
            ]
            .iter()
            .any(|start| self.as_str().starts_with(start))
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for MediaType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for MediaType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::parse(&<std::borrow::Cow<'de, str>>::deserialize(
            deserializer,
        )?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_and_print_round_trip() {
        for text in [
            MediaType::OCI_INDEX,
            MediaType::DOCKER_MANIFEST,
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            "broken",
        ] {
            assert_eq!(MediaType::parse(text).as_str(), text);
        }
        assert_eq!(
            MediaType::parse(" application/vnd.oci.image.index.v1+json; charset=utf-8"),
            MediaType::OciIndex
        );
    }

    #[test]
    fn layers_say_their_compression() {
        let MediaType::Layer {
            compression,
            foreign,
            ..
        } = MediaType::parse("application/vnd.docker.image.rootfs.diff.tar.gzip")
        else {
            panic!("a layer");
        };
        assert_eq!((compression, foreign), (Compression::Gzip, false));
        assert!(
            !MediaType::parse("application/vnd.oci.image.layer.v1.tar+gzip+encrypted").is_layer()
        );
    }
}
