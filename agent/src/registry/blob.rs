//! A blob's body as a stream that starts where it was asked to start, and never
//! delivers more than the descriptor says.

use bytes::{Buf, Bytes};
use futures_util::stream;
use reqwest::Response;

use super::{
    body::BodyFault,
    failure::{self, Target},
    range::ContentRange,
    said,
    transport::Answer,
};
use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::Descriptor,
    source::BlobStream,
};

/// Checks that a 200 or 206 is the part that was asked for, and makes a stream of it.
///
/// A server may ignore a range and send everything: then the first `offset` bytes are
/// read and dropped. They cost the transfer again, but no wrong byte is ever appended.
pub(super) fn open(
    target: Target,
    answer: Answer,
    descriptor: &Descriptor,
    offset: u64,
) -> Result<BlobStream> {
    if let Some(coding) = answer.encoding() {
        return Err(failure::encoded(&target, &answer.url, coding));
    }
    let size = descriptor.size;
    let length = answer.length();
    let is_html = descriptor.media_type.as_str().starts_with("text/html");
    if said::is_web_page(answer.header("content-type"), b"") && length != Some(size) && !is_html {
        return Err(failure::web_page(&target, &answer.url, b""));
    }
    let range = answer.header("content-range").map(ContentRange::parse);
    let partial = answer.status().as_u16() == 206;
    let start = match range {
        Some(Some(ContentRange::Part { first, last, total })) => {
            if first != offset || last >= size || total.is_some_and(|total| total != size) {
                return Err(failure::invalid(
                    &target,
                    format_args!(
                        "asked for bytes {offset} to {} of {size}, the registry sends {first} to {last} of {}",
                        size.saturating_sub(1),
                        total.map_or_else(|| "an unknown size".to_owned(), |total| total.to_string())
                    ),
                )
                .hint("the registry, a mirror or a cache on the way handles ranges wrongly; fetch the blob again from its start"));
            }
            first
        }
        None if !partial => 0,
        _ => {
            return Err(failure::invalid(
                &target,
                "the registry sends a part without saying which",
            )
            .hint("fetch the blob again from its start"));
        }
    };
    // A short part is no fault; it ends early, and the rest is asked for.
    let whole = size.saturating_sub(start);
    if let Some(length) = length
        && (length > whole || (length < whole && !partial))
    {
        return Err(failure::invalid(
            &target,
            format_args!("its manifest says {size} bytes, the registry {}", start.saturating_add(length)),
        )
        .hint("the registry, a mirror or a proxy on the way serves something else; try another mirror"));
    }
    let state = Reading {
        url: answer.url.clone(),
        response: answer.response,
        target,
        size,
        skip: offset.saturating_sub(start),
        at: start,
    };
    Ok(Box::pin(stream::try_unfold(state, Reading::next)))
}

struct Reading {
    target: Target,
    url: reqwest::Url,
    response: Response,
    size: u64,
    /// Bytes to drop before the first that was asked for.
    skip: u64,
    /// Bytes of the blob that have come, or lie before the start.
    at: u64,
}

impl Reading {
    /// The next bytes; `None` at the blob's end.
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        loop {
            let mut chunk = match self.response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) if self.at < self.size => return Err(self.short()),
                Ok(None) => return Ok(None),
                // Every byte is here: how the connection ends no longer matters.
                Err(_) if self.at == self.size => return Ok(None),
                Err(error) => {
                    let fault = BodyFault::Broken(error);
                    let failed = failure::body(&self.target, &self.url, fault, 0);
                    return Err(failed
                        .error
                        .because(format_args!("after {} of {} bytes", self.at, self.size)));
                }
            };
            let length = chunk.len() as u64;
            if length > self.size.saturating_sub(self.at) {
                return Err(failure::invalid(
                    &self.target,
                    format_args!(
                        "it is longer than the {} bytes that it should have",
                        self.size
                    ),
                ));
            }
            self.at = self.at.saturating_add(length);
            let dropped = self.skip.min(length);
            self.skip -= dropped;
            chunk.advance(usize::try_from(dropped).unwrap_or(chunk.len()));
            if !chunk.is_empty() {
                return Ok(Some((chunk, self)));
            }
        }
    }

    fn short(&self) -> Error {
        failure::unusable(
            &self.target,
            format_args!("the body ended after {} of {} bytes", self.at, self.size),
        )
    }
}

/// Bytes that need no request.
pub(super) fn ready(bytes: Bytes) -> BlobStream {
    Box::pin(stream::iter((!bytes.is_empty()).then_some(Ok(bytes))))
}

/// A refused range (416): nothing about our offset is wrong, so the registry has
/// another blob, or cannot do ranges.
pub(super) fn refused_range(target: &Target, answer: &Answer, size: u64, offset: u64) -> Error {
    match answer.header("content-range").and_then(ContentRange::parse) {
        Some(ContentRange::Unsatisfied { total }) if total != size => failure::invalid(
            target,
            format_args!("its manifest says {size} bytes, the registry has {total}"),
        )
        .hint("the registry or a mirror has a damaged copy; try another mirror, or push the image again"),
        _ => failure::unusable(
            target,
            format_args!("the registry refuses to start at byte {offset} of {size}"),
        )
        .hint("fetch the blob again from its start")
        .with_kind(Kind::Unavailable),
    }
}
