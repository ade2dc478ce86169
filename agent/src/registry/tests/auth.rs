use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::{super::Environment, *};
use crate::{kind::Kind, source::Source};

/// A registry that wants a bearer token from its own `/token`; `issue` answers there.
async fn bearer(
    accepts: impl Fn(&str) -> bool + Send + Sync + 'static,
    issue: impl Fn(&Received) -> Reply + Send + Sync + 'static,
) -> TestServer {
    TestServer::start(move |request| {
        if is_token(request) {
            return issue(request);
        }
        if accepts(request.authorization()) {
            return if request.path.contains("/blobs/") {
                Reply::new(200).body("hello")
            } else {
                manifest()
            };
        }
        let host = request.header("host").expect("sent");
        Reply::new(401).with(
            "www-authenticate",
            format!(
                r#"Bearer realm="http://{host}/token",service="reg",scope="repository:lib/app:pull""#
            ),
        )
    })
    .await
}

#[tokio::test]
async fn a_token_is_fetched_once_and_used_for_everything() {
    let server = bearer(
        |auth| auth == "Bearer t1",
        |_| Reply::new(200).body(r#"{"token":"t1"}"#),
    )
    .await;
    let client = client(quick());
    let repo = repo(&client, &server, ":1");
    repo.head().await.expect("answered").expect("usable");
    repo.get().await.expect("fetched");
    drop(repo.blob(&layer(b"hello"), 0).await.expect("open"));
    // A second reference of the repository shares it.
    super::repo(&client, &server, ":2")
        .get()
        .await
        .expect("fetched");
    assert_eq!((client.requests(), client.auth_requests()), (5, 1));
    let lines = server.lines();
    assert_eq!(
        lines[1],
        "GET /token?service=reg&scope=repository%3Alib%2Fapp%3Apull"
    );
    assert_eq!(server.seen()[1].authorization(), "");
}

/// The second repository of a server is asked in the way of the first; where that is refused,
/// its own challenge counts, and a public one needs no token at all.
#[tokio::test]
async fn other_repositories_are_asked_in_the_usual_way_first() {
    let server = TestServer::start(|request| {
        let host = request.header("host").expect("sent");
        let realm = |path: &str| {
            let value = format!(r#"Bearer realm="http://{host}{path}",service="reg""#);
            Reply::new(401).with("www-authenticate", value)
        };
        let auth = request.authorization();
        let path = &request.path;
        if path.starts_with("/token") {
            return if path.contains("public") {
                Reply::new(403)
            } else {
                Reply::new(200).body(r#"{"token":"usual"}"#)
            };
        }
        if path.starts_with("/special") {
            return Reply::new(200).body(r#"{"token":"special"}"#);
        }
        let (wanted, where_) = match path {
            path if path.contains("/lib/special/") => ("Bearer special", "/special"),
            path if path.contains("/lib/public") => ("", "/token"),
            _ => ("Bearer usual", "/token"),
        };
        if auth == wanted {
            manifest()
        } else {
            realm(where_)
        }
    })
    .await;
    let client = client(quick());
    let get = async |name: &str| {
        let before = (client.requests(), client.auth_requests());
        let reference = format!("{}/lib/{name}:1", server.authority());
        let reference = Reference::parse(&reference).expect("a reference");
        let got = client.repository(&reference).get().await;
        got.expect("fetched");
        (
            client.requests() - before.0,
            client.auth_requests() - before.1,
        )
    };
    assert_eq!(get("first").await, (2, 1), "refused first");
    assert_eq!(get("second").await, (1, 1), "a token of its own at once");
    assert_eq!(get("public").await, (1, 1), "no token is no end");
    assert_eq!(get("special").await, (3, 2), "its own challenge counts");
    assert_eq!(get("public-too").await, (2, 1), "nor is the wrong one");
}

#[tokio::test]
async fn requests_that_start_together_share_one_token() {
    let server = bearer(
        |auth| auth == "Bearer t1",
        |_| Reply::new(200).body(r#"{"token":"t1"}"#),
    )
    .await;
    let client = client(quick());
    let repo = repo(&client, &server, ":1");
    let all = (0..8).map(|_| repo.get());
    let all = futures_util::future::join_all(all).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(client.auth_requests(), 1);
}

#[tokio::test]
async fn a_token_refused_mid_way_is_renewed_once() {
    let valid = Arc::new(AtomicUsize::new(0));
    let (now, issued) = (valid.clone(), valid.clone());
    let server = bearer(
        move |auth| auth == format!("Bearer t{}", now.load(Ordering::SeqCst)),
        move |_| {
            let token = issued.load(Ordering::SeqCst);
            Reply::new(200).body(format!(r#"{{"access_token":"t{token}","expires_in":300}}"#))
        },
    )
    .await;
    let client = client(quick());
    let repo = repo(&client, &server, ":1");
    repo.get().await.expect("fetched");
    valid.store(1, Ordering::SeqCst);
    drop(repo.blob(&layer(b"hello"), 0).await.expect("renewed"));
    assert_eq!(client.auth_requests(), 2);
    assert_eq!(client.requests(), 4);
}

#[tokio::test]
async fn an_expired_token_is_renewed_before_it_is_refused() {
    let server = bearer(
        |auth| auth == "Bearer t1",
        |_| Reply::new(200).body(r#"{"token":"t1","expires_in":1}"#),
    )
    .await;
    let client = client(quick());
    let repo = repo(&client, &server, ":1");
    repo.get().await.expect("fetched");
    tokio::time::sleep(Duration::from_secs(1)).await;
    repo.get().await.expect("fetched");
    assert_eq!((client.requests(), client.auth_requests()), (3, 2));
}

#[tokio::test]
async fn a_token_that_never_opens_ends_in_a_refusal() {
    let server = bearer(|_| false, |_| Reply::new(200).body(r#"{"token":"t1"}"#)).await;
    let client = client(quick());
    let error = repo(&client, &server, ":1")
        .get()
        .await
        .expect_err("refused");
    assert_eq!(error.kind(), Kind::Unauthorized);
    assert!(
        error
            .hint_text()
            .expect("a hint")
            .contains("private or missing")
    );
    assert_eq!((client.requests(), client.auth_requests()), (2, 1));
}

#[tokio::test]
async fn basic_credentials_answer_both_challenges() {
    // me:pw
    const HEADER: &str = "Basic bWU6cHc=";
    let server = TestServer::start(|request| {
        if request.authorization() == HEADER {
            manifest()
        } else {
            Reply::new(401).with("www-authenticate", "Basic realm=\"x\"")
        }
    })
    .await;
    let client_basic = client(with(Credentials::user("me", "pw")));
    let repo_basic = repo(&client_basic, &server, ":1");
    repo_basic.get().await.expect("fetched");
    repo_basic.get().await.expect("fetched");
    assert_eq!(
        (client_basic.requests(), client_basic.auth_requests()),
        (3, 0)
    );

    let server = bearer(
        |auth| auth == "Bearer mine",
        |request| {
            if request.authorization() == HEADER {
                Reply::new(200).body(r#"{"token":"mine"}"#)
            } else {
                Reply::new(401)
            }
        },
    )
    .await;
    let client_bearer = client(with(Credentials::user("me", "pw")));
    repo(&client_bearer, &server, ":1")
        .get()
        .await
        .expect("fetched");
}

#[tokio::test]
async fn basic_without_credentials_is_unauthorized() {
    let server =
        TestServer::start(|_| Reply::new(401).with("www-authenticate", "Basic realm=x")).await;
    let client = client(quick());
    let error = repo(&client, &server, ":1")
        .get()
        .await
        .expect_err("refused");
    assert_eq!(error.kind(), Kind::Unauthorized);
    assert_eq!(client.requests(), 1);
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let server = bearer(
        |auth| auth == "Bearer exchanged",
        |request| {
            if request.method == "POST" && request.body.contains("refresh_token=secret-refresh") {
                Reply::new(200).body(r#"{"access_token":"exchanged"}"#)
            } else {
                Reply::new(400)
            }
        },
    )
    .await;
    let client = client(with(Credentials::user("<token>", "secret-refresh")));
    repo(&client, &server, ":1").get().await.expect("fetched");
    assert!(
        server.seen()[1]
            .body
            .starts_with("grant_type=refresh_token&service=reg")
    );
}

#[tokio::test]
async fn stale_credentials_do_not_lock_out_of_public_images() {
    // Refused by the token server.
    let server = bearer(
        |auth| auth == "Bearer anyone",
        |request| {
            if request.authorization().is_empty() {
                Reply::new(200).body(r#"{"token":"anyone"}"#)
            } else {
                Reply::new(403)
            }
        },
    )
    .await;
    let client_a = client(with(Credentials::user("me", "old")));
    let repo_a = repo(&client_a, &server, ":1");
    repo_a.get().await.expect("anonymously");
    repo_a.get().await.expect("anonymously at once");
    assert_eq!((client_a.requests(), client_a.auth_requests()), (3, 2));

    // Refused by the registry, as an expired ECR login is.
    let server = TestServer::start(|request| match request.authorization() {
        "" if request.path.ends_with("/manifests/1") && request.method == "GET" => manifest(),
        "" => Reply::new(401).with("www-authenticate", "Basic realm=x"),
        _ => Reply::new(403),
    })
    .await;
    let client_b = client(with(Credentials::user("me", "old")));
    let repo_b = repo(&client_b, &server, ":1");
    assert_eq!(repo_b.head().await.expect("answered"), None);
    repo_b.get().await.expect("anonymously");
}

#[tokio::test]
async fn credentials_that_do_not_open_are_named() {
    let server = bearer(
        |_| false,
        |request| {
            if request.authorization().is_empty() {
                Reply::new(401).body(r#"{"errors":[{"code":"DENIED","message":"go away"}]}"#)
            } else {
                Reply::new(403)
            }
        },
    )
    .await;
    let client = client(with(Credentials::user("me", "hunter2")));
    let error = repo(&client, &server, ":1")
        .get()
        .await
        .expect_err("refused");
    assert_eq!(error.kind(), Kind::Unauthorized);
    let json = serde_json::to_string(&error).expect("plain data");
    assert!(
        json.contains("--creds") && json.contains("go away"),
        "{json}"
    );
    assert!(!json.contains("hunter2"));
}

#[tokio::test]
async fn the_token_server_is_retried_and_may_be_down() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let server = bearer(
        |auth| auth == "Bearer t1",
        move |_| {
            if count.fetch_add(1, Ordering::SeqCst) == 0 {
                Reply::new(503)
            } else {
                Reply::new(200).body(r#"{"token":"t1"}"#)
            }
        },
    )
    .await;
    let client_a = client(quick());
    repo(&client_a, &server, ":1").get().await.expect("fetched");
    assert_eq!(client_a.auth_requests(), 2);

    for reply in [
        Reply::new(500),
        Reply::new(404),
        Reply::new(200).body("nonsense"),
        Reply::new(200).body("<html><title>Log in</title>"),
    ] {
        let shown = format!("{reply:?}");
        let server = bearer(|_| false, move |_| reply.clone()).await;
        let error = repo(&client(quick()), &server, ":1")
            .get()
            .await
            .expect_err("down");
        assert_eq!(error.kind(), Kind::Unavailable, "{shown}");
    }
}

#[tokio::test]
async fn credentials_never_go_over_http_to_another_host() {
    let other = TestServer::start(|_| Reply::new(200).body(r#"{"token":"t"}"#)).await;
    let realm = other.url("/token").replace("127.0.0.1", "localhost");
    let server = TestServer::start(move |_| {
        Reply::new(401).with("www-authenticate", format!("Bearer realm=\"{realm}\""))
    })
    .await;
    let client = client(with(Credentials::user("me", "pw")));
    let error = repo(&client, &server, ":1")
        .get()
        .await
        .expect_err("refused");
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(
        error.causes().concat().contains("over plain http"),
        "{error:?}"
    );
    assert!(other.seen().is_empty());
}

#[tokio::test]
async fn a_login_that_expires_is_looked_up_again() {
    for status in [401, 403] {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("auth.json");
        let calls = AtomicUsize::new(0);
        // `bWU6b2xk` is `me:old`, `bWU6bmV3` is `me:new`.
        let server = TestServer::start(move |request| {
            let call = calls.fetch_add(1, Ordering::SeqCst);
            match request.authorization() {
                "Basic bWU6b2xk" if call < 2 => manifest(),
                "Basic bWU6bmV3" if call > 2 => manifest(),
                "" => Reply::new(401).with("www-authenticate", "Basic realm=x"),
                _ if status == 401 => Reply::new(401).with("www-authenticate", "Basic realm=x"),
                // As Amazon ECR does.
                _ => Reply::new(403).body("Your authorization token has expired"),
            }
        })
        .await;
        let login = |auth: &str| {
            let text = format!(
                r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#,
                server.authority()
            );
            std::fs::write(&path, text).expect("written");
        };
        login("bWU6b2xk");
        let credentials = Credentials::discover(None, Some(&path), &Environment::default());
        let client = client(with(credentials));
        let repo = repo(&client, &server, ":1");
        repo.get().await.expect("with the old one");
        login("bWU6bmV3");
        repo.get().await.expect("with the new one");
        // Asked, old, refused, new: nobody else was tried.
        assert_eq!(client.requests(), 4, "{status}");
        assert!(client.take_notices().is_empty());
    }
}
