//! What is delivered, what is left alone, and what never becomes visible.

use std::fs;

use super::*;
use crate::{layout::testing::Memory, oci::DocumentKind};

fn manifest(
    memory: &mut Memory,
    config: (&str, &str),
    layers: &[(Option<&str>, &str)],
) -> Manifest {
    let config = memory.add(config.0, config.1.to_owned());
    let layers: Vec<Descriptor> = layers
        .iter()
        .map(|(title, content)| {
            let mut layer = memory.add("application/octet-stream", (*content).to_owned());
            if let Some(title) = title {
                layer
                    .annotations
                    .insert(TITLE.to_owned(), (*title).to_owned());
            }
            layer
        })
        .collect();
    let json = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers});
    match memory
        .document("application/vnd.oci.image.manifest.v1+json", &json)
        .kind
    {
        DocumentKind::Manifest(manifest) => *manifest,
        DocumentKind::Index(_) => panic!("a manifest was written"),
    }
}

fn listed(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("a directory")
        .map(|e| e.expect("an entry").file_name().to_string_lossy().into())
        .collect();
    names.retain(|name| name != RECORD);
    names.sort();
    names
}

fn identity(manifest: &Manifest) -> Identity {
    let digest = crate::oci::Digest::of(
        manifest
            .layers
            .iter()
            .map(|layer| layer.digest.hex())
            .collect::<String>()
            .as_bytes(),
    );
    Identity {
        repository: "r.example/fita/service".to_owned(),
        wanted: vec!["zephyr/arm/v7".to_owned()],
        target_digest: digest.clone(),
        manifest_digest: digest,
        platform: None,
    }
}

async fn deliver(dir: &Path, manifest: &Manifest, memory: &Memory) -> Result<Delivered> {
    deliver_artifact(dir, &identity(manifest), manifest, memory).await
}

#[tokio::test]
async fn layers_become_files_by_title_or_digest() {
    let temporary = tempfile::tempdir().expect("a directory");
    let dir = temporary.path().join("out");
    let mut memory = Memory::default();
    let artifact = manifest(
        &mut memory,
        ("application/vnd.x.config+json", r#"{"a":1}"#),
        &[
            (Some("build/zephyr.bin"), "code"),
            (None, "plain"),
            (Some("./x"), ""),
        ],
    );
    let hex = crate::oci::Digest::of(b"plain").hex().to_owned();
    for _ in 0..2 {
        let files = deliver(&dir, &artifact, &memory).await.expect("delivered");
        let expected = ["zephyr.bin", &hex, "x", "config.json"].map(|name| dir.join(name));
        assert_eq!(files.files, expected);
    }
    assert_eq!(fs::read(dir.join("zephyr.bin")).expect("there"), b"code");
    assert_eq!(
        fs::read(dir.join("config.json")).expect("there"),
        br#"{"a":1}"#
    );
    assert_eq!(listed(&dir).len(), 4);
    // A link of that name is replaced, not written through.
    fs::write(temporary.path().join("victim"), "untouched").expect("written");
    fs::remove_file(dir.join("x")).expect("there");
    std::os::unix::fs::symlink("../victim", dir.join("x")).expect("linked");
    deliver(&dir, &artifact, &memory).await.expect("delivered");
    assert_eq!(fs::read(dir.join("x")).expect("there"), b"");
    assert_eq!(
        fs::read(temporary.path().join("victim")).expect("there"),
        b"untouched"
    );
}

#[tokio::test]
async fn an_empty_config_is_no_file_and_config_json_may_be_a_layer() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut memory = Memory::default();
    let empty = manifest(
        &mut memory,
        (EMPTY_TYPE, "{}"),
        &[(Some("config.json"), "model")],
    );
    deliver(dir.path(), &empty, &memory)
        .await
        .expect("delivered");
    assert_eq!(listed(dir.path()), ["config.json"]);
    let both = manifest(
        &mut memory,
        ("x/y", "{ }"),
        &[(Some("config.json"), "model")],
    );
    deliver(dir.path(), &both, &memory)
        .await
        .expect("delivered");
    assert_eq!(
        fs::read(dir.path().join("config.json")).expect("there"),
        b"model"
    );
    assert_eq!(listed(dir.path()).len(), 2);
}

#[tokio::test]
async fn hostile_names_and_wrong_bytes_deliver_nothing() {
    let temporary = tempfile::tempdir().expect("a directory");
    let dir = temporary.path().join("out");
    let mut memory = Memory::default();
    let long = "x".repeat(256);
    for title in [
        "",
        "/",
        ".",
        "..",
        "../x",
        "a/..",
        "a/../b",
        "/etc/passwd",
        "a/",
        "a\nb",
        "..\\x",
        "\u{7f}",
        ".edgepull-0",
        &long,
    ] {
        let bad = manifest(
            &mut memory,
            (EMPTY_TYPE, "{}"),
            &[(Some("ok"), "a"), (Some(title), "b")],
        );
        let error = deliver(&dir, &bad, &memory).await.expect_err(title);
        assert_eq!(error.kind(), Kind::InvalidContent, "{title:?}");
    }
    let twice = manifest(
        &mut memory,
        (EMPTY_TYPE, "{}"),
        &[(Some("a/x"), "a"), (Some("b/x"), "b")],
    );
    assert!(deliver(&dir, &twice, &memory).await.is_err());
    let wrong = manifest(
        &mut memory,
        (EMPTY_TYPE, "{}"),
        &[(Some("a"), "a"), (Some("b"), "b")],
    );
    memory.blobs.insert(
        crate::oci::Digest::of(b"b"),
        bytes::Bytes::from_static(b"x"),
    );
    let error = deliver(&dir, &wrong, &memory).await.expect_err("wrong");
    assert_eq!(error.kind(), Kind::InvalidContent);
    assert!(listed(&dir).is_empty());
    assert_eq!(listed(temporary.path()), ["out"]);
}

const NO_CONFIG: (&str, &str) = (EMPTY_TYPE, "{}");

#[tokio::test]
async fn what_is_there_is_not_fetched_and_what_is_not_needed_goes() {
    use std::sync::atomic::Ordering;

    let temporary = tempfile::tempdir().expect("a directory");
    let dir = temporary.path();
    let mut memory = Memory::default();
    let layers = [
        (Some("a"), "same"),
        (Some("gone"), "old"),
        (Some("kept"), "old"),
    ];
    let first = manifest(&mut memory, NO_CONFIG, &layers);
    let done = deliver(dir, &first, &memory).await.expect("delivered");
    assert_eq!((done.fetched, done.reused), (10, 0));
    assert!(!done.delivery.is_told());
    notified(dir, &done.delivery).await.expect("written");
    let served = memory.served.load(Ordering::Relaxed);
    let again = deliver(dir, &first, &memory).await.expect("delivered");
    assert_eq!((again.fetched, again.reused), (0, 10));
    assert!(again.delivery.is_told());
    assert_eq!(memory.served.load(Ordering::Relaxed), served);

    // What somebody changed is theirs.
    fs::write(dir.join("kept"), "mine").expect("written");
    fs::write(dir.join("foreign"), "x").expect("written");
    let second = manifest(
        &mut memory,
        NO_CONFIG,
        &[(Some("a"), "same"), (Some("b"), "new")],
    );
    let done = deliver(dir, &second, &memory).await.expect("delivered");
    assert_eq!((done.fetched, done.reused), (3, 4));
    assert!(!done.delivery.is_told());
    assert_eq!(listed(dir), ["a", "b", "foreign", "kept"]);
    assert_eq!(
        verified(dir).await.expect("read"),
        Some(done.delivery.clone())
    );

    // The same size, other bytes: only the whole look sees it, and it is mended.
    fs::write(dir.join("a"), "sane").expect("written");
    assert!(delivered(dir).await.expect("read").is_some());
    assert!(verified(dir).await.expect("read").is_none());
    let done = deliver(dir, &second, &memory).await.expect("delivered");
    assert_eq!(done.fetched, 4);
    fs::remove_file(dir.join("a")).expect("there");
    assert!(delivered(dir).await.expect("read").is_none());
}

/// A crash after the record was written and before the old files went.
#[tokio::test]
async fn leftovers_of_a_delivery_that_was_cut_off_go_with_the_next() {
    let temporary = tempfile::tempdir().expect("a directory");
    let dir = temporary.path();
    let mut memory = Memory::default();
    let first = manifest(&mut memory, NO_CONFIG, &[(Some("old"), "old")]);
    let second = manifest(&mut memory, NO_CONFIG, &[(Some("new"), "new")]);
    deliver(dir, &first, &memory).await.expect("delivered");
    let root = Dir::open(dir).expect("open");
    let before = read(&root).expect("read").expect("there");
    let files = plan(&second).expect("names");
    let cut = Delivery::new(&identity(&second), &files, Some(&before), true);
    write(&root, &cut).expect("written");
    deliver(dir, &second, &memory).await.expect("delivered");
    assert_eq!(listed(dir), ["new"]);
}

#[tokio::test]
async fn a_directory_holds_one_artifact() {
    let temporary = tempfile::tempdir().expect("a directory");
    let dir = temporary.path();
    let mut memory = Memory::default();
    let artifact = manifest(&mut memory, NO_CONFIG, &[(Some("a"), "a")]);
    deliver(dir, &artifact, &memory).await.expect("delivered");
    for other in [
        Identity {
            repository: "r.example/other".to_owned(),
            ..identity(&artifact)
        },
        Identity {
            wanted: vec!["zephyr/arm/v8".to_owned()],
            ..identity(&artifact)
        },
    ] {
        let error = deliver_artifact(dir, &other, &artifact, &memory)
            .await
            .expect_err("taken");
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.hint_text().is_some_and(|hint| hint.contains(RECORD)));
    }
    // A record that nobody can read is replaced.
    fs::write(dir.join(RECORD), "{").expect("written");
    deliver(dir, &artifact, &memory).await.expect("delivered");
    assert!(verified(dir).await.expect("read").is_some());
}

#[tokio::test]
async fn a_titled_config_has_its_name() {
    let temporary = tempfile::tempdir().expect("a directory");
    let mut memory = Memory::default();
    let mut artifact = manifest(&mut memory, ("x/y", "{ }"), &[(Some("service.json"), "s")]);
    let titled = |title: &str| (TITLE.to_owned(), title.to_owned());
    artifact
        .config
        .annotations
        .extend([titled("dir/platform.json")]);
    deliver(temporary.path(), &artifact, &memory)
        .await
        .expect("delivered");
    assert_eq!(listed(temporary.path()), ["platform.json", "service.json"]);
    artifact.config.annotations.extend([titled("../x")]);
    let error = deliver(temporary.path(), &artifact, &memory).await;
    assert_eq!(error.expect_err("hostile").kind(), Kind::InvalidContent);
}
