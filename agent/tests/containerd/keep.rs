//! What the daemon sees of its images: the store as it is, and changes as they happen.

use std::{
    sync::{Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

use edgepull::{
    asked::{Asked, Reader},
    containerd::{
        ChangeKind, Changes, Engine,
        labels::{CRI_PINNED, Labels, PREVIOUS, PREVIOUS_SINCE},
    },
    desired::{Desired, Origin},
    error::{Error, Result},
    keep::observe::{Listing, observe},
    kind::Kind,
    oci::{Descriptor, Digest},
    pull::{Need, Room},
    reconcile::Observed,
    resolve::Want,
    schedule::Refresh,
};
use tokio::time::timeout;

use crate::{
    lab::{Lab, pull, reference, request},
    made::TestImage,
    runtime,
};

type Damage<'a> = Box<dyn Fn() + 'a>;

fn desired(name: &str, namespace: &str) -> Desired {
    Desired {
        reference: reference(name),
        platform: "linux/amd64".to_owned(),
        namespace: namespace.to_owned(),
        refresh: Refresh::Never,
        pin: true,
        keep_previous: 0,
        verify: edgepull::desired::Verify::None,
        artifact: None,
        origin: Origin {
            file: "images.d/test.txt".into(),
            line: 1,
        },
    }
}

fn want(text: &str) -> Want {
    match Asked::read(text, Reader::default()).expect("a platform") {
        Asked::One(want) => *want,
        Asked::All => panic!("one platform"),
    }
}

async fn look(lab: &Lab, desired: &Desired) -> Observed {
    let engine = lab.engine(&desired.namespace).await;
    let listing = Listing::of(&engine).await.expect("a list");
    let snapshotter = &engine.snapshotter(None).expect("one").name;
    observe(
        &engine,
        snapshotter,
        &listing,
        desired,
        &want(&desired.platform),
    )
    .await
    .expect("an answer")
}

#[test]
fn whatever_is_missing_is_seen_and_a_pull_mends_it() {
    runtime().block_on(async {
        let lab = Lab::start();
        // Namespaces share blobs; a damaged one would come back from the other.
        for (seed, namespace) in [(1, "default"), (2, "k8s.io")] {
            let image = TestImage::two_layers(seed);
            let source = image.source();
            let one = desired("r.example/app:1", namespace);
            let name = one.reference.record_name();
            let root = image.choice.root.descriptor.digest.clone();
            let mut request = request(&one.reference, &image.choice, &source);
            assert_eq!(look(&lab, &one).await, Observed::default(), "nothing yet");

            pull(&lab, namespace, &request).await.expect("a pull");
            let there = Observed {
                target: Some(root.clone()),
                complete: true,
                ..Observed::default()
            };
            assert_eq!(look(&lab, &one).await, there);
            request.pin = true;
            pull(&lab, namespace, &request).await.expect("a pull");
            let pinned = Observed {
                pinned: true,
                ..there.clone()
            };
            assert_eq!(look(&lab, &one).await, pinned);
            let other = Desired {
                platform: "linux/arm64".to_owned(),
                ..one.clone()
            };
            assert!(!look(&lab, &other).await.complete, "not of that platform");

            let chain = lab.ctr(namespace, &["snapshots", "ls"]);
            let mut chain: Vec<&str> = chain
                .lines()
                .skip(1)
                .filter_map(|line| line.split_whitespace().next())
                .collect();
            let held = |digest: &str| {
                lab.ctr(
                    namespace,
                    &[
                        "content",
                        "label",
                        digest,
                        "containerd.io/gc.ref.content.config=",
                    ],
                )
            };
            let leaf = image.choice.leaf.descriptor.digest.as_str();
            let config = image.choice.config.digest().as_str();
            // A list is sorted by name, and the order of removal is the children's.
            let mut damages: Vec<(&str, Damage<'_>)> = vec![
                (
                    "manifest",
                    Box::new(|| drop(lab.ctr(namespace, &["content", "rm", leaf]))),
                ),
                (
                    "config",
                    Box::new(|| drop(lab.ctr(namespace, &["content", "rm", config]))),
                ),
                ("label", Box::new(|| drop(held(leaf)))),
                (
                    "bytes",
                    Box::new(|| {
                        let hex = image.choice.leaf.descriptor.digest.hex();
                        let path = lab.path("root/io.containerd.content.v1.content/blobs/sha256");
                        let file = path.join(hex);
                        let length = std::fs::metadata(&file).expect("a blob").len();
                        std::fs::remove_file(&file).expect("ours");
                        std::fs::write(&file, vec![0; usize::try_from(length).expect("small")])
                            .expect("ours");
                    }),
                ),
            ];
            let top = chain
                .iter()
                .position(|key| {
                    lab.ctr(namespace, &["snapshots", "info", key])
                        .contains("\"Parent\": \"sha256:")
                })
                .expect("a top");
            let top = chain.remove(top);
            damages.push((
                "top",
                Box::new(|| drop(lab.ctr(namespace, &["snapshots", "rm", top]))),
            ));
            if namespace == "k8s.io" {
                damages.push((
                    "config's record",
                    Box::new(|| drop(lab.ctr(namespace, &["images", "rm", config]))),
                ));
            }
            for (what, damage) in damages {
                damage();
                let seen = look(&lab, &one).await;
                assert_eq!(seen.target.as_ref(), Some(&root), "{namespace}: {what}");
                assert!(!seen.complete, "{namespace}: {what} is missed");
                if what == "bytes" {
                    // A pull finds the blob committed: that is for repair to mend.
                    lab.ctr(namespace, &["content", "rm", leaf]);
                    lab.collect(namespace);
                }
                pull(&lab, namespace, &request).await.expect("a pull");
                assert_eq!(look(&lab, &one).await, pinned, "{namespace}: {what}");
            }

            // A pin that somebody took away from any of the records.
            if namespace == "k8s.io" {
                let unpinned = Labels::from([(CRI_PINNED.0.to_owned(), String::new())]);
                let engine = lab.engine(namespace).await;
                for record in [
                    config.to_owned(),
                    format!("r.example/app@{root}"),
                    name.clone(),
                ] {
                    let there_now = engine.image(&record).await.expect("an answer");
                    let there_now = there_now.expect("a record");
                    assert!(
                        engine
                            .label_image(&there_now, unpinned.clone())
                            .await
                            .expect("labelled")
                    );
                    assert_eq!(look(&lab, &one).await, there, "{record}");
                    pull(&lab, namespace, &request).await.expect("a pull");
                    assert_eq!(look(&lab, &one).await, pinned, "{record}");
                }
            }
            lab.ctr(namespace, &["images", "rm", &name]);
            assert_eq!(look(&lab, &one).await.target, None);
        }
    });
}

#[test]
fn earlier_targets_are_seen_the_youngest_first() {
    runtime().block_on(async {
        let lab = Lab::start();
        let engine = lab.engine("default").await;
        let name = "r.example/app:1";
        let put = async |record: &str, content: &str, since: Option<&str>| {
            let digest = Digest::of(content.as_bytes());
            let target = Descriptor::new(edgepull::oci::MediaType::OciIndex, digest.clone(), 7);
            let mut labels = Labels::new();
            if let Some(since) = since {
                labels.insert(PREVIOUS.to_owned(), name.to_owned());
                labels.insert(PREVIOUS_SINCE.to_owned(), since.to_owned());
            }
            let record = record.replace("DIGEST", digest.as_str());
            engine
                .put_image(&record, &target, &labels, &Labels::new())
                .await
                .expect("a record");
            digest
        };
        let old = put("r.example/app@DIGEST", "old", Some("2026-01-01T00:00:00Z")).await;
        let odd = put("r.example/app@DIGEST", "odd", Some("yesterday")).await;
        let young = put(
            "r.example/app@DIGEST",
            "young",
            Some("2026-02-01T00:00:00+01:00"),
        )
        .await;
        put("r.example/app@DIGEST", "other", None).await;
        let now = put("r.example/app@DIGEST", "now", Some("2026-03-01T00:00:00Z")).await;
        let one = desired(name, "default");
        let before = look(&lab, &one).await;
        assert_eq!(
            before.previous,
            [now.clone(), young.clone(), old.clone(), odd.clone()],
            "without a record"
        );
        put(name, "now", None).await;
        let seen = look(&lab, &one).await;
        assert_eq!(seen.target, Some(now));
        assert!(!seen.complete, "no content");
        assert_eq!(seen.previous, [young, old, odd]);
    });
}

/// Shared content, so that it is quick to make; each is looked at by itself.
#[test]
fn many_images_are_observed_in_no_time() {
    runtime().block_on(async {
        let lab = Lab::start();
        let image = TestImage::two_layers(4);
        let source = image.source();
        let name = reference("r.example/app:0");
        let request = request(&name, &image.choice, &source);
        pull(&lab, "default", &request).await.expect("a pull");
        let engine = lab.engine("default").await;
        let all: Vec<Desired> = (0..256)
            .map(|tag| desired(&format!("r.example/app:{tag}"), "default"))
            .collect();
        for one in &all {
            let name = one.reference.record_name();
            let target = image.choice.target();
            engine
                .put_image(&name, target, &Labels::new(), &Labels::new())
                .await
                .expect("a record");
        }
        let want = want("linux/amd64");
        let begun = Instant::now();
        let listing = Listing::of(&engine).await.expect("a list");
        for one in &all {
            let seen = observe(&engine, "overlayfs", &listing, one, &want)
                .await
                .expect("an answer");
            assert!(seen.complete && !seen.pinned);
        }
        let took = begun.elapsed();
        eprintln!("256 images observed in {took:?}");
        assert!(took < Duration::from_secs(10), "{took:?}");
    });
}

/// Returns when a subscription is set up, which takes a moment: nothing before that is told.
/// All that was told so far is read.
async fn heard(changes: &mut Changes, engine: &Engine) {
    let target = Descriptor::new(edgepull::oci::MediaType::OciIndex, Digest::of(b"x"), 1);
    let none = Labels::new();
    let mut told = None;
    for n in 0..100 {
        let name = format!("probe:{n}");
        engine
            .put_image(&name, &target, &none, &none)
            .await
            .expect("a record");
        // The last one made must be the last one read.
        while let Ok(change) = timeout(Duration::from_millis(200), changes.next()).await {
            told = Some(change.expect("a change").name);
        }
        if told.as_ref() == Some(&name) {
            return;
        }
    }
    panic!("nothing is told; the last: {told:?}");
}

#[test]
fn changes_of_records_are_told_until_containerd_goes_away() {
    runtime().block_on(async {
        let lab = Lab::start();
        let engine = lab.engine("default").await;
        let other = lab.engine("other").await;
        let foreign = lab.engine("foreign").await;
        let mut changes = engine.changes(&["default", "other"]);
        heard(&mut changes, &engine).await;
        let target = Descriptor::new(edgepull::oci::MediaType::OciIndex, Digest::of(b"x"), 1);
        let none = Labels::new();
        let label = Labels::from([("a".to_owned(), "b".to_owned())]);
        foreign
            .put_image("f:1", &target, &none, &none)
            .await
            .expect("a record");
        engine
            .put_image("a:1", &target, &none, &none)
            .await
            .expect("a record");
        let record = engine.image("a:1").await.expect("an answer");
        let record = record.expect("a record");
        engine.label_image(&record, label).await.expect("a label");
        other
            .put_image("b:1", &target, &none, &none)
            .await
            .expect("a record");
        engine.delete_image("a:1", false).await.expect("deleted");
        for (namespace, kind, name) in [
            ("default", ChangeKind::Created, "a:1"),
            ("default", ChangeKind::Updated, "a:1"),
            ("other", ChangeKind::Created, "b:1"),
            ("default", ChangeKind::Deleted, "a:1"),
        ] {
            let change = timeout(Duration::from_secs(5), changes.next())
                .await
                .expect("in time")
                .expect("a change");
            assert_eq!(
                (change.namespace.as_str(), change.kind, change.name.as_str()),
                (namespace, kind, name)
            );
        }
        assert!(
            timeout(Duration::from_millis(200), changes.next())
                .await
                .is_err(),
            "no more"
        );

        let quiet = &mut engine.changes(&["default"]);
        heard(quiet, &engine).await;
        // The first one has heard of the same.
        while timeout(Duration::from_millis(200), changes.next())
            .await
            .is_ok()
        {}
        lab.kill();
        for changes in [&mut changes, quiet] {
            for _ in 0..2 {
                let ended = timeout(Duration::from_secs(5), changes.next())
                    .await
                    .expect("at once");
                assert_eq!(
                    ended.expect_err("the end").kind(),
                    Kind::ContainerdUnavailable
                );
            }
        }
        lab.run();
        let mut again = lab.engine("default").await.changes(&["default"]);
        heard(&mut again, &engine).await;
        engine
            .put_image("c:1", &target, &none, &none)
            .await
            .expect("a record");
        let change = timeout(Duration::from_secs(5), again.next())
            .await
            .expect("in time");
        assert_eq!(change.expect("a change").name, "c:1");
    });
}

/// Notes what it is asked, and refuses if it is told to.
#[derive(Debug, Default)]
struct Keeper {
    needs: Mutex<Vec<Need>>,
    refuses: bool,
}

impl Room for Keeper {
    fn ask(&self, need: Need) -> Result<()> {
        self.needs.lock().expect("not poisoned").push(need);
        if self.refuses {
            return Err(Error::new(Kind::NoSpace, "no room"));
        }
        Ok(())
    }
}

#[test]
fn room_is_asked_for_once_and_before_the_first_layer() {
    runtime().block_on(async {
        let lab = Lab::start();
        let image = TestImage::two_layers(9);
        let source = image.source();
        let layers: u64 = image
            .choice
            .manifest()
            .expect("a manifest")
            .layers
            .iter()
            .map(|layer| layer.size)
            .sum();
        let name = reference("r.example/app:1");
        let whole = Need {
            fetch: layers,
            unpack: 3 * layers,
        };
        let full = Keeper {
            refuses: true,
            ..Keeper::default()
        };
        let mut request = request(&name, &image.choice, &source);
        request.room = Some(&full);
        let error = pull(&lab, "default", &request).await.expect_err("full");
        assert_eq!(error.kind(), Kind::NoSpace);
        assert_eq!(*full.needs.lock().expect("not poisoned"), [whole]);
        assert_eq!(source.requests.load(Ordering::Relaxed), 0, "not one layer");
        assert!(
            lab.ctr("default", &["images", "ls", "-q"])
                .trim()
                .is_empty()
        );

        let free = Keeper::default();
        request.room = Some(&free);
        pull(&lab, "default", &request).await.expect("a pull");
        assert_eq!(*free.needs.lock().expect("not poisoned"), [whole]);
        // Nothing to do, nothing to ask.
        pull(&lab, "default", &request).await.expect("a pull");
        assert_eq!(free.needs.lock().expect("not poisoned").len(), 1);
    });
}
