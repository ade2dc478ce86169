//! Bytes that are what their descriptor says.

use bytes::Bytes;

use super::{Descriptor, Digest, Hasher};
use crate::{
    error::{Error, Result},
    kind::Kind,
};

/// Bytes whose digest was computed and compared.
#[derive(Debug, Clone)]
pub struct Verified {
    digest: Digest,
    bytes: Bytes,
}

impl Verified {
    /// Hashes `bytes`; fails with `invalid_content`, naming both digests, if they differ.
    pub fn check(bytes: Bytes, expected: &Digest) -> Result<Self> {
        let mut hasher = Hasher::new(expected.algorithm());
        hasher.update(&bytes);
        let digest = hasher.finish();
        if digest != *expected {
            return Err(mismatch(expected, &digest, bytes.len() as u64));
        }
        Ok(Self { digest, bytes })
    }

    /// Bytes whose digest is not known beforehand: it is what it is.
    pub fn of(bytes: Bytes) -> Self {
        Self {
            digest: Digest::of(&bytes),
            bytes,
        }
    }

    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub fn size(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// Checks a stream against its descriptor while it passes: never more bytes than
/// claimed, and at the end exactly as many with exactly that digest.
#[derive(Debug, Clone)]
pub struct Verifier {
    expected: Digest,
    size: u64,
    seen: u64,
    hasher: Hasher,
}

impl Verifier {
    pub fn new(descriptor: &Descriptor) -> Self {
        Self {
            expected: descriptor.digest.clone(),
            size: descriptor.size,
            seen: 0,
            hasher: Hasher::new(descriptor.digest.algorithm()),
        }
    }

    /// Bytes seen so far.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    pub fn update(&mut self, chunk: &[u8]) -> Result<()> {
        let seen = self.seen.saturating_add(chunk.len() as u64);
        if seen > self.size {
            return Err(Error::new(
                Kind::InvalidContent,
                format_args!(
                    "blob {} is longer than the {} bytes it was announced with",
                    self.expected, self.size
                ),
            ));
        }
        self.seen = seen;
        self.hasher.update(chunk);
        Ok(())
    }

    /// Ends a stream that the caller kept whole in `bytes`.
    pub fn finish_bytes(self, bytes: Bytes) -> Result<Verified> {
        let digest = self.expected.clone();
        self.finish()?;
        Ok(Verified { digest, bytes })
    }

    /// Ends the stream. A short body is `unavailable` (the link broke, a retry may
    /// help); wrong bytes are `invalid_content`.
    pub fn finish(self) -> Result<()> {
        if self.seen < self.size {
            return Err(Error::new(
                Kind::Unavailable,
                format_args!(
                    "blob {} ended after {} of {} bytes",
                    self.expected, self.seen, self.size
                ),
            ));
        }
        let digest = self.hasher.finish();
        if digest != self.expected {
            return Err(mismatch(&self.expected, &digest, self.seen));
        }
        Ok(())
    }
}

fn mismatch(expected: &Digest, found: &Digest, size: u64) -> Error {
    Error::new(
        Kind::InvalidContent,
        format_args!("content does not match its digest: expected {expected}, received {found} ({size} bytes)"),
    )
    .hint("the registry, a mirror or a proxy on the way serves damaged or altered content; try another mirror, or ask the publisher to push again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::MediaType;

    fn descriptor(content: &[u8]) -> Descriptor {
        Descriptor::new(
            MediaType::parse("x"),
            Digest::of(content),
            content.len() as u64,
        )
    }

    #[test]
    fn a_stream_must_match_in_length_and_digest() {
        let mut good = Verifier::new(&descriptor(b"hello"));
        good.update(b"hel").expect("within size");
        good.update(b"lo").expect("within size");
        good.finish().expect("same bytes");

        let mut short = Verifier::new(&descriptor(b"hello"));
        short.update(b"hel").expect("within size");
        assert_eq!(short.finish().expect_err("short").kind(), Kind::Unavailable);

        let mut long = Verifier::new(&descriptor(b"hello"));
        assert_eq!(
            long.update(b"hello!").expect_err("long").kind(),
            Kind::InvalidContent
        );

        let mut wrong = Verifier::new(&descriptor(b"hello"));
        wrong.update(b"jello").expect("within size");
        assert_eq!(
            wrong.finish().expect_err("wrong").kind(),
            Kind::InvalidContent
        );
    }

    #[test]
    fn whole_documents_are_checked_too() {
        let bytes = Bytes::from_static(b"{}");
        assert!(Verified::check(bytes.clone(), &Digest::of(b"{}")).is_ok());
        assert!(Verified::check(bytes, &Digest::of(b"[]")).is_err());
    }
}
