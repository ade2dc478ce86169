//! A fault proxy at the level of TCP, in front of any server that speaks HTTP/1.1 in the clear.
//!
//! It cuts, resets, stalls and refuses connections; and it reads along, so that the requests and
//! the bytes that really went through are written down as [`crate::faulty`] writes them down.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::faulty::Request;
use crate::net;
use tap::Tap;

mod tap;

/// What happens to connections from now on.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Nothing.
    Pass,
    /// Each is closed after a number of bytes from the server, drawn from the range.
    Cut(Range<u64>),
    /// The same, with a reset.
    Reset(Range<u64>),
    /// Each falls silent after so many bytes from the server.
    Stall(u64),
    /// Each is reset as soon as it is there.
    Refuse,
    /// Each begins so much later.
    Delay(Duration),
}

#[derive(Debug)]
struct State {
    fault: Fault,
    /// So many times the fault strikes, then connections pass.
    times: Option<u32>,
    random: u64,
}

#[derive(Debug)]
struct Shared {
    target: String,
    state: Mutex<State>,
    log: Mutex<Vec<Request>>,
    connections: Mutex<u32>,
    passed: AtomicU64,
    stop: AtomicBool,
}

/// The running proxy; gone when dropped.
#[derive(Debug)]
pub struct FaultProxy {
    shared: Arc<Shared>,
    host: String,
    acceptor: Option<JoinHandle<()>>,
}

impl FaultProxy {
    /// In front of `target` (`address:port`). `seed` decides where connections are cut.
    #[track_caller]
    pub fn start(target: &str, seed: u64, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let host = listener
            .local_addr()
            .expect("a listener has an address")
            .to_string();
        listener
            .set_nonblocking(true)
            .expect("a socket can be polled");
        let shared = Arc::new(Shared {
            target: target.to_owned(),
            state: Mutex::new(State {
                fault,
                times: None,
                random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            }),
            log: Mutex::default(),
            connections: Mutex::default(),
            passed: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let served = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || {
            net::accept(&listener, &served.stop, |client| {
                let shared = Arc::clone(&served);
                std::thread::spawn(move || {
                    let _ended = connection(&shared, client);
                });
            });
        });
        Self {
            shared,
            host,
            acceptor: Some(acceptor),
        }
    }

    /// The fault strikes only so many times. One that comes after a number of bytes strikes a
    /// connection that gets so far: which of them does is the client's affair.
    #[must_use]
    pub fn times(self, times: u32) -> Self {
        lock(&self.shared.state).times = Some(times);
        self
    }

    /// Another fault for the connections to come.
    pub fn set(&self, fault: Fault) {
        let mut state = lock(&self.shared.state);
        state.fault = fault;
        state.times = None;
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Connections so far.
    pub fn connections(&self) -> u32 {
        *lock(&self.shared.connections)
    }

    /// Bytes from the server so far, of whatever protocol.
    pub fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::Relaxed)
    }

    /// Requests so far, with the bytes of body that went through.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.log).clone()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            let _ended = acceptor.join();
        }
    }
}

impl State {
    /// The fault of the next connection, and where it strikes.
    fn draw(&mut self) -> (Fault, u64) {
        let later = matches!(
            self.fault,
            Fault::Cut(_) | Fault::Reset(_) | Fault::Stall(_)
        );
        if !later && !self.strikes() {
            return (Fault::Pass, u64::MAX);
        }
        // xorshift64: the same cuts for the same seed.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let at = match &self.fault {
            Fault::Cut(range) | Fault::Reset(range) => {
                range.start + self.random % (range.end - range.start).max(1)
            }
            Fault::Stall(after) => *after,
            _ => u64::MAX,
        };
        (self.fault.clone(), at)
    }

    /// Whether the fault strikes now; counted.
    fn strikes(&mut self) -> bool {
        match &mut self.times {
            Some(0) => false,
            Some(times) => {
                *times -= 1;
                true
            }
            None => true,
        }
    }
}

fn connection(shared: &Arc<Shared>, mut client: TcpStream) -> io::Result<()> {
    *lock(&shared.connections) += 1;
    let (fault, limit) = lock(&shared.state).draw();
    match fault {
        Fault::Refuse => {
            net::reset(&client);
            return Ok(());
        }
        Fault::Delay(pause) => net::idle(&shared.stop, pause),
        _ => {}
    }
    let mut server = TcpStream::connect(&shared.target)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let tap = Arc::new(Mutex::new(Tap::default()));
    let up = {
        let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
        let (shared, tap) = (Arc::clone(shared), Arc::clone(&tap));
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                lock(&tap).up(&buffer[..n], &mut lock(&shared.log));
                if to.write_all(&buffer[..n]).is_err() {
                    break;
                }
            }
            let _closed = to.shutdown(Shutdown::Write);
        })
    };
    let mut left = limit;
    let mut buffer = vec![0; 1 << 14];
    loop {
        let mut n = server.read(&mut buffer).unwrap_or(0);
        if n == 0 {
            break;
        }
        if n as u64 >= left {
            if lock(&shared.state).strikes() {
                n = usize::try_from(left).map_or(n, |left| n.min(left));
            } else {
                left = u64::MAX;
            }
        }
        if client.write_all(&buffer[..n]).is_err() {
            break;
        }
        shared.passed.fetch_add(n as u64, Ordering::Relaxed);
        lock(&tap).down(&buffer[..n], &mut lock(&shared.log));
        left -= n as u64;
        if left == 0 {
            match fault {
                Fault::Reset(_) => net::reset(&client),
                Fault::Stall(_) => net::stall(&shared.stop, &client),
                _ => {}
            }
            break;
        }
    }
    // The other direction holds a copy of either socket: both must end for the close to be seen.
    let _closed = server.shutdown(Shutdown::Both);
    let reset = matches!(fault, Fault::Reset(_)) && left == 0;
    let _closed = client.shutdown(if reset {
        Shutdown::Read
    } else {
        Shutdown::Both
    });
    drop(client);
    let _ended = up.join();
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
