//! Several clients of one containerd at the same time.

use std::{
    io::Write,
    process::Stdio,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use edgepull::{
    containerd::{Lease, lease::lease_hash},
    event::{Event, Events, Observer},
    kind::Kind,
    oci::Digest,
    pull::{Status, is_present, pull_into},
};

use crate::{
    lab::{Lab, Registry, pull_at, reference, request},
    made::{Memory, TestImage},
    runtime,
};

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

#[test]
fn what_we_write_is_what_ctr_writes() {
    runtime().block_on(async {
        let lab = Lab::start();
        let image = TestImage::two_layers(24).alone();
        let registry = Registry::start(&lab, 5214);
        registry.push(&lab, &image, "some/app:1");
        let typed = "127.0.0.1:5214/some/app:1";
        // Each in a daemon's namespace of its own, but not out of the other's content.
        lab.ctr("theirs", &["images", "pull", "--plain-http", typed]);
        let theirs = lab.state("theirs");
        lab.ctr("theirs", &["images", "rm", "--sync", typed]);

        let source = image.source();
        let name = reference(typed);
        let mut request = request(&name, &image.choice, &source);
        request.managed_by = "test";
        let engine = lab.engine("ours").await;
        let outcome = pull_at(&engine, &request, &lab.path("locks")).await;
        assert!(outcome.expect("a pull").bytes.downloaded > 0);
        // Of the label that CRI and nerdctl put on snapshots, this ctr knows nothing.
        let chain = image.chain();
        let info = lab.ctr("ours", &["snapshots", "info", &chain]);
        assert!(info.contains("containerd.io/snapshot.ref"), "{info}");
        // No labels are shown as `-`.
        // What the record of an image of ours has besides; nothing else has anything.
        let own = [
            "io.edgepull.managed=test".to_owned(),
            format!("io.edgepull.target={}", image.choice.target().digest),
        ];
        let without_own = |text: &str| -> Vec<String> {
            text.split_whitespace()
                .filter(|word| *word != "-")
                .map(str::to_owned)
                .filter(|word| !own.contains(word))
                .collect()
        };
        assert_eq!(without_own(&lab.state("ours")), without_own(&theirs));
    });
}

#[test]
fn a_silent_source_gives_the_ref_to_others() {
    runtime().block_on(async {
        let lab = Lab::start();
        let image = TestImage::large(14, 4_000_000);
        let layer = image.layer(0).clone();
        // It gives half of the layer and then nothing for longer than others should wait.
        let silent = Memory {
            silent_after: Some((2_000_000, Duration::from_secs(25))),
            ..image.source()
        };
        let name = reference("r.example/app:1");
        let request = request(&name, &image.choice, &silent);
        let engine = lab.engine("default").await;
        let locks = lab.path("locks");
        let other = async {
            tokio::time::sleep(Duration::from_secs(18)).await;
            // A file, because ctr seeks to where the ingest ends.
            let path = lab.path("layer");
            std::fs::write(&path, &image.blobs[&layer.digest]).expect("a file");
            let mut other = lab
                .command(
                    "default",
                    &[
                        "content",
                        "ingest",
                        "--expected-size",
                        &layer.size.to_string(),
                        "--expected-digest",
                        layer.digest.as_str(),
                        &format!("layer-{}", layer.digest),
                    ],
                )
                .stdin(std::fs::File::open(&path).expect("a file"))
                .spawn()
                .expect("ctr runs");
            assert!(other.wait().expect("our own child").success());
            let content = lab.ctr("default", &["content", "ls", "-q"]);
            assert!(
                content.contains(layer.digest.as_str()),
                "committed by the other"
            );
        };
        let (outcome, ()) = tokio::join!(pull_at(&engine, &request, &locks), other);
        assert!(outcome.expect("a pull").bytes.downloaded < 3_000_000);
        lab.collect("default");
        assert!(is_present(&engine, &request).await.expect("an answer"));
    });
}

#[test]
#[ignore = "takes over a minute"]
fn a_holder_that_is_stuck_is_reported() {
    runtime().block_on(async {
        let lab = Lab::start();
        let image = TestImage::large(15, 2_000_000);
        let key = format!("layer-{}", image.layer(0).digest);
        let mut holder = lab
            .command("default", &["content", "ingest", &key])
            .stdin(Stdio::piped())
            .spawn()
            .expect("ctr runs");
        while !lab.ctr("default", &["content", "active"]).contains(&key) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let source = image.source();
        let name = reference("r.example/app:1");
        let request = request(&name, &image.choice, &source);
        let engine = lab.engine("default").await;
        let error = pull_at(&engine, &request, &lab.path("locks"))
            .await
            .expect_err("stuck");
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.is_retryable());
        assert!(error.message().contains(&key), "{error}");
        drop(holder.stdin.take());
        let _ = holder.wait();
    });
}

#[test]
fn a_lease_is_found_again_replaced_when_old_and_renewed() {
    runtime().block_on(async {
        let lab = Lab::start();
        let engine = lab.engine("default").await;
        let hash = lease_hash("default", "overlayfs", &Digest::of(b"x"));
        let first = Lease::acquire(&engine, &hash).await.expect("a lease");
        assert!(first.id().ends_with("-1"));
        let second = Lease::acquire(&engine, &hash).await.expect("a lease");
        assert_eq!(first.id(), second.id(), "found again");
        first.release().await.expect("deleted");
        assert!(!second.exists().await.expect("an answer"));

        // One that is about to expire is replaced, and what it held is kept.
        let old = format!("edgepull-{hash}-7");
        let label = format!("io.edgepull.lease={hash}");
        lab.ctr(
            "default",
            &["leases", "create", "--id", &old, "--expires", "1h", &label],
        );
        let lease = Lease::acquire(&engine, &hash).await.expect("a lease");
        assert!(lease.id().ends_with("-8"), "{}", lease.id());
        let ids = lab.ctr("default", &["leases", "ls", "-q"]);
        assert_eq!(ids.trim(), lease.id());

        // Renewal waits for who still writes under the old generation.
        lease.add_blob(&Digest::of(b"blob")).await.expect("added");
        let leased = lease.engine().expect("a connection");
        let user = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert!(lease.is_superseded(&leased));
            assert_eq!(
                lab.ctr("default", &["leases", "ls", "-q"]).lines().count(),
                2
            );
            drop(leased);
        };
        let (renewed, ()) = tokio::join!(lease.renew(), user);
        renewed.expect("renewed");
        let ids = lab.ctr("default", &["leases", "ls", "-q"]);
        assert_eq!(ids.trim(), format!("edgepull-{hash}-9"));
        let held = lease.resources().await.expect("a list");
        assert_eq!(
            held,
            [("content".to_owned(), Digest::of(b"blob").to_string())]
        );
    });
}

#[test]
fn a_pull_that_is_dropped_is_taken_up_again() {
    runtime().block_on(async {
        let lab = Lab::start();
        let image = TestImage::new(&[
            &[("a", crate::made::noise(16, 500_000))],
            &[("b", crate::made::noise(17, 6_000_000))],
        ]);
        let slow = Memory {
            pause: Duration::from_millis(30),
            ..image.source()
        };
        let name = reference("r.example/app:1");
        let engine = lab.engine("default").await;
        let locks = lab.path("locks");
        for milliseconds in [100, 300, 700] {
            let request = request(&name, &image.choice, &slow);
            let pull = pull_at(&engine, &request, &locks);
            let dropped = tokio::time::timeout(Duration::from_millis(milliseconds), pull).await;
            assert!(dropped.is_err(), "too fast to be dropped");
            lab.collect("default");
        }
        let fast = image.source();
        let request = request(&name, &image.choice, &fast);
        let outcome = pull_at(&engine, &request, &locks).await.expect("a pull");
        assert!(outcome.bytes.resumed > 0, "{outcome:?}");
        lab.collect("default");
        let snapshots = lab.ctr("default", &["snapshots", "ls"]);
        assert!(!snapshots.contains("Active"), "{snapshots}");
        assert!(is_present(&engine, &request).await.expect("an answer"));
    });
}
