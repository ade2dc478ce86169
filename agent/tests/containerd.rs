//! Pulls into a real, private containerd. Needs root, and containerd, ctr and runc.

#[path = "containerd/lab.rs"]
mod lab;

use std::{
    io::Write,
    process::Stdio,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use edgepull::{
    containerd::{StoreSource, labels::MANAGED},
    event::{Event, Events, Observer},
    kind::Kind,
    oci::{ChainId, DiffId, Digest},
    pull::{Status, is_present, pull_into},
    source::{Source, small_blob},
};
use lab::{Lab, Memory, Registry, TestImage, pull, pull_at, reference, request};

type Test = tokio::runtime::Runtime;

fn runtime() -> Test {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Keeps the names of events.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl Observer for Seen {
    fn observe(&self, event: &Event) {
        let value = serde_json::to_value(event).expect("plain data");
        let name = value["event"].as_str().expect("a tag").to_owned();
        self.0.lock().expect("not poisoned").push(name);
    }
}

impl Seen {
    fn has(&self, name: &str) -> bool {
        self.0
            .lock()
            .expect("not poisoned")
            .iter()
            .any(|n| n == name)
    }
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

#[test]
fn a_broken_link_is_resumed_where_it_broke() {
    runtime().block_on(async {
        let lab = Lab::start();
        let image = TestImage::large(5, 6_000_000);
        let name = reference("r.example/app:1");
        let broken = Memory {
            breaks_after: Some(2_500_000),
            ..image.source()
        };
        let error = pull(&lab, "default", &request(&name, &image.choice, &broken))
            .await
            .expect_err("the link broke");
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.is_retryable());
        // A garbage collection leaves the unfinished ingest: the lease holds it.
        lab.collect("default");
        let active = lab.ctr("default", &["content", "active"]);
        assert!(
            active.contains(&format!("layer-{}", image.layer(0).digest)),
            "{active}"
        );
        assert_eq!(
            lab.ctr("default", &["leases", "ls", "-q"]).lines().count(),
            1
        );
        assert_eq!(lab.ctr("default", &["images", "ls", "-q"]), "");

        let good = image.source();
        let outcome = pull(&lab, "default", &request(&name, &image.choice, &good))
            .await
            .expect("a pull");
        assert_eq!(outcome.bytes.resumed, 2_500_000);
        assert_eq!(*good.offsets.lock().expect("not poisoned"), [2_500_000]);
        assert_eq!(
            outcome.bytes.downloaded + outcome.bytes.resumed,
            image.layer(0).size
        );
        assert_eq!(lab.ctr("default", &["leases", "ls", "-q"]), "");
    });
}

#[test]
fn a_damaged_start_is_thrown_away_and_a_damaged_blob_is_refused() {
    runtime().block_on(async {
        let lab = Lab::start();
        let image = TestImage::large(6, 4_000_000);
        let name = reference("r.example/app:1");
        let layer = image.layer(0).digest.clone();
        let damage = |memory: &mut Memory| {
            let blob = memory.blobs.get_mut(&layer).expect("the layer");
            let mut bytes = blob.to_vec();
            bytes[1000] ^= 1;
            *blob = bytes.into();
        };
        // All of it damaged: refused, and nothing is left to be resumed.
        let mut bad = image.source();
        damage(&mut bad);
        let error = pull(&lab, "default", &request(&name, &image.choice, &bad))
            .await
            .expect_err("damaged");
        assert_eq!(error.kind(), Kind::InvalidContent);
        let active = lab.ctr("default", &["content", "active"]);
        assert!(!active.contains("layer-"), "{active}");
        assert_eq!(lab.ctr("default", &["images", "ls", "-q"]), "");

        // Only the start damaged, by an earlier run.
        let mut start = Memory {
            breaks_after: Some(1_500_000),
            ..image.source()
        };
        damage(&mut start);
        pull(&lab, "default", &request(&name, &image.choice, &start))
            .await
            .expect_err("the link broke");
        let good = image.source();
        let outcome = pull(&lab, "default", &request(&name, &image.choice, &good))
            .await
            .expect("a pull");
        assert_eq!(*good.offsets.lock().expect("not poisoned"), [1_500_000, 0]);
        assert_eq!(outcome.bytes.resumed, 0);
    });
}

#[test]
fn a_wrong_diff_id_is_refused_and_leaves_no_snapshot() {
    runtime().block_on(async {
        let lab = Lab::start();
        let good = TestImage::two_layers(7);
        let layers = [0, 1].map(|i| good.blobs[&good.layer(i).digest].clone());
        let first = edgepull::oci::ImageConfig::parse(&good.choice.config)
            .expect("a config")
            .diff_ids(2)
            .expect("two")[0]
            .0
            .clone();
        let image = TestImage::of(layers.to_vec(), vec![first, Digest::of(b"wrong")]);
        let source = image.source();
        let name = reference("r.example/app:1");
        let error = pull(&lab, "default", &request(&name, &image.choice, &source))
            .await
            .expect_err("wrong");
        assert_eq!(error.kind(), Kind::InvalidContent);
        assert!(error.message().contains("unpacks to"), "{error}");
        let snapshots = lab.ctr("default", &["snapshots", "ls"]);
        assert!(!snapshots.contains("Active"), "{snapshots}");
        assert_eq!(snapshots.matches("Committed").count(), 1, "{snapshots}");
        assert_eq!(lab.ctr("default", &["images", "ls", "-q"]), "");
        // With the lease goes all of it.
        for lease in lab.ctr("default", &["leases", "ls", "-q"]).lines() {
            lab.ctr("default", &["leases", "rm", "--sync", lease]);
        }
        let left = lab.ctr("default", &["content", "ls", "-q"]);
        assert_eq!(left, "");
    });
}

#[test]
fn pulls_at_the_same_time_all_succeed() {
    runtime().block_on(async {
        let lab = Lab::start();
        let image = TestImage::large(8, 5_000_000);
        let slow = Memory {
            pause: Duration::from_millis(10),
            ..image.source()
        };
        let name = reference("r.example/app:1");
        let request = request(&name, &image.choice, &slow);
        let engine = lab.engine("default").await;
        // Two share a state directory; one has its own, as in another mount namespace,
        // and meets the others at containerd's lock only.
        let (here, elsewhere) = (lab.path("locks"), lab.path("elsewhere"));
        let (a, b, c) = tokio::join!(
            pull_at(&engine, &request, &here),
            pull_at(&engine, &request, &here),
            pull_at(&engine, &request, &elsewhere),
        );
        let statuses = [a, b, c].map(|outcome| outcome.expect("a pull").status);
        assert!(statuses.contains(&Status::Present), "{statuses:?}");
        lab.collect("default");
        assert!(is_present(&engine, &request).await.expect("an answer"));
        assert_eq!(lab.ctr("default", &["leases", "ls", "-q"]), "");
        let snapshots = lab.ctr("default", &["snapshots", "ls"]);
        assert!(!snapshots.contains("Active"), "{snapshots}");
    });
}

#[test]
fn a_foreign_holder_is_waited_for() {
    runtime().block_on(async {
        let lab = Lab::start();
        let image = TestImage::large(9, 4_000_000);
        let layer = image.layer(0).clone();
        let bytes = image.blobs[&layer.digest].clone();
        let key = format!("layer-{}", layer.digest);
        let mut holder = lab
            .command(
                "default",
                &[
                    "content",
                    "ingest",
                    "--expected-size",
                    &layer.size.to_string(),
                    "--expected-digest",
                    layer.digest.as_str(),
                    &key,
                ],
            )
            .stdin(Stdio::piped())
            .spawn()
            .expect("ctr runs");
        let mut input = holder.stdin.take().expect("piped");
        input.write_all(&bytes[..2_000_000]).expect("taken");
        while !lab.ctr("default", &["content", "active"]).contains(&key) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let source = image.source();
        let name = reference("r.example/app:1");
        let request = request(&name, &image.choice, &source);
        let engine = lab.engine("default").await;
        let seen = Seen::default();
        let events = Events::new(seen.clone());
        let locks = lab.path("locks");
        let wait = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            assert!(seen.has("blob_waiting"));
            input.write_all(&bytes[2_000_000..]).expect("taken");
            drop(input);
        };
        let (outcome, ()) = tokio::join!(pull_into(&engine, &request, &events, &locks), wait);
        let outcome = outcome.expect("a pull");
        assert!(holder.wait().expect("our own child").success());
        assert_eq!(
            source.requests.load(Ordering::Relaxed),
            0,
            "not fetched twice"
        );
        assert!(outcome.bytes.downloaded < layer.size);
        lab.collect("default");
        assert!(is_present(&engine, &request).await.expect("an answer"));
    });
}

#[test]
fn a_restart_of_containerd_in_the_middle_is_survived() {
    runtime().block_on(async {
        let lab = Lab::start();
        let image = TestImage::large(10, 8_000_000);
        let slow = Memory {
            pause: Duration::from_millis(40),
            ..image.source()
        };
        let name = reference("r.example/app:1");
        let request = request(&name, &image.choice, &slow);
        let engine = lab.engine("default").await;
        let locks = lab.path("locks");
        let restart = async {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            lab.kill();
            tokio::time::sleep(Duration::from_millis(500)).await;
            lab.run();
        };
        let (outcome, ()) = tokio::join!(pull_at(&engine, &request, &locks), restart);
        let outcome = outcome.expect("a pull");
        assert!(
            slow.offsets
                .lock()
                .expect("not poisoned")
                .iter()
                .any(|o| *o > 0)
        );
        assert!(outcome.bytes.downloaded < 2 * image.layer(0).size);
        assert!(is_present(&engine, &request).await.expect("an answer"));
    });
}

#[test]
fn a_full_disk_is_named_and_the_next_try_resumes() {
    runtime().block_on(async {
        let lab = Lab::small(12);
        let image = TestImage::large(11, 20_000_000);
        let source = image.source();
        let name = reference("r.example/app:1");
        let request = request(&name, &image.choice, &source);
        let error = pull(&lab, "default", &request).await.expect_err("full");
        assert_eq!(error.kind(), Kind::NoSpace, "{error:?}");
        assert!(error.is_retryable());
        let causes = error.causes().join("\n");
        assert!(
            causes.contains("free") && causes.contains("root"),
            "{causes}"
        );
        lab.grow(100);
        let outcome = pull(&lab, "default", &request).await.expect("room now");
        assert!(outcome.bytes.resumed > 5_000_000, "{outcome:?}");
    });
}

#[test]
fn a_pull_of_ctr_at_the_same_time_succeeds_too() {
    runtime().block_on(async {
        let lab = Lab::start();
        let image = TestImage::large(13, 5_000_000).alone();
        let registry = Registry::start(&lab, 5213);
        registry.push(&lab, &image, "app:1");
        let name = reference("127.0.0.1:5213/app:1");
        let engine = lab.engine("default").await;
        // Whoever is first holds the ref and the other waits for it: both ways round.
        for (ours_first, namespace) in [(true, "first"), (false, "second")] {
            let slow = Memory {
                pause: Duration::from_millis(30),
                ..image.source()
            };
            let request = request(&name, &image.choice, &slow);
            let engine = lab.engine(namespace).await;
            let args = ["images", "pull", "--plain-http", "127.0.0.1:5213/app:1"];
            let mut ctr = lab.command(namespace, &args);
            ctr.stdout(Stdio::null()).stderr(Stdio::piped());
            let locks = lab.path("locks");
            let ours = async {
                if !ours_first {
                    tokio::time::sleep(Duration::from_millis(60)).await;
                }
                pull_at(&engine, &request, &locks).await
            };
            let theirs = async {
                if ours_first {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                let child = ctr.spawn().expect("ctr runs");
                tokio::task::spawn_blocking(move || child.wait_with_output())
                    .await
                    .expect("joined")
                    .expect("ctr ran")
            };
            let (ours, theirs) = tokio::join!(ours, theirs);
            ours.expect("our pull");
            let text = String::from_utf8_lossy(&theirs.stderr).into_owned();
            assert!(theirs.status.success(), "{text}");
            lab.collect(namespace);
            assert!(is_present(&engine, &request).await.expect("an answer"));
            let snapshots = lab.ctr(namespace, &["snapshots", "ls"]);
            assert_eq!(snapshots.matches("Committed").count(), 1, "{snapshots}");
            // The next namespace must not be given the blob by this one.
            lab.ctr(
                namespace,
                &["images", "rm", "--sync", "127.0.0.1:5213/app:1"],
            );
        }
        drop(engine);
    });
}

/// The promise of a board with 512 MB. By itself, because the peak is the process's:
/// `cargo test --release --test containerd -- --ignored --exact memory_stays_bounded`.
#[test]
#[ignore = "measures the whole process, so it must run alone"]
fn memory_stays_bounded() {
    runtime().block_on(async {
        let lab = Lab::start();
        let (image, source) = lab::huge(&[1, 2, 3, 4], 75 << 20);
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
