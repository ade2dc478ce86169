//! A tiny scripted HTTP/1.1 server on a loopback port: a closure answers each request,
//! and the requests are kept for the test to look at.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Received {
    pub(super) method: String,
    /// Path and query.
    pub(super) path: String,
    headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Received {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    pub(super) fn authorization(&self) -> &str {
        self.header("authorization").unwrap_or_default()
    }
}

/// An answer, and how it is disturbed.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Bytes of the body that are sent, and what happens then.
    after: Option<(usize, Then)>,
    /// No Content-Length; the end of the connection ends the body.
    unframed: bool,
    /// The body byte by byte, with so long a pause after each.
    trickle: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Then {
    Close,
    Stall,
}

impl Reply {
    pub(super) fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            after: None,
            unframed: false,
            trickle: None,
        }
    }

    pub(super) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }

    pub(super) fn with(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(super) fn after(mut self, bytes: usize, then: Then) -> Self {
        self.after = Some((bytes, then));
        self
    }

    pub(super) fn trickle(mut self, pause: Duration) -> Self {
        self.trickle = Some(pause);
        self
    }

    pub(super) fn unframed(mut self) -> Self {
        self.unframed = true;
        self
    }
}

type Script = dyn Fn(&Received) -> Reply + Send + Sync;

/// The server; it ends with the value.
#[derive(Debug)]
pub(super) struct TestServer {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Received>>>,
    task: JoinHandle<()>,
}

impl TestServer {
    pub(super) async fn start(script: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let seen: Arc<Mutex<Vec<Received>>> = Arc::default();
        let script: Arc<Script> = Arc::new(script);
        let log = seen.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, script.clone(), log.clone()));
            }
        });
        Self {
            address,
            seen,
            task,
        }
    }

    /// `127.0.0.1:PORT`
    pub(super) fn authority(&self) -> String {
        self.address.to_string()
    }

    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Nobody listens there from now on.
    pub(super) async fn stop(&self) {
        self.task.abort();
        while tokio::net::TcpStream::connect(self.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(super) fn seen(&self) -> Vec<Received> {
        self.seen.lock().expect("not poisoned").clone()
    }

    /// Method and path of each request so far.
    pub(super) fn lines(&self) -> Vec<String> {
        self.seen()
            .iter()
            .map(|r| format!("{} {}", r.method, r.path))
            .collect()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, script: Arc<Script>, log: Arc<Mutex<Vec<Received>>>) {
    while let Some(request) = receive(&mut stream).await {
        log.lock().expect("not poisoned").push(request.clone());
        let reply = script(&request);
        if answer(&mut stream, &request, &reply).await.is_none() {
            return;
        }
    }
}

async fn receive(stream: &mut TcpStream) -> Option<Received> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
        if head.first() == Some(&0x16) {
            // A TLS handshake: what Go's server says to it.
            let text = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTPS request to an HTTP server.\n";
            stream.write_all(text).await.ok()?;
            return None;
        }
    }
    let head = String::from_utf8(head).ok()?;
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers
        .iter()
        .find(|(name, _)| name == "content-length")
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Received {
        method,
        path,
        headers,
        body: String::from_utf8(body).ok()?,
    })
}

/// `None` when the connection is over.
async fn answer(stream: &mut TcpStream, request: &Received, reply: &Reply) -> Option<()> {
    let mut head = format!("HTTP/1.1 {} Scripted\r\n", reply.status);
    let own_length = reply
        .headers
        .iter()
        .any(|(name, _)| name == "content-length");
    for (name, value) in &reply.headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    if reply.unframed {
        head.push_str("connection: close\r\n");
    } else if !own_length {
        let length = reply.body.len().to_string();
        head.extend(["content-length: ", &length, "\r\n"]);
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await.ok()?;
    if request.method == "HEAD" {
        return Some(());
    }
    if let Some(pause) = reply.trickle {
        for byte in &reply.body {
            stream.write_all(&[*byte]).await.ok()?;
            stream.flush().await.ok()?;
            tokio::time::sleep(pause).await;
        }
        return Some(());
    }
    match reply.after {
        None => stream.write_all(&reply.body).await.ok()?,
        Some((bytes, then)) => {
            let part = reply.body.get(..bytes).expect("within the body");
            stream.write_all(part).await.ok()?;
            stream.flush().await.ok()?;
            if then == Then::Stall {
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            return None;
        }
    }
    (!reply.unframed).then_some(())
}
