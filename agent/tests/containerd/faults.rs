//! Links that break, bytes that are wrong, disks that are full, a daemon that restarts.

use std::time::Duration;

use edgepull::{
    event::{Event, Events, Observer},
    kind::Kind,
    oci::Digest,
    pull::{is_present, pull_into},
};

use crate::{
    lab::{Lab, pull, pull_at, reference, request},
    made::{Memory, TestImage},
    runtime,
};

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
        let image = TestImage::of(layers.to_vec(), &[first, Digest::of(b"wrong")]);
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

/// Wakes up who waits for the second layer to be unpacked.
struct SecondUnpack(
    std::sync::atomic::AtomicU32,
    tokio::sync::watch::Sender<bool>,
);

impl Observer for SecondUnpack {
    fn observe(&self, event: &Event) {
        if matches!(event, Event::Unpacking { .. })
            && self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 1
        {
            self.1.send_replace(true);
        }
    }
}

#[test]
fn a_restart_below_the_unpacking_is_survived() {
    runtime().block_on(async {
        let lab = Lab::start();
        let image = TestImage::new(&[
            &[("a", b"a".to_vec())],
            &[
                (".wh.a", Vec::new()),
                ("big", crate::made::noise(18, 60_000_000)),
            ],
        ]);
        let source = image.source();
        let name = reference("r.example/app:1");
        let request = request(&name, &image.choice, &source);
        let engine = lab.engine("default").await;
        let locks = lab.path("locks");
        let (sender, mut receiver) = tokio::sync::watch::channel(false);
        let events = Events::new(SecondUnpack(0.into(), sender));
        let restart = async {
            receiver.wait_for(|now| *now).await.expect("it comes");
            tokio::time::sleep(Duration::from_millis(60)).await;
            lab.kill();
            lab.run();
        };
        let (outcome, ()) = tokio::join!(pull_into(&engine, &request, &events, &locks), restart);
        outcome.expect("a pull");
        lab.collect("default");
        assert!(is_present(&engine, &request).await.expect("an answer"));
        let snapshots = lab.ctr("default", &["snapshots", "ls"]);
        assert!(!snapshots.contains("Active"), "{snapshots}");
        assert_eq!(snapshots.matches("Committed").count(), 2, "{snapshots}");
    });
}

#[test]
fn a_lease_that_somebody_deletes_costs_a_second_run_only() {
    runtime().block_on(async {
        let lab = Lab::start();
        let image = TestImage::large(19, 5_000_000);
        let slow = Memory {
            pause: Duration::from_millis(30),
            ..image.source()
        };
        let name = reference("r.example/app:1");
        let request = request(&name, &image.choice, &slow);
        let engine = lab.engine("default").await;
        let locks = lab.path("locks");
        let thief = async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            let lease = lab.ctr("default", &["leases", "ls", "-q"]);
            lab.ctr("default", &["leases", "rm", "--sync", lease.trim()]);
        };
        let (outcome, ()) = tokio::join!(pull_at(&engine, &request, &locks), thief);
        outcome.expect("a pull");
        lab.collect("default");
        assert!(is_present(&engine, &request).await.expect("an answer"));
    });
}

#[test]
#[ignore = "takes over half a minute"]
fn a_daemon_that_does_not_come_back_is_reported_in_time() {
    runtime().block_on(async {
        let lab = Lab::start();
        let image = TestImage::large(21, 5_000_000);
        let slow = Memory {
            pause: Duration::from_millis(30),
            ..image.source()
        };
        let name = reference("r.example/app:1");
        let request = request(&name, &image.choice, &slow);
        let engine = lab.engine("default").await;
        let locks = lab.path("locks");
        let started = std::time::Instant::now();
        let kill = async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            lab.kill();
        };
        let (outcome, ()) = tokio::join!(pull_at(&engine, &request, &locks), kill);
        let error = outcome.expect_err("away");
        assert_eq!(error.kind(), Kind::ContainerdUnavailable);
        assert!(error.is_retryable());
        assert!(started.elapsed() < Duration::from_secs(45), "{error:?}");
    });
}
