//! The entries of `index.json` as a store of names: who is called what, and what
//! happens when a name is given again. Pure; unknown fields pass through.

use serde_json::{Map, Value, json};

use super::MAX_DOCUMENT;
use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::{Descriptor, Index, MediaType, Reference},
};

/// The name that skopeo, buildah and others look for (image-spec annotations.md).
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The name that containerd gives the image record on import.
pub(super) const IMAGE_NAME: &str = "io.containerd.image.name";

/// What an image is called inside a layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Full name, `docker.io/library/nginx:1.27`: what containerd calls it on import.
    pub record_name: String,
    /// Short name, `1.27`: what `oci:DIR:1.27` finds. Without one it is the full name.
    pub tag: Option<String>,
}

impl Names {
    /// The names of an image that came from a registry.
    pub fn of(reference: &Reference) -> Self {
        Self {
            record_name: reference.record_name(),
            tag: reference.tag().map(str::to_owned),
        }
    }

    fn ref_name(&self) -> &str {
        self.tag.as_deref().unwrap_or(&self.record_name)
    }
}

/// The images of `index` under the names they are imported under: their full ones; else,
/// as `localhost/STEM:TAG`, a bare tag or nothing at all (a name that no registry has).
pub(super) fn images(
    index: &Index,
    store: &str,
    stem: &str,
) -> Result<Vec<(Reference, Descriptor)>> {
    let stem: String = stem
        .to_lowercase()
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("-");
    let stem = if stem.is_empty() { "image" } else { &stem };
    let mut images = Vec::new();
    for entry in &index.entries {
        let name = [IMAGE_NAME, REF_NAME].into_iter().find_map(|key| {
            // A bare tag parses as a name too; a full name has a path.
            let name = entry.annotation(key).filter(|name| name.contains('/'))?;
            Reference::parse(name).ok()
        });
        let tag = entry.annotation(REF_NAME).unwrap_or("latest");
        let name = name.or_else(|| Reference::parse(&format!("localhost/{stem}:{tag}")).ok());
        if let Some(name) = name {
            images.push((name, entry.clone()));
        }
    }
    if images.is_empty() {
        return Err(Error::new(
            Kind::InvalidContent,
            format_args!("`{store}` holds no image that has a name"),
        )
        .hint("write the archive with `edgepull export`, `ctr image export` or `docker save`: they record the full name (annotation `io.containerd.image.name`)"));
    }
    Ok(images)
}

/// What `entry` is called; its digest where it has no name.
pub(super) fn names(entry: &Descriptor) -> Names {
    let short = entry.annotation(REF_NAME).filter(|name| !name.is_empty());
    let full = entry.annotation(IMAGE_NAME).filter(|name| !name.is_empty());
    Names {
        record_name: full
            .or(short)
            .map_or_else(|| entry.digest.to_string(), str::to_owned),
        tag: short.map(str::to_owned),
    }
}

/// An `index.json` without entries.
pub(super) fn empty() -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OCI_INDEX,
        "manifests": [],
    })
}

/// Names `entry`. Whatever had the same full name before is replaced, and so is an
/// entry that has the short name and no full one. Another image that has the same
/// short name (`nginx:1.27`, then `redis:1.27`) is not lost: from now on its short
/// name is its full one.
pub(super) fn upsert(index: &mut Value, entry: &Descriptor, names: &Names) -> Result<()> {
    let unreadable = || Error::new(Kind::InvalidContent, "index.json is not an image index");
    let fields = index.as_object_mut().ok_or_else(unreadable)?;
    let manifests = fields.entry("manifests").or_insert(Value::Null);
    if manifests.is_null() {
        *manifests = Value::Array(Vec::new());
    }
    let manifests = manifests.as_array_mut().ok_or_else(unreadable)?;
    let mut described = entry.clone();
    described
        .annotations
        .insert(REF_NAME.to_owned(), names.ref_name().to_owned());
    described
        .annotations
        .insert(IMAGE_NAME.to_owned(), names.record_name.clone());
    // A name in the base64 copy of the blob would be no use; it would only grow the file.
    described.data = None;
    let described = serde_json::to_value(&described).map_err(|error| {
        Error::new(Kind::Internal, "cannot encode an index entry").caused_by(&error)
    })?;

    let mut place = None;
    let mut kept: Vec<Value> = Vec::with_capacity(manifests.len().saturating_add(1));
    for mut old in std::mem::take(manifests) {
        let full = annotation(&old, IMAGE_NAME).map(str::to_owned);
        let short_taken = annotation(&old, REF_NAME) == Some(names.ref_name());
        match full {
            Some(full) if full == names.record_name => place = place.or(Some(kept.len())),
            Some(full) if short_taken => {
                if let Some(annotations) = old.get_mut("annotations").and_then(Value::as_object_mut)
                {
                    annotations.insert(REF_NAME.to_owned(), Value::String(full));
                }
                kept.push(old);
            }
            None if short_taken => place = place.or(Some(kept.len())),
            // The same content without any name: now it has one.
            None if annotation(&old, REF_NAME).is_none() && is_same(&old, entry) => {
                place = place.or(Some(kept.len()));
            }
            _ => kept.push(old),
        }
    }
    kept.insert(place.unwrap_or(kept.len()), described);
    *manifests = kept;
    Ok(())
}

fn is_same(old: &Value, entry: &Descriptor) -> bool {
    old.get("digest").and_then(Value::as_str) == Some(entry.digest.as_str())
        && old.get("platform").is_none_or(Value::is_null)
}

fn annotation<'a>(entry: &'a Value, key: &str) -> Option<&'a str> {
    let annotations: &Map<String, Value> = entry.get("annotations")?.as_object()?;
    annotations.get(key)?.as_str()
}

/// The bytes of an `index.json`; fails rather than write one that nobody reads back.
pub(super) fn encode(index: &Value) -> Result<Vec<u8>> {
    let bytes = serde_json::to_vec(index).map_err(|error| {
        Error::new(Kind::Internal, "cannot encode index.json").caused_by(&error)
    })?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(Error::new(
            Kind::Unsupported,
            format_args!("index.json would be bigger than {MAX_DOCUMENT} bytes"),
        )
        .hint("put the images into more than one layout"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    fn entry(content: &str) -> Descriptor {
        Descriptor::new(MediaType::OciManifest, Digest::of(content.as_bytes()), 3)
    }

    fn names(record: &str, tag: Option<&str>) -> Names {
        Names {
            record_name: record.to_owned(),
            tag: tag.map(str::to_owned),
        }
    }

    /// digest content is not shown: (ref.name, containerd name) pairs in order.
    fn listed(index: &Value) -> Vec<(Option<&str>, Option<&str>)> {
        index["manifests"]
            .as_array()
            .expect("an array")
            .iter()
            .map(|e| (annotation(e, REF_NAME), annotation(e, IMAGE_NAME)))
            .collect()
    }

    #[test]
    fn a_name_given_again_replaces_and_unknown_fields_stay() {
        let mut index = json!({
            "schemaVersion": 2, "x-vendor": {"a": [1, 2.5]},
            "manifests": [
                {"digest": "other", "extra": true, "annotations": {"org.opencontainers.image.ref.name": "keep"}},
                {"digest": "old", "annotations": {"org.opencontainers.image.ref.name": "1"}},
            ],
        });
        upsert(&mut index, &entry("a"), &names("r.example/a:1", Some("1"))).expect("valid");
        upsert(&mut index, &entry("b"), &names("r.example/a:1", Some("1"))).expect("valid");
        assert_eq!(
            listed(&index),
            [(Some("keep"), None), (Some("1"), Some("r.example/a:1"))]
        );
        assert_eq!(index["manifests"][1]["digest"], Digest::of(b"b").as_str());
        assert_eq!(index["x-vendor"], json!({"a": [1, 2.5]}));
        assert_eq!(index["manifests"][0]["extra"], true);
    }

    #[test]
    fn another_image_with_the_same_tag_is_not_lost() {
        let mut index = empty();
        upsert(&mut index, &entry("a"), &names("r.example/a:1", Some("1"))).expect("valid");
        upsert(&mut index, &entry("b"), &names("r.example/b:1", Some("1"))).expect("valid");
        assert_eq!(
            listed(&index),
            [
                (Some("r.example/a:1"), Some("r.example/a:1")),
                (Some("1"), Some("r.example/b:1"))
            ]
        );
    }

    #[test]
    fn null_and_absent_lists_are_empty_and_anything_else_is_refused() {
        for mut index in [json!({}), json!({"manifests": null})] {
            upsert(&mut index, &entry("a"), &names("a", None)).expect("valid");
            assert_eq!(listed(&index), [(Some("a"), Some("a"))]);
        }
        for mut index in [json!([]), json!({"manifests": 1}), json!("x")] {
            assert!(upsert(&mut index, &entry("a"), &names("a", None)).is_err());
        }
    }
}
