//! The token endpoint of the distribution protocol: what it is asked, and its answer.

use std::time::Duration;

use reqwest::{Method, Url, header::HeaderValue};
use serde::Deserialize;

use super::{
    auth::Subject,
    body::{self, SMALL_BODY_TIME},
    challenge::Bearer,
    credentials::Found,
    docker_config::Login,
    endpoint,
    failure::{self, Target, What},
    retry::Budget,
    said,
    transport::{Ask, Transport},
};
use crate::{
    error::{Error, Result},
    kind::Kind,
    redact::Secret,
};

/// A token is a few kilobytes.
const MAX_ANSWER: usize = 256 << 10;
/// What the specification assumes when the server says nothing.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// However long a server promises, ask again after this.
const MAX_LIFETIME: Duration = Duration::from_secs(12 * 3600);
/// How we call ourselves in the form.
const CLIENT_ID: &str = "edgepull";

/// A bearer token, and for how long from now it may be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) secret: Secret,
    pub(super) lifetime: Duration,
}

#[derive(Deserialize)]
struct Raw {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<serde_json::Value>,
}

/// Reads the answer. `issued_at` is not looked at: the clock here may be years off,
/// and a lifetime from now on is all that is needed.
pub(super) fn parse(bytes: &[u8]) -> Result<Token, &'static str> {
    // The parser's own message may quote the token.
    let raw: Raw =
        serde_json::from_slice(bytes).map_err(|_| "the answer is not the JSON of a token")?;
    let secret = [raw.access_token, raw.token]
        .into_iter()
        .flatten()
        .find(|text| !text.is_empty())
        .ok_or("the answer has neither `token` nor `access_token`")?;
    if !secret.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("the token has characters that no header may have");
    }
    let seconds = match raw.expires_in {
        Some(serde_json::Value::Number(number)) => number.as_u64(),
        Some(serde_json::Value::String(text)) => text.trim().parse().ok(),
        _ => None,
    };
    let lifetime = seconds
        .filter(|seconds| *seconds > 0)
        .map_or(DEFAULT_LIFETIME, Duration::from_secs)
        .min(MAX_LIFETIME);
    Ok(Token {
        secret: Secret::new(secret),
        lifetime,
    })
}

/// Gets a token for `scope` from the realm of the challenge.
pub(super) async fn fetch(
    transport: &Transport,
    subject: &Subject,
    bearer: &Bearer,
    scopes: &[String],
    found: Option<&Found>,
    budget: &mut Budget,
) -> Result<Token> {
    let target = Target {
        registry: subject.domain.clone(),
        what: What::Token {
            repository: subject.path.clone(),
        },
    };
    let login = found.map(|found| &found.login);
    let mut url = realm(&target, subject, &bearer.realm, login.is_some())?;
    let mut authorization = None;
    let mut form = None;
    match login {
        Some(Login::Identity(token)) => form = Some(refresh_form(bearer, scopes, token)),
        login => {
            let mut query = url.query_pairs_mut();
            if let Some(service) = &bearer.service {
                query.append_pair("service", service);
            }
            for scope in scopes {
                query.append_pair("scope", scope);
            }
            drop(query);
            if let Some(Login::Password { user, password }) = login {
                authorization = Some(basic(user, password)?);
            }
        }
    }
    let ask = Ask {
        target,
        method: if form.is_some() {
            Method::POST
        } else {
            Method::GET
        },
        url,
        accept: "application/json",
        range: None,
        form,
        route: Some(subject.route.clone()),
        hurried: subject.hurried,
    };
    loop {
        let mut answer = transport.send(&ask, authorization.as_ref(), budget).await?;
        if !answer.status().is_success() {
            return Err(failure::token_refused(
                &ask.target,
                answer,
                found.map(|found| found.source.clone()),
            )
            .await);
        }
        match body::read(&mut answer.response, MAX_ANSWER, SMALL_BODY_TIME).await {
            Ok(bytes) if said::is_web_page(answer.header("content-type"), &bytes) => {
                return Err(failure::web_page(&ask.target, &answer.url, &bytes));
            }
            Ok(bytes) => {
                return parse(&bytes).map_err(|why| {
                    failure::unusable(&ask.target, "the token server's answer cannot be used")
                        .because(why)
                });
            }
            Err(fault) => {
                let failed = failure::body(&ask.target, &answer.url, fault, MAX_ANSWER);
                match budget.grant(failed.advice) {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => return Err(failed.error),
                }
            }
        }
    }
}

/// The address of the token server, if it may be asked.
fn realm(target: &Target, subject: &Subject, realm: &str, with_login: bool) -> Result<Url> {
    let refuse = |why: String| {
        // Not `unauthorized`, which would be tried again anonymously: somebody has
        // credentials for this registry, and must learn why they are not used.
        failure::unusable(target, why)
            .retry(false)
            .hint("the registry, or a proxy before it, is set up wrongly; edgepull sends credentials over https only")
    };
    let url = Url::parse(realm)
        .ok()
        .filter(Url::has_host)
        .filter(|url| url.username().is_empty() && url.password().is_none())
        .ok_or_else(|| refuse("the registry names an unusable token server".to_owned()))?;
    match url.scheme() {
        "http" if !subject.plain_http => Err(refuse(format!(
            "the registry is on https, but its token server {} is on plain http",
            endpoint::authority(&url)
        ))),
        "http" if with_login && url.host_str() != subject.host.as_deref() => Err(refuse(format!(
            "the registry asks for credentials to be sent over plain http to another host, {}",
            endpoint::authority(&url)
        ))),
        "https" | "http" => Ok(url),
        _ => Err(refuse(
            "the registry names an unusable token server".to_owned(),
        )),
    }
}

/// The `OAuth2` exchange of an identity token (distribution's auth/oauth specification).
fn refresh_form(bearer: &Bearer, scopes: &[String], token: &Secret) -> Secret {
    // A URL's query is the same encoding as a form.
    let mut scratch = Url::parse("https://form.invalid/").expect("a constant URL");
    {
        let mut pairs = scratch.query_pairs_mut();
        pairs.append_pair("grant_type", "refresh_token");
        if let Some(service) = &bearer.service {
            pairs.append_pair("service", service);
        }
        pairs.append_pair("client_id", CLIENT_ID);
        pairs.append_pair("scope", &scopes.join(" "));
        pairs.append_pair("refresh_token", token.reveal());
    }
    Secret::new(scratch.query().unwrap_or_default())
}

/// The header of Basic authentication (RFC 7617).
pub(super) fn basic(user: &str, password: &Secret) -> Result<HeaderValue> {
    use base64::Engine;
    let pair = format!("{user}:{}", password.reveal());
    let text = base64::engine::general_purpose::STANDARD.encode(pair);
    header(&format!("Basic {text}"))
}

/// A header value that no log prints.
pub(super) fn header(text: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text).map_err(|_| {
        Error::new(
            Kind::Unauthorized,
            "the stored credentials fit into no header",
        )
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lifetime(text: &str) -> u64 {
        parse(text.as_bytes()).expect("a token").lifetime.as_secs()
    }

    #[test]
    fn answers_are_read_in_all_forms() {
        assert_eq!(lifetime(r#"{"token":"a"}"#), 60);
        assert_eq!(lifetime(r#"{"access_token":"a","expires_in":300}"#), 300);
        assert_eq!(lifetime(r#"{"token":"a","expires_in":"90"}"#), 90);
        assert_eq!(lifetime(r#"{"token":"a","expires_in":-5}"#), 60);
        assert_eq!(lifetime(r#"{"token":"a","expires_in":0}"#), 60);
        assert_eq!(lifetime(r#"{"token":"a","expires_in":1e300}"#), 60);
        assert_eq!(
            lifetime(r#"{"token":"a","expires_in":18446744073709551615}"#),
            12 * 3600
        );
        let both = parse(br#"{"token":"a","access_token":"b"}"#).expect("a token");
        assert_eq!(both.secret.reveal(), "b");
    }

    #[test]
    fn unusable_answers_are_refused_without_quoting_them() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"token":""}"#,
            r#"{"token":"a\nb"}"#,
            r#"{"token":7777}"#,
        ] {
            let error = parse(text.as_bytes()).expect_err(text);
            assert!(!error.contains("7777"));
        }
    }

    #[test]
    fn realms_must_not_weaken_the_transport() {
        let reference = crate::oci::Reference::parse("r.example/a/b").expect("valid");
        let endpoint = endpoint::Endpoint::registry("https", "r.example").expect("a host");
        let subject = |plain_http| Subject {
            plain_http,
            ..Subject::new(reference.repository(), &endpoint)
        };
        let target = Target {
            registry: "r.example".into(),
            what: What::Token {
                repository: "a/b".into(),
            },
        };
        let allowed =
            |text: &str, plain, login| realm(&target, &subject(plain), text, login).is_ok();
        assert!(allowed("https://auth.example/t", false, true));
        assert!(allowed("https://auth.example/t", true, true));
        assert!(!allowed("http://r.example/t", false, false));
        assert!(allowed("http://r.example:81/t", true, true));
        assert!(allowed("http://auth.example/t", true, false));
        assert!(!allowed("http://auth.example/t", true, true));
        for bad in ["/token", "file:///etc", "https://u:p@a/t", "", "https://"] {
            assert!(!allowed(bad, true, false), "{bad}");
        }
    }

    #[test]
    fn the_refresh_form_is_encoded() {
        let bearer = Bearer {
            realm: String::new(),
            service: Some("a&b".to_owned()),
            scope: None,
        };
        let form = refresh_form(&bearer, &["s".to_owned()], &Secret::new("x=y"));
        assert_eq!(
            form.reveal(),
            "grant_type=refresh_token&service=a%26b&client_id=edgepull&scope=s&refresh_token=x%3Dy"
        );
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            drop(parse(&bytes));
        }
    }
}
