//! The loop: look, plan, act on the first step, and again until nothing is left to do; then
//! wait for the time, for somebody's wish or for a change.
//!
//! All of it is one task on one thread. What it waits for is bounded, so that whoever is
//! asked whether the daemon lives (systemd's watchdog) hears no answer when it does not.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use jiff::{Timestamp, Zoned};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
    time::{Instant, sleep, sleep_until},
};

use super::{
    declared::Declared,
    engines::Engines,
    handle::{Ask, Handle},
    notify::Notifier,
    refusals::count_refusals,
    session::Session,
    socket::{Control, Scrapes},
    state_lock::StateLock,
    watch::Watch,
    worker::Worker,
};
use crate::{
    desired::{Desired, Key},
    error::{Error, Result},
    kind::Kind,
    metrics::{self, Metrics},
    reconcile::{Memory, Observed, StateFile, Step, plan},
    schedule::Settings,
    status::Board,
};

/// Everything is looked at so often, whatever else happens: not every change is told.
const POLL: Duration = Duration::from_secs(60 * 60);
/// A clock that is set, or a machine that slept, is noticed within this time.
const NAP: Duration = Duration::from_secs(15 * 60);
/// After a change, others are waited for.
const CALM: Duration = Duration::from_millis(200);
/// What ends does so within this time.
const FAREWELL: Duration = Duration::from_secs(10);
/// State that only says when the registry was last asked is not worth a write each time.
const SAVE: Duration = Duration::from_secs(60);

/// Where things are.
#[derive(Debug, Clone)]
pub struct Places {
    /// config.toml, if it was named.
    pub config: Option<PathBuf>,
    /// images.d.
    pub images: PathBuf,
    pub state: PathBuf,
    /// Sockets and locks.
    pub runtime: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
}

/// What the loop is told from outside.
#[derive(Debug)]
pub(super) enum News {
    Ask(Ask),
    /// The configuration may have changed.
    Changed,
    /// Somebody said so, and waits for the answer.
    Reload,
    Stop,
}

/// The daemon's state, built and not yet running.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) session: Session,
    pub(super) places: Places,
    pub(super) declared: Declared,
    pub(super) settings: Settings,
    pub(super) memory: Memory,
    state: StateFile,
    _lock: StateLock,
    saved: Option<Instant>,
    unsaved: bool,
    pub(super) engines: Engines,
    pub(super) observed: BTreeMap<Key, Observed>,
    /// What has to be looked at again.
    pub(super) stale: BTreeSet<Key>,
    /// What could not be looked at, and when that is tried again.
    pub(super) blind: BTreeMap<Key, Timestamp>,
    /// When everything is looked at once more after a new connection.
    pub(super) look_again: Option<Instant>,
    polled: Instant,
    /// What somebody wants now.
    pub(super) asked: BTreeSet<Key>,
    waiters: Vec<(BTreeSet<Key>, oneshot::Sender<()>)>,
    /// Images that somebody else pinned, which is nothing to take away.
    pub(super) foreign_pins: BTreeSet<Key>,
    /// How often in a row each registry could not be reached in this pass.
    pub(super) misses: BTreeMap<String, u32>,
    /// The step that was taken last, and went well.
    pub(super) taken: Option<(Key, Step)>,
    pub(super) handle: Handle,
    pub(super) worker: Option<Worker>,
    pub(super) notifier: Arc<Notifier>,
    pub(super) news: mpsc::Receiver<News>,
    pub(super) stopping: bool,
    first: bool,
}

impl Daemon {
    /// Reads what is configured and what is remembered. Nothing is done yet, and nothing but
    /// this can fail for good.
    fn build(
        session: Session,
        places: Places,
        declared: Declared,
        handle: Handle,
        notifier: Arc<Notifier>,
        news: mpsc::Receiver<News>,
    ) -> Result<Self> {
        let lock = StateLock::take(&places.state)?;
        let mut state = StateFile::new(&places.state);
        let (memory, damaged) = state.load();
        if let Some(error) = damaged {
            super::journal::report(&error, None);
        }
        let settings = session.config().timing(session.machine());
        let mut daemon = Self {
            session,
            places,
            declared,
            settings,
            memory,
            state,
            _lock: lock,
            saved: None,
            unsaved: true,
            engines: Engines::default(),
            observed: BTreeMap::new(),
            stale: BTreeSet::new(),
            blind: BTreeMap::new(),
            look_again: None,
            polled: Instant::now(),
            asked: BTreeSet::new(),
            waiters: Vec::new(),
            foreign_pins: BTreeSet::new(),
            misses: BTreeMap::new(),
            taken: None,
            handle,
            worker: None,
            notifier,
            news,
            stopping: false,
            first: true,
        };
        daemon.read_declared();
        if !daemon.memory.is_clean() {
            let keys: Vec<Key> = daemon.declared.images.iter().map(Desired::key).collect();
            daemon.memory.unclean(keys);
        }
        // From here on a stop without notice is one.
        daemon.memory.set_clean(false);
        daemon.state.save(&daemon.memory)?;
        Ok(daemon)
    }

    /// Works until it is told to stop.
    async fn work(&mut self) -> Result<()> {
        while !self.stopping {
            let wake = self.pass().await;
            if !self.stopping {
                self.idle(wake).await;
            }
        }
        self.end_worker().await;
        self.memory.set_clean(true);
        self.state.save(&self.memory)
    }

    /// Everything that is to be done now.
    async fn pass(&mut self) -> Option<Timestamp> {
        loop {
            self.drain();
            if self.stopping {
                return None;
            }
            self.attach().await;
            self.observe().await;
            let plan = plan(
                &Zoned::now(),
                &self.declared.images,
                &self.observed,
                &self.memory,
                &self.settings,
                &self.asked,
            );
            if !plan.postponed.is_empty() {
                self.memory
                    .postpone(&plan.postponed, Timestamp::now(), &self.settings);
            }
            let Some((key, step)) = plan.steps.into_iter().next() else {
                self.pass_ended().await;
                return plan.wake;
            };
            self.act(&key, step).await;
            self.save_soon();
        }
    }

    async fn pass_ended(&mut self) {
        self.end_worker().await;
        self.taken = None;
        self.misses.clear();
        let reachable = self.engines.is_reachable();
        if reachable {
            let now = Timestamp::now();
            self.handle.board.pass_done(now);
            self.handle.metrics.reconciled(now);
            self.prune().await;
        } else {
            // Whoever waits would wait for as long as the engine is away.
            self.asked.clear();
            self.waiters.clear();
        }
        if self.unsaved {
            self.save();
        }
        self.write_textfile();
        self.say_status(None);
        self.first &= !reachable;
    }

    /// Waits for the time, a change of the engine or news.
    async fn idle(&mut self, wake: Option<Timestamp>) {
        let nap = self.nap(wake);
        tokio::select! {
            news = self.news.recv() => self.heed(news),
            change = self.engines.change() => self.note(change),
            () = sleep(nap) => {}
        }
        if self.stopping {
            return;
        }
        // What belongs together comes together.
        let end = Instant::now() + CALM;
        loop {
            tokio::select! {
                news = self.news.recv() => self.heed(news),
                change = self.engines.change() => self.note(change),
                () = sleep_until(end) => break,
            }
            if self.stopping {
                break;
            }
        }
        let now = Instant::now();
        if now >= self.polled + POLL || self.look_again.is_some_and(|at| at <= now) {
            self.stale_all();
            self.polled = now;
            self.look_again = None;
        }
    }

    /// How long nothing has to be done.
    fn nap(&self, wake: Option<Timestamp>) -> Duration {
        let now = Timestamp::now();
        let until = |at: Timestamp| Duration::try_from(at.duration_since(now)).unwrap_or_default();
        let after = |at: Instant| at.saturating_duration_since(Instant::now());
        [
            wake.map(until),
            self.blind.values().min().copied().map(until),
            self.session
                .config()
                .prune_after()
                .and_then(|after| self.memory.next_removal(after))
                .filter(|at| *at > now)
                .map(until),
            self.look_again.map(after),
            self.engines.next_try(),
            Some(after(self.polled + POLL)),
        ]
        .into_iter()
        .flatten()
        .fold(NAP, Duration::min)
    }

    /// What was told meanwhile.
    pub(super) fn drain(&mut self) {
        while let Ok(news) = self.news.try_recv() {
            self.heed(Some(news));
        }
    }

    /// Takes up what was told from outside.
    pub(super) fn heed(&mut self, news: Option<News>) {
        match news {
            None | Some(News::Stop) => self.stopping = true,
            Some(News::Changed) => self.reload(),
            Some(News::Reload) => {
                self.notifier.reloading();
                self.reload();
                self.notifier.ready();
            }
            Some(News::Ask(Ask::Reload { done })) => {
                self.reload();
                let _ = done.send(());
            }
            Some(News::Ask(Ask::Sync { reference, done })) => {
                // What was declared a moment ago is meant as well.
                self.reload();
                let keys: BTreeSet<Key> = self
                    .declared
                    .images
                    .iter()
                    .map(Desired::key)
                    .filter(|key| reference.as_ref().is_none_or(|name| *name == key.reference))
                    .collect();
                if keys.is_empty() {
                    let _ = done.send(());
                    return;
                }
                self.engines.try_now();
                self.asked.extend(keys.iter().cloned());
                self.stale.extend(keys.iter().cloned());
                self.waiters.push((keys, done));
            }
        }
    }

    /// What was wanted of an image is done, or cannot be.
    pub(super) fn answered(&mut self, key: &Key) {
        self.asked.remove(key);
        for (keys, _) in &mut self.waiters {
            keys.remove(key);
        }
        let waiters = std::mem::take(&mut self.waiters);
        for (keys, done) in waiters {
            if keys.is_empty() {
                let _ = done.send(());
            } else {
                self.waiters.push((keys, done));
            }
        }
    }

    pub(super) fn stale_all(&mut self) {
        self.stale
            .extend(self.declared.images.iter().map(Desired::key));
    }

    /// The state is worth keeping, now.
    pub(super) fn save(&mut self) {
        self.unsaved = false;
        self.saved = Some(Instant::now());
        if let Err(error) = self.state.save(&self.memory) {
            self.unsaved = true;
            super::journal::report(&error, None);
        }
    }

    fn save_soon(&mut self) {
        self.unsaved = true;
        if self.saved.is_none_or(|saved| saved.elapsed() >= SAVE) {
            self.save();
        }
    }

    async fn end_worker(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.end().await;
        }
    }

    fn write_textfile(&self) {
        if let Some(path) = &self.session.config().metrics_textfile
            && let Err(error) = metrics::write_textfile(path, &self.handle.metrics_text())
        {
            super::journal::report(&error, None);
        }
    }

    /// What `systemctl status` shows.
    pub(super) fn say_status(&self, work: Option<&str>) {
        let daemon = self.handle.board.daemon();
        let counts = daemon.counts;
        let mut text = format!("{} of {} images ready", counts.ready, counts.desired);
        if counts.missing_platform > 0 {
            let _ = write!(
                text,
                ", {} without an image for this host",
                counts.missing_platform
            );
        }
        if counts.failed > 0 {
            let _ = write!(text, ", {} failed", counts.failed);
        }
        if let Some(error) = &daemon.engine_error {
            let _ = write!(text, "; {}", error.message());
        } else if let Some(work) = work {
            let _ = write!(text, "; {work}");
        }
        self.notifier.status(&text);
    }
}

fn handle(session: &Session) -> Result<(Handle, mpsc::Receiver<Ask>)> {
    let host = session.host()?;
    let version = env!("CARGO_PKG_VERSION");
    let board = Board::new(&host.platform.to_string(), version, Timestamp::now());
    let metrics = Metrics::new(host, version);
    Ok(Handle::new(board, metrics, session.host_document(None)?))
}

/// Runs a daemon until it is told to stop.
pub async fn run(session: Session, places: Places, config_text: String) -> Result<()> {
    let control = Control::bind(&places.socket)?;
    let scrapes = match session.config().metrics_listen {
        Some(address) => Some(Scrapes::bind(address).await?),
        None => None,
    };
    let (handle, mut asks) = handle(&session)?;
    let (tell, news) = mpsc::channel(64);
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
    let counted = count_refusals(&refusals, handle.metrics.clone());
    let refused = async {
        if let Err(error) = counted.await {
            super::journal::report(&error, None);
        }
        std::future::pending::<()>().await;
    };
    let serve_scrapes = async {
        match scrapes {
            Some(scrapes) => scrapes.serve(handle.clone()).await,
            None => std::future::pending().await,
        }
    };
    let stopped = async {
        signals.until_stopped(&tell).await;
        beat.stopping();
        let _ = tell.send(News::Stop).await;
        sleep(FAREWELL).await;
    };
    tokio::select! {
        ended = daemon.work() => ended,
        // What is left in the middle, the next start takes up.
        () = stopped => Ok(()),
        () = control.serve(handle.clone()) => Ok(()),
        () = serve_scrapes => Ok(()),
        () = ask => Ok(()),
        () = changes => Ok(()),
        () = refused => Ok(()),
        () = heartbeat(&beat) => Ok(()),
    }
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
    if let Some(error) = daemon.engines.error() {
        return Err(error.clone());
    }
    daemon.memory.set_clean(true);
    daemon.save();
    Ok(handle)
}

/// Tells the service manager that this task still gets to run.
async fn heartbeat(notifier: &Notifier) {
    let Some(interval) = notifier.watchdog_interval() else {
        return std::future::pending().await;
    };
    loop {
        notifier.alive();
        sleep(interval).await;
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
                Error::new(Kind::Internal, "cannot listen for signals").caused_by(&error)
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
                _ = self.hangup.recv() => {
                    let _ = tell.send(News::Reload).await;
                }
            }
        }
    }
}
