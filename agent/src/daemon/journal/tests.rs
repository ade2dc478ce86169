//! Records as journald would get them.

use std::{collections::BTreeSet, fs, os::unix::net::UnixStream};

use tracing_subscriber::layer::SubscriberExt;

use super::*;

/// What `work` logs, one list of fields a record.
fn records(work: impl FnOnce()) -> Vec<Vec<(String, String)>> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("socket");
    let journald = UnixDatagram::bind(&path).expect("bound");
    journald.set_nonblocking(true).expect("set");
    let journal = Journal::at(&path).expect("made");
    tracing::subscriber::with_default(tracing_subscriber::registry().with(journal), work);
    let mut buffer = vec![0; 1 << 20];
    let mut records = Vec::new();
    while let Ok(length) = journald.recv(&mut buffer) {
        records.push(parse(&buffer[..length]));
    }
    records
}

/// The native protocol, read as journald does.
fn parse(mut bytes: &[u8]) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let end = bytes.iter().position(|b| *b == b'\n').expect("a line end");
        let line = &bytes[..end];
        bytes = &bytes[end + 1..];
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
        if let Some(at) = line.iter().position(|b| *b == b'=') {
            fields.push((text(&line[..at]), text(&line[at + 1..])));
        } else {
            let (length, rest) = bytes.split_at(8);
            let length = u64::from_le_bytes(length.try_into().expect("eight"));
            let length = usize::try_from(length).expect("small");
            fields.push((text(line), text(&rest[..length])));
            assert_eq!(rest[length], b'\n');
            bytes = &rest[length + 1..];
        }
    }
    fields
}

fn field<'a>(record: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let mut found = record.iter().filter(|(n, _)| n == name);
    let first = found.next().map(|(_, value)| value.as_str());
    assert!(found.next().is_none(), "{name} is there once");
    first
}

fn key() -> Key {
    Key {
        reference: "r.example/a:1".to_owned(),
        platform: "host".to_owned(),
        namespace: "k8s.io".to_owned(),
    }
}

#[test]
fn a_failure_has_its_fields_and_its_id() {
    let error = Error::new(Kind::PlatformMissing, "cannot pull `r.example/a:1`")
        .because("nothing\nPRIORITY=0 fits")
        .platforms(
            vec!["linux/arm64".to_owned()],
            vec!["linux/amd64".to_owned()],
        )
        .hint("ask the publisher");
    let passing = Error::new(Kind::Unavailable, "no answer");
    let records = records(|| {
        report(&error, Some(&key()));
        report(&passing, None);
    });
    let [first, second] = &records[..] else {
        panic!("two records: {records:?}");
    };
    for (name, value) in [
        ("PRIORITY", "3"),
        ("MESSAGE_ID", Kind::PlatformMissing.message_id()),
        ("EDGEPULL_KIND", "platform_missing"),
        ("EDGEPULL_REFERENCE", "r.example/a:1"),
        ("EDGEPULL_PLATFORM", "host"),
        ("EDGEPULL_NAMESPACE", "k8s.io"),
        ("SYSLOG_IDENTIFIER", "edgepull"),
        (
            "MESSAGE",
            "cannot pull `r.example/a:1`: nothing PRIORITY=0 fits; wanted linux/arm64, \
             offered linux/amd64 (hint: ask the publisher)",
        ),
    ] {
        assert_eq!(field(first, name), Some(value));
    }
    assert_eq!(
        field(second, "PRIORITY"),
        Some("4"),
        "it may pass by itself"
    );
    assert_eq!(field(second, "EDGEPULL_REFERENCE"), None);
}

#[test]
fn a_failure_says_what_was_being_done() {
    let error = Error::new(Kind::NoSpace, "cannot write a layer");
    let during = During {
        phase: Some("unpacking"),
        digest: Some("sha256:00"),
    };
    let records = records(|| report_during(&error, Some(&key()), during));
    for (name, value) in [
        ("EDGEPULL_PHASE", "unpacking"),
        ("EDGEPULL_DIGEST", "sha256:00"),
        ("MESSAGE", "r.example/a:1: cannot write a layer"),
    ] {
        assert_eq!(field(&records[0], name), Some(value));
    }
}

#[test]
fn a_notice_has_its_id_and_the_digest() {
    let told = || notice(Notice::Ready, Some(&key()), Some("sha256:00"), "it is here");
    let records = records(told);
    for (name, value) in [
        ("MESSAGE_ID", Notice::Ready.message_id()),
        ("EDGEPULL_DIGEST", "sha256:00"),
        ("PRIORITY", "6"),
        ("MESSAGE", "r.example/a:1: it is here"),
    ] {
        assert_eq!(field(&records[0], name), Some(value));
    }
}

#[test]
fn values_stay_values() {
    let evil = "a\nPRIORITY=0\nMESSAGE_ID=x";
    let long = "é".repeat(LONGEST);
    let records = records(|| {
        tracing::debug!(phase = evil, count = 3, "said {evil}");
        tracing::info!(long, "long");
    });
    assert_eq!(field(&records[0], "EDGEPULL_PHASE"), Some(evil));
    assert_eq!(field(&records[0], "PRIORITY"), Some("7"));
    assert_eq!(field(&records[0], "MESSAGE_ID"), None);
    let message = field(&records[0], "MESSAGE").expect("there");
    assert!(message.contains("count=3"), "{message}");
    let cut = field(&records[1], "EDGEPULL_LONG").expect("there");
    assert!(cut.len() <= LONGEST && cut.len() > LONGEST - 4);
}

#[test]
fn a_journal_that_is_away_holds_nobody_up() {
    let journal = Journal::at(Path::new("/no/such/socket")).expect("made");
    let subscriber = tracing_subscriber::registry().with(journal);
    tracing::subscriber::with_default(subscriber, || tracing::info!("nobody hears this"));
}

#[test]
fn the_stream_is_known_by_device_and_inode() {
    let (stream, _other) = UnixStream::pair().expect("a pair");
    let found = nix::sys::stat::fstat(stream.as_fd()).expect("a file");
    let named = format!("{}:{}", found.st_dev, found.st_ino);
    assert!(is_stream(OsStr::new(&named), stream.as_fd()));
    let next = format!("{}:{}", found.st_dev, found.st_ino + 1);
    for other in [next.as_str(), "x", ":", ""] {
        assert!(!is_stream(OsStr::new(other), stream.as_fd()), "{other}");
    }
}

#[test]
fn field_names_are_what_journald_takes() {
    assert_eq!(field_name("reference"), "EDGEPULL_REFERENCE");
    assert_eq!(field_name("http.status-code"), "EDGEPULL_HTTP_STATUS_CODE");
    assert_eq!(field_name(&"x".repeat(100)).len(), 64);
}

#[test]
fn the_catalog_in_the_tree_is_what_the_program_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/edgepull.catalog");
    let there = fs::read_to_string(&path).unwrap_or_default();
    if there != catalog() {
        let made = std::env::temp_dir().join("edgepull.catalog");
        fs::write(&made, catalog()).expect("written");
        panic!(
            "{} is not up to date: copy {} there",
            path.display(),
            made.display()
        );
    }
    let kinds = Kind::ALL.map(Kind::message_id).into_iter();
    let notices = Notice::ALL.map(Notice::message_id);
    let starts = catalog::STARTS.map(|(id, _)| id);
    let ids: BTreeSet<_> = kinds.chain(notices).chain(starts).collect();
    assert_eq!(ids.len(), Kind::ALL.len() + notices.len() + starts.len());
    for id in ids {
        assert!(
            id.len() == 32 && there.contains(&format!("\n-- {id}\n")),
            "{id}"
        );
    }
}
