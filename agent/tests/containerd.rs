//! Pulls into a real, private containerd. Needs root, and containerd, ctr and runc.

#[path = "containerd/lab.rs"]
mod lab;

#[path = "containerd/faults.rs"]
mod faults;
#[path = "containerd/keep.rs"]
mod keep;
#[path = "containerd/made.rs"]
mod made;
#[path = "containerd/mend.rs"]
mod mend;
#[path = "containerd/pins.rs"]
mod pins;
#[path = "containerd/shared.rs"]
mod shared;

use std::sync::atomic::Ordering;

use edgepull::{
    containerd::{StoreSource, labels::MANAGED},
    kind::Kind,
    oci::{ChainId, DiffId, Digest},
    pull::{Status, is_present},
    source::{Source, small_blob},
};
use lab::{Lab, pull, reference, request};
use made::TestImage;

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

#[test]
fn a_pull_leaves_what_containerds_own_clients_leave_and_nothing_else() {
    runtime().block_on(async {
        let lab = Lab::start();
        let image = TestImage::two_layers(1);
        let source = image.source();
        let name = reference("r.example:5000/app/one:1");
        let request = request(&name, &image.choice, &source);
        let outcome = pull(&lab, "default", &request).await.expect("a pull");
        assert_eq!(outcome.status, Status::Pulled);
        assert_eq!(outcome.warnings, Vec::<String>::new());
        let sizes: u64 = image.blobs.values().map(|b| b.len() as u64).sum();
        assert_eq!(outcome.bytes.downloaded, sizes);
        assert!(outcome.bytes.written > sizes);

        let images = lab.ctr("default", &["images", "ls"]);
        assert!(images.contains("r.example:5000/app/one:1"), "{images}");
        assert!(images.contains(&format!("{MANAGED}=test")), "{images}");
        assert!(images.contains(image.choice.root.descriptor.digest.as_str()));
        let check = lab.ctr("default", &["images", "check"]);
        assert!(
            check.contains("complete (3/3)") && check.contains("true"),
            "{check}"
        );

        // A garbage collection takes nothing, and there is no lease left that holds it.
        let leases = lab.ctr("default", &["leases", "ls", "-q"]);
        assert_eq!(leases.trim(), "");
        let before = lab.state("default");
        lab.collect("default");
        assert_eq!(before, lab.state("default"));
        let content = lab.ctr("default", &["content", "ls"]);
        for digest in image.blobs.keys() {
            assert!(content.contains(digest.as_str()), "{digest} is gone");
        }
        for label in [
            "containerd.io/gc.ref.content.m.1=",
            "containerd.io/gc.ref.content.config=",
            "containerd.io/gc.ref.content.l.1=",
            "containerd.io/gc.ref.snapshot.overlayfs=",
            "containerd.io/uncompressed=",
            "containerd.io/distribution.source.r.example=app/one",
        ] {
            assert!(content.contains(label), "{label}:\n{content}");
        }
        let snapshots = lab.ctr("default", &["snapshots", "ls"]);
        assert_eq!(snapshots.matches("Committed").count(), 2, "{snapshots}");
        assert!(!snapshots.contains("Active"), "{snapshots}");

        // What ctr makes of it.
        let target = lab.path("mnt");
        std::fs::create_dir(&target).expect("a directory");
        let target = target.to_str().expect("text");
        lab.ctr(
            "default",
            &["images", "mount", "r.example:5000/app/one:1", target],
        );
        let there = |file: &str| std::path::Path::new(target).join(file).exists();
        let files = (there("a"), there("dir/b"), there("c"));
        lab.ctr("default", &["images", "unmount", "--rm", target]);
        assert_eq!(files, (false, true, true));
    });
}

#[test]
fn a_warm_pull_writes_and_fetches_nothing() {
    runtime().block_on(async {
        let lab = Lab::start();
        let image = TestImage::two_layers(2);
        let source = image.source();
        let name = reference("r.example/app:1");
        let mut request = request(&name, &image.choice, &source);
        pull(&lab, "default", &request).await.expect("a pull");
        let before = lab.state("default");
        let database = || {
            let path = lab.path("root/io.containerd.metadata.v1.bolt/meta.db");
            Digest::of(&std::fs::read(path).expect("containerd's database"))
        };
        lab.collect("default");
        let bytes = database();
        let requests = source.requests.load(Ordering::Relaxed);
        let engine = lab.engine("default").await;
        assert!(is_present(&engine, &request).await.expect("an answer"));
        let again = pull(&lab, "default", &request).await.expect("a pull");
        assert_eq!(again.status, Status::Present);
        assert_eq!((again.bytes.downloaded, again.bytes.written), (0, 0));
        assert_eq!(source.requests.load(Ordering::Relaxed), requests);
        assert_eq!(bytes, database(), "not one transaction");
        assert_eq!(before, lab.state("default"));

        // The documents come back out of the store, verified.
        let store = StoreSource::new(engine.clone());
        let root = store
            .document(&image.choice.root.descriptor)
            .await
            .expect("stored");
        assert_eq!(root.bytes, image.choice.root.bytes);
        let config = &image.choice.manifest().expect("a manifest").config;
        small_blob(&store, config).await.expect("stored");
        let missing =
            edgepull::oci::Descriptor::new(config.media_type.clone(), Digest::of(b"?"), 1);
        let error = store.document(&missing).await.expect_err("not stored");
        assert_eq!(error.kind(), Kind::NotFound);

        // A pin is missing: only records change.
        request.pin = true;
        assert!(!is_present(&engine, &request).await.expect("an answer"));
        pull(&lab, "default", &request).await.expect("a pull");
        assert!(is_present(&engine, &request).await.expect("an answer"));
        // A lost snapshot is seen, and made again from the blobs.
        let diff_ids: Vec<DiffId> = edgepull::oci::ImageConfig::parse(&image.choice.config)
            .expect("a config")
            .diff_ids(2)
            .expect("two")
            .to_vec();
        let chain = ChainId::of_layers(&diff_ids);
        lab.ctr("default", &["snapshots", "rm", chain[1].as_str()]);
        assert!(!is_present(&engine, &request).await.expect("an answer"));
        let healed = pull(&lab, "default", &request).await.expect("a pull");
        assert_eq!(healed.bytes.downloaded, 0);
        assert!(is_present(&engine, &request).await.expect("an answer"));
    });
}

#[test]
fn kubernetes_gets_all_its_names_and_pins() {
    runtime().block_on(async {
        let lab = Lab::start();
        let image = TestImage::two_layers(3);
        let source = image.source();
        let name = reference("app:1");
        let mut request = request(&name, &image.choice, &source);
        request.pin = true;
        pull(&lab, "k8s.io", &request).await.expect("a pull");
        let root = image.choice.root.descriptor.digest.as_str();
        let names = lab.ctr("k8s.io", &["images", "ls", "-q"]);
        let mut names: Vec<&str> = names.lines().collect();
        names.sort_unstable();
        let mut wanted = [
            "docker.io/library/app:1".to_owned(),
            format!("docker.io/library/app@{root}"),
            image.choice.config.digest().to_string(),
        ];
        wanted.sort();
        assert_eq!(names, wanted);
        let images = lab.ctr("k8s.io", &["images", "ls"]);
        assert_eq!(images.matches("io.cri-containerd.image=managed").count(), 3);
        assert_eq!(images.matches("io.cri-containerd.pinned=pinned").count(), 3);

        // A record that is there already is adopted: its labels stay, ours for owning does not come.
        let other = reference("other:1");
        lab.ctr(
            "k8s.io",
            &[
                "images",
                "tag",
                "docker.io/library/app:1",
                "docker.io/library/other:1",
            ],
        );
        lab.ctr(
            "k8s.io",
            &["images", "label", "docker.io/library/other:1", "a.b/c=d"],
        );
        let owned = format!("{MANAGED}=");
        lab.ctr(
            "k8s.io",
            &["images", "label", "docker.io/library/other:1", &owned],
        );
        request.reference = &other;
        pull(&lab, "k8s.io", &request).await.expect("a pull");
        let engine = lab.engine("k8s.io").await;
        let record = engine
            .image("docker.io/library/other:1")
            .await
            .expect("an answer");
        let record = record.expect("a record");
        assert_eq!(record.labels.get("a.b/c").map(String::as_str), Some("d"));
        assert!(!record.labels.contains_key(MANAGED), "{record:?}");
    });
}

#[test]
fn several_images_of_an_index_and_a_record_on_the_manifest() {
    runtime().block_on(async {
        let lab = Lab::start();
        let (image, other) = TestImage::pair(TestImage::two_layers(20), TestImage::two_layers(22));
        let source = image.source();
        let name = reference("r.example/app:1");
        let more = [other.choice.clone()];
        let mut all = request(&name, &image.choice, &source);
        all.more = &more;
        pull(&lab, "default", &all).await.expect("a pull");
        lab.collect("default");
        let engine = lab.engine("default").await;
        assert!(is_present(&engine, &all).await.expect("an answer"));
        let snapshots = lab.ctr("default", &["snapshots", "ls"]);
        assert_eq!(
            snapshots.matches("Committed").count(),
            2,
            "one is content only"
        );
        all.unpack_more = true;
        assert!(!is_present(&engine, &all).await.expect("an answer"));
        pull(&lab, "default", &all).await.expect("a pull");
        lab.collect("default");
        let snapshots = lab.ctr("default", &["snapshots", "ls"]);
        assert_eq!(snapshots.matches("Committed").count(), 4, "{snapshots}");

        let mut leaf = other.choice.clone();
        leaf.target_is_leaf = true;
        let leaf = request(&name, &leaf, &source);
        pull(&lab, "leaf", &leaf).await.expect("a pull");
        lab.collect("leaf");
        let images = lab.ctr("leaf", &["images", "ls"]);
        assert!(
            images.contains(other.choice.leaf.descriptor.digest.as_str()),
            "{images}"
        );
        let content = lab.ctr("leaf", &["content", "ls", "-q"]);
        assert_eq!(content.lines().count(), 4, "manifest, config, two layers");
    });
}

#[test]
fn content_only_leaves_no_snapshot_and_another_namespace_is_linked() {
    runtime().block_on(async {
        let lab = Lab::start();
        let image = TestImage::large(4, 3_000_000);
        let source = image.source();
        let name = reference("r.example/app:1");
        let mut request = request(&name, &image.choice, &source);
        request.unpack = false;
        pull(&lab, "one", &request).await.expect("a pull");
        let snapshots = lab.ctr("one", &["snapshots", "ls"]);
        assert!(!snapshots.contains("sha256"), "{snapshots}");
        lab.collect("one");
        let engine = lab.engine("one").await;
        assert!(is_present(&engine, &request).await.expect("an answer"));

        request.unpack = true;
        let requests = source.requests.load(Ordering::Relaxed);
        let linked = pull(&lab, "two", &request).await.expect("a pull");
        assert_eq!(linked.bytes.downloaded, 0);
        assert_eq!(source.requests.load(Ordering::Relaxed), requests);
        lab.collect("two");
        let check = lab.ctr("two", &["images", "check"]);
        assert!(
            check.contains("complete (2/2)") && check.contains("true"),
            "{check}"
        );
    });
}

/// The promise of a board with 512 MB. By itself, because the peak is the process's:
/// `cargo test --release --test containerd -- --ignored --exact memory_stays_bounded`.
#[test]
#[ignore = "measures the whole process, so it must run alone"]
fn memory_stays_bounded() {
    runtime().block_on(async {
        let lab = Lab::start();
        let (image, source) = made::huge(&[1, 2, 3, 4], 75 << 20);
        let name = reference("r.example/app:1");
        let request = request(&name, &image.choice, &source);
        let before = lab::peak_memory();
        let started = std::time::Instant::now();
        pull(&lab, "default", &request).await.expect("a pull");
        let took = started.elapsed();
        let after = lab::peak_memory();
        println!("peak before {before} KiB, after {after} KiB, pull took {took:?}");
        assert!(after < 32 << 10, "{after} KiB");
    });
}

#[test]
fn snapshotters_are_named_when_the_wanted_one_is_not_there() {
    runtime().block_on(async {
        let lab = Lab::start();
        let engine = lab.engine("default").await;
        assert_eq!(engine.version_numbers().map(|v| v.0 >= 1), Some(true));
        assert_eq!(engine.platform().map(|p| p.os() == "linux"), Some(true));
        let error = engine.snapshotter(Some("nope")).expect_err("none");
        assert_eq!(error.kind(), Kind::Config);
        assert!(
            error.hint_text().is_some_and(|h| h.contains("overlayfs")),
            "{error:?}"
        );
        lab.ctr(
            "named",
            &[
                "namespaces",
                "create",
                "named",
                "containerd.io/defaults/snapshotter=native",
            ],
        );
        let engine = lab.engine("named").await;
        assert_eq!(engine.snapshotter(None).expect("native").name, "native");
        let image = TestImage::two_layers(12);
        let source = image.source();
        let name = reference("r.example/app:1");
        pull(&lab, "named", &request(&name, &image.choice, &source))
            .await
            .expect("a pull");
        let snapshots = lab.ctr("named", &["snapshots", "--snapshotter", "native", "ls"]);
        assert_eq!(snapshots.matches("Committed").count(), 2);
    });
}
