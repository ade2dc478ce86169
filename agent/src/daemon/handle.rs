//! What those who ask the daemon share with its loop.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    error::{Error, Result},
    kind::Kind,
    metrics::{Metrics, Sample},
    status::{Board, Document},
};

/// Wishes that the loop has not taken up yet; more are refused.
const WISHES: usize = 16;

/// What somebody wants from the loop.
#[derive(Debug)]
pub enum Ask {
    /// Look at this image (the name of its record), or at all, now. When that is done, `done`
    /// is told; whoever asked reads the board. A dropped `done` says that nothing was done.
    Sync {
        reference: Option<String>,
        done: oneshot::Sender<()>,
    },
    /// Read the configuration now; `done` is told when the board has what it says.
    Reload { done: oneshot::Sender<()> },
}

/// The state of the daemon as the sockets see it; clone freely.
#[derive(Debug, Clone)]
pub struct Handle {
    pub board: Board,
    pub metrics: Metrics,
    /// The document of `edgepull detect`.
    host: Arc<Mutex<Bytes>>,
    /// Where scrapers ask.
    listen: watch::Sender<Option<SocketAddr>>,
    asks: mpsc::Sender<Ask>,
}

impl Handle {
    /// `host` is the JSON of `edgepull detect`. The receiver is the loop's.
    pub fn new(board: Board, metrics: Metrics, host: String) -> (Self, mpsc::Receiver<Ask>) {
        let (asks, taken) = mpsc::channel(WISHES);
        let handle = Self {
            board,
            metrics,
            host: Arc::new(Mutex::new(host.into())),
            listen: watch::Sender::new(None),
            asks,
        };
        (handle, taken)
    }

    /// The document of `edgepull detect` has changed, because the engine has.
    pub fn set_host(&self, host: String) {
        *self.host.lock().unwrap_or_else(PoisonError::into_inner) = host.into();
    }

    /// Scrapers are to be answered there from now on, or nowhere.
    pub(super) fn listen_at(&self, address: Option<SocketAddr>) {
        self.listen.send_if_modified(|listen| {
            let other = *listen != address;
            *listen = address;
            other
        });
    }

    pub(super) fn listens_at(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.listen.subscribe()
    }

    pub(super) fn host(&self) -> Bytes {
        self.host
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The text of `/metrics`, and of the textfile.
    pub fn metrics_text(&self) -> String {
        let images = self.board.images();
        let samples: Vec<Sample> = images
            .into_iter()
            .map(|image| Sample {
                ready: image.is_ready(),
                platform_missing: image.misses_platform(),
                last_success: image.last_success,
                reference: image.reference,
                platform: image.platform,
                namespace: image.namespace,
            })
            .collect();
        self.metrics.render(&samples)
    }

    /// The document, of one reference or of all.
    pub(super) fn document(&self, reference: Option<&str>) -> Result<Document> {
        let mut document = self.board.document();
        if let Some(wanted) = reference {
            document.images.retain(|image| image.reference == wanted);
            if document.images.is_empty() {
                return Err(Error::new(
                    Kind::NotFound,
                    format_args!("`{wanted}` is not among the desired images of this host"),
                )
                .reference(wanted)
                .hint("declare it below /etc/edgepull/images.d; `edgepull status` lists what is declared"));
            }
        }
        Ok(document)
    }

    /// Why the daemon is not ready, if it is not. An image that is missing, whyever, is no
    /// reason: restarting or draining a host brings none.
    pub(super) fn ready(&self) -> Result<()> {
        let daemon = self.board.daemon();
        if !daemon.first_pass_done {
            return Err(Error::new(
                Kind::AgentUnavailable,
                "the first pass over the desired images is not done yet",
            )
            .hint("`edgepull wait` waits for them; `edgepull status` shows how far it is"));
        }
        match daemon.engine {
            Some(engine) if engine.reachable => Ok(()),
            Some(engine) => Err(daemon.engine_error.unwrap_or_else(|| {
                let message = format!("containerd does not answer at `{}`", engine.address);
                Error::new(Kind::ContainerdUnavailable, message)
                    .hint("`systemctl status containerd` shows it")
            })),
            None => Err(daemon.engine_error.unwrap_or_else(|| {
                Error::new(Kind::ContainerdUnavailable, "no containerd was found")
                    .hint("`[containerd] address` in config.toml names its socket")
            })),
        }
    }

    /// Hands a wish to the loop; the receiver hears when it is done.
    pub(super) fn sync(&self, reference: Option<String>) -> Result<oneshot::Receiver<()>> {
        let (done, heard) = oneshot::channel();
        self.wish(Ask::Sync { reference, done }, heard)
    }

    /// The same for what is declared: a file that was written a moment ago counts.
    pub(super) fn reload(&self) -> Result<oneshot::Receiver<()>> {
        let (done, heard) = oneshot::channel();
        self.wish(Ask::Reload { done }, heard)
    }

    fn wish(&self, wish: Ask, heard: oneshot::Receiver<()>) -> Result<oneshot::Receiver<()>> {
        self.asks.try_send(wish).map_err(|refused| {
            let why = match refused {
                mpsc::error::TrySendError::Full(_) => "too many wishes are waiting already",
                mpsc::error::TrySendError::Closed(_) => "the daemon is about to stop",
            };
            Error::new(Kind::AgentUnavailable, "cannot ask for a pass")
                .because(why)
                .hint("ask again in a moment")
        })?;
        Ok(heard)
    }
}
