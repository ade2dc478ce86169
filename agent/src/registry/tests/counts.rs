//! What is counted, and under which name.

use super::{
    super::{Counts, Origin},
    mirrors::{mirrored, nobody},
    resume::{all, honest},
    *,
};

fn requests(counts: &Counts) -> Vec<(Option<u16>, u64)> {
    let requests = counts.requests.iter();
    requests.map(|((_, code), count)| (*code, *count)).collect()
}

fn bytes(counts: &Counts, registry: &str) -> (u64, u64) {
    let of = |origin| {
        let key = (registry.to_owned(), origin);
        counts.bytes.get(&key).copied().unwrap_or_default()
    };
    (of(Origin::Registry), of(Origin::Mirror))
}

#[tokio::test]
async fn all_is_the_registrys_whoever_answers() {
    const LAYER: &[u8] = b"0123456789";
    let upstream = TestServer::start(|request| honest(request, LAYER)).await;
    let mirror = TestServer::start(|request| {
        if request.path.contains("/blobs/") {
            Reply::new(404)
        } else {
            manifest()
        }
    })
    .await;
    let it = mirrored(&upstream, &[&mirror], quick());
    let repo = repo(&it.client, &upstream, ":1");
    repo.head().await.expect("answered").expect("usable");
    repo.get().await.expect("fetched");
    let rest = all(&repo, &layer(LAYER), 4).await.expect("fetched");
    assert_eq!(rest, LAYER[4..]);
    let counts = it.client.counts();
    // HEAD and GET of the manifest, and the blob at both.
    assert_eq!(
        requests(&counts),
        [(Some(200), 2), (Some(206), 1), (Some(404), 1)]
    );
    let sum: u64 = counts.requests.values().sum();
    assert_eq!(sum, it.client.requests());
    let registry = upstream.authority();
    assert!(counts.requests.keys().all(|(name, _)| *name == registry));
    assert_eq!(bytes(&counts, &registry), (6, MANIFEST.len() as u64));
}

#[tokio::test]
async fn where_a_redirect_leads_has_no_name_of_its_own() {
    let far = TestServer::start(|_| Reply::new(200).body("hello")).await;
    let to = format!("http://{}/x", far.authority());
    let server = TestServer::start(move |_| Reply::new(307).with("location", &to)).await;
    let client = client(quick());
    let repo = repo(&client, &server, ":1");
    assert_eq!(
        all(&repo, &layer(b"hello"), 0).await.expect("fetched"),
        b"hello"
    );
    let counts = client.counts();
    assert_eq!(requests(&counts), [(Some(200), 1), (Some(307), 1)]);
    assert_eq!(counts.bytes.len(), 1);
    assert_eq!(bytes(&counts, &server.authority()), (5, 0));
}

#[tokio::test]
async fn what_is_not_answered_and_what_comes_again() {
    // It sends everything, whatever was asked for.
    let server = TestServer::start(|_| Reply::new(200).body("hello")).await;
    let client = client(quick());
    let repo = repo(&client, &server, ":1");
    assert_eq!(
        all(&repo, &layer(b"hello"), 3).await.expect("fetched"),
        b"lo"
    );
    assert_eq!(bytes(&client.counts(), &server.authority()), (5, 0));
    let silent = nobody().await;
    let repo = self::repo(&client, &silent, ":1");
    repo.head().await.expect_err("nobody");
    let counts = client.counts();
    let unanswered = (silent.authority(), None);
    assert!(counts.requests[&unanswered] > 0, "{counts:?}");
}
