use futures_util::TryStreamExt;

use super::{super::test_server::Then, *};
use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::Verifier,
    source::{Source, small_blob},
};

const CONTENT: &[u8] = b"0123456789";

async fn fetch(repo: &Repo, descriptor: &Descriptor, offset: u64) -> Result<Vec<u8>> {
    let stream = repo.blob(descriptor, offset).await?;
    let chunks: Vec<bytes::Bytes> = stream.try_collect().await?;
    Ok(chunks.concat())
}

/// The outcome of asking for `CONTENT` from `offset` when the server answers `reply`.
async fn outcome(reply: Reply, offset: u64) -> Result<Vec<u8>> {
    let server = TestServer::start(move |_| reply.clone()).await;
    fetch(
        &repo(&client(quick()), &server, ":1"),
        &layer(CONTENT),
        offset,
    )
    .await
}

fn part(range: &str, body: &[u8]) -> Reply {
    Reply::new(206).with("content-range", range).body(body)
}

#[tokio::test]
async fn a_whole_blob_is_streamed_and_verifies() {
    let server = TestServer::start(|_| Reply::new(200).body(CONTENT)).await;
    let client = client(quick());
    let repo = repo(&client, &server, ":1");
    let verified = small_blob(&repo, &layer(CONTENT)).await.expect("verified");
    assert_eq!(&verified.bytes()[..], CONTENT);
    let seen = server.seen();
    assert_eq!(seen[0].header("range"), None);
    assert_eq!(
        seen[0].path,
        format!("/v2/lib/app/blobs/{}", Digest::of(CONTENT))
    );
    let unframed = Reply::new(200).body(CONTENT).unframed();
    assert_eq!(outcome(unframed, 0).await.expect("all"), CONTENT);
}

#[tokio::test]
async fn a_part_is_asked_for_by_a_closed_range() {
    let server = TestServer::start(|_| part("bytes 4-9/10", b"456789")).await;
    let client = client(quick());
    let rest = fetch(&repo(&client, &server, ":1"), &layer(CONTENT), 4).await;
    assert_eq!(rest.expect("the rest"), b"456789");
    assert_eq!(server.seen()[0].header("range"), Some("bytes=4-9"));
}

#[tokio::test]
async fn an_ignored_range_is_skipped_over() {
    for offset in [1, 4, 9] {
        let rest = outcome(Reply::new(200).body(CONTENT), offset).await;
        let start = usize::try_from(offset).expect("small");
        assert_eq!(rest.expect("the rest"), &CONTENT[start..]);
    }
}

#[tokio::test]
async fn wrong_parts_are_refused() {
    for (reply, offset) in [
        (part("bytes 5-9/10", b"56789"), 4),
        (part("bytes 3-9/10", b"3456789"), 4),
        (part("bytes 4-9/11", b"456789"), 4),
        (part("bytes 4-10/11", b"456789x"), 4),
        (part("nonsense", b"456789"), 4),
        (part("bytes */10", b"456789"), 4),
        (part("bytes 4-9/10", b"456789"), 0),
        (Reply::new(206).body(b"456789"), 4),
        (Reply::new(200).body(b"456789"), 4),
        (Reply::new(200).body(b"0123456789x"), 0),
        (Reply::new(200).body(b"012345678"), 0),
        (Reply::new(200).body(b"0123456789x").unframed(), 0),
        (
            Reply::new(200)
                .with("content-encoding", "gzip")
                .body(CONTENT),
            0,
        ),
        (Reply::new(416).with("content-range", "bytes */4"), 4),
    ] {
        let shown = format!("{reply:?} at {offset}");
        let error = outcome(reply, offset).await.expect_err(&shown);
        assert_eq!(error.kind(), Kind::InvalidContent, "{shown}: {error:?}");
    }
}

#[tokio::test]
async fn a_refused_range_of_the_right_blob_may_be_retried() {
    for reply in [
        Reply::new(416),
        Reply::new(416).with("content-range", "bytes */10"),
    ] {
        let error = outcome(reply, 4).await.expect_err("refused");
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.is_retryable());
    }
}

#[tokio::test]
async fn a_short_body_is_unavailable_and_says_how_far_it_came() {
    for reply in [
        Reply::new(200).body(CONTENT).after(7, Then::Close),
        Reply::new(200).body(&CONTENT[..7]).unframed(),
    ] {
        let server = TestServer::start(move |_| reply.clone()).await;
        let client = client(quick());
        let repo = repo(&client, &server, ":1");
        let mut stream = repo.blob(&layer(CONTENT), 0).await.expect("open");
        let mut verifier = Verifier::new(&layer(CONTENT));
        let error: Error = loop {
            match stream.try_next().await {
                Ok(Some(chunk)) => verifier.update(&chunk).expect("within size"),
                Ok(None) => panic!("a short body ended well"),
                Err(error) => break error,
            }
        };
        assert_eq!(verifier.seen(), 7);
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.is_retryable());
        assert!(
            error.causes().concat().contains("7 of 10 bytes"),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn a_stalled_body_is_a_timeout() {
    let reply = Reply::new(200).body(CONTENT).after(3, Then::Stall);
    let server = TestServer::start(move |_| reply.clone()).await;
    let repo = repo(&client(impatient()), &server, ":1");
    let error = fetch(&repo, &layer(CONTENT), 0).await.expect_err("stalled");
    assert_eq!(error.kind(), Kind::Timeout);
    assert!(error.is_retryable());
}

#[tokio::test]
async fn the_end_of_a_blob_needs_no_request() {
    let server = TestServer::start(|_| Reply::new(500)).await;
    let client = client(quick());
    let repo = repo(&client, &server, ":1");
    assert_eq!(fetch(&repo, &layer(CONTENT), 10).await.expect("empty"), b"");
    assert_eq!(fetch(&repo, &layer(b""), 0).await.expect("empty"), b"");
    let error = fetch(&repo, &layer(CONTENT), 11).await.expect_err("beyond");
    assert_eq!(error.kind(), Kind::Internal);
    assert_eq!(client.requests(), 0);
}

#[tokio::test]
async fn a_redirect_to_another_origin_carries_no_authorization() {
    let storage = TestServer::start(|request| {
        // As S3 and Azure do.
        if request.authorization().is_empty() {
            Reply::new(200).body(CONTENT)
        } else {
            Reply::new(400)
        }
    })
    .await;
    let target = storage.url("/bucket/x?X-Amz-Signature=verysecret");
    let server = TestServer::start(move |request| match request.authorization() {
        "" => Reply::new(401).with("www-authenticate", "Basic realm=x"),
        _ if request.path.contains("/blobs/") => Reply::new(307).with("location", "/moved"),
        _ => Reply::new(307).with("location", &target),
    })
    .await;
    let client = client(with(Credentials::user("me", "pw")));
    let repo = repo(&client, &server, ":1");
    assert_eq!(
        fetch(&repo, &layer(CONTENT), 0).await.expect("all"),
        CONTENT
    );
    assert_eq!(storage.seen().len(), 1);
    // The hop within the registry kept it.
    assert!(!server.seen()[2].authorization().is_empty());
    assert_eq!(client.requests(), 4);
}

#[tokio::test]
async fn a_dead_storage_address_is_asked_for_once_more() {
    let storage = TestServer::start(|request| {
        if request.path == "/fresh" {
            Reply::new(200).body(CONTENT)
        } else {
            Reply::new(403).body("<Error>expired</Error>")
        }
    })
    .await;
    let (stale, fresh) = (storage.url("/stale?sig=s"), storage.url("/fresh"));
    let calls = std::sync::atomic::AtomicUsize::new(0);
    let server = TestServer::start(move |request| {
        let first = calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
        let target = if first || request.path.contains("/manifests/") {
            &stale
        } else {
            &fresh
        };
        Reply::new(302).with("location", target)
    })
    .await;
    let client = client(quick());
    let repo = repo(&client, &server, ":1");
    assert_eq!(
        fetch(&repo, &layer(CONTENT), 0).await.expect("all"),
        CONTENT
    );
    let error = repo.get().await.expect_err("stale for ever");
    assert_eq!(error.kind(), Kind::Unavailable);
    let json = serde_json::to_string(&error).expect("plain data");
    assert!(
        json.contains("redirected to") && !json.contains("sig=s"),
        "{json}"
    );
}

#[tokio::test]
async fn a_missing_blob_is_not_found() {
    let reply = Reply::new(404).body(r#"{"errors":[{"code":"BLOB_UNKNOWN"}]}"#);
    let error = outcome(reply, 0).await.expect_err("missing");
    assert_eq!(error.kind(), Kind::NotFound);
}

#[tokio::test]
async fn a_foreign_layer_is_fetched_from_its_own_address() {
    let elsewhere = TestServer::start(|_| Reply::new(200).body(CONTENT)).await;
    let server = TestServer::start(|_| Reply::new(404)).await;
    let client = client(quick());
    let repo = repo(&client, &server, ":1");
    let mut descriptor = layer(CONTENT);
    descriptor.urls = vec![
        "file:///etc/passwd".to_owned(),
        "http://user:pw@127.0.0.1:1/x".to_owned(),
        elsewhere.url("/layer"),
    ];
    let error = fetch(&repo, &descriptor, 0).await.expect_err("not foreign");
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(elsewhere.seen().is_empty());
    descriptor.media_type =
        MediaType::parse("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    assert_eq!(fetch(&repo, &descriptor, 0).await.expect("all"), CONTENT);
    assert_eq!(elsewhere.seen().len(), 1);
}

#[tokio::test]
async fn a_web_page_is_no_blob_unless_it_is_one() {
    let page = |body: &[u8]| Reply::new(200).with("content-type", "text/html").body(body);
    let error = outcome(page(b"<html>"), 0).await.expect_err("a portal");
    assert_eq!(error.kind(), Kind::Unavailable);
    // Some storages call everything so.
    assert_eq!(outcome(page(CONTENT), 0).await.expect("all"), CONTENT);
}
