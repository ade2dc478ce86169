//! What the program prints: read as it comes, so that it never waits, and the end of it kept.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    path::{Path, PathBuf},
};

use nix::{errno::Errno, sys::stat::Mode, unistd::mkfifo};
use tokio::net::unix::pipe::{OpenOptions, Receiver};

use crate::error::{Error, Result};

/// What is kept of each stream (bytes).
pub(super) const TAIL: usize = 8 << 10;
/// Read at once.
const CHUNK: usize = 16 << 10;
/// What may still lie in a pipe when all who wrote are gone, and more than any pipe holds
/// unless somebody enlarges it: one that is still written to must not be read for ever.
const REST: usize = 2 << 20;

/// The end of a stream.
#[derive(Debug, Default)]
struct Tail {
    bytes: VecDeque<u8>,
    /// There was more before it.
    cut: bool,
}

impl Tail {
    fn push(&mut self, chunk: &[u8]) {
        let new = chunk
            .get(chunk.len().saturating_sub(TAIL)..)
            .unwrap_or(chunk);
        let over = (self.bytes.len() + new.len()).saturating_sub(TAIL);
        self.cut |= over > 0 || new.len() < chunk.len();
        self.bytes.drain(..over.min(self.bytes.len()));
        self.bytes.extend(new);
    }

    /// As text; where it was cut from the first whole line on, if one begins soon.
    fn text(&self) -> String {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        let soon = bytes.get(..TAIL / 8).unwrap_or(&bytes);
        let end = soon.iter().position(|byte| *byte == b'\n');
        let from = end.filter(|_| self.cut).map_or(0, |end| end + 1);
        String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned()
    }
}

/// One FIFO.
#[derive(Debug)]
struct Stream {
    path: PathBuf,
    receiver: Receiver,
    tail: Tail,
    chunk: Vec<u8>,
}

impl Stream {
    fn open(path: PathBuf) -> Result<Self> {
        match mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(Error::io("make", &path, &errno.into())),
        }
        // With an end to write to of our own: whoever writes may come, go and come again (a
        // runtime that is restarted), and no read is the last one.
        let receiver = OpenOptions::new()
            .read_write(true)
            .open_receiver(&path)
            .map_err(|error| Error::io("open", &path, &error))?;
        Ok(Self {
            path,
            receiver,
            tail: Tail::default(),
            chunk: vec![0; CHUNK],
        })
    }

    async fn pump(&mut self) -> Infallible {
        loop {
            let read = loop {
                // It fails only when the runtime ends.
                if self.receiver.readable().await.is_err() {
                    std::future::pending::<()>().await;
                }
                match self.receiver.try_read(&mut self.chunk) {
                    Ok(read) => break read,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => {
                        tracing::debug!(path = %self.path.display(), %error, "output cannot be read");
                        std::future::pending::<()>().await;
                    }
                }
            };
            self.tail.push(self.chunk.get(..read).unwrap_or_default());
        }
    }

    /// The rest, when nobody writes any more. Asked of the kernel: the runtime may not have
    /// noticed yet that there is something.
    fn drain(&mut self) {
        let mut left = REST;
        while left > 0 {
            match nix::unistd::read(&self.receiver, &mut self.chunk) {
                Ok(0) | Err(_) => return,
                Ok(read) => {
                    self.tail.push(self.chunk.get(..read).unwrap_or_default());
                    left = left.saturating_sub(read);
                }
            }
        }
    }
}

/// Both outputs of a program.
#[derive(Debug)]
pub(super) struct Streams {
    stdout: Stream,
    stderr: Stream,
}

impl Streams {
    /// Makes the FIFOs in `dir`.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        Ok(Self {
            stdout: Stream::open(dir.join("stdout"))?,
            stderr: Stream::open(dir.join("stderr"))?,
        })
    }

    pub(super) fn stdout(&self) -> String {
        self.stdout.path.display().to_string()
    }

    pub(super) fn stderr(&self) -> String {
        self.stderr.path.display().to_string()
    }

    /// Reads both for as long as it is polled.
    pub(super) async fn pump(&mut self) {
        tokio::select! {
            _ = self.stdout.pump() => {}
            _ = self.stderr.pump() => {}
        }
    }

    /// The ends of both.
    pub(super) fn finish(mut self) -> (String, String) {
        self.stdout.drain();
        self.stderr.drain();
        (self.stdout.tail.text(), self.stderr.tail.text())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_end_is_kept_from_a_whole_line_on() {
        let mut tail = Tail::default();
        tail.push(b"first\n");
        assert_eq!(tail.text(), "first\n");
        tail.push(&vec![b'x'; TAIL - 20]);
        tail.push(b"\nthe last line is this\n");
        assert!(tail.text().starts_with("xxx"), "no line begins soon");
        tail.push(&[b'y'; TAIL - 100]);
        tail.push(b"\nend\n");
        assert!(
            tail.text().starts_with("the last line is this\nyyy"),
            "one does"
        );
        tail.push(&vec![b'z'; 3 * TAIL]);
        assert_eq!(tail.text().len(), TAIL, "one line");
        assert_eq!(tail.bytes.len(), TAIL);
        let mut short = Tail::default();
        short.push(b"\xff\x1b[2J");
        assert_eq!(short.text(), "\u{fffd}\x1b[2J");
    }

    /// A pipe holds 64 KiB: without somebody who reads, the writer would wait.
    #[tokio::test]
    async fn a_writer_never_waits_and_may_come_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut streams = Streams::open(dir.path()).expect("made");
        let path = dir.path().join("stdout");
        let writer = tokio::task::spawn_blocking(move || {
            for round in 0..2 {
                let mut pipe = std::fs::File::options()
                    .write(true)
                    .open(&path)
                    .expect("a reader is there");
                for _ in 0..64 {
                    pipe.write_all(&[b'.'; 4096]).expect("read");
                }
                writeln!(pipe, "\nround {round}").expect("read");
            }
        });
        tokio::select! {
            () = streams.pump() => unreachable!("it reads for ever"),
            ended = writer => ended.expect("written"),
        }
        let (stdout, stderr) = streams.finish();
        assert!(stdout.ends_with(".\nround 1\n"), "the end of it");
        assert_eq!(stderr, "");
    }
}
