//! The shapes that two publishers' tools write, to the byte: FITA's script (docker buildx, oras
//! and jq) and Akraino's manifest-tool 0.9. Documents are text here, since the order of keys and
//! the blanks are part of what a digest covers.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::build::{Image, Platform, media};
use super::layer::Layer;
use super::layout::{Blob, Layout, digest_of};
use super::samples::{AMD64, ARM_V7, ARM64, hello_image};

/// `linux/arm/v5`, which FITA builds as well.
pub const ARM_V5: Platform = Platform::new("linux", "arm", "v5");
/// The device behind the gateway.
pub const ZEPHYR: Platform = Platform::new("zephyr", "arm", "v7");

/// The config of a FITA artifact: 70 bytes, no newline.
pub const FITA_CONFIG: &str =
    "{\n    \"architecture\": \"arm\",\n    \"os\": \"zephyr\",\n    \"variant\": \"v7\"\n}";

/// A service file of that shape, with something of its own in it.
pub fn service(version: &str) -> String {
    format!(
        "{{\n    \"name\": \"temperature_sensor\",\n    \"version\": \"{version}\",\n    \
         \"data_model\": [],\n    \"service\": \"AGFzbQEAAAA=\",\n    \
         \"dependencies\": {{\"sdk_api\": \"1.0\"}},\n    \"inputs\": [],\n    \"outputs\": []\n}}\n"
    )
}

/// `oras push --config config.json:… service.json:…`: the manifest, compact and with its time.
#[track_caller]
pub fn fita_artifact(layout: &Layout, version: &str) -> Blob {
    let config = layout.put(FITA_CONFIG.as_bytes());
    let service = layout.put(service(version).as_bytes());
    let text = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{}\",\"config\":{{\"mediaType\":\"{}\",\
         \"digest\":\"{}\",\"size\":{}}},\"layers\":[{{\
         \"mediaType\":\"application/vnd.embserve.v1+json\",\"digest\":\"{}\",\"size\":{},\
         \"annotations\":{{\"org.opencontainers.image.title\":\"service.json\"}}}}],\
         \"annotations\":{{\"org.opencontainers.image.created\":\"2024-05-01T10:00:00Z\"}}}}",
        media::MANIFEST,
        media::CONFIG,
        config.digest,
        config.size,
        service.digest,
        service.size,
    );
    layout.put(text.as_bytes())
}

/// The whole of it under `latest`: four linux images, an attestation of buildx, the artifact.
/// The digest of the artifact; called again it is the next release under the same name.
#[track_caller]
pub fn fita(layout: &Layout, version: &str) -> String {
    let mut entries: Vec<String> = [(AMD64, "amd64"), (ARM64, "arm64"), (ARM_V7, "arm")]
        .iter()
        .map(|(platform, bytes)| entry(&hello_image(layout, *platform, bytes, false), None))
        .collect();
    // Nobody here runs it, so that it need not be busybox.
    let old = Image::new(layout, ARM_V5)
        .layer(Layer::new(layout).file("app", 0o755, b"#!/bin/sh\n"))
        .entrypoint(&["/app"]);
    entries.push(entry(&old.finish(), None));
    let statement = layout.put_json(&json!({"_type": "https://in-toto.io/Statement/v0.1"}));
    let mut attested = statement.descriptor(media::MANIFEST);
    attested["platform"] = json!({"architecture": "unknown", "os": "unknown"});
    entries.push(entry(&attested, None));
    let mut artifact = fita_artifact(layout, version).descriptor(media::MANIFEST);
    artifact["platform"] = ZEPHYR.json();
    entries.push(entry(&artifact, Some(media::CONFIG)));
    let text = format!(
        "{{\n  \"schemaVersion\": 2,\n  \"mediaType\": \"{}\",\n  \"manifests\": [\n{}\n  ]\n}}\n",
        media::INDEX,
        entries.join(",\n")
    );
    let index = layout.put(text.as_bytes());
    layout.tag("latest", index.descriptor(media::INDEX));
    artifact["digest"].as_str().unwrap_or_default().to_owned()
}

/// An entry as jq indents it.
fn entry(descriptor: &Value, artifact_type: Option<&str>) -> String {
    let mut text = format!(
        "    {{\n      \"mediaType\": {},\n      \"digest\": {},\n      \"size\": {},\n",
        descriptor["mediaType"], descriptor["digest"], descriptor["size"]
    );
    if let Some(artifact_type) = artifact_type {
        let _ = writeln!(text, "      \"artifactType\": \"{artifact_type}\",");
    }
    let platform = &descriptor["platform"];
    let _ = write!(
        text,
        "      \"platform\": {{\n        \"architecture\": {},\n        \"os\": {}",
        platform["architecture"], platform["os"]
    );
    if let Some(variant) = platform.get("variant") {
        let _ = write!(text, ",\n        \"variant\": {variant}");
    }
    text.push_str("\n      }\n    }");
    text
}

/// manifest-tool's list of children `(digest, size, architecture)`: three blanks, no newline.
pub fn akraino_list(children: &[(&str, u64, &str)]) -> String {
    let entries: Vec<String> = children
        .iter()
        .map(|(digest, size, architecture)| {
            format!(
                "      {{\n         \"mediaType\": \"{}\",\n         \"size\": {size},\n         \
                 \"digest\": \"{digest}\",\n         \"platform\": {{\n            \
                 \"architecture\": \"{architecture}\",\n            \"os\": \"linux\"\n         }}\n      }}",
                media::DOCKER_MANIFEST
            )
        })
        .collect();
    format!(
        "{{\n   \"schemaVersion\": 2,\n   \"mediaType\": \"{}\",\n   \"manifests\": [\n{}\n   ]\n}}",
        media::DOCKER_LIST,
        entries.join(",\n")
    )
}

/// The validation image of a layer as its two CI jobs leave it: `LAYER-amd64-latest` and
/// `LAYER-arm64-latest`, and `LAYER-latest` with those that `listed` names, the way
/// `--ignore-missing` does it. The digest of the list.
#[track_caller]
pub fn akraino_layer(layout: &Layout, layer: &str, listed: &[Platform]) -> String {
    let mut children = Vec::new();
    for platform in [AMD64, ARM64] {
        let descriptor = hello_image(layout, platform, platform.arch, true);
        let digest = descriptor["digest"].as_str().unwrap_or_default().to_owned();
        let size = descriptor["size"].as_u64().unwrap_or_default();
        let mut single = descriptor;
        // A single manifest: its platform is in the config only.
        if let Some(fields) = single.as_object_mut() {
            fields.remove("platform");
        }
        layout.tag(&format!("{layer}-{}-latest", platform.arch), single);
        if listed.contains(&platform) {
            children.push((digest, size, platform.arch));
        }
    }
    let children: Vec<(&str, u64, &str)> = children
        .iter()
        .map(|(digest, size, arch)| (digest.as_str(), *size, *arch))
        .collect();
    let text = akraino_list(&children);
    let list = layout.put(text.as_bytes());
    layout.tag(
        &format!("{layer}-latest"),
        list.descriptor(media::DOCKER_LIST),
    );
    digest_of(text.as_bytes())
}
