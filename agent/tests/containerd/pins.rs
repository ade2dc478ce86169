//! Pins and earlier targets on a real containerd; what the command line does is tested
//! through it.

use edgepull::{
    containerd::{
        Engine, Lease,
        labels::{CRI_PINNED, PINNED, PINNED_BY, PREVIOUS, PREVIOUS_SINCE},
        lease::lease_hash,
        snapshot::{LayerOf, Prepared},
    },
    desired::{Desired, Origin},
    keep::{AGENT, Pinned, PruneOptions, hold_previous, observe::Listing, prune, set_pin, trim},
    oci::{ChainId, DiffId, Digest, Reference},
    schedule::Refresh,
};
use jiff::Timestamp;

use crate::{
    lab::{Lab, pull_at, reference, request},
    made::TestImage,
    runtime,
};

async fn pulled(lab: &Lab, engine: &Engine, name: &Reference, image: &TestImage) {
    let source = image.source();
    let mut request = request(name, &image.choice, &source);
    request.managed_by = AGENT;
    pull_at(engine, &request, &lab.path("locks"))
        .await
        .expect("a pull");
}

/// Value of a label on every record that has it.
async fn labelled(engine: &Engine, key: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = engine
        .images(Vec::new())
        .await
        .expect("images")
        .into_iter()
        .filter_map(|record| Some((record.name, record.labels.get(key)?.clone())))
        .collect();
    found.sort();
    found
}

#[test]
fn a_pin_is_set_on_every_record_and_only_ours_is_taken_away() {
    runtime().block_on(async {
        let lab = Lab::start();
        let engine = lab.engine("k8s.io").await;
        let image = TestImage::two_layers(30);
        let name = reference("r.example/app:1");
        let target = image.choice.target().clone();
        let config = image.choice.config.digest().clone();
        let set = |on| set_pin(&engine, &name, &target, Some(&config), on);
        assert_eq!(set(true).await.expect("an answer"), Pinned::Gone);
        pulled(&lab, &engine, &name, &image).await;

        assert_eq!(set(true).await.expect("pinned"), Pinned::Changed);
        assert_eq!(labelled(&engine, CRI_PINNED.0).await.len(), 3);
        assert_eq!(labelled(&engine, PINNED_BY).await.len(), 3);
        assert_eq!(set(true).await.expect("pinned"), Pinned::Unchanged);

        // A label that is gone, and a record that is gone.
        let own = "r.example/app:1";
        lab.ctr(
            "k8s.io",
            &["images", "label", own, "io.cri-containerd.pinned="],
        );
        lab.ctr("k8s.io", &["images", "rm", config.as_str()]);
        assert_eq!(set(true).await.expect("pinned"), Pinned::Changed);
        assert_eq!(labelled(&engine, CRI_PINNED.0).await.len(), 3);

        // Another name of the same image keeps what it shares; what is not ours stays.
        let other = reference("r.example/app:2");
        pulled(&lab, &engine, &other, &image).await;
        set_pin(&engine, &other, &target, Some(&config), true)
            .await
            .expect("pinned");
        assert_eq!(set(false).await.expect("unpinned"), Pinned::Changed);
        assert_eq!(labelled(&engine, CRI_PINNED.0).await.len(), 3);
        lab.ctr(
            "k8s.io",
            &["images", "label", "r.example/app:2", "io.edgepull.pin="],
        );
        assert_eq!(set(true).await.expect("pinned"), Pinned::Changed);
        assert_eq!(set(false).await.expect("unpinned"), Pinned::Changed);
        let left = labelled(&engine, CRI_PINNED.0).await;
        assert_eq!(left, [("r.example/app:2".to_owned(), "pinned".to_owned())]);
        assert_eq!(set(false).await.expect("unpinned"), Pinned::Unchanged);
    });
}

#[test]
fn where_no_kubelet_is_one_record_says_it() {
    runtime().block_on(async {
        let lab = Lab::start();
        let engine = lab.engine("default").await;
        let image = TestImage::two_layers(31);
        let name = reference("r.example/app:1");
        let target = image.choice.target().clone();
        pulled(&lab, &engine, &name, &image).await;
        let set = |on| {
            set_pin(
                &engine,
                &name,
                &target,
                Some(image.choice.config.digest()),
                on,
            )
        };
        assert_eq!(set(true).await.expect("pinned"), Pinned::Changed);
        assert_eq!(labelled(&engine, PINNED.0).await.len(), 1);
        assert_eq!(set(true).await.expect("pinned"), Pinned::Unchanged);
        assert_eq!(set(false).await.expect("unpinned"), Pinned::Changed);
        assert!(labelled(&engine, PINNED.0).await.is_empty());
        assert_eq!(engine.images(Vec::new()).await.expect("images").len(), 1);
    });
}

#[test]
fn an_earlier_target_survives_until_it_is_let_go_of() {
    runtime().block_on(async {
        let lab = Lab::start();
        for namespace in ["default", "k8s.io"] {
            let engine = lab.engine(namespace).await;
            let name = reference("r.example/app:1");
            let images = [32, 34, 36].map(TestImage::two_layers);
            let mut times = ["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"].iter();
            pulled(&lab, &engine, &name, &images[0]).await;
            for pair in images.windows(2) {
                let [old, new] = pair else { continue };
                let now: Timestamp = times.next().expect("two").parse().expect("a time");
                let (target, config) = (old.choice.target(), old.choice.config.digest());
                let hold = |new| hold_previous(&engine, &name, target, new, Some(config), now);
                assert!(!hold(&target.digest).await.expect("an answer"), "the same");
                assert!(hold(&new.choice.target().digest).await.expect("held"));
                pulled(&lab, &engine, &name, new).await;
            }
            lab.collect(namespace);
            for image in &images {
                for digest in image.blobs.keys() {
                    assert!(engine.blob_info(digest).await.expect("an answer").is_some());
                }
            }
            assert_eq!(labelled(&engine, PREVIOUS).await.len(), 2, "{namespace}");

            let oldest = format!("r.example/app@{}", images[0].choice.target().digest);
            let gone = trim(&engine, &name, 1, &[], true).await.expect("trimmed");
            assert_eq!(gone, [oldest.as_str()]);
            assert!(
                trim(&engine, &name, 1, &[], true)
                    .await
                    .expect("trimmed")
                    .is_empty()
            );
            lab.collect(namespace);
            let is_kubernetes = namespace == "k8s.io";
            let kept = engine.image(&oldest).await.expect("an answer");
            assert_eq!(kept.is_some(), is_kubernetes, "kubelet removes its own");
            assert!(kept.is_none_or(|record| !record.is_pinned()));
            let layer = engine.blob_info(&images[0].layer(0).digest).await;
            assert_eq!(layer.expect("an answer").is_some(), is_kubernetes);
            let layer = engine.blob_info(&images[1].layer(0).digest).await;
            assert!(
                layer.expect("an answer").is_some(),
                "the one before is kept"
            );
            if is_kubernetes {
                let pinned: Vec<String> = labelled(&engine, CRI_PINNED.0)
                    .await
                    .into_iter()
                    .map(|(name, _)| name)
                    .collect();
                let held = format!("r.example/app@{}", images[1].choice.target().digest);
                let id = images[1].choice.config.digest().to_string();
                assert_eq!(pinned, [held, id]);
            }

            // Rolled back: what is the target again is no earlier one.
            let (now, old) = (images[2].choice.target(), images[1].choice.target());
            let config = images[2].choice.config.digest();
            let at = "2026-01-03T00:00:00Z".parse().expect("a time");
            hold_previous(&engine, &name, now, &old.digest, Some(config), at)
                .await
                .expect("held");
            pulled(&lab, &engine, &name, &images[1]).await;
            trim(&engine, &name, 1, &[], true).await.expect("trimmed");
            let held = labelled(&engine, PREVIOUS).await;
            assert_eq!(held.len(), 1);
            assert!(held[0].0.ends_with(now.digest.as_str()));
        }
    });
}

/// A tag moves from one image to the next: the record that holds the first.
async fn moved(lab: &Lab, engine: &Engine, name: &Reference, from: &TestImage, to: &TestImage) {
    pulled(lab, engine, name, from).await;
    hold(engine, name, from, to, "2026-01-01T00:00:00Z").await;
    pulled(lab, engine, name, to).await;
}

async fn hold(engine: &Engine, name: &Reference, from: &TestImage, to: &TestImage, at: &str) {
    let (old, new) = (from.choice.target(), to.choice.target());
    let config = Some(from.choice.config.digest());
    let at = at.parse().expect("a time");
    let held = hold_previous(engine, name, old, &new.digest, config, at).await;
    assert!(held.expect("held"));
}

#[test]
fn what_is_trimmed_is_removed_only_where_it_might_be_pruned() {
    runtime().block_on(async {
        let lab = Lab::start();
        let engine = lab.engine("default").await;
        let name = reference("r.example/app:1");
        let (old, new) = (TestImage::two_layers(41), TestImage::two_layers(42));
        let held = format!("r.example/app@{}", old.choice.target().digest);
        let trimmed = async |complete| {
            let gone = trim(&engine, &name, 0, &[], complete).await;
            assert_eq!(gone.expect("trimmed"), [held.as_str()]);
            let left = engine.image(&held).await.expect("an answer");
            assert!(labelled(&engine, PREVIOUS).await.is_empty());
            left.is_some()
        };
        moved(&lab, &engine, &name, &old, &new).await;
        assert!(
            trimmed(false).await,
            "it may be declared where nobody could read"
        );

        moved(&lab, &engine, &name, &old, &new).await;
        let user = "containers create --snapshotter overlayfs".split(' ');
        let user: Vec<&str> = user.chain([held.as_str(), "user"]).collect();
        lab.ctr("default", &user);
        assert!(trimmed(true).await, "a container uses it");
        lab.ctr("default", &["containers", "rm", "user"]);

        moved(&lab, &engine, &name, &old, &new).await;
        lab.ctr(
            "default",
            &["images", "label", &held, "io.edgepull.target=sha256:other"],
        );
        assert!(trimmed(true).await, "it is not what edgepull made");

        let target = format!("io.edgepull.target={}", old.choice.target().digest);
        lab.ctr("default", &["images", "label", &held, &target]);
        moved(&lab, &engine, &name, &old, &new).await;
        assert!(!trimmed(true).await, "nothing keeps it");
    });
}

#[test]
fn two_tags_hold_what_both_were_each_for_itself() {
    runtime().block_on(async {
        for namespace in ["default", "k8s.io"] {
            let lab = Lab::start();
            let engine = lab.engine(namespace).await;
            let (one, two) = (reference("r.example/app:1"), reference("r.example/app:2"));
            let (old, new) = (TestImage::two_layers(43), TestImage::two_layers(44));
            for (name, at) in [
                (&one, "2026-01-01T00:00:00Z"),
                (&two, "2026-02-01T00:00:00Z"),
            ] {
                pulled(&lab, &engine, name, &old).await;
                hold(&engine, name, &old, &new, at).await;
                pulled(&lab, &engine, name, &new).await;
            }
            let held = format!("r.example/app@{}", old.choice.target().digest);
            let all = |value: &str| vec![(held.clone(), value.to_owned())];
            let both = "r.example/app:2 r.example/app:1";
            assert_eq!(labelled(&engine, PREVIOUS).await, all(both));
            let times = "2026-02-01T00:00:00Z 2026-01-01T00:00:00Z";
            assert_eq!(labelled(&engine, PREVIOUS_SINCE).await, all(times));
            let listing = Listing::of(&engine).await.expect("a list");
            for name in [&one, &two] {
                let previous = listing.previous(&name.record_name());
                assert_eq!(previous, [old.choice.target().digest.clone()]);
            }

            let gone = trim(&engine, &two, 0, &[], true).await.expect("trimmed");
            assert_eq!(gone, [held.as_str()]);
            assert_eq!(labelled(&engine, PREVIOUS).await, all("r.example/app:1"));
            let times = "2026-01-01T00:00:00Z";
            assert_eq!(labelled(&engine, PREVIOUS_SINCE).await, all(times));
            let record = engine.image(&held).await.expect("an answer");
            let is_pinned = record.expect("still held").is_pinned();
            assert_eq!(is_pinned, namespace == "k8s.io");

            trim(&engine, &one, 0, &[], true).await.expect("trimmed");
            assert!(labelled(&engine, PREVIOUS).await.is_empty());
            let record = engine.image(&held).await.expect("an answer");
            assert_eq!(record.is_some(), namespace == "k8s.io");
        }
    });
}

/// One config below two targets: CRI's record of it is pinned for both.
#[test]
fn the_record_of_a_shared_config_is_pinned_while_one_image_needs_it() {
    runtime().block_on(async {
        let lab = Lab::start();
        let engine = lab.engine("k8s.io").await;
        let (first, second) = (TestImage::two_layers(45), TestImage::two_layers(45).alone());
        let (one, two) = (reference("r.example/app:1"), reference("r.example/app:2"));
        let config = first.choice.config.digest();
        assert_eq!(config, second.choice.config.digest());
        assert_ne!(first.choice.target(), second.choice.target());
        let set = async |name: &Reference, image: &TestImage, on| {
            let target = image.choice.target();
            let set = set_pin(&engine, name, target, Some(config), on).await;
            set.expect("an answer")
        };
        let pinned = async || {
            let record = engine.image(config.as_str()).await.expect("an answer");
            record.expect("a record").is_pinned()
        };
        // The record points at the one that came first.
        for (name, image) in [(&one, &first), (&two, &second)] {
            pulled(&lab, &engine, name, image).await;
            set(name, image, true).await;
        }
        let record = engine.image(config.as_str()).await.expect("an answer");
        let target = record.expect("a record").target.digest;
        let (there, other) = if target == first.choice.target().digest {
            ((&one, &first), (&two, &second))
        } else {
            ((&two, &second), (&one, &first))
        };
        assert_eq!(set(there.0, there.1, false).await, Pinned::Changed);
        assert!(pinned().await, "the other image needs it");
        set(there.0, there.1, true).await;

        let declared = [Desired {
            reference: other.0.clone(),
            platform: "host".to_owned(),
            namespace: "k8s.io".to_owned(),
            refresh: Refresh::Never,
            pin: true,
            keep_previous: 0,
            verify: edgepull::desired::Verify::None,
            artifact: None,
            origin: Origin {
                file: "images.d/test.txt".into(),
                line: 1,
            },
        }];
        let rows = prune(&engine, &declared, PruneOptions::default()).await;
        let rows = rows.expect("pruned");
        assert!(rows.iter().any(|row| row.record == there.0.record_name()));
        assert!(
            rows.iter().all(|row| row.record != config.as_str()),
            "{rows:?}"
        );
        assert!(pinned().await, "it belongs to what is declared");

        assert_eq!(set(other.0, other.1, false).await, Pinned::Changed);
        assert!(!pinned().await);
    });
}

/// By that repair tells an unpack of ours that was killed from one that runs.
#[test]
fn an_unfinished_unpack_leads_to_the_pull_that_it_is_of() {
    runtime().block_on(async {
        let lab = Lab::start();
        let engine = lab.engine("default").await;
        let image = TestImage::two_layers(38);
        let hash = lease_hash("default", "overlayfs", &Digest::of(b"x"));
        let lease = Lease::acquire(&engine, &hash).await.expect("a lease");
        let diff_id = DiffId(Digest::of(b"layer"));
        let chain = ChainId::of_layers(std::slice::from_ref(&diff_id)).remove(0);
        let of = LayerOf {
            layer: image.layer(0),
            diff_id: &diff_id,
            chain: &chain,
            parent: None,
        };
        let leased = lease.engine().expect("leased");
        let prepared = leased.prepare_layer("overlayfs", of).await;
        let Prepared::Active(snapshot) = prepared.expect("prepared") else {
            panic!("nobody has it");
        };
        let holder = engine.holder_of("overlayfs", &snapshot.key).await;
        assert_eq!(holder.expect("an answer"), Some(hash));
        let nobody = engine.holder_of("overlayfs", "extract-0-none").await;
        assert_eq!(nobody.expect("an answer"), None);
    });
}
