//! A blob that arrives on one thread and is read on another.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

/// A blob's chunks as they come, to be read on a thread that may wait for them.
#[derive(Debug)]
pub struct Chunks {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Chunks {
    pub fn new(receiver: mpsc::Receiver<Bytes>) -> Self {
        Self {
            receiver,
            current: Bytes::new(),
        }
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.current = chunk,
                None => return Ok(0),
            }
        }
        let n = self.current.len().min(buffer.len());
        self.current
            .split_to(n)
            .copy_to_slice(buffer.get_mut(..n).unwrap_or_default());
        Ok(n)
    }
}
