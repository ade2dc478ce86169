use std::fs;

use flate2::{Compression, write::GzEncoder};
use futures_util::TryStreamExt;

use super::*;
use crate::{
    event::Events,
    layout::{Content, Image, Layout, Names, copy_to_layout, testing::Memory, write_archive},
    oci::DocumentKind,
    source::small_blob,
};

struct Sample {
    memory: Memory,
    leaf: Document,
    root: Document,
}

fn sample() -> Sample {
    let mut memory = Memory::default();
    let leaf = memory.image("arm64", 300_000);
    let other = memory.image("amd64", 10);
    let root = memory.index(&[(&leaf, "arm64"), (&other, "amd64")]);
    Sample { memory, leaf, root }
}

fn names(record: &str) -> Names {
    Names {
        record_name: record.to_owned(),
        tag: Some("1".to_owned()),
    }
}

impl Sample {
    fn image<'a>(&'a self, names: &'a Names) -> Image<'a> {
        Image {
            content: Content {
                root: &self.root,
                ancestors: &[],
                leaves: std::slice::from_ref(&self.leaf),
            },
            source: &self.memory,
            names,
            reference: "app",
        }
    }

    async fn write(&self, path: &Path) -> Result<()> {
        let names = names("r.example/app:1");
        write_archive(path, &[self.image(&names)], &Events::none())
            .await
            .map(drop)
    }
}

fn only_file(dir: &Path) -> Vec<String> {
    fs::read_dir(dir)
        .expect("a directory")
        .map(|e| e.expect("an entry").file_name().to_string_lossy().into())
        .collect()
}

/// Reads everything reachable, as a pull would.
async fn read_all(archive: &Archive) -> Result<()> {
    let entry = archive.resolve(None)?;
    let mut todo = vec![entry];
    while let Some(next) = todo.pop() {
        let document = archive.document(&next).await?;
        match document.kind {
            DocumentKind::Index(index) => {
                todo.extend(index.entries.into_iter().filter(|e| archive.has(e)));
            }
            DocumentKind::Manifest(manifest) => {
                for blob in manifest.layers.iter().chain([&manifest.config]) {
                    small_blob(archive, blob).await?;
                }
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_archive_is_the_same_each_time_and_reads_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let sample = sample();
    let (one, two) = (dir.path().join("1.tar"), dir.path().join("2.tar"));
    sample.write(&one).await.expect("written");
    sample.write(&two).await.expect("written");
    let bytes = fs::read(&one).expect("there");
    assert!(bytes == fs::read(&two).expect("there"));

    let archive = Archive::open(&one).await.expect("an archive");
    assert_eq!(
        archive.resolve(None).expect("one image").digest,
        sample.root.descriptor.digest
    );
    read_all(&archive).await.expect("whole");
    let DocumentKind::Manifest(manifest) = &sample.leaf.kind else {
        panic!("an image has a manifest");
    };
    let layer = &manifest.layers[0];
    let tail: Vec<bytes::Bytes> = archive
        .blob(layer, 299_990)
        .await
        .expect("in range")
        .try_collect()
        .await
        .expect("read");
    assert_eq!(tail.concat(), sample.memory.blobs[&layer.digest][299_990..]);
    assert!(archive.blob(layer, 300_001).await.is_err());

    // Into a layout, and compressed.
    let layout = Layout::create_or_open(&dir.path().join("d")).expect("made");
    let name = names("r.example/app:1");
    let content = sample.image(&name).content;
    copy_to_layout(&layout, content, &archive, &name, &Events::none(), "x")
        .await
        .expect("copied");
    assert!(layout.has(layer).await);
    let zipped = dir.path().join("1.tar.gz");
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&bytes).expect("in memory");
    let gz = encoder.finish().expect("in memory");
    fs::write(&zipped, &gz).expect("written");
    let archive = Archive::open(&zipped).await.expect("an archive");
    read_all(&archive).await.expect("whole");
    fs::write(&zipped, &gz[..gz.len() / 2]).expect("written");
    let error = Archive::open(&zipped).await.expect_err("cut off");
    assert_eq!(error.kind(), Kind::InvalidContent);
}

#[tokio::test]
async fn several_images_share_one_archive() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a.tar");
    let sample = sample();
    let (a, b) = (names("r.example/a:1"), names("r.example/b:1"));
    let images = [sample.image(&a), sample.image(&b)];
    write_archive(&path, &images, &Events::none())
        .await
        .expect("written");
    let archive = Archive::open(&path).await.expect("an archive");
    for tag in ["1", "r.example/a:1", "r.example/b:1"] {
        let selector = Selector::Tag(tag.to_owned());
        archive.resolve(Some(&selector)).expect(tag);
    }
    assert_eq!(archive.index().entries.len(), 2);
    let inner = Selector::Digest(sample.leaf.descriptor.digest.clone());
    assert_eq!(
        archive.resolve(Some(&inner)).expect("below").digest,
        sample.leaf.descriptor.digest
    );
}

#[tokio::test]
async fn a_failure_leaves_the_old_archive_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a.tar");
    fs::write(&path, "old").expect("written");
    // What a crash left is taken over.
    fs::write(dir.path().join(".a.tar.edgepull"), "stale").expect("written");
    let mut sample = sample();
    sample.memory.break_after = Some(100_000);
    let error = sample.write(&path).await.expect_err("the link broke");
    assert_eq!(error.kind(), Kind::Unavailable);
    assert_eq!(fs::read(&path).expect("there"), b"old");
    assert_eq!(only_file(dir.path()), ["a.tar"]);

    sample.memory.break_after = None;
    for bytes in sample.memory.blobs.values_mut() {
        if bytes.len() == 300_000 {
            let mut wrong = bytes.to_vec();
            wrong[299_999] ^= 1;
            *bytes = wrong.into();
        }
    }
    let error = sample.write(&path).await.expect_err("wrong bytes");
    assert_eq!(error.kind(), Kind::InvalidContent);
    assert_eq!(fs::read(&path).expect("there"), b"old");
    assert_eq!(only_file(dir.path()), ["a.tar"]);
    for bad in ["/", "..", "/no/such/dir/a.tar"] {
        assert!(sample.write(Path::new(bad)).await.is_err(), "{bad}");
    }
}

#[tokio::test]
async fn hostile_archives_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a.tar");
    let index = br#"{"schemaVersion":2,"manifests":[]}"#;
    let build = |members: &[(&str, &[u8])]| {
        let mut bytes = Vec::new();
        for (name, content) in members {
            bytes.extend(tar::header(name, content.len() as u64));
            bytes.extend_from_slice(content);
            bytes.extend(tar::padding(content.len() as u64));
        }
        bytes.extend(tar::end());
        bytes
    };
    let marker = super::super::MARKER_TEXT;
    let ok: &[(&str, &[u8])] = &[("index.json", index), ("oci-layout", marker)];
    fs::write(&path, build(ok)).expect("written");
    let empty = Archive::open(&path).await.expect("valid, and empty");
    assert_eq!(
        empty.resolve(None).expect_err("empty").kind(),
        Kind::NotFound
    );
    let blob = format!("blobs/sha256/{}", Digest::of(b"x").hex());
    let big = vec![b' '; 5 << 20];
    for members in [
        &[("oci-layout", marker)][..],
        &[("index.json", &index[..])],
        &[
            ("index.json", index),
            ("oci-layout", marker),
            ("./index.json", index),
        ],
        &[
            ("index.json", index),
            ("oci-layout", marker),
            (&blob, b"x"),
            (&blob, b"y"),
        ],
        &[
            ("index.json", index),
            ("oci-layout", marker),
            ("blobs/../../x", b"y"),
        ],
        &[("index.json", &big), ("oci-layout", marker)],
        &[("index.json", b"{"), ("oci-layout", marker)],
        &[],
    ] {
        fs::write(&path, build(members)).expect("written");
        let error = Archive::open(&path).await.expect_err("hostile");
        assert_eq!(error.kind(), Kind::InvalidContent, "{error:?}");
    }
    // A bomb: zeros compress a thousand times.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    for _ in 0..100 {
        encoder.write_all(&vec![0; 1 << 20]).expect("in memory");
    }
    fs::write(&path, encoder.finish().expect("in memory")).expect("written");
    let error = Archive::open(&path).await.expect_err("a bomb");
    assert!(error.causes()[0].contains("inflates"), "{error:?}");
    for magic in [&b"\x28\xb5\x2f\xfd"[..], b"BZh9"] {
        fs::write(&path, magic).expect("written");
        let error = Archive::open(&path).await.expect_err("not known");
        assert_eq!(error.kind(), Kind::Unsupported);
    }
    assert!(Archive::open(dir.path()).await.is_err());
    assert_eq!(only_file(dir.path()), ["a.tar"]);
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(48))]
    #[test]
    fn any_damage_is_read_or_refused_and_nothing_is_written(
        changes in proptest::collection::vec((0_usize..10_000, proptest::num::u8::ANY), 1..6),
        keep in 0_usize..12_000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("a.tar");
            let mut memory = Memory::default();
            let leaf = memory.image("arm64", 100);
            let names = names("r.example/app:1");
            let image = Image {
                content: Content { root: &leaf, ancestors: &[], leaves: std::slice::from_ref(&leaf) },
                source: &memory,
                names: &names,
                reference: "app",
            };
            write_archive(&path, &[image], &Events::none()).await.expect("written");
            let mut bytes = fs::read(&path).expect("there");
            for (at, value) in changes {
                let length = bytes.len();
                bytes[at % length] = value;
            }
            bytes.truncate(keep);
            fs::write(&path, &bytes).expect("written");
            if let Ok(archive) = Archive::open(&path).await {
                let _ = read_all(&archive).await;
            }
            assert_eq!(only_file(dir.path()), ["a.tar"]);
        });
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..2000), gzip: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("a.tar");
            let mut content = if gzip { vec![0x1f, 0x8b, 8, 0] } else { Vec::new() };
            content.extend(bytes);
            fs::write(&path, content).expect("written");
            let _ = Archive::open(&path).await;
            assert_eq!(only_file(dir.path()), ["a.tar"]);
        });
    }
}
