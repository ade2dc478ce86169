//! The lab tests itself: a scenario that fails must be able to trust its tools.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::path::Path;
use std::process::Command;

use edgepull_tests::containerd::{Containerd, Setup, Version};
use edgepull_tests::disk::SmallDisk;
use edgepull_tests::docker::Docker;
use edgepull_tests::faulty::{Action, Auth, Faulty, Kind, Rule};
use edgepull_tests::http::{self, Body};
use edgepull_tests::image::{self, AMD64, ARM_V7, digest_of};
use edgepull_tests::process::{self, note};
use edgepull_tests::registry::{PASSWORD, Registry, USER};
use edgepull_tests::tools::{self, Lab};

fn containerd_pulls_and_runs(version: Version) {
    note(&format!("{version} is {}", version.exact()));
    let registry = Registry::start();
    let layout = image::hello();
    layout.push(&registry, "latest", "lab/hello", "latest");
    let reference = registry.reference("lab/hello", "latest");

    let mut daemon = Containerd::start(version);
    let text = daemon.ctr("default", &["version"]).ok().text();
    assert!(text.contains(&version.exact()), "{text}");
    daemon.pull("default", &reference).ok();
    assert_eq!(daemon.images("default"), [reference.as_str()]);

    let ran = daemon.run("default", &reference, &[]).ok();
    assert_eq!(ran.text(), "hello from amd64\n");

    let manifest = layout.manifest("latest", &AMD64);
    let mut wanted = layout.parts(&manifest);
    wanted.extend([manifest.clone(), layout.digest("latest")]);
    wanted.sort();
    assert_eq!(daemon.blobs("default"), wanted);
    let names: Vec<String> = daemon
        .snapshots("default")
        .into_iter()
        .map(|s| s.0)
        .collect();
    let mut chain = layout.chain(&manifest);
    chain.sort();
    assert_eq!(names, chain);
    daemon.snapshot("default", &chain[0]);

    // Garbage collection leaves what the record holds, and takes what nothing holds.
    daemon.collect_garbage("default");
    assert_eq!(daemon.blobs("default"), wanted);
    daemon.restart();
    assert_eq!(daemon.images("default"), [reference.as_str()]);
    daemon.kill9();
    assert_ne!(daemon.ctr("default", &["version"]).code, Some(0));
    daemon.start_again();
    daemon.ctr("default", &["images", "rm", &reference]).ok();
    daemon.collect_garbage("default");
    assert!(daemon.blobs("default").is_empty());
    assert!(daemon.leases("default").is_empty());
    daemon.pause();
    daemon.resume();
    daemon.ctr("default", &["version"]).ok();
}

#[test]
fn containerd_1_6_pulls_and_runs() {
    containerd_pulls_and_runs(Version::V1_6);
}

#[test]
fn containerd_1_7_pulls_and_runs() {
    containerd_pulls_and_runs(Version::V1_7);
}

#[test]
fn containerd_2_pulls_and_runs() {
    containerd_pulls_and_runs(Version::V2);
}

#[test]
fn the_tricky_image_is_what_containerd_unpacks_without_complaint() {
    let registry = Registry::start();
    image::tricky().push(&registry, "latest", "lab/tricky", "1");
    let reference = registry.reference("lab/tricky", "1");
    let daemon = Containerd::start(Version::V1_7);
    daemon.pull("default", &reference).ok();
    let script = "ls /keep /hidden; stat -c %a:%u:%g:%n /sticky /bin/suid; \
                  stat -c %h /links/one; cat /links/soft";
    let ran = daemon.run("default", &reference, &["/bin/sh", "-c", script]);
    assert_eq!(
        ran.ok().text(),
        "/hidden:\nnew\n\n/keep:\nstays\n1777:5:6:/sticky\n4755:7:8:/bin/suid\n2\nnow a file"
    );
}

#[test]
fn cri_sees_its_namespace() {
    let registry = Registry::start();
    image::hello().push(&registry, "latest", "lab/hello", "latest");
    let reference = registry.reference("lab/hello", "latest");
    for version in Version::ALL {
        let daemon = Setup::new(version).cri().start();
        daemon.pull("k8s.io", &reference).ok();
        // Its event handler adds the record by config digest.
        process::wait_for(
            "CRI adds its record",
            std::time::Duration::from_secs(10),
            || {
                daemon
                    .images("k8s.io")
                    .iter()
                    .any(|name| name.starts_with("sha256:"))
            },
        );
    }
}

#[test]
fn nothing_is_left_behind() {
    let registry = Registry::start();
    image::hello_single(AMD64).push(&registry, "latest", "lab/hello", "latest");
    let reference = registry.reference("lab/hello", "latest");
    for version in Version::ALL {
        let daemon = Containerd::start(version);
        daemon.pull("default", &reference).ok();
        let id = format!("edgepull-lab-left-{}", std::process::id());
        let sleep = [
            "run",
            "--detach",
            "--snapshotter",
            "overlayfs",
            &reference,
            &id,
            "/bin/sleep",
            "1000",
        ];
        daemon.ctr("default", &sleep).ok();
        let dir = daemon.dir().to_path_buf();
        let users = process::users_of(&dir);
        assert!(users.len() >= 3, "daemon, shim, container: {users:?}");
        assert!(!tools::mounts_below(&dir).is_empty());
        drop(daemon);
        assert!(users.iter().all(|pid| !process::alive(*pid)));
        assert!(process::users_of(&dir).is_empty());
        assert!(tools::mounts_below(&dir).is_empty());
        assert!(!dir.exists());
        let runc = Path::new("/run/containerd/runc/default").join(&id);
        assert!(!runc.exists(), "runc's state");
    }
}

#[test]
fn a_full_disk_is_full() {
    let registry = Registry::start();
    image::big(3, 5 << 20).push(&registry, "latest", "lab/big", "1");
    let reference = registry.reference("lab/big", "1");
    let disk = SmallDisk::new(12 << 20);
    let daemon = Setup::new(Version::V1_7).root(disk.path()).start();
    let output = daemon.pull("default", &reference);
    assert_ne!(output.code, Some(0));
    assert!(
        output.stderr.contains("no space left on device"),
        "{}",
        output.transcript()
    );
    disk.resize(100 << 20);
    daemon.pull("default", &reference).ok();
}

#[test]
fn the_registry_serves_the_exact_bytes() {
    let registry = Registry::start();
    let shapes = [
        ("hello", image::hello()),
        ("docker", image::docker_types()),
        ("akraino", image::akraino(false)),
        ("attested", image::attested()),
        ("nested", image::nested()),
        ("zephyr", image::zephyr()),
        ("windows", image::windows()),
        ("s390x", image::only_s390x()),
        ("bare", image::bare_config_only()),
        ("single", image::hello_single(ARM_V7)),
        ("mislabelled", image::mislabelled_single(AMD64, ARM_V7)),
        ("armlabelled", image::arm_busybox_labelled(AMD64)),
    ];
    for (name, layout) in shapes {
        let digest = layout.push(&registry, "latest", &format!("shape/{name}"), "latest");
        let target = format!(
            "docker://{}",
            registry.reference(&format!("shape/{name}"), "latest")
        );
        let raw = process::run(Command::new(Lab::get().installed("skopeo")).args([
            "inspect",
            "--raw",
            "--tls-verify=false",
            &target,
        ]))
        .ok();
        assert_eq!(digest_of(&raw.stdout), digest, "{name}");
        assert_eq!(raw.stdout, layout.read(&digest), "{name}");
    }
}

#[test]
fn images_are_the_same_on_every_run() {
    assert_eq!(image::hello().blobs(), image::hello().blobs());
    assert_eq!(image::tricky().blobs(), image::tricky().blobs());
    let zephyr = image::zephyr();
    let config = "sha256:adba4503d29e172aaf92b9d0c81cff1db0dbc995171e7d9f40d3412514ec47b8";
    assert!(
        zephyr.blob_path(config).exists(),
        "FITA's config, byte for byte"
    );
}

#[test]
fn the_registry_can_ask_for_a_password() {
    let registry = Registry::start_with_password();
    image::hello_single(AMD64).push(&registry, "latest", "lab/secret", "1");
    let reference = registry.reference("lab/secret", "1");
    let daemon = Containerd::start(Version::V1_6);
    let refused = daemon.pull("default", &reference);
    assert_ne!(refused.code, Some(0), "{}", refused.transcript());
    let user = format!("{USER}:{PASSWORD}");
    let args = [
        "images",
        "pull",
        "--plain-http",
        "--user",
        &user,
        &reference,
    ];
    daemon.ctr("default", &args).ok();
}

#[test]
fn docker_sees_what_containerd_has_in_moby() {
    let registry = Registry::start();
    image::hello().push(&registry, "latest", "lab/hello", "latest");
    let reference = registry.reference("lab/hello", "latest");
    let daemon = Containerd::start(Version::V2);
    let docker = Docker::start(&daemon);
    daemon.pull("moby", &reference).ok();
    assert_eq!(docker.tags(), [reference.as_str()]);
    assert_eq!(
        docker.run(&reference),
        (0, "hello from amd64\r\n".to_owned())
    );
}

fn get(faulty: &Faulty, target: &str, headers: &[(&str, &str)]) -> http::Response {
    http::request(faulty.host(), "GET", target, headers, &Body::Empty).unwrap()
}

#[test]
fn the_faulty_registry_serves_when_not_told_otherwise() {
    let faulty = Faulty::start(image::hello(), []);
    for version in Version::ALL {
        let daemon = Containerd::start(version);
        let reference = faulty.reference("lab/hello", "latest");
        daemon.pull("default", &reference).ok();
        let ran = daemon.run("default", &reference, &[]).ok();
        assert_eq!(ran.text(), "hello from amd64\n");
    }
    assert!(
        faulty.count("GET", &Kind::Blob) >= 12,
        "{}",
        faulty.transcript()
    );
    assert!(faulty.blob_bytes() > 1_000_000);
}

#[test]
fn the_faulty_registry_does_as_scripted() {
    let layout = image::hello_single(AMD64);
    let digest = layout.digest("latest");
    let truth = layout.read(&digest);
    let faulty = Faulty::start(layout, []);
    let tag = "/v2/any/name/manifests/latest";

    let plain = get(&faulty, tag, &[]);
    assert_eq!(
        (plain.status, plain.body.as_slice()),
        (200, truth.as_slice())
    );
    assert_eq!(plain.header("docker-content-digest"), Some(digest.as_str()));

    faulty.script([Rule::on(Kind::Tag, Action::status(503)).times(1)]);
    assert_eq!(get(&faulty, tag, &[]).status, 503);
    assert_eq!(get(&faulty, tag, &[]).status, 200);

    faulty.script([Rule::always(Action::status(405)).method("HEAD")]);
    let head = http::request(faulty.host(), "HEAD", tag, &[], &Body::Empty).unwrap();
    assert_eq!(head.status, 405);
    assert_eq!(get(&faulty, tag, &[]).status, 200);

    faulty.script([Rule::always(Action::Truncate(7))]);
    assert_eq!(get(&faulty, tag, &[]).body, &truth[..7]);
    faulty.script([Rule::always(Action::FlipBit(3))]);
    let flipped = get(&faulty, tag, &[]).body;
    assert_eq!((flipped.len(), flipped[3]), (truth.len(), truth[3] ^ 1));
    faulty.script([Rule::always(Action::OneMore)]);
    assert_eq!(get(&faulty, tag, &[]).body.len(), truth.len() + 1);
    faulty.script([Rule::always(Action::Chunked)]);
    assert_eq!(get(&faulty, tag, &[]).body, truth);
    faulty.script([Rule::always(Action::DigestHeader(None))]);
    assert_eq!(get(&faulty, tag, &[]).header("docker-content-digest"), None);
    faulty.script([Rule::always(Action::ContentType(Some("text/plain".into())))]);
    assert_eq!(
        get(&faulty, tag, &[]).header("content-type"),
        Some("text/plain")
    );
    faulty.script([Rule::always(Action::Close)]);
    assert!(http::request(faulty.host(), "GET", tag, &[], &Body::Empty).is_err());

    faulty.script([]);
    let part = get(&faulty, tag, &[("Range", "bytes=10-19")]);
    assert_eq!((part.status, part.body.as_slice()), (206, &truth[10..20]));
    assert_eq!(get(&faulty, tag, &[("Range", "bytes=99999-")]).status, 416);
    faulty.script([Rule::always(Action::IgnoreRange)]);
    assert_eq!(get(&faulty, tag, &[("Range", "bytes=10-19")]).body, truth);

    faulty.forget();
    faulty.script([]);
    assert_eq!(
        get(&faulty, "/v2/any/name/manifests/nothing", &[]).status,
        404
    );
    assert_eq!(faulty.requests().len(), 1);
    assert_eq!(faulty.requests()[0].status, 404);
}

#[test]
fn the_faulty_registry_wants_a_token() {
    let user = ("edge".to_owned(), "secret".to_owned());
    let auth = Auth::Bearer(Some(user));
    let faulty = Faulty::start_with(image::hello_single(AMD64), auth, []);
    let daemon = Containerd::start(Version::V1_7);
    let reference = faulty.reference("lab/hello", "latest");
    assert_ne!(daemon.pull("default", &reference).code, Some(0));
    faulty.forget();
    let args = [
        "images",
        "pull",
        "--plain-http",
        "--user",
        "edge:secret",
        &reference,
    ];
    daemon.ctr("default", &args).ok();
    let content = faulty.content_requests();
    assert!(
        content.len() >= 4
            && content
                .iter()
                .all(edgepull_tests::faulty::Request::authorized)
    );
}
