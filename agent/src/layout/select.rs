//! Which image of an `index.json` is meant. Pure.

use super::{
    entries::{IMAGE_NAME, REF_NAME},
    printable,
    reference::Selector,
};
use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::{Descriptor, Digest, Index, Reference},
};

/// So many names are listed in a message.
const SHOWN: usize = 20;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Choice {
    Entry(Box<Descriptor>),
    /// `index.json` itself is the image index.
    Whole,
    /// No entry has this digest; it may be a document further down.
    Unlisted(Digest),
}

/// Chooses from `index`, whose own digest is `whole`. `store` is for messages.
///
/// Without a selector: the only image; or, where at least two entries have no name
/// and describe platforms (or none has a name), the whole of `index.json`, because
/// some builders write their image index there. A layout of several named images
/// needs a selector.
pub(super) fn choose(
    index: &Index,
    whole: &Digest,
    selector: Option<&Selector>,
    store: &str,
) -> Result<Choice> {
    match selector {
        None => only(index, store),
        Some(Selector::Digest(digest)) if digest == whole => Ok(Choice::Whole),
        Some(Selector::Digest(digest)) => Ok(index
            .entries
            .iter()
            .find(|entry| entry.digest == *digest)
            .map_or_else(
                || Choice::Unlisted(digest.clone()),
                |e| Choice::Entry(Box::new(e.clone())),
            )),
        Some(Selector::Tag(tag)) => named(index, tag, store),
    }
}

fn name_of(entry: &Descriptor) -> Option<&str> {
    [REF_NAME, IMAGE_NAME]
        .into_iter()
        .find_map(|key| entry.annotation(key).filter(|name| !name.is_empty()))
}

fn only(index: &Index, store: &str) -> Result<Choice> {
    let Some(first) = index.entries.first() else {
        return Err(Error::new(
            Kind::NotFound,
            format_args!("`{store}` holds no image"),
        ));
    };
    // One image may have several names.
    if index.entries.iter().all(|e| e.digest == first.digest) {
        return Ok(Choice::Entry(Box::new(first.clone())));
    }
    let unnamed = || index.entries.iter().filter(|e| name_of(e).is_none());
    if unnamed().count() == index.entries.len()
        || unnamed().filter(|e| e.platform.is_some()).count() > 1
    {
        return Ok(Choice::Whole);
    }
    Err(Error::new(
        Kind::NotFound,
        format_args!("`{store}` holds several images, and none was named"),
    )
    .because(format_args!("it holds {}", listing(index)))
    .hint(format_args!("write {store}:TAG or {store}@DIGEST")))
}

fn named(index: &Index, tag: &str, store: &str) -> Result<Choice> {
    let full = Reference::parse(tag).ok().map(|r| r.record_name());
    let exact = |entry: &Descriptor| {
        [REF_NAME, IMAGE_NAME]
            .into_iter()
            .any(|key| entry.annotation(key) == Some(tag))
    };
    // `nginx:1.27` also finds `docker.io/library/nginx:1.27`.
    let completed = |entry: &Descriptor| {
        full.is_some()
            && [REF_NAME, IMAGE_NAME]
                .into_iter()
                .any(|key| entry.annotation(key) == full.as_deref())
    };
    let mut found: Vec<&Descriptor> = index.entries.iter().filter(|e| exact(e)).collect();
    if found.is_empty() {
        found = index.entries.iter().filter(|e| completed(e)).collect();
    }
    let Some(first) = found.first() else {
        return Err(Error::new(
            Kind::NotFound,
            format_args!("`{store}` has no image `{}`", printable(tag)),
        )
        .because(format_args!("it holds {}", listing(index))));
    };
    if found.iter().any(|e| e.digest != first.digest) {
        let digests: Vec<&str> = found
            .iter()
            .take(SHOWN)
            .map(|e| e.digest.as_str())
            .collect();
        return Err(Error::new(
            Kind::NotFound,
            format_args!("`{store}` has several images `{}`", printable(tag)),
        )
        .because(format_args!("it holds {}", digests.join(", ")))
        .hint(format_args!("write {store}@DIGEST")));
    }
    Ok(Choice::Entry(Box::new((*first).clone())))
}

/// The names in a layout, or the digests of entries without one.
fn listing(index: &Index) -> String {
    let mut names: Vec<String> = index
        .entries
        .iter()
        .take(SHOWN)
        .map(|entry| match name_of(entry) {
            Some(name) => printable(name),
            None => entry.digest.to_string(),
        })
        .collect();
    if names.is_empty() {
        return "no image".to_owned();
    }
    if index.entries.len() > SHOWN {
        names.push(format!("and {} more", index.entries.len() - SHOWN));
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::oci::{Document, DocumentKind, Verified};

    fn index(json: &serde_json::Value) -> Index {
        let bytes = Bytes::from(json.to_string());
        match Document::parse(&Verified::of(bytes), None)
            .expect("valid")
            .kind
        {
            DocumentKind::Index(index) => index,
            DocumentKind::Manifest(_) => panic!("an index was written"),
        }
    }

    fn entry(content: &str, name: Option<&str>, platform: Option<&str>) -> serde_json::Value {
        let mut entry = serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": Digest::of(content.as_bytes()).as_str(), "size": 1,
        });
        if let Some(name) = name {
            entry["annotations"] = serde_json::json!({REF_NAME: name});
        }
        if let Some(architecture) = platform {
            entry["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
        }
        entry
    }

    fn pick(entries: &[serde_json::Value], selector: Option<&str>) -> Result<Choice> {
        let index = index(&serde_json::json!({"schemaVersion": 2, "manifests": entries}));
        let selector = selector.map(|text| {
            Digest::parse(text).map_or_else(|_| Selector::Tag(text.to_owned()), Selector::Digest)
        });
        choose(&index, &Digest::of(b"whole"), selector.as_ref(), "oci:d")
    }

    fn chosen(choice: Result<Choice>) -> Digest {
        match choice.expect("a choice") {
            Choice::Entry(entry) => entry.digest,
            other => panic!("an entry, not {other:?}"),
        }
    }

    #[test]
    fn without_a_selector() {
        let one = [entry("a", Some("1"), None)];
        assert_eq!(chosen(pick(&one, None)), Digest::of(b"a"));
        let twice = [entry("a", Some("1"), None), entry("a", Some("2"), None)];
        assert_eq!(chosen(pick(&twice, None)), Digest::of(b"a"));
        let platforms = [
            entry("a", None, Some("amd64")),
            entry("b", None, Some("arm64")),
        ];
        assert_eq!(pick(&platforms, None).expect("a choice"), Choice::Whole);
        let mixed = [
            entry("a", None, Some("amd64")),
            entry("b", None, Some("arm64")),
            entry("c", Some("list"), None),
        ];
        assert_eq!(pick(&mixed, None).expect("a choice"), Choice::Whole);
        let two = [entry("a", Some("1"), None), entry("b", Some("2"), None)];
        let error = pick(&two, None).expect_err("two images");
        assert_eq!(error.kind(), Kind::NotFound);
        assert_eq!(error.causes(), ["it holds 1, 2"]);
        assert_eq!(pick(&[], None).expect_err("empty").kind(), Kind::NotFound);
    }

    #[test]
    fn by_name_and_by_digest() {
        let two = [
            entry("a", Some("docker.io/library/nginx:1"), None),
            entry("b", Some("2"), None),
        ];
        assert_eq!(chosen(pick(&two, Some("2"))), Digest::of(b"b"));
        assert_eq!(chosen(pick(&two, Some("nginx:1"))), Digest::of(b"a"));
        assert_eq!(
            pick(&two, Some("3")).expect_err("no such tag").causes(),
            ["it holds docker.io/library/nginx:1, 2"]
        );
        let digest = Digest::of(b"b");
        assert_eq!(chosen(pick(&two, Some(digest.as_str()))), digest);
        let inner = Digest::of(b"inner");
        assert_eq!(
            pick(&two, Some(inner.as_str())).expect("later"),
            Choice::Unlisted(inner)
        );
        assert_eq!(
            pick(&two, Some(Digest::of(b"whole").as_str())).expect("itself"),
            Choice::Whole
        );
        let same = [entry("a", Some("1"), None), entry("b", Some("1"), None)];
        assert!(pick(&same, Some("1")).is_err());
    }
}
