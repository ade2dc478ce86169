//! The files of `dist/` at work: each target on the least able CPU that it is meant for.
//!
//! What does not depend on the machine must be the same to the byte on each of them: a
//! difference is a fault of 32 bits, of alignment, of a cast, or of the build.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use edgepull_tests::containerd::{Containerd, Version};
use edgepull_tests::device::version;
use edgepull_tests::edgepull::Edgepull;
use edgepull_tests::faulty::Faulty;
use edgepull_tests::image::{self, ARM64, HELLO, Layout, host};
use edgepull_tests::pki::{Authority, Validity};
use edgepull_tests::process;
use edgepull_tests::registry::{Door, Registry};
use edgepull_tests::scene::{NAMESPACE, greeting};
use edgepull_tests::target::Target;
use edgepull_tests::tls_front::free_443;
use serde_json::Value;

/// Directories below `hosts` of our own data and, where it is, of the larger collection.
fn recorded_hosts() -> Vec<PathBuf> {
    let workspace = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let more = std::env::var_os("EDGEPULL_FIXTURES")
        .map_or_else(|| workspace.join("../shared/fixtures"), PathBuf::from);
    let own = workspace.join("platform/tests/data");
    let mut found = Vec::new();
    for dir in [own.join("hosts"), more.join("hosts")] {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    assert!(found.len() >= 3, "no recorded hosts in the tree");
    found
}

#[test]
fn each_starts_and_knows_that_it_is_emulated() {
    for target in Target::all() {
        let version = target.edgepull(["version"]).run().exits(0);
        let own = Edgepull::new(["version"]).run().exits(0);
        assert_eq!(version.text(), own.text(), "{}", target.triple);

        let found = target.edgepull(["detect"]).json().run().exits(0).document();
        if target.runner().is_empty() {
            continue;
        }
        assert_eq!(found["platform"], target.platform.as_str(), "{found}");
        let warnings = found["warnings"].to_string();
        assert!(warnings.contains("emulator"), "{found}");
    }
}

#[test]
fn each_shim_starts() {
    for target in Target::all() {
        let call = |args: &[&str]| {
            let mut words = target.runner();
            words.push(target.shim());
            let mut command = Command::new(words.remove(0));
            process::run(command.args(words).args(args))
        };
        let told = call(&["-v"]).ok();
        assert_eq!(
            told.text(),
            format!("containerd-shim-edgepull-v1 {}\n", version()),
            "{}",
            target.triple
        );
        let help = call(&["-h"]).ok().text();
        assert!(help.contains("io.containerd.edgepull.v1"), "{help}");
        // Nothing but what was asked for goes to where containerd reads.
        let refused = call(&["-namespace", "n", "-id", "../x", "start"]);
        assert_eq!((refused.code, refused.text()), (Some(1), String::new()));
        assert!(refused.stderr.contains("`../x`"), "{}", refused.stderr);
    }
}

/// That the check above can fail, and why `arm` is a target beside `armv7`.
#[test]
fn code_for_armv7_dies_on_an_arm1176() {
    let old = Target::named("arm-unknown-linux-musleabihf");
    let new = Target::named("armv7-unknown-linux-musleabihf");
    let mut runner = old.runner();
    let mut command = Command::new(runner.remove(0));
    command.args(runner).arg(new.file()).arg("version");
    // The emulator dies of the program's own signal, with a core where it may.
    let dir = tempfile::tempdir().unwrap();
    let ended = command.current_dir(dir.path()).output().unwrap();
    assert!(
        String::from_utf8_lossy(&ended.stderr).contains("Illegal instruction"),
        "{ended:?}"
    );
}

#[test]
fn recorded_hosts_are_judged_alike() {
    for host in recorded_hosts() {
        let args = ["--sysroot", host.to_str().unwrap(), "detect"];
        let expected = Edgepull::new(args).json().run().exits(0);
        for target in Target::all() {
            let found = target.edgepull(args).json().run().exits(0);
            assert_eq!(
                found.text(),
                expected.text(),
                "{} on {}",
                host.display(),
                target.triple
            );
        }
    }
}

#[test]
fn indexes_are_read_alike() {
    let shapes: [Layout; 6] = [
        image::hello(),
        image::docker_types(),
        image::attested(),
        image::nested(),
        image::windows(),
        image::only_s390x(),
    ];
    // One host for all: an error names it.
    let recorded = recorded_hosts().remove(0);
    let recorded = ["--sysroot", recorded.to_str().unwrap()];
    for layout in &shapes {
        let reference = format!("oci:{}:latest", layout.path().display());
        for wanted in ["linux/arm64", "linux/arm/v7", "linux/arm/v6", "linux/amd64"] {
            for verb in ["inspect", "check"] {
                let args = [verb, &reference, "--platform", wanted];
                let expected = Edgepull::new(args).args(recorded).json().run();
                for target in Target::arm() {
                    let found = target.edgepull(args).args(recorded).json().run();
                    assert_eq!(
                        (found.output.code, found.text()),
                        (expected.output.code, expected.text()),
                        "{args:?} on {}",
                        target.triple
                    );
                }
            }
        }
    }
}

/// The images of three platforms by each target: the same content, the same snapshots, and
/// what is for this machine runs.
#[test]
fn images_are_pulled_into_the_containerd_of_another_architecture() {
    let daemon = Containerd::start(Version::V1_7);
    let registry = Faulty::start(image::hello(), []);
    let reference = registry.reference("lab/app", "latest");
    let platforms = HELLO.map(|platform| platform.to_string());
    let wanted: Vec<&str> = platforms
        .iter()
        .flat_map(|platform| ["--platform", platform])
        .collect();

    let pull = |call: Edgepull, daemon: &Containerd| {
        let call = call.json().on(daemon, NAMESPACE).arg("pull");
        call.arg(&reference).args(&wanted).run().exits(0).elements()
    };
    let facts = |reports: &[Value]| -> Vec<Value> {
        let keys = [
            "status",
            "selected_platform",
            "index_digest",
            "manifest_digest",
            "bytes",
        ];
        let pick = |report: &Value| keys.iter().map(|key| report[*key].clone()).collect();
        reports.iter().map(pick).collect()
    };
    let store = |daemon: &Containerd| {
        let mut snapshots = daemon.snapshots(NAMESPACE);
        snapshots.sort();
        (daemon.blobs(NAMESPACE), snapshots)
    };
    let none: [&str; 0] = [];
    let own = pull(Edgepull::new(none), &daemon);
    assert_eq!(own.len(), HELLO.len());
    assert_eq!(store(&daemon).0, blobs(&registry));

    for target in Target::arm() {
        // Not another namespace: it would be given the blobs of the first.
        let fresh = Containerd::start(Version::V1_7);
        let reports = pull(target.edgepull(none), &fresh);
        assert_eq!(facts(&reports), facts(&own), "{}", target.triple);
        assert_eq!(store(&fresh), store(&daemon), "{}", target.triple);
        assert!(fresh.leases(NAMESPACE).is_empty());
        let ran = fresh.run(NAMESPACE, &reference, &[]).ok();
        assert_eq!(ran.text(), greeting());

        let again = target.edgepull(none).json().on(&fresh, NAMESPACE);
        let again = again.args(["pull", &reference, "--platform", &host().to_string()]);
        assert_eq!(again.run().exits(0).element()["status"], "present");
        let removed = target.edgepull(["rm", &reference]).on(&fresh, NAMESPACE);
        removed.run().exits(0);
        assert!(fresh.images(NAMESPACE).is_empty());
    }
}

/// TLS and hashing with each target's own machine code: of the CPUs here only one has
/// instructions for either.
#[test]
fn https_and_digests_work_on_each() {
    let registry = Registry::start();
    let layout = image::hello();
    layout.push(&registry, "latest", "lab/app", "1");
    let authority = Authority::new();
    let address = free_443();
    let ip = address.rsplit_once(':').expect("an address and a port").0;
    let identity = authority.issue(ip, &[&format!("IP:{ip}")], Validity::Now);
    let secured = registry.beside(&Door::Tls {
        address: &address,
        identity: &identity,
        clients: None,
    });
    let reference = secured.reference("lab/app", "1");
    for target in Target::arm() {
        let dir = tempfile::tempdir().unwrap();
        let store = format!("oci:{}", dir.path().join("store").display());
        let call = |authority: &Path| {
            let call = target.edgepull(["pull", &reference, "--store", &store]);
            let call = call.args(["--platform", "linux/arm64"]).json();
            call.env("SSL_CERT_FILE", authority).run()
        };
        // Not whoever has a certificate: only those of an authority that is trusted.
        let stranger = Authority::new();
        call(&stranger.certificate()).fails(23, "unavailable");
        let report = call(&authority.certificate()).exits(0).element();
        assert_eq!(report["status"], "pulled", "{}", target.triple);
        let manifest = layout.manifest("latest", &ARM64);
        assert_eq!(report["manifest_digest"], manifest, "{}", target.triple);
    }
}

/// All digests that the registry's index leads to, sorted.
fn blobs(registry: &Faulty) -> Vec<String> {
    let layout = registry.layout();
    let mut all = vec![layout.digest("latest")];
    for platform in HELLO {
        let manifest = layout.manifest("latest", &platform);
        all.extend(layout.parts(&manifest));
        all.push(manifest);
    }
    all.sort();
    all.dedup();
    all
}
