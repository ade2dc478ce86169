//! hosts.toml: mirrors that help, mirrors that fail, and what must not reach whom.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use edgepull_tests::containerd::{Containerd, Setup, Version};
use edgepull_tests::edgepull::{Edgepull, Run};
use edgepull_tests::faulty::{Action, Auth, Faulty, Kind, Rule};
use edgepull_tests::forward_proxy::ForwardProxy;
use edgepull_tests::image::{self, Layout, host};
use edgepull_tests::pki::{Authority, Identity, Validity};
use edgepull_tests::registry::{Registry, free_port};
use edgepull_tests::scene::NAMESPACE;
use edgepull_tests::tls_front::TlsFront;
use edgepull_tests::tools::{Lab, RunDir};

const VERSION: Version = Version::V1_7;

/// A tree of hosts.toml files.
struct Tree(RunDir);

impl Tree {
    fn new() -> Self {
        Self(Lab::get().run_dir("certs"))
    }

    /// The file for a registry; its folder is named as containerd's own examples name it.
    fn say(&self, registry: &str, text: &str) -> PathBuf {
        let name = registry
            .rsplit_once(':')
            .map_or(registry.to_owned(), |(host, port)| {
                format!("{host}_{port}_")
            });
        self.write(&name, "hosts.toml", text)
    }

    fn write(&self, folder: &str, file: &str, text: &str) -> PathBuf {
        let folder = self.0.path().join(folder);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(file), text).unwrap();
        folder.join(file)
    }

    /// `edgepull VERB REF --hosts-dir TREE`, as JSON.
    fn verb(&self, verb: &str, reference: &str) -> Edgepull {
        Edgepull::new([verb, reference, "--hosts-dir"])
            .arg(self.0.path())
            .json()
    }

    fn pull(&self, reference: &str, daemon: &Containerd) -> Run {
        self.verb("pull", reference).on(daemon, NAMESPACE).run()
    }
}

/// A registry, the mirrors before it, and a tree that says so.
struct Stage {
    tree: Tree,
    upstream: Faulty,
    mirrors: Vec<Faulty>,
    reference: String,
}

fn stage(mirrors: impl IntoIterator<Item = Vec<Rule>>) -> Stage {
    let layout = Arc::new(image::hello());
    let upstream = Faulty::start(Arc::clone(&layout), []);
    let mirrors: Vec<Faulty> = mirrors
        .into_iter()
        .map(|rules| Faulty::start(Arc::clone(&layout), rules))
        .collect();
    let tree = Tree::new();
    let text: Vec<String> = mirrors
        .iter()
        .map(|mirror| format!("[host.\"http://{}\"]\n", mirror.host()))
        .collect();
    tree.say(upstream.host(), &text.concat());
    let reference = upstream.reference("lab/app", "latest");
    Stage {
        tree,
        upstream,
        mirrors,
        reference,
    }
}

impl Stage {
    /// Pulls onto a fresh daemon, where the image must then run.
    fn pulled(&self) -> serde_json::Value {
        let daemon = Setup::new(VERSION).start();
        let report = self.tree.pull(&self.reference, &daemon).exits(0).element();
        let ran = daemon.run(NAMESPACE, &self.reference, &[]).ok();
        assert!(ran.text().starts_with("hello"));
        report
    }

    fn transcripts(&self) -> String {
        let mut all = vec!["registry:".to_owned(), self.upstream.transcript()];
        for mirror in &self.mirrors {
            all.extend(["mirror:".to_owned(), mirror.transcript()]);
        }
        all.join("\n")
    }
}

fn layers(layout: &Layout) -> usize {
    layout.parts(&layout.manifest("latest", &host())).len()
}

#[test]
fn a_mirror_serves_all_and_is_told_for_whom() {
    let stage = stage([vec![]]);
    stage.pulled();
    assert!(
        stage.upstream.requests().is_empty(),
        "{}",
        stage.transcripts()
    );
    let ns = format!("ns={}", stage.upstream.host().replace(':', "%3A"));
    for request in stage.mirrors[0].requests() {
        assert_eq!(request.query, ns);
    }
}

#[test]
fn a_mirror_comes_first_and_the_registry_helps_out() {
    let stage = stage([vec![Rule::on(Kind::Blob, Action::status(404))]]);
    stage.pulled();
    let upstream = &stage.upstream;
    assert_eq!(
        upstream.count("HEAD", &Kind::Tag) + upstream.count("GET", &Kind::Tag),
        0
    );
    assert_eq!(
        upstream.count("GET", &Kind::Blob),
        layers(upstream.layout()),
        "{}",
        stage.transcripts()
    );
    let leaked = |request: &edgepull_tests::faulty::Request| request.query.contains("ns=");
    assert!(!upstream.requests().iter().any(leaked));
}

#[test]
fn a_dead_mirror_is_asked_once_in_a_pull() {
    for action in [
        Action::status(503),
        Action::Close,
        Action::Raw(b"what?\n".to_vec()),
    ] {
        let stage = stage([vec![Rule::always(action.clone())]]);
        stage.pulled();
        let asked = stage.mirrors[0].requests().len();
        // A connection that breaks may have been an old one, and is believed the third time.
        let most = if matches!(action, Action::Answer(..)) {
            1
        } else {
            3
        };
        assert!(asked <= most, "{action:?}: {}", stage.transcripts());
    }
}

#[test]
fn a_mirror_that_nobody_runs_is_named_in_a_warning() {
    let stage = stage([]);
    let dead = format!("127.0.0.1:{}", free_port());
    let text = format!("[host.\"http://{dead}\"]\n");
    stage.tree.say(stage.upstream.host(), &text);
    let report = stage.pulled();
    let wanted = layers(stage.upstream.layout());
    assert_eq!(stage.upstream.count("GET", &Kind::Blob), wanted);
    let warnings = report["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 1, "{report}");
    assert!(warnings[0].as_str().unwrap().contains(&dead), "{report}");
    // One request more than the registry saw: the mirror was asked once.
    let seen = stage.upstream.requests().len() as u64;
    assert_eq!(report["requests"], seen + 1, "{report}");
}

#[test]
fn a_mirror_that_hangs_loses_to_the_registry() {
    let stage = stage([vec![Rule::always(Action::Delay(Duration::from_secs(300)))]]);
    let report = stage.pulled();
    assert_eq!(
        stage.mirrors[0].requests().len(),
        1,
        "{}",
        stage.transcripts()
    );
    let waited = report["duration_ms"].as_u64().unwrap();
    assert!(waited < 60_000, "{waited} ms");
}

#[test]
fn a_mirror_that_hangs_in_a_document_is_found_out_once() {
    let hangs = Rule::always(Action::Stall(0)).method("GET");
    let stage = stage([vec![hangs]]);
    let report = stage.pulled();
    assert_eq!(
        stage.mirrors[0].requests().len(),
        1,
        "{}",
        stage.transcripts()
    );
    let waited = report["duration_ms"].as_u64().unwrap();
    assert!(waited < 60_000, "{waited} ms");
}

#[test]
fn a_mirror_that_hangs_in_a_blob_loses_to_the_registry() {
    let stage = stage([vec![Rule::on(Kind::Blob, Action::Stall(2000))]]);
    let report = stage.pulled();
    let waited = report["duration_ms"].as_u64().unwrap();
    assert!(waited < 90_000, "{waited} ms");
}

#[test]
fn wrong_bytes_of_a_mirror_are_fetched_from_the_registry() {
    let lies = || vec![Rule::on(Kind::Blob, Action::FlipBit(100))];
    let stage = stage([lies(), lies()]);
    let report = stage.pulled();
    let warnings = report["warnings"].to_string();
    for mirror in &stage.mirrors {
        assert!(warnings.contains(mirror.host()), "{report}");
    }
    assert_eq!(
        stage.upstream.count("GET", &Kind::Blob),
        layers(stage.upstream.layout()),
        "{}",
        stage.transcripts()
    );
}

#[test]
fn wrong_documents_and_sizes_of_a_mirror_are_fetched_from_the_registry() {
    for (kind, action) in [
        (Kind::Manifest, Action::FlipBit(40)),
        (Kind::Blob, Action::Short(5)),
        (Kind::Blob, Action::OneMore),
        (Kind::Blob, Action::Truncate(100)),
    ] {
        let stage = stage([vec![Rule::on(kind, action)]]);
        stage.pulled();
    }
}

#[test]
fn wrong_bytes_of_a_mirror_do_not_reach_a_layout_or_an_archive() {
    for kind in ["oci", "oci-archive"] {
        let stage = stage([vec![Rule::on(Kind::Blob, Action::FlipBit(100))]]);
        let dir = Lab::get().run_dir("oci");
        let store = format!("{kind}:{}", dir.path().join("out").display());
        let call = stage.tree.verb("pull", &stage.reference);
        call.args(["--store", &store]).run().exits(0);
        assert!(stage.upstream.count("GET", &Kind::Blob) > 0);
        // What is there is read and verified again.
        let call = Edgepull::new(["export", &store]).json().arg("--to");
        call.arg(dir.path().join("again")).run().exits(0);
    }
}

#[test]
fn a_path_prefix_is_where_the_repositories_are() {
    let layout = Arc::new(image::hello());
    let upstream = Faulty::start(Arc::clone(&layout), []);
    let mirror = Faulty::start(layout, []);
    let tree = Tree::new();
    let reference = upstream.reference("lab/app", "latest");
    for (path, override_path, expected) in [
        ("/v2/proxy/", true, "/v2/proxy/lab/app/manifests/latest"),
        ("/proxy", false, "/proxy/v2/lab/app/manifests/latest"),
        ("", false, "/v2/lab/app/manifests/latest"),
    ] {
        let text = format!(
            "[host.\"http://{}{path}\"]\noverride_path = {override_path}\n",
            mirror.host()
        );
        tree.say(upstream.host(), &text);
        mirror.forget();
        tree.verb("inspect", &reference).run().exits(0);
        assert_eq!(mirror.requests()[0].path, expected);
    }
    assert!(upstream.requests().is_empty());
}

#[test]
fn credentials_and_headers_reach_only_whom_they_are_for() {
    let layout = Arc::new(image::hello());
    let login = || Auth::Basic("edge".to_owned(), "up-secret".to_owned());
    let upstream = Faulty::start_with(Arc::clone(&layout), login(), []);
    let mirror = Faulty::start_with(layout, login(), []);
    let tree = Tree::new();
    let text = format!(
        "[host.\"http://{}\".header]\nX-Site = [\"berlin\"]\n",
        mirror.host()
    );
    tree.say(upstream.host(), &text);
    let reference = upstream.reference("lab/app", "latest");
    let call = tree.verb("inspect", &reference);
    let run = call
        .args(["--creds", "edge:up-secret", "-vv"])
        .run()
        .exits(0);
    assert!(
        !run.output.transcript().contains("berlin"),
        "a header in the log"
    );
    assert!(!mirror.requests().is_empty());
    for request in mirror.requests() {
        assert!(!request.authorized(), "{}", mirror.transcript());
        assert_eq!(request.header("x-site"), Some("berlin"));
    }
    for request in upstream.requests() {
        assert_eq!(request.header("x-site"), None);
    }
    // Under its own name it has them.
    mirror.forget();
    let authfile = tree.write(
        "auth",
        "auth.json",
        &format!(
            r#"{{"auths":{{"{}":{{"username":"edge","password":"up-secret"}}}}}}"#,
            mirror.host()
        ),
    );
    let call = tree.verb("inspect", &reference).arg("--authfile");
    call.arg(authfile).run().exits(0);
    assert!(
        mirror
            .requests()
            .iter()
            .any(|r| r.authorized() && r.status == 200)
    );
}

#[test]
fn a_broken_file_is_a_configuration_error() {
    let stage = stage([vec![]]);
    let path = stage.tree.say(
        stage.upstream.host(),
        "# mirrors\n[host.\"http://x\"]\ncapabilities = \"pull\"\n",
    );
    for (verb, args) in [
        ("inspect", &[][..]),
        ("check", &["--platform", "linux/amd64"]),
    ] {
        let call = stage.tree.verb(verb, &stage.reference).args(args);
        let error = call.run().fails(2, "config").to_string();
        for part in [path.to_str().unwrap(), "line 3", "capabilities"] {
            assert!(error.contains(part), "{error}");
        }
    }
    assert!(
        stage.upstream.requests().is_empty(),
        "never past the mirrors"
    );
    let run = Edgepull::new([
        "inspect",
        &stage.reference,
        "--hosts-dir",
        "/no/such/folder",
    ]);
    run.json().run().fails(2, "config");
}

#[test]
fn the_default_folder_is_for_all_that_have_none() {
    let stage = stage([vec![]]);
    let mirror = stage.mirrors[0].host();
    let tree = Tree::new();
    tree.write(
        "_default",
        "hosts.toml",
        &format!("[host.\"http://{mirror}\"]\n"),
    );
    // Nobody is there; the name must not even be looked up.
    let reference = "no-such-registry.invalid/lab/app:latest";
    tree.verb("inspect", reference).run().exits(0);
    assert_eq!(
        stage.mirrors[0].requests()[0].query,
        "ns=no-such-registry.invalid"
    );
    tree.write("no-such-registry.invalid", "hosts.toml", "");
    tree.verb("inspect", reference)
        .run()
        .fails(23, "unavailable");
}

#[test]
fn every_host_is_named_when_none_has_it() {
    let none = || vec![Rule::always(Action::status(404))];
    let stage = stage([vec![Rule::always(Action::status(503))], none()]);
    stage.upstream.script(none());
    let run = stage.tree.verb("inspect", &stage.reference).run();
    let error = run.fails(21, "not_found");
    let causes: Vec<String> = serde_json::from_value(error["causes"].clone()).unwrap();
    let hosts = [
        stage.mirrors[0].host(),
        stage.mirrors[1].host(),
        stage.upstream.host(),
    ];
    // The first says for what they were asked.
    let lines = &causes[1..];
    assert_eq!(lines.len(), 3, "{causes:?}");
    for (line, host) in lines.iter().zip(hosts) {
        assert!(line.contains(host), "in order: {causes:?}");
    }
    let run = Edgepull::new(["explain", &stage.reference, "-v", "--hosts-dir"])
        .arg(stage.tree.0.path())
        .run();
    for host in hosts {
        assert!(run.output.stderr.contains(&format!("http://{host}/v2")));
    }
}

#[test]
fn a_real_registry_behind_a_mirror_that_lost_a_layer() {
    let registry = Registry::start();
    let layout = image::hello();
    layout.push(&registry, "latest", "lab/app", "1");
    let mirror = Faulty::start(layout, [Rule::on(Kind::Blob, Action::status(404)).after(1)]);
    let tree = Tree::new();
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
        registry.host(),
        mirror.host()
    );
    tree.say(registry.host(), &text);
    let daemon = Setup::new(VERSION).start();
    let reference = registry.reference("lab/app", "1");
    tree.pull(&reference, &daemon).exits(0);
    assert_eq!(mirror.count("GET", &Kind::Tag), 0, "it may not resolve");
    assert_eq!(mirror.count("HEAD", &Kind::Tag), 0, "it may not resolve");
    daemon.run(NAMESPACE, &reference, &[]).ok();
}

/// A registry with TLS on a loopback port of its own.
struct Secured {
    registry: Faulty,
    front: TlsFront,
}

fn secured(identity: &Identity, clients: Option<&Authority>) -> Secured {
    let registry = Faulty::start(image::hello(), []);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let clients = clients.map(Authority::certificate);
    let front = TlsFront::start(listener, registry.host(), identity, clients.as_deref());
    Secured { registry, front }
}

impl Secured {
    fn reference(&self) -> String {
        format!("{}/lab/app:latest", self.front.host())
    }
}

#[test]
fn a_private_authority_and_a_client_certificate() {
    let authority = Authority::new();
    let server = authority.issue("server", &["IP:127.0.0.1"], Validity::Now);
    let client = authority.issue("client", &["DNS:client"], Validity::Now);
    let registry = secured(&server, Some(&authority));
    let tree = Tree::new();
    let reference = registry.reference();
    let read = |path: &PathBuf| fs::read_to_string(path).unwrap();
    let inspect = || tree.verb("inspect", &reference).run();
    let ca = format!("ca = \"{}\"\n", authority.certificate().display());
    tree.say(registry.front.host(), &ca);
    let error = inspect().fails(23, "unavailable").to_string();
    assert!(error.contains("client certificate"), "{error}");
    // Names are relative to the file.
    tree.write("keys", "me.pem", &(read(&client.cert) + &read(&client.key)));
    tree.say(
        registry.front.host(),
        &format!("{ca}client = \"../keys/me.pem\"\n"),
    );
    inspect().exits(0);
    let other = Authority::new();
    let stranger = other.issue("stranger", &["DNS:x"], Validity::Now);
    let pair = |of: &Identity| format!("[\"{}\", \"{}\"]", of.cert.display(), of.key.display());
    let own = format!("{ca}client = [{}]\n", pair(&client));
    tree.say(registry.front.host(), &own);
    inspect().exits(0);
    tree.say(
        registry.front.host(),
        &format!("{ca}client = [{}]\n", pair(&stranger)),
    );
    let error = inspect().fails(23, "unavailable").to_string();
    assert!(error.contains("client certificate"), "{error}");
    // Docker's way.
    let (name, file) = (registry.front.host().replace(':', "_") + "_", "hosts.toml");
    fs::remove_file(tree.0.path().join(&name).join(file)).unwrap();
    tree.write(&name, "lab.crt", &read(&authority.certificate()));
    tree.write(&name, "me.cert", &read(&client.cert));
    tree.write(&name, "me.key", &read(&client.key));
    inspect().exits(0);
}

#[test]
fn an_unchecked_certificate_is_one_servers_own_affair() {
    let authority = Authority::new();
    let past = authority.issue("past", &["DNS:elsewhere"], Validity::Past);
    let good = authority.issue("good", &["IP:127.0.0.1"], Validity::Now);
    let (registry, storage) = (secured(&past, None), secured(&good, None));
    let tree = Tree::new();
    tree.say(registry.front.host(), "skip_verify = true\n");
    tree.verb("inspect", &registry.reference()).run().exits(0);
    // Where it sends us, certificates are looked at.
    let to = format!("https://{}", storage.front.host());
    registry
        .registry
        .script([Rule::on(Kind::Manifest, Action::Redirect(to))]);
    let dir = Lab::get().run_dir("oci");
    let store = format!("oci:{}", dir.path().join("out").display());
    let pull = || {
        let call = tree.verb("pull", &registry.reference());
        call.args(["--store", &store]).run()
    };
    let error = pull().fails(23, "unavailable").to_string();
    assert!(error.contains("redirected"), "{error}");
    assert!(storage.registry.requests().is_empty());
    // An authority that is trusted for the registry is trusted for its storage.
    let ca = format!(
        "skip_verify = true\nca = \"{}\"\n",
        authority.certificate().display()
    );
    tree.say(registry.front.host(), &ca);
    pull().exits(0);
    assert!(!storage.registry.requests().is_empty());
}

#[test]
fn a_self_signed_certificate_that_calls_itself_a_ca() {
    let authority = Authority::new();
    // The lab's authority has no name; a name is checked even so.
    let registry = secured(&authority.identity(), None);
    let tree = Tree::new();
    let ca = format!("ca = \"{}\"\n", authority.certificate().display());
    tree.say(registry.front.host(), &ca);
    let run = tree.verb("inspect", &registry.reference()).run();
    let error = run.fails(23, "unavailable").to_string();
    assert!(error.contains("another name"), "{error}");
}

#[test]
fn mirrors_and_what_they_redirect_to_are_behind_the_proxy_too() {
    let layout = Arc::new(image::hello());
    let storage = Faulty::start(Arc::clone(&layout), []);
    let to = Rule::on(
        Kind::Manifest,
        Action::Redirect("http://storage.far.example".to_owned()),
    );
    let mirror = Faulty::start(layout, [to]);
    let names = [
        ("mirror.far.example:5000", mirror.host()),
        ("storage.far.example:80", storage.host()),
    ];
    let proxy = ForwardProxy::start(&names, Some(("site", "proxy-secret")));
    let tree = Tree::new();
    tree.say("r.example", "server = \"http://mirror.far.example:5000\"\n");
    let dir = Lab::get().run_dir("oci");
    let store = format!("oci:{}", dir.path().join("out").display());
    let pull = |proxy: &str, except: &str| {
        let call = tree.verb("pull", "r.example/lab/app:latest");
        call.args(["--store", &store, "-vv"])
            .env("HTTP_PROXY", proxy)
            .env("no_proxy", except)
            .run()
    };
    let wrong = format!("http://site:guessed@{}", proxy.host());
    let run = pull(&wrong, "");
    assert!(!run.output.transcript().contains("guessed"));
    let error = run.fails(23, "unavailable").to_string();
    assert!(error.contains(proxy.host()), "{error}");
    let good = format!("http://site:proxy-secret@{}", proxy.host());
    pull(&good, "far.example:1234,.example.org").exits(0);
    assert!(!storage.requests().is_empty() && !mirror.requests().is_empty());
    let asked = proxy.asked().len();
    pull(&good, ".far.example").fails(23, "unavailable");
    assert_eq!(
        proxy.asked().len(),
        asked,
        "exempt, and not to be found without"
    );
}
