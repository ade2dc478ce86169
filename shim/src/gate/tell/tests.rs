use std::{collections::BTreeMap, os::unix::net::UnixDatagram};

use edgepull_platform::{
    Facts, detect,
    launch::{
        Looker, Surroundings,
        testing::{ARM64, Files, program},
    },
};

use super::*;
use crate::gate::Emulated;

/// A refusal and a warning about a program for arm64 on amd64.
fn found() -> (Refusal, Emulated) {
    let table = [("proc/sys/fs/binfmt_misc/status", "enabled")];
    let host = detect(&Facts::from_texts("uname_machine=x86_64", table)).expect("a host");
    let mut files = Files::default().file("bin/app", true, &program(ARM64, None));
    let around = Surroundings::new("/bin", "/");
    let mut search = Looker::new(&around, &mut files, &|_| false);
    let looked = search.command("app", &host).expect("found");
    let why = edgepull_platform::executable::Refusal::Machine;
    (
        Refusal::new(&looked, None, why, "it is not", &host, None),
        Emulated::new(&looked, None, "qemu", &host, None),
    )
}

fn pod() -> Bundle {
    let json = br#"{"annotations":{
        "io.kubernetes.cri.image-name": "docker.io/library/app:1",
        "io.kubernetes.cri.container-name": "web",
        "io.kubernetes.cri.sandbox-name": "web-0",
        "io.kubernetes.cri.sandbox-namespace": "shop\nMESSAGE=forged"
    }}"#;
    Bundle::parse(json).expect("a bundle")
}

/// The fields of a record, as journald reads them.
fn fields(mut bytes: &[u8]) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    while !bytes.is_empty() {
        let end = bytes.iter().position(|b| *b == b'\n').expect("a line");
        let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
        let line = std::str::from_utf8(line).expect("text");
        let (name, value, rest) = if let Some((name, value)) = line.split_once('=') {
            (name, value.to_owned(), rest)
        } else {
            let length = u64::from_le_bytes(rest[..8].try_into().expect("a length"));
            let end = 8 + usize::try_from(length).expect("short");
            let value = std::str::from_utf8(&rest[8..end]).expect("text");
            (line, value.to_owned(), &rest[end + 1..])
        };
        assert_eq!(fields.insert(name.to_owned(), value), None, "{name} twice");
        bytes = rest;
    }
    fields
}

#[test]
fn a_refusal_has_the_fields_of_the_contract() {
    let (refusal, emulated) = found();
    let bundle = pod();
    let container = Container {
        id: "abc",
        namespace: "k8s.io",
        bundle: &bundle,
    };
    let sent = fields(record(&refusal, &container).bytes());
    for (name, value) in [
        ("MESSAGE", refusal.line()),
        ("PRIORITY", "3"),
        ("SYSLOG_IDENTIFIER", "containerd-shim-edgepull"),
        ("MESSAGE_ID", starts::REFUSED),
        ("EDGEPULL_KIND", "not_runnable"),
        ("EDGEPULL_REASON", "machine"),
        ("EDGEPULL_PLATFORM", "linux/amd64"),
        ("EDGEPULL_REFERENCE", "docker.io/library/app:1"),
        ("EDGEPULL_FILE", "/bin/app"),
        ("EDGEPULL_NEEDS", "a static program for arm64"),
        ("CONTAINER_ID", "abc"),
        ("CONTAINER_NAMESPACE", "k8s.io"),
        ("CONTAINER_NAME", "web"),
        ("POD_NAME", "web-0"),
        ("POD_NAMESPACE", "shop\nMESSAGE=forged"),
    ] {
        assert_eq!(sent.get(name).map(String::as_str), Some(value), "{name}");
    }
    let plain = Container {
        bundle: &Bundle::default(),
        ..container
    };
    let warned = fields(warning(&emulated, &plain).bytes());
    assert_eq!(warned["MESSAGE_ID"], starts::EMULATED);
    assert_eq!(warned["PRIORITY"], "4");
    assert_eq!(warned["MESSAGE"], emulated.line());
    assert_eq!(warned.get("EDGEPULL_REFERENCE"), None);
}

#[test]
fn the_daemon_is_told_in_one_datagram() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("refusals.sock");
    let (refusal, _) = found();
    let bundle = pod();
    let container = Container {
        id: "abc",
        namespace: "k8s.io",
        bundle: &bundle,
    };
    // Nobody is there yet.
    tell_daemon(&path, &refusal, &container);
    let socket = UnixDatagram::bind(&path).expect("bound");
    tell_daemon(&path, &refusal, &container);
    let mut bytes = vec![0; starts::LONGEST];
    let length = socket.recv(&mut bytes).expect("one");
    let told: RefusedStart = serde_json::from_slice(&bytes[..length]).expect("read");
    assert_eq!(told.reason, "machine");
    assert!(starts::reasons().any(|reason| reason == told.reason));
    assert_eq!(told.message, refusal.line());
    assert_eq!(
        (told.container.as_str(), told.namespace.as_str()),
        ("abc", "k8s.io")
    );
    assert_eq!(told.reference.as_deref(), Some("docker.io/library/app:1"));
    assert_eq!(told.pod.as_deref(), Some("shop\nMESSAGE=forged/web-0"));
}

#[test]
fn the_same_is_said_once() {
    let bundle = Bundle::default();
    let container = |id| Container {
        id,
        namespace: "default",
        bundle: &bundle,
    };
    assert!(is_news(&container("a"), "x") && is_news(&container("a"), "y"));
    assert!(!is_news(&container("a"), "x"));
    assert!(is_news(&container("b"), "x"));
    for number in 0..2 * MOST_SAID {
        assert!(is_news(&container("c"), &number.to_string()));
    }
    // Forgotten meanwhile: what is kept is bounded.
    assert!(is_news(&container("a"), "x"));
}
