//! What the lab's own servers share: accepting until told to stop, resets, waiting.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
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

/// Closes a connection with RST. What the peer has not read yet is lost, as on a real link; here
/// nothing is on its way any more, so that what a transfer loses is not a matter of luck.
pub(crate) fn reset(stream: &TcpStream) {
    let end = Instant::now() + Duration::from_secs(1);
    while in_flight(stream).is_none_or(|bytes| bytes > 0) && Instant::now() < end {
        sleep(Duration::from_millis(1));
    }
    let at_once = linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // Without it the close is an orderly one, and the row that counts on a reset tells.
    let _set = setsockopt(stream, sockopt::Linger, &at_once);
}

/// What of it our kernel has not sent or the peer's process has not read; nothing if the other
/// end is not on this machine's IPv4. See `tcp` in `proc_pid_net(5)`.
fn in_flight(stream: &TcpStream) -> Option<u64> {
    let (ours, theirs) = (stream.local_addr().ok()?, stream.peer_addr().ok()?);
    let written = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => Some(format!(
            "{:08X}:{:04X}",
            u32::from_ne_bytes(v4.ip().octets()),
            v4.port()
        )),
        SocketAddr::V6(_) => None,
    };
    let (ours, theirs) = (written(ours)?, written(theirs)?);
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let queue = |from: &str, to: &str, side: usize| {
        let mut lines = table.lines().map(|line| line.split_whitespace().skip(1));
        let mut fields = lines.find_map(|mut fields| {
            (fields.next() == Some(from) && fields.next() == Some(to)).then_some(fields)
        })?;
        let queues = fields.nth(1)?;
        u64::from_str_radix(queues.split(':').nth(side)?, 16).ok()
    };
    Some(queue(&ours, &theirs, 0)? + queue(&theirs, &ours, 1)?)
}

#[test]
fn bytes_in_flight_are_seen() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut reader = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut writer, _) = listener.accept().unwrap();
    assert_eq!(in_flight(&writer), Some(0));
    io::Write::write_all(&mut writer, b"words").unwrap();
    assert_eq!(in_flight(&writer), Some(5));
    io::Read::read_exact(&mut reader, &mut [0; 5]).unwrap();
    assert_eq!(in_flight(&writer), Some(0));
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
