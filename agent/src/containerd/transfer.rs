//! One stream of a source into one ingest: in pieces of one message, hashed on the way,
//! and never holding the ref while the source is silent.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::timeout;

use super::{
    failure::Cause,
    ingest::{Ingest, Run, Stop},
    lease::Leased,
    writer::{CHUNK, Opened, Writer},
};
use crate::{
    error::Error,
    event::Event,
    kind::Kind,
    oci::{Descriptor, Verifier},
    source::BlobStream,
};

/// A source that is silent for so long loses the ref (not its stream): every other
/// client of containerd would wait for it without a limit.
const SOURCE_STALL: Duration = Duration::from_secs(15);
/// One stream of the source into one ingest.
pub(super) struct Transfer<'a, 'b> {
    ingest: &'a Ingest<'a>,
    descriptor: &'a Descriptor,
    run: &'b mut Run,
    /// `None` while the ref is given back because the source is silent.
    writer: Option<Box<Writer>>,
    buffer: Vec<u8>,
    /// Where the next byte of the source belongs.
    position: u64,
    verifier: Option<Verifier>,
}

impl<'a, 'b> Transfer<'a, 'b> {
    /// From where the ingest of `writer` ends.
    pub(super) fn new(
        ingest: &'a Ingest<'a>,
        descriptor: &'a Descriptor,
        run: &'b mut Run,
        writer: Box<Writer>,
    ) -> Self {
        let position = writer.offset();
        Self {
            ingest,
            descriptor,
            run,
            writer: Some(writer),
            buffer: Vec::new(),
            position,
            verifier: (position == 0).then(|| Verifier::new(descriptor)),
        }
    }

    /// Copies until the announced size is reached.
    pub(super) async fn copy(&mut self, engine: &Leased) -> Result<(), Stop> {
        let source = self.ingest.source;
        let mut opening = source.blob(self.descriptor, self.position);
        let mut stream = loop {
            match timeout(SOURCE_STALL, &mut opening).await {
                Ok(Ok(stream)) => break stream,
                Ok(Err(error)) => return Err(self.broken(error).await),
                Err(_) => self.let_go().await?,
            }
        };
        while self.position < self.descriptor.size {
            let Some(chunk) = self.next(&mut stream).await? else {
                let error = Error::new(
                    Kind::Unavailable,
                    format_args!(
                        "blob {} ended after {} of {} bytes",
                        self.descriptor.digest, self.position, self.descriptor.size
                    ),
                );
                return Err(self.broken(error).await);
            };
            self.take(engine, &chunk).await?;
            if self.ingest.lease.is_superseded(engine) {
                self.let_go().await?;
                return Err(Stop::Again);
            }
        }
        Ok(())
    }

    async fn next(&mut self, stream: &mut BlobStream) -> Result<Option<Bytes>, Stop> {
        loop {
            let item = if self.writer.is_some() {
                if let Ok(item) = timeout(SOURCE_STALL, stream.next()).await {
                    item
                } else {
                    self.let_go().await?;
                    continue;
                }
            } else {
                stream.next().await
            };
            return match item.transpose() {
                Ok(chunk) => Ok(chunk),
                Err(error) => Err(self.broken(error).await),
            };
        }
    }

    async fn take(&mut self, engine: &Leased, chunk: &Bytes) -> Result<(), Stop> {
        let length = chunk.len() as u64;
        if self.position.saturating_add(length) > self.descriptor.size {
            return Err(Stop::Source(Error::new(
                Kind::InvalidContent,
                format_args!(
                    "blob {} is longer than the {} bytes it was announced with",
                    self.descriptor.digest, self.descriptor.size
                ),
            )));
        }
        if self.writer.is_none() {
            match self.ingest.open(engine, self.descriptor).await? {
                Opened::Writer(writer) if writer.offset() == self.position => {
                    self.writer = Some(writer);
                }
                // Another client went on with it, or finished it.
                Opened::Writer(_) | Opened::Exists => {
                    self.run.foreign = true;
                    return Err(Stop::Again);
                }
            }
        }
        if let Some(verifier) = &mut self.verifier {
            verifier.update(chunk).map_err(Stop::Source)?;
        }
        self.position += length;
        self.run.progress += length;
        self.run.tally.downloaded += length;
        let mut rest: &[u8] = chunk;
        while !rest.is_empty() {
            if self.buffer.capacity() == 0 {
                let left = self.descriptor.size.min(CHUNK as u64);
                self.buffer
                    .reserve_exact(usize::try_from(left).unwrap_or(CHUNK));
            }
            let (now, later) = rest.split_at(rest.len().min(CHUNK - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            rest = later;
            if self.buffer.len() >= CHUNK {
                self.flush().await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Stop> {
        let Some(writer) = &mut self.writer else {
            return Ok(());
        };
        let data = std::mem::take(&mut self.buffer);
        let bytes = data.len() as u64;
        if bytes > 0 {
            writer.write(data).await?;
            self.arrived(bytes);
        }
        Ok(())
    }

    fn arrived(&self, bytes: u64) {
        self.ingest.events.emit(&Event::BlobProgress {
            reference: self.ingest.reference.to_owned(),
            digest: self.descriptor.digest.clone(),
            bytes,
        });
    }

    /// Hands over what is buffered and gives the ref back.
    async fn let_go(&mut self) -> Result<(), Stop> {
        self.flush().await?;
        if let Some(writer) = self.writer.take() {
            writer.park().await?;
        }
        Ok(())
    }

    /// The source failed: keep what it gave. Its error counts, whatever the store says.
    async fn broken(&mut self, error: Error) -> Stop {
        if error.kind() == Kind::InvalidContent {
            // What came is dropped; the stream ends first, so that the abort finds the ref free.
            self.buffer.clear();
            let _ = self.let_go().await;
            return Stop::Source(error);
        }
        match self.let_go().await {
            // The same connection carries both only when containerd itself is the source.
            Err(Stop::Store(failure)) if failure.cause == Cause::Full => Stop::Store(failure),
            _ => Stop::Source(error),
        }
    }

    /// The writer and the bytes to commit with; `None` if the ref was given back.
    pub(super) async fn end(mut self) -> Result<Option<(Box<Writer>, Vec<u8>)>, Stop> {
        if let Some(verifier) = self.verifier.take()
            && let Err(error) = verifier.finish()
        {
            // Ends the stream first, so that the abort finds the ref free.
            if let Some(writer) = self.writer.take() {
                writer.park().await?;
            }
            return Err(Stop::Source(error));
        }
        let rest = std::mem::take(&mut self.buffer);
        if !rest.is_empty() {
            self.arrived(rest.len() as u64);
        }
        Ok(self.writer.take().map(|writer| (writer, rest)))
    }
}
