//! The worker's end: jobs from the socket on its standard input, until that closes.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::AsFd,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixStream, unix::OwnedWriteHalf},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};

use super::{Answer, Done, Ended, Hello, Job, Pulled, Rechecked, Spent, Work, trial::Trial};
use crate::{
    choice::Choice,
    config::Config,
    daemon::REPORT,
    desired::Verify,
    error::{Error, Result},
    event::{Event, Events, Observer},
    keep::{self, AGENT},
    kind::Kind,
    oci::{Digest, Reference},
    pull::{Bytes, Found, Look, Puller, image},
    registry::{Client, Counts},
    resolve::Want,
    session::{Attached, Session},
    smoke,
};

/// How often bytes that came in are told.
const PROGRESS: Duration = Duration::from_millis(250);
/// Damages of an image that are told one by one.
const MOST_TOLD: usize = 50;
/// Events on their way out; there are a handful for each layer.
const QUEUE: usize = 1024;
/// How long cleaning up after smoke tests may take.
const SWEEP: Duration = Duration::from_secs(10);

/// Works for the daemon at the other end of standard input, for as long as it is there.
/// `session` makes the settings out of the configuration that the daemon sends first.
pub async fn serve(session: impl FnOnce(Config) -> Session) -> Result<()> {
    match work(session).await {
        // It was killed, and whoever watches over it knows.
        Err(error) if error.kind() == Kind::AgentUnavailable => Ok(()),
        ended => ended,
    }
}

async fn work(session: impl FnOnce(Config) -> Session) -> Result<()> {
    let stream = socket().map_err(|error| {
        Error::new(
            Kind::Usage,
            "a worker is started by `edgepull agent`, not by hand",
        )
        .caused_by(&error)
        .hint("run `edgepull agent`")
    })?;
    // Whoever stops the daemon signals all of its processes. This one ends by the daemon's end,
    // and cleans up first.
    let _ignored = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
    let (from, to) = stream.into_split();
    let mut lines = BufReader::new(from).lines();
    let gone = |error: std::io::Error| {
        Error::new(Kind::AgentUnavailable, "the daemon went away").caused_by(&error)
    };
    let Some(hello) = lines.next_line().await.map_err(gone)? else {
        return Ok(());
    };
    let hello: Hello = read(&hello)?;
    let config = Config::of_text(&hello.config, None)?;
    let mut bench = Bench::new(session(config));
    let (events, queue) = mpsc::channel(QUEUE);
    let progress = Arc::new(Mutex::new(HashMap::new()));
    let observer = Events::new(Upward {
        queue: events.clone(),
        progress: Arc::clone(&progress),
    });
    let mut voice = Voice {
        to,
        queue,
        progress,
    };
    while let Some(line) = lines.next_line().await.map_err(gone)? {
        let job: Job = read(&line)?;
        let ended = {
            let work = bench.run(&job, &observer);
            tokio::pin!(work);
            let mut tick = interval_at(Instant::now() + PROGRESS, PROGRESS);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    ended = &mut work => break ended,
                    Some(event) = voice.queue.recv() => if voice.pass(event).await.is_err() {
                        break Err(gone_away());
                    },
                    _ = tick.tick() => if voice.flush(None).await.is_err() {
                        break Err(gone_away());
                    },
                    // Nobody wants the result of a daemon that is gone.
                    () = closed(&mut lines) => break Err(gone_away()),
                }
            }
        };
        if ended
            .as_ref()
            .is_err_and(|error| error.kind() == Kind::Cancelled)
        {
            // What was being tried must not run on.
            bench.sweep().await;
            return Ok(());
        }
        while let Ok(event) = voice.queue.try_recv() {
            voice.pass(event).await?;
        }
        voice.flush(None).await?;
        let ended = Ended::new(ended, bench.spent());
        voice.say(&Answer::Ended(ended)).await?;
    }
    Ok(())
}

fn gone_away() -> Error {
    Error::new(Kind::Cancelled, "the daemon went away")
}

fn socket() -> std::io::Result<UnixStream> {
    let own = std::io::stdin().as_fd().try_clone_to_owned()?;
    let stream = std::os::unix::net::UnixStream::from(own);
    stream.peer_addr()?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

fn read<'a, T: serde::Deserialize<'a>>(line: &'a str) -> Result<T> {
    serde_json::from_str(line).map_err(|error| {
        Error::new(Kind::Internal, "the daemon said what cannot be understood")
            .caused_by(&error)
            .hint(REPORT)
    })
}

type Incoming = tokio::io::Lines<BufReader<tokio::net::unix::OwnedReadHalf>>;

/// Ends when the daemon has closed its end; a daemon that is there waits for the answer.
async fn closed(lines: &mut Incoming) {
    loop {
        match lines.get_mut().fill_buf().await {
            Ok([]) | Err(_) => return,
            Ok(_) => std::future::pending().await,
        }
    }
}

/// Events for the daemon. Bytes are added up: a line for each read would cost more than
/// the read.
struct Upward {
    queue: mpsc::Sender<Event>,
    progress: Arc<Mutex<HashMap<(String, Digest), u64>>>,
}

impl Observer for Upward {
    fn observe(&self, event: &Event) {
        match event {
            Event::BlobProgress {
                reference,
                digest,
                bytes,
            } => {
                let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
                *progress
                    .entry((reference.clone(), digest.clone()))
                    .or_default() += bytes;
            }
            // One that does not fit is only a line less on somebody's screen.
            event => drop(self.queue.try_send(event.clone())),
        }
    }
}

/// What goes up.
struct Voice {
    to: OwnedWriteHalf,
    queue: mpsc::Receiver<Event>,
    progress: Arc<Mutex<HashMap<(String, Digest), u64>>>,
}

impl Voice {
    async fn pass(&mut self, event: Event) -> Result<()> {
        if let Event::BlobDone { digest, .. } = &event {
            self.flush(Some(digest)).await?;
        }
        self.say(&Answer::Event(event)).await
    }

    /// Tells the bytes of one blob, or of all.
    async fn flush(&mut self, of: Option<&Digest>) -> Result<()> {
        let taken: Vec<_> = {
            let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
            progress
                .extract_if(|(_, digest), _| of.is_none_or(|of| of == digest))
                .collect()
        };
        for ((reference, digest), bytes) in taken {
            self.say(&Answer::Event(Event::BlobProgress {
                reference,
                digest,
                bytes,
            }))
            .await?;
        }
        Ok(())
    }

    async fn say(&mut self, answer: &Answer) -> Result<()> {
        let mut line = serde_json::to_vec(answer).map_err(|error| {
            Error::new(Kind::Internal, "cannot write an answer down")
                .caused_by(&error)
                .hint(REPORT)
        })?;
        line.push(b'\n');
        self.to.write_all(&line).await.map_err(|error| {
            Error::new(Kind::AgentUnavailable, "the daemon went away").caused_by(&error)
        })
    }
}

/// What is made once a worker and used by all its jobs.
pub(super) struct Bench {
    pub(super) session: Session,
    attached: HashMap<String, Attached>,
    client: Option<Client>,
    told: Counts,
    /// Layers that were found whole.
    sound: keep::Sound,
}

impl Bench {
    fn new(session: Session) -> Self {
        Self {
            session,
            attached: HashMap::new(),
            client: None,
            told: Counts::default(),
            sound: keep::Sound::default(),
        }
    }

    /// What was spent since the last question.
    fn spent(&mut self) -> Spent {
        let Some(client) = &self.client else {
            return Spent::default();
        };
        let now = client.counts();
        let told = std::mem::replace(&mut self.told, now.clone());
        let requests = since(&now.requests, &told.requests, |code: &Option<u16>| {
            code.map_or_else(|| "error".to_owned(), |status| status.to_string())
        });
        let bytes = since(&now.bytes, &told.bytes, |origin| origin.as_str().to_owned());
        let quotas = client.quotas().into_iter();
        Spent {
            requests,
            bytes,
            remaining: quotas
                .filter_map(|(registry, quota)| Some((registry, quota.remaining?)))
                .collect(),
            moved: Bytes::default(),
        }
    }

    async fn run(&mut self, job: &Job, events: &Events) -> Result<Done> {
        let reference = Reference::parse(&job.reference).map_err(|error| {
            Error::new(
                Kind::InvalidReference,
                format_args!("`{}` is no image reference", job.reference),
            )
            .because(error)
            .hint("correct it below /etc/edgepull/images.d")
        })?;
        events.emit(&Event::Resolving {
            reference: job.reference.clone(),
        });
        let done = match (job.work, &job.artifact) {
            (Work::Pull, Some(files)) => self.deliver(job, files, &reference, events).await,
            (Work::Recheck, Some(files)) => {
                self.recheck_files(job, files, &reference, events).await
            }
            (Work::Pull, None) => self.pull(job, &reference, events).await,
            (Work::Recheck, None) => self.recheck(job, &reference, events).await,
        };
        events.emit(&Event::Finished {
            reference: job.reference.clone(),
            ok: done.is_ok(),
        });
        done
    }

    /// Takes away what was being tried.
    async fn sweep(&self) {
        for attached in self.attached.values() {
            swept(attached, self.session.runtime_dir()).await;
        }
    }

    async fn prepare(&mut self, job: &Job) -> Result<()> {
        if !self.attached.contains_key(&job.namespace) {
            let attached = self.session.join(Some(&job.namespace)).await?;
            // A worker that was killed may have left a container that it tried.
            swept(&attached, self.session.runtime_dir()).await;
            self.attached.insert(job.namespace.clone(), attached);
        }
        self.client().map(drop)
    }

    pub(super) fn client(&mut self) -> Result<&Client> {
        let client = match self.client.take() {
            Some(client) => client,
            None => self.session.client()?,
        };
        Ok(self.client.insert(client))
    }

    async fn pull(&mut self, job: &Job, reference: &Reference, events: &Events) -> Result<Done> {
        self.prepare(job).await?;
        let (Some(attached), Some(client)) = (self.attached.get(&job.namespace), &self.client)
        else {
            return Err(lost());
        };
        let want = self.session.want(attached, &job.platform, job.verify)?;
        let host = self.session.host()?;
        let room = keep::space::Space::of(
            &attached.engine,
            &attached.snapshotter,
            self.session.config().free_floor(),
        )?;
        let locks = self.session.runtime_dir();
        let puller = Puller {
            engine: &attached.engine,
            client,
            snapshotter: &attached.snapshotter,
            events,
            state_dir: locks,
            managed_by: AGENT,
            pin: job.pin,
            unpack: true,
            room: Some(&room),
            jury: self.session.jury(&want, job.verify),
        };
        let work = async {
            let repo = client.repository(reference);
            let (choice, outcome) = match puller.find(reference, &repo, &want).await? {
                Found::Present(choice) => {
                    let outcome = image::present(&choice);
                    let look = match job.verify {
                        Verify::None => Look::Once,
                        Verify::Static | Verify::Run => Look::Again,
                    };
                    let mut proven = puller.prove(&choice, outcome.clone(), look).await;
                    if proven.as_ref().is_err_and(Error::is_of_damage)
                        && mend(attached, client, reference, &want, events, locks).await?
                    {
                        proven = puller.prove(&choice, outcome, look).await;
                    }
                    let outcome = proven?;
                    (choice, outcome)
                }
                Found::Artifact(_) => return Err(artifact()),
                Found::Image(choice) => {
                    if job.keep_previous > 0 {
                        hold(attached, reference, &choice, &want).await?;
                    }
                    let outcome = puller.fetch(reference, &repo, &choice).await?;
                    (choice, outcome)
                }
            };
            let mut warnings = image::warnings(&want, &choice);
            if job.verify == Verify::Run {
                let trial = Trial {
                    attached,
                    host,
                    runtime_dir: locks,
                    events,
                };
                warnings.extend(trial.run(reference, &choice, &repo).await?);
            }
            warnings.extend(outcome.warnings);
            Ok(Pulled {
                status: outcome.status,
                digest: choice.target().digest.clone(),
                manifest: choice.leaf.descriptor.digest.clone(),
                platform: choice.platform.as_ref().map(ToString::to_string),
                snapshotter: Some(attached.snapshotter.clone()),
                bytes: outcome.bytes,
                warnings,
            })
        };
        let ended = Box::pin(work).await;
        let notices = client.take_notices();
        match ended {
            Ok(mut done) => {
                done.warnings.extend(notices);
                Ok(Done::Pulled(Box::new(done)))
            }
            Err(error) => {
                let error = notices.into_iter().fold(error, Error::because);
                Err(image::named(error, reference, &job.platform, Some(host)))
            }
        }
    }
}

impl Bench {
    async fn recheck(&mut self, job: &Job, reference: &Reference, events: &Events) -> Result<Done> {
        self.prepare(job).await?;
        let (Some(attached), Some(client)) = (self.attached.get(&job.namespace), &self.client)
        else {
            return Err(lost());
        };
        let Some(record) = attached.engine.image(&reference.record_name()).await? else {
            // What is not there is pulled, and new then.
            return Ok(Done::Rechecked(Box::default()));
        };
        let want = self.session.want(attached, &job.platform, job.verify)?;
        let locks = self.session.runtime_dir();
        let room = keep::space::Space::of(
            &attached.engine,
            &attached.snapshotter,
            self.session.config().free_floor(),
        )?;
        let repair = keep::Repair {
            engine: &attached.engine,
            snapshotter: &attached.snapshotter,
            client,
            want: &want,
            events,
            state_dir: locks,
            managed_by: AGENT,
            room: Some(&room),
        };
        let repaired = Box::pin(repair.image(reference, &record, &mut self.sound)).await?;
        if let Some(error) = repaired.error {
            // Whatever keeps it from being mended: it is damaged, and not to be called ready.
            return Err(error.with_kind(Kind::StoreDamaged).retry(true));
        }
        let damage = &repaired.report.damage;
        Ok(Done::Rechecked(Box::new(Rechecked {
            repaired: repaired.verdict == keep::Verdict::Repaired,
            damage: first(damage),
            unchecked: first(repaired.report.unchecked.iter().map(|it| &it.reason)),
            fetched: repaired.fetched,
        })))
    }
}

/// The first of them, and how many more there are: a layer has as many files as it likes.
fn first(all: impl IntoIterator<Item = impl ToString>) -> Vec<String> {
    let mut all = all.into_iter();
    let mut told: Vec<String> = all
        .by_ref()
        .take(MOST_TOLD)
        .map(|item| item.to_string())
        .collect();
    let more = all.count();
    if more > 0 {
        told.push(format!("and {more} more"));
    }
    told
}

/// What was counted after `told`, with the second part of the key in words.
fn since<K: Ord>(
    now: &BTreeMap<(String, K), u64>,
    told: &BTreeMap<(String, K), u64>,
    word: impl Fn(&K) -> String,
) -> Vec<(String, String, u64)> {
    now.iter()
        .map(|(key, count)| {
            let before = told.get(key).copied().unwrap_or_default();
            (key.0.clone(), word(&key.1), count.saturating_sub(before))
        })
        .filter(|(_, _, count)| *count > 0)
        .collect()
}

/// Compares an image with its layers whose entrypoint is empty or broken, and mends it. Whether
/// something was mended; if not, the publisher made it so.
async fn mend(
    attached: &Attached,
    client: &Client,
    reference: &Reference,
    want: &Want,
    events: &Events,
    locks: &Path,
) -> Result<bool> {
    let Some(record) = attached.engine.image(&reference.record_name()).await? else {
        return Ok(false);
    };
    let repair = keep::Repair {
        engine: &attached.engine,
        snapshotter: &attached.snapshotter,
        client,
        want,
        events,
        state_dir: locks,
        managed_by: AGENT,
        room: None,
    };
    let mut sound = keep::Sound::default();
    let repaired = Box::pin(repair.image(reference, &record, &mut sound)).await?;
    match repaired.error {
        Some(error) => Err(error.with_kind(Kind::StoreDamaged).retry(true)),
        None => Ok(repaired.verdict == keep::Verdict::Repaired),
    }
}

/// Takes away what a smoke test left in the engine, within a while.
async fn swept(attached: &Attached, runtime_dir: &Path) {
    let sweep = smoke::sweep(&attached.engine, runtime_dir);
    if let Ok(errors) = timeout(SWEEP, sweep).await {
        for error in errors {
            tracing::warn!(%error, "what a smoke test left cannot be taken away yet");
        }
    } else {
        tracing::warn!("what a smoke test left could not be taken away in time");
    }
}

/// Before a tag moves: what it points at now is kept for a rollback.
async fn hold(
    attached: &Attached,
    reference: &Reference,
    choice: &Choice,
    want: &Want,
) -> Result<()> {
    let engine = &attached.engine;
    let Some(record) = engine.image(&reference.record_name()).await? else {
        return Ok(());
    };
    let config = keep::config_of(engine, &record.target, want).await?;
    let new = &choice.target().digest;
    keep::hold_previous(
        engine,
        reference,
        &record.target,
        new,
        config.as_ref(),
        Timestamp::now(),
    )
    .await?;
    Ok(())
}

fn lost() -> Error {
    Error::new(Kind::Internal, "a worker lost its engine").hint(REPORT)
}

fn artifact() -> Error {
    Error::new(
        Kind::Unsupported,
        "the reference offers an artifact here, which is delivered and not unpacked",
    )
    .hint("declare it with `artifact_dir = \"/DIR\"`, and its files are kept there; see edgepull-images(5)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_to_every_file_of_a_layer_is_told_in_one_line() {
        assert_eq!(first(["a", "b"]), ["a", "b"]);
        let told = first(0..100_000);
        assert_eq!(told.len(), MOST_TOLD + 1);
        assert_eq!(told[0], "0");
        assert_eq!(told[MOST_TOLD], "and 99950 more");
    }
}
