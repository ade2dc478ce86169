//! The daemon calls an image ready by what its bytes prove.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use edgepull_tests::agent::{Agent, PATIENCE};
use edgepull_tests::containerd::Version;
use edgepull_tests::faulty::Faulty;
use edgepull_tests::image::{self, AMD64, ARM64, Image, Layer, Layout, host};
use edgepull_tests::process::wait_for;
use edgepull_tests::scene::{NAMESPACE, Scene};
use edgepull_tests::tools::Lab;
use serde_json::json;

/// Blobs that were asked for.
fn blobs(scene: &Scene) -> usize {
    let requests = scene.registry.requests();
    requests
        .iter()
        .filter(|request| request.path.contains("/blobs/"))
        .count()
}

/// The tag points at another image from now on.
fn take_over(scene: &Scene, other: &Layout) {
    for blob in other.blobs() {
        scene.layout().put(&other.read(&blob));
    }
    scene.layout().tag("latest", other.find("latest").unwrap());
}

#[test]
fn a_mislabelled_image_is_failed_and_costs_its_bytes_once() {
    let scene = Scene::new(Version::V2, image::arm_busybox_labelled(host()));
    let mut agent = Agent::new(&scene.daemon);
    agent.declare("one.txt", &scene.reference);
    agent.start();
    agent.wait_state(&scene.reference, "failed");
    let image = agent.image(&scene.reference).unwrap();
    assert_eq!(image["error"]["kind"], "mislabelled", "{image:#}");
    assert_eq!(scene.daemon.images(NAMESPACE), Vec::<String>::new());
    let fetched = blobs(&scene);
    for _ in 0..2 {
        agent.call(["sync"]).run().exits(11);
    }
    assert_eq!(blobs(&scene), fetched, "{}", scene.registry.transcript());

    // The publisher heard of it.
    take_over(&scene, &image::hello());
    agent.call(["sync"]).run().exits(0);
    agent.wait_state(&scene.reference, "ready");
    scene.greets();
}

/// What was ready stays so, when what the tag points at now is worse.
#[test]
fn a_newer_image_that_is_mislabelled_leaves_the_one_that_is_here() {
    let scene = Scene::new(Version::V1_6, image::hello());
    let mut agent = Agent::new(&scene.daemon);
    agent.declare("one.txt", &scene.reference);
    agent.start();
    let before = agent.wait_state(&scene.reference, "ready");
    take_over(&scene, &image::arm_busybox_labelled(host()));
    agent.call(["sync"]).run().exits(11);
    let image = agent.image(&scene.reference).unwrap();
    assert_eq!(image["state"], "ready", "{image:#}");
    assert_eq!(image["digest"], before["digest"], "{image:#}");
    assert_eq!(image["error"]["kind"], "mislabelled", "{image:#}");
    scene.greets();
}

/// The image's one program, in each snapshot that has it.
fn unpacked(scene: &Scene) -> Vec<PathBuf> {
    let root = scene
        .daemon
        .root()
        .join("io.containerd.snapshotter.v1.overlayfs/snapshots");
    std::fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path().join("fs/bin/busybox"))
        .filter(|file| file.is_file())
        .collect()
}

#[test]
fn declared_static_it_is_judged_again_and_again() {
    let scene = Scene::new(Version::V1_7, image::hello());
    let mut agent = Agent::new(&scene.daemon);
    let declare = |agent: &Agent, verify: &str| {
        agent.declare(
            "one.toml",
            &format!(
                "[[image]]\nreference = \"{}\"\nverify = \"{verify}\"\n",
                scene.reference
            ),
        );
    };
    declare(&agent, "none");
    agent.start();
    agent.wait_state(&scene.reference, "ready");
    let file = unpacked(&scene).pop().unwrap();
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, b"").unwrap();
    agent.call(["sync"]).run().exits(0);
    assert_eq!(agent.image(&scene.reference).unwrap()["state"], "ready");

    // It may be the disk that lost it: then it is mended.
    declare(&agent, "static");
    wait_for("the file", PATIENCE, || {
        agent.call(["sync"]).run();
        let whole = |file: &PathBuf| std::fs::read(file).is_ok_and(|now| now == bytes);
        unpacked(&scene).iter().any(whole)
    });
    agent.wait_state(&scene.reference, "ready");
    scene.greets();
}

/// One that was published so is not compared again and again into being well.
#[test]
fn what_cannot_run_as_it_was_published_is_failed() {
    let layout = Layout::new();
    let image = Image::new(&layout, host())
        .layer(Layer::new(&layout).file("app", 0o755, b""))
        .entrypoint(&["/app"])
        .finish();
    let scene = Scene::new(Version::V2, image::published(layout, &[image]));
    let mut agent = Agent::new(&scene.daemon);
    // By its label it is ready, and then somebody wants a proof.
    agent.configure("[policy]\nimage = \"off\"\n");
    agent.declare("one.txt", &scene.reference);
    agent.start();
    agent.wait_state(&scene.reference, "ready");
    agent.declare("one.txt", "");
    agent.declare(
        "one.toml",
        &format!(
            "[[image]]\nreference = \"{}\"\nverify = \"static\"\n",
            scene.reference
        ),
    );
    wait_for("a verdict", PATIENCE, || {
        agent.call(["sync"]).run();
        let image = agent.image(&scene.reference);
        image.is_some_and(|image| {
            image["state"] == "failed" && image["error"]["kind"] == "not_runnable"
        })
    });
    agent.call(["sync"]).run().exits(10);
}

/// What runs here is kept, whatever its label says.
#[test]
fn an_image_with_a_wrong_label_and_right_bytes_stays_ready() {
    let other = if host() == ARM64 { AMD64 } else { ARM64 };
    let scene = Scene::new(Version::V2, image::mislabelled_single(other, host()));
    let mut agent = Agent::new(&scene.daemon);
    agent.declare("one.txt", &scene.reference);
    agent.start();
    agent.wait_state(&scene.reference, "ready");
    agent.wait_quiet();
    let fetched = blobs(&scene);
    agent.call(["sync"]).run().exits(0);
    let image = agent.image(&scene.reference).unwrap();
    assert_eq!(image["state"], "ready", "{image:#}");
    assert_eq!(image["pinned"], true, "{image:#}");
    assert_eq!(blobs(&scene), fetched, "{}", scene.registry.transcript());
}

/// Whatever its bytes promise: it has to run, once.
#[test]
fn declared_run_it_has_to_run_before_it_is_ready() {
    let layout = image::hello();
    let scene = Scene::new(Version::V1_7, layout);
    let failing = {
        let layout = Layout::new();
        let lab = Lab::get().tool(&format!("busybox-{}/bin/busybox", host().arch));
        let image = Image::new(&layout, host())
            .layer(Layer::new(&layout).copy("bin/busybox", 0o755, &lab))
            .entrypoint(&["/bin/busybox", "sh", "-c", "echo no licence; exit 3"])
            .finish();
        image::published(layout, &[image])
    };
    let other = Faulty::start(failing, []);
    let bad = other.reference("lab/bad", "latest");
    let mut agent = Agent::new(&scene.daemon);
    agent.declare(
        "both.toml",
        &format!(
            "[[image]]\nreference = \"{}\"\nverify = \"run\"\n\
             [[image]]\nreference = \"{bad}\"\nverify = \"run\"\n",
            scene.reference
        ),
    );
    agent.start();
    agent.wait_state(&scene.reference, "ready");
    agent.wait_state(&bad, "failed");
    let failed = agent.image(&bad).unwrap();
    assert_eq!(failed["error"]["kind"], "smoke_failed", "{failed:#}");
    assert!(
        failed["error"]["causes"].to_string().contains("no licence"),
        "{failed:#}"
    );
    agent.wait_quiet();
    // Once is enough, and nothing of it is left.
    let tasks = || {
        let events = scene.daemon.log();
        events.matches("starting signal loop").count()
    };
    let before = tasks();
    agent.call(["sync", &scene.reference]).run().exits(0);
    assert_eq!(tasks(), before);
    let containers = scene
        .daemon
        .ctr(NAMESPACE, &["containers", "ls", "-q"])
        .ok();
    assert_eq!(containers.text().trim(), "");
    assert!(scene.daemon.leases(NAMESPACE).is_empty());
}

/// As in its unit, where it may not mount: who runs the program is found out all the same, and a
/// volume is that user's.
#[test]
fn without_the_right_to_mount_an_image_of_a_named_user_is_run() {
    let layout = Layout::new();
    let busybox = Lab::get().tool(&format!("busybox-{}/bin/busybox", host().arch));
    let users = b"root:x:0:0::/:/bin/sh\nedge:x:1234:5678::/:/bin/sh\n";
    let script = "test $(id -u) = 1234 && test $(id -g) = 5678 && echo x >/data/x";
    let image = Image::new(&layout, host())
        .layer(
            Layer::new(&layout)
                .copy("bin/busybox", 0o755, &busybox)
                .symlink("bin/sh", "busybox")
                .symlink("bin/id", "busybox")
                .symlink("bin/test", "busybox")
                .file("etc/passwd", 0o644, users)
                .dir("data"),
        )
        .setting("User", json!("edge"))
        .setting("Volumes", json!({"/data": {}}))
        .entrypoint(&["/bin/sh", "-c", script])
        .finish();
    let scene = Scene::new(Version::V2, image::published(layout, &[image]));
    let dir = Lab::get().run_dir("verify");
    let limited = dir.path().join("edgepull");
    let program = Lab::get().edgepull();
    let call = format!(
        "#!/bin/sh\nexec setpriv --bounding-set -sys_admin --inh-caps -sys_admin -- {} \"$@\"\n",
        program.display()
    );
    std::fs::write(&limited, call).unwrap();
    std::fs::set_permissions(&limited, PermissionsExt::from_mode(0o755)).unwrap();
    let mut agent = Agent::new(&scene.daemon).program(limited);
    agent.declare(
        "one.toml",
        &format!(
            "[[image]]\nreference = \"{}\"\nverify = \"run\"\n",
            scene.reference
        ),
    );
    agent.start();
    agent.wait_state(&scene.reference, "ready");
}

/// A service that is being tried is not left to run when the daemon is stopped.
#[test]
fn stopped_within_a_trial_it_leaves_no_container() {
    let layout = Layout::new();
    let busybox = Lab::get().tool(&format!("busybox-{}/bin/busybox", host().arch));
    let image = Image::new(&layout, host())
        .layer(Layer::new(&layout).copy("bin/busybox", 0o755, &busybox))
        .entrypoint(&["/bin/busybox", "sleep", "1000"])
        .finish();
    let scene = Scene::new(Version::V2, image::published(layout, &[image]));
    let mut agent = Agent::new(&scene.daemon);
    agent.declare(
        "one.toml",
        &format!(
            "[[image]]\nreference = \"{}\"\nverify = \"run\"\n",
            scene.reference
        ),
    );
    agent.start();
    let tasks = || {
        let listed = scene.daemon.ctr(NAMESPACE, &["tasks", "ls", "-q"]).ok();
        listed.text().trim().to_owned()
    };
    wait_for("a container", PATIENCE, || !tasks().is_empty());
    agent.stop();
    wait_for("its end", PATIENCE, || tasks().is_empty());
    let left = scene
        .daemon
        .ctr(NAMESPACE, &["containers", "ls", "-q"])
        .ok();
    assert_eq!(left.text().trim(), "");
}
