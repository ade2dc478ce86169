//! Copies between what a process has and what its client has.
//!
//! Nothing here ever waits in the kernel, and a copy that has nothing to do has no buffer: bytes
//! stay on the stack between their read and their write, and only those that the other side does
//! not take yet are kept, which is one chunk at most. What the other side does not take is not read
//! either, so a slow reader slows the process, and nothing grows.

use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use rustix::termios::{LocalModes, SpecialCodeIndex};
use tokio::io::Interest;
use tokio::sync::Notify;

use crate::polled::Polled;

/// How much is moved at once.
const CHUNK: usize = 16 * 1024;

/// How many chunks are moved before others get their turn.
const BURST: usize = 16;

/// How often a FIFO is looked at whose client was never seen: seldomer and seldomer, as one that never
/// comes shall not keep a device awake.
const LATE_CLIENT: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(5)];

/// One side of a copy; not blocking.
#[derive(Debug)]
pub(super) enum Side {
    Polled(Rc<Polled>),
    /// What epoll does not take never makes anybody wait: a file, /dev/null.
    Plain(OwnedFd),
}

impl Side {
    /// `fd` must have been opened non-blocking.
    pub(super) fn new(fd: OwnedFd, interest: Interest) -> io::Result<Side> {
        match Polled::new(fd, interest) {
            Ok(fd) => Ok(Side::Polled(Rc::new(fd))),
            Err((fd, error)) if error.raw_os_error() == Some(Errno::EPERM as i32) => {
                Ok(Side::Plain(fd))
            }
            Err((_, error)) => Err(error),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Side::Polled(fd) => fd.as_fd(),
            Side::Plain(fd) => fd.as_fd(),
        }
    }

    fn read<'b>(&self, buffer: &'b mut [MaybeUninit<u8>]) -> io::Result<&'b [u8]> {
        let (read, _) = rustix::io::read(self.fd(), buffer)?;
        Ok(read)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match rustix::io::retry_on_intr(|| rustix::io::write(self.fd(), bytes))? {
            0 => Err(ErrorKind::WriteZero.into()),
            written => Ok(written),
        }
    }

    async fn readable(&self) -> io::Result<()> {
        match self {
            Side::Polled(fd) => fd.readable().await,
            Side::Plain(_) => Ok(()),
        }
    }

    async fn writable(&self) -> io::Result<()> {
        match self {
            Side::Polled(fd) => fd.writable().await,
            Side::Plain(_) => Ok(()),
        }
    }

    /// Writes all, however long it takes the other side to take it.
    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Types the character that ends the input of a terminal: at its second, a reader that is given
    /// lines sees the end even if the last line has none. A program that reads keys would take it
    /// for one.
    pub(super) async fn end_terminal_input(&self) {
        let Ok(settings) = rustix::termios::tcgetattr(self.fd()) else {
            return;
        };
        if settings.local_modes.contains(LocalModes::ICANON) {
            let end = settings.special_codes[SpecialCodeIndex::VEOF];
            // It fails when nobody has the terminal, and then nobody needs it.
            let _ = self.write_all(&[end, end]).await;
        }
    }

    /// Waits until what is in a FIFO was read.
    pub(super) async fn taken(&self) {
        let [mut pause, longest] = LATE_CLIENT;
        while rustix::io::ioctl_fionread(self.fd()).is_ok_and(|unread| unread > 0) {
            tokio::time::sleep(pause).await;
            pause = longest.min(pause * 2);
        }
    }
}

/// Says that a process has ended, so that what it has written is all there is.
#[derive(Debug, Default)]
pub(super) struct Ended {
    ended: Cell<bool>,
    notify: Notify,
}

impl Ended {
    pub(super) fn set(&self) {
        self.ended.set(true);
        self.notify.notify_one();
    }
}

/// What one step of a copy came to.
enum Step {
    Moved,
    /// There is nothing to read now.
    Nothing,
    /// There will never be anything to read.
    Over,
    /// These were read, and are not taken yet.
    Stuck(Box<[u8]>),
    /// What was read could not be written.
    Lost(io::Error),
}

fn step(from: &Side, to: &Side) -> Step {
    let mut buffer = [MaybeUninit::uninit(); CHUNK];
    let mut bytes = match from.read(&mut buffer) {
        Ok([]) => return Step::Over,
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Step::Nothing,
        Err(error) if error.kind() == ErrorKind::Interrupted => return Step::Moved,
        // A terminal that nobody has any more answers EIO; others do not fail.
        Err(_) => return Step::Over,
    };
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Step::Stuck(bytes.into());
            }
            Err(error) => return Step::Lost(error),
        }
    }
    Step::Moved
}

/// Copies until there will be no more. With `ended`, that is also when the process has ended and
/// everything is read: others may keep its terminal. `lost` is told of what could not be written,
/// and says whether to go on.
pub(super) async fn copy(
    from: &Side,
    to: &Side,
    ended: Option<&Ended>,
    mut lost: impl FnMut(io::Error) -> bool,
) {
    let mut burst = 0;
    loop {
        let failed = match step(from, to) {
            Step::Moved => None,
            Step::Over => return,
            Step::Stuck(rest) => to.write_all(&rest).await.err(),
            Step::Lost(error) => Some(error),
            Step::Nothing => {
                burst = 0;
                let readable = match ended {
                    None => from.readable().await,
                    Some(ended) if ended.ended.get() => return,
                    Some(ended) => tokio::select! {
                        readable = from.readable() => readable,
                        () = ended.notify.notified() => Ok(()),
                    },
                };
                if readable.is_err() {
                    return;
                }
                continue;
            }
        };
        if failed.is_some_and(|error| !lost(error)) {
            return;
        }
        burst += 1;
        if burst == BURST {
            burst = 0;
            tokio::task::yield_now().await;
        }
    }
}
