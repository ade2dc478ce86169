//! The labels that make garbage collection, cross-repository mounts and CRI work; the
//! same keys and values as containerd's own clients write.

use std::collections::{BTreeMap, HashMap};

use crate::oci::{Descriptor, Document, DocumentKind, Repository};

/// Labels, as the API carries them.
pub type Labels = HashMap<String, String>;

/// The diff id of a layer blob.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// When the garbage collector may drop a lease (RFC 3339).
pub const GC_EXPIRE: &str = "containerd.io/gc.expire";
/// The chain id of a snapshot; remote snapshotters look for it.
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
/// Layer annotations that begin so are for the snapshotter.
pub const SNAPSHOT_PREFIX: &str = "containerd.io/snapshot/";
/// CRI knows the record.
pub const CRI_MANAGED: (&str, &str) = ("io.cri-containerd.image", "managed");
/// kubelet's image garbage collection leaves the image alone.
pub const CRI_PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");
/// edgepull created the record; the value names what asked for it.
pub const MANAGED: &str = "io.edgepull.managed";
/// Our pin, where no kubelet reads CRI's.
pub const PINNED: (&str, &str) = ("io.edgepull.pinned", "true");
/// Who of edgepull put the pin on the record, CRI's or ours; a pin that was there before
/// does not get it. Only who is named here takes the pin away again.
pub const PINNED_BY: &str = "io.edgepull.pin";
/// What a record that edgepull owns pointed at when edgepull last wrote it: another target
/// now means that somebody else has use for it.
pub const TARGET: &str = "io.edgepull.target";
/// The record is an earlier target of this one, kept for a rollback.
pub const PREVIOUS: &str = "io.edgepull.previous";
/// Since when (RFC 3339).
pub const PREVIOUS_SINCE: &str = "io.edgepull.previous-since";
/// On a config: the host that the image ran on when it was declared to be run.
pub const RAN: &str = "io.edgepull.ran";
/// On a config: what was known when the image's bytes were last judged and found right.
pub const PROOF: &str = "io.edgepull.proof";
/// The container tries an image (`smoke`); the value is the boot in which it was made.
pub const SMOKE: &str = "io.edgepull.smoke";
/// When at the latest its maker is done with it (RFC 3339).
pub const SMOKE_UNTIL: &str = "io.edgepull.smoke-until";

const GC_CONTENT: &str = "containerd.io/gc.ref.content";
const GC_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot";
const DISTRIBUTION_SOURCE: &str = "containerd.io/distribution.source";

/// containerd refuses a label whose key and value together are longer (bytes).
pub const MAX_LABEL: usize = 4096;

/// What takes those of `keys` away that are among `labels`: an empty value removes one.
pub fn taken_away(labels: &Labels, keys: &[&str]) -> Labels {
    keys.iter()
        .filter(|key| labels.contains_key(**key))
        .map(|key| ((*key).to_owned(), String::new()))
        .collect()
}

/// On the config blob: keeps the top snapshot, and through it the whole chain.
pub fn gc_snapshot_key(snapshotter: &str) -> String {
    format!("{GC_SNAPSHOT}.{snapshotter}")
}

/// On a document: keeps its children. In the unfiltered order of the document, also for
/// children that are not fetched: an absent child is harmless, a shifted number is not.
///
/// One counter per key: a key that ends in `.` always gets the number, any other from
/// its second use on.
pub fn gc_children(document: &Document) -> Labels {
    let children: Vec<&Descriptor> = match &document.kind {
        DocumentKind::Index(index) => index.entries.iter().collect(),
        DocumentKind::Manifest(manifest) => {
            let mut all = vec![&manifest.config];
            all.extend(&manifest.layers);
            all
        }
    };
    let mut used: BTreeMap<String, usize> = BTreeMap::new();
    let mut labels = Labels::with_capacity(children.len());
    for child in children {
        let mut key = child_key(child);
        let count = used.entry(key.clone()).or_insert(0);
        if *count > 0 || key.ends_with('.') {
            key.push_str(&count.to_string());
        }
        *count += 1;
        labels.insert(key, child.digest.to_string());
    }
    labels
}

fn child_key(child: &Descriptor) -> String {
    let media_type = &child.media_type;
    let text = media_type.as_str();
    if media_type.is_manifest() {
        format!("{GC_CONTENT}.m.")
    } else if is_layer_type(text) {
        format!("{GC_CONTENT}.l.")
    } else if is_config_type(text) {
        format!("{GC_CONTENT}.config")
    } else {
        format!("{GC_CONTENT}.")
    }
}

/// containerd's idea of a layer, wider than what edgepull unpacks: any suffix.
pub(super) fn is_layer_type(text: &str) -> bool {
    text.starts_with("application/vnd.oci.image.layer.")
        || text.starts_with("application/vnd.docker.image.rootfs.diff.tar")
        || text.starts_with("application/vnd.docker.image.rootfs.foreign.diff.tar")
        || text.starts_with("application/vnd.docker.image.rootfs.diff.tar.")
}

/// containerd's idea of a config: image configs and checkpoints.
pub(super) fn is_config_type(text: &str) -> bool {
    matches!(
        text,
        "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
            | "application/vnd.containerd.container.checkpoint.config.v1+proto"
    )
}

/// The key and value that say which repositories of a host hold the blob, given the
/// value it has now. `None` when nothing changes or the label would be too long.
pub fn distribution_source(repository: &Repository, now: Option<&str>) -> Option<(String, String)> {
    let key = distribution_key(repository);
    let now = now.unwrap_or_default();
    let mut repositories: Vec<&str> = now.split(',').filter(|r| !r.is_empty()).collect();
    repositories.push(repository.path());
    repositories.sort_unstable();
    repositories.dedup();
    let value = repositories.join(",");
    (value != now && key.len() + value.len() <= MAX_LABEL).then_some((key, value))
}

/// The label's key: the host without its port, and without the brackets of IPv6.
pub fn distribution_key(repository: &Repository) -> String {
    let domain = repository.domain();
    let host = match domain.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => domain.split(':').next().unwrap_or_default(),
    };
    format!("{DISTRIBUTION_SOURCE}.{host}")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::oci::{Digest, Reference, Verified};

    fn document(value: &serde_json::Value) -> Document {
        let bytes = Bytes::from(value.to_string());
        Document::parse(&Verified::of(bytes), None).expect("a document")
    }

    fn child(media_type: &str, content: &str) -> serde_json::Value {
        json!({"mediaType": media_type, "digest": Digest::of(content.as_bytes()), "size": 1})
    }

    #[test]
    fn a_manifests_children_are_numbered_per_key() {
        let labels = gc_children(&document(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": child("application/vnd.oci.image.config.v1+json", "c"),
            "layers": [
                child("application/vnd.oci.image.layer.v1.tar+gzip", "0"),
                child("application/vnd.example.other", "x"),
                child("application/vnd.docker.image.rootfs.diff.tar.gzip", "1"),
                child("application/vnd.oci.image.config.v1+json", "again"),
            ],
        })));
        let of = |text: &str| Some(Digest::of(text.as_bytes()).to_string());
        let get = |key: &str| {
            labels
                .get(&format!("containerd.io/gc.ref.content.{key}"))
                .cloned()
        };
        assert_eq!(get("config"), of("c"));
        assert_eq!(get("config1"), of("again"));
        assert_eq!(get("l.0"), of("0"));
        assert_eq!(get("l.1"), of("1"));
        assert_eq!(get("0"), of("x"));
        assert_eq!(labels.len(), 5);
    }

    #[test]
    fn an_indexs_children_keep_the_unfiltered_order() {
        let manifest = "application/vnd.oci.image.manifest.v1+json";
        let labels = gc_children(&document(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [
                child(manifest, "a"),
                child("application/vnd.oci.image.index.v1+json", "nested"),
                child(manifest, "b"),
            ],
        })));
        let get = |key: &str| {
            labels
                .get(&format!("containerd.io/gc.ref.content.{key}"))
                .cloned()
        };
        assert_eq!(get("m.0"), Some(Digest::of(b"a").to_string()));
        assert_eq!(get("m.1"), Some(Digest::of(b"b").to_string()));
        assert_eq!(get("0"), Some(Digest::of(b"nested").to_string()));
    }

    #[test]
    fn sources_are_appended_sorted_and_unique() {
        let reference = Reference::parse("r.example:5000/b/app").expect("valid");
        let repository = reference.repository();
        let key = "containerd.io/distribution.source.r.example".to_owned();
        assert_eq!(
            distribution_source(repository, None),
            Some((key.clone(), "b/app".to_owned()))
        );
        assert_eq!(
            distribution_source(repository, Some("c/x,a/x")),
            Some((key, "a/x,b/app,c/x".to_owned()))
        );
        assert_eq!(distribution_source(repository, Some("b/app")), None);
        assert_eq!(
            distribution_source(repository, Some(&"x".repeat(4090))),
            None
        );
        let v6 = Reference::parse("[fd00::1]:5000/app").expect("valid");
        assert_eq!(
            distribution_key(v6.repository()),
            "containerd.io/distribution.source.fd00::1"
        );
    }
}
