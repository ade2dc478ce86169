//! Image references, parsed as docker does (distribution/reference grammar).

use std::fmt;

use super::{Digest, ParseDigestError};

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DOMAIN: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
/// Longest repository path, as in the reference grammar.
const MAX_NAME: usize = 255;

/// Domain and path of a repository: `docker.io/library/nginx`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    domain: String,
    path: String,
}

/// A registry reference: a repository with a tag, a digest, or both.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    typed: String,
    repository: Repository,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseReferenceError {
    #[error("the reference is empty")]
    Empty,
    #[error("a reference has no scheme; write `{0}` without it (and use --plain-http for http)")]
    Scheme(String),
    #[error("the repository name must be lower case: try `{0}`")]
    UpperCase(String),
    #[error("`{0}` is no registry host")]
    Domain(String),
    #[error(
        "`{0}` is no repository path (lower-case letters and digits, separated by `.`, `_`, `__`, `-` or `/`)"
    )]
    Path(String),
    #[error("the repository path is longer than {MAX_NAME} characters")]
    TooLong,
    #[error(
        "`{0}` is no tag (up to 128 letters, digits, `_`, `.` and `-`, not starting with `.` or `-`)"
    )]
    Tag(String),
    #[error("the part after `@` is no digest")]
    Digest(#[from] ParseDigestError),
    #[error("64 hexadecimal digits are an image id, not a name; write `NAME@sha256:{0}`")]
    BareId(String),
}

impl Repository {
    /// Registry host with port as the user means it: `docker.io`, `[fd00::1]:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)
    }
}

impl Reference {
    /// Parses what a user or a file says. `nginx` is `docker.io/library/nginx:latest`.
    pub fn parse(input: &str) -> Result<Self, ParseReferenceError> {
        if input.is_empty() {
            return Err(ParseReferenceError::Empty);
        }
        if let Some((_, rest)) = input.split_once("://") {
            return Err(ParseReferenceError::Scheme(shown(rest)));
        }
        if input.len() == 64
            && input
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err(ParseReferenceError::BareId(input.to_owned()));
        }
        let (name_tag, digest) = match input.split_once('@') {
            Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
            None => (input, None),
        };
        // A colon after the last slash starts the tag; one before it belongs to the port.
        let after_slash = name_tag.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match name_tag.get(after_slash..).and_then(|last| last.find(':')) {
            Some(at) => {
                let (name, tag) = name_tag.split_at(after_slash + at);
                (name, Some(tag.strip_prefix(':').unwrap_or(tag).to_owned()))
            }
            None => (name_tag, None),
        };
        if let Some(tag) = &tag
            && !is_tag(tag)
        {
            return Err(ParseReferenceError::Tag(shown(tag)));
        }
        let (domain, path) = split_domain(name);
        if !is_domain(&domain) {
            return Err(ParseReferenceError::Domain(shown(&domain)));
        }
        if path.len() > MAX_NAME {
            return Err(ParseReferenceError::TooLong);
        }
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ParseReferenceError::UpperCase(shown(&input.to_lowercase())));
        }
        if !is_path(&path) {
            return Err(ParseReferenceError::Path(shown(&path)));
        }
        let tag = tag.or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self {
            typed: input.to_owned(),
            repository: Repository { domain, path },
            tag,
            digest,
        })
    }

    /// What the user typed.
    pub fn typed(&self) -> &str {
        &self.typed
    }

    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The name that goes into `/v2/<path>/manifests/<here>`: the digest wins.
    pub fn target(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        }
    }

    /// The name of the image record, as CRI and docker write it: `NAME:TAG`, or
    /// `NAME@DIGEST` with the tag dropped.
    pub fn record_name(&self) -> String {
        match &self.digest {
            Some(digest) => format!("{}@{digest}", self.repository),
            None => format!("{}:{}", self.repository, self.target()),
        }
    }
}

/// The record name: full domain, path, and tag or digest.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.record_name())
    }
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(120).collect()
}

/// The first component is a host if it looks like one: a dot, a colon, `localhost`,
/// or an upper-case letter (which no path may have).
fn split_domain(name: &str) -> (String, String) {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.to_lowercase() != first =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    };
    let domain = if domain == LEGACY_DOMAIN {
        DEFAULT_DOMAIN
    } else {
        domain
    };
    let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
        format!("{OFFICIAL_PREFIX}{path}")
    } else {
        path.to_owned()
    };
    (domain.to_owned(), path)
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = if let Some(rest) = domain.strip_prefix('[') {
        let Some((address, rest)) = rest.split_once(']') else {
            return false;
        };
        // The grammar allows no zone and no mapped IPv4 address.
        let is_v6 = address.parse::<std::net::Ipv6Addr>().is_ok()
            && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
        if !is_v6 {
            return false;
        }
        match rest {
            "" => return true,
            port => (None, port.strip_prefix(':')),
        }
    } else {
        match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        }
    };
    let host_ok = host.is_none_or(|host| {
        host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
    });
    let port_ok = match (host, port) {
        (None, None) => false,
        (_, None) => true,
        (_, Some(port)) => {
            !port.is_empty()
                && port.bytes().all(|b| b.is_ascii_digit())
                && port.parse::<u16>().is_ok()
        }
    };
    host_ok && port_ok
}

fn is_path(path: &str) -> bool {
    !path.is_empty() && path.split('/').all(is_component)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let bytes = component.as_bytes();
    let is_alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !bytes.first().is_some_and(is_alnum) || !bytes.last().is_some_and(is_alnum) {
        return false;
    }
    bytes.split(is_alnum).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    })
}

fn is_tag(tag: &str) -> bool {
    tag.len() <= 128
        && tag
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && tag
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn short_names_are_completed_as_docker_does() {
        for (input, record) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("me/app", "docker.io/me/app:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("ghcr.io/a/b/c:v1", "ghcr.io/a/b/c:v1"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("[fd00::1]:5000/app:x", "[fd00::1]:5000/app:x"),
            ("[::1]/app", "[::1]/app:latest"),
            ("a__b--c/e.f_g", "docker.io/a__b--c/e.f_g:latest"),
        ] {
            assert_eq!(
                Reference::parse(input).map(|r| r.record_name()),
                Ok(record.to_owned()),
                "{input}"
            );
        }
    }

    #[test]
    fn a_digest_drops_the_tag_from_the_record() {
        let reference = Reference::parse(&format!("quay.io/a/b:1@{DIGEST}")).expect("valid");
        assert_eq!(reference.record_name(), format!("quay.io/a/b@{DIGEST}"));
        assert_eq!(reference.tag(), Some("1"));
        assert_eq!(reference.target(), DIGEST);
    }

    #[test]
    fn what_is_no_reference_is_refused_with_its_reason() {
        use ParseReferenceError as E;
        assert_eq!(Reference::parse(""), Err(E::Empty));
        assert_eq!(
            Reference::parse("https://a.b/c"),
            Err(E::Scheme("a.b/c".to_owned()))
        );
        assert_eq!(
            Reference::parse("a.b/C:1"),
            Err(E::UpperCase("a.b/c:1".to_owned()))
        );
        for bad in [
            "a//b",
            "/a",
            "a/",
            "a..b",
            "a___b",
            "-a",
            "a:",
            "a:-x",
            "a b",
            "a@sha256:1",
            "a.b:port/c",
            "a.b:99999/c",
            "[::1%eth0]/a",
            "[::ffff:1.2.3.4]/a",
            "x:y:z",
            "[/a",
            "[]/a",
            "..",
            ":",
            "@",
            "ä/b",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
        assert!(matches!(
            Reference::parse(&"a".repeat(64)),
            Err(E::BareId(_))
        ));
        assert_eq!(Reference::parse(&"a/".repeat(200)), Err(E::TooLong));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_and_a_record_name_parses_to_itself(input in "\\PC{0,60}") {
            if let Ok(reference) = Reference::parse(&input) {
                let again = Reference::parse(&reference.record_name()).expect("a record name is a reference");
                proptest::prop_assert_eq!(again.record_name(), reference.record_name());
            }
        }

        #[test]
        fn likely_texts_too(input in "[a-zA-Z0-9.:/@_\\[\\]-]{0,40}") {
            if let Ok(reference) = Reference::parse(&input) {
                let again = Reference::parse(&reference.record_name()).expect("a record name is a reference");
                proptest::prop_assert_eq!(again.record_name(), reference.record_name());
            }
        }
    }
}
