use std::{fs, time::Duration};

use super::*;
use crate::registry::endpoint::Route;
use crate::table::Fault;

const CA: &str = include_str!("../testdata/good.pem");
const KEY: &str = include_str!("../testdata/key.pem");

fn fault(text: &str) -> Fault {
    match parse(text) {
        Ok(_) => panic!("no fault in: {text}"),
        Err(fault) => fault,
    }
}

fn hosts(root: &Path) -> Hosts {
    Hosts {
        roots: vec![root.to_owned()],
        plain_http: false,
        ways: Ways::default(),
    }
}

fn write(root: &Path, name: &str, file: &str, text: &str) {
    let folder = root.join(name);
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join(file), text).expect("written");
}

/// The servers for `domain` where its file says `text`.
fn found(domain: &str, text: &str) -> Vec<Endpoint> {
    let dir = tempfile::tempdir().expect("a folder");
    write(dir.path(), domain, FILE, text);
    hosts(dir.path())
        .endpoints(domain, &Notices::default())
        .expect("understood")
}

fn shown(endpoints: &[Endpoint]) -> Vec<String> {
    endpoints.iter().map(Endpoint::shown).collect()
}

fn route(endpoint: &Endpoint) -> &Route {
    endpoint.route()
}

#[test]
fn without_a_tree_schemes_and_hosts_follow_containerd() {
    for (domain, plain_http, origin) in [
        ("docker.io", false, "https://registry-1.docker.io"),
        ("ghcr.io", false, "https://ghcr.io"),
        ("ghcr.io", true, "http://ghcr.io"),
        ("localhost:5000", false, "http://localhost:5000"),
        ("127.0.0.1:80", false, "http://127.0.0.1"),
        ("localhost:443", false, "https://localhost"),
        ("localhost", false, "https://localhost"),
        ("[::1]:5000", false, "http://[::1]:5000"),
        ("10.0.0.1:5000", false, "https://10.0.0.1:5000"),
    ] {
        let hosts = Hosts {
            roots: vec!["/no/such/folder".into()],
            plain_http,
            ways: Ways::default(),
        };
        let found = hosts
            .endpoints(domain, &Notices::default())
            .expect("a host");
        assert_eq!(
            found.iter().map(Endpoint::origin).collect::<Vec<_>>(),
            [origin],
            "{domain}"
        );
        assert!(!found[0].is_mirror(), "{domain}");
    }
}

#[test]
fn the_order_of_the_file_is_the_order_of_asking() {
    let endpoints = found(
        "docker.io",
        r#"
        server = "https://registry-1.docker.io"
        [host."https://z.example"]
        [host."https://a.example".header]
        x = "y"
        [host."http://m.example"]
        capabilities = ["push"]
        [host."b.example:5000"]
        [host."https://a.example"]
        capabilities = ["Pull"]
        "#,
    );
    assert_eq!(
        shown(&endpoints),
        [
            "https://z.example/v2",
            "https://a.example/v2",
            "https://b.example:5000/v2",
            "https://registry-1.docker.io/v2",
        ]
    );
    let mirrors: Vec<bool> = endpoints.iter().map(Endpoint::is_mirror).collect();
    assert_eq!(mirrors, [true, true, true, false]);
    let able = endpoints[1].capabilities();
    assert!(able.pull && !able.resolve);
    assert_eq!(endpoints[2].capabilities(), Capabilities::ALL);
    assert_eq!(route(&endpoints[1]).headers["x"], "y");
    assert!(route(&endpoints[0]).headers.is_empty());
}

#[test]
fn the_registry_itself_comes_last_unless_it_is_listed_or_replaced() {
    for (domain, text, expected) in [
        ("r.example:5000", "", vec!["https://r.example:5000/v2"]),
        ("r.example", "# nothing", vec!["https://r.example/v2"]),
        ("r.example", "server = \"\"", vec!["https://r.example/v2"]),
        (
            "localhost:5000",
            "[host.\"https://m\"]",
            vec!["https://m/v2", "http://localhost:5000/v2"],
        ),
        (
            "r.example",
            "server = \"https://r.example\"\n[host.\"https://r.example:443/v2/\"]",
            vec!["https://r.example/v2"],
        ),
        (
            "r.example",
            "server = \"m.example\"",
            vec!["https://m.example/v2"],
        ),
        (
            "r.example",
            "[host.\"https://r.example\"]\ncapabilities = [\"pull\"]",
            vec!["https://r.example/v2", "https://r.example/v2"],
        ),
    ] {
        assert_eq!(shown(&found(domain, text)), expected, "{domain}: {text}");
    }
    // Unnamed, it has all capabilities, whatever the file says; named, those it says.
    let own = found("r.example", "capabilities = [\"pull\"]");
    assert_eq!(own[0].capabilities(), Capabilities::ALL);
    let named = "server = \"https://r.example\"\ncapabilities = [\"pull\"]";
    assert!(!found("r.example", named)[0].capabilities().resolve);
    assert!(found("r.example", named).len() == 1);
}

#[test]
fn paths_are_prefixes() {
    for (url, override_path, expected) in [
        ("https://h", false, "https://h/v2"),
        ("https://h/", false, "https://h/v2"),
        ("https://h/v2", false, "https://h/v2"),
        ("https://h//v2/", false, "https://h/v2"),
        ("https://h/a/b/", false, "https://h/a/b/v2"),
        ("https://h/v2/proxy", false, "https://h/v2/proxy/v2"),
        ("https://h/v2/proxy/", true, "https://h/v2/proxy"),
        ("https://h", true, "https://h"),
        ("http://[fd00::1]:5000", false, "http://[fd00::1]:5000/v2"),
        ("h:5000/x?y#z", false, "https://h:5000/x/v2"),
    ] {
        let text = format!("[host.\"{url}\"]\noverride_path = {override_path}");
        assert_eq!(found("r.example", &text)[0].shown(), expected, "{url}");
    }
    let harbor = "[host.\"https://h/v2/proxy\"]\noverride_path = true";
    let endpoint = found("docker.io", harbor).remove(0);
    assert_eq!(
        endpoint
            .url("library/nginx", "manifests", "1", true)
            .as_str(),
        "https://h/v2/proxy/library/nginx/manifests/1?ns=docker.io"
    );
}

#[test]
fn every_key_is_read_in_every_form() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().join("r.example");
    fs::create_dir_all(folder.join("sub")).expect("a folder");
    for (name, text) in [("ca.pem", CA), ("sub/c.pem", CA), ("k.pem", KEY)] {
        fs::write(folder.join(name), text).expect("written");
    }
    fs::write(folder.join("both.pem"), format!("{KEY}{CA}")).expect("written");
    let absolute = folder.join("ca.pem");
    let text = format!(
        r#"
        ca = "ca.pem"
        skip_verify = true
        dial_timeout = "1m1.5s"
        [header]
        X-List = ["one", "two"]
        Authorization = "Bearer hunter2"
        [host."https://a"]
        ca = ["{}", "sub/c.pem"]
        client = "both.pem"
        [host."https://b"]
        client = ["both.pem", "both.pem"]
        [host."https://c"]
        client = [["sub/c.pem", "k.pem"], ["both.pem", "k.pem"]]
        "#,
        absolute.display()
    );
    fs::write(folder.join(FILE), text).expect("written");
    let endpoints = hosts(dir.path())
        .endpoints("r.example", &Notices::default())
        .expect("understood");
    let tls = |index: usize| route(&endpoints[index]).tls.as_ref().expect("configured");
    let own = route(&endpoints[3]);
    assert_eq!(own.dial_timeout, Some(Duration::from_millis(61_500)));
    let list: Vec<_> = own.headers.get_all("x-list").iter().collect();
    assert_eq!(list, ["one", "two"]);
    assert!(tls(3).skip_verify);
    assert_eq!((tls(0).ca.len(), tls(0).clients.len()), (2, 1));
    assert_eq!((tls(1).ca.len(), tls(1).clients.len()), (0, 2));
    assert_eq!(tls(2).clients.len(), 2);
    let debug = format!("{endpoints:?}");
    assert!(!debug.contains("hunter2"), "{debug}");
    assert!(!debug.contains("PRIVATE"), "{debug}");
}

#[test]
fn folders_are_found_as_containerd_finds_them() {
    let dir = tempfile::tempdir().expect("a folder");
    let other = tempfile::tempdir().expect("a folder");
    let say = |root: &Path, name: &str, server: &str| {
        write(root, name, FILE, &format!("server = \"https://{server}\""));
    };
    say(dir.path(), "r.example_5000_", "underscored");
    say(dir.path(), "r.example:5000", "colon");
    say(dir.path(), "q.example:5000", "colon");
    say(dir.path(), "p.example", "name");
    say(dir.path(), "[::1]_5000_", "six");
    say(other.path(), "_default", "default");
    say(other.path(), "p.example", "second-root");
    let hosts = Hosts {
        roots: vec![dir.path().into(), other.path().into()],
        plain_http: false,
        ways: Ways::default(),
    };
    let server = |domain: &str| {
        let found = hosts.endpoints(domain, &Notices::default()).expect("read");
        found[0].authority()
    };
    assert_eq!(server("r.example:5000"), "underscored");
    assert_eq!(server("q.example:5000"), "colon");
    assert_eq!(server("p.example"), "name");
    assert_eq!(server("[::1]:5000"), "six");
    assert_eq!(server("o.example"), "default");
    // A folder counts although nothing is in it, and hides what comes after it.
    fs::create_dir(dir.path().join("_default")).expect("a folder");
    assert_eq!(server("o.example"), "o.example");
    assert_eq!(server("p.example"), "name");
}

#[test]
fn docker_folders_of_certificates_count() {
    let dir = tempfile::tempdir().expect("a folder");
    let name = "127.0.0.1:5000";
    for (file, text) in [("ca.crt", CA), ("me.cert", CA), ("me.key", KEY), ("x", "")] {
        write(dir.path(), name, file, text);
    }
    write(dir.path(), name, FILE, "");
    let hosts = hosts(dir.path());
    let endpoints = hosts.endpoints(name, &Notices::default()).expect("read");
    let tls = route(&endpoints[0]).tls.as_ref().expect("configured");
    assert_eq!((tls.ca.len(), tls.clients.len()), (1, 1));
    // Somebody configured TLS: loopback is no reason to do without.
    assert_eq!(endpoints[0].origin(), "https://127.0.0.1:5000");
    fs::remove_file(dir.path().join(name).join("me.key")).expect("removed");
    let error = hosts
        .endpoints(name, &Notices::default())
        .expect_err("a certificate without a key");
    assert_eq!(error.kind(), Kind::Config);
}

#[test]
fn faults_are_told_with_line_and_key() {
    for (text, line, key, what) in [
        ("\n\nserver = ", 3, None, ""),
        ("a = 1\na = 2", 2, None, "duplicate"),
        ("server = 1", 1, Some("server"), "a string"),
        ("server = \"ftp://x\"", 1, Some("server"), "an address"),
        ("host = 1", 1, Some("host"), "a table"),
        (
            "[host.\"https://\"]",
            1,
            Some("host.\"https://\""),
            "an address",
        ),
        (
            "[host.\"https://a\"]\n\nskip_verify = \"yes\"",
            3,
            Some("host.\"https://a\".skip_verify"),
            "true or false",
        ),
        ("override_path = 1", 1, Some("override_path"), "true"),
        ("ca = 1", 1, Some("ca"), "a string or a list"),
        ("ca = [\n\"a\",\n1]", 3, Some("ca"), "a string"),
        ("ca = \"\"", 1, Some("ca"), "empty"),
        ("client = true", 1, Some("client"), "pairs"),
        ("client = [[]]", 1, Some("client"), "a pair"),
        (
            "client = [[\"a\",\"b\",\"c\"]]",
            1,
            Some("client"),
            "a pair",
        ),
        ("client = [[\"a\"]]", 1, Some("client"), "a pair"),
        ("client = [1]", 1, Some("client"), "pairs"),
        ("capabilities = \"pull\"", 1, Some("capabilities"), "a list"),
        (
            "capabilities = [\"pull\",\n\"fly\"]",
            2,
            Some("capabilities"),
            "fly",
        ),
        ("header = 1", 1, Some("header"), "a table"),
        ("header = {a = 1}", 1, Some("header.a"), "a string"),
        ("header = {\"a b\" = \"\"}", 1, Some("header.a b"), "header"),
        ("header = {a = \"\\n\"}", 1, Some("header.a"), "characters"),
        ("dial_timeout = 3", 1, Some("dial_timeout"), "a string"),
        ("dial_timeout = \"3\"", 1, Some("dial_timeout"), "a time"),
        ("dial_timeout = \"-3s\"", 1, Some("dial_timeout"), "a time"),
        ("dial_timeout = \"\"", 1, Some("dial_timeout"), "a time"),
    ] {
        let found = fault(text);
        assert_eq!(found.line, line, "{text}: {found:?}");
        assert_eq!(found.key.as_deref(), key, "{text}");
        assert!(found.what.contains(what), "{text}: {found:?}");
    }
    // A secret is not repeated.
    let found = fault("[host.\"ftp://me:hunter2@x\"]");
    assert!(!format!("{found:?}").contains("hunter2"), "{found:?}");
}

#[test]
fn a_fault_is_a_configuration_error_that_names_the_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let error_of = |text: &str| {
        write(dir.path(), "r.example", FILE, text);
        hosts(dir.path())
            .endpoints("r.example", &Notices::default())
            .expect_err("faulty")
    };
    let error = error_of("x = 1\nserver = 1");
    assert_eq!(error.kind(), Kind::Config);
    let path = dir.path().join("r.example").join(FILE);
    assert!(error.message().contains(&path.display().to_string()));
    assert!(error.causes()[0].starts_with("line 2, key `server`"));
    for (text, cause) in [
        ("ca = \"none.pem\"", "names it"),
        ("ca = \"hosts.toml\"", "no certificate"),
        ("client = \"hosts.toml\"", "no certificate"),
    ] {
        let error = error_of(text);
        assert_eq!(error.kind(), Kind::Config, "{text}");
        assert!(error.causes().concat().contains(cause), "{error:?}");
    }
    fs::remove_file(&path).expect("removed");
    fs::create_dir(&path).expect("a folder in the way");
    let error = hosts(dir.path())
        .endpoints("r.example", &Notices::default())
        .expect_err("unreadable");
    assert_eq!(error.kind(), Kind::Config);
}

#[test]
fn what_does_not_count_is_told() {
    let dir = tempfile::tempdir().expect("a folder");
    let text = "colour = \"red\"\n[host.\"https://me:hunter2@a\"]\nspeed = 3\n[host.\"https://b\".header]\nHost = \"c\"";
    write(dir.path(), "r.example", FILE, text);
    let notices = Notices::default();
    let endpoints = hosts(dir.path())
        .endpoints("r.example", &notices)
        .expect("understood");
    assert_eq!(endpoints[0].shown(), "https://a/v2");
    let told = notices.take();
    assert_eq!(told.len(), 4, "{told:?}");
    let all = told.concat();
    for part in ["line 1: colour", "speed", "Host", "line 2"] {
        assert!(all.contains(part), "{part}: {told:?}");
    }
    assert!(!all.contains("hunter2"), "{told:?}");
}

#[test]
fn durations_are_gos() {
    for (text, expected) in [
        ("5s", Some(5000)),
        ("1h2m3s", Some(3_723_000)),
        ("1.5s", Some(1500)),
        ("300ms", Some(300)),
        ("0", None),
        ("0s", None),
        ("9999999h", Some(86_400_000)),
    ] {
        let text = format!("dial_timeout = \"{text}\"");
        let file = parse(&text).expect("understood");
        let wait = file.own.dial_timeout.map(|wait| wait.as_millis());
        assert_eq!(wait, expected, "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
        drop(parse(&text));
    }

    #[test]
    fn likely_texts_too(text in "(server|host|ca|client|header|capabilities|dial_timeout| = |\"|\\[|\\]|\\{|\\}|https://a@b|5s|\n|,|\\.|'|µ){0,40}") {
        drop(parse(&text));
    }
}
