//! A registry that misbehaves by script.
//!
//! It serves one layout under any repository name, correctly, except where a [`Rule`] says
//! otherwise; and it writes down every request, so that a test can count them.

mod auth;
mod serve;

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::http::find;
use crate::image::Layout;
pub use auth::{Auth, SECRET_TOKEN, SIGNATURE, Signed, Tokens};
pub(crate) use serve::parse;

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `/v2/`.
    Ping,
    /// The token endpoint.
    Token,
    /// A manifest by tag.
    Tag,
    /// A manifest by digest.
    Manifest,
    /// A blob.
    Blob,
    /// Anything else.
    Other,
}

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`, `HEAD`, …
    pub method: String,
    /// Path without query.
    pub path: String,
    /// Query, without the question mark.
    pub query: String,
    /// What it is about.
    pub kind: Kind,
    /// Tag or digest of a manifest or blob.
    pub what: String,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Status code of the answer; 0 while none was sent.
    pub status: u16,
    /// Bytes of body sent.
    pub sent: u64,
}

impl Request {
    /// The first header of that name (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// Whether the request carried credentials.
    pub fn authorized(&self) -> bool {
        self.header("authorization").is_some()
    }

    /// Asked for the sake of authentication alone: the ping, the token, what got a 401.
    pub fn is_auth(&self) -> bool {
        matches!(self.kind, Kind::Ping | Kind::Token) || self.status == 401
    }
}

/// How to misbehave.
#[derive(Debug, Clone)]
pub enum Action {
    /// This status, these headers, this body, instead of the content.
    Answer(u16, Vec<(String, String)>, Vec<u8>),
    /// The true headers, then only so many bytes, then an orderly close.
    Truncate(u64),
    /// The same, but `Content-Length` admits it.
    Short(u64),
    /// The true content with one bit of this byte changed.
    FlipBit(u64),
    /// One byte more than there should be.
    OneMore,
    /// `Docker-Content-Digest` says this; the body is right. `None`: the header is missing.
    DigestHeader(Option<String>),
    /// `Content-Type` says this; `None`: the header is missing.
    ContentType(Option<String>),
    /// HEAD answered with 200 but without length and digest.
    BareHead,
    /// Waits, then answers properly.
    Delay(Duration),
    /// The headers and so many bytes, then silence until the client gives up.
    Stall(u64),
    /// Closes the connection without a word.
    Close,
    /// Sends the body in pieces of this many bytes with a pause after each.
    Slow(usize, Duration),
    /// `Range` is ignored: 200 with the whole.
    IgnoreRange,
    /// `Transfer-Encoding: chunked`, no length.
    Chunked,
    /// Redirects (307) to this place with the same path; refuses nothing itself.
    Redirect(String),
    /// The same with a signature in the query, another one each time ([`Auth::Storage`]).
    Sign(String),
    /// Redirects with this status to what the function makes of the request.
    Location(u16, fn(&Request) -> String),
    /// The headers and so many bytes, then a reset (RST) instead of an orderly close.
    Reset(u64),
    /// A range is answered from one byte later; `Content-Range` admits it if `true`.
    Shift(bool),
    /// 416 for every range.
    RefuseRange,
    /// 416 for a range without an end (`bytes=N-`).
    RefuseOpenRange,
    /// `Content-Range` names a total that is wrong by one.
    WrongTotal,
    /// Neither a length nor chunks: the end of the connection is the end of the body.
    NoLength,
    /// HEAD names this length.
    HeadLength(u64),
    /// The content gzip-encoded, whatever was accepted.
    Gzip,
    /// A proper answer with further headers.
    Headers(Vec<(String, String)>),
    /// A proper answer, then the connection is closed without notice.
    CloseAfter,
    /// These bytes, which need not be HTTP, then a close.
    Raw(Vec<u8>),
}

impl Action {
    /// A status with a small text body.
    pub fn status(code: u16) -> Self {
        Self::Answer(code, Vec::new(), format!("status {code}\n").into_bytes())
    }

    /// A body of a type.
    pub fn body(media_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let kind = ("Content-Type".to_owned(), media_type.to_owned());
        Self::Answer(200, vec![kind], body.into())
    }
}

/// When to misbehave, and how. The first rule that fits wins.
#[derive(Debug, Clone)]
pub struct Rule {
    method: Option<&'static str>,
    kind: Option<Kind>,
    what: Option<String>,
    when: Option<fn(&Request) -> bool>,
    times: Option<u32>,
    skip: u32,
    action: Action,
}

impl Rule {
    /// For every request.
    pub fn always(action: Action) -> Self {
        Self {
            method: None,
            kind: None,
            what: None,
            when: None,
            times: None,
            skip: 0,
            action,
        }
    }

    /// For requests about this.
    pub fn on(kind: Kind, action: Action) -> Self {
        Self {
            kind: Some(kind),
            ..Self::always(action)
        }
    }

    /// Only for this method.
    #[must_use]
    pub fn method(mut self, method: &'static str) -> Self {
        self.method = Some(method);
        self
    }

    /// Only for this tag or digest.
    #[must_use]
    pub fn what(mut self, what: &str) -> Self {
        self.what = Some(what.to_owned());
        self
    }

    /// Only for requests of which this is true.
    #[must_use]
    pub fn when(mut self, when: fn(&Request) -> bool) -> Self {
        self.when = Some(when);
        self
    }

    /// Only so many times; then the registry is well again. For a rule about content a request that is
    /// not admitted does not count, here and in [`Self::after`].
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Not for the first so many requests that fit.
    #[must_use]
    pub fn after(mut self, skip: u32) -> Self {
        self.skip = skip;
        self
    }

    fn fits(&self, request: &Request) -> bool {
        self.method.is_none_or(|m| m == request.method)
            && self.kind.as_ref().is_none_or(|k| *k == request.kind)
            && self.what.as_ref().is_none_or(|w| *w == request.what)
            && self.when.is_none_or(|when| when(request))
    }
}

#[derive(Debug)]
struct Shared {
    layout: Arc<Layout>,
    auth: Mutex<Auth>,
    ledger: Mutex<auth::Ledger>,
    rules: Mutex<Vec<Rule>>,
    log: Mutex<Vec<Request>>,
    stop: AtomicBool,
    /// Blobs being sent now, and the most there ever were.
    sending: AtomicUsize,
    most: AtomicUsize,
    host: String,
}

/// The running registry; gone when dropped.
#[derive(Debug)]
pub struct Faulty {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Faulty {
    /// Serves a layout to anybody.
    #[track_caller]
    pub fn start(layout: impl Into<Arc<Layout>>, rules: impl IntoIterator<Item = Rule>) -> Self {
        Self::start_with(layout, Auth::Open, rules)
    }

    /// Serves a layout to those who authenticate.
    #[track_caller]
    pub fn start_with(
        layout: impl Into<Arc<Layout>>,
        auth: Auth,
        rules: impl IntoIterator<Item = Rule>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        Self::on(listener, layout, auth, rules)
    }

    /// Serves on a socket of the caller's, which may be of another network namespace.
    #[track_caller]
    pub fn on(
        listener: TcpListener,
        layout: impl Into<Arc<Layout>>,
        auth: Auth,
        rules: impl IntoIterator<Item = Rule>,
    ) -> Self {
        let address = listener.local_addr().expect("a listener has an address");
        listener
            .set_nonblocking(true)
            .expect("a socket can be polled");
        let shared = Arc::new(Shared {
            layout: layout.into(),
            auth: Mutex::new(auth),
            ledger: Mutex::default(),
            rules: Mutex::new(rules.into_iter().collect()),
            log: Mutex::new(Vec::new()),
            stop: AtomicBool::new(false),
            sending: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            host: address.to_string(),
        });
        let served = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || {
            crate::net::accept(&listener, &served.stop, |stream| {
                let shared = Arc::clone(&served);
                // Ends by itself: with the client, or within a poll of `stop`.
                std::thread::spawn(move || serve::connection(&shared, stream));
            });
        });
        Self {
            shared,
            acceptor: Some(acceptor),
        }
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> &str {
        &self.shared.host
    }

    /// A full reference; any repository is served.
    pub fn reference(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.host())
    }

    /// The layout it serves.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.shared.layout
    }

    /// Replaces the script.
    pub fn script(&self, rules: impl IntoIterator<Item = Rule>) {
        *lock(&self.shared.rules) = rules.into_iter().collect();
    }

    /// Replaces what it wants to see before it serves.
    pub fn demand(&self, auth: Auth) {
        *lock(&self.shared.auth) = auth;
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.log).clone()
    }

    /// The most blobs that were being sent at the same moment.
    pub fn most_at_once(&self) -> usize {
        self.shared.most.load(Ordering::Relaxed)
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        lock(&self.shared.log).clear();
    }

    /// Requests that were not made for authentication alone.
    pub fn content_requests(&self) -> Vec<Request> {
        let mut all = self.requests();
        all.retain(|request| !request.is_auth());
        all
    }

    /// How many requests there were of a method about a kind of thing.
    pub fn count(&self, method: &str, kind: &Kind) -> usize {
        self.requests()
            .iter()
            .filter(|request| request.method == method && request.kind == *kind)
            .count()
    }

    /// Bytes of blobs sent.
    pub fn blob_bytes(&self) -> u64 {
        self.requests()
            .iter()
            .filter(|request| request.kind == Kind::Blob)
            .map(|request| request.sent)
            .sum()
    }

    /// One line for each request: for the message of a failing assertion.
    pub fn transcript(&self) -> String {
        transcript(&self.requests())
    }
}

/// One line for each request.
pub fn transcript(requests: &[Request]) -> String {
    let line = |r: &Request| {
        let range = r.header("range").unwrap_or("");
        format!(
            "{} {} {range} -> {} ({} bytes)",
            r.method, r.path, r.status, r.sent
        )
    };
    let lines: Vec<String> = requests.iter().map(line).collect();
    lines.join("\n")
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            let _ended = acceptor.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
