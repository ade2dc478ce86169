//! Starting the daemon, ending it, and a single pass of it.

use std::{fs::DirBuilder, os::unix::fs::DirBuilderExt, path::Path, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::timeout,
};

use super::{
    declared::Declared,
    handle::{Ask, Handle},
    notify::Notifier,
    pulse::heartbeat,
    refusals::count_refusals,
    run::{Daemon, News, Places},
    socket::{Control, serve_scrapes},
    watch::Watch,
};
use crate::{
    desired::Desired,
    error::{Error, Result},
    kind::Kind,
    metrics::Metrics,
    session::Session,
    status::Board,
};

/// A loop that does not come to its end by itself in this time is broken off.
const FAREWELL: Duration = Duration::from_secs(8);

fn handle(session: &Session) -> Result<(Handle, mpsc::Receiver<Ask>)> {
    let host = session.host()?;
    let version = env!("CARGO_PKG_VERSION");
    let board = Board::new(&host.platform.to_string(), version, Timestamp::now());
    let metrics = Metrics::new(host, version);
    Ok(Handle::new(board, metrics, session.host_document(None)?))
}

/// Runs a daemon until it is told to stop.
pub async fn run(session: Session, places: Places, config_text: String) -> Result<()> {
    runtime_directory(&places.runtime)?;
    let control = Control::bind(&places.socket)?;
    let (handle, mut asks) = handle(&session)?;
    handle.listen_at(session.config().metrics_listen);
    // What waits, waits where it is counted.
    let (tell, news) = mpsc::channel(1);
    let mut watch = Watch::new(
        &[&places.images],
        &[places
            .config
            .as_deref()
            .unwrap_or(crate::config::PATH.as_ref())],
    );
    let mut signals = Signals::listen()?;
    let notifier = Arc::new(Notifier::from_environment());
    let beat = Arc::clone(&notifier);
    let declared = Declared::new(&places, config_text);
    let refusals = places.runtime.join("refusals.sock");
    let mut daemon = Daemon::build(session, places, declared, handle.clone(), notifier, news)?;
    // Its sockets answer, its configuration is read. What it waits for then, its status says.
    daemon.notifier.ready();
    let pulse = daemon.pulse.clone();

    let tell_asks = tell.clone();
    let ask = async move {
        while let Some(ask) = asks.recv().await {
            if tell_asks.send(News::Ask(ask)).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let tell_changes = tell.clone();
    let changes = async move {
        loop {
            watch.changed().await;
            if tell_changes.send(News::Changed).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let counted = count_refusals(&refusals, handle.clone());
    let refused = async {
        if let Err(error) = counted.await {
            super::journal::report(&error, None);
        }
        std::future::pending::<()>().await;
    };
    let stopped = async {
        signals.until_stopped(&tell).await;
        beat.stopping();
        // A loop that is held up by a slow engine may not even take the news.
        let told = async {
            let _ = tell.send(News::Stop).await;
            std::future::pending::<()>().await;
        };
        let _ = timeout(FAREWELL, told).await;
    };
    tokio::select! {
        () = daemon.work() => {}
        // What is left in the middle, the next start takes up.
        () = stopped => {}
        () = control.serve(handle.clone()) => {}
        () = serve_scrapes(handle.clone()) => {}
        () = ask => {}
        () = changes => {}
        () = refused => {}
        () = heartbeat(&beat, &pulse) => {}
    }
    daemon.close()
}

/// systemd makes it for the unit; whoever starts the daemon by hand has none.
fn runtime_directory(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(|error| {
            Error::io("make the directory", path, &error)
                .with_kind(Kind::Config)
                .hint("the daemon runs as root; is another directory meant?")
        })
}

/// One pass, and the end. Every image is looked at whatever its time.
pub async fn once(session: Session, places: Places, config_text: String) -> Result<Handle> {
    let (handle, _asks) = handle(&session)?;
    let (_tell, news) = mpsc::channel(1);
    let declared = Declared::new(&places, config_text);
    let notifier = Arc::new(Notifier::silent());
    let mut daemon = Daemon::build(session, places, declared, handle.clone(), notifier, news)?;
    daemon.asked = daemon.declared.images.iter().map(Desired::key).collect();
    daemon.stale_all();
    daemon.pass().await;
    daemon.end_worker().await;
    // Also without an engine this is an end in order.
    let closed = daemon.close();
    match daemon.engines.error() {
        Some(error) if !daemon.needs_no_engine() => Err(error.clone()),
        _ => closed.map(|()| handle),
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                Error::new(Kind::Internal, "cannot listen for signals")
                    .caused_by(&error)
                    .hint(super::REPORT)
            })
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn until_stopped(&mut self, tell: &mpsc::Sender<News>) {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return,
                _ = self.terminate.recv() => return,
                _ = self.hangup.recv() => tokio::select! {
                    _ = tell.send(News::Reload) => {}
                    // A loop that is busy takes no news, and can be stopped all the same.
                    _ = self.interrupt.recv() => return,
                    _ = self.terminate.recv() => return,
                },
            }
        }
    }
}
