//! One step for one image, and what came of it.

use std::{collections::BTreeMap, fmt::Write as _, path::Path, time::Duration};

use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::{
    journal,
    run::Daemon,
    worker::{Done, Job, Pulled, Rechecked, Spent, Work, Worker},
};
use crate::{
    desired::{Desired, Key},
    error::{Error, Result},
    event::Observer,
    keep,
    kind::Kind,
    pressure::{self, Pressure},
    pull::{Bytes, Status},
    reconcile::{Step, Why},
};

/// How often the service manager is told how far the work is.
const TELL: Duration = Duration::from_secs(5);
/// A registry that could not be reached so often in a row is not asked for other images for
/// a moment: each try takes its patience, and there may be hundreds of images.
const MISSES: u32 = 2;
/// That moment. A pass may last for hours, and registries come back.
const MOMENT: Duration = Duration::from_secs(60);
/// The end of a worker and the word that the daemon is to end, too, come in any order: so
/// long is listened for the second.
const LISTEN: Duration = Duration::from_millis(500);
/// How often pressure is looked at while it is waited for its end.
const BREATH: Duration = Duration::from_secs(10);

/// How often in a row each registry could not be reached, and when last.
#[derive(Debug, Default)]
pub(super) struct Misses(BTreeMap<String, (u32, Instant)>);

impl Misses {
    /// What came of asking it.
    fn learn(&mut self, registry: &str, missed: bool, now: Instant) {
        if missed {
            let (count, last) = self.0.entry(registry.to_owned()).or_insert((0, now));
            *count += 1;
            *last = now;
        } else {
            self.0.remove(registry);
        }
    }

    fn is_away(&self, registry: &str, now: Instant) -> bool {
        self.0.get(registry).is_some_and(|(count, last)| {
            *count >= MISSES && now.saturating_duration_since(*last) < MOMENT
        })
    }
}

impl Daemon {
    /// Takes the step; whatever comes of it, the image has been dealt with for now.
    pub(super) async fn act(&mut self, key: &Key, step: Step) {
        let Some(desired) = self.desired(key) else {
            return;
        };
        let undone = self.taken.as_ref() == Some(&(key.clone(), step))
            || self.disputes.is_futile(key, step, Instant::now());
        if undone && !self.asked.contains(key) {
            // It was done, and looks as if it had not been: again would be for ever.
            self.taken = None;
            self.failed(&desired, &undone_by_others(key));
            return;
        }
        let done = match step {
            Step::Pull(why) => self.pull(&desired, why).await,
            Step::Recheck => self.recheck(&desired).await,
            Step::Pin(on) => self.pin(&desired, on).await,
            Step::Trim => self.trim(&desired).await,
        };
        self.taken = None;
        match done {
            Ok(true) => {
                self.memory.succeeded(key, Timestamp::now(), step);
                self.disputes.done(key, step, Instant::now());
                self.taken = Some((key.clone(), step));
                self.suspect.clear(key);
            }
            // Broken off: the image is not wanted any more or otherwise, or the daemon stops.
            Ok(false) => {
                self.stale.insert(key.clone());
                return;
            }
            Err(error) if error.kind() == Kind::ContainerdUnavailable => {
                if self.suspect.lost(key, step) {
                    self.failed(&desired, &error);
                    self.asked.remove(key);
                }
                self.engine_lost(error);
                return;
            }
            Err(error) => self.failed(&desired, &error),
        }
        if matches!(step, Step::Pull(_)) {
            // Whoever waits for it hears of it when the image has been looked at.
            self.asked.remove(key);
            self.dealt.insert(key.clone());
        }
    }

    /// The image is left alone for a while.
    fn failed(&mut self, desired: &Desired, error: &Error) {
        let key = desired.key();
        let now = Timestamp::now();
        let known = self.memory.get(&key).and_then(|known| known.error.as_ref());
        let same = known.is_some_and(|known| is_same(known, error));
        self.memory.failed(&key, now, error, &self.settings);
        let failures = self.memory.get(&key).map_or(0, |known| known.failures);
        // A publisher may take weeks; the same failure is news ever less often.
        if !same || failures.is_power_of_two() {
            journal::report(error, Some(&key));
        } else {
            tracing::debug!(reference = key.reference, failures, "failed again: {error}");
        }
        // What is there is looked at again, and with it goes what was said of it.
        self.stale.insert(key);
    }

    async fn pull(&mut self, desired: &Desired, why: Why) -> Result<bool> {
        if why != Why::Asked && !self.calm().await {
            return Ok(false);
        }
        let key = desired.key();
        let registry = desired.reference.repository().domain().to_owned();
        // Who asks for one image gets a try, whatever was a moment ago; who asks for all of
        // hundreds does not wait for each one's patience.
        let is_meant = why == Why::Asked && self.asked.len() == 1;
        if !is_meant && self.misses.is_away(&registry, Instant::now()) {
            return Err(away(desired, &registry));
        }
        let begun = Instant::now();
        let (done, spent) = self.run(desired, Work::Pull).await;
        self.count(desired, &spent);
        let missed = matches!(&done, Err(error) if error.kind() == Kind::Unavailable);
        if !matches!(done, Ok(None)) {
            self.misses.learn(&registry, missed, Instant::now());
        }
        match done {
            Ok(Some(Done::Pulled(pulled))) => {
                self.handle
                    .metrics
                    .pull_ended(Ok(pulled.status), begun.elapsed(), pulled.bytes);
                self.pulled(&key, &pulled);
                Ok(true)
            }
            Ok(Some(Done::Rechecked(_))) => Err(unexpected()),
            Ok(None) => Ok(false),
            Err(error) => {
                let took = begun.elapsed();
                self.handle
                    .metrics
                    .pull_ended(Err(error.kind()), took, Bytes::default());
                Err(error)
            }
        }
    }

    fn pulled(&mut self, key: &Key, pulled: &Pulled) {
        for warning in &pulled.warnings {
            let warning = crate::redact::printable(warning, 400);
            tracing::warn!(
                reference = key.reference,
                platform = key.platform,
                "{warning}"
            );
        }
        self.handle.board.selected(key, pulled.platform.as_deref());
        // Nothing was written, so what was seen of it still holds.
        let unchanged = pulled.status == Status::Present
            && self
                .observed
                .get(key)
                .is_some_and(|seen| seen.complete && seen.target.as_ref() == Some(&pulled.digest));
        if unchanged {
            let now = Timestamp::now();
            self.handle.board.succeeded(key, Some(now));
            if let Some(seen) = self.observed.get(key) {
                let ready = crate::status::Ready {
                    digest: pulled.digest.clone(),
                    pinned: seen.pinned,
                    selected_platform: pulled.platform.clone(),
                    snapshotter: Some(pulled.snapshotter.clone()),
                };
                self.handle.board.ready(key, ready, None, now);
            }
        } else {
            self.stale.insert(key.clone());
        }
    }

    async fn recheck(&mut self, desired: &Desired) -> Result<bool> {
        let (done, spent) = self.run(desired, Work::Recheck).await;
        self.count(desired, &spent);
        match done {
            Ok(Some(Done::Rechecked(found))) => {
                self.rechecked(desired, &found);
                Ok(true)
            }
            Ok(Some(Done::Pulled(_))) => Err(unexpected()),
            Ok(None) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn rechecked(&mut self, desired: &Desired, found: &Rechecked) {
        let key = desired.key();
        if found.repaired {
            let mut text = format!("{} was damaged, and is repaired", desired.reference);
            for damage in &found.damage {
                let _ = write!(text, "; {damage}");
            }
            // Names of files are their image's publisher's.
            let text = crate::redact::printable(&text, 4000);
            tracing::warn!(reference = key.reference, platform = key.platform, "{text}");
        }
        self.stale.insert(key);
    }

    async fn pin(&mut self, desired: &Desired, on: bool) -> Result<bool> {
        let key = desired.key();
        self.stale.insert(key.clone());
        let Some(attached) = self.engines.get(&key.namespace) else {
            return Ok(false);
        };
        let want = self.session.want(attached, &desired.platform)?;
        let Some(record) = attached.engine.image(&key.reference).await? else {
            return Ok(true);
        };
        let config = keep::config_of(&attached.engine, &record.target, &want).await?;
        let pinned = keep::set_pin(
            &attached.engine,
            &desired.reference,
            &record.target,
            config.as_ref(),
            on,
        )
        .await?;
        if !on && pinned == keep::Pinned::Unchanged {
            self.foreign_pins.insert(key);
        }
        Ok(true)
    }

    async fn trim(&mut self, desired: &Desired) -> Result<bool> {
        let key = desired.key();
        self.stale.insert(key.clone());
        let Some(attached) = self.engines.get(&key.namespace) else {
            return Ok(false);
        };
        keep::trim(
            &attached.engine,
            &desired.reference,
            desired.keep_previous,
            &self.declared.images,
            self.declared.complete,
        )
        .await?;
        Ok(true)
    }

    /// Has a worker do it. `None`: broken off, because it is not wanted any more, or not by
    /// the settings that it was begun with, or because the daemon stops.
    async fn run(&mut self, desired: &Desired, work: Work) -> (Result<Option<Done>>, Spent) {
        let key = desired.key();
        let mut worker = match self.worker().await {
            Ok(worker) => worker,
            Err(error) => return (Err(error), Spent::default()),
        };
        let job = Job {
            work,
            reference: desired.reference.typed().to_owned(),
            platform: desired.platform.clone(),
            namespace: desired.namespace.clone(),
            pin: desired.pin,
            keep_previous: desired.keep_previous,
        };
        let generation = self.generation;
        let board = self.handle.board.clone();
        board.pulling(&key, Timestamp::now());
        let mut tick = interval(TELL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ended = {
            let run = worker.run(&job, |event| board.observe(&event));
            tokio::pin!(run);
            loop {
                tokio::select! {
                    ended = &mut run => break Some(ended),
                    news = self.news.recv() => {
                        self.heed(news);
                        if self.is_over(&key, generation) {
                            break None;
                        }
                    }
                    change = self.engines.change() => drop(self.note(change)),
                    _ = tick.tick() => self.say_status(Some(&self.progress(&key))),
                }
            }
        };
        let Some((ended, spent)) = ended else {
            // Killed: what it has fetched stays, for the next who wants it.
            drop(worker);
            return (Ok(None), Spent::default());
        };
        if worker.is_usable() {
            self.worker = Some(worker);
        } else if ended.is_err() {
            // A service manager, or a terminal, sends its signal to both processes.
            while let Ok(news) = timeout(LISTEN, self.news.recv()).await {
                self.heed(news);
                if self.is_over(&key, generation) {
                    return (Ok(None), spent);
                }
            }
        }
        (ended.map(Some), spent)
    }

    /// Whether what is being done for the image is of no use any more.
    fn is_over(&self, key: &Key, generation: u32) -> bool {
        self.stopping || self.generation != generation || !self.is_desired(key)
    }

    async fn worker(&mut self) -> Result<Worker> {
        if let Some(mut worker) = self.worker.take()
            && worker.is_usable()
        {
            return Ok(worker);
        }
        Worker::start(&self.declared.config).await
    }

    fn progress(&self, key: &Key) -> String {
        let images = self.handle.board.images();
        let image = images.iter().find(|image| image.is(key));
        let Some(progress) = image.and_then(|image| image.progress) else {
            return key.reference.clone();
        };
        let phase = progress.phase.name();
        match (progress.bytes * 100).checked_div(progress.total) {
            Some(percent) => format!("{phase} {} {percent} %", key.reference),
            None => format!("{phase} {}", key.reference),
        }
    }

    fn count(&self, desired: &Desired, spent: &Spent) {
        let metrics = &self.handle.metrics;
        for (registry, code, count) in &spent.requests {
            metrics.requests(registry, code, *count);
        }
        for (registry, source, count) in &spent.bytes {
            metrics.bytes(registry, source, *count);
        }
        for (registry, remaining) in &spent.remaining {
            metrics.rate_limit_remaining(registry, *remaining);
        }
        tracing::debug!(reference = %desired.reference, "the worker has ended its job");
    }

    /// Waits while the host has no memory or disk to spare, but not for ever: pressure that
    /// does not end is how this host is. `false` if there is something else to do meanwhile.
    async fn calm(&mut self) -> bool {
        let end = Instant::now() + pressure::LONGEST_PAUSE;
        let generation = self.generation;
        while !self.pressed {
            let reason = Pressure::read(Path::new("/")).reason();
            self.handle.board.paused(reason.as_deref());
            if reason.is_none() {
                return true;
            }
            self.pressed = Instant::now() >= end;
            if self.pressed {
                break;
            }
            tokio::select! {
                news = self.news.recv() => self.heed(news),
                change = self.engines.change() => drop(self.note(change)),
                () = sleep(BREATH) => {}
            }
            let other = self.stopping || self.generation != generation || !self.asked.is_empty();
            if other || !self.engines.is_reachable() {
                self.handle.board.paused(None);
                return false;
            }
        }
        self.handle.board.paused(None);
        true
    }
}

/// Whether it is the failure that is remembered, told in the same words.
fn is_same(known: &serde_json::Value, error: &Error) -> bool {
    let causes = known["causes"].as_array();
    known["kind"] == error.kind().name()
        && known["message"] == error.message()
        && causes.is_some_and(|causes| causes.iter().eq(error.causes()))
}

fn undone_by_others(key: &Key) -> Error {
    Error::new(
        Kind::StoreDamaged,
        format_args!("`{key}` was brought in order, and is not"),
    )
    .because(
        "another client of containerd may undo it, or its store does not keep what it is given",
    )
    .hint("`edgepull repair` looks closer; `ctr events` shows who changes image records")
    .retry(true)
}

/// What is not asked of a registry that does not answer.
fn away(desired: &Desired, registry: &str) -> Error {
    let typed = desired.reference.typed();
    Error::new(Kind::Unavailable, format_args!("cannot pull `{typed}`"))
        .because(format_args!(
            "{registry} could not be reached for {MISSES} other images a moment ago"
        ))
        .reference(typed)
        .registry(registry)
        .platform(&desired.platform)
        .hint("their failures say why; this image is tried again with them")
}

fn unexpected() -> Error {
    Error::new(
        Kind::Internal,
        "a worker process did something else than its job",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_known_again() {
        let error = Error::new(Kind::NotFound, "no such tag").because("404");
        let known = serde_json::to_value(&error).expect("plain data");
        assert!(is_same(&known, &error));
        let other = Error::new(Kind::NotFound, "no such tag").because("410");
        assert!(!is_same(&known, &other));
        assert!(!is_same(&known, &error.with_kind(Kind::Unavailable)));
    }

    #[test]
    fn a_registry_that_is_away_is_asked_again_after_a_moment() {
        let mut misses = Misses::default();
        let start = Instant::now();
        misses.learn("r.example", true, start);
        assert!(!misses.is_away("r.example", start), "once is no reason");
        misses.learn("r.example", true, start);
        assert!(misses.is_away("r.example", start));
        assert!(!misses.is_away("other.example", start));
        assert!(!misses.is_away("r.example", start + MOMENT));
        // It did not answer again: another moment.
        misses.learn("r.example", true, start + MOMENT);
        assert!(misses.is_away("r.example", start + MOMENT));
        misses.learn("r.example", false, start + MOMENT);
        assert!(!misses.is_away("r.example", start + MOMENT));
    }
}
