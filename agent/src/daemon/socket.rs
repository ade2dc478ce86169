//! The control socket and, if one is configured, the TCP address for scrapers: who may
//! connect, how many, and how long each may take.

use std::{
    fs::{self, Permissions},
    io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
    task::JoinSet,
};

use super::{
    Handle,
    answer::{Server, Surface},
    lock::Lock,
    patience::Patience,
};
use crate::{
    error::{Error, Result},
    kind::Kind,
};

/// Members of it may ask the daemon.
pub const GROUP: &str = "edgepull";

/// Connections at a time; further ones wait to be accepted.
const MOST_CONNECTIONS: usize = 32;
/// A head of a request has arrived by then.
const HEAD_TIME: Duration = Duration::from_secs(15);
/// Bytes of a request's head.
const LARGEST_HEAD: usize = 16 * 1024;
const MOST_HEADERS: usize = 64;
/// A reader takes something of its answer at least this often.
const READER_TIME: Duration = Duration::from_secs(60);
/// An address that is not free, or not there yet, is tried again after this.
const REBIND: Duration = Duration::from_secs(10);
/// After a failure to accept (no file descriptors), before the next try.
const PAUSE: Duration = Duration::from_secs(1);

/// The control socket, and with it the right to be the one daemon there.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
    _lock: Lock,
}

impl Control {
    /// Binds the control socket. What a daemon left that has ended is replaced; while it
    /// lives, this fails. Must be called within the runtime.
    pub fn bind(path: &Path) -> Result<Self> {
        let lock = Lock::take(&beside(path, "lock"), || {
            Error::new(
                Kind::Config,
                format_args!("another edgepull daemon has `{}`", path.display()),
            )
            .hint("`systemctl status edgepull` shows it; one daemon a host is enough")
        })?;
        let group = group();
        let listener = put_in_place(path, 0o660, group, |at| UnixListener::bind(at))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Answers until dropped.
    pub async fn serve(self, handle: Handle) {
        let server = Server::new(handle, Surface::Control);
        serve(server, || async {
            Ok(Box::new(self.listener.accept().await?.0) as Stream)
        })
        .await;
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Whoever connects next shall hear at once that nobody is there.
        let _ = fs::remove_file(&self.path);
    }
}

/// The TCP address of `[metrics] listen`.
#[derive(Debug)]
pub struct Scrapes(TcpListener);

impl Scrapes {
    /// Binds `address`.
    pub async fn bind(address: SocketAddr) -> Result<Self> {
        TcpListener::bind(address).await.map(Self).map_err(|error| {
            Error::new(
                Kind::Config,
                format_args!("cannot listen on `{address}` for scrapers"),
            )
            .caused_by(&error)
            .hint("name an address of this host and a free port in `[metrics] listen`")
        })
    }

    /// Answers `/metrics`, `/healthz` and `/readyz`, and nothing else, until dropped.
    pub async fn serve(self, handle: Handle) {
        let server = Server::new(handle, Surface::Scrapes);
        serve(server, || async {
            Ok(Box::new(self.0.accept().await?.0) as Stream)
        })
        .await;
    }
}

/// Answers scrapers where the configuration says, and elsewhere when it says so. An address
/// that cannot be had is tried again: somebody's figures hold up nobody's images.
pub(super) async fn serve_scrapes(handle: Handle) {
    serve_told(handle, REBIND).await;
}

async fn serve_told(handle: Handle, pause: Duration) {
    let mut told = handle.listens_at();
    loop {
        let address = *told.borrow_and_update();
        let serving = async {
            match address {
                Some(address) => serve_at(address, &handle, pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = serving => {}
            Ok(()) = told.changed() => {}
        }
    }
}

async fn serve_at(address: SocketAddr, handle: &Handle, pause: Duration) {
    let mut complained = false;
    loop {
        match Scrapes::bind(address).await {
            Ok(scrapes) => return scrapes.serve(handle.clone()).await,
            Err(error) => {
                if !complained {
                    super::journal::report(&error, None);
                    complained = true;
                }
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// A connection of either kind: one type, so that the HTTP server is in the program once.
type Stream = Box<dyn Duplex>;

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Duplex for S {}

/// Accepts and answers; the connections end with it.
async fn serve<F>(server: Server, accept: impl Fn() -> F)
where
    F: Future<Output = io::Result<Stream>>,
{
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut complained = false;
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (accept().await, place)
        };
        tokio::select! {
            // What has ended is forgotten at once, not when the next one comes.
            Some(_) = connections.join_next() => {}
            (stream, place) = accepted => match stream {
                Ok(stream) => {
                    complained = false;
                    let answered = answer(stream, server.clone(), HEAD_TIME);
                    connections.spawn(async move {
                        answered.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    if !complained {
                        tracing::warn!(%error, "cannot accept a connection");
                        complained = true;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            },
        }
    }
}

/// One connection, one request: nothing is kept open that nobody uses.
async fn answer(stream: Stream, server: Server, head_time: Duration) {
    let service = service_fn(move |request| {
        let server = server.clone();
        async move { Ok::<_, std::convert::Infallible>(server.answer(&request).await) }
    });
    let ended = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_time)
        .max_buf_size(LARGEST_HEAD)
        .max_headers(MOST_HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(Patience::new(stream, READER_TIME)), service)
        .await;
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Makes a socket with its owner and mode, and only then gives it its name: nobody else
/// connects in between, and a dead daemon's is replaced in the same step.
pub(super) fn put_in_place<S>(
    path: &Path,
    mode: u32,
    group: Option<u32>,
    bind: impl FnOnce(&Path) -> io::Result<S>,
) -> Result<S> {
    let failed = |error: io::Error| Error::io("listen at", path, &error);
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            return Err(Error::new(
                Kind::Config,
                format_args!("`{}` is no socket, and stays as it is", path.display()),
            )
            .hint("move it away"));
        }
        _ => {}
    }
    let new = beside(path, "new");
    if let Err(error) = fs::remove_file(&new)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(failed(error));
    }
    let socket = bind(&new).map_err(failed)?;
    if let Some(group) = group
        && let Err(error) = std::os::unix::fs::chown(&new, None, Some(group))
    {
        tracing::warn!(%error, "cannot give the socket to the group; root alone can connect");
    }
    fs::set_permissions(&new, Permissions::from_mode(mode))
        .and_then(|()| fs::rename(&new, path))
        .map_err(failed)?;
    Ok(socket)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}

/// The group that may ask, where the package (or somebody) made it.
fn group() -> Option<u32> {
    let found = nix::unistd::Group::from_name(GROUP).ok().flatten();
    found.map(|group| group.gid.as_raw())
}

#[cfg(test)]
mod tests;
