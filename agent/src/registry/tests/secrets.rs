//! Nothing that may hold a secret prints it, however it is printed.

use std::fmt::Debug;

use super::{
    super::{
        auth::{Subject, Who},
        docker_config::{DockerConfig, Login},
        endpoint::Endpoint,
        failure::Target,
        token,
        transport::Ask,
    },
    *,
};
use crate::{
    redact::Secret,
    registry::Environment,
    source::{Source, small_blob},
};

const SECRET: &str = "hunter2";
/// The same as Basic sends it.
const ENCODED: &str = "bWU6aHVudGVyMg";

#[track_caller]
fn hides(text: &str) {
    assert!(!text.contains(SECRET), "{text}");
    assert!(!text.contains(ENCODED), "{text}");
}

#[track_caller]
fn is_silent(value: &impl Debug) {
    hides(&format!("{value:?}"));
    hides(&format!("{value:#?}"));
}

#[test]
fn no_type_prints_its_secret() {
    let secret = || Secret::new(SECRET);
    is_silent(&secret());
    for login in [
        Login::Password {
            user: "me".to_owned(),
            password: secret(),
        },
        Login::Identity(secret()),
        Login::Registry(secret()),
    ] {
        is_silent(&login);
    }
    let credentials = Credentials::user("me", SECRET);
    is_silent(&credentials);
    let file = format!(r#"{{"auths":{{"r.example":{{"auth":"{ENCODED}=="}}}}}}"#);
    let environment = Environment {
        docker_auth_config: Some(Secret::new(&file)),
        ..Environment::default()
    };
    is_silent(&environment);
    let discovered = Credentials::discover(Some("me:hunter2"), None, &environment);
    is_silent(&discovered);
    let config = DockerConfig::parse(file.as_bytes()).expect("a configuration");
    is_silent(&config.entry("r.example", "a/b").expect("a login"));
    let settings = with(credentials);
    is_silent(&settings);
    let client = client(settings);
    is_silent(&client);
    let reference = Reference::parse("r.example/a/b:1").expect("a reference");
    let repo = client.repository(&reference);
    is_silent(&repo);
    let answer = format!(r#"{{"token":"{SECRET}","refresh_token":"{SECRET}"}}"#);
    is_silent(&token::parse(answer.as_bytes()));
    is_silent(&token::basic("me", &secret()).expect("a header"));
    is_silent(&token::header(&format!("Bearer {SECRET}")).expect("a header"));
    let endpoint = Endpoint::registry("https", "r.example").expect("a host");
    let mut header = reqwest::header::HeaderValue::from_static(SECRET);
    header.set_sensitive(true);
    let headers = std::iter::once((reqwest::header::AUTHORIZATION, header)).collect();
    let endpoint = endpoint.with_route(headers, None, None);
    is_silent(&endpoint);
    is_silent(&Subject::new(reference.repository(), &endpoint));
    is_silent(&Who::default());
    is_silent(&Ask {
        target: Target::manifest(&reference, "1"),
        method: reqwest::Method::POST,
        url: endpoint.url("a/b", "manifests", "1", true),
        accept: "*/*",
        range: None,
        form: Some(secret()),
        route: Some(endpoint.route().clone()),
        hurried: false,
    });
}

/// Errors of every phase: the token server, the registry, the storage behind it.
#[tokio::test]
async fn no_error_tells_a_secret() {
    let storage = TestServer::start(|request| match request.path.as_str() {
        path if path.starts_with("/cut") => Reply::new(200)
            .with("content-length", 10)
            .body("0123456789")
            .after(3, super::super::test_server::Then::Close),
        _ => Reply::new(403).body("expired"),
    })
    .await;
    for way in ["token", "refused", "storage", "cut", "nowhere"] {
        let base = storage.url("");
        let server = TestServer::start(move |request| {
            if is_token(request) {
                return Reply::new(403).body(r#"{"message":"wrong password"}"#);
            }
            let signed =
                |path| Reply::new(307).with("location", format!("{base}{path}?sig=hunter2"));
            match (way, request.authorization()) {
                ("token", _) => Reply::new(401).with(
                    "www-authenticate",
                    format!(
                        "Bearer realm=\"http://{}/token\"",
                        request.header("host").expect("a host")
                    ),
                ),
                (_, "") => Reply::new(401).with("www-authenticate", "Basic realm=x"),
                ("refused", _) => Reply::new(403),
                ("storage", _) => signed("/x"),
                ("cut", _) => signed("/cut"),
                _ => {
                    Reply::new(307).with("location", "http://me:hunter2@127.0.0.1:1/x?sig=hunter2")
                }
            }
        })
        .await;
        let client = client(with(Credentials::user("me", SECRET)));
        let repo = repo(&client, &server, ":1");
        let layer = layer(b"0123456789");
        let error = small_blob(&repo, &layer).await.expect_err(way);
        hides(&serde_json::to_string(&error).expect("plain data"));
        is_silent(&error);
        hides(&error.to_string());
        hides(&client.take_notices().concat());
        hides(repo.name());
    }
}
