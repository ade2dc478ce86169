//! The connection: namespace and lease on every call, a deadline for each, one way to
//! survive a restart of the daemon, and what introspection tells.

use std::{
    fmt,
    future::Future,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use containerd_client::services::v1::{
    ListNamespacesRequest, Namespace, PluginsRequest, introspection_client::IntrospectionClient,
    namespaces_client::NamespacesClient, version_client::VersionClient,
};
use edgepull_platform::{Label, Platform};
use tokio::time::{Instant, sleep, timeout};
use tonic::{
    Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

use super::failure::{Cause, Failure, Outcome};
use crate::{
    error::{Error, Result},
    kind::Kind,
};

/// containerd's own limit for what it sends and receives
/// (`grpc.max_recv_message_size`); tonic alone would stop at 4 MiB.
pub(super) const MAX_MESSAGE: usize = 16 << 20;

/// Deadline of a call that only touches metadata. Generous: another client's snapshot
/// commit holds the metadata lock, and walks a directory tree on a slow disk meanwhile.
pub(super) const METADATA: Duration = Duration::from_secs(60);

/// Deadline of a call that makes or removes directories.
pub(super) const DIRECTORIES: Duration = Duration::from_secs(600);

/// How long a restarting containerd is waited for.
const RECONNECT: Duration = Duration::from_secs(30);

/// The snapshotter that containerd itself falls back to.
pub const DEFAULT_SNAPSHOTTER: &str = "overlayfs";
/// Namespace label that overrides it.
const SNAPSHOTTER_LABEL: &str = "containerd.io/defaults/snapshotter";

const SNAPSHOTTER_TYPE: &str = "io.containerd.snapshotter.v1";
const CONTENT_TYPE: &str = "io.containerd.content.v1";

/// A snapshotter plugin, as introspection describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshotter {
    pub name: String,
    /// Where it keeps its data, in containerd's mount namespace.
    pub root: Option<PathBuf>,
    /// `rebase`, `remap-ids`, …
    pub capabilities: Vec<String>,
    /// Why it cannot be used.
    pub init_error: Option<String>,
    pub(super) platform: Option<Platform>,
}

/// A connection to one namespace of one containerd. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    lease: Option<MetadataValue<Ascii>>,
}

struct Shared {
    address: PathBuf,
    namespace: String,
    namespace_header: MetadataValue<Ascii>,
    channel: Channel,
    version: String,
    snapshotters: Vec<Snapshotter>,
    content_root: Option<PathBuf>,
    namespace_default: Option<String>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("address", &self.shared.address)
            .field("namespace", &self.shared.namespace)
            .field("version", &self.shared.version)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Connects to the socket at `address` and asks once for version, plugins and the
    /// namespace's labels. `limit` bounds the whole of it. Fails with
    /// `containerd_unavailable` where nobody answers.
    pub async fn connect(address: &Path, namespace: &str, limit: Duration) -> Result<Self> {
        if !is_namespace(namespace) {
            return Err(Error::new(
                Kind::Usage,
                format_args!("`{}` is no containerd namespace", namespace.escape_debug()),
            )
            .hint("letters and digits, separated by single `.`, `_` or `-`, at most 76 characters: k8s.io, default, moby"));
        }
        timeout(limit, Self::open(address, namespace))
            .await
            .unwrap_or_else(|_| {
                Err(unavailable(address)
                    .because(format_args!("no answer within {} s", limit.as_secs())))
            })
    }

    async fn open(address: &Path, namespace: &str) -> Result<Self> {
        let channel = channel(address).await?;
        let namespace_header = MetadataValue::try_from(namespace).map_err(|_| {
            Error::new(
                Kind::Usage,
                "the namespace has characters that no header can carry",
            )
        })?;
        let mut shared = Shared {
            address: address.to_owned(),
            namespace: namespace.to_owned(),
            namespace_header,
            channel,
            version: String::new(),
            snapshotters: Vec::new(),
            content_root: None,
            namespace_default: None,
        };
        let answer = VersionClient::new(shared.channel.clone()).version(()).await;
        let answer = answer.map_err(|status| {
            unavailable(address).because(status.message().chars().take(300).collect::<String>())
        })?;
        shared.version = answer.into_inner().version;
        let mut engine = Self {
            shared: Arc::new(shared),
            lease: None,
        };
        let (snapshotters, content_root) = engine.introspect().await?;
        // In Kubernetes' namespace the reader is CRI, whatever the namespace's label says.
        let by_cri = if namespace == super::K8S_NAMESPACE {
            engine.cri_snapshotter(&snapshotters).await
        } else {
            None
        };
        let namespace_default = match by_cri {
            Some(name) => Some(name),
            None => engine.namespace_default().await?,
        };
        if let Some(shared) = Arc::get_mut(&mut engine.shared) {
            shared.snapshotters = snapshotters;
            shared.content_root = content_root;
            shared.namespace_default = namespace_default;
        }
        Ok(engine)
    }

    /// The version that containerd reports: `1.6.20~ds1`, `v2.1.4`.
    pub fn version(&self) -> &str {
        &self.shared.version
    }

    /// Major and minor version, if they can be read.
    pub fn version_numbers(&self) -> Option<(u32, u32)> {
        let mut parts = self.shared.version.trim_start_matches('v').split('.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?.parse().ok()?;
        Some((major, minor))
    }

    pub fn address(&self) -> &Path {
        &self.shared.address
    }

    pub fn namespace(&self) -> &str {
        &self.shared.namespace
    }

    /// Where the content store keeps its blobs, in containerd's mount namespace.
    pub fn content_root(&self) -> Option<&Path> {
        self.shared.content_root.as_deref()
    }

    pub fn snapshotters(&self) -> &[Snapshotter] {
        &self.shared.snapshotters
    }

    /// The engine's own default platform, with the Arm variant: what its readers look
    /// up. A usable snapshotter's word counts before an unusable one's.
    pub fn platform(&self) -> Option<&Platform> {
        let known = || {
            self.shared
                .snapshotters
                .iter()
                .filter(|s| s.platform.is_some())
        };
        known()
            .find(|s| s.name == DEFAULT_SNAPSHOTTER)
            .or_else(|| known().find(|s| s.init_error.is_none()))
            .or_else(|| known().next())
            .and_then(|s| s.platform.as_ref())
    }

    /// The snapshotter to use: the one asked for, else the namespace's default, else
    /// `overlayfs`. Fails, naming those that work, if it is not there or broken.
    pub fn snapshotter(&self, wanted: Option<&str>) -> Result<&Snapshotter> {
        let name = wanted
            .or(self.shared.namespace_default.as_deref())
            .unwrap_or(DEFAULT_SNAPSHOTTER);
        let found = self.shared.snapshotters.iter().find(|s| s.name == name);
        let problem = match found {
            Some(Snapshotter {
                init_error: None, ..
            }) => None,
            Some(Snapshotter { init_error, .. }) => init_error.clone(),
            None => Some(format!("containerd has no snapshotter `{name}`")),
        };
        match (found, problem) {
            (Some(snapshotter), None) => Ok(snapshotter),
            (_, problem) => {
                let usable: Vec<&str> = self
                    .shared
                    .snapshotters
                    .iter()
                    .filter(|s| s.init_error.is_none())
                    .map(|s| s.name.as_str())
                    .collect();
                Err(Error::new(
                    Kind::Config,
                    format_args!("snapshotter `{name}` cannot be used"),
                )
                .because(problem.unwrap_or_default())
                .hint(format_args!("usable here: {}", usable.join(", "))))
            }
        }
    }

    /// The same connection, with the lease `id` on every call.
    pub fn leased(&self, id: &str) -> Result<Self> {
        let lease = MetadataValue::try_from(id).map_err(|_| {
            Error::new(
                Kind::Internal,
                format_args!("lease id `{}` cannot be a header", id.escape_debug()),
            )
        })?;
        Ok(Self {
            shared: Arc::clone(&self.shared),
            lease: Some(lease),
        })
    }

    pub(super) fn channel(&self) -> Channel {
        self.shared.channel.clone()
    }

    /// A request with the headers that every call needs.
    pub(super) fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        let headers = request.metadata_mut();
        headers.insert("containerd-namespace", self.shared.namespace_header.clone());
        if let Some(lease) = &self.lease {
            headers.insert("containerd-lease", lease.clone());
        }
        request
    }

    /// One unary call that may be repeated: while containerd is away it is tried again
    /// for half a minute. `action` reads "read blob …".
    pub(super) async fn call<M, R, F, Fut>(
        &self,
        action: &str,
        limit: Duration,
        message: M,
        send: F,
    ) -> Outcome<R>
    where
        M: Clone,
        F: Fn(Channel, Request<M>) -> Fut,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        let mut patience = Patience::new();
        loop {
            match self.call_once(action, limit, message.clone(), &send).await {
                Err(failure) if failure.cause == Cause::Disconnected => {
                    patience.pause(self, failure).await?;
                }
                other => return other,
            }
        }
    }

    /// One unary call, not repeated.
    pub(super) async fn call_once<M, R, F, Fut>(
        &self,
        action: &str,
        limit: Duration,
        message: M,
        send: F,
    ) -> Outcome<R>
    where
        F: FnOnce(Channel, Request<M>) -> Fut,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        match timeout(limit, send(self.channel(), self.request(message))).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failed(action, &status)),
            Err(_) => Err(Failure::timeout(action, limit.as_secs())),
        }
    }

    /// A status with what this side knows besides: the path and the free space of a
    /// full disk, the address of a daemon that went away.
    pub(super) fn failed(&self, action: &str, status: &Status) -> Failure {
        let mut failure = Failure::of(action, status);
        match failure.cause {
            Cause::Full => failure.error = self.with_free_space(failure.error),
            Cause::Disconnected => {
                failure.error = failure.error.hint(format_args!(
                    "containerd at `{}` went away; look at its log (`journalctl -u containerd`)",
                    self.shared.address.display()
                ));
            }
            _ => {}
        }
        failure
    }

    fn with_free_space(&self, error: Error) -> Error {
        let roots = self
            .content_root()
            .into_iter()
            .chain(self.snapshotters().iter().filter_map(|s| s.root.as_deref()));
        let mut error = error;
        let mut seen = Vec::new();
        for root in roots {
            // Only where containerd's files are visible from here; else the text alone counts.
            if let Ok(stat) = nix::sys::statvfs::statvfs(root)
                && !seen.contains(&stat.filesystem_id())
            {
                seen.push(stat.filesystem_id());
                let free = wide(stat.blocks_available()).saturating_mul(wide(stat.fragment_size()));
                error = error.because(format_args!(
                    "`{}` has {} MiB and {} inodes free",
                    root.display(),
                    free >> 20,
                    stat.files_available()
                ));
            }
        }
        error
    }

    async fn introspect(&self) -> Result<(Vec<Snapshotter>, Option<PathBuf>)> {
        let message = PluginsRequest {
            filters: vec![
                format!("type=={SNAPSHOTTER_TYPE}"),
                format!("type=={CONTENT_TYPE}"),
            ],
        };
        let answer = self
            .call_once(
                "list containerd's plugins",
                METADATA,
                message,
                |c, r| async move {
                    IntrospectionClient::new(c)
                        .max_decoding_message_size(MAX_MESSAGE)
                        .plugins(r)
                        .await
                },
            )
            .await?;
        let mut content_root = None;
        let mut snapshotters = Vec::new();
        for plugin in answer.plugins {
            let root = plugin.exports.get("root").map(PathBuf::from);
            if plugin.r#type == CONTENT_TYPE {
                content_root = root;
                continue;
            }
            let platform = plugin.platforms.first().and_then(|p| {
                Platform::from_label(&Label {
                    os: p.os.clone(),
                    architecture: p.architecture.clone(),
                    variant: p.variant.clone(),
                    os_version: p.os_version.clone(),
                    os_features: Vec::new(),
                })
            });
            snapshotters.push(Snapshotter {
                name: plugin.id,
                root,
                capabilities: plugin.capabilities,
                init_error: plugin.init_err.map(|status| status.message),
                platform,
            });
        }
        Ok((snapshotters, content_root))
    }

    /// The names of all namespaces that something was written to.
    pub async fn namespaces(&self) -> Result<Vec<String>> {
        let found = self.list_namespaces().await?;
        Ok(found.into_iter().map(|namespace| namespace.name).collect())
    }

    async fn namespace_default(&self) -> Result<Option<String>> {
        // List, not Get: a namespace that nothing was written to yet does not exist.
        Ok(self
            .list_namespaces()
            .await?
            .into_iter()
            .find(|n| n.name == self.shared.namespace)
            .and_then(|mut n| n.labels.remove(SNAPSHOTTER_LABEL))
            .filter(|name| !name.is_empty()))
    }

    async fn list_namespaces(&self) -> Result<Vec<Namespace>> {
        let message = ListNamespacesRequest::default();
        let answer = self
            .call_once("list namespaces", METADATA, message, |c, r| async move {
                NamespacesClient::new(c)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .list(r)
                    .await
            })
            .await?;
        Ok(answer.namespaces)
    }
}

/// How long a daemon that is away is still waited for: growing pauses, half a minute.
#[derive(Debug)]
pub(super) struct Patience {
    since: Option<Instant>,
    pause: Duration,
}

impl Patience {
    pub(super) fn new() -> Self {
        Self {
            since: None,
            pause: Duration::from_millis(100),
        }
    }

    /// Sleeps before the next try, or gives `failure` back when the time is over.
    pub(super) async fn pause(&mut self, engine: &Engine, failure: Failure) -> Outcome<()> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= RECONNECT {
            let error = failure.error.because(format_args!(
                "no connection to `{}` for {} s",
                engine.shared.address.display(),
                RECONNECT.as_secs()
            ));
            return Err(Failure::new(failure.cause, error));
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(Duration::from_secs(2));
        Ok(())
    }

    /// Something worked: the next outage has its own half minute.
    pub(super) fn renew(&mut self) {
        *self = Self::new();
    }
}

/// Counts of the system are 32 or 64 bits wide, by target.
fn wide(count: impl Into<u64>) -> u64 {
    count.into()
}

async fn channel(address: &Path) -> Result<Channel> {
    // Asked for first and apart, because its errors say more than a channel's.
    tokio::net::UnixStream::connect(address)
        .await
        .map_err(|error| {
            let hint = match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "is containerd running? another distribution's socket is named with --address (k3s: /run/k3s/containerd/containerd.sock)"
                }
                std::io::ErrorKind::PermissionDenied => {
                    "containerd's socket belongs to root: run this as root"
                }
                std::io::ErrorKind::ConnectionRefused => {
                    "the socket is there but nobody listens: start containerd (`systemctl start containerd`)"
                }
                _ => "check the path given with --address",
            };
            unavailable(address).caused_by(&error).hint(hint)
        })?;
    let path = address.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move {
            tokio::net::UnixStream::connect(path)
                .await
                .map(hyper_util::rt::TokioIo::new)
        }
    });
    Endpoint::from_static("http://containerd.invalid")
        .connect_with_connector(connector)
        .await
        .map_err(|error| unavailable(address).caused_by(&error))
}

fn unavailable(address: &Path) -> Error {
    Error::new(
        Kind::ContainerdUnavailable,
        format_args!("cannot reach containerd at `{}`", address.display()),
    )
}

/// containerd's rule for identifiers: alphanumeric groups joined by one of `._-`.
fn is_namespace(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 76
        && name
            .split(['.', '_', '-'])
            .all(|group| !group.is_empty() && group.bytes().all(|b| b.is_ascii_alphanumeric()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_follow_containerds_rule() {
        for good in ["k8s.io", "default", "moby", "moby-1000.1000", "a_b"] {
            assert!(is_namespace(good), "{good}");
        }
        for bad in ["", ".a", "a.", "a..b", "a b", "a\n", "ü", &"a".repeat(77)] {
            assert!(!is_namespace(bad), "{bad}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_missing_socket_is_named_with_the_next_step() {
        let path = Path::new("/nonexistent/containerd.sock");
        let error = Engine::connect(path, "default", Duration::from_secs(1))
            .await
            .expect_err("nobody there");
        assert_eq!(error.kind(), Kind::ContainerdUnavailable);
        assert!(error.message().contains("/nonexistent/containerd.sock"));
        assert!(error.hint_text().is_some_and(|h| h.contains("running")));
    }
}
