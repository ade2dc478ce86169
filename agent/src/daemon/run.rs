//! The loop: look, plan, act on the first step, and again until nothing is left to do; then
//! wait for the time, for somebody's wish or for a change.
//!
//! All of it is one task on one thread. What it waits for is bounded, and whoever is asked
//! whether the daemon lives (systemd's watchdog) hears no answer when it does not go round.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use jiff::{Timestamp, Zoned};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use super::{
    act::Misses,
    declared::Declared,
    dispute::{Disputes, Suspect},
    engines::Engines,
    handle::{Ask, Handle},
    lock::Lock,
    look::Blind,
    notify::Notifier,
    pulse::{Pulse, limited},
    saving::Saving,
    worker::Worker,
};
use crate::{
    clock,
    desired::{Desired, Key},
    error::Result,
    metrics,
    oci::Digest,
    reconcile::{Memory, Observed, StateFile, Step, plan},
    schedule::Settings,
    session::Session,
};

/// Everything is looked at so often, whatever else happens: not every change is told.
const POLL: Duration = Duration::from_secs(60 * 60);
/// A clock that is set, or a machine that slept, is noticed within this time.
const NAP: Duration = Duration::from_secs(15 * 60);
/// After a change, others are waited for.
const CALM: Duration = Duration::from_millis(200);

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
    /// Below it the kernel tells of this host: `/`.
    pub root: PathBuf,
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
    /// How often the settings became others.
    pub(super) generation: u32,
    pub(super) memory: Memory,
    pub(super) saving: Saving,
    _lock: Lock,
    pub(super) engines: Engines,
    pub(super) observed: BTreeMap<Key, Observed>,
    /// What has to be looked at again.
    pub(super) stale: BTreeSet<Key>,
    /// What could not be looked at, and when that is tried again.
    pub(super) blind: BTreeMap<Key, Blind>,
    /// When everything is looked at once more after a new connection.
    pub(super) look_again: Option<Instant>,
    polled: Instant,
    /// What somebody wants now.
    pub(super) asked: BTreeSet<Key>,
    /// What was wanted and is done; whoever waits hears of it when the board has it.
    pub(super) dealt: BTreeSet<Key>,
    waiters: Vec<(BTreeSet<Key>, oneshot::Sender<()>)>,
    /// Images that somebody else pinned, which is nothing to take away.
    pub(super) foreign_pins: BTreeSet<Key>,
    pub(super) misses: Misses,
    /// What the reference that is worked on was found to mean.
    pub(super) resolved: Option<Digest>,
    /// The step that was taken last, and went well.
    pub(super) taken: Option<(Key, Step)>,
    pub(super) suspect: Suspect,
    pub(super) disputes: Disputes,
    /// The host was under pressure for as long as is waited for its end, in this pass.
    pub(super) pressed: bool,
    pub(super) handle: Handle,
    pub(super) worker: Option<Worker>,
    pub(super) notifier: Arc<Notifier>,
    pub(super) pulse: Pulse,
    pub(super) news: mpsc::Receiver<News>,
    pub(super) stopping: bool,
}

impl Daemon {
    /// Reads what is configured and what is remembered. Nothing is done yet, and nothing but
    /// this can fail for good.
    pub(super) fn build(
        session: Session,
        places: Places,
        declared: Declared,
        handle: Handle,
        notifier: Arc<Notifier>,
        news: mpsc::Receiver<News>,
    ) -> Result<Self> {
        let lock = Lock::of_state(&places.state)?;
        let mut state = StateFile::new(&places.state);
        let (mut memory, damaged) = state.load();
        memory.begin(&clock::boot(&places.root));
        if let Some(error) = damaged {
            super::journal::report(&error, None);
        }
        let settings = session.timing();
        let mut daemon = Self {
            session,
            places,
            declared,
            settings,
            generation: 0,
            memory,
            saving: Saving::new(state),
            _lock: lock,
            engines: Engines::default(),
            observed: BTreeMap::new(),
            stale: BTreeSet::new(),
            blind: BTreeMap::new(),
            look_again: None,
            polled: Instant::now(),
            asked: BTreeSet::new(),
            dealt: BTreeSet::new(),
            waiters: Vec::new(),
            foreign_pins: BTreeSet::new(),
            misses: Misses::default(),
            resolved: None,
            taken: None,
            suspect: Suspect::default(),
            disputes: Disputes::default(),
            pressed: false,
            handle,
            worker: None,
            notifier,
            pulse: Pulse::new(),
            news,
            stopping: false,
        };
        if !daemon.memory.is_clean() {
            // What is remembered now, what is desired when it is known by what name.
            daemon.memory.unclean([]);
            daemon.declared.doubtful = true;
        }
        daemon.read_declared();
        // From here on a stop without notice is one. Where that cannot be written (a full
        // disk), images are looked after nevertheless.
        daemon.memory.set_clean(false);
        if let Err(error) = daemon.saving.now(&daemon.memory) {
            super::journal::report(&error, None);
        }
        Ok(daemon)
    }

    /// Works until it is told to stop.
    pub(super) async fn work(&mut self) {
        while !self.stopping {
            let wake = self.pass().await;
            if !self.stopping {
                self.idle(wake).await;
            }
        }
        self.end_worker().await;
    }

    /// The last thing that is done, wherever the work was broken off: what the engine has is
    /// whole, and what it does not have yet is fetched by the next run.
    pub(super) fn close(&mut self) -> Result<()> {
        self.worker = None;
        self.memory.set_clean(true);
        self.saving.now(&self.memory)
    }

    /// Everything that is to be done now.
    pub(super) async fn pass(&mut self) -> Option<Timestamp> {
        loop {
            self.pulse.beat();
            self.drain();
            if self.stopping {
                return None;
            }
            self.attach().await;
            if !self.observe().await {
                continue;
            }
            if self.engines.is_reachable() || self.needs_no_engine() {
                for key in std::mem::take(&mut self.dealt) {
                    self.answered(&key);
                }
            }
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
            if !plan.settled.is_empty() {
                self.memory.settle(&plan.settled);
                self.stale.extend(plan.settled);
                continue;
            }
            let Some((key, step)) = plan.steps.into_iter().next() else {
                self.pass_ended().await;
                return plan.wake;
            };
            self.act(&key, step).await;
            self.saving.soon(&self.memory).await;
        }
    }

    async fn pass_ended(&mut self) {
        self.end_worker().await;
        self.taken = None;
        self.misses = Misses::default();
        self.pressed = false;
        let reachable = self.engines.is_reachable();
        if reachable || self.needs_no_engine() {
            let now = Timestamp::now();
            self.handle.board.pass_done(now);
            self.handle.metrics.reconciled(now);
            let pruned = limited(
                "prune",
                Box::pin(async {
                    self.prune().await;
                    Ok(())
                }),
            );
            if let Err(error) = pruned.await {
                super::journal::report(&error, None);
            }
            self.pulse.beat();
        } else {
            // Whoever waits would wait for as long as the engine is away.
            self.asked.clear();
            self.dealt.clear();
            self.waiters.clear();
        }
        self.saving.later(&self.memory).await;
        self.write_textfile();
        self.say_status(None);
    }

    /// Waits for the time, a change of the engine or news.
    async fn idle(&mut self, wake: Option<Timestamp>) {
        self.pulse.rest();
        let end = Instant::now() + self.nap(wake);
        loop {
            tokio::select! {
                news = self.news.recv() => {
                    self.heed(news);
                    break;
                }
                // Others' images come and go, on some hosts all day long.
                change = self.engines.change() => if self.note(change) {
                    break;
                },
                () = sleep_until(end) => break,
            }
        }
        self.pulse.beat();
        if self.stopping {
            return;
        }
        // What belongs together comes together.
        let end = Instant::now() + CALM;
        loop {
            tokio::select! {
                news = self.news.recv() => self.heed(news),
                change = self.engines.change() => drop(self.note(change)),
                () = sleep_until(end) => break,
            }
            if self.stopping {
                break;
            }
        }
        self.look_again_after_a_while(Instant::now());
    }

    /// Not every change is told.
    fn look_again_after_a_while(&mut self, now: Instant) {
        if now >= self.polled + POLL || self.look_again.is_some_and(|at| at <= now) {
            // Nor is every change of the configuration told: where nothing can be watched,
            // or of what a link leads to.
            self.reread();
            self.engines.reconsider();
            self.stale_all();
            self.polled = now;
            self.look_again = None;
        }
    }

    /// How long nothing has to be done.
    pub(super) fn nap(&self, wake: Option<Timestamp>) -> Duration {
        let now = Timestamp::now();
        let until = |at: Timestamp| Duration::try_from(at.duration_since(now)).unwrap_or_default();
        let after = |at: Instant| at.saturating_duration_since(Instant::now());
        [
            wake.map(until),
            self.blind.values().map(|blind| until(blind.until)).min(),
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

    /// Reads what is configured, and lets it count.
    fn reread(&mut self) {
        self.reload();
        let listen = self.session.config().metrics_listen;
        self.handle.listen_at(listen);
    }

    /// Takes up what was told from outside.
    pub(super) fn heed(&mut self, news: Option<News>) {
        match news {
            None | Some(News::Stop) => self.stopping = true,
            Some(News::Changed) => self.reread(),
            Some(News::Reload) => {
                self.notifier.reloading();
                self.reread();
                self.notifier.ready();
            }
            Some(News::Ask(Ask::Reload { done })) => {
                self.reread();
                let _ = done.send(());
            }
            Some(News::Ask(Ask::Sync { reference, done })) => {
                // What was declared a moment ago is meant as well.
                self.reread();
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
                self.engines.reconsider();
                self.asked.extend(keys.iter().cloned());
                self.stale.extend(keys.iter().cloned());
                // Whoever has gone waits for nothing.
                self.waiters.retain(|(_, done)| !done.is_closed());
                if !done.is_closed() {
                    self.waiters.push((keys, done));
                }
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

    pub(super) async fn end_worker(&mut self) {
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

#[cfg(test)]
mod tests;
