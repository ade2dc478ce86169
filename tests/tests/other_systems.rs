//! Hosts and images that no lab has: s390x, ppc64le, riscv64, loong64 and Windows, judged from here.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use edgepull_tests::edgepull::Edgepull;
use edgepull_tests::image;
use edgepull_tests::registry::Registry;
use edgepull_tests::tools::Lab;
use serde_json::Value;

/// The index in a real registry, and the digests of its entries in order.
fn published() -> (Registry, String, Vec<String>) {
    let registry = Registry::start();
    let layout = image::many_systems();
    layout.push(&registry, "latest", "lab/systems", "1");
    let index = layout.json(&layout.digest("latest"));
    let digests = index["manifests"].as_array().unwrap();
    let digests = digests
        .iter()
        .map(|entry| entry["digest"].as_str().unwrap().to_owned())
        .collect();
    let reference = registry.reference("lab/systems", "1");
    (registry, reference, digests)
}

fn recorded(name: &str) -> String {
    let hosts = Lab::get().workspace().join("platform/tests/data/hosts");
    hosts.join(name).to_str().unwrap().to_owned()
}

/// The one that an index offers a recorded host, by its place in the index.
#[test]
fn recorded_hosts_find_their_own_entry() {
    let (_registry, reference, digests) = published();
    for (host, platform, place) in [
        ("x86-v3", "linux/amd64", 0),
        ("graviton4", "linux/arm64", 1),
        ("z15-lpar", "linux/s390x", 2),
        ("power9-64k", "linux/ppc64le", 3),
        ("riscv64-u74", "linux/riscv64", 4),
        ("loong64-3a5000", "linux/loong64", 5),
    ] {
        let sysroot = recorded(host);
        let call = |verb: &str| {
            let args = ["--sysroot", sysroot.as_str(), verb, reference.as_str()];
            Edgepull::new(args)
        };
        let checked = call("check").json().run().exits(0).element();
        assert_eq!(checked["ok"], true, "{host}: {checked}");
        assert_eq!(checked["selected_platform"], platform, "{host}");
        assert_eq!(checked["digest"], digests[place], "{host}");
        let document = call("inspect").json().run().exits(0).document();
        assert_eq!(document["selected"], digests[place], "{host}");
        let explained = call("explain").run().exits(0);
        assert!(explained.text().contains(platform), "{}", explained.text());
        let document = Edgepull::new(["--sysroot", sysroot.as_str(), "detect"]);
        let document = document.json().run().exits(0).document();
        assert_eq!(document["runs"][0]["how"], "native", "{host}");
        assert!(!document["warnings"].to_string().contains("emulator"));
    }
}

/// A Windows host runs the newest build that is not newer than itself, of its own kind.
#[test]
fn windows_is_chosen_by_its_build() {
    let (_registry, reference, digests) = published();
    for (wanted, place) in [
        ("windows(10.0.17763)/amd64", Some(6)),
        ("windows(10.0.20348)/amd64", Some(7)),
        ("windows(10.0.26100)/amd64", Some(8)),
        // Windows 11 runs images of the server release before it.
        ("windows(10.0.22631)/amd64", Some(7)),
        ("windows(10.0.14393)/amd64", None),
        ("windows(10.0.17763)/arm64", None),
        ("linux/mips64le", None),
        ("linux/riscv64", Some(4)),
    ] {
        let args = ["check", &reference, "--platform", wanted];
        let ended = Edgepull::new(args).json().run();
        let document = if let Some(place) = place {
            let element = ended.exits(0).element();
            assert_eq!(element["digest"], digests[place], "{wanted}: {element}");
            element
        } else {
            let element = ended.exits(3).element();
            assert_eq!(element["error"]["kind"], "platform_missing", "{wanted}");
            let offered = element["error"]["offered"].to_string();
            assert!(offered.contains("10.0.17763.2300"), "{wanted}: {offered}");
            element
        };
        assert_eq!(document["platform"], wanted, "{document}");
        let args = ["inspect", &reference, "--platform", wanted];
        let inspected = Edgepull::new(args).json().run().exits(0).document();
        let selected = place.map_or(Value::Null, |place| digests[place].as_str().into());
        assert_eq!(inspected["selected"], selected, "{wanted}");
        let args = ["explain", &reference, "--platform", wanted];
        let text = Edgepull::new(args).run().exits(0).text();
        assert!(text.contains("17763"), "{wanted}: {text}");
    }
}
