//! A range of a file as a blob stream.

use std::{fs::File, os::unix::fs::FileExt, sync::Arc};

use bytes::Bytes;
use futures_util::stream;

use super::blocking;
use crate::{
    error::{Error, Result},
    kind::Kind,
    source::BlobStream,
};

const CHUNK: u64 = 128 << 10;

/// A range of an open file.
#[derive(Debug, Clone)]
pub(super) struct Range {
    pub(super) file: Arc<File>,
    pub(super) start: u64,
    pub(super) size: u64,
    /// For messages.
    pub(super) name: Arc<str>,
}

impl Range {
    /// Reads up to `limit` bytes at `offset` within the range; empty at its end.
    fn read(&self, offset: u64, limit: u64) -> Result<Bytes> {
        let length = self.size.saturating_sub(offset).min(limit);
        let mut buffer = vec![0; usize::try_from(length).unwrap_or_default()];
        let from = self.start.checked_add(offset).ok_or_else(|| self.short())?;
        self.file
            .read_exact_at(&mut buffer, from)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => self.short(),
                _ => Error::io("read", std::path::Path::new(&*self.name), &error),
            })?;
        Ok(buffer.into())
    }

    fn short(&self) -> Error {
        Error::new(
            Kind::InvalidContent,
            format_args!("`{}` is cut off", self.name),
        )
    }

    /// The whole of a small range.
    pub(super) fn read_small(&self, limit: u64) -> Result<Bytes> {
        if self.size > limit {
            return Err(Error::new(
                Kind::InvalidContent,
                format_args!(
                    "`{}` is bigger than the {limit} bytes that are read into memory",
                    self.name
                ),
            ));
        }
        self.read(0, limit)
    }

    /// The bytes from `offset` on, in small pieces.
    pub(super) fn stream(self, offset: u64) -> BlobStream {
        Box::pin(stream::try_unfold(
            (self, offset),
            |(range, offset)| async move {
                let (range, chunk) = blocking(move || {
                    let chunk = range.read(offset, CHUNK)?;
                    Ok((range, chunk))
                })
                .await?;
                if chunk.is_empty() {
                    return Ok(None);
                }
                let next = offset.saturating_add(chunk.len() as u64);
                Ok(Some((chunk, (range, next))))
            },
        ))
    }
}
