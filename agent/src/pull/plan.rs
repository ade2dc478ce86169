//! What a pull has to do, decided without I/O.

use std::collections::BTreeSet;

use super::Choice;
use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::{ChainId, Descriptor, DiffId, Digest, ImageConfig, Manifest},
};

/// One layer of an image that is unpacked.
#[derive(Debug, Clone)]
pub struct Step {
    pub layer: Descriptor,
    pub diff_id: DiffId,
    /// The name of the snapshot that has this layer and all below it.
    pub chain: ChainId,
}

/// One image of the pull.
#[derive(Debug)]
pub struct Image<'a> {
    pub choice: &'a Choice,
    pub manifest: &'a Manifest,
    /// From the bottom up; empty if the image is not unpacked.
    pub steps: Vec<Step>,
    pub unpack: bool,
}

impl<'a> Image<'a> {
    /// Judges a choice; an artifact is delivered and never unpacked.
    pub fn new(choice: &'a Choice, unpack: bool) -> Result<Self> {
        let manifest = choice.manifest().ok_or_else(|| {
            Error::new(
                Kind::Internal,
                format_args!(
                    "{} was chosen, but is no manifest",
                    choice.leaf.descriptor.digest
                ),
            )
        })?;
        if manifest.config.digest != *choice.config.digest() {
            return Err(Error::new(
                Kind::Internal,
                format_args!(
                    "config {} does not belong to manifest {}",
                    choice.config.digest(),
                    choice.leaf.descriptor.digest
                ),
            ));
        }
        let unpack = unpack && !manifest.is_artifact();
        let steps = if unpack {
            steps(manifest, &ImageConfig::parse(&choice.config)?)?
        } else {
            Vec::new()
        };
        Ok(Self {
            choice,
            manifest,
            steps,
            unpack,
        })
    }

    /// The name of the snapshot that a container starts from.
    pub fn top(&self) -> Option<&ChainId> {
        self.steps.last().map(|step| &step.chain)
    }

    /// The layer blobs that are needed when the snapshots of the lowest `present` layers
    /// exist: nothing below the first missing one, and everything from there on.
    pub fn needed(&self, present: usize) -> &[Descriptor] {
        if self.unpack {
            self.manifest.layers.get(present..).unwrap_or_default()
        } else {
            &self.manifest.layers
        }
    }
}

fn steps(manifest: &Manifest, config: &ImageConfig) -> Result<Vec<Step>> {
    let diff_ids = config.diff_ids(manifest.layers.len())?;
    for layer in &manifest.layers {
        if !layer.media_type.is_layer() {
            return Err(Error::new(
                Kind::Unsupported,
                format_args!(
                    "layer {} has the media type `{}`, which cannot be unpacked",
                    layer.digest,
                    layer.media_type.as_str().escape_debug()
                ),
            )
            .hint("--no-unpack stores the image without unpacking it"));
        }
    }
    let chain = ChainId::of_layers(diff_ids);
    Ok(manifest
        .layers
        .iter()
        .zip(diff_ids)
        .zip(chain)
        .map(|((layer, diff_id), chain)| Step {
            layer: layer.clone(),
            diff_id: diff_id.clone(),
            chain,
        })
        .collect())
}

/// Every blob once, in the order of first need: one that two layers share must not be
/// fetched by two streams, which would wait for each other's lock.
pub fn unique<'a>(blobs: impl IntoIterator<Item = &'a Descriptor>) -> Vec<&'a Descriptor> {
    let mut seen: BTreeSet<&Digest> = BTreeSet::new();
    blobs
        .into_iter()
        .filter(|blob| seen.insert(&blob.digest))
        .collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::oci::{Document, Verified};

    fn choice(layers: &[&str], diff_ids: usize, config_type: &str) -> Choice {
        let diff_ids: Vec<Digest> = (0..diff_ids)
            .map(|i| Digest::of(i.to_string().as_bytes()))
            .collect();
        let config = json!({"os": "linux", "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = Verified::of(Bytes::from(config.to_string()));
        let layers: Vec<_> = layers
            .iter()
            .map(|name| {
                json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": Digest::of(name.as_bytes()), "size": 1})
            })
            .collect();
        let manifest = json!({"schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": config_type, "digest": config.digest(), "size": config.size()},
            "layers": layers});
        let leaf = Document::parse(&Verified::of(Bytes::from(manifest.to_string())), None)
            .expect("a manifest");
        Choice {
            root: leaf.clone(),
            ancestors: Vec::new(),
            leaf,
            config,
            platform: None,
            target_is_leaf: false,
            probation: None,
        }
    }

    const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

    #[test]
    fn only_layers_from_the_first_missing_snapshot_on_are_needed() {
        let choice = choice(&["a", "b", "c"], 3, CONFIG);
        let image = Image::new(&choice, true).expect("an image");
        assert_eq!(image.needed(0).len(), 3);
        assert_eq!(image.needed(2)[0].digest, Digest::of(b"c"));
        assert!(image.needed(3).is_empty());
        assert_eq!(image.top(), image.steps.last().map(|s| &s.chain));
        let stored = Image::new(&choice, false).expect("an image");
        assert_eq!(stored.needed(0).len(), 3);
        assert!(stored.top().is_none());
    }

    #[test]
    fn layers_and_diff_ids_must_be_as_many() {
        let choice = choice(&["a", "b"], 1, CONFIG);
        let error = Image::new(&choice, true).expect_err("too few");
        assert_eq!(error.kind(), Kind::InvalidContent);
        assert!(Image::new(&choice, false).is_ok(), "content is content");
    }

    #[test]
    fn an_artifact_is_not_unpacked() {
        let choice = choice(&["a"], 0, "application/vnd.example.config");
        let image = Image::new(&choice, true).expect("an artifact");
        assert!(!image.unpack);
        assert_eq!(image.needed(0).len(), 1);
    }

    #[test]
    fn a_shared_blob_is_fetched_once() {
        let choice = choice(&["a", "b", "a"], 3, CONFIG);
        let image = Image::new(&choice, true).expect("an image");
        let blobs = unique(image.needed(0));
        assert_eq!(blobs.len(), 2);
    }
}
