use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use edgepull_platform::{Facts, detect, selects_for_engine};
use futures_util::{future::BoxFuture, stream};
use serde_json::{Value, json};

use super::*;
use crate::oci::MediaType;
use crate::source::BlobStream;

/// Content by digest, and a list of what was asked for.
#[derive(Debug, Default)]
struct Shelf {
    held: BTreeMap<Digest, Bytes>,
    asked: Mutex<Vec<Digest>>,
}

impl Shelf {
    fn put(&mut self, value: &Value) -> Digest {
        self.put_bytes(value.to_string().into())
    }

    fn put_bytes(&mut self, bytes: Bytes) -> Digest {
        let digest = Digest::of(&bytes);
        self.held.insert(digest.clone(), bytes);
        digest
    }

    fn get(&self, descriptor: &Descriptor) -> Result<Bytes> {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(descriptor.digest.clone());
        self.held
            .get(&descriptor.digest)
            .cloned()
            .ok_or_else(|| Error::new(Kind::NotFound, "not on the shelf"))
    }

    fn asked(&self) -> Vec<Digest> {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn root(&self, digest: &Digest) -> Document {
        let bytes = self.held.get(digest).expect("it was put").clone();
        Document::parse(&Verified::of(bytes), None).expect("a document")
    }

    /// An image for `platform`, as (manifest, its config).
    fn image(&mut self, platform: &Value) -> (Digest, Digest) {
        let mut config = platform.clone();
        config["rootfs"] = json!({"type": "layers", "diff_ids": [Digest::of(b"diff")]});
        let config = self.put(&config);
        let manifest = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST,
            "config": {"mediaType": MediaType::OCI_CONFIG, "digest": config,
                "size": self.held.get(&config).map_or(0, Bytes::len)},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": Digest::of(b"layer"), "size": 7}]});
        (self.put(&manifest), config)
    }

    fn index(&mut self, entries: &[Value]) -> Digest {
        self.put(
            &json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": entries}),
        )
    }

    /// An index entry; the size does not matter here.
    fn entry(&self, digest: &Digest, media_type: &str, platform: Option<&Value>) -> Value {
        let size = self.held.get(digest).map_or(1, Bytes::len);
        let mut entry = json!({"mediaType": media_type, "digest": digest, "size": size});
        if let Some(platform) = platform {
            entry["platform"] = platform.clone();
        }
        entry
    }
}

impl Source for Shelf {
    fn document<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Document>> {
        Box::pin(async move {
            let bytes = self.get(descriptor)?;
            Document::parse(&Verified::of(bytes), Some(descriptor.media_type.as_str()))
        })
    }

    fn blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        _offset: u64,
    ) -> BoxFuture<'a, Result<BlobStream>> {
        Box::pin(async move {
            let bytes = self.get(descriptor)?;
            Ok(Box::pin(stream::iter([Ok(bytes)])) as BlobStream)
        })
    }

    fn name(&self) -> &'static str {
        "shelf"
    }
}

fn amd64() -> Value {
    json!({"os": "linux", "architecture": "amd64"})
}

fn arm64() -> Value {
    json!({"os": "linux", "architecture": "arm64"})
}

fn arm() -> Value {
    json!({"os": "linux", "architecture": "arm", "variant": "v7"})
}

fn plain(text: &str) -> Want {
    Want {
        wanted: Wanted::fallback(&Platform::parse(text).expect("a platform")),
        host: None,
        engine: None,
        asked: text.to_owned(),
        variant_best: false,
        probation: false,
    }
}

/// An arm64 host without 32-bit mode, whose engine does not know of that.
fn no_aarch32(variant_best: bool) -> Want {
    let host = detect(&Facts::from_texts(
        "uname_sysname=Linux\nuname_machine=aarch64\npersonality_per_linux32=einval",
        [],
    ))
    .expect("a host");
    let engine = Platform::parse("linux/arm64").expect("a platform");
    Want {
        wanted: Wanted::selects(&selects_for_engine(&engine, &host)),
        host: Some(host),
        engine: Some(engine),
        asked: "host".to_owned(),
        variant_best,
        probation: false,
    }
}

async fn judge(shelf: &Shelf, root: &Digest, want: &Want) -> Resolution {
    resolve(shelf.root(root), shelf, want)
        .await
        .expect("the document was read")
}

fn fails(resolution: &Resolution, kind: Kind) -> &Error {
    let error = resolution.outcome.as_ref().expect_err("nothing to pull");
    assert_eq!(error.kind(), kind, "{error:?}");
    assert_eq!(resolution.selected_leaf(), None);
    error
}

#[tokio::test]
async fn the_entry_that_fits_is_followed_and_its_config_is_left_alone() {
    let mut shelf = Shelf::default();
    let (foreign, _) = shelf.image(&amd64());
    let (fits, config) = shelf.image(&arm64());
    let root = shelf.index(&[
        shelf.entry(&foreign, MediaType::OCI_MANIFEST, Some(&amd64())),
        shelf.entry(&fits, MediaType::OCI_MANIFEST, Some(&arm64())),
    ]);
    let found = judge(&shelf, &root, &plain("linux/arm64")).await;
    assert_eq!(found.selected.as_ref(), Some(&fits));
    assert_eq!(found.selected_leaf(), Some(&fits));
    let verdicts: Vec<Verdict> = found.entries.iter().map(|e| e.verdict).collect();
    assert_eq!(verdicts, [Verdict::Foreign, Verdict::Selected]);
    assert_eq!(shelf.asked(), [fits]);
    let choice = found.outcome.expect("picked").complete(&shelf).await;
    assert_eq!(choice.expect("complete").config.digest(), &config);

    let found = judge(&shelf, &root, &plain("linux/s390x")).await;
    let error = fails(&found, Kind::PlatformMissing);
    assert_eq!(error.wanted(), ["linux/s390x"]);
    assert_eq!(error.offered(), ["linux/amd64", "linux/arm64"]);
    assert!(error.hint_text().is_some());
    assert_eq!(found.selected, None);
}

#[tokio::test]
async fn nested_indexes_are_followed_with_or_without_a_platform() {
    for platform in [None, Some(arm64())] {
        let mut shelf = Shelf::default();
        let (fits, _) = shelf.image(&arm64());
        let inner = shelf.index(&[shelf.entry(&fits, MediaType::OCI_MANIFEST, Some(&arm64()))]);
        let root = shelf.index(&[shelf.entry(&inner, MediaType::OCI_INDEX, platform.as_ref())]);
        let found = judge(&shelf, &root, &plain("linux/arm64")).await;
        assert_eq!(found.selected.as_ref(), Some(&inner));
        let picked = found.outcome.expect("picked");
        assert_eq!(picked.leaf.descriptor.digest, fits);
        assert_eq!(picked.ancestors.len(), 1);
        assert_eq!(
            picked.platform.map(|p| p.to_string()).as_deref(),
            Some("linux/arm64")
        );

        let found = judge(&shelf, &root, &plain("linux/s390x")).await;
        fails(&found, Kind::PlatformMissing);
        assert_eq!(found.selected, None);
        assert!(found.entries.iter().all(|e| e.verdict != Verdict::Selected));
    }
}

#[tokio::test]
async fn an_entry_without_a_platform_is_judged_by_its_config() {
    let mut shelf = Shelf::default();
    let (manifest, _) = shelf.image(&amd64());
    let root = shelf.index(&[shelf.entry(&manifest, MediaType::OCI_MANIFEST, None)]);
    let found = judge(&shelf, &root, &plain("linux/amd64")).await;
    assert_eq!(found.selected.as_ref(), Some(&manifest));

    let found = judge(&shelf, &root, &plain("linux/arm64")).await;
    let error = fails(&found, Kind::PlatformMissing);
    assert_eq!(error.offered(), ["linux/amd64"]);
    let [entry] = found.entries.as_slice() else {
        panic!("one entry");
    };
    assert_eq!(entry.verdict, Verdict::Foreign);
    assert!(entry.reason.contains("linux/amd64"), "{}", entry.reason);

    // A config that says nothing is for nobody.
    let mut shelf = Shelf::default();
    let (manifest, _) = shelf.image(&json!({}));
    let root = shelf.index(&[shelf.entry(&manifest, MediaType::OCI_MANIFEST, None)]);
    let found = judge(&shelf, &root, &plain("linux/amd64")).await;
    fails(&found, Kind::PlatformMissing);
}

#[tokio::test]
async fn a_single_manifest_is_judged_by_its_config_before_any_layer() {
    let mut shelf = Shelf::default();
    let (root, config) = shelf.image(&amd64());
    let found = judge(&shelf, &root, &plain("linux/amd64")).await;
    assert_eq!(found.selected_leaf(), Some(&root));
    let found = judge(&shelf, &root, &plain("linux/arm64")).await;
    let error = fails(&found, Kind::PlatformMissing);
    assert_eq!(error.offered(), ["linux/amd64"]);
    assert_eq!(shelf.asked(), [config.clone(), config], "the config alone");
}

#[tokio::test]
async fn an_artifact_without_an_index_needs_no_config() {
    let mut shelf = Shelf::default();
    let manifest = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.example", "digest": Digest::of(b"{}"), "size": 2},
        "layers": [{"mediaType": "text/plain", "digest": Digest::of(b"file"), "size": 4}]});
    let root = shelf.put(&manifest);
    let found = judge(&shelf, &root, &plain("linux/arm64")).await;
    assert_eq!(found.selected_leaf(), Some(&root));
    assert!(shelf.asked().is_empty());
}

#[tokio::test]
async fn what_the_engine_would_take_must_run_here() {
    let mut shelf = Shelf::default();
    let (manifest, _) = shelf.image(&arm());
    let flat = shelf.index(&[shelf.entry(&manifest, MediaType::OCI_MANIFEST, Some(&arm()))]);
    let nested = shelf.index(&[shelf.entry(&flat, MediaType::OCI_INDEX, None)]);
    let unlabelled = shelf.index(&[shelf.entry(&manifest, MediaType::OCI_MANIFEST, None)]);
    for root in [&flat, &nested, &unlabelled, &manifest] {
        let found = judge(&shelf, root, &no_aarch32(false)).await;
        let error = fails(&found, Kind::PlatformMissing);
        assert!(
            error
                .causes()
                .iter()
                .any(|c| c.contains("engine would take its entry for linux/arm/v7")),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn the_best_variant_points_at_the_manifest_where_the_reader_would_go_elsewhere() {
    let engine = Platform::parse("linux/amd64").expect("a platform");
    let v3 = json!({"os": "linux", "architecture": "amd64", "variant": "v3"});
    let mut shelf = Shelf::default();
    let (one, _) = shelf.image(&amd64());
    let (best, _) = shelf.image(&v3);
    let inner = shelf.index(&[
        shelf.entry(&one, MediaType::OCI_MANIFEST, Some(&amd64())),
        shelf.entry(&best, MediaType::OCI_MANIFEST, Some(&v3)),
    ]);
    let outer = shelf.index(&[shelf.entry(&inner, MediaType::OCI_INDEX, None)]);
    for (platform, leaf, at_leaf) in [
        ("linux/amd64/v3", &best, true),
        ("linux/amd64", &one, false),
    ] {
        let want = Want {
            engine: Some(engine.clone()),
            variant_best: true,
            ..plain(platform)
        };
        for root in [&inner, &outer] {
            let picked = judge(&shelf, root, &want).await.outcome.expect("picked");
            assert_eq!(&picked.leaf.descriptor.digest, leaf);
            assert_eq!(picked.target_is_leaf, at_leaf, "{platform} under {root}");
        }
    }
}

#[tokio::test]
async fn a_child_that_cannot_be_read_leaves_the_choice_and_says_why() {
    let mut shelf = Shelf::default();
    let gone = Digest::of(b"gone");
    let root = shelf.index(&[shelf.entry(&gone, MediaType::OCI_MANIFEST, Some(&arm64()))]);
    let found = judge(&shelf, &root, &plain("linux/arm64")).await;
    let error = fails(&found, Kind::NotFound);
    assert!(
        error
            .hint_text()
            .is_some_and(|hint| hint.contains("incomplete"))
    );
    assert_eq!(found.selected.as_ref(), Some(&gone), "its label decides");
    assert_eq!(found.entries.len(), 1);

    let root = shelf.index(&[shelf.entry(&gone, MediaType::OCI_MANIFEST, None)]);
    let found = judge(&shelf, &root, &plain("linux/arm64")).await;
    fails(&found, Kind::NotFound);
    assert_eq!(found.selected, None, "nothing said what it is for");
    assert_eq!(
        found.entries.first().map(|e| e.verdict),
        Some(Verdict::Skipped)
    );
}

#[tokio::test]
async fn a_child_of_an_unknown_media_type_is_unsupported_and_not_fetched() {
    let mut shelf = Shelf::default();
    let entry = shelf.entry(&Digest::of(b"x"), "application/vnd.what", Some(&arm64()));
    let root = shelf.index(&[entry]);
    let found = judge(&shelf, &root, &plain("linux/arm64")).await;
    fails(&found, Kind::Unsupported);
    assert!(shelf.asked().is_empty());
}

#[tokio::test]
async fn nesting_is_bounded() {
    let mut shelf = Shelf::default();
    let (manifest, _) = shelf.image(&arm64());
    let mut root = shelf.index(&[shelf.entry(&manifest, MediaType::OCI_MANIFEST, Some(&arm64()))]);
    for _ in 0..50 {
        root = shelf.index(&[shelf.entry(&root, MediaType::OCI_INDEX, None)]);
    }
    let found = judge(&shelf, &root, &plain("linux/arm64")).await;
    fails(&found, Kind::Unsupported);
    assert!(shelf.asked().len() <= MAX_DEPTH);
}

/// No digest can be its own, but a source that does not verify could serve a circle.
#[tokio::test]
async fn a_circle_ends() {
    let mut shelf = Shelf::default();
    let own = Digest::of(b"the name under which it is served");
    let root = shelf.index(&[shelf.entry(&own, MediaType::OCI_INDEX, None)]);
    let bytes = shelf.held.get(&root).cloned().expect("it was put");
    shelf.held.insert(own, bytes);
    let found = judge(&shelf, &root, &plain("linux/arm64")).await;
    fails(&found, Kind::Unsupported);
}

#[tokio::test]
async fn a_single_manifest_without_its_config_is_no_choice() {
    let mut shelf = Shelf::default();
    let (root, config) = shelf.image(&arm64());
    shelf.held.remove(&config);
    let found = judge(&shelf, &root, &plain("linux/arm64")).await;
    fails(&found, Kind::NotFound);
    assert_eq!(found.selected, None);
    assert_eq!(found.entries.len(), 1);
}

#[tokio::test]
async fn all_platforms_of_a_single_manifest_are_its_own() {
    let mut shelf = Shelf::default();
    let (manifest, config) = shelf.image(&arm());
    let names = |platforms: Vec<Platform>| -> Vec<String> {
        platforms.iter().map(ToString::to_string).collect()
    };
    let all = all_platforms(&shelf.root(&manifest), &shelf).await;
    assert_eq!(names(all.expect("one")), ["linux/arm/v7"]);
    let entry = shelf.entry(&manifest, MediaType::OCI_MANIFEST, Some(&arm()));
    let root = shelf.index(&[entry.clone(), entry]);
    let all = all_platforms(&shelf.root(&root), &shelf).await;
    assert_eq!(names(all.expect("one")), ["linux/arm/v7"]);
    let empty = shelf.index(&[]);
    let error = all_platforms(&shelf.root(&empty), &shelf)
        .await
        .expect_err("nothing in it");
    assert_eq!(error.kind(), Kind::PlatformMissing);
    shelf.held.remove(&config);
    let error = all_platforms(&shelf.root(&manifest), &shelf)
        .await
        .expect_err("unread");
    assert_eq!(
        error.kind(),
        Kind::NotFound,
        "not taken for a missing platform"
    );
}
