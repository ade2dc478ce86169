use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::{
    super::{endpoint::Endpoint, test_server::Then},
    *,
};
use crate::{error::Error, kind::Kind, source::Source};

/// The error of a GET that is answered by `reply`, and the number of requests.
async fn failed(reply: Reply) -> (Error, u64) {
    let server = TestServer::start(move |_| reply.clone()).await;
    let client = client(quick());
    let error = repo(&client, &server, ":1")
        .get()
        .await
        .expect_err("refused");
    (error, client.requests())
}

fn json(error: &Error) -> String {
    serde_json::to_string(error).expect("plain data")
}

#[tokio::test]
async fn statuses_become_kinds() {
    for (status, kind, requests) in [
        (400, Kind::Unavailable, 1),
        (401, Kind::Unauthorized, 1),
        (403, Kind::Unauthorized, 1),
        (404, Kind::NotFound, 1),
        (406, Kind::InvalidContent, 2),
        (407, Kind::Unavailable, 1),
        (429, Kind::RateLimited, 3),
        (451, Kind::Unavailable, 1),
        (500, Kind::Unavailable, 3),
        (501, Kind::Unavailable, 1),
        (502, Kind::Unavailable, 3),
        (503, Kind::Unavailable, 3),
        (504, Kind::Unavailable, 3),
        (425, Kind::Unavailable, 3),
        (522, Kind::Unavailable, 3),
        (204, Kind::Unavailable, 1),
        (304, Kind::Unavailable, 1),
    ] {
        let (error, sent) = failed(Reply::new(status)).await;
        assert_eq!(error.kind(), kind, "{status}");
        assert_eq!(sent, requests, "{status}");
        let json = json(&error);
        assert!(json.contains("127.0.0.1:"), "{status} names the registry");
        assert!(json.contains("lib/app:1"), "{status} names the reference");
    }
}

#[tokio::test]
async fn the_registrys_own_words_are_shown_and_bounded() {
    let body =
        r#"{"errors":[{"code":"NAME_UNKNOWN","message":"no \u001b[31m such\u202e repository"}]}"#;
    let (error, _) = failed(Reply::new(404).body(body)).await;
    let causes = error.causes().concat();
    assert!(causes.contains("no [31m such repository"), "{causes:?}");
    let hint = error.hint_text().expect("a hint");
    assert!(
        hint.contains("no such repository") && hint.contains("log in"),
        "{hint}"
    );

    let long = format!(
        r#"{{"errors":[{{"code":"MANIFEST_UNKNOWN","message":"{}"}}]}}"#,
        "x".repeat(9000)
    );
    let (error, _) = failed(Reply::new(404).body(long)).await;
    assert!(error.causes().concat().len() < 500);
    assert!(error.hint_text().expect("a hint").contains("no such tag"));
    let (error, _) = failed(Reply::new(404).body("x".repeat(1 << 20))).await;
    assert!(error.causes().concat().len() < 500);
}

#[tokio::test]
async fn blips_are_bridged() {
    for reply in [
        Reply::new(503),
        Reply::new(429).with("retry-after", 0),
        Reply::new(200).body("x").after(0, Then::Close),
        manifest().after(10, Then::Close),
        manifest().after(10, Then::Stall),
    ] {
        let shown = format!("{reply:?}");
        let calls = Arc::new(AtomicUsize::new(0));
        let server = TestServer::start(move |_| {
            if calls.fetch_add(1, Ordering::SeqCst) < 2 {
                reply.clone()
            } else {
                manifest()
            }
        })
        .await;
        let client = client(impatient());
        let document = repo(&client, &server, ":1").get().await;
        assert!(document.is_ok(), "{shown}");
        assert_eq!(client.requests(), 3, "{shown}");
    }
}

#[tokio::test]
async fn a_long_retry_after_is_reported_instead_of_waited_for() {
    let (error, requests) = failed(Reply::new(429).with("retry-after", 600)).await;
    assert_eq!(error.kind(), Kind::RateLimited);
    assert_eq!(requests, 1);
    assert!(error.hint_text().expect("a hint").contains("600 s"));
    assert_eq!(error.retry_after(), Some(Duration::from_secs(600)));
    // For HEAD as well: a GET would only add to the load.
    let server = TestServer::start(|_| Reply::new(429).with("retry-after", 600)).await;
    let client = client(quick());
    let error = repo(&client, &server, ":1")
        .head()
        .await
        .expect_err("limited");
    assert_eq!(error.kind(), Kind::RateLimited);
}

#[tokio::test]
async fn a_registry_that_wants_to_be_left_alone_is() {
    let limited = |_: &Received| {
        Reply::new(429)
            .with("retry-after", 600)
            .with("date", "Tue, 14 Nov 2023 22:13:20 GMT")
            .with("ratelimit-limit", "100;w=21600")
            .with("ratelimit-remaining", "0;w=21600")
            .body(r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#)
    };
    let server = TestServer::start(limited).await;
    let blob = b"x";
    let other = TestServer::start(|_| manifest()).await;
    let client = client(quick());
    let first = repo(&client, &server, ":1").get().await;
    let again = repo(&client, &server, ":2").get().await;
    let head = repo(&client, &server, ":3").head().await;
    assert_eq!(client.requests(), 1, "only once");
    for error in [
        first.expect_err("limited"),
        again.expect_err("limited"),
        head.expect_err("limited"),
    ] {
        assert_eq!(error.kind(), Kind::RateLimited);
        assert!(error.is_retryable());
        assert!(error.causes().concat().contains("slow down"), "{error:?}");
        let hint = error.hint_text().expect("a hint");
        for part in ["100 requests in 6 h, 0 left", "2023-11-14T22:23:20Z"] {
            assert!(hint.contains(part), "{part}: {hint}");
        }
        let after = error.retry_after().expect("known").as_secs();
        assert!((500..=600).contains(&after), "{after}");
    }
    // Blobs are not manifests, and others are not this one.
    let error = repo(&client, &server, ":1").blob(&layer(blob), 0).await;
    assert_eq!(error.err().expect("limited").kind(), Kind::RateLimited);
    assert_eq!(client.requests(), 2);
    repo(&client, &other, ":1")
        .get()
        .await
        .expect("another one");
    assert_eq!(client.quotas().len(), 1);
    assert_eq!(client.quotas()[0].1.remaining, Some(0));
}

#[tokio::test]
async fn a_registry_is_asked_again_when_its_time_has_come() {
    let calls = AtomicUsize::new(0);
    let server = TestServer::start(move |_| match calls.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::new(429).with("retry-after", 1),
        _ => manifest(),
    })
    .await;
    let client = client(Settings {
        retry: Policy {
            tries: 1,
            ..Policy::default()
        },
        ..quick()
    });
    let repo = repo(&client, &server, ":1");
    repo.get().await.expect_err("limited");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    repo.get().await.expect("its time has come");
    assert_eq!(client.requests(), 2);
}

#[tokio::test]
async fn a_used_up_quota_is_not_asked_again() {
    let (error, requests) = failed(
        Reply::new(429)
            .with("ratelimit-limit", "100;w=21600")
            .with("ratelimit-remaining", "0;w=21600")
            .body("slow\ndown"),
    )
    .await;
    assert_eq!(requests, 1);
    assert!(error.causes().concat().ends_with(": slow"), "{error:?}");
    let hint = error.hint_text().expect("a hint");
    assert!(hint.contains("after 6 h at the latest"), "{hint}");
}

#[tokio::test]
async fn a_truncated_document_is_unavailable() {
    let (error, requests) = failed(manifest().after(10, Then::Close)).await;
    assert_eq!(error.kind(), Kind::Unavailable);
    assert_eq!(requests, 3);
}

#[tokio::test]
async fn silence_is_a_timeout() {
    let server = TestServer::start(|_| manifest().after(0, Then::Stall)).await;
    let client = client(impatient());
    let error = repo(&client, &server, ":1")
        .get()
        .await
        .expect_err("silent");
    assert_eq!(error.kind(), Kind::Timeout);
    assert_eq!(client.requests(), 3);
}

#[tokio::test]
async fn web_pages_are_named_by_their_title() {
    let page = "<!DOCTYPE html>\n<html><head><TITLE>Hotel\n WiFi</TITLE></head>";
    for reply in [
        Reply::new(200).with("content-type", "text/html").body(page),
        Reply::new(200).body(page),
    ] {
        let (error, _) = failed(reply).await;
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(
            error.hint_text().expect("a hint").contains("`Hotel  WiFi`"),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn coded_bodies_are_refused() {
    let (error, requests) = failed(manifest().with("content-encoding", "gzip")).await;
    assert_eq!(error.kind(), Kind::InvalidContent);
    assert_eq!(requests, 1);
    let server = TestServer::start(|_| manifest().with("content-encoding", "identity")).await;
    repo(&client(quick()), &server, ":1")
        .get()
        .await
        .expect("plain");
}

#[tokio::test]
async fn redirects_are_bounded() {
    let server = TestServer::start(|_| Reply::new(302).with("location", "/again")).await;
    let client = client(quick());
    let error = repo(&client, &server, ":1")
        .get()
        .await
        .expect_err("a loop");
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(!error.is_retryable());
    assert_eq!(client.requests(), 11);
    for location in ["ftp://127.0.0.1/x", "http://", "http://[::1"] {
        let (error, requests) = failed(Reply::new(302).with("location", location)).await;
        assert_eq!(error.kind(), Kind::Unavailable, "{location}");
        assert_eq!(requests, 1, "{location}");
    }
    let (error, _) = failed(Reply::new(302)).await;
    assert_eq!(error.kind(), Kind::Unavailable);
}

#[tokio::test]
async fn nobody_listening_is_told_after_one_more_try() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let authority = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let reference = Reference::parse(&format!("{authority}/a:1")).expect("a reference");
    let client = client(quick());
    let error = client
        .repository(&reference)
        .get()
        .await
        .expect_err("nobody");
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(
        error.causes().concat().contains("refuses the connection"),
        "{error:?}"
    );
    assert_eq!(client.requests(), 2);
}

#[tokio::test]
async fn plain_http_behind_https_is_recognised() {
    let server = TestServer::start(|_| manifest()).await;
    let reference = Reference::parse(&format!("{}/a:1", server.authority())).expect("valid");
    let endpoint = Endpoint::registry("https", &server.authority()).expect("a host");
    let client = client(quick());
    let repo = Repo::new(client.clone(), reference, Ok(vec![endpoint]));
    let error = repo.get().await.expect_err("no TLS");
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(
        error.hint_text().expect("a hint").contains("--plain-http"),
        "{error:?}"
    );
    assert_eq!(client.requests(), 1);
}

#[tokio::test]
async fn without_certificates_only_https_fails() {
    let server = TestServer::start(|_| manifest()).await;
    let trust = super::super::tls::Trust {
        roots: Arc::new(rustls::RootCertStore::empty()),
        problem: Some(Error::new(Kind::Config, "no trusted CA certificates")),
    };
    let client = Client::trusting(quick(), trust);
    repo(&client, &server, ":1").get().await.expect("over http");
    let reference = Reference::parse("r.example/a:1").expect("valid");
    let error = client
        .repository(&reference)
        .get()
        .await
        .expect_err("no roots");
    assert_eq!(error.kind(), Kind::Config);
}

#[tokio::test]
async fn a_name_that_cannot_be_looked_up_is_told_as_such() {
    // Longer than a label may be, so the resolver refuses it without asking anybody.
    let reference = Reference::parse(&format!("{}.example/a:1", "x".repeat(70))).expect("valid");
    let client = client(Settings {
        plain_http: true,
        ..quick()
    });
    let error = client
        .repository(&reference)
        .get()
        .await
        .expect_err("no name");
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(
        error.causes().concat().contains("cannot be resolved"),
        "{error:?}"
    );
    assert_eq!(client.requests(), 2);
}
