//! A forward proxy as sites put before the internet: CONNECT for TLS, absolute addresses for
//! plain HTTP, with a password if it must. Every name leads where the test says.

use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::http::{basic, find, read_head};
use crate::net;

#[derive(Debug)]
struct Shared {
    /// Name and port as the client says them, and where that is.
    names: Vec<(String, String)>,
    login: Option<(String, String)>,
    asked: Mutex<Vec<String>>,
    stop: AtomicBool,
}

/// The running proxy; gone when dropped.
#[derive(Debug)]
pub struct ForwardProxy {
    shared: Arc<Shared>,
    host: String,
    acceptor: Option<JoinHandle<()>>,
}

impl ForwardProxy {
    /// `names`: what the client asks for (`host:port`), and where that leads. With a login,
    /// everybody else gets 407.
    #[track_caller]
    pub fn start(names: &[(&str, &str)], login: Option<(&str, &str)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let host = listener
            .local_addr()
            .expect("a listener has an address")
            .to_string();
        listener
            .set_nonblocking(true)
            .expect("a socket can be polled");
        let own = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
        let shared = Arc::new(Shared {
            names: names.iter().map(own).collect(),
            login: login.as_ref().map(own),
            asked: Mutex::default(),
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

    /// `127.0.0.1:port`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// First lines of all requests so far.
    pub fn asked(&self) -> Vec<String> {
        let asked = self.shared.asked.lock();
        asked.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for ForwardProxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            let _ended = acceptor.join();
        }
    }
}

fn connection(shared: &Shared, mut client: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut reader = BufReader::new(client.try_clone()?);
    let (first, headers) = read_head(&mut reader)?;
    shared
        .asked
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(first.clone());
    let refuse = |client: &mut TcpStream, status: &str, more: &str| {
        write!(
            client,
            "HTTP/1.1 {status}\r\n{more}Content-Length: 0\r\nConnection: close\r\n\r\n"
        )
    };
    if let Some((user, password)) = &shared.login
        && find(&headers, "proxy-authorization") != Some(basic(user, password).as_str())
    {
        let more = "Proxy-Authenticate: Basic realm=\"site\"\r\n";
        return refuse(&mut client, "407 Proxy Authentication Required", more);
    }
    let mut words = first.split(' ');
    let (method, target) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let tunnel = method == "CONNECT";
    let (name, path) = if tunnel {
        (target.to_owned(), String::new())
    } else {
        let rest = target.strip_prefix("http://").unwrap_or(target);
        let (name, path) = rest.split_once('/').unwrap_or((rest, ""));
        let port = if name.contains(':') { "" } else { ":80" };
        (format!("{name}{port}"), format!("/{path}"))
    };
    let Some((_, place)) = shared.names.iter().find(|(known, _)| *known == name) else {
        return refuse(&mut client, "502 Bad Gateway", "");
    };
    let Ok(mut server) = TcpStream::connect(place) else {
        return refuse(&mut client, "502 Bad Gateway", "");
    };
    server.set_nodelay(true)?;
    if tunnel {
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    } else {
        // One request a connection: the next may be for another server.
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        for (name, value) in &headers {
            if name != "connection" && name != "proxy-authorization" {
                for part in [name, ": ", value, "\r\n"] {
                    head.push_str(part);
                }
            }
        }
        head.push_str("\r\n");
        server.write_all(head.as_bytes())?;
    }
    let early = reader.buffer().to_vec();
    server.write_all(&early)?;
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    let up = std::thread::spawn(move || {
        let _ended = copy(&mut from, &mut to);
        let _closed = to.shutdown(Shutdown::Write);
    });
    let _ended = copy(&mut server, &mut client);
    let _closed = client.shutdown(Shutdown::Both);
    let _closed = server.shutdown(Shutdown::Both);
    let _ended = up.join();
    Ok(())
}

fn copy(from: &mut TcpStream, to: &mut TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            n => to.write_all(&buffer[..n])?,
        }
    }
}
