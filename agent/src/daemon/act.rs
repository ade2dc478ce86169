//! One step for one image, and what came of it.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::{
    REPORT,
    journal::{self, During},
    pulse::limited,
    run::Daemon,
    worker::{Done, Job, Moved, Pulled, Rechecked, Spent, Work, Worker},
};
use crate::{
    desired::{Desired, Key, Verify},
    error::{Error, Result},
    event::{Event, Observer},
    keep,
    kind::Kind,
    oci::Digest,
    pressure::{self, Pressure},
    pull::Status,
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
/// How long a worker may take to take away what it was trying; systemd waits for longer.
const CLEANING: Duration = Duration::from_secs(12);
/// How often pressure is looked at while it is waited for its end.
const BREATH: Duration = Duration::from_secs(10);

/// How often in a row each registry could not be reached.
#[derive(Debug, Default)]
pub(super) struct Misses(BTreeMap<String, Missed>);

#[derive(Debug)]
struct Missed {
    count: u32,
    last: Instant,
    /// This device's clock may be all that is wrong.
    of_clock: bool,
}

impl Misses {
    /// What came of asking it.
    fn learn(&mut self, registry: &str, failed: Option<&Error>, now: Instant) {
        let Some(error) = failed.filter(|error| error.kind() == Kind::Unavailable) else {
            self.0.remove(registry);
            return;
        };
        let count = self.0.get(registry).map_or(0, |missed| missed.count);
        let missed = Missed {
            count: count.saturating_add(1),
            last: now,
            of_clock: error.is_of_clock(),
        };
        self.0.insert(registry.to_owned(), missed);
    }

    /// Why it is not asked for this image now, if it is not.
    fn away(&self, registry: &str, desired: &Desired, now: Instant) -> Option<Error> {
        let missed = self.0.get(registry).filter(|missed| {
            missed.count >= MISSES && now.saturating_duration_since(missed.last) < MOMENT
        })?;
        let error = away(desired, registry);
        Some(if missed.of_clock {
            error.of_clock()
        } else {
            error
        })
    }
}

impl Daemon {
    /// Takes the step; whatever comes of it, the image has been dealt with for now.
    pub(super) async fn act(&mut self, key: &Key, step: Step) {
        let Some(desired) = self.desired(key) else {
            return;
        };
        self.resolved = None;
        let undone = self.taken.as_ref() == Some(&(key.clone(), step))
            || self.disputes.is_futile(key, step, Instant::now());
        if undone && !self.asked.contains(key) {
            // It was done, and looks as if it had not been: again would be for ever.
            self.taken = None;
            self.failed(&desired, step, &undone_by_others(key));
            return;
        }
        let done = match step {
            Step::Pull(why) => self.pull(&desired, why).await,
            Step::Recheck => self.recheck(&desired).await,
            Step::Pin(on) => limited("set the pin", Box::pin(self.pin(&desired, on))).await,
            Step::Trim => limited("let go of former images", Box::pin(self.trim(&desired))).await,
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
                self.engine_went(&desired, step, error);
                return;
            }
            Err(error) => self.failed(&desired, step, &error),
        }
        if matches!(step, Step::Pull(_)) {
            // Whoever waits for it hears of it when the image has been looked at.
            self.asked.remove(key);
            self.dealt.insert(key.clone());
        }
    }

    /// The engine went during this step.
    pub(super) fn engine_went(&mut self, desired: &Desired, step: Step, error: Error) {
        let key = desired.key();
        if self.suspect.lost(&key, step) {
            self.failed(desired, step, &error);
            self.asked.remove(&key);
            // An engine that is back at once finds whoever waits still there.
            self.dealt.insert(key);
        }
        self.engine_lost(error);
    }

    /// The image is left alone for a while.
    pub(super) fn failed(&mut self, desired: &Desired, step: Step, error: &Error) {
        let key = desired.key();
        let now = Timestamp::now();
        let known = self.memory.get(&key).and_then(|known| known.error.as_ref());
        let known = known.and_then(Error::from_json);
        let same = known.is_some_and(|known| known.says_the_same(error));
        self.memory.failed(&key, now, step, error, &self.settings);
        let failures = self.memory.get(&key).map_or(0, |known| known.failures);
        // A publisher may take weeks; the same failure is news ever less often.
        if !same || failures.is_power_of_two() {
            let progress = self.handle.board.image(&key).and_then(|it| it.progress);
            let during = During {
                phase: progress.map(|progress| progress.phase.name()),
                digest: self.resolved.as_ref().map(Digest::as_str),
            };
            journal::report_during(error, Some(&key), during);
        } else {
            tracing::debug!(reference = key.reference, failures, "failed again: {error}");
        }
        // What is there is looked at again, and with it goes what was said of it.
        self.stale.insert(key);
    }

    async fn pull(&mut self, desired: &Desired, why: Why) -> Result<bool> {
        let key = desired.key();
        if why != Why::Asked && !self.calm(&key, pressure::LONGEST_PAUSE).await {
            return Ok(false);
        }
        let registry = desired.reference.repository().domain().to_owned();
        // Who asks for one image gets a try, whatever was a moment ago; who asks for all of
        // hundreds does not wait for each one's patience.
        let is_meant = why == Why::Asked && self.asked.len() == 1;
        let away = self.misses.away(&registry, desired, Instant::now());
        if let Some(error) = away.filter(|_| !is_meant) {
            return Err(error);
        }
        let begun = Instant::now();
        let (done, spent) = self.run(desired, Work::Pull).await;
        self.count(desired, &spent);
        if !matches!(done, Ok(None)) {
            let failed = done.as_ref().err();
            self.misses.learn(&registry, failed, Instant::now());
        }
        let metrics = &self.handle.metrics;
        match done {
            Ok(Some(Done::Pulled(pulled))) => {
                metrics.pull_ended(Ok(pulled.status), begun.elapsed());
                metrics.stored(pulled.bytes);
                self.pulled(&key, &pulled);
                Ok(true)
            }
            Ok(Some(Done::Rechecked(_))) => Err(unexpected()),
            Ok(None) => {
                metrics.stored(spent.moved);
                Ok(false)
            }
            Err(error) => {
                metrics.pull_ended(Err(error.kind()), begun.elapsed());
                metrics.stored(spent.moved);
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
                    snapshotter: pulled.snapshotter.clone(),
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
        let metrics = &self.handle.metrics;
        metrics.stored(spent.moved);
        let is_damaged = match &done {
            Ok(Some(Done::Rechecked(found))) => found.repaired,
            Err(error) => error.kind() == Kind::StoreDamaged,
            Ok(_) => false,
        };
        if is_damaged {
            metrics.found_damaged();
        }
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

    pub(super) fn rechecked(&mut self, desired: &Desired, found: &Rechecked) {
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
        if !found.unchecked.is_empty() {
            let reasons = crate::redact::printable(&found.unchecked.join("; "), 4000);
            tracing::warn!(
                reference = key.reference,
                platform = key.platform,
                "{}: not all of it could be compared: {reasons}",
                desired.reference
            );
        }
        self.stale.insert(key);
    }

    async fn pin(&mut self, desired: &Desired, on: bool) -> Result<bool> {
        let key = desired.key();
        self.stale.insert(key.clone());
        let Some(attached) = self.engines.get(&key.namespace) else {
            return Ok(false);
        };
        let want = self
            .session
            .want(attached, &desired.platform, desired.verify)?;
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
            verify: desired.verify,
            artifact: desired.artifact.clone(),
        };
        let generation = self.generation;
        let board = self.handle.board.clone();
        board.pulling(&key, Timestamp::now());
        let mut tick = interval(TELL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut resolved, mut moved) = (None, Moved::default());
        let ended = {
            let run = worker.run(&job, |event| {
                if let Event::Resolved { digest, .. } = &event {
                    resolved = Some(digest.clone());
                }
                moved.observe(&event);
                board.observe(&event);
            });
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
                    _ = tick.tick() => {
                        self.pulse.beat();
                        self.say_status(Some(&self.progress(&key)));
                    }
                }
            }
        };
        self.resolved = resolved;
        let moved = moved.bytes();
        let Some((ended, spent)) = ended else {
            // Killed: what it has fetched stays, for the next who wants it. One that tries an
            // image takes that away first.
            if desired.verify == Verify::Run {
                worker.end_within(CLEANING).await;
            } else {
                drop(worker);
            }
            let spent = Spent {
                moved,
                ..Spent::default()
            };
            return (Ok(None), spent);
        };
        let spent = Spent { moved, ..spent };
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
    /// does not end is how this host is. `false` if there is something else to do meanwhile,
    /// or the image is not wanted any more.
    pub(super) async fn calm(&mut self, key: &Key, longest: Duration) -> bool {
        let end = Instant::now() + longest;
        let generation = self.generation;
        let was_reachable = self.engines.is_reachable();
        while !self.pressed {
            self.pulse.beat();
            let reason = Pressure::read(&self.places.root).reason();
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
            let other = self.is_over(key, generation) || !self.asked.is_empty();
            if other || self.engines.is_reachable() != was_reachable {
                self.handle.board.paused(None);
                return false;
            }
        }
        self.handle.board.paused(None);
        true
    }
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
    .hint(REPORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_that_is_away_is_asked_again_after_a_moment() {
        let image = Desired {
            reference: crate::oci::Reference::parse("r.example/a:1").expect("valid"),
            platform: "host".to_owned(),
            namespace: "default".to_owned(),
            refresh: crate::schedule::Refresh::Never,
            pin: true,
            keep_previous: 0,
            verify: crate::desired::Verify::None,
            artifact: None,
            origin: crate::desired::Origin {
                file: "a.txt".into(),
                line: 1,
            },
        };
        let mut misses = Misses::default();
        let start = Instant::now();
        let later = start + MOMENT;
        let error = Error::new(Kind::Unavailable, "no answer");
        misses.learn("r.example", Some(&error), start);
        let away = |misses: &Misses, registry, at| misses.away(registry, &image, at);
        assert!(away(&misses, "r.example", start).is_none(), "once");
        misses.learn("r.example", Some(&error), start);
        let told = away(&misses, "r.example", start).expect("twice");
        assert!(!told.is_of_clock());
        assert!(away(&misses, "other.example", start).is_none());
        assert!(away(&misses, "r.example", later).is_none());
        // It did not answer again: another moment. A clock that is set changes everything for
        // the images that were not asked for, too.
        misses.learn("r.example", Some(&error.of_clock()), later);
        let told = away(&misses, "r.example", later).expect("three times");
        assert!(told.is_of_clock());
        let other = Error::new(Kind::NotFound, "no such tag");
        misses.learn("r.example", Some(&other), later);
        assert!(away(&misses, "r.example", later).is_none());
    }
}
