use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use futures_util::TryStreamExt;

use super::*;
use crate::{
    layout::{Content, copy_to_layout, testing::Memory},
    oci::Algorithm,
    source::small_blob,
};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn names(record: &str, tag: &str) -> Names {
    Names {
        record_name: record.to_owned(),
        tag: Some(tag.to_owned()),
    }
}

fn fresh() -> (tempfile::TempDir, Layout) {
    let dir = tempfile::tempdir().expect("a directory");
    let layout = Layout::create_or_open(&dir.path().join("d")).expect("a new layout");
    (dir, layout)
}

fn blob_path(layout: &Layout, digest: &Digest) -> PathBuf {
    layout
        .path()
        .join("blobs")
        .join(digest.algorithm().name())
        .join(digest.hex())
}

fn partial_path(layout: &Layout, digest: &Digest) -> PathBuf {
    layout
        .path()
        .join(WORK)
        .join(digest.as_str().replace(':', "-"))
}

async fn read(source: &dyn Source, descriptor: &Descriptor, offset: u64) -> Result<Vec<u8>> {
    let stream = source.blob(descriptor, offset).await?;
    let chunks: Vec<Bytes> = stream.try_collect().await?;
    Ok(chunks.concat())
}

fn files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                todo.push(path.clone());
            }
            let name = path.strip_prefix(root).expect("below");
            found.push(name.display().to_string());
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn an_image_goes_in_and_comes_out() {
    let (_dir, layout) = fresh();
    let mut memory = Memory::default();
    let leaf = memory.image("arm64", 300_000);
    let other = memory.image("amd64", 10);
    let root = memory.index(&[(&leaf, "arm64"), (&other, "amd64")]);
    let content = Content {
        root: &root,
        ancestors: &[],
        leaves: std::slice::from_ref(&leaf),
    };
    let name = names("r.example/app:1", "1");
    let stats = copy_to_layout(&layout, content, &memory, &name, &Events::none(), "app")
        .await
        .expect("copied");
    assert_eq!((stats.reused, stats.resumed), (0, 0));
    assert!(stats.downloaded > 300_000 && stats.written > stats.downloaded);

    let again = Layout::open(layout.path()).expect("a layout");
    for selector in [None, Some("1"), Some("r.example/app:1")] {
        let selector = selector.map(|s| Selector::Tag(s.to_owned()));
        let entry = again.resolve(selector.as_ref()).expect("named");
        assert_eq!(entry.digest, root.descriptor.digest);
        assert_eq!(entry.media_type, root.descriptor.media_type);
    }
    let below = again
        .resolve(Some(&Selector::Digest(leaf.descriptor.digest.clone())))
        .expect("a document below the index");
    assert_eq!(below, leaf.descriptor);
    let document = again.document(&root.descriptor).await.expect("stored");
    assert_eq!(document.bytes, root.bytes);
    let DocumentKind::Manifest(manifest) = &leaf.kind else {
        panic!("an image has a manifest");
    };
    small_blob(&again, &manifest.config)
        .await
        .expect("verified");
    let layer = &manifest.layers[0];
    let whole = memory.blobs[&layer.digest].clone();
    assert_eq!(read(&again, layer, 0).await.expect("read"), whole);
    assert_eq!(
        read(&again, layer, 200_001).await.expect("read"),
        whole[200_001..]
    );
    assert!(read(&again, layer, 300_001).await.is_err());

    let twice = copy_to_layout(&layout, content, &memory, &name, &Events::none(), "app")
        .await
        .expect("copied");
    assert_eq!((twice.downloaded, twice.written), (0, 0));
    assert_eq!(layout.index().expect("an index").entries.len(), 1);
    // Blobs of the other platform are not there, and nothing but the layout is.
    assert!(!layout.has(&other.descriptor).await);
    let error = again.document(&other.descriptor).await.expect_err("absent");
    assert_eq!(error.kind(), Kind::NotFound);
    assert_eq!(files(layout.path()).len(), 2 + 2 + 4);
}

#[tokio::test]
async fn a_broken_download_is_continued_and_a_damaged_start_is_not_trusted() {
    let (_dir, layout) = fresh();
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let mut memory = Memory::default();
        let content: Vec<u8> = (0..50_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let blob = memory.add_as(algorithm, LAYER, content.clone());
        memory.break_after = Some(20_000);
        let events = Events::none();
        let error = layout
            .put_blob(&blob, &memory, &events, "r")
            .await
            .expect_err("the link broke");
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(!layout.has(&blob).await);
        let partial = partial_path(&layout, &blob.digest);
        assert_eq!(fs::metadata(&partial).expect("kept").len(), 20_000);

        memory.break_after = None;
        let stats = layout
            .put_blob(&blob, &memory, &events, "r")
            .await
            .expect("continued");
        assert_eq!(
            (stats.resumed, stats.downloaded, stats.written, stats.reused),
            (20_000, 30_000, 30_000, 0)
        );
        assert!(!partial.exists());
        assert_eq!(
            fs::read(blob_path(&layout, &blob.digest)).expect("there"),
            content
        );

        // After a power cut: right length, wrong bytes; or more than there should be.
        for damage in [vec![0; 20_000], vec![0; 50_000], vec![0; 50_001]] {
            fs::remove_file(blob_path(&layout, &blob.digest)).expect("there");
            fs::create_dir_all(layout.path().join(WORK)).expect("made");
            fs::write(&partial, damage).expect("written");
            layout
                .put_blob(&blob, &memory, &events, "r")
                .await
                .expect("started over");
            assert_eq!(
                fs::read(blob_path(&layout, &blob.digest)).expect("there"),
                content
            );
            assert!(!partial.exists());
        }
    }
}

#[tokio::test]
async fn wrong_content_never_gets_its_name() {
    let (_dir, layout) = fresh();
    let mut memory = Memory::default();
    let good = memory.add(LAYER, "content");
    let mut wrong = good.clone();
    wrong.digest = Digest::of(b"something else");
    memory
        .blobs
        .insert(wrong.digest.clone(), Bytes::from_static(b"content"));
    let mut long = good.clone();
    long.size = 3;
    for bad in [wrong, long] {
        let error = layout
            .put_blob(&bad, &memory, &Events::none(), "r")
            .await
            .expect_err("it lies");
        assert_eq!(error.kind(), Kind::InvalidContent);
        assert!(!layout.has(&bad).await);
    }
    let error = layout
        .tag(&good, &names("r.example/x:1", "1"))
        .await
        .expect_err("nothing to name");
    assert_eq!(error.kind(), Kind::StoreDamaged);
    assert_eq!(
        files(layout.path()),
        ["blobs", "blobs/sha256", "index.json", "oci-layout"][..]
            .iter()
            .filter(|n| layout.path().join(n).exists())
            .map(|n| (*n).to_owned())
            .collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn damage_on_disk_is_found_and_healed() {
    let (_dir, layout) = fresh();
    let mut memory = Memory::default();
    let leaf = memory.image("arm64", 1000);
    layout.put_document(&leaf).await.expect("stored");
    let path = blob_path(&layout, &leaf.descriptor.digest);
    let mut bytes = fs::read(&path).expect("there");
    bytes[5] ^= 1;
    fs::write(&path, &bytes).expect("damaged");
    let error = layout
        .document(&leaf.descriptor)
        .await
        .expect_err("damaged");
    assert_eq!(error.kind(), Kind::InvalidContent);
    assert!(error.message().contains("is damaged"));
    // A cut file is seen by its size alone, and replaced.
    fs::write(&path, &bytes[..10]).expect("cut");
    assert!(!layout.has(&leaf.descriptor).await);
    assert!(layout.document(&leaf.descriptor).await.is_err());
    layout.put_document(&leaf).await.expect("healed");
    layout.document(&leaf.descriptor).await.expect("whole");
}

#[tokio::test]
async fn names_given_at_the_same_time_are_all_kept() {
    let (_dir, layout) = fresh();
    let mut memory = Memory::default();
    let leaf = memory.image("arm64", 10);
    layout.put_document(&leaf).await.expect("stored");
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..12 {
        // Half of them as another process would: with a handle of its own.
        let layout = if number % 2 == 0 {
            layout.clone()
        } else {
            Layout::create_or_open(layout.path()).expect("opened")
        };
        let entry = leaf.descriptor.clone();
        tasks.spawn(async move {
            let name = names(&format!("r.example/x:{number}"), &number.to_string());
            layout.tag(&entry, &name).await
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic").expect("named");
    }
    assert_eq!(layout.index().expect("readable").entries.len(), 12);
}

#[tokio::test]
async fn a_blob_is_fetched_once_however_many_want_it() {
    let (_dir, layout) = fresh();
    let mut memory = Memory::default();
    let blob = memory.add(LAYER, vec![7_u8; 2_000_000]);
    let memory = Arc::new(memory);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (layout, memory, blob) = (layout.clone(), Arc::clone(&memory), blob.clone());
        tasks.spawn(async move { layout.put_blob(&blob, &*memory, &Events::none(), "r").await });
    }
    let mut total = PutStats::default();
    while let Some(done) = tasks.join_next().await {
        total += done.expect("no panic").expect("stored");
    }
    assert_eq!((total.downloaded, total.reused), (2_000_000, 6_000_000));
    assert_eq!(
        memory.served.load(std::sync::atomic::Ordering::Relaxed),
        2_000_000
    );
    // The last one to look may have made the work directory again; it is empty.
    assert!(fs::read_dir(layout.path().join(WORK)).map_or(0, Iterator::count) == 0);
}

#[tokio::test]
async fn links_are_not_followed() {
    let (dir, layout) = fresh();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).expect("made");
    let mut memory = Memory::default();
    let blob = memory.add(LAYER, "secret");
    fs::write(outside.join(blob.digest.hex()), "secret").expect("written");
    fs::create_dir_all(layout.path().join("blobs/sha256")).expect("made");
    symlink(
        outside.join(blob.digest.hex()),
        blob_path(&layout, &blob.digest),
    )
    .expect("linked");
    assert!(!layout.has(&blob).await);
    assert!(layout.blob(&blob, 0).await.is_err());
    // Directories that are links, and a partial that is one.
    let blob = memory.add_as(Algorithm::Sha512, LAYER, "other");
    symlink(&outside, layout.path().join("blobs/sha512")).expect("linked");
    let error = layout
        .put_blob(&blob, &memory, &Events::none(), "r")
        .await
        .expect_err("a link");
    assert_eq!(error.kind(), Kind::InvalidContent);
    fs::create_dir_all(layout.path().join(WORK)).expect("made");
    let blob = memory.add(LAYER, "third");
    fs::write(outside.join("victim"), "untouched").expect("written");
    symlink(outside.join("victim"), partial_path(&layout, &blob.digest)).expect("linked");
    assert!(
        layout
            .put_blob(&blob, &memory, &Events::none(), "r")
            .await
            .is_err()
    );
    fs::remove_file(partial_path(&layout, &blob.digest)).expect("there");
    fs::hard_link(outside.join("victim"), partial_path(&layout, &blob.digest)).expect("linked");
    assert!(
        layout
            .put_blob(&blob, &memory, &Events::none(), "r")
            .await
            .is_err()
    );
    assert_eq!(
        fs::read(outside.join("victim")).expect("there"),
        b"untouched"
    );
    assert_eq!(fs::read_dir(&outside).expect("a directory").count(), 2);
}

#[tokio::test]
async fn index_json_may_itself_be_the_image_index() {
    let (_dir, layout) = fresh();
    let mut memory = Memory::default();
    let (arm, amd) = (memory.image("arm64", 10), memory.image("amd64", 10));
    let root = memory.index(&[(&arm, "arm64"), (&amd, "amd64")]);
    fs::write(layout.path().join("index.json"), &root.bytes).expect("written");
    let found = layout.resolve(None).expect("the index itself");
    assert_eq!(found.digest, root.descriptor.digest);
    let document = layout.document(&found).await.expect("index.json");
    assert_eq!(document.bytes, root.bytes);
}

#[test]
fn only_layouts_are_opened_and_only_empty_directories_become_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let kind = |path: &Path| Layout::open(path).expect_err("no layout").kind();
    assert_eq!(kind(&dir.path().join("none")), Kind::NotFound);
    assert_eq!(kind(dir.path()), Kind::InvalidContent);
    fs::write(dir.path().join("notes.txt"), "x").expect("written");
    let error = Layout::create_or_open(dir.path()).expect_err("foreign");
    assert_eq!(error.kind(), Kind::Usage);
    assert_eq!(files(dir.path()), ["notes.txt"]);

    let path = dir.path().join("new/deep");
    Layout::create_or_open(&path).expect("made");
    assert_eq!(files(&path), ["blobs", "index.json", "oci-layout"]);
    Layout::create_or_open(&path).expect("opened");
    for (file, text, expected) in [
        (
            "oci-layout",
            r#"{"imageLayoutVersion":"2.0.0"}"#,
            Kind::Unsupported,
        ),
        ("oci-layout", "nonsense", Kind::InvalidContent),
        ("oci-layout", MARKER_OK, Kind::InvalidContent),
        ("index.json", "[]", Kind::InvalidContent),
        ("index.json", "{}", Kind::InvalidContent),
    ] {
        fs::write(path.join("index.json"), "").expect("written");
        fs::write(path.join("oci-layout"), MARKER_OK).expect("written");
        fs::write(path.join(file), text).expect("written");
        assert_eq!(kind(&path), expected, "{file}: {text}");
    }
    let big = " ".repeat(5 << 20);
    fs::write(path.join("index.json"), big).expect("written");
    assert!(
        Layout::open(&path)
            .expect_err("too big")
            .message()
            .contains("bigger than")
    );
}

const MARKER_OK: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

#[tokio::test]
async fn what_nobody_continued_is_swept() {
    let (_dir, layout) = fresh();
    let work = layout.path().join(WORK);
    fs::create_dir_all(&work).expect("made");
    let old = SystemTime::now() - Duration::from_secs(30 * 24 * 3600);
    for name in ["sha256-old", "sha256-held", "sha256-new"] {
        let file = fs::File::create(work.join(name)).expect("made");
        if name != "sha256-new" {
            file.set_modified(old).expect("set");
        }
    }
    let held = fs::File::open(work.join("sha256-held")).expect("there");
    let lock = nix::fcntl::Flock::lock(held, nix::fcntl::FlockArg::LockExclusive)
        .expect("nobody else has it");
    let mut memory = Memory::default();
    let leaf = memory.image("arm64", 10);
    layout.put_document(&leaf).await.expect("stored");
    let name = names("r.example/x:1", "1");
    layout.tag(&leaf.descriptor, &name).await.expect("named");
    assert_eq!(files(&work), ["sha256-held", "sha256-new"]);
    drop(lock);
    fs::remove_file(work.join("sha256-new")).expect("there");
    layout.tag(&leaf.descriptor, &name).await.expect("named");
    assert!(!work.exists());
}

#[tokio::test]
async fn an_unwritable_index_keeps_the_old_one() {
    let (_dir, layout) = fresh();
    let mut memory = Memory::default();
    let leaf = memory.image("arm64", 10);
    layout.put_document(&leaf).await.expect("stored");
    // Somebody is writing it, and does not go away: the lock is on the directory.
    let before = fs::read(layout.path().join("index.json")).expect("there");
    fs::create_dir(layout.path().join(".index.json.edgepull")).expect("made");
    let name = names("r.example/x:1", "1");
    assert!(layout.tag(&leaf.descriptor, &name).await.is_err());
    let after = fs::read(layout.path().join("index.json")).expect("there");
    assert_eq!(before, after);
    let mode = fs::metadata(layout.path().join("index.json"))
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o444, 0o444);
}
