//! The docker `config.json` format, which podman's `auth.json` and kubelet share.

use std::collections::BTreeMap;

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::Deserialize;

use crate::redact::Secret;

/// Docker Hub's key, older than the name `docker.io`.
pub(super) const HUB_KEY: &str = "https://index.docker.io/v1/";

/// Files in the wild come with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What somebody may present to a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Login {
    Password {
        user: String,
        password: Secret,
    },
    /// A refresh token, exchanged at the token server by POST.
    Identity(Secret),
    /// A bearer token for the registry itself.
    Registry(Secret),
}

/// A parsed `config.json`.
#[derive(Deserialize, Default)]
pub(super) struct DockerConfig {
    #[serde(default, deserialize_with = "null_is_default")]
    auths: BTreeMap<String, Option<Entry>>,
    #[serde(default, rename = "credsStore", deserialize_with = "null_is_default")]
    creds_store: String,
    #[serde(default, rename = "credHelpers", deserialize_with = "null_is_default")]
    cred_helpers: BTreeMap<String, String>,
}

// Plain strings, turned into secrets at once; no Debug here, so nothing can print them.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    #[serde(deserialize_with = "null_is_default")]
    auth: String,
    #[serde(deserialize_with = "null_is_default")]
    username: String,
    #[serde(deserialize_with = "null_is_default")]
    password: String,
    #[serde(deserialize_with = "null_is_default")]
    identitytoken: String,
    #[serde(deserialize_with = "null_is_default")]
    registrytoken: String,
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// The program that has the credentials, and the key to ask it for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HelperCall {
    pub(super) program: String,
    pub(super) key: String,
}

impl DockerConfig {
    /// Reads the file. The error says where, not what: the text may be a secret.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::default());
        }
        serde_json::from_slice(bytes).map_err(|error| {
            format!(
                "no valid docker configuration: {:?} error at line {}, column {}",
                error.classify(),
                error.line(),
                error.column()
            )
        })
    }

    /// The login that the file itself holds for `domain/path`, the most specific key
    /// first. `Err` is an entry that cannot be read.
    pub(super) fn entry(&self, domain: &str, path: &str) -> Result<Option<Login>, String> {
        self.auths
            .iter()
            .filter_map(|(key, entry)| Some((fit(key, domain, path)?, key, entry.as_ref()?)))
            .filter(|(_, _, entry)| !entry.is_empty())
            .max_by_key(|(fit, ..)| *fit)
            .map(|(_, key, entry)| entry.login().ok_or_else(|| entry_fault(key)))
            .transpose()
    }

    /// The helper for `domain`, if the file names one.
    pub(super) fn helper(&self, domain: &str) -> Option<HelperCall> {
        let own = self
            .cred_helpers
            .iter()
            .filter_map(|(key, program)| Some((fit(key, domain, "")?, key, program)))
            .max_by_key(|(fit, ..)| *fit)
            .map(|(_, key, program)| HelperCall {
                program: program.clone(),
                key: key.clone(),
            });
        let store = || HelperCall {
            program: self.creds_store.clone(),
            key: if is_hub(domain) {
                HUB_KEY.to_owned()
            } else {
                domain.to_owned()
            },
        };
        own.or_else(|| (!self.creds_store.is_empty()).then(store))
            .filter(|call| !call.program.is_empty())
    }
}

fn entry_fault(key: &str) -> String {
    let key: String = key.chars().filter(|c| !c.is_control()).take(120).collect();
    format!("the entry `{key}` has an `auth` that is not base64 of USER:PASSWORD")
}

impl Entry {
    /// Docker Desktop writes `{}` beside a `credsStore`.
    fn is_empty(&self) -> bool {
        [
            &self.auth,
            &self.username,
            &self.identitytoken,
            &self.registrytoken,
        ]
        .iter()
        .all(|text| text.is_empty())
    }

    fn login(&self) -> Option<Login> {
        if !self.identitytoken.is_empty() {
            return Some(Login::Identity(Secret::new(&self.identitytoken)));
        }
        if !self.registrytoken.is_empty() {
            return Some(Login::Registry(Secret::new(&self.registrytoken)));
        }
        if self.auth.is_empty() {
            return Some(password(&self.username, &self.password));
        }
        let decoded = BASE64.decode(self.auth.trim()).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (user, secret) = text.split_once(':')?;
        Some(password(user, secret.trim_matches('\0')))
    }
}

/// A user name of `<token>` marks an identity token (docker's helper protocol).
pub(super) fn password(user: &str, secret: &str) -> Login {
    if user == "<token>" {
        Login::Identity(Secret::new(secret))
    } else {
        Login::Password {
            user: user.to_owned(),
            password: Secret::new(secret),
        }
    }
}

/// How well a key fits: `None` not at all, else higher is more specific. Keys are a
/// host, a URL of old clients (whose path says nothing), or, as podman writes them,
/// `host/namespace`, which then holds for that namespace only.
fn fit(key: &str, domain: &str, path: &str) -> Option<usize> {
    let (is_url, rest) = match key.split_once("://") {
        Some((_, rest)) => (true, rest),
        None => (false, key),
    };
    let (host, namespace) = rest.split_once('/').unwrap_or((rest, ""));
    if !same_host(host, domain) {
        return None;
    }
    let namespace = namespace.trim_end_matches('/');
    if is_url || matches!(namespace, "" | "v1" | "v2") {
        return Some(usize::from(key == domain));
    }
    let within = path
        .strip_prefix(namespace)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    within.then(|| namespace.len().saturating_add(1))
}

fn same_host(a: &str, b: &str) -> bool {
    fn bare(host: &str) -> &str {
        host.strip_suffix(":443").unwrap_or(host)
    }
    (is_hub(a) && is_hub(b)) || bare(a).eq_ignore_ascii_case(bare(b))
}

/// The names of Docker Hub; all of them mean one account.
fn is_hub(host: &str) -> bool {
    matches!(
        host,
        "docker.io" | "index.docker.io" | "registry-1.docker.io"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> DockerConfig {
        DockerConfig::parse(text.as_bytes()).expect("a configuration")
    }

    fn user(login: Result<Option<Login>, String>) -> Option<String> {
        match login.expect("readable") {
            Some(Login::Password { user, password }) => {
                Some(format!("{user}:{}", password.reveal()))
            }
            Some(Login::Identity(token)) => Some(format!("identity {}", token.reveal())),
            Some(Login::Registry(token)) => Some(format!("registry {}", token.reveal())),
            None => None,
        }
    }

    #[test]
    fn keys_fit_as_docker_and_podman_mean_them() {
        let config = config(
            r#"{"auths":{
                "https://index.docker.io/v1/":{"auth":"aHViOnB3"},
                "quay.io":{"username":"all","password":"1"},
                "quay.io/team":{"username":"team","password":"2"},
                "quay.io/team/app":{"username":"app","password":"3"},
                "https://old.example/v2/":{"auth":"b2xkOnB3AAA"},
                "r.example:5000":{"username":"port","password":"4"},
                "tls.example:443":{"username":"tls","password":"5"},
                "acr.example":{"auth":"MDAwOg==","identitytoken":"refresh"},
                "tok.example":{"registrytoken":"bearer"},
                "empty.example":{}, "null.example":null
            }}"#,
        );
        for (domain, path, expected) in [
            ("docker.io", "library/nginx", Some("hub:pw")),
            ("registry-1.docker.io", "library/nginx", Some("hub:pw")),
            ("quay.io", "other/x", Some("all:1")),
            ("quay.io", "team/x", Some("team:2")),
            ("quay.io", "team/app", Some("app:3")),
            ("quay.io", "teams/app", Some("all:1")),
            ("old.example", "a", Some("old:pw")),
            ("r.example:5000", "a", Some("port:4")),
            ("r.example", "a", None),
            ("tls.example", "a", Some("tls:5")),
            ("acr.example", "a", Some("identity refresh")),
            ("tok.example", "a", Some("registry bearer")),
            ("empty.example", "a", None),
            ("null.example", "a", None),
        ] {
            assert_eq!(
                user(config.entry(domain, path)).as_deref(),
                expected,
                "{domain}/{path}"
            );
        }
    }

    #[test]
    fn helpers_go_by_host_then_store() {
        let config = config(
            r#"{"credsStore":"pass","credHelpers":{"aws.example":"ecr-login","none.example":""}}"#,
        );
        let call = |domain| config.helper(domain).map(|c| (c.program, c.key));
        assert_eq!(
            call("aws.example"),
            Some(("ecr-login".to_owned(), "aws.example".to_owned()))
        );
        assert_eq!(
            call("docker.io"),
            Some(("pass".to_owned(), HUB_KEY.to_owned()))
        );
        assert_eq!(call("none.example"), None);
    }

    #[test]
    fn faults_never_quote_the_file() {
        let error = DockerConfig::parse(br#"{"auths":"hunter2"}"#)
            .err()
            .expect("not a map");
        assert!(!error.contains("hunter2"), "{error}");
        let config = config(r#"{"auths":{"a.example":{"auth":"hunter2!"}}}"#);
        let error = config.entry("a.example", "x").expect_err("no base64");
        assert!(!error.contains("hunter2"), "{error}");
        assert!(DockerConfig::parse(b" \n").is_ok());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            drop(DockerConfig::parse(&bytes));
        }

        #[test]
        fn any_entry_is_read_or_refused(key in "[a-z./:]{0,20}", auth in "[A-Za-z0-9+/=:]{0,24}") {
            let text = serde_json::json!({"auths": {key: {"auth": auth}}}).to_string();
            let config = DockerConfig::parse(text.as_bytes()).expect("well-formed");
            drop(config.entry("docker.io", "library/nginx"));
        }
    }
}
