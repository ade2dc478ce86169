//! A descriptor that can be waited for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdRegisterError};

/// A non-blocking descriptor in epoll. It is used in one way: read or write until the kernel has no
/// more, then wait. So nothing needs to be known of what is ready in between.
#[derive(Debug)]
pub(crate) struct Polled(AsyncFd<OwnedFd>);

impl Polled {
    /// Takes a descriptor that was made non-blocking; gives it back when epoll does not want it,
    /// with EPERM if that is because it never makes anybody wait, as a file.
    pub(crate) fn new(fd: OwnedFd, interest: Interest) -> Result<Polled, (OwnedFd, io::Error)> {
        // SAFETY: an `OwnedFd` is open until it is dropped, which is with the `AsyncFd`, and
        // nothing here exchanges it.
        #[allow(unsafe_code, reason = "the only way to make an AsyncFd")]
        let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
        registered
            .map(Polled)
            .map_err(AsyncFdRegisterError::into_parts)
    }

    /// Waits until there may be something to read.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        // What comes between this and the next read is an event of its own.
        self.0.readable().await?.clear_ready();
        Ok(())
    }

    /// Waits until there may be room to write.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.0.writable().await?.clear_ready();
        Ok(())
    }
}

impl AsFd for Polled {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
