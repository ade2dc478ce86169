//! Transfers that break, and what it takes to finish or to end them.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::{StreamExt, TryStreamExt};

use super::{super::test_server::Then, *};
use crate::{
    error::{Error, Result},
    kind::Kind,
    source::{Source, small_blob},
};

/// Larger than what counts as progress, and no multiple of anything.
fn content() -> Vec<u8> {
    (0..300_007_u32)
        .map(|i| u8::try_from(i % 251).expect("below 256"))
        .collect()
}

/// First and last byte of a closed range.
fn asked(request: &Received) -> Option<(usize, usize)> {
    let text = request.header("range")?.strip_prefix("bytes=")?;
    let (first, last) = text.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}

/// What a registry that can do ranges answers.
pub(super) fn honest(request: &Received, content: &[u8]) -> Reply {
    match asked(request) {
        None => Reply::new(200).body(content),
        Some((first, last)) => Reply::new(206)
            .with(
                "content-range",
                format!("bytes {first}-{last}/{}", content.len()),
            )
            .body(&content[first..=last]),
    }
}

pub(super) async fn all(repo: &Repo, descriptor: &Descriptor, offset: u64) -> Result<Vec<u8>> {
    let stream = repo.blob(descriptor, offset).await?;
    let chunks: Vec<bytes::Bytes> = stream.try_collect().await?;
    Ok(chunks.concat())
}

/// Fetches `content()` from a server that answers the n-th request for a blob by `script`.
async fn fetched(
    settings: Settings,
    script: impl Fn(usize, &Received, &[u8]) -> Reply + Send + Sync + 'static,
) -> (Result<Vec<u8>>, Vec<Received>) {
    let calls = AtomicUsize::new(0);
    let bytes = content();
    let server = TestServer::start(move |request| {
        script(calls.fetch_add(1, Ordering::SeqCst), request, &bytes)
    })
    .await;
    let client = client(settings);
    let result = all(&repo(&client, &server, ":1"), &layer(&content()), 0).await;
    (result, server.seen())
}

fn ranges(seen: &[Received]) -> Vec<Option<usize>> {
    seen.iter()
        .map(|r| asked(r).map(|(first, _)| first))
        .collect()
}

#[tokio::test]
async fn what_breaks_is_taken_up_where_it_ended() {
    for then in [Then::Close, Then::Stall] {
        let settings = Settings {
            stall_timeout: Duration::from_secs(1),
            ..quick()
        };
        let (got, seen) = fetched(settings, move |call, request, content| {
            let reply = honest(request, content);
            if call < 3 {
                reply.after(70_000, then)
            } else {
                reply
            }
        })
        .await;
        assert!(got.expect("all") == content());
        let firsts = ranges(&seen);
        assert_eq!(firsts[0], None);
        assert_eq!(firsts.len(), 4);
        // Every byte that arrived counts, and none is asked for twice.
        assert!(firsts.iter().skip(1).is_sorted(), "{firsts:?}");
        assert_eq!(firsts[3], Some(210_000));
        assert!(
            seen[3]
                .header("range")
                .expect("closed")
                .ends_with("-300006")
        );
    }
}

#[tokio::test]
async fn as_long_as_there_is_progress_there_is_no_end() {
    // Far more interruptions than any number of tries.
    let (got, seen) = fetched(quick(), |_, request, content| {
        let reply = honest(request, content);
        match asked(request) {
            Some((first, _)) if content.len() - first <= 9_000 => reply,
            _ => reply.after(9_000, Then::Close),
        }
    })
    .await;
    assert!(got.expect("all") == content());
    assert_eq!(seen.len(), 34);
}

#[tokio::test]
async fn a_server_that_gives_nothing_is_asked_five_times() {
    for status in [200, 503, 522] {
        let (got, seen) = fetched(quick(), move |_, request, content| match status {
            200 => honest(request, content).after(0, Then::Close),
            status => Reply::new(status),
        })
        .await;
        assert_eq!(got.expect_err("nothing").kind(), Kind::Unavailable);
        assert_eq!(seen.len(), 5, "{status}");
    }
}

#[tokio::test]
async fn one_byte_for_each_connection_ends_too() {
    let (got, seen) = fetched(quick(), |_, request, content| {
        honest(request, content).after(1, Then::Close)
    })
    .await;
    let error = got.expect_err("no progress");
    assert_eq!(error.kind(), Kind::Unavailable);
    assert_eq!(seen.len(), 5);
    assert_eq!(seen[4].header("range"), Some("bytes=4-300006"));
    assert!(error.is_retryable());
    assert!(error.causes().concat().contains("5 of 300007"), "{error:?}");
}

#[tokio::test]
async fn a_trickle_is_a_stall() {
    // Bytes come, but hardly any: each read ends in time, and still the body is broken off.
    let settings = Settings {
        read_timeout: Duration::from_secs(60),
        stall_timeout: Duration::from_millis(300),
        ..quick()
    };
    let (got, seen) = fetched(settings, |_, request, content| {
        honest(request, content).trickle(Duration::from_millis(50))
    })
    .await;
    assert_eq!(got.expect_err("a trickle").kind(), Kind::Timeout);
    assert_eq!(seen.len(), 5);
}

#[tokio::test]
async fn the_layers_of_a_pull_do_not_multiply_the_tries() {
    let server = TestServer::start(|_| Reply::new(503)).await;
    let client = client(Settings {
        max_concurrent_downloads: 50,
        ..quick()
    });
    let repo = repo(&client, &server, ":1");
    let layers: Vec<_> = (0..50).map(|i: u8| layer(&[i; 9])).collect();
    let mut work = futures_util::stream::iter(&layers)
        .map(|layer| all(&repo, layer, 0))
        .buffer_unordered(50);
    while let Some(got) = work.next().await {
        assert_eq!(got.expect_err("down").kind(), Kind::Unavailable);
    }
    // One for each, and the retries of one pull.
    assert!(client.requests() <= 50 + 16, "{}", client.requests());
}

#[tokio::test]
async fn a_token_server_that_is_down_costs_no_more_than_the_registry() {
    let realm: Arc<Mutex<String>> = Arc::default();
    let answer = realm.clone();
    let server = TestServer::start(move |request| {
        if is_token(request) {
            return Reply::new(503);
        }
        let realm = answer.lock().expect("not poisoned").clone();
        Reply::new(401).with("www-authenticate", format!("Bearer realm=\"{realm}\""))
    })
    .await;
    *realm.lock().expect("not poisoned") = server.url("/token");
    let client = client(quick());
    let error = all(&repo(&client, &server, ":1"), &layer(&content()), 0)
        .await
        .expect_err("no token");
    assert_eq!(error.kind(), Kind::Unavailable);
    assert_eq!((client.requests(), client.auth_requests()), (1, 5));
}

#[tokio::test]
async fn a_token_that_ends_within_a_layer_is_renewed_and_no_byte_is_lost() {
    let realm: Arc<Mutex<String>> = Arc::default();
    let answer = realm.clone();
    let tokens = AtomicUsize::new(0);
    let blobs = AtomicUsize::new(0);
    let bytes = content();
    let server = TestServer::start(move |request| {
        if is_token(request) {
            let number = tokens.fetch_add(1, Ordering::SeqCst);
            return Reply::new(200).body(format!(r#"{{"token":"t{number}"}}"#));
        }
        let challenge = || {
            let realm = answer.lock().expect("not poisoned").clone();
            Reply::new(401).with("www-authenticate", format!("Bearer realm=\"{realm}\""))
        };
        match request.authorization() {
            "" => challenge(),
            "Bearer t0" if blobs.load(Ordering::SeqCst) > 0 => challenge(),
            _ => {
                let reply = honest(request, &bytes);
                match blobs.fetch_add(1, Ordering::SeqCst) {
                    0 => reply.after(100_000, Then::Close),
                    _ => reply,
                }
            }
        }
    })
    .await;
    *realm.lock().expect("not poisoned") = server.url("/token");
    let client = client(quick());
    let got = all(&repo(&client, &server, ":1"), &layer(&content()), 0).await;
    assert!(got.expect("all") == content());
    // Asked, with the token, with the old token, with the new one.
    assert_eq!((client.requests(), client.auth_requests()), (4, 2));
    let last = server.seen().pop().expect("some");
    assert_eq!(last.header("range"), Some("bytes=100000-300006"));
}

#[tokio::test]
async fn a_signed_address_that_ends_within_a_layer_is_asked_for_anew() {
    for refusal in [400, 401, 403, 410] {
        let bytes = content();
        let storage = TestServer::start(move |request| match request.path.as_str() {
            "/1?sig=s" => honest(request, &bytes).after(100_000, Then::Close),
            "/2?sig=s" => Reply::new(refusal).body("<Error>Request has expired</Error>"),
            _ => honest(request, &bytes),
        })
        .await;
        let base = storage.url("");
        let calls = AtomicUsize::new(0);
        let server = TestServer::start(move |_| {
            let call = calls.fetch_add(1, Ordering::SeqCst) + 1;
            Reply::new(307).with("location", format!("{base}/{call}?sig=s"))
        })
        .await;
        let client = client(quick());
        let got = all(&repo(&client, &server, ":1"), &layer(&content()), 0).await;
        assert!(got.expect("all") == content(), "{refusal}");
        assert_eq!(server.seen().len(), 3);
        let last = storage.seen().pop().expect("some");
        assert_eq!(last.header("range"), Some("bytes=100000-300006"));
    }
}

#[tokio::test]
async fn denied_for_a_moment_within_a_pull_is_not_the_verdict() {
    let bytes = content();
    let calls = AtomicUsize::new(0);
    let server = TestServer::start(move |request| {
        if request.path.contains("/manifests/") {
            return manifest();
        }
        match calls.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => Reply::new(403).body(r#"{"errors":[{"code":"DENIED"}]}"#),
            _ => honest(request, &bytes),
        }
    })
    .await;
    let client = client(quick());
    // Without the manifest it is.
    let error = all(&repo(&client, &server, ":1"), &layer(&content()), 0).await;
    assert_eq!(error.expect_err("denied").kind(), Kind::Unauthorized);
    let repo = repo(&client, &server, ":1");
    repo.get().await.expect("a manifest");
    assert!(all(&repo, &layer(&content()), 0).await.expect("all") == content());

    // For good, it is, soon.
    let server = TestServer::start(|request| {
        if request.path.contains("/manifests/") {
            return manifest();
        }
        Reply::new(403)
    })
    .await;
    let repo = super::repo(&client, &server, ":1");
    repo.get().await.expect("a manifest");
    let error = all(&repo, &layer(&content()), 0).await.expect_err("denied");
    assert_eq!(error.kind(), Kind::Unauthorized);
    assert_eq!(server.seen().len(), 1 + 3);
}

#[tokio::test]
async fn a_server_that_ignores_ranges_is_not_asked_for_everything_again_and_again() {
    // Twice it may send everything; each time it came further.
    let (got, seen) = fetched(quick(), |call, _, content| {
        let reply = Reply::new(200).body(content);
        if call < 2 {
            reply.after(100_000 * (call + 1), Then::Close)
        } else {
            reply
        }
    })
    .await;
    assert!(got.expect("all") == content());
    assert_eq!(seen.len(), 3);

    let (got, seen) = fetched(quick(), |call, _, content| {
        let cut = (70_000 * (call + 1)).min(content.len() - 1);
        Reply::new(200).body(content).after(cut, Then::Close)
    })
    .await;
    let error = got.expect_err("quadratic");
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(
        error.hint_text().expect("a hint").contains("ranges"),
        "{error:?}"
    );
    assert_eq!(seen.len(), 3);
}

#[tokio::test]
async fn wrong_answers_to_a_range_are_replaced_by_the_whole() {
    for (status, range) in [
        (206, "bytes 100001-300006/300007"),
        (206, "bytes 0-199999/300007"),
        (206, "nonsense"),
        (416, "bytes */300007"),
        (416, ""),
    ] {
        let (got, seen) = fetched(quick(), move |call, request, content| {
            match (call, asked(request)) {
                (0, _) => honest(request, content).after(100_000, Then::Close),
                (_, Some(_)) => Reply::new(status)
                    .with("content-range", range)
                    .body(b"wrong"),
                (_, None) => Reply::new(200).body(content),
            }
        })
        .await;
        assert!(got.expect("all") == content(), "{status} {range}");
        assert_eq!(
            ranges(&seen),
            [None, Some(100_000), None],
            "{status} {range}"
        );
    }
}

#[tokio::test]
async fn a_blob_that_became_another_is_invalid() {
    for (status, range) in [(206, "bytes 100000-300009/300010"), (416, "bytes */100000")] {
        let (got, seen) = fetched(quick(), move |call, request, content| match call {
            0 => honest(request, content).after(100_000, Then::Close),
            _ if asked(request).is_none() => Reply::new(200).body(b"another"),
            _ => Reply::new(status)
                .with("content-range", range)
                .body(b"another"),
        })
        .await;
        let error = got.expect_err("another");
        assert_eq!(error.kind(), Kind::InvalidContent, "{status}: {error:?}");
        assert!(seen.len() <= 3);
    }
}

#[tokio::test]
async fn a_source_tells_that_a_blob_was_put_together() {
    let bytes = content();
    let calls = AtomicUsize::new(0);
    let server = TestServer::start(move |request| {
        let reply = honest(request, &bytes);
        match calls.fetch_add(1, Ordering::SeqCst) {
            1 => reply.after(100_000, Then::Close),
            _ => reply,
        }
    })
    .await;
    let client = client(quick());
    let repo = repo(&client, &server, ":1");
    let layer = layer(&content());
    for pieced in [false, true, false] {
        small_blob(&repo, &layer).await.expect("verified");
        assert_eq!(repo.pieced(&layer), pieced);
    }
}

#[tokio::test]
async fn a_refusal_is_told_before_anybody_reads() {
    let server = TestServer::start(|_| Reply::new(404)).await;
    let client = client(quick());
    let repo = repo(&client, &server, ":1");
    let error: Error = repo
        .blob(&layer(&content()), 0)
        .await
        .err()
        .expect("at once");
    assert_eq!(error.kind(), Kind::NotFound);
}

#[tokio::test]
async fn transfers_at_once_are_limited_for_the_whole_client() {
    let server = TestServer::start(|request| honest(request, &content())).await;
    let client = client(Settings {
        max_concurrent_downloads: 2,
        ..quick()
    });
    // Two references, as two pulls of one process.
    let (one, other) = (repo(&client, &server, ":1"), repo(&client, &server, ":2"));
    let layer = layer(&content());
    let first = one.blob(&layer, 0).await.expect("open");
    let _second = other.blob(&layer, 0).await.expect("open");
    let mut third = other.blob(&layer, 0);
    let waits = tokio::time::timeout(Duration::from_millis(200), &mut third).await;
    assert!(waits.is_err(), "a third one began");
    assert_eq!(client.requests(), 2);
    drop(first);
    drop(third.await.expect("its turn"));
    assert_eq!(client.requests(), 3);
}

#[tokio::test]
async fn the_rate_is_shared_and_waiting_for_it_is_no_stall() {
    // 300 kB each, at 400 kB/s: 1.5 s for both, in waits that are longer than the limit
    // for silence.
    let server = TestServer::start(|request| honest(request, &content())).await;
    let client = client(Settings {
        rate: Some(400_000),
        stall_timeout: Duration::from_millis(100),
        ..quick()
    });
    let (one, other) = (repo(&client, &server, ":1"), repo(&client, &server, ":2"));
    let layer = layer(&content());
    let started = std::time::Instant::now();
    let (a, b) = tokio::join!(all(&one, &layer, 0), all(&other, &layer, 0));
    assert!(a.expect("all") == content() && b.expect("all") == content());
    // All but the burst has its time; a busy machine is only slower.
    assert!(started.elapsed() >= Duration::from_millis(1_300));
    assert_eq!(client.requests(), 2, "taken for a stall");
}
