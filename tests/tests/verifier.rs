//! `edgepull-image-verifier`: what containerd's transfer service asks before it fetches.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use edgepull_tests::containerd::{Containerd, Setup, Version};
use edgepull_tests::faulty::Faulty;
use edgepull_tests::image::{self, ARM_V7, ARM64, Layout, Platform, digest_of, host};
use edgepull_tests::process::{self, Output};
use edgepull_tests::scene::NAMESPACE;
use edgepull_tests::tools::{Lab, RunDir};

const DESCRIPTOR: &str = "application/vnd.oci.descriptor.v1+json";

/// A containerd that asks, and the program under its other name.
struct Asking {
    dir: RunDir,
    daemon: Containerd,
}

impl Asking {
    fn start() -> Self {
        let dir = Lab::get().run_dir("verifier");
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let link = dir.path().join("edgepull-image-verifier");
        symlink(Lab::get().edgepull(), &link).unwrap();
        let config = dir.path().join("config.toml");
        // The lab has its configuration elsewhere; on a host the link itself is in bin_dir.
        let wrapper = bin.join("edgepull");
        let script = format!(
            "#!/bin/sh\nEDGEPULL_CONFIG={} exec {} \"$@\"\n",
            config.display(),
            link.display()
        );
        fs::write(&wrapper, script).unwrap();
        process::run(Command::new("chmod").arg("755").arg(&wrapper)).ok();
        let daemon = Setup::new(Version::V2)
            .config(&format!(
                "[plugins.\"io.containerd.image-verifier.v1.bindir\"]\nbin_dir = \"{}\"\n\
                 max_verifiers = 10\nper_verifier_timeout = \"10s\"\n",
                bin.display()
            ))
            .start();
        let address = daemon.address();
        fs::write(
            config,
            format!(
                "[containerd]\naddress = \"{}\"\nnamespace = \"{NAMESPACE}\"\n",
                address.display()
            ),
        )
        .unwrap();
        Self { dir, daemon }
    }

    fn pull(&self, reference: &str) -> Output {
        let args = ["images", "pull", "--plain-http", reference];
        self.daemon.ctr(NAMESPACE, &args)
    }

    fn link(&self) -> PathBuf {
        self.dir.path().join("edgepull-image-verifier")
    }

    /// A call by hand; exit code and reason.
    fn call(&self, args: &[&str], input: &[u8]) -> (i32, String) {
        let mut child = Command::new(self.link())
            .args(args)
            .env("EDGEPULL_CONFIG", self.dir.path().join("config.toml"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // One that does not listen closes it.
        let _ = child.stdin.take().unwrap().write_all(input);
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8(ended.stdout).unwrap();
        (ended.status.code().expect("no signal"), said)
    }

    fn ask(&self, name: &str, digest: &str) -> (i32, String) {
        let input = format!("{{\"mediaType\":\"x\",\"digest\":\"{digest}\",\"size\":1}}\n");
        let args = [
            "-name",
            name,
            "-digest",
            digest,
            "-stdin-media-type",
            DESCRIPTOR,
        ];
        self.call(&args, input.as_bytes())
    }
}

fn foreign() -> Layout {
    let others: Vec<Platform> = [ARM64, ARM_V7]
        .into_iter()
        .filter(|other| *other != host())
        .collect();
    let layout = Layout::new();
    image::seeds::akraino_layer(&layout, "os", &others);
    layout
}

#[test]
fn containerd_refuses_what_offers_nothing_for_it_and_pulls_the_rest() {
    let asking = Asking::start();
    let registry = Faulty::start(image::hello(), []);
    let fits = registry.reference("lab/app", "latest");
    asking.pull(&fits).ok();
    let said = asking.daemon.run(NAMESPACE, &fits, &[]).ok().text();
    assert_eq!(said.trim(), format!("hello from {}", host().arch));

    let registry = Faulty::start(foreign(), []);
    let reference = registry.reference("akraino/validation", "os-latest");
    let refused = asking.pull(&reference);
    assert_ne!(refused.code, Some(0), "{}", refused.transcript());
    let text = refused.transcript();
    for part in [
        "platform_missing",
        "offered: linux/arm64",
        &format!("os-{}-latest", host().arch),
    ] {
        assert!(text.contains(part), "no {part}: {text}");
    }
    assert!(!asking.daemon.images(NAMESPACE).contains(&reference));
    let asked = registry.requests();
    let blobs = asked
        .iter()
        .filter(|request| request.path.contains("/blobs/"));
    assert_eq!(blobs.count(), 0, "{}", registry.transcript());

    // A label alone proves nothing of a single manifest, and files are nobody's image.
    let single = registry.reference("akraino/validation", "os-arm64-latest");
    let (code, said) = asking.ask(&single, &registry.layout().digest("os-arm64-latest"));
    assert_eq!(code, 0, "{said}");
    let layout = Layout::new();
    let artifact = image::seeds::fita_artifact(&layout, "1");
    let mut entry = artifact.descriptor(image::media::MANIFEST);
    entry["artifactType"] = image::media::CONFIG.into();
    entry["platform"] = image::seeds::ZEPHYR.json();
    let index = layout.put_json(&serde_json::json!({
        "schemaVersion": 2, "mediaType": image::media::INDEX, "manifests": [entry],
    }));
    layout.tag("files", index.descriptor(image::media::INDEX));
    let registry = Faulty::start(layout, []);
    let files = registry.reference("fita/files", "files");
    let (code, said) = asking.ask(&files, &index.digest);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("only artifacts are offered"), "{said}");
}

/// What is unpacked here already has shown its bytes.
#[test]
fn what_was_seen_to_be_for_another_machine_is_refused_from_then_on() {
    let asking = Asking::start();
    let registry = Faulty::start(image::arm_busybox_labelled(host()), []);
    let reference = registry.reference("lab/app", "latest");
    // Before it is here only its label is known.
    asking.pull(&reference).ok();
    let refused = asking.pull(&reference);
    assert_ne!(refused.code, Some(0), "{}", refused.transcript());
    for part in ["mislabelled", "/bin/busybox"] {
        assert!(
            refused.transcript().contains(part),
            "{}",
            refused.transcript()
        );
    }
    let left = asking.daemon.snapshots(NAMESPACE);
    assert!(
        left.iter().all(|(name, _)| !name.contains("edgepull")),
        "{left:?}"
    );
}

#[test]
fn whatever_it_does_not_know_lets_the_pull_go_on() {
    let asking = Asking::start();
    let digest = digest_of(b"nothing");
    let input = format!("{{\"digest\":\"{digest}\"}}");
    let name = "r.example/a:1";
    let usual = ["-name", name, "-digest", &digest];
    let much = vec![0xff; 2_000_000];
    for (args, input, why) in [
        (&usual[..], &b"garbage"[..], "no descriptor"),
        (&usual, b"", "no descriptor"),
        (&usual, &much, "no descriptor"),
        (&["-what"], input.as_bytes(), "not understood"),
        (&usual[..2], input.as_bytes(), "no -digest"),
        (
            &["-name", "A B", "-digest", &digest],
            input.as_bytes(),
            "no image reference",
        ),
        (
            &["-name", name, "-digest", "sha256:1"],
            input.as_bytes(),
            "no digest",
        ),
    ] {
        let (code, said) = asking.call(args, input);
        assert_eq!(code, 0, "{said}");
        assert!(
            said.starts_with("allowed: ") && said.contains(why),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    // A registry that refuses the connection, or has no such thing.
    let registry = Faulty::start(image::hello(), []);
    let gone = registry.reference("lab/app", "latest");
    let (code, said) = asking.ask(&gone, &digest);
    assert_eq!((code, said.starts_with("allowed: ")), (0, true), "{said}");
    drop(registry);
    let (code, said) = asking.ask(&gone, &digest);
    assert_eq!((code, said.starts_with("allowed: ")), (0, true), "{said}");
    // A configuration with a fault, and an engine that is not there.
    let config = asking.dir.path().join("config.toml");
    for (text, why) in [
        ("[nonsense]\n", "config.toml"),
        (
            "[containerd]\naddress = \"/nowhere.sock\"\n",
            "/nowhere.sock",
        ),
    ] {
        fs::write(&config, text).unwrap();
        let (code, said) = asking.ask(&gone, &digest);
        assert_eq!(code, 0, "{said}");
        assert!(said.contains(why), "{said}");
    }
}

/// A registry that takes the connection and says nothing; and a caller that never ends its input.
#[test]
fn nobody_waits_longer_than_the_deadline() {
    let asking = Asking::start();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("{}/lab/app:latest", silent.local_addr().unwrap());
    let digest = digest_of(b"nothing");
    let begun = Instant::now();
    let (code, said) = asking.ask(&name, &digest);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("no verdict within 5 s"), "{said}");
    // containerd's own limit is 10 s.
    assert!(
        begun.elapsed() < Duration::from_secs(9),
        "{:?}",
        begun.elapsed()
    );

    let begun = Instant::now();
    let mut child = Command::new(asking.link())
        .args(["-name", &name, "-digest", &digest])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let open = child.stdin.take();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(
        begun.elapsed() < Duration::from_secs(9),
        "{:?}",
        begun.elapsed()
    );
    drop(open);
}
