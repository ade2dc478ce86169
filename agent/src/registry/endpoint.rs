//! One server that answers for a registry.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use reqwest::{Url, header::HeaderMap};

use super::{proxy::Via, tls::HostTls};
use crate::{
    error::{Error, Result},
    kind::Kind,
};

/// Where the distribution API starts on an ordinary registry.
pub(super) const API_ROOT: &str = "/v2";

/// What a server is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// It may say which digest a tag has.
    pub resolve: bool,
    /// It may deliver content by digest.
    pub pull: bool,
}

impl Capabilities {
    /// The registry itself.
    pub const ALL: Self = Self {
        resolve: true,
        pull: true,
    };

    /// Whether it may do all that `other` may.
    pub(super) fn include(self, other: Self) -> bool {
        (self.resolve || !other.resolve) && (self.pull || !other.pull)
    }
}

/// A server for the repositories of one registry: scheme, host, port, path prefix.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Scheme, host and port, with the path `/`.
    base: Url,
    prefix: String,
    capabilities: Capabilities,
    /// The registry whose content is wanted, where the server is another one: mirrors
    /// of several registries tell them apart by it.
    namespace: Option<Arc<str>>,
    route: Arc<Route>,
}

/// How a server is connected to, and what it wants to see in each request.
#[derive(Debug, Clone)]
pub(super) struct Route {
    /// What the rest is for; nothing of it leaves this origin, but for trusted CAs.
    pub(super) origin: String,
    pub(super) headers: HeaderMap,
    pub(super) tls: Option<Arc<HostTls>>,
    pub(super) dial_timeout: Option<Duration>,
    /// The configured way, also to where this server sends us; `None`: as for all.
    pub(super) via: Option<Via>,
    /// The server is another one than the registry.
    pub(super) mirror: bool,
}

impl Endpoint {
    /// A registry at `authority` (`host`, `host:port`, `[v6]:port`).
    pub fn registry(scheme: &str, authority: &str) -> Result<Self> {
        let base = Url::parse(&format!("{scheme}://{authority}/"))
            .ok()
            .filter(|url| url.host_str().is_some_and(|host| !host.is_empty()))
            .ok_or_else(|| {
                Error::new(
                    Kind::InvalidReference,
                    format_args!("`{authority}` is no registry host"),
                )
            })?;
        Ok(Self::at(base, API_ROOT.to_owned(), Capabilities::ALL))
    }

    /// A server at `base`, whose repositories begin below `prefix`.
    pub(super) fn at(base: Url, prefix: String, capabilities: Capabilities) -> Self {
        let route = Arc::new(Route {
            origin: origin(&base),
            headers: HeaderMap::new(),
            tls: None,
            dial_timeout: None,
            via: None,
            mirror: false,
        });
        Self {
            base,
            prefix,
            capabilities,
            namespace: None,
            route,
        }
    }

    /// It serves content of the registry `domain`, and is another server.
    pub(super) fn mirroring(mut self, domain: &str) -> Self {
        self.namespace = Some(domain.into());
        self.route = Arc::new(Route {
            mirror: true,
            ..(*self.route).clone()
        });
        self
    }

    pub(super) fn with_route(
        mut self,
        headers: HeaderMap,
        tls: Option<Arc<HostTls>>,
        dial_timeout: Option<Duration>,
    ) -> Self {
        self.route = Arc::new(Route {
            origin: self.origin(),
            headers,
            tls,
            dial_timeout,
            ..(*self.route).clone()
        });
        self
    }

    /// On a way that is configured for it, or for the registry it is asked for.
    pub(super) fn via(mut self, via: Option<&Via>) -> Self {
        if let Some(via) = via {
            self.route = Arc::new(Route {
                via: Some(via.clone()),
                ..(*self.route).clone()
            });
        }
        self
    }

    /// What this server may be asked for.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Host and port as they are shown: `registry-1.docker.io`, `[fd00::1]:5000`.
    pub fn authority(&self) -> String {
        authority(&self.base)
    }

    /// Whether it is another server than the registry of the reference. Nobody's
    /// credentials for the registry go there.
    pub(super) fn is_mirror(&self) -> bool {
        self.namespace.is_some()
    }

    pub(super) fn route(&self) -> &Arc<Route> {
        &self.route
    }

    /// Whether both are the same place.
    pub(super) fn is_at(&self, other: &Self) -> bool {
        self.base == other.base && self.prefix == other.prefix
    }

    /// Address and prefix, for the log.
    pub(super) fn shown(&self) -> String {
        format!("{}{}", self.origin(), self.prefix)
    }

    /// The address of a manifest (by tag or digest) or a blob.
    pub(super) fn url(
        &self,
        repository: &str,
        collection: &str,
        name: &str,
        namespaced: bool,
    ) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/{repository}/{collection}/{name}", self.prefix));
        if namespaced && let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }

    /// Whether what is sent there can be read on the way.
    pub(super) fn is_plain_http(&self) -> bool {
        self.base.scheme() == "http"
    }

    pub(super) fn host(&self) -> Option<&str> {
        self.base.host_str()
    }

    /// Scheme, host and port; what credentials and tokens belong to.
    pub(super) fn origin(&self) -> String {
        origin(&self.base)
    }
}

pub(super) fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}
/// Host and, unless it is the scheme's own, port.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Whether the host is this machine itself, told by its name or literal address
/// alone: what a name resolves to is not under our control.
pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || bare.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
        || bare.parse::<Ipv6Addr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_keep_port_prefix_and_digest() {
        let endpoint = Endpoint::registry("http", "[::1]:5000").expect("a host");
        assert_eq!(
            endpoint.url("a/b", "manifests", "sha256:00", true).as_str(),
            "http://[::1]:5000/v2/a/b/manifests/sha256:00"
        );
        assert_eq!(endpoint.authority(), "[::1]:5000");
        let plain = Endpoint::registry("https", "r.example:443").expect("a host");
        assert_eq!(plain.authority(), "r.example");
        assert_eq!(plain.origin(), "https://r.example");
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for bad in ["1.2.3.999", "256.1.1.1", "a b"] {
            assert!(Endpoint::registry("https", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn loopback_is_told_by_the_written_host() {
        for (host, expected) in [
            ("localhost", true),
            ("127.0.0.1:5000", true),
            ("127.9.9.9", true),
            ("[::1]:5000", true),
            ("0x7f.1", true),
            ("localhost.example", false),
            ("10.0.0.1", false),
            ("[::2]", false),
        ] {
            let url = Url::parse(&format!("http://{host}/")).expect("a URL");
            assert_eq!(is_loopback(&url), expected, "{host}");
        }
    }
}
