//! Several servers for one registry: order, failures, and what must not reach whom.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{super::test_server::Then, *};
use crate::{
    error::Error,
    kind::Kind,
    source::{Source, small_blob},
};

/// A client that knows `mirrors` for the registry `upstream`.
pub(super) fn mirrored(
    upstream: &TestServer,
    mirrors: &[&TestServer],
    settings: Settings,
) -> Mirrored {
    let mut text = String::new();
    for mirror in mirrors {
        text.extend(["[host.\"http://", &mirror.authority(), "\"]\n"]);
    }
    configured(&upstream.authority(), &text, settings)
}

pub(super) struct Mirrored {
    pub(super) client: Client,
    #[expect(dead_code, reason = "held, not read")]
    dir: tempfile::TempDir,
}

/// A client that reads `text` as the file for the registry `domain`.
fn configured(domain: &str, text: &str, settings: Settings) -> Mirrored {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().join(domain);
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(folder.join("hosts.toml"), text).expect("written");
    let settings = Settings {
        hosts_dirs: vec![dir.path().to_owned()],
        ..settings
    };
    Mirrored {
        client: client(settings),
        dir,
    }
}

async fn healthy() -> TestServer {
    TestServer::start(|request| {
        if request.path.contains("/blobs/") {
            Reply::new(200).body("hello")
        } else {
            manifest()
        }
    })
    .await
}

/// Nobody listens there.
pub(super) async fn nobody() -> TestServer {
    let server = healthy().await;
    server.stop().await;
    server
}

async fn blob(repo: &Repo) -> Result<Vec<u8>, Error> {
    small_blob(repo, &layer(b"hello"))
        .await
        .map(|verified| verified.bytes().to_vec())
}

#[tokio::test]
async fn a_mirror_comes_first_and_knows_for_whom() {
    let (upstream, mirror) = (healthy().await, healthy().await);
    let it = mirrored(&upstream, &[&mirror], quick());
    let repo = repo(&it.client, &upstream, ":1");
    repo.head().await.expect("answered").expect("usable");
    repo.get().await.expect("fetched");
    assert_eq!(blob(&repo).await.expect("fetched"), b"hello");
    assert!(upstream.seen().is_empty());
    let ns = format!("?ns={}", upstream.authority().replace(':', "%3A"));
    assert_eq!(mirror.seen().len(), 3);
    assert!(
        mirror
            .seen()
            .iter()
            .all(|request| request.path.ends_with(&ns))
    );
    assert!(it.client.take_notices().is_empty());
}

#[tokio::test]
async fn any_failure_moves_on_and_the_registry_is_asked_without_ns() {
    for (what, reply) in [
        ("404", Reply::new(404)),
        ("401", Reply::new(401)),
        ("403", Reply::new(403)),
        ("400", Reply::new(400)),
        ("429", Reply::new(429).with("retry-after", 600)),
        ("500", Reply::new(500)),
        ("503", Reply::new(503).with("retry-after", 600)),
        ("a page", Reply::new(200).body("<html>")),
        ("a redirect to nowhere", Reply::new(302)),
        ("silence", manifest().after(0, Then::Stall)),
        ("cut", manifest().after(3, Then::Close)),
        ("coded", manifest().with("content-encoding", "gzip")),
    ] {
        let upstream = healthy().await;
        let mirror = TestServer::start(move |_| reply.clone()).await;
        let settings = if what == "silence" {
            impatient()
        } else {
            quick()
        };
        let it = mirrored(&upstream, &[&mirror], settings);
        let repo = repo(&it.client, &upstream, ":1");
        assert!(repo.get().await.is_ok(), "{what}");
        assert_eq!(blob(&repo).await.expect(what), b"hello");
        // No waits and no second tries where somebody else can be asked.
        assert!(mirror.seen().len() <= 4, "{what}: {:?}", mirror.lines());
        assert_eq!(upstream.lines()[0], "GET /v2/lib/app/manifests/1", "{what}");
        assert!(upstream.seen().iter().all(|r| !r.path.contains("ns=")));
    }
}

#[tokio::test]
async fn a_dead_mirror_is_found_out_once() {
    let upstream = healthy().await;
    let mirror = nobody().await;
    let it = mirrored(&upstream, &[&mirror], quick());
    let repo = repo(&it.client, &upstream, ":1");
    repo.head().await.expect("answered").expect("usable");
    repo.get().await.expect("fetched");
    for _ in 0..5 {
        blob(&repo).await.expect("fetched");
    }
    // Seven for the registry, one for the mirror.
    assert_eq!((upstream.seen().len(), it.client.requests()), (7, 8));
    let notices = it.client.take_notices();
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert!(notices[0].contains(&mirror.authority()), "{notices:?}");
    // Another reference of the same client knows it, too.
    super::repo(&it.client, &upstream, ":2")
        .get()
        .await
        .expect("fetched");
    assert_eq!(it.client.requests(), 9);
}

#[tokio::test]
async fn a_mirror_that_comes_back_after_the_registry_failed_is_asked_again() {
    let upstream_works = Arc::new(AtomicBool::new(true));
    let works = upstream_works.clone();
    let upstream = TestServer::start(move |_| {
        if works.load(Ordering::SeqCst) {
            manifest()
        } else {
            Reply::new(503)
        }
    })
    .await;
    let broken = Arc::new(AtomicBool::new(true));
    let still = broken.clone();
    let mirror = TestServer::start(move |_| {
        if still.load(Ordering::SeqCst) {
            Reply::new(503)
        } else {
            manifest()
        }
    })
    .await;
    let it = mirrored(&upstream, &[&mirror], quick());
    let repo = repo(&it.client, &upstream, ":1");
    repo.get().await.expect("from the registry");
    assert_eq!(mirror.seen().len(), 1);
    repo.get().await.expect("from the registry");
    assert_eq!(mirror.seen().len(), 1, "passed over");
    broken.store(false, Ordering::SeqCst);
    upstream_works.store(false, Ordering::SeqCst);
    repo.get().await.expect("from the mirror, as a last resort");
    assert_eq!(mirror.seen().len(), 2);
}

#[tokio::test]
async fn every_hosts_outcome_is_told_and_the_registrys_word_decides() {
    let upstream = TestServer::start(|_| Reply::new(404)).await;
    let first = TestServer::start(|_| Reply::new(503)).await;
    let second = nobody().await;
    let it = mirrored(&upstream, &[&first, &second], quick());
    let repo = repo(&it.client, &upstream, ":1");
    let error = repo.get().await.expect_err("nowhere");
    assert_eq!(error.kind(), Kind::NotFound);
    let causes = error.causes();
    assert_eq!(causes.len(), 3, "{causes:?}");
    for (cause, host) in causes.iter().zip([&first, &second, &upstream]) {
        assert!(cause.contains(&host.authority()), "{causes:?}");
    }
    assert!(causes[1].contains("refuses the connection"), "{causes:?}");
    assert!(error.hint_text().is_some());
    let json = serde_json::to_value(&error).expect("plain data");
    assert_eq!(json["registry"], upstream.authority());
    // The second time, that they were passed over is their outcome.
    let error = repo.get().await.expect_err("nowhere");
    assert!(error.causes()[0].contains("not asked"), "{error:?}");
}

#[tokio::test]
async fn wrong_bytes_of_a_mirror_are_fetched_elsewhere() {
    let upstream = healthy().await;
    let liar = || {
        TestServer::start(|request| {
            if request.path.contains("/blobs/") {
                Reply::new(200).body("hallo")
            } else {
                manifest()
            }
        })
    };
    let (first, second) = (liar().await, liar().await);
    let it = mirrored(&upstream, &[&first, &second], quick());
    let repo = repo(&it.client, &upstream, ":1");
    assert_eq!(blob(&repo).await.expect("in the end"), b"hello");
    let lines = [
        first.lines().len(),
        second.lines().len(),
        upstream.lines().len(),
    ];
    assert_eq!(lines, [1, 1, 1]);
    let notices = it.client.take_notices();
    assert_eq!(notices.len(), 2, "{notices:?}");
    // All of them: then it is the content, and it ends.
    let upstream = liar().await;
    let it = mirrored(&upstream, &[&first], quick());
    let error = blob(&super::repo(&it.client, &upstream, ":1"))
        .await
        .expect_err("nobody has it");
    assert_eq!(error.kind(), Kind::InvalidContent);
    assert_eq!(upstream.lines().len(), 1);
}

#[tokio::test]
async fn wrong_documents_of_a_mirror_are_fetched_elsewhere() {
    let upstream = healthy().await;
    let mirror = TestServer::start(|_| Reply::new(200).body("{\"schemaVersion\":2}")).await;
    let it = mirrored(&upstream, &[&mirror], quick());
    let digest = Digest::of(MANIFEST.as_bytes());
    let repo = repo(&it.client, &upstream, &format!("@{digest}"));
    repo.get().await.expect("from the registry");
    let child = Descriptor::new(
        MediaType::parse(MediaType::OCI_MANIFEST),
        digest,
        MANIFEST.len() as u64,
    );
    repo.document(&child).await.expect("from the registry");
    let notices = it.client.take_notices();
    assert!(notices[0].contains(&mirror.authority()), "{notices:?}");
}

#[tokio::test]
async fn a_body_that_breaks_at_a_mirror_goes_on_at_the_registry() {
    let content = vec![7_u8; 100_000];
    let whole = content.clone();
    let upstream = TestServer::start(move |request| {
        let first: usize = request
            .header("range")
            .and_then(|range| {
                range
                    .strip_prefix("bytes=")?
                    .split_once('-')?
                    .0
                    .parse()
                    .ok()
            })
            .expect("a part is asked for");
        Reply::new(206)
            .with(
                "content-range",
                format!("bytes {first}-{}/{}", whole.len() - 1, whole.len()),
            )
            .body(&whole[first..])
    })
    .await;
    let half = content.clone();
    let mirror =
        TestServer::start(move |_| Reply::new(200).body(&half).after(50_000, Then::Close)).await;
    let settings = Settings {
        retry: Policy {
            base: Duration::from_secs(600),
            ..Policy::default()
        },
        ..quick()
    };
    let it = mirrored(&upstream, &[&mirror], settings);
    let repo = repo(&it.client, &upstream, ":1");
    let found = small_blob(&repo, &layer(&content)).await.expect("whole");
    assert_eq!(found.bytes().len(), content.len());
    assert_eq!((mirror.seen().len(), upstream.seen().len()), (1, 1));
}

#[tokio::test]
async fn strict_mirrors_are_asked_without_ns() {
    let upstream = healthy().await;
    let mirror = TestServer::start(|request| {
        if request.path.contains('?') {
            Reply::new(400)
        } else if request.path.contains("/blobs/") {
            Reply::new(200).body("hello")
        } else {
            manifest()
        }
    })
    .await;
    let it = mirrored(&upstream, &[&mirror], quick());
    let repo = repo(&it.client, &upstream, ":1");
    repo.get().await.expect("fetched");
    blob(&repo).await.expect("fetched");
    assert!(upstream.seen().is_empty());
    // Once with it, then never again.
    assert_eq!(mirror.seen().len(), 3, "{:?}", mirror.lines());
    // A mirror of several registries might mean another one's tag.
    let mirror = TestServer::start(|request| {
        if request.path.contains('?') {
            Reply::new(404)
        } else {
            manifest()
        }
    })
    .await;
    let it = mirrored(&upstream, &[&mirror], quick());
    super::repo(&it.client, &upstream, ":1")
        .get()
        .await
        .expect("fetched");
    assert_eq!((mirror.seen().len(), upstream.seen().len()), (1, 1));
    let pinned = format!("@{}", Digest::of(MANIFEST.as_bytes()));
    super::repo(&it.client, &upstream, &pinned)
        .get()
        .await
        .expect("fetched");
    assert_eq!((mirror.seen().len(), upstream.seen().len()), (3, 1));
}

#[tokio::test]
async fn credentials_and_headers_stay_where_they_belong() {
    let guarded = || {
        TestServer::start(|request| {
            if request.authorization().is_empty() {
                Reply::new(401).with("www-authenticate", "Basic realm=x")
            } else if request.path.contains("/blobs/") {
                Reply::new(200).body("hello")
            } else {
                manifest()
            }
        })
    };
    let (upstream, mirror) = (guarded().await, guarded().await);
    let storage = TestServer::start(|_| Reply::new(404)).await;
    let away = format!("http://localhost:{}/x", storage.port());
    let third = TestServer::start(move |_| Reply::new(307).with("location", &away)).await;
    let text = format!(
        "header = {{X-Own = \"upstream\"}}\n[host.\"http://{}\".header]\nX-Secret = \"mirror\"\n[host.\"http://{}\".header]\nX-Third = \"third\"\nAuthorization = \"Bearer third\"\nCookie = \"c\"\n",
        mirror.authority(),
        third.authority()
    );
    let it = configured(
        &upstream.authority(),
        &text,
        with(Credentials::user("me", "pw")),
    );
    let repo = repo(&it.client, &upstream, ":1");
    repo.get().await.expect("from the registry");
    assert_eq!(blob(&repo).await.expect("from the registry"), b"hello");
    for (server, own) in [
        (&upstream, Some("x-own")),
        (&mirror, Some("x-secret")),
        (&third, Some("x-third")),
        (&storage, None),
    ] {
        assert!(!server.seen().is_empty());
        for request in server.seen() {
            for name in ["x-own", "x-secret", "x-third"] {
                assert_eq!(request.header(name).is_some(), own == Some(name), "{name}");
            }
            let third = own == Some("x-third");
            assert_eq!(request.header("cookie").is_some(), third);
            let wanted = if third {
                "Bearer third"
            } else if own == Some("x-own") && !request.authorization().is_empty() {
                "Basic bWU6cHc="
            } else {
                ""
            };
            assert_eq!(request.authorization(), wanted);
        }
    }
}

#[tokio::test]
async fn a_mirror_has_credentials_under_its_own_name() {
    let mirror = TestServer::start(|request| {
        if request.authorization().is_empty() {
            Reply::new(401).with("www-authenticate", "Basic realm=x")
        } else {
            manifest()
        }
    })
    .await;
    let upstream = healthy().await;
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config.json");
    let auths = format!(
        r#"{{"auths":{{"{}":{{"username":"a","password":"up"}},"{}":{{"username":"a","password":"mirror"}}}}}}"#,
        upstream.authority(),
        mirror.authority()
    );
    std::fs::write(&file, auths).expect("written");
    let it = mirrored(&upstream, &[&mirror], with(Credentials::file(file)));
    repo(&it.client, &upstream, ":1")
        .get()
        .await
        .expect("fetched");
    // a:mirror
    assert_eq!(mirror.seen()[1].authorization(), "Basic YTptaXJyb3I=");
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn capabilities_decide_who_is_asked_for_what() {
    let (upstream, mirror) = (healthy().await, healthy().await);
    let text = |capability: &str| {
        format!(
            "[host.\"http://{}\"]\ncapabilities = [\"{capability}\"]",
            mirror.authority()
        )
    };
    let it = configured(&upstream.authority(), &text("pull"), quick());
    let by_tag = repo(&it.client, &upstream, ":1");
    by_tag.get().await.expect("fetched");
    blob(&by_tag).await.expect("fetched");
    assert_eq!((mirror.seen().len(), upstream.seen().len()), (1, 1));
    let digest = Digest::of(MANIFEST.as_bytes());
    repo(&it.client, &upstream, &format!("@{digest}"))
        .get()
        .await
        .expect("fetched");
    assert_eq!((mirror.seen().len(), upstream.seen().len()), (2, 1));
    let it = configured(&upstream.authority(), &text("resolve"), quick());
    let by_tag = repo(&it.client, &upstream, ":1");
    by_tag.get().await.expect("fetched");
    blob(&by_tag).await.expect("fetched");
    assert_eq!((mirror.seen().len(), upstream.seen().len()), (3, 2));
    let only = format!(
        "server = \"http://{}\"\ncapabilities = [\"pull\"]",
        mirror.authority()
    );
    let it = configured(&upstream.authority(), &only, quick());
    let error = repo(&it.client, &upstream, ":1")
        .get()
        .await
        .expect_err("nobody may");
    assert_eq!(error.kind(), Kind::Config);
}

#[tokio::test]
async fn a_registry_that_breaks_is_asked_again_where_the_mirror_has_nothing() {
    let content = vec![7_u8; 100_000];
    let whole = content.clone();
    let first = AtomicBool::new(true);
    let upstream = TestServer::start(move |request| {
        if first.swap(false, Ordering::SeqCst) {
            return Reply::new(200).body(&whole).after(50_000, Then::Close);
        }
        let range = request.header("range").expect("the rest is asked for");
        let (from, _) = range["bytes=".len()..].split_once('-').expect("a range");
        let from: usize = from.parse().expect("a number");
        Reply::new(206)
            .with("content-range", format!("bytes {from}-99999/100000"))
            .body(&whole[from..])
    })
    .await;
    let mirror = TestServer::start(|_| Reply::new(404)).await;
    let it = mirrored(&upstream, &[&mirror], quick());
    let repo = repo(&it.client, &upstream, ":1");
    small_blob(&repo, &layer(&content)).await.expect("whole");
    assert_eq!(upstream.seen().len(), 2);
    // With `ns` and without, before the registry and after it.
    assert!(mirror.seen().len() <= 4, "{:?}", mirror.lines());
}
