//! The HTTP clients: one for all servers without settings of their own, and one more
//! for each kind of settings, made when it is first needed.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::Url;

use super::{
    client::Settings,
    endpoint::{self, Route},
    proxy::{Proxies, Via},
    tls::{self, HostTls, Trust},
};
use crate::{
    error::{Error, Result},
    kind::Kind,
};

/// Idle connections kept for one host; a pull rarely fetches more blobs at once.
const MAX_IDLE: usize = 8;
/// Clients kept; beyond it they are made anew.
const MAX_CLIENTS: usize = 32;
/// Where another server follows, nobody waits for this one as long as for the last.
const HURRIED_CONNECT: Duration = Duration::from_secs(5);
const HURRIED_READ: Duration = Duration::from_secs(15);

/// HTTP/2: all requests to a host share one connection, and so does the next try. Where its peer
/// is gone without a word (a NAT that forgot it, another network), only a ping that nobody
/// answers tells; asked for after so long without a byte, and in time for a stalled transfer's
/// next try to find the connection gone.
const PING_AFTER: Duration = Duration::from_secs(10);
const PONG_WITHIN: Duration = Duration::from_secs(15);

/// What makes two clients different.
#[derive(PartialEq, Eq)]
struct Key {
    tls: Option<Arc<HostTls>>,
    connect: Duration,
    read: Duration,
    via: Option<Via>,
}

pub(super) struct Clients {
    trust: Trust,
    user_agent: String,
    connect: Duration,
    read: Duration,
    proxies: Arc<Proxies>,
    made: Mutex<Vec<(Key, reqwest::Client)>>,
}

impl Clients {
    pub(super) fn new(settings: &Settings, trust: Trust) -> Self {
        Self {
            trust,
            user_agent: settings.user_agent.clone(),
            connect: settings.connect_timeout,
            read: settings.read_timeout,
            proxies: Arc::new(if settings.system_proxy {
                Proxies::of_process()
            } else {
                Proxies::default()
            }),
            made: Mutex::default(),
        }
    }

    /// The proxy on the way to `url` on behalf of `route`, as it may be shown.
    pub(super) fn proxy(&self, url: &Url, route: Option<&Route>) -> Option<String> {
        let proxy = match route.and_then(|route| route.via.as_ref()) {
            Some(via) => via.url(),
            None => self.proxies.of(url),
        };
        proxy.map(endpoint::authority)
    }

    /// The client for a request to `url` on behalf of `route`. What is particular to the
    /// route's server holds for its own origin; only the authorities that are trusted
    /// for it are trusted where it sends us, too.
    pub(super) fn of(
        &self,
        url: &Url,
        route: Option<&Route>,
        hurried: bool,
    ) -> Result<reqwest::Client> {
        let home = route.is_some_and(|route| route.origin == endpoint::origin(url));
        let tls = route.and_then(|route| route.tls.as_ref()).and_then(|tls| {
            if home || tls.is_trust_only() {
                Some(tls.clone())
            } else {
                let tls = tls.trust_only();
                (!tls.ca.is_empty()).then(|| Arc::new(tls))
            }
        });
        if url.scheme() == "https"
            && let Some(problem) = &self.trust.problem
            && !tls.as_ref().is_some_and(|tls| tls.stands_alone())
        {
            return Err(problem.clone());
        }
        let (connect, read) = if hurried {
            (
                self.connect.min(HURRIED_CONNECT),
                self.read.min(HURRIED_READ),
            )
        } else {
            (self.connect, self.read)
        };
        let given = route.and_then(|route| route.dial_timeout);
        let key = Key {
            // Without TLS nothing of it matters, and a client is shared.
            tls: tls.filter(|_| url.scheme() == "https"),
            connect: given.filter(|_| home).unwrap_or(connect),
            read,
            via: route.and_then(|route| route.via.clone()),
        };
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, client)) = made.iter().find(|(known, _)| *known == key) {
            return Ok(client.clone());
        }
        let client = self.make(&key)?;
        if made.len() >= MAX_CLIENTS {
            made.clear();
        }
        made.push((key, client.clone()));
        Ok(client)
    }

    fn make(&self, key: &Key) -> Result<reqwest::Client> {
        let config = tls::client(&self.trust.roots, key.tls.as_deref())?;
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .user_agent(&self.user_agent)
            .connect_timeout(key.connect)
            .read_timeout(key.read)
            .pool_max_idle_per_host(MAX_IDLE)
            .http2_keep_alive_interval(PING_AFTER)
            .http2_keep_alive_timeout(PONG_WITHIN)
            .no_proxy();
        if let Some(via) = &key.via {
            let via = via.url().cloned();
            builder = builder.proxy(reqwest::Proxy::custom(move |_| via.clone()));
        } else if !self.proxies.is_empty() {
            let proxies = self.proxies.clone();
            builder = builder.proxy(reqwest::Proxy::custom(move |url| proxies.of(url).cloned()));
        }
        builder.build().map_err(|error| {
            Error::new(Kind::Internal, "cannot set up the HTTP client").caused_by(&error)
        })
    }
}
