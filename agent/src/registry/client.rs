//! The client: settings, connections and grants, shared by all repositories.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use super::{
    auth::Auth, blob::Flow, counts::Counts, credentials::Credentials, hosts::Hosts,
    notices::Notices, pace::Pace, proxy::Ways, quota::Quota, repo::Repo, retry::Policy, tls::Trust,
    transport::Transport,
};
use crate::{oci::Reference, source::BLOBS_AT_ONCE};

/// Long enough for a satellite link, short enough to try another host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Caches that fetch or build on demand may be silent for a while.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// A body that has begun is resumed, so that its silence need not be borne for long.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
const USER_AGENT: &str = concat!("edgepull/", env!("CARGO_PKG_VERSION"));

/// How registries are talked to.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Plain http for every registry (`--plain-http`).
    pub plain_http: bool,
    /// containerd's trees of `hosts.toml` files, the first that knows a registry counts.
    pub hosts_dirs: Vec<PathBuf>,
    /// Who asks.
    pub credentials: Credentials,
    /// For name lookup, connection and TLS handshake together.
    pub connect_timeout: Duration,
    /// For each read: the first byte of an answer, and each later silence.
    pub read_timeout: Duration,
    /// A blob's body without (almost) any byte for so long is broken off and resumed.
    pub stall_timeout: Duration,
    /// Bytes a second that all blobs of this client may take together.
    pub rate: Option<u64>,
    /// Blobs that this client fetches at once, for whatever pull; at least 1.
    pub max_concurrent_downloads: usize,
    /// What the registry's operators see.
    pub user_agent: String,
    /// Whether `https_proxy`, `http_proxy` and `no_proxy` count.
    pub system_proxy: bool,
    /// Proxies for all or for single registries; they count before the environment's.
    pub ways: Ways,
    /// How blips are bridged.
    pub retry: Policy,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            plain_http: false,
            hosts_dirs: Vec::new(),
            credentials: Credentials::none(),
            connect_timeout: CONNECT_TIMEOUT,
            read_timeout: READ_TIMEOUT,
            stall_timeout: STALL_TIMEOUT,
            rate: None,
            max_concurrent_downloads: BLOBS_AT_ONCE,
            user_agent: USER_AGENT.to_owned(),
            system_proxy: true,
            ways: Ways::default(),
            retry: Policy::default(),
        }
    }
}

/// A registry client; cloning it shares connections, tokens and counters.
#[derive(Clone)]
pub struct Client {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) hosts: Hosts,
    pub(super) retry: Policy,
    pub(super) transport: Transport,
    pub(super) auth: Auth,
    pub(super) notices: Notices,
    pub(super) flow: Flow,
    /// Blobs that may be fetched at once, and a permit for each.
    pub(super) at_once: usize,
    pub(super) slots: Arc<Semaphore>,
}

impl Client {
    /// Reads the host's certificate store; connects to nobody yet.
    pub fn new(settings: Settings) -> Self {
        let trust = super::tls::system();
        Self::trusting(settings, trust)
    }

    pub(super) fn trusting(settings: Settings, trust: Trust) -> Self {
        let notices = Notices::default();
        let at_once = settings
            .max_concurrent_downloads
            .clamp(1, Semaphore::MAX_PERMITS);
        Self {
            shared: Arc::new(Shared {
                transport: Transport::trusting(&settings, trust, notices.clone()),
                retry: settings.retry,
                auth: Auth::new(settings.credentials, notices.clone()),
                hosts: Hosts {
                    roots: settings.hosts_dirs,
                    plain_http: settings.plain_http,
                    ways: settings.ways,
                },
                notices,
                flow: Flow {
                    stall: settings.stall_timeout,
                    pace: settings.rate.map(|rate| Arc::new(Pace::new(rate))),
                },
                at_once,
                slots: Arc::new(Semaphore::new(at_once)),
            }),
        }
    }

    /// Every HTTP request sent so far, redirects and retries included, except those to
    /// token servers.
    pub fn requests(&self) -> u64 {
        self.shared.transport.requests()
    }

    /// The requests to token servers.
    pub fn auth_requests(&self) -> u64 {
        self.shared.transport.auth_requests()
    }

    /// What was counted so far, for metrics.
    pub fn counts(&self) -> Counts {
        self.shared.transport.counters.snapshot()
    }

    /// What registries said last of the requests that they allow, by host.
    pub fn quotas(&self) -> Vec<(String, Quota)> {
        self.shared.transport.quotas.all()
    }

    /// Oddities since the last call that did not stop the work: a digest header that
    /// lies, stored credentials that are refused. Sentences for the user.
    pub fn take_notices(&self) -> Vec<String> {
        self.shared.notices.take()
    }

    /// The repository of `reference`, to be asked for it and for what it points to.
    pub fn repository(&self, reference: &Reference) -> Repo {
        let domain = reference.repository().domain();
        let endpoints = self.shared.hosts.endpoints(domain, &self.shared.notices);
        Repo::new(self.clone(), reference.clone(), endpoints)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("hosts", &self.shared.hosts)
            .field("requests", &self.requests())
            .finish_non_exhaustive()
    }
}
