//! The text of a `hosts.toml`: pure, so that it can be fuzzed. Files are read elsewhere.
//!
//! containerd logs a fault in it and goes on without it; here it is an error with its
//! line, because a mirror or a CA that silently does not count is found out too late.

use std::{ops::Range, time::Duration};

use reqwest::{
    Url,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use toml::de::DeValue;

use crate::{
    registry::endpoint::{API_ROOT, Capabilities},
    table::{Fault, Node, Reader, Value, document, duration, shown},
};

/// More servers than anybody lists; each costs at least a request where all fail.
const MAX_HOSTS: usize = 64;
/// Headers that belong to the connection or to the content; ours alone.
const OWN_HEADERS: [&str; 9] = [
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "te",
    "upgrade",
    "range",
    "accept-encoding",
    "expect",
];

/// A file as it was understood.
#[derive(Debug, Default)]
pub(in crate::registry) struct HostsFile {
    /// The last to be asked; `None`: the registry itself.
    pub(super) server: Option<Address>,
    /// The keys outside any `[host]` table: the server's.
    pub(super) own: Config,
    /// In the order of the file.
    pub(super) hosts: Vec<(Address, Config)>,
    /// What was read and does not count: for the user, with its line.
    pub(super) ignored: Vec<String>,
}

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// Scheme, host and port, with the path `/`.
    pub(super) base: Url,
    /// Without a slash at its end.
    pub(super) prefix: String,
}

/// The settings of one server; paths as they are written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) capabilities: Option<Capabilities>,
    pub(super) ca: Vec<String>,
    /// Certificate and key; without a key it is in the certificate's file.
    pub(super) client: Vec<(String, Option<String>)>,
    pub(super) skip_verify: bool,
    pub(super) headers: HeaderMap,
    pub(super) dial_timeout: Option<Duration>,
    override_path: bool,
}

/// Reads the text.
pub(in crate::registry) fn parse(text: &str) -> Result<HostsFile, Fault> {
    let table = document(text)?;
    let mut reader = Reader::new(text);
    let root = Node::root(&table);
    let own = reader.config(&root, &["server", "host"])?;
    let server = match root.get("server") {
        Some((key, value)) => {
            let text = reader.string(&key, value)?;
            // An empty one is none, as for containerd.
            if text.is_empty() {
                None
            } else {
                Some(reader.address(&key, &value.span(), text, own.override_path)?)
            }
        }
        None => None,
    };
    let mut hosts = Vec::new();
    if let Some((key, value)) = root.get("host") {
        for (name, span, table) in reader.table(&key, value)?.in_order() {
            if hosts.len() == MAX_HOSTS {
                return Err(reader.fault(&key, &span, format!("more than {MAX_HOSTS} hosts")));
            }
            let path = format!("{key}.\"{}\"", shown(name));
            let node = reader.table(&path, table)?;
            let config = reader.config(&node, &[])?;
            let address = reader.address(&path, &span, name, config.override_path)?;
            hosts.push((address, config));
        }
    }
    Ok(HostsFile {
        server,
        own,
        hosts,
        ignored: reader.into_ignored(),
    })
}

impl Reader<'_> {
    /// The settings in a table. Keys that nobody knows do not count, and are told:
    /// they may be a later containerd's.
    fn config(&mut self, node: &Node<'_, '_>, besides: &[&str]) -> Result<Config, Fault> {
        let mut config = Config::default();
        for (name, span, value) in node.in_order() {
            let key = node.name(name);
            match name {
                "capabilities" => config.capabilities = self.capabilities(&key, value)?,
                "ca" => {
                    config.ca = self.files(&key, value)?;
                }
                "client" => config.client = self.clients(&key, value)?,
                "skip_verify" => config.skip_verify = self.boolean(&key, value)?,
                "override_path" => config.override_path = self.boolean(&key, value)?,
                "header" => config.headers = self.headers(&key, value)?,
                "dial_timeout" => {
                    let text = self.string(&key, value)?;
                    let wait = duration(text).ok_or_else(|| {
                        self.fault(&key, &value.span(), "a time like `5s` or `1m30s` is wanted")
                    })?;
                    config.dial_timeout = Some(wait).filter(|wait| !wait.is_zero());
                }
                other if besides.contains(&other) => {}
                _ => self.ignore(&key, &span, "unknown key"),
            }
        }
        Ok(config)
    }

    fn capabilities(&self, key: &str, value: &Value<'_>) -> Result<Option<Capabilities>, Fault> {
        let DeValue::Array(list) = value.get_ref() else {
            return Err(self.wanted(key, value, "a list of strings"));
        };
        let mut able = Capabilities {
            resolve: false,
            pull: false,
        };
        for item in list {
            match self.string(key, item)?.to_ascii_lowercase().as_str() {
                "pull" => able.pull = true,
                "resolve" => able.resolve = true,
                // Nothing is pushed here, nor asked who refers to an image.
                "push" | "referrers" => {}
                other => {
                    let what = format!(
                        "`{}` is no capability; there are pull, resolve, push and referrers",
                        shown(other)
                    );
                    return Err(self.fault(key, &item.span(), what));
                }
            }
        }
        Ok((!list.is_empty()).then_some(able))
    }

    fn files(&self, key: &str, value: &Value<'_>) -> Result<Vec<String>, Fault> {
        let names = self.strings(key, value)?;
        names
            .into_iter()
            .map(|name| self.file(key, value, name))
            .collect()
    }

    fn file(&self, key: &str, value: &Value<'_>, name: &str) -> Result<String, Fault> {
        if name.is_empty() || name.contains('\0') {
            return Err(self.fault(key, &value.span(), "an empty name of a file"));
        }
        Ok(name.to_owned())
    }

    /// One file, a list of files, or a list of pairs of files.
    fn clients(
        &self,
        key: &str,
        value: &Value<'_>,
    ) -> Result<Vec<(String, Option<String>)>, Fault> {
        const WANTED: &str = "a string, a list of strings or a list of pairs of strings";
        match value.get_ref() {
            DeValue::String(name) => Ok(vec![(self.file(key, value, name)?, None)]),
            DeValue::Array(list) => list
                .iter()
                .map(|item| match item.get_ref() {
                    DeValue::String(name) => Ok((self.file(key, item, name)?, None)),
                    DeValue::Array(_) => {
                        let names = self.files(key, item)?;
                        let mut names = names.into_iter();
                        match (names.next(), names.next(), names.next()) {
                            (Some(certificate), Some(key), None) => Ok((certificate, Some(key))),
                            _ => Err(self.fault(
                                key,
                                &item.span(),
                                "a pair of a certificate and its key is wanted",
                            )),
                        }
                    }
                    _ => Err(self.wanted(key, item, WANTED)),
                })
                .collect(),
            _ => Err(self.wanted(key, value, WANTED)),
        }
    }

    /// Values may be secrets: no message has them, and `Debug` masks them.
    fn headers(&mut self, key: &str, value: &Value<'_>) -> Result<HeaderMap, Fault> {
        let mut headers = HeaderMap::new();
        for (name, span, value) in self.table(key, value)?.in_order() {
            let key = format!("{key}.{}", shown(name));
            let Ok(header) = HeaderName::from_bytes(name.as_bytes()) else {
                return Err(self.fault(&key, &span, "no name that a header may have"));
            };
            let values = self.strings(&key, value)?;
            if OWN_HEADERS.contains(&header.as_str()) {
                self.ignore(&key, &span, "this header cannot be set");
                continue;
            }
            for text in values {
                let mut text = HeaderValue::from_str(text).map_err(|_| {
                    self.fault(&key, &value.span(), "characters that no header may have")
                })?;
                text.set_sensitive(true);
                headers.try_append(header.clone(), text).map_err(|_| {
                    self.fault(&key, &span, "more headers than any request may have")
                })?;
            }
        }
        Ok(headers)
    }

    /// A URL, or a bare name, which means https. The path is where the API begins, or
    /// with `override_path` where repositories begin.
    fn address(
        &mut self,
        key: &str,
        at: &Range<usize>,
        text: &str,
        override_path: bool,
    ) -> Result<Address, Fault> {
        let with_scheme = if text.contains("://") {
            text.to_owned()
        } else {
            format!("https://{text}")
        };
        let mut base = Url::parse(&with_scheme)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"))
            .filter(|url| url.host_str().is_some_and(|host| !host.is_empty()))
            .ok_or_else(|| {
                self.fault(
                    key,
                    at,
                    "an address like `https://mirror.example:5000` is wanted",
                )
            })?;
        if !base.username().is_empty() || base.password().is_some() {
            self.ignore(
                "an address with a user",
                at,
                "the user does not count; credentials belong into a docker config.json",
            );
            // Cannot fail for http and https with a host.
            let _ = base.set_username("");
            let _ = base.set_password(None);
        }
        let mut prefix = String::new();
        for part in base.path().split('/').filter(|part| !part.is_empty()) {
            prefix.push('/');
            prefix.push_str(part);
        }
        if !override_path && !prefix.ends_with(API_ROOT) {
            prefix.push_str(API_ROOT);
        }
        base.set_path("/");
        base.set_query(None);
        base.set_fragment(None);
        Ok(Address { base, prefix })
    }
}
