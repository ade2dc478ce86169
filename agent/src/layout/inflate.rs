//! A layer's bytes without their compression. What the bytes say decides and not the
//! media type, as in containerd.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

/// Bytes that are read ahead.
const BUFFER: usize = 64 << 10;
/// A bigger window than this is refused: it has to be held in memory (bytes).
const MAX_WINDOW: u64 = 64 << 20;

const GZIP: &[u8] = &[0x1f, 0x8b, 0x08];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Skippable frames, which may come first: `0x184D2A50` to `5F`, little-endian.
const SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];

/// Reads gzip (of any number of members), zstd (of any number of frames) or neither.
pub fn inflated<'a>(reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    // The first bytes may come one by one, and must be looked at together.
    let mut head = Vec::with_capacity(4);
    let mut reader = reader;
    reader.by_ref().take(4).read_to_end(&mut head)?;
    let is_zstd = head.starts_with(ZSTD)
        || matches!(head.split_first(), Some((0x50..=0x5f, rest)) if rest == SKIPPABLE);
    let is_gzip = head.starts_with(GZIP);
    let whole = BufReader::with_capacity(BUFFER, io::Cursor::new(head).chain(reader));
    Ok(if is_gzip {
        Box::new(MultiGzDecoder::new(whole))
    } else if is_zstd {
        Box::new(Frames::new(whole))
    } else {
        Box::new(whole)
    })
}

/// The zstd frames of a stream, one after the other.
struct Frames<R> {
    source: R,
    decoder: FrameDecoder,
    started: bool,
}

impl<R: BufRead> Frames<R> {
    fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_WINDOW);
        Self {
            source,
            decoder,
            started: false,
        }
    }

    /// Begins the next frame; `false` at the end of the stream.
    fn next_frame(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => {
                    self.started = true;
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let mut frame = self.source.by_ref().take(u64::from(length));
                    io::copy(&mut frame, &mut io::sink())?;
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if self.started {
                if self.decoder.can_collect() > 0 {
                    return self.decoder.read(buffer);
                }
                if !self.decoder.is_finished() {
                    self.decoder
                        .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBytes(BUFFER))
                        .map_err(io::Error::other)?;
                    continue;
                }
                self.started = false;
            }
            if !self.next_frame()? {
                return Ok(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        // One byte at a time: nothing may depend on how the bytes come.
        struct Slow<'a>(&'a [u8]);
        impl Read for Slow<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let n = buffer.len().min(1);
                self.0.read(&mut buffer[..n])
            }
        }
        let mut all = Vec::new();
        inflated(Slow(bytes))?.read_to_end(&mut all)?;
        Ok(all)
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).expect("in memory");
        encoder.finish().expect("in memory")
    }

    /// A frame with one raw block.
    fn zstd(text: &[u8]) -> Vec<u8> {
        let size = u8::try_from(text.len()).expect("short");
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x20, size];
        frame.extend([(size << 3) | 1, size >> 5, 0]);
        frame.extend_from_slice(text);
        frame
    }

    #[test]
    fn every_compression_and_every_joint_is_read() {
        let twice = [gzip(b"one "), gzip(b"two")].concat();
        let skip = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xxx"].concat();
        let frames = [skip.clone(), zstd(b"one "), skip, zstd(b"two")].concat();
        for bytes in [&twice[..], &frames[..], b"one two"] {
            assert_eq!(read(bytes).expect("readable"), b"one two");
        }
        assert_eq!(read(b"").expect("nothing"), b"");
        assert_eq!(read(b"ab").expect("short"), b"ab");
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        let whole = gzip(b"some text that is long enough");
        assert!(read(&whole[..whole.len() - 12]).is_err());
        let whole = zstd(b"some text");
        assert!(read(&whole[..whole.len() - 3]).is_err());
    }

    /// A window of 1 GiB is not allocated because a stranger says so.
    #[test]
    fn a_huge_window_is_refused() {
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa0, 0x09, 0, 0, 1];
        assert!(read(&frame).is_err());
    }
}
