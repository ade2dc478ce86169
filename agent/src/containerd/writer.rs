//! One write stream into the content store: open, write with explicit offsets, commit.
//!
//! The server answers every message once, in order, and locks the ref as long as the
//! stream lives. It never learns from silence: who stops writing must end the stream,
//! or every other client waits for the ref without a limit.

use std::time::Duration;

use containerd_client::services::v1::{WriteAction, WriteContentRequest, WriteContentResponse};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{
    client::Engine,
    content::{client, signed},
    failure::{Cause, Failure, Outcome},
    labels::Labels,
};
use crate::{error::Error, kind::Kind, oci::Descriptor};

/// Bytes in one message. Larger ones gain nothing on the server, smaller ones cost.
pub(super) const CHUNK: usize = 1 << 20;
/// Messages that are sent and not yet answered. With the one being filled this bounds
/// what a stream holds in memory.
const IN_FLIGHT: usize = 2;

/// The server re-hashes a partial ingest before its first answer; no board is slower
/// than so many bytes a second.
const SLOWEST_HASH: u64 = 8 << 20;
const OPEN_LIMIT: Duration = Duration::from_secs(60);
/// A write goes to the page cache, but a slow card may block it while it flushes.
const WRITE_LIMIT: Duration = Duration::from_secs(300);
/// A commit syncs the whole file to the disk.
const COMMIT_LIMIT: Duration = Duration::from_secs(1800);

/// What opening a ref found.
#[derive(Debug)]
pub(super) enum Opened {
    /// The namespace has the blob already, and the lease has it now too.
    Exists,
    /// The ref is ours.
    Writer(Box<Writer>),
}

/// How a commit ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Committed {
    /// By this stream: the labels are stored.
    Stored,
    /// Somebody else was first: neither labels nor lease were applied.
    Exists,
}

/// An open, locked ingest.
#[derive(Debug)]
pub(super) struct Writer {
    engine: Engine,
    action: String,
    requests: mpsc::Sender<WriteContentRequest>,
    replies: Streaming<WriteContentResponse>,
    total: u64,
    expected: String,
    /// Where the next byte goes; all before it is sent.
    offset: u64,
    unanswered: usize,
}

impl Writer {
    /// Opens and locks `reference` for `descriptor`. A ref that another client holds
    /// fails with [`Cause::Locked`].
    pub(super) async fn open(
        engine: &Engine,
        reference: &str,
        descriptor: &Descriptor,
    ) -> Outcome<Opened> {
        let action = format!("write blob {}", descriptor.digest);
        let (requests, receiver) = mpsc::channel(1);
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: reference.to_owned(),
            total: signed(descriptor.size),
            expected: descriptor.digest.to_string(),
            ..WriteContentRequest::default()
        };
        // The channel is empty and has room for one.
        if requests.try_send(first).is_err() {
            return Err(internal(&action, "the new stream takes no message"));
        }
        let open = async {
            let request = engine.request(ReceiverStream::new(receiver));
            let mut replies = client(engine.channel()).write(request).await?.into_inner();
            let stat = replies.message().await?;
            Ok::<_, tonic::Status>((replies, stat))
        };
        let limit = OPEN_LIMIT + Duration::from_secs(descriptor.size / SLOWEST_HASH);
        let (replies, stat) = match timeout(limit, open).await {
            Err(_) => return Err(Failure::timeout(&action, limit.as_secs())),
            Ok(Err(status)) => {
                let failure = engine.failed(&action, &status);
                return match failure.cause {
                    Cause::Exists => Ok(Opened::Exists),
                    _ => Err(failure),
                };
            }
            Ok(Ok((_, None))) => return Err(cut(&action)),
            Ok(Ok((replies, Some(stat)))) => (replies, stat),
        };
        Ok(Opened::Writer(Box::new(Self {
            engine: engine.clone(),
            action,
            requests,
            replies,
            total: descriptor.size,
            expected: descriptor.digest.to_string(),
            offset: u64::try_from(stat.offset).unwrap_or_default(),
            unanswered: 0,
        })))
    }

    /// Bytes that the ingest holds, the unanswered ones included.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Begins again: the next message cuts what the ingest holds.
    pub(super) fn from_start(mut self: Box<Self>) -> Box<Self> {
        self.offset = 0;
        self
    }

    /// Sends `data`; waits while too much is unanswered.
    pub(super) async fn write(&mut self, data: Vec<u8>) -> Outcome<()> {
        if data.is_empty() {
            return Ok(());
        }
        while self.unanswered >= IN_FLIGHT {
            self.reply(WRITE_LIMIT).await?;
        }
        let length = data.len() as u64;
        let message = WriteContentRequest {
            action: WriteAction::Write.into(),
            // Offset 0 cuts the ingest to nothing first, which is right only when it is
            // empty; every caller starts where the ingest ends.
            offset: signed(self.offset),
            data,
            ..WriteContentRequest::default()
        };
        self.send(message, WRITE_LIMIT).await?;
        self.offset += length;
        self.unanswered += 1;
        Ok(())
    }

    /// Commits what the ingest holds, with `last` as its end.
    pub(super) async fn commit(
        mut self: Box<Self>,
        last: Vec<u8>,
        labels: Labels,
    ) -> Outcome<Committed> {
        while self.unanswered > 0 {
            self.reply(WRITE_LIMIT).await?;
        }
        let message = WriteContentRequest {
            action: WriteAction::Commit.into(),
            total: signed(self.total),
            expected: self.expected.clone(),
            offset: signed(self.offset),
            data: last,
            labels,
            ..WriteContentRequest::default()
        };
        self.send(message, WRITE_LIMIT).await?;
        let committed = match self.reply(COMMIT_LIMIT).await {
            Ok(()) => Committed::Stored,
            Err(failure) if failure.cause == Cause::Exists => Committed::Exists,
            Err(failure) => return Err(failure),
        };
        self.drain().await;
        Ok(committed)
    }

    /// Ends the stream without a commit: the server keeps (and syncs) the data and
    /// frees the ref before this returns.
    pub(super) async fn park(mut self: Box<Self>) -> Outcome<()> {
        while self.unanswered > 0 {
            self.reply(WRITE_LIMIT).await?;
        }
        self.drain().await;
        Ok(())
    }

    async fn send(&mut self, message: WriteContentRequest, limit: Duration) -> Outcome<()> {
        match timeout(limit, self.requests.send(message)).await {
            Ok(Ok(())) => Ok(()),
            // The stream is gone; why, its replies say.
            Ok(Err(_)) => match self.reply(WRITE_LIMIT).await {
                Err(failure) => Err(failure),
                Ok(()) => Err(cut(&self.action)),
            },
            Err(_) => Err(Failure::timeout(&self.action, limit.as_secs())),
        }
    }

    async fn reply(&mut self, limit: Duration) -> Outcome<()> {
        match timeout(limit, self.replies.message()).await {
            Ok(Ok(Some(_))) => {
                self.unanswered = self.unanswered.saturating_sub(1);
                Ok(())
            }
            Ok(Ok(None)) => Err(cut(&self.action)),
            Ok(Err(status)) => Err(self.engine.failed(&self.action, &status)),
            Err(_) => Err(Failure::timeout(&self.action, limit.as_secs())),
        }
    }

    /// Half-closes and reads to the end. The server repeats its last reply there, which
    /// means nothing; and an error after a commit that was answered means nothing either.
    async fn drain(self) {
        let Self {
            requests,
            mut replies,
            ..
        } = self;
        drop(requests);
        let end = async { while let Ok(Some(_)) = replies.message().await {} };
        // When even this hangs, dropping the stream resets it.
        let _ = timeout(WRITE_LIMIT, end).await;
    }
}

fn cut(action: &str) -> Failure {
    Failure::new(
        Cause::Disconnected,
        Error::new(
            Kind::ContainerdUnavailable,
            format_args!("cannot {action}: containerd ended the stream"),
        ),
    )
}

fn internal(action: &str, why: &str) -> Failure {
    Failure::new(
        Cause::Other,
        Error::new(Kind::Internal, format_args!("cannot {action}")).because(why),
    )
}
