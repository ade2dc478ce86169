//! A blob as one stream, put together from as many answers as it takes.
//!
//! This is the one place where a transfer that broke is taken up again; whoever reads the
//! stream gets every byte once, in order, or an error that trying again would not change.

use bytes::Bytes;
use futures_util::stream;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    blob::Reading,
    failure::Failed,
    repo::Repo,
    retry::{self, Advice, Budget},
};
use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::Descriptor,
    source::BlobStream,
};

/// Retries of a denial; each costs a request in either name.
const DENIALS: u32 = 2;

/// An answer, and which server of the repository gave it.
pub(super) struct Opened {
    pub(super) reading: Reading,
    pub(super) origin: String,
    /// That server's place in the list.
    pub(super) index: usize,
}

/// The bytes of a blob from `offset` on.
pub(super) async fn stream(
    repo: &Repo,
    descriptor: &Descriptor,
    offset: u64,
) -> Result<BlobStream> {
    let permit = repo.slot().await;
    let mut resuming = Resuming {
        budget: repo.blob_budget(),
        repo: repo.clone(),
        descriptor: descriptor.clone(),
        current: None,
        at: offset,
        mark: offset,
        denied: 0,
        permit,
    };
    repo.effort().begin(&descriptor.digest);
    // A refusal is told before anybody waits for bytes.
    resuming.open().await?;
    Ok(Box::pin(stream::try_unfold(resuming, Resuming::next)))
}

struct Resuming {
    repo: Repo,
    descriptor: Descriptor,
    current: Option<Opened>,
    /// The next byte that the reader gets.
    at: u64,
    /// Where the tries were last given back.
    mark: u64,
    budget: Budget,
    /// How often it was denied to those who were served the manifest.
    denied: u32,
    /// The limit of transfers at once; held while the stream lives.
    #[expect(dead_code, reason = "held, not read")]
    permit: Option<OwnedSemaphorePermit>,
}

impl Resuming {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        loop {
            let Some(current) = &mut self.current else {
                self.open().await?;
                continue;
            };
            match current.reading.next().await {
                Ok(Some(chunk)) => {
                    self.at = self.at.saturating_add(chunk.len() as u64);
                    return Ok(Some((chunk, self)));
                }
                Ok(None) => return Ok(None),
                Err(failed) => self.broken(failed).await?,
            }
        }
    }

    async fn open(&mut self) -> Result<()> {
        loop {
            match self
                .repo
                .open(&self.descriptor, self.at, &mut self.budget)
                .await
            {
                Ok(opened) => {
                    self.current = Some(opened);
                    return Ok(());
                }
                // Whoever was served the manifest may see the blob: registries say "denied"
                // now and then when they mean "not now".
                Err(error)
                    if error.kind() == Kind::Unauthorized
                        && self.repo.effort().is_admitted()
                        && self.denied < DENIALS =>
                {
                    self.denied += 1;
                    self.pause(Failed {
                        error,
                        advice: Advice::Backoff,
                    })
                    .await?;
                }
                Err(error) => return Err(self.so_far(error)),
            }
        }
    }

    /// After a body that broke: waits, or gives up.
    async fn broken(&mut self, failed: Failed) -> Result<()> {
        // Its connection is closed before the wait.
        let (origin, index) = self
            .current
            .take()
            .map(|opened| (opened.origin, opened.index))
            .unzip();
        if failed.advice == Advice::Never {
            return Err(failed.error);
        }
        if self.at.saturating_sub(self.mark) >= retry::progress(self.descriptor.size) {
            self.mark = self.at;
            self.budget.renew();
        }
        self.repo.effort().piece(&self.descriptor.digest);
        // Every host is asked before any is waited for.
        if index.is_some_and(|index| self.repo.broke(&self.descriptor, index, &failed.error)) {
            return Ok(());
        }
        if self.at > 0
            && let Some(origin) = origin
            && self.repo.effort().cannot_resume(&origin)
        {
            return Err(failed
                .error
                .because("the server sends everything again instead of the rest")
                .hint("the registry or a cache on the way ignores ranges, so that every interruption costs the whole blob again; use another mirror, or a better link"));
        }
        self.pause(failed).await
    }

    async fn pause(&mut self, failed: Failed) -> Result<()> {
        let Some(wait) = self.budget.grant(failed.advice) else {
            return Err(self.so_far(failed.error));
        };
        tracing::debug!(
            digest = %self.descriptor.digest,
            at = self.at,
            of = self.descriptor.size,
            why = %failed.error.causes().join(": "),
            wait = ?wait,
            "a transfer broke; going on"
        );
        tokio::time::sleep(wait).await;
        Ok(())
    }

    fn so_far(&self, error: Error) -> Error {
        if self.at == 0 {
            return error;
        }
        error.because(format_args!(
            "{} of {} bytes are here; the next try goes on from there",
            self.at, self.descriptor.size
        ))
    }
}
