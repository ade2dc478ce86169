use super::*;
use crate::{kind::Kind, oci::DocumentKind, source::Source};

#[tokio::test]
async fn head_and_get_say_the_same_of_a_tag() {
    let server = TestServer::start(|_| manifest()).await;
    let client = client(quick());
    let repo = repo(&client, &server, ":1");
    let head = repo.head().await.expect("answered").expect("usable");
    let document = repo.get().await.expect("fetched");
    assert_eq!(head, document.descriptor);
    assert!(matches!(document.kind, DocumentKind::Manifest(_)));
    assert_eq!(
        server.lines(),
        [
            "HEAD /v2/lib/app/manifests/1",
            "GET /v2/lib/app/manifests/1"
        ]
    );
    assert_eq!((client.requests(), client.auth_requests()), (2, 0));
    let seen = server.seen();
    let accept = seen[0].header("accept").expect("sent");
    assert_eq!(accept.split(", ").count(), 7);
    assert!(accept.ends_with("*/*") && !accept.contains("q="));
    assert_eq!(seen[0].header("accept-encoding"), Some("identity"));
    assert!(
        seen[0]
            .header("user-agent")
            .expect("sent")
            .starts_with("edgepull/")
    );
    assert_eq!(repo.name(), server.authority());
}

#[tokio::test]
async fn an_unusable_head_is_none() {
    let digest = Digest::of(MANIFEST.as_bytes());
    for reply in [
        Reply::new(405),
        Reply::new(404),
        Reply::new(403),
        Reply::new(500),
        Reply::new(200)
            .with("content-type", MediaType::OCI_MANIFEST)
            .body(MANIFEST),
        manifest().with("content-length", 0),
        manifest().with("content-length", 5 << 20),
        manifest().with("content-encoding", "gzip"),
        Reply::new(200)
            .with("docker-content-digest", &digest)
            .body(MANIFEST),
        Reply::new(200)
            .with("docker-content-digest", &digest)
            .with("content-type", "text/html")
            .body(MANIFEST),
        Reply::new(200)
            .with("docker-content-digest", "sha256:short")
            .with("content-type", MediaType::OCI_MANIFEST)
            .body(MANIFEST),
    ] {
        let shown = format!("{reply:?}");
        let server = TestServer::start(move |_| reply.clone()).await;
        let client = client(quick());
        let found = repo(&client, &server, ":1").head().await.expect("answered");
        assert_eq!(found, None, "{shown}");
        assert_eq!(client.requests(), 1, "{shown}");
    }
}

#[tokio::test]
async fn a_digest_reference_must_match() {
    let server = TestServer::start(|_| manifest()).await;
    let client = client(quick());
    let right = Digest::of(MANIFEST.as_bytes());
    let document = repo(&client, &server, &format!("@{right}")).get().await;
    assert_eq!(document.expect("fetched").descriptor.digest, right);
    let wrong = repo(&client, &server, &format!("@{}", Digest::of(b"other")));
    assert_eq!(wrong.head().await.expect("answered"), None);
    let error = wrong.get().await.expect_err("another document");
    assert_eq!(error.kind(), Kind::InvalidContent);
    assert!(error.message().contains(right.as_str()));
}

#[tokio::test]
async fn for_a_tag_the_body_counts_whatever_the_header_says() {
    let server = TestServer::start(|_| {
        Reply::new(200)
            .with("docker-content-digest", Digest::of(b"other"))
            .body(MANIFEST)
    })
    .await;
    let document = repo(&client(quick()), &server, ":1").get().await;
    assert_eq!(
        document.expect("fetched").descriptor.digest,
        Digest::of(MANIFEST.as_bytes())
    );
}

#[tokio::test]
async fn content_types_may_be_vague_but_not_contradict() {
    for (content_type, ok) in [
        ("text/plain", true),
        ("application/json; charset=utf-8", true),
        (MediaType::DOCKER_MANIFEST, true),
        (MediaType::OCI_INDEX, false),
    ] {
        let server = TestServer::start(move |_| {
            Reply::new(200)
                .with("content-type", content_type)
                .body(MANIFEST)
        })
        .await;
        let found = repo(&client(quick()), &server, ":1").get().await;
        match found {
            Ok(_) => assert!(ok, "{content_type}"),
            Err(error) => {
                assert!(!ok, "{content_type}: {error}");
                assert_eq!(error.kind(), Kind::InvalidContent);
            }
        }
    }
}

#[tokio::test]
async fn schema_1_is_refused_by_name() {
    let server = TestServer::start(|_| {
        Reply::new(200)
            .with(
                "content-type",
                "application/vnd.docker.distribution.manifest.v1+prettyjws",
            )
            .body(r#"{"schemaVersion":1,"fsLayers":[]}"#)
    })
    .await;
    let error = repo(&client(quick()), &server, ":1")
        .get()
        .await
        .expect_err("old");
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.message().contains("schema 1"));
}

#[tokio::test]
async fn a_child_is_what_its_parent_says() {
    let server = TestServer::start(|_| manifest()).await;
    let client = client(quick());
    let repo = repo(&client, &server, ":1");
    let digest = Digest::of(MANIFEST.as_bytes());
    let size = MANIFEST.len() as u64;
    let mut child = Descriptor::new(MediaType::OciManifest, digest, size);
    repo.document(&child).await.expect("fetched");
    child.size = 0;
    repo.document(&child).await.expect("a size of 0 is unknown");
    child.size = size + 1;
    let error = repo.document(&child).await.expect_err("another size");
    assert_eq!(error.kind(), Kind::InvalidContent);
    child.size = size;
    child.media_type = MediaType::OciIndex;
    let error = repo.document(&child).await.expect_err("no index");
    assert_eq!(error.kind(), Kind::InvalidContent);
    child.media_type = MediaType::OciManifest;
    child.digest = Digest::of(b"other");
    let error = repo.document(&child).await.expect_err("another digest");
    assert_eq!(error.kind(), Kind::InvalidContent);
    assert!(error.hint_text().is_some());
}

#[tokio::test]
async fn content_in_the_descriptor_needs_no_request() {
    use base64::Engine;
    use futures_util::TryStreamExt;
    let server = TestServer::start(|_| manifest()).await;
    let client = client(quick());
    let repo = repo(&client, &server, ":1");
    let encode = |bytes: &[u8]| Some(base64::engine::general_purpose::STANDARD.encode(bytes));
    let digest = Digest::of(MANIFEST.as_bytes());
    let mut child = Descriptor::new(MediaType::OciManifest, digest, MANIFEST.len() as u64);
    child.data = encode(MANIFEST.as_bytes());
    repo.document(&child).await.expect("there");
    let stream = repo.blob(&child, 3).await.expect("there");
    let chunks: Vec<bytes::Bytes> = stream.try_collect().await.expect("bytes");
    assert_eq!(chunks.concat(), MANIFEST.as_bytes()[3..]);
    assert_eq!(client.requests(), 0);
    child.data = encode(b"something else");
    repo.document(&child).await.expect("fetched instead");
    assert_eq!(client.requests(), 1);
}

#[tokio::test]
async fn more_than_four_mebibytes_are_refused_framed_or_not() {
    for unframed in [false, true] {
        let server = TestServer::start(move |_| {
            let reply = Reply::new(200).body(vec![b' '; (4 << 20) + 1]);
            if unframed { reply.unframed() } else { reply }
        })
        .await;
        let client = client(quick());
        let error = repo(&client, &server, ":1")
            .get()
            .await
            .expect_err("too large");
        assert_eq!(error.kind(), Kind::InvalidContent);
        assert!(error.causes().concat().contains("larger than"), "{error:?}");
        assert_eq!(client.requests(), 1);
    }
}

#[tokio::test]
async fn a_registry_that_refuses_lists_is_asked_without_them() {
    let server = TestServer::start(|request| {
        if request.header("accept").expect("sent").contains("index") {
            Reply::new(406)
        } else {
            manifest()
        }
    })
    .await;
    let client = client(quick());
    repo(&client, &server, ":1").get().await.expect("the one");
    assert_eq!(client.requests(), 2);
    assert!(client.take_notices().concat().contains("refuses lists"));
}
