//! `config.toml`: what it sets counts, a flag counts more, and a fault in it ends the call.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use edgepull_tests::containerd::{Containerd, Setup, Version};
use edgepull_tests::edgepull::Edgepull;
use edgepull_tests::faulty::{Action, Faulty, Kind, Rule};
use edgepull_tests::forward_proxy::ForwardProxy;
use edgepull_tests::image;
use edgepull_tests::registry::free_port;
use edgepull_tests::scene::{NAMESPACE, Scene};
use edgepull_tests::tools::{Lab, RunDir};

/// A file with that text.
fn config(text: &str) -> (RunDir, PathBuf) {
    let dir = Lab::get().run_dir("config");
    let path = dir.path().join("edgepull.toml");
    fs::write(&path, text).unwrap();
    (dir, path)
}

fn verb(verb: &str, config: &std::path::Path) -> Edgepull {
    Edgepull::new(["--config", config.to_str().unwrap(), verb]).json()
}

#[test]
fn a_fault_is_told_with_file_line_and_key_before_any_work() {
    let registry = Faulty::start(image::hello(), []);
    let reference = registry.reference("lab/app", "latest");
    let (_dir, path) = config("[limits]\nmax_concurrent_downloads = 0\n");
    let error = verb("inspect", &path)
        .arg(&reference)
        .run()
        .fails(2, "config");
    let text = error.to_string();
    for part in [
        path.to_str().unwrap(),
        "line 2",
        "limits.max_concurrent_downloads",
    ] {
        assert!(text.contains(part), "no {part}: {text}");
    }
    assert!(registry.requests().is_empty());

    let (_dir, path) = config("[limits]\nretries = 7\n");
    let error = verb("inspect", &path)
        .arg(&reference)
        .run()
        .fails(2, "config");
    assert!(error.to_string().contains("no such key"), "{error}");
    // What tells about the program itself works even so.
    let path = path.to_str().unwrap();
    Edgepull::new(["--config", path, "version"]).run().exits(0);
    let missing = Edgepull::new(["--config", "/no/such.toml", "inspect", &reference]);
    missing.json().run().fails(2, "config");
}

#[test]
fn the_engine_is_the_configured_one_unless_a_flag_names_another() {
    let scene = Scene::with(Setup::new(Version::V1_7), image::hello(), []);
    let text = format!(
        "[containerd]\naddress = \"{}\"\nnamespace = \"configured\"\nsnapshotter = \"native\"\n",
        scene.daemon.address().display()
    );
    let (_dir, path) = config(&text);
    let report = verb("pull", &path)
        .arg(&scene.reference)
        .run()
        .exits(0)
        .element();
    assert_eq!(report["namespace"], "configured");
    assert_eq!(report["snapshotter"], "native");
    let flag = verb("pull", &path).arg(&scene.reference);
    let report = flag.args(["-n", NAMESPACE]).run().exits(0).element();
    assert_eq!(report["namespace"], NAMESPACE);
    // By its variable, too.
    let run = Edgepull::new(["images"])
        .json()
        .env("EDGEPULL_CONFIG", &path);
    assert_eq!(run.run().exits(0).elements().len(), 1);
}

#[test]
fn mirrors_are_found_where_the_configuration_says() {
    let mirror = Faulty::start(image::hello(), []);
    let (dir, path) = config("");
    let folder = dir.path().join("certs.d/r.example");
    fs::create_dir_all(&folder).unwrap();
    let hosts = format!("server = \"http://{}\"\n", mirror.host());
    fs::write(folder.join("hosts.toml"), hosts).unwrap();
    let tree = dir.path().join("certs.d");
    fs::write(
        &path,
        format!("[containerd]\nhosts_dir = \"{}\"\n", tree.display()),
    )
    .unwrap();
    verb("inspect", &path)
        .arg("r.example/lab/app:latest")
        .run()
        .exits(0);
    assert!(!mirror.requests().is_empty());
}

/// Each registry by its own way; what the registry sends us to goes the same way, and the
/// environment does not count where a way is configured.
#[test]
fn each_registry_has_its_own_way() {
    let layout = Arc::new(image::hello());
    let storage = Faulty::start(Arc::clone(&layout), []);
    let away = Action::Redirect("http://storage.far.example".to_owned());
    let far = Faulty::start(Arc::clone(&layout), [Rule::on(Kind::Blob, away)]);
    let near = Faulty::start(layout, []);
    let names = [
        ("r.far.example:5000", far.host()),
        ("storage.far.example:80", storage.host()),
    ];
    let proxy = ForwardProxy::start(&names, Some(("site", "proxy-secret")));
    let text = format!(
        "[registry]\nproxy = \"http://{}\"\n[registry.\"{}\"]\nproxy = \"direct\"\n[registry.\"R.far.example:5000\"]\nproxy = \"http://site:proxy-secret@{}\"\n",
        format_args!("127.0.0.1:{}", free_port()),
        near.host(),
        proxy.host(),
    );
    let (dir, path) = config(&text);
    let pull = |reference: &str, name: &str| {
        let store = format!("oci:{}", dir.path().join(name).display());
        let call = verb("pull", &path).args([reference, "--store", &store, "--plain-http", "-vv"]);
        call.env("HTTP_PROXY", "http://127.0.0.1:9").run()
    };
    let run = pull("r.far.example:5000/lab/app:latest", "far").exits(0);
    assert!(!run.output.transcript().contains("proxy-secret"));
    assert!(!far.requests().is_empty() && !storage.requests().is_empty());
    let asked = proxy.asked().len();
    assert!(asked >= 4, "{:?}", proxy.asked());
    pull(&near.reference("lab/app", "latest"), "near").exits(0);
    assert!(!near.requests().is_empty());
    assert_eq!(proxy.asked().len(), asked, "the other one goes directly");
    let error = pull("third.example/lab/app:1", "third").fails(23, "unavailable");
    assert!(error.to_string().contains("proxy"), "{error}");
}

/// As many blobs at once as is said, in either store: fewer than usual, and more.
#[test]
fn as_many_downloads_at_once_as_is_said() {
    let slow = || Rule::on(Kind::Blob, Action::Slow(4096, Duration::from_millis(20)));
    let daemon = Containerd::start(Version::V1_7);
    // Other bytes each time: containerd gives a namespace what another one has.
    for (limit, size) in [(1, 64 << 10), (5, 65 << 10)] {
        for layout in [true, false] {
            let registry = Faulty::start(image::big(6, size), [slow()]);
            let (dir, path) = config(&format!("[limits]\nmax_concurrent_downloads = {limit}\n"));
            let store = format!("oci:{}", dir.path().join("out").display());
            let reference = registry.reference("lab/app", "latest");
            let call = verb("pull", &path).arg(&reference);
            let call = if layout {
                call.args(["--store", &store])
            } else {
                call.on(&daemon, &format!("limit{limit}"))
            };
            call.run().exits(0);
            let most = registry.most_at_once();
            assert_eq!(most, limit, "into a layout: {layout}");
        }
    }
}
