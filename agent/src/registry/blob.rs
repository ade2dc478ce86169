//! One answer with a blob's bytes: checked to be the part that was asked for, read with
//! an eye on the clock, and never longer than the descriptor says.

use std::{sync::Arc, time::Duration};

use bytes::{Buf, Bytes};
use futures_util::stream;
use reqwest::Response;
use tokio::time::{Instant, timeout};

use super::{
    body::BodyFault,
    counts::Meter,
    failure::{self, Failed, Target},
    pace::Pace,
    range::ContentRange,
    retry::Advice,
    said,
    transport::Answer,
};
use crate::{
    error::{Error, Result},
    oci::Descriptor,
    source::BlobStream,
};

/// Fewer bytes than that in one stall timeout are no transfer; another connection may
/// fare better.
const TRICKLE: u64 = 1 << 10;

/// How bodies flow in one client.
#[derive(Debug, Clone)]
pub(super) struct Flow {
    /// For so long a body may be silent.
    pub(super) stall: Duration,
    /// The rate that all bodies of the client share.
    pub(super) pace: Option<Arc<Pace>>,
}

/// Why an answer to a request for a part is of no use.
pub(super) enum Misfit {
    /// The server is confused about parts; the whole may be right.
    Part(Error),
    Other(Error),
}

/// Checks that a 200 or 206 is the part that was asked for, or the whole.
///
/// A server may ignore a range and send everything: then the first `offset` bytes are
/// read and dropped. They cost the transfer again, but no wrong byte is ever appended.
pub(super) fn open(
    target: Target,
    answer: Answer,
    descriptor: &Descriptor,
    offset: u64,
    flow: &Flow,
) -> Result<Reading, Misfit> {
    let other = |error| Err(Misfit::Other(error));
    if let Some(coding) = answer.encoding() {
        return other(failure::encoded(&target, &answer.url, coding));
    }
    let size = descriptor.size;
    let length = answer.length();
    let is_html = descriptor.media_type.as_str().starts_with("text/html");
    if said::is_web_page(answer.header("content-type"), b"") && length != Some(size) && !is_html {
        return other(failure::web_page(&target, &answer.url, b""));
    }
    let range = answer.header("content-range").map(ContentRange::parse);
    let partial = answer.status().as_u16() == 206;
    let start = match range {
        Some(Some(ContentRange::Part { first, last, total })) => {
            if first != offset || last >= size || total.is_some_and(|total| total != size) {
                return Err(Misfit::Part(failure::invalid(
                    &target,
                    format_args!(
                        "asked for bytes {offset} to {} of {size}, the registry sends {first} to {last} of {}",
                        size.saturating_sub(1),
                        total.map_or_else(|| "an unknown size".to_owned(), |total| total.to_string())
                    ),
                )
                .hint("the registry, a mirror or a cache on the way handles ranges wrongly; try another mirror")));
            }
            first
        }
        None if !partial => 0,
        _ => {
            return Err(Misfit::Part(
                failure::invalid(&target, "the registry sends a part without saying which").hint(
                    "the registry, a mirror or a cache on the way handles ranges wrongly; try another mirror",
                ),
            ));
        }
    };
    // A short part is no fault; it ends early, and the rest is asked for.
    let whole = size.saturating_sub(start);
    if let Some(length) = length
        && (length > whole || (length < whole && !partial))
    {
        return other(failure::invalid(
            &target,
            format_args!("its manifest says {size} bytes, the registry {}", start.saturating_add(length)),
        )
        .hint("the registry, a mirror or a proxy on the way serves something else; try another mirror"));
    }
    Ok(Reading {
        url: answer.url.clone(),
        response: answer.response,
        meter: answer.meter,
        target,
        size,
        skip: offset.saturating_sub(start),
        at: start,
        flow: flow.clone(),
        left: flow.stall,
        window: 0,
    })
}

/// The body of one answer. It has no `Debug`: the address may be signed.
pub(super) struct Reading {
    target: Target,
    url: reqwest::Url,
    response: Response,
    meter: Meter,
    size: u64,
    /// Bytes to drop before the first that was asked for.
    skip: u64,
    /// Bytes of the blob that have come, or lie before the start.
    at: u64,
    flow: Flow,
    /// Of the stall timeout. Only waiting for the server counts, not the pauses that the
    /// reader makes, nor those for the rate.
    left: Duration,
    /// Bytes that came since the stall timeout began.
    window: u64,
}

impl Reading {
    /// Whether bytes are read that nobody asked for, because the server ignored a range.
    pub(super) fn ignores_range(&self) -> bool {
        self.skip > 0
    }

    /// The next bytes; `None` at the blob's end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failed> {
        loop {
            let mut chunk = match self.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) if self.at < self.size => return Err(self.short()),
                Ok(None) => return Ok(None),
                // Every byte is here: how the connection ends no longer matters.
                Err(_) if self.at == self.size => return Ok(None),
                Err(failed) => return Err(failed),
            };
            let length = chunk.len() as u64;
            if let Some(pace) = &self.flow.pace {
                pace.spend(length).await;
            }
            if length > self.size.saturating_sub(self.at) {
                return Err(Failed::at_once(failure::invalid(
                    &self.target,
                    format_args!(
                        "it is longer than the {} bytes that it should have",
                        self.size
                    ),
                )));
            }
            self.at = self.at.saturating_add(length);
            let dropped = self.skip.min(length);
            self.skip -= dropped;
            chunk.advance(usize::try_from(dropped).unwrap_or(chunk.len()));
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, Failed> {
        let since = Instant::now();
        let read = timeout(self.left, self.response.chunk()).await;
        self.left = self.left.saturating_sub(since.elapsed());
        let failed = match read {
            Ok(Ok(chunk)) => {
                let length = chunk.as_ref().map_or(0, Bytes::len);
                self.meter.came(length);
                self.window += length as u64;
                if self.window >= TRICKLE {
                    self.window = 0;
                    self.left = self.flow.stall;
                }
                return Ok(chunk);
            }
            Ok(Err(error)) => {
                let mut failed =
                    failure::body(&self.target, &self.url, BodyFault::Broken(error), 0);
                // A body that began can always be asked for again, whatever broke it.
                failed.advice = Advice::Backoff;
                failed.error = failed.error.retry(true);
                failed
            }
            Err(_) => failure::stalled(&self.target, &self.url, self.flow.stall),
        };
        Err(Failed {
            error: failed
                .error
                .because(format_args!("after {} of {} bytes", self.at, self.size)),
            ..failed
        })
    }

    fn short(&self) -> Failed {
        Failed {
            error: failure::unusable(
                &self.target,
                format_args!("the body ended after {} of {} bytes", self.at, self.size),
            ),
            advice: Advice::Backoff,
        }
    }
}

/// Bytes that need no request.
pub(super) fn ready(bytes: Bytes) -> BlobStream {
    Box::pin(stream::iter((!bytes.is_empty()).then_some(Ok(bytes))))
}

/// A refused range (416): our offset lies within the blob, so the registry has another
/// blob, or cannot do ranges.
pub(super) fn refused_range(target: &Target, answer: &Answer, size: u64, offset: u64) -> Misfit {
    match answer.header("content-range").and_then(ContentRange::parse) {
        Some(ContentRange::Unsatisfied { total }) if total != size => {
            Misfit::Other(failure::invalid(
                target,
                format_args!("its manifest says {size} bytes, the registry has {total}"),
            )
            .hint("the registry or a mirror has a damaged copy; try another mirror, or push the image again"))
        }
        _ => Misfit::Part(
            failure::unusable(
                target,
                format_args!("the registry refuses to start at byte {offset} of {size}"),
            )
            .hint("the registry, a mirror or a cache on the way handles ranges wrongly; try another mirror"),
        ),
    }
}
