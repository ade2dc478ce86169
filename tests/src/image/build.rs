//! Manifests, configs and indexes.

use std::fmt;

use serde_json::{Value, json};

use super::layer::{Finished, Layer};
use super::layout::{Blob, Layout};

/// Media types.
pub mod media {
    /// OCI image index.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI image manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image config.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// OCI layer.
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// Docker manifest list.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker manifest, schema 2.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker config.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// Docker layer.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    /// Docker manifest, schema 1, signed.
    pub const SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
}

/// A platform as an index writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Platform {
    /// `os`.
    pub os: &'static str,
    /// `architecture`.
    pub arch: &'static str,
    /// `variant`, or nothing.
    pub variant: &'static str,
    /// `os.version`, or nothing.
    pub os_version: &'static str,
}

impl Platform {
    /// One without variant and version.
    pub const fn new(os: &'static str, arch: &'static str, variant: &'static str) -> Self {
        Self {
            os,
            arch,
            variant,
            os_version: "",
        }
    }

    /// The object of an index entry.
    pub fn json(&self) -> Value {
        let mut object = json!({"architecture": self.arch, "os": self.os});
        if !self.variant.is_empty() {
            object["variant"] = json!(self.variant);
        }
        if !self.os_version.is_empty() {
            object["os.version"] = json!(self.os_version);
        }
        object
    }

    pub(super) fn is(&self, object: &Value) -> bool {
        *object == self.json()
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.arch)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

/// An image in the making: layers, then a config, then a manifest.
#[derive(Debug)]
pub struct Image<'a> {
    layout: &'a Layout,
    platform: Platform,
    docker: bool,
    layers: Vec<Finished>,
    run: Value,
}

impl<'a> Image<'a> {
    /// An empty one for a platform.
    pub fn new(layout: &'a Layout, platform: Platform) -> Self {
        Self {
            layout,
            platform,
            docker: false,
            layers: Vec::new(),
            run: json!({}),
        }
    }

    /// With docker's media types.
    #[must_use]
    pub fn docker(mut self) -> Self {
        self.docker = true;
        self
    }

    /// One more layer on top.
    #[must_use]
    pub fn layer(mut self, layer: Layer<'_>) -> Self {
        self.layers.push(layer.finish());
        self
    }

    /// The entrypoint.
    #[must_use]
    pub fn entrypoint(mut self, words: &[&str]) -> Self {
        self.run["Entrypoint"] = json!(words);
        self
    }

    /// Any other setting of `config`, such as `Cmd`, `User`, `Volumes`.
    #[must_use]
    pub fn setting(mut self, key: &str, value: Value) -> Self {
        self.run[key] = value;
        self
    }

    /// Stores config and manifest; the manifest's descriptor, with platform.
    #[track_caller]
    pub fn finish(mut self) -> Value {
        self.run["Env"] = json!(["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
        let diffs: Vec<&String> = self.layers.iter().map(|layer| &layer.diff_id).collect();
        let mut config = self.platform.json();
        config["created"] = json!("2001-09-09T01:46:40Z");
        config["config"] = self.run;
        config["rootfs"] = json!({"type": "layers", "diff_ids": diffs});
        let (manifest_type, config_type, layer_type) = if self.docker {
            (
                media::DOCKER_MANIFEST,
                media::DOCKER_CONFIG,
                media::DOCKER_LAYER,
            )
        } else {
            (media::MANIFEST, media::CONFIG, media::LAYER)
        };
        let config = self.layout.put_json(&config);
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| layer.blob.descriptor(layer_type))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": config.descriptor(config_type),
            "layers": layers,
        });
        let mut descriptor = self.layout.put_json(&manifest).descriptor(manifest_type);
        descriptor["platform"] = self.platform.json();
        descriptor
    }
}

/// Stores an OCI index of these entries.
#[track_caller]
pub(super) fn index(layout: &Layout, entries: &[Value]) -> (Blob, Value) {
    let blob = layout.put_json(&json!({
        "schemaVersion": 2,
        "mediaType": media::INDEX,
        "manifests": entries,
    }));
    let descriptor = blob.descriptor(media::INDEX);
    (blob, descriptor)
}
