//! The socket on which an OCI runtime hands over the terminal that it made for a container.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::UnixListener;
use tokio::time::timeout;

use crate::error::{Code, Error, Result};

/// How long a runtime may take from its end, or its connection, to the terminal.
const LIMIT: Duration = Duration::from_secs(30);

/// A socket in a bundle.
///
/// A bundle's path is longer than an address may be (108 bytes), so the runtime gets a path that leads
/// over this process' own handle of the directory. It goes with the bundle in any case.
#[derive(Debug)]
pub struct Console {
    listener: UnixListener,
    file: PathBuf,
    address: PathBuf,
    /// Keeps the number in `address` true.
    _bundle: OwnedFd,
}

impl Console {
    /// Listens in `bundle` under `name`.
    pub fn listen(bundle: &Path, name: &str) -> Result<Console> {
        let failed = |error: &dyn std::fmt::Display| Error::io("a socket for the terminal", error);
        let directory = std::fs::File::open(bundle).map_err(|error| failed(&error))?;
        let directory = OwnedFd::from(directory);
        let file = bundle.join(name);
        // Of an exec of that name that was killed with its shim.
        let _ = std::fs::remove_file(&file);
        let address = PathBuf::from(format!(
            "/proc/{}/fd/{}/{name}",
            std::process::id(),
            directory.as_raw_fd()
        ));
        let listener = StdListener::bind(&address).map_err(|error| failed(&error))?;
        listener
            .set_nonblocking(true)
            .map_err(|error| failed(&error))?;
        let listener = UnixListener::from_std(listener).map_err(|error| failed(&error))?;
        Ok(Console {
            listener,
            file,
            address,
            _bundle: directory,
        })
    }

    /// Where the runtime finds it.
    pub fn address(&self) -> &Path {
        &self.address
    }

    /// The terminal's master.
    pub async fn receive(self) -> Result<OwnedFd> {
        let late = || {
            Error::new(
                Code::DeadlineExceeded,
                "the OCI runtime handed over no terminal",
            )
        };
        let failed = |error: &dyn std::fmt::Display| Error::io("receiving the terminal", error);
        let accepted = timeout(LIMIT, self.listener.accept())
            .await
            .map_err(|_| late())?;
        let (stream, _) = accepted.map_err(|error| failed(&error))?;
        let received = timeout(
            LIMIT,
            stream.async_io(Interest::READABLE, || {
                receive_fd(stream.as_raw_fd()).map_err(std::io::Error::from)
            }),
        )
        .await
        .map_err(|_| late())?
        .map_err(|error| failed(&error))?;
        received
            .ok_or_else(|| Error::unknown("the OCI runtime sent something else than a terminal"))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// One descriptor; further ones are closed.
fn receive_fd(socket: RawFd) -> nix::Result<Option<OwnedFd>> {
    let mut name = [0; 4096];
    let mut space = cmsg_space!([RawFd; 4]);
    let mut slices = [IoSliceMut::new(&mut name)];
    let message = recvmsg::<()>(
        socket,
        &mut slices,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut first = None;
    for control in message.cmsgs()? {
        let ControlMessageOwned::ScmRights(numbers) = control else {
            continue;
        };
        for number in numbers {
            #[allow(
                unsafe_code,
                reason = "a number from the kernel becomes a handle somewhere"
            )]
            // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
            let fd = unsafe { OwnedFd::from_raw_fd(number) };
            first.get_or_insert(fd);
        }
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::io::IoSlice;
    use std::os::unix::net::UnixStream;

    use nix::sys::socket::{ControlMessage, sendmsg};

    use super::*;

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test)
    }

    #[test]
    fn a_descriptor_comes_over_a_long_path() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("x".repeat(200));
        std::fs::create_dir(&bundle).unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        run(async {
            let console = Console::listen(&bundle, "console.sock").unwrap();
            let client = UnixStream::connect(console.address()).unwrap();
            let numbers = [write.as_raw_fd(), read.as_raw_fd()];
            let rights = [ControlMessage::ScmRights(&numbers)];
            sendmsg::<()>(
                client.as_raw_fd(),
                &[IoSlice::new(b"x")],
                &rights,
                MsgFlags::empty(),
                None,
            )
            .unwrap();
            let got = console.receive().await.unwrap();
            drop(write);
            nix::unistd::write(&got, b"y").unwrap();
            let mut byte = [0];
            nix::unistd::read(&read, &mut byte).unwrap();
            assert_eq!(&byte, b"y");
        });
        assert_eq!(
            std::fs::read_dir(&bundle).unwrap().count(),
            0,
            "the socket is gone"
        );
    }

    #[test]
    fn no_descriptor_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        run(async {
            let console = Console::listen(dir.path(), "c").unwrap();
            let client = UnixStream::connect(console.address()).unwrap();
            drop(client);
            assert!(console.receive().await.is_err());
        });
    }
}
