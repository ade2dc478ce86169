//! What the lab's own servers share: accepting until told to stop, resets, waiting.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::libc::linger;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

/// How often a waiting server looks whether it is being dropped.
pub(crate) const POLL: Duration = Duration::from_millis(50);

/// Hands every connection to `serve` until `stop`. (A socket of another network namespace cannot
/// be woken by a connection from here, so it is polled.)
pub(crate) fn accept(listener: &TcpListener, stop: &AtomicBool, mut serve: impl FnMut(TcpStream)) {
    while !stop.load(Ordering::Relaxed) {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(POLL).unwrap_or(PollTimeout::ZERO);
        if !matches!(poll(&mut fds, timeout), Ok(1)) {
            continue;
        }
        if let Ok((stream, _)) = listener.accept() {
            serve(stream);
        }
    }
}

/// Closes a connection with RST. What the peer has not received yet is lost, as on a real link;
/// a moment is left first so that what was sent has arrived.
pub(crate) fn reset(stream: &TcpStream) {
    sleep(Duration::from_millis(20));
    let at_once = linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // Without it the close is an orderly one, and the row that counts on a reset tells.
    let _set = setsockopt(stream, sockopt::Linger, &at_once);
}

pub(crate) fn would_block(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// Sleeps, but not longer than until `stop`.
pub(crate) fn idle(stop: &AtomicBool, pause: Duration) {
    let end = Instant::now() + pause;
    while !stop.load(Ordering::Relaxed) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        sleep(left.min(POLL));
    }
}

/// Says nothing until the peer hangs up.
pub(crate) fn stall(stop: &AtomicBool, stream: &TcpStream) {
    let _set = stream.set_read_timeout(Some(POLL));
    let mut byte = [0];
    while !stop.load(Ordering::Relaxed) {
        match stream.peek(&mut byte) {
            Ok(0) => return,
            Ok(_) => sleep(POLL),
            Err(e) if would_block(&e) => {}
            Err(_) => return,
        }
    }
}
