//! Bringing one blob into the content store: found there, linked from another
//! namespace, resumed, waited for, or fetched whole; committed once, verified.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::{
    client::{Engine, Patience},
    content::ingest_ref,
    failure::{Cause, Failure},
    labels::{Labels, distribution_key, distribution_source},
    lease::{Lease, Leased},
    transfer::Transfer,
    writer::{Committed, Opened, Writer},
};
use crate::{
    error::{Error, Result},
    event::{Event, Events},
    kind::Kind,
    oci::{Algorithm, Descriptor, Repository},
    source::Source,
};

/// A foreign holder of the ref without new bytes for so long is reported.
const HOLDER_STALL: Duration = Duration::from_secs(60);
/// Times that an ingest may be found elsewhere than where we left it.
const SURPRISES: u32 = 5;

/// What a blob is brought in with.
#[derive(Debug, Clone, Copy)]
pub struct Ingest<'a> {
    pub lease: &'a Lease,
    pub source: &'a dyn Source,
    /// The repository that the content comes from, for containerd's label; `None` when
    /// it is no registry.
    pub repository: Option<&'a Repository>,
    pub events: &'a Events,
    /// The reference as the user typed it, for the events.
    pub reference: &'a str,
}

/// What it took (bytes).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ingested {
    /// Came from the source.
    pub downloaded: u64,
    /// Were in an unfinished ingest.
    pub resumed: u64,
    /// Were in the store.
    pub reused: u64,
}

/// Why one attempt ended.
pub(super) enum Stop {
    Store(Failure),
    Source(Error),
    /// Begin again where the ingest is now: under the next lease, or behind another writer.
    Again,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Store(failure)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Store(Failure::new(Cause::Other, error))
    }
}

/// Progress over several attempts.
#[derive(Default)]
pub(super) struct Run {
    pub(super) tally: Ingested,
    opened: bool,
    /// Some of the bytes were written by somebody else, or by an earlier run.
    pub(super) foreign: bool,
    /// Bytes that the present attempt got out of the source.
    pub(super) progress: u64,
}

impl Run {
    /// From nothing; what was fetched for it stays counted.
    fn restarted(self) -> Self {
        Self {
            tally: Ingested {
                downloaded: self.tally.downloaded,
                ..Ingested::default()
            },
            ..Self::default()
        }
    }
}

impl Ingest<'_> {
    /// Brings `descriptor` in, with `labels` on it. What the source gives is hashed here
    /// when all of it passes here; what was resumed, the server hashes.
    pub async fn blob(&self, descriptor: &Descriptor, labels: &Labels) -> Result<Ingested> {
        supported(descriptor)?;
        let mut run = Run::default();
        let mut patience = Patience::new();
        let mut restarted = false;
        let mut surprises = 0;
        loop {
            run.progress = 0;
            let engine = self.lease.engine()?;
            let stop = match self.attempt(&engine, descriptor, labels, &mut run).await {
                Ok(()) => break,
                Err(stop) => stop,
            };
            if run.progress > 0 {
                patience.renew();
                surprises = 0;
            }
            match stop {
                Stop::Again => surprises += 1,
                Stop::Store(failure) => match failure.cause {
                    Cause::Disconnected => patience.pause(&engine, failure).await?,
                    Cause::Exists | Cause::OutOfRange if surprises < SURPRISES => surprises += 1,
                    Cause::Mismatch => {
                        // The ingest is kept with its bad bytes, and would be resumed for ever.
                        if let Err(stuck) = discard(&engine, descriptor).await {
                            return Err(self.mismatch(descriptor, failure.error).because(stuck));
                        }
                        let elsewhere = self.source.distrust(descriptor);
                        let joint = run.foreign || self.source.pieced(descriptor);
                        if !elsewhere && (restarted || !joint) {
                            return Err(self.mismatch(descriptor, failure.error));
                        }
                        restarted |= !elsewhere;
                        run = run.restarted();
                    }
                    _ => return Err(failure.error),
                },
                Stop::Source(error) => {
                    // Whoever speaks to the network goes on there as long as it helps; trying
                    // again here would multiply its patience.
                    if error.kind() != Kind::InvalidContent {
                        return Err(self.named(error));
                    }
                    if let Err(stuck) = discard(&engine, descriptor).await {
                        return Err(self.named(error.because(stuck)));
                    }
                    // Bytes of several answers, or of an earlier run, may not fit together:
                    // once more, from nothing.
                    let elsewhere = self.source.distrust(descriptor);
                    let joint = run.foreign || self.source.pieced(descriptor);
                    if !elsewhere && (restarted || !joint) {
                        return Err(self.named(error));
                    }
                    restarted |= !elsewhere;
                    run = run.restarted();
                }
            }
            if surprises > SURPRISES {
                return Err(Error::new(
                    Kind::Unavailable,
                    format_args!(
                        "the ingest of {} changes below this pull; another client works on it",
                        descriptor.digest
                    ),
                ));
            }
        }
        self.events.emit(&Event::BlobDone {
            reference: self.reference.to_owned(),
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            reused: run.tally.downloaded == 0,
        });
        Ok(run.tally)
    }

    /// Brings in what is in memory already: documents and configs.
    pub async fn bytes(
        &self,
        descriptor: &Descriptor,
        bytes: &Bytes,
        labels: &Labels,
    ) -> Result<Ingested> {
        supported(descriptor)?;
        if bytes.len() as u64 != descriptor.size {
            return Err(Error::new(
                Kind::InvalidContent,
                format_args!(
                    "{} has {} bytes, but was announced with {}",
                    descriptor.digest,
                    bytes.len(),
                    descriptor.size
                ),
            ));
        }
        let mut patience = Patience::new();
        let mut surprises = 0;
        loop {
            let engine = self.lease.engine()?;
            let failure = match self.small(&engine, descriptor, bytes, labels).await {
                Ok(reused) => {
                    let tally = Ingested {
                        reused: if reused { descriptor.size } else { 0 },
                        ..Ingested::default()
                    };
                    return Ok(tally);
                }
                Err(failure) => failure,
            };
            match failure.cause {
                Cause::Disconnected => patience.pause(&engine, failure).await?,
                // Bad bytes of an earlier ingest, or somebody else between two messages.
                Cause::Mismatch | Cause::Exists | Cause::OutOfRange if surprises < SURPRISES => {
                    surprises += 1;
                    if failure.cause == Cause::Mismatch {
                        discard(&engine, descriptor).await?;
                    }
                }
                _ => return Err(failure.error),
            }
        }
    }

    /// `true` if the store had it.
    async fn small(
        &self,
        engine: &Leased,
        descriptor: &Descriptor,
        bytes: &Bytes,
        labels: &Labels,
    ) -> Result<bool, Failure> {
        let writer = match self.open(engine, descriptor).await? {
            Opened::Exists => {
                self.complete_labels(engine, descriptor, labels).await?;
                return Ok(true);
            }
            Opened::Writer(writer) => writer,
        };
        // Opened first, not committed blindly in one message: where another namespace
        // shares the blob, the ingest is born complete, and data would be added to it.
        let linked = writer.offset() == descriptor.size;
        let committed = if linked {
            writer.commit(Vec::new(), self.all_labels(labels)).await?
        } else {
            writer
                .from_start()
                .commit(bytes.to_vec(), self.all_labels(labels))
                .await?
        };
        if committed == Committed::Exists {
            self.adopt(engine, descriptor, labels).await?;
        }
        Ok(linked)
    }

    async fn attempt(
        &self,
        engine: &Leased,
        descriptor: &Descriptor,
        labels: &Labels,
        run: &mut Run,
    ) -> Result<(), Stop> {
        let writer = match self.open(engine, descriptor).await? {
            Opened::Exists => {
                if !run.opened {
                    run.tally.reused = descriptor.size;
                }
                self.complete_labels(engine, descriptor, labels).await?;
                return Ok(());
            }
            Opened::Writer(writer) => writer,
        };
        let offset = writer.offset();
        if !run.opened {
            run.opened = true;
            run.foreign = offset > 0;
            if offset == descriptor.size {
                run.tally.reused = offset;
            } else {
                run.tally.resumed = offset;
            }
        }
        if offset > descriptor.size {
            // Begun with another idea of the size. What it holds is of no use.
            run.foreign = true;
            return Err(Stop::Store(Failure::new(
                Cause::Mismatch,
                Error::new(Kind::InvalidContent, "the unfinished ingest is too long"),
            )));
        }
        self.events.emit(&Event::BlobStarted {
            reference: self.reference.to_owned(),
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            offset,
        });
        let (writer, rest) = if offset == descriptor.size {
            (writer, Vec::new())
        } else {
            let mut transfer = Transfer::new(self, descriptor, run, writer);
            transfer.copy(engine).await?;
            match transfer.end().await? {
                Some(end) => end,
                None => return Err(Stop::Again),
            }
        };
        let committed = writer.commit(rest, self.all_labels(labels)).await?;
        if committed == Committed::Exists {
            self.adopt(engine, descriptor, labels).await?;
        }
        Ok(())
    }

    /// Opens the ref; while another client holds it, waits as long as its bytes grow.
    pub(super) async fn open(
        &self,
        engine: &Engine,
        descriptor: &Descriptor,
    ) -> Result<Opened, Failure> {
        let name = reference(engine, descriptor);
        let mut pause = Duration::from_millis(16);
        let mut seen = None;
        let mut since = Instant::now();
        let mut told = false;
        loop {
            let locked = match Writer::open(engine, &name, descriptor).await {
                Err(failure) if failure.cause == Cause::Locked => failure,
                other => return other,
            };
            if !told {
                told = true;
                self.events.emit(&Event::BlobWaiting {
                    reference: self.reference.to_owned(),
                    digest: descriptor.digest.clone(),
                });
            }
            let status = engine
                .ingest_status(&name)
                .await
                .map_err(|error| Failure::new(Cause::Other, error))?;
            let offset = status.map(|status| status.offset);
            if offset != seen {
                seen = offset;
                since = Instant::now();
            } else if since.elapsed() >= HOLDER_STALL {
                let error = Error::new(
                    Kind::Unavailable,
                    format_args!(
                        "another client holds the ingest `{name}` and has written nothing for {} s",
                        HOLDER_STALL.as_secs()
                    ),
                )
                .because(locked.error)
                .hint("`ctr content active` shows it; a stuck client lets go when it ends");
                return Err(Failure::new(Cause::Locked, error));
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    /// The labels of a blob that this commit creates.
    fn all_labels(&self, labels: &Labels) -> Labels {
        let mut all = labels.clone();
        if let Some(repository) = self.repository {
            all.extend(distribution_source(repository, None));
        }
        all
    }

    /// A commit that came second did neither label nor lease the blob.
    async fn adopt(
        &self,
        engine: &Engine,
        descriptor: &Descriptor,
        labels: &Labels,
    ) -> Result<(), Failure> {
        let other = |error| Failure::new(Cause::Other, error);
        self.lease
            .add_blob(&descriptor.digest)
            .await
            .map_err(other)?;
        self.complete_labels(engine, descriptor, labels).await
    }

    /// Adds the labels that a blob lacks; writes nothing if it lacks none.
    async fn complete_labels(
        &self,
        engine: &Engine,
        descriptor: &Descriptor,
        labels: &Labels,
    ) -> Result<(), Failure> {
        let other = |error| Failure::new(Cause::Other, error);
        let digest = &descriptor.digest;
        let Some(info) = engine.blob_info(digest).await.map_err(other)? else {
            // Collected between two calls: the next attempt fetches it.
            return Err(Failure::new(
                Cause::Exists,
                Error::new(Kind::Unavailable, format_args!("blob {digest} vanished")),
            ));
        };
        let mut missing: Labels = labels
            .iter()
            .filter(|(key, value)| info.labels.get(*key) != Some(*value))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if let Some(repository) = self.repository {
            let now = info.labels.get(&distribution_key(repository));
            missing.extend(distribution_source(repository, now.map(String::as_str)));
        }
        engine.label_blob(digest, missing).await.map_err(other)
    }

    fn mismatch(&self, descriptor: &Descriptor, error: Error) -> Error {
        error
            .during(format_args!(
                "what {} sends for {} is not that content",
                self.source.name(),
                descriptor.digest
            ))
            .hint("a mirror or a proxy on the way serves damaged or altered content; try another mirror, or ask the publisher to push again")
    }

    fn named(&self, error: Error) -> Error {
        error.reference(self.reference)
    }
}

/// How much of a blob an unfinished ingest holds (bytes).
pub async fn begun(engine: &Engine, descriptor: &Descriptor) -> Result<u64> {
    let status = engine.ingest_status(&reference(engine, descriptor)).await?;
    Ok(status.map_or(0, |status| status.offset))
}

/// Drops what an ingest holds. Where that fails, what was wrong with it is the news.
async fn discard(engine: &Engine, descriptor: &Descriptor) -> Result<()> {
    engine.abort_ingest(&reference(engine, descriptor)).await
}

fn reference(engine: &Engine, descriptor: &Descriptor) -> String {
    let attestations = engine.version_numbers().is_none_or(|v| v >= (1, 7));
    ingest_ref(descriptor, attestations)
}

/// containerd's content store knows sha256 only: any other digest never commits.
fn supported(descriptor: &Descriptor) -> Result<()> {
    if descriptor.digest.algorithm() == Algorithm::Sha256 {
        return Ok(());
    }
    Err(Error::new(
        Kind::Unsupported,
        format_args!(
            "containerd stores sha256 content only, and {} is {}",
            descriptor.digest.short(),
            descriptor.digest.algorithm().name()
        ),
    ))
}
