//! Indexes, manifests and configs, read leniently and never re-encoded: what is
//! stored and hashed is always the bytes that came.

use std::collections::BTreeMap;

use bytes::Bytes;
use edgepull_platform::{Label, OfferKind};
use serde::Deserialize;

use super::{Descriptor, DiffId, MediaType, Verified};
use crate::{
    error::{Error, Result},
    kind::Kind,
};

/// Annotation that marks an index entry as an attestation of another entry.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// More entries than any published index has; bounds the work on a hostile one.
const MAX_ENTRIES: usize = 4096;

/// A verified document and what it is.
#[derive(Debug, Clone)]
pub struct Document {
    pub descriptor: Descriptor,
    pub bytes: Bytes,
    pub kind: DocumentKind,
}

#[derive(Debug, Clone)]
pub enum DocumentKind {
    Index(Index),
    Manifest(Box<Manifest>),
}

/// An OCI image index or a Docker manifest list.
#[derive(Debug, Clone)]
pub struct Index {
    pub media_type: MediaType,
    pub entries: Vec<Descriptor>,
    pub artifact_type: Option<String>,
    pub annotations: BTreeMap<String, String>,
}

/// An OCI or Docker image manifest (or an artifact in that shape).
#[derive(Debug, Clone)]
pub struct Manifest {
    pub media_type: MediaType,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    pub artifact_type: Option<String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "schemaVersion")]
    schema_version: Option<serde_json::Value>,
    #[serde(rename = "mediaType", alias = "mediatype")]
    media_type: Option<String>,
    #[serde(rename = "artifactType")]
    artifact_type: Option<String>,
    manifests: Option<serde_json::Value>,
    config: Option<serde_json::Value>,
    layers: Option<serde_json::Value>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde_json::Value>,
    annotations: Option<BTreeMap<String, String>>,
}

fn invalid(what: impl std::fmt::Display) -> Error {
    Error::new(Kind::InvalidContent, what)
}

impl Document {
    /// Reads a verified document. `content_type` is what the registry or the parent
    /// said it is; then the document's own `mediaType` counts, then its shape. They
    /// may differ in family (Docker, OCI), never in kind (index, manifest).
    pub fn parse(verified: &Verified, content_type: Option<&str>) -> Result<Self> {
        let digest = verified.digest();
        let said = content_type.map(MediaType::parse);
        if content_type.is_some_and(|t| t.trim_start().starts_with("text/html")) {
            return Err(invalid(format_args!("{digest} is a web page, not a manifest"))
                .hint("a portal, a proxy login page or the registry's web interface answered; check the host and the repository path"));
        }
        let raw: Raw = serde_json::from_slice(verified.bytes()).map_err(|error| {
            invalid(format_args!("document {digest} is not valid manifest JSON")).caused_by(&error)
        })?;
        let own = raw
            .media_type
            .as_deref()
            .filter(|t| !t.is_empty())
            .map(MediaType::parse);
        if raw.fs_layers.is_some()
            || matches!(own, Some(MediaType::DockerSchema1(_)))
            || (matches!(said, Some(MediaType::DockerSchema1(_)))
                && raw.layers.is_none()
                && raw.manifests.is_none())
        {
            return Err(Error::new(
                Kind::Unsupported,
                format_args!("{digest} is a Docker schema 1 manifest, a format that registries and containerd 2 no longer serve"),
            )
            .hint("pull and push the image once with a current docker or skopeo, which converts it"));
        }
        let shape_index = raw.manifests.is_some();
        let shape_manifest = raw.layers.is_some() || raw.config.is_some();
        let kind_of = |t: &MediaType| {
            if t.is_index() {
                Some(true)
            } else if t.is_manifest() {
                Some(false)
            } else {
                None
            }
        };
        let said_kind = said.as_ref().and_then(kind_of);
        let own_kind = own.as_ref().and_then(kind_of);
        let claims = [
            ("Content-Type or parent", said_kind),
            ("mediaType", own_kind),
        ];
        for (who, claim) in claims {
            let contradiction = match claim {
                Some(true) => shape_manifest || own_kind == Some(false) || said_kind == Some(false),
                Some(false) => shape_index || own_kind == Some(true) || said_kind == Some(true),
                None => false,
            };
            if contradiction {
                return Err(invalid(format_args!(
                    "document {digest} contradicts itself: its {who} says {}, but it has the shape or the type of {}",
                    if claim == Some(true) { "index" } else { "manifest" },
                    if claim == Some(true) { "a manifest" } else { "an index" },
                ))
                .hint("such a document can show different images to different clients; it is refused"));
            }
        }
        if shape_index && shape_manifest {
            return Err(invalid(format_args!(
                "document {digest} is an index and a manifest at once"
            )));
        }
        if let Some(MediaType::Other(name)) = &own
            && own_kind.is_none()
        {
            return Err(Error::new(
                Kind::Unsupported,
                format_args!(
                    "document {digest} has the unknown media type `{}`",
                    printable(name)
                ),
            ));
        }
        if raw
            .schema_version
            .as_ref()
            .is_some_and(|v| v.as_u64() != Some(2))
        {
            return Err(Error::new(
                Kind::Unsupported,
                format_args!(
                    "document {digest} has schemaVersion {}, only 2 is known",
                    printable(
                        &raw.schema_version
                            .map(|v| v.to_string())
                            .unwrap_or_default()
                    )
                ),
            ));
        }
        let docker_family =
            |t: &MediaType| matches!(t, MediaType::DockerManifest | MediaType::DockerManifestList);
        let docker = own.as_ref().or(said.as_ref()).is_some_and(docker_family);
        let annotations = raw.annotations.unwrap_or_default();
        let (media_type, kind) = if shape_index {
            let media_type = if docker {
                MediaType::DockerManifestList
            } else {
                MediaType::OciIndex
            };
            let entries: Vec<Descriptor> = field(digest, "manifests", raw.manifests)?;
            if entries.len() > MAX_ENTRIES {
                return Err(invalid(format_args!(
                    "index {digest} has {} entries, more than the {MAX_ENTRIES} that are read",
                    entries.len()
                )));
            }
            let index = Index {
                media_type: media_type.clone(),
                entries,
                artifact_type: raw.artifact_type,
                annotations,
            };
            (media_type, DocumentKind::Index(index))
        } else if shape_manifest {
            let media_type = if docker {
                MediaType::DockerManifest
            } else {
                MediaType::OciManifest
            };
            let config: Option<Descriptor> = field(digest, "config", raw.config)?;
            let config =
                config.ok_or_else(|| invalid(format_args!("manifest {digest} has no config")))?;
            let layers: Vec<Descriptor> = field(digest, "layers", raw.layers)?;
            if layers.len() > MAX_ENTRIES {
                return Err(invalid(format_args!(
                    "manifest {digest} has {} layers",
                    layers.len()
                )));
            }
            let manifest = Manifest {
                media_type: media_type.clone(),
                config,
                layers,
                artifact_type: raw.artifact_type,
                annotations,
            };
            (media_type, DocumentKind::Manifest(Box::new(manifest)))
        } else {
            return Err(invalid(format_args!(
                "document {digest} is neither an index nor a manifest"
            )));
        };
        Ok(Self {
            descriptor: Descriptor::new(media_type, digest.clone(), verified.size()),
            bytes: verified.bytes().clone(),
            kind,
        })
    }
}

/// Decodes one field; absent and `null` are the default.
fn field<T: for<'de> Deserialize<'de> + Default>(
    digest: &super::Digest,
    name: &str,
    value: Option<serde_json::Value>,
) -> Result<T> {
    match value {
        None | Some(serde_json::Value::Null) => Ok(T::default()),
        Some(value) => serde_json::from_value(value).map_err(|error| {
            invalid(format_args!("`{name}` of document {digest} cannot be read")).caused_by(&error)
        }),
    }
}

/// Foreign text, short and without control characters.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

impl Index {
    /// What entry `descriptor` is, as far as the index itself tells.
    pub fn kind_of(descriptor: &Descriptor) -> OfferKind {
        let label = descriptor.platform.as_ref();
        if descriptor.annotation(REFERENCE_TYPE).is_some()
            || label.is_some_and(|l| l.os == "unknown" && l.architecture == "unknown")
        {
            return OfferKind::Attestation;
        }
        if descriptor.media_type.is_index() {
            return OfferKind::Index;
        }
        if !descriptor.media_type.is_manifest() {
            return OfferKind::Other;
        }
        // A builder may set `artifactType` to the image config's type on ordinary images;
        // with a label for a system that runs containers it is an image all the same.
        match descriptor.artifact_type.as_deref() {
            None | Some("") => OfferKind::Image,
            Some(t) if MediaType::parse(t).is_image_config() => {
                match label.map(|l| l.os.as_str()) {
                    Some("linux" | "windows" | "freebsd" | "darwin" | "wasi" | "wasip1" | "")
                    | None => OfferKind::Image,
                    Some(_) => OfferKind::Artifact,
                }
            }
            // containerd matches labels whatever the artifact type says.
            Some(_) if label.is_some_and(|l| matches!(l.os.as_str(), "linux" | "windows")) => {
                OfferKind::Image
            }
            Some(_) => OfferKind::Artifact,
        }
    }
}

impl Manifest {
    /// True when this is something to deliver, not to unpack: its config is no image
    /// config, or none of its layers is a file system layer.
    pub fn is_artifact(&self) -> bool {
        // Docker 1.10 published images whose config is `application/octet-stream`.
        let config_is_image = self.config.media_type.is_image_config()
            || (self.media_type == MediaType::DockerManifest
                && self.config.media_type.as_str() == "application/octet-stream");
        !config_is_image
            || (!self.layers.is_empty()
                && !self.layers.iter().any(|l| l.media_type.is_layer_like()))
    }
}

/// The fields of an image config that edgepull uses (image-spec config.md).
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ImageConfig {
    #[serde(flatten)]
    pub label: Label,
    #[serde(default)]
    pub rootfs: RootFs,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct RootFs {
    #[serde(default, rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub diff_ids: Vec<DiffId>,
}

impl ImageConfig {
    pub fn parse(verified: &Verified) -> Result<Self> {
        serde_json::from_slice(verified.bytes()).map_err(|error| {
            invalid(format_args!(
                "image config {} cannot be read",
                verified.digest()
            ))
            .caused_by(&error)
        })
    }

    /// The diff ids of an image with `layers` layers; fails if they cannot belong together.
    pub fn diff_ids(&self, layers: usize) -> Result<&[DiffId]> {
        if !matches!(self.rootfs.kind.as_str(), "" | "layers") {
            return Err(Error::new(
                Kind::Unsupported,
                format_args!(
                    "the image's rootfs has the unknown type `{}`",
                    printable(&self.rootfs.kind)
                ),
            ));
        }
        if self.rootfs.diff_ids.len() != layers {
            return Err(invalid(format_args!(
                "the manifest has {layers} layers, but its config lists {} diff ids",
                self.rootfs.diff_ids.len()
            )));
        }
        Ok(&self.rootfs.diff_ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, content_type: Option<&str>) -> Result<Document> {
        Document::parse(
            &Verified::of(Bytes::copy_from_slice(text.as_bytes())),
            content_type,
        )
    }

    #[test]
    fn shape_decides_where_no_type_is_given() {
        let index =
            parse(r#"{"schemaVersion":2,"manifests":[]}"#, Some("text/plain")).expect("an index");
        assert!(matches!(index.kind, DocumentKind::Index(_)));
        assert_eq!(index.descriptor.media_type, MediaType::OciIndex);
    }

    #[test]
    fn confusion_in_kind_is_refused_and_in_family_is_not() {
        let list = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[]}}"#,
            MediaType::DOCKER_LIST
        );
        assert!(parse(&list, Some(MediaType::OCI_INDEX)).is_ok());
        let error = parse(&list, Some(MediaType::OCI_MANIFEST)).expect_err("confused");
        assert_eq!(error.kind(), Kind::InvalidContent);
        let both = r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#;
        assert_eq!(
            parse(both, None).expect_err("both").kind(),
            Kind::InvalidContent
        );
    }

    #[test]
    fn sizes_that_cannot_be_added_up_are_refused() {
        let manifest = |size: u64| {
            let layer = serde_json::json!({"digest": crate::oci::Digest::of(b""), "size": size});
            serde_json::json!({"config": layer, "layers": [layer, layer]}).to_string()
        };
        for size in [u64::MAX, 1 << 63, (1 << 50) + 1] {
            let error = parse(&manifest(size), None).expect_err("too much");
            assert_eq!(error.kind(), Kind::InvalidContent);
        }
        assert!(parse(&manifest(1 << 50), None).is_ok());
    }

    #[test]
    fn an_image_of_layers_that_cannot_be_unpacked_is_no_artifact() {
        for (layer, artifact) in [
            (
                "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
                false,
            ),
            ("application/vnd.docker.image.rootfs.diff.tar.lz4", false),
            ("application/vnd.oci.image.layer.v1.tar", false),
            ("application/vnd.in-toto+json", true),
        ] {
            let blob = |media_type: &str| {
                serde_json::json!({"mediaType": media_type, "size": 1,
                    "digest": crate::oci::Digest::of(b"")})
            };
            let text =
                serde_json::json!({"config": blob(MediaType::OCI_CONFIG), "layers": [blob(layer)]});
            let parsed = parse(&text.to_string(), None).expect("a manifest");
            let DocumentKind::Manifest(manifest) = parsed.kind else {
                panic!("a manifest");
            };
            assert_eq!(manifest.is_artifact(), artifact, "{layer}");
        }
    }

    #[test]
    fn schema_1_and_unknown_versions_are_unsupported() {
        for text in [
            r#"{"schemaVersion":1,"fsLayers":[]}"#,
            r#"{"schemaVersion":3,"layers":[]}"#,
            r#"{"mediaType":"broken","manifests":[]}"#,
        ] {
            assert_eq!(parse(text, None).expect_err(text).kind(), Kind::Unsupported);
        }
    }

    #[test]
    fn web_pages_and_rubbish_are_named() {
        let error = parse("<html>", Some("text/html; charset=utf-8")).expect_err("html");
        assert!(error.message().contains("web page"));
        for text in ["", "[]", "{}", "null", "{\"layers\":[{}]}", "\u{0}"] {
            assert_eq!(
                parse(text, None).expect_err(text).kind(),
                Kind::InvalidContent,
                "{text}"
            );
        }
    }

    #[test]
    fn attestations_and_artifacts_are_told_apart() {
        let entry =
            |json: &str| -> Descriptor { serde_json::from_str(json).expect("a descriptor") };
        let digest = super::super::Digest::of(b"x");
        let attestation = entry(&format!(
            r#"{{"mediaType":"{}","digest":"{digest}","size":1,"platform":{{"os":"unknown","architecture":"unknown"}}}}"#,
            MediaType::OCI_MANIFEST
        ));
        assert_eq!(Index::kind_of(&attestation), OfferKind::Attestation);
        let zephyr = entry(&format!(
            r#"{{"mediaType":"{}","digest":"{digest}","size":1,"artifactType":"{}","platform":{{"os":"zephyr","architecture":"arm","variant":"v7"}}}}"#,
            MediaType::OCI_MANIFEST,
            MediaType::OCI_CONFIG
        ));
        assert_eq!(Index::kind_of(&zephyr), OfferKind::Artifact);
    }

    #[test]
    fn diff_ids_must_pair_with_layers() {
        let config = ImageConfig::parse(&Verified::of(Bytes::from_static(
            br#"{"architecture":"arm64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#,
        )))
        .expect("a config");
        assert!(config.diff_ids(0).is_ok());
        assert_eq!(
            config.diff_ids(1).expect_err("one missing").kind(),
            Kind::InvalidContent
        );
    }
}
