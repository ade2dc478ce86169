//! One error type: what failed, on what, why, and the next step.
//!
//! The message says the action and the object in lower case, without a full
//! stop and without its cause; causes are a list of their own, and so is the
//! hint. Context (reference, registry, platform) is added where it is known.

use std::{fmt, io, time::Duration};

use serde::{Deserialize, Serialize};

use crate::kind::Kind;

/// The result of everything in edgepull that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure as it is reported: in text on stderr, in JSON in `error`.
#[derive(Debug, Clone)]
pub struct Error(Box<Detail>);

#[derive(Debug, Clone, Serialize)]
struct Detail {
    kind: Kind,
    message: String,
    /// From the nearest cause to the root cause.
    causes: Vec<String>,
    reference: Option<String>,
    /// The platform of the host that wanted it, e.g. `linux/arm64`.
    host: Option<String>,
    /// The registry host (and port) that was asked.
    registry: Option<String>,
    platform: Option<String>,
    /// What the image record points at, or would: of a failure that is about its content.
    digest: Option<String>,
    wanted: Vec<String>,
    offered: Vec<String>,
    hint: Option<String>,
    retryable: bool,
    /// The far side's own word; a scheduler uses it, the report has it in the hint.
    #[serde(skip)]
    retry_after: Option<Duration>,
    /// It would not have failed with the right time; a scheduler uses it.
    #[serde(skip)]
    of_clock: bool,
    /// What a disk that lost something would look like; whoever can compare looks again.
    #[serde(skip)]
    of_damage: bool,
}

macro_rules! context {
    ($($(#[$doc:meta])* $field:ident),+ $(,)?) => {$(
        $(#[$doc])*
        /// The innermost value is kept: who knows first knows best.
        pub fn $field(mut self, value: impl fmt::Display) -> Self {
            self.0.$field.get_or_insert_with(|| value.to_string());
            self
        }
    )+};
}

impl Error {
    /// A failure of `kind`; `message` says the action and the object.
    pub fn new(kind: Kind, message: impl fmt::Display) -> Self {
        Self(Box::new(Detail {
            kind,
            message: message.to_string(),
            causes: Vec::new(),
            reference: None,
            host: None,
            registry: None,
            platform: None,
            digest: None,
            wanted: Vec::new(),
            offered: Vec::new(),
            hint: None,
            retryable: kind.retryable(),
            retry_after: None,
            of_clock: false,
            of_damage: false,
        }))
    }

    /// Puts a new message above this failure; the old message becomes a cause.
    /// Kind, context and hint stay.
    pub fn during(mut self, message: impl fmt::Display) -> Self {
        let inner = std::mem::replace(&mut self.0.message, message.to_string());
        self.0.causes.insert(0, inner);
        self
    }

    /// Adds one cause at the end of the list.
    pub fn because(mut self, cause: impl fmt::Display) -> Self {
        self.0.causes.push(cause.to_string());
        self
    }

    /// Adds the whole chain of `source` as causes. A text that only repeats the
    /// one before it (many libraries print their source in themselves) is left out.
    pub fn caused_by(mut self, source: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(source);
        while let Some(error) = next {
            let text = error.to_string();
            let known = self
                .0
                .causes
                .last()
                .is_some_and(|last| last.contains(&text));
            if !text.is_empty() && !known {
                self.0.causes.push(text);
            }
            next = error.source();
        }
        self
    }

    context! {
        /// The reference as the user typed it.
        reference,
        /// The platform of this host.
        host,
        /// The registry host that answered or did not.
        registry,
        /// The platform that was asked for.
        platform,
        /// What the image record points at, of a failure that is about its content.
        digest,
        /// The next step for the reader.
        hint,
    }

    /// What was wanted and what is offered, for `platform_missing`.
    pub fn platforms(mut self, wanted: Vec<String>, offered: Vec<String>) -> Self {
        self.0.wanted = wanted;
        self.0.offered = offered;
        self
    }

    /// Changes the kind where an outer layer knows better (a full disk behind an RPC error).
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.0.kind = kind;
        self.0.retryable = kind.retryable();
        self
    }

    /// Says whether a retry may help, where it differs from the kind's rule.
    pub fn retry(mut self, retryable: bool) -> Self {
        self.0.retryable = retryable;
        self
    }

    /// Not before this long from now, as the far side asked.
    pub fn after(mut self, wait: Option<Duration>) -> Self {
        self.0.retry_after = wait;
        self
    }

    /// How long the far side asked to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// This device's clock seems to be behind: a certificate is not valid yet.
    pub fn of_clock(mut self) -> Self {
        self.0.of_clock = true;
        self
    }

    /// Whether the clock being set may be all that is needed.
    pub fn is_of_clock(&self) -> bool {
        self.0.of_clock
    }

    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Whether the same call may succeed later by itself.
    pub fn is_retryable(&self) -> bool {
        self.0.retryable
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    pub fn causes(&self) -> &[String] {
        &self.0.causes
    }

    pub fn wanted(&self) -> &[String] {
        &self.0.wanted
    }

    pub fn offered(&self) -> &[String] {
        &self.0.offered
    }

    /// One more thing to do, after what the hint says already.
    #[must_use]
    pub fn hint_also(mut self, more: impl fmt::Display) -> Self {
        self.0.hint = Some(match self.0.hint.take() {
            Some(hint) => format!("{hint}; {more}"),
            None => more.to_string(),
        });
        self
    }

    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// A failure that was written as JSON: by a daemon that was asked, or into a file by an
    /// earlier run. Without a known kind it is none.
    pub fn from_json(value: &serde_json::Value) -> Option<Self> {
        let text = |key: &str| value.get(key).and_then(serde_json::Value::as_str);
        let list = |key: &str| -> Vec<String> {
            let items = value.get(key).and_then(serde_json::Value::as_array);
            let texts = items.into_iter().flatten().filter_map(|item| item.as_str());
            texts.map(str::to_owned).collect()
        };
        let mut error = Self::new(Kind::from_name(text("kind")?)?, text("message")?);
        error.0.causes = list("causes");
        error.0.wanted = list("wanted");
        error.0.offered = list("offered");
        for (key, field) in [
            ("reference", &mut error.0.reference),
            ("host", &mut error.0.host),
            ("registry", &mut error.0.registry),
            ("platform", &mut error.0.platform),
            ("digest", &mut error.0.digest),
            ("hint", &mut error.0.hint),
        ] {
            *field = text(key).map(str::to_owned);
        }
        if let Some(retryable) = value.get("retryable").and_then(serde_json::Value::as_bool) {
            error.0.retryable = retryable;
        }
        Some(error)
    }

    /// A disk that lost something may be the reason.
    pub fn of_damage(mut self) -> Self {
        self.0.of_damage = true;
        self
    }

    /// Whether a disk that lost something may be the reason.
    pub fn is_of_damage(&self) -> bool {
        self.0.of_damage
    }

    /// Whether it is about the content of the image that a record points at by `digest`.
    pub fn is_about(&self, digest: &str) -> bool {
        self.0.digest.as_deref() == Some(digest)
    }

    /// Whether it tells the same as `other`, in the same words.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.kind() == other.kind()
            && self.message() == other.message()
            && self.causes() == other.causes()
    }

    /// A local file operation failed on `path`.
    pub fn io(action: &str, path: &std::path::Path, source: &io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::NoSpace,
            io::ErrorKind::NotFound => Kind::NotFound,
            _ => Kind::Internal,
        };
        Self::new(kind, format_args!("cannot {action} `{}`", path.display())).caused_by(source)
    }
}

impl Serialize for Error {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// A failure that another process of edgepull reported, read as [`Error::from_json`] does.
impl<'de> Deserialize<'de> for Error {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        Self::from_json(&value).ok_or_else(|| serde::de::Error::custom("it is no failure"))
    }
}

/// The message alone; the causes and the hint are rendered by who prints it.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_of_the_innermost_wins_and_messages_stack() {
        let error = Error::new(Kind::NotFound, "no such tag")
            .registry("r.example")
            .during("cannot resolve `r.example/a:1`")
            .registry("other")
            .because("404");
        assert_eq!(error.message(), "cannot resolve `r.example/a:1`");
        assert_eq!(error.causes(), ["no such tag", "404"]);
        let json = serde_json::to_value(&error).expect("plain data");
        assert_eq!(json["registry"], "r.example");
        assert_eq!(json["kind"], "not_found");
        assert_eq!(json["retryable"], false);
        for key in ["reference", "host", "platform", "wanted", "offered", "hint"] {
            assert!(json.get(key).is_some(), "{key} is always present");
        }
        let back: Error = serde_json::from_value(json.clone()).expect("what was written");
        assert_eq!(serde_json::to_value(&back).expect("plain data"), json);
    }

    #[test]
    fn a_failure_survives_its_json() {
        let error = Error::new(Kind::PlatformMissing, "cannot pull `r.example/a:1`")
            .because("no entry fits")
            .reference("r.example/a:1")
            .platforms(
                vec!["linux/arm64".to_owned()],
                vec!["linux/amd64".to_owned()],
            )
            .hint("ask the publisher")
            .retry(true);
        let json = serde_json::to_value(&error).expect("plain data");
        let back = Error::from_json(&json).expect("the kind is known");
        assert_eq!(serde_json::to_value(&back).expect("plain data"), json);
        for other in [
            serde_json::json!({"kind": "news", "message": "x"}),
            serde_json::json!({"kind": "internal"}),
            serde_json::json!(null),
        ] {
            assert!(Error::from_json(&other).is_none(), "{other}");
        }
    }

    #[test]
    fn a_failure_is_known_again() {
        let error = Error::new(Kind::NotFound, "no such tag").because("404");
        let json = serde_json::to_value(&error).expect("plain data");
        let known = Error::from_json(&json).expect("a failure");
        assert!(known.says_the_same(&error));
        let other = Error::new(Kind::NotFound, "no such tag").because("410");
        assert!(!known.says_the_same(&other));
        assert!(!known.says_the_same(&error.with_kind(Kind::Unavailable)));
    }

    #[test]
    fn a_full_disk_is_no_space() {
        let full = io::Error::from_raw_os_error(28);
        let error = Error::io("write", std::path::Path::new("/x"), &full);
        assert_eq!(error.kind(), Kind::NoSpace);
    }
}
