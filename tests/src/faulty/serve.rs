//! One connection: read a request, look at the script, answer.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;

use super::auth::{self, Admission};
use super::{Action, Auth, Kind, Request, Rule, Shared, lock};
use crate::http::{find, read_head};
use crate::image::media;
use crate::net::{self, POLL, would_block};

pub(super) fn connection(shared: &Shared, stream: TcpStream) {
    // The client went away, or the registry is being dropped: nothing to tell anybody.
    let _ended = serve(shared, stream);
}

fn serve(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        stream.set_read_timeout(Some(POLL))?;
        loop {
            let mut peek = [0];
            if !reader.buffer().is_empty() {
                break;
            }
            match stream.peek(&mut peek) {
                Ok(0) => return Ok(()),
                Ok(_) => break,
                Err(e) if would_block(&e) && !shared.stop.load(Ordering::Relaxed) => {}
                Err(e) => return Err(e),
            }
        }
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let (first, headers) = match read_head(&mut reader) {
            // A TLS handshake, most likely: servers of plain HTTP say so.
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                let said = "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTPS request\n";
                return stream.write_all(said.as_bytes());
            }
            other => other?,
        };
        let mut form = Vec::new();
        if let Some(length) = find(&headers, "content-length").and_then(|n| n.parse().ok()) {
            reader.by_ref().take(length).read_to_end(&mut form)?;
        }
        let request = parse(&first, headers);
        let at = {
            let mut log = lock(&shared.log);
            log.push(request.clone());
            log.len() - 1
        };
        let mut answer = Answer {
            shared,
            stream: &mut stream,
            at,
            head: request.method == "HEAD",
            last: request
                .header("connection")
                .is_some_and(|word| word.eq_ignore_ascii_case("close")),
        };
        let is_blob = request.kind == Kind::Blob;
        if is_blob {
            let sending = shared.sending.fetch_add(1, Ordering::Relaxed) + 1;
            shared.most.fetch_max(sending, Ordering::Relaxed);
        }
        let last = answer.last;
        let given = answer.give(&request, &form);
        if is_blob {
            shared.sending.fetch_sub(1, Ordering::Relaxed);
        }
        if !given? || last {
            return Ok(());
        }
    }
}

/// The request line and its headers as a record; also what the fault proxy writes down.
pub(crate) fn parse(first: &str, headers: Vec<(String, String)>) -> Request {
    let mut words = first.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (kind, what) = if path == "/v2/" || path == "/v2" {
        (Kind::Ping, "")
    } else if path == "/token" {
        (Kind::Token, "")
    } else if let Some((_, what)) = path.rsplit_once("/manifests/") {
        if what.contains(':') {
            (Kind::Manifest, what)
        } else {
            (Kind::Tag, what)
        }
    } else if let Some((_, what)) = path.rsplit_once("/blobs/") {
        (Kind::Blob, what)
    } else {
        (Kind::Other, "")
    };
    Request {
        method,
        kind,
        what: what.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        status: 0,
        sent: 0,
    }
}

type Headers = Vec<(String, String)>;

fn header(name: &str, value: impl Into<String>) -> (String, String) {
    (name.to_owned(), value.into())
}

struct Answer<'a> {
    shared: &'a Shared,
    stream: &'a mut TcpStream,
    at: usize,
    head: bool,
    /// The client wants no further answer on this connection.
    last: bool,
}

impl Answer<'_> {
    /// Answers; false when the connection must end.
    fn give(&mut self, request: &Request, form: &[u8]) -> io::Result<bool> {
        let auth = lock(&self.shared.auth).clone();
        let (action, admission) = self.decide(&auth, request);
        match &action {
            Some(Action::Answer(status, headers, body)) => {
                return self.whole(*status, headers.clone(), body);
            }
            Some(Action::Raw(bytes)) => {
                self.stream.write_all(bytes)?;
                return Ok(false);
            }
            Some(Action::Close) => return Ok(false),
            Some(Action::Delay(pause)) => net::idle(&self.shared.stop, *pause),
            _ => {}
        }
        if request.kind == Kind::Token {
            let (status, body) = auth::token(&auth, &mut lock(&self.shared.ledger), request, form);
            let json = vec![header("Content-Type", "application/json")];
            return self.whole(status, json, body.as_bytes());
        }
        let admission = admission.unwrap_or_else(|| self.admit(&auth, request));
        let mut limit = None;
        match admission {
            Admission::Welcome => {}
            Admission::Limited(bytes) => limit = Some(bytes),
            Admission::Refused(status, body) => {
                return self.whole(status, Headers::new(), body.as_bytes());
            }
            Admission::Challenge(challenge) => {
                let headers = vec![
                    header("WWW-Authenticate", challenge),
                    header("Content-Type", "application/json"),
                ];
                let body =
                    br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
                return self.whole(401, headers, body);
            }
        }
        let place = match &action {
            Some(Action::Redirect(to)) => Some((307, format!("{to}{}", request.path))),
            Some(Action::Sign(to)) => {
                let place = auth::signed(&mut lock(&self.shared.ledger), to, request);
                Some((307, place))
            }
            Some(Action::Location(status, to)) => Some((*status, to(request))),
            _ => None,
        };
        if let Some((status, place)) = place {
            return self.whole(status, vec![header("Location", place)], b"");
        }
        match request.kind {
            Kind::Ping => self.whole(200, vec![header("Content-Type", "application/json")], b"{}"),
            Kind::Tag | Kind::Manifest | Kind::Blob => {
                let goes_on = self.content(request, action.as_ref(), limit)?;
                Ok(goes_on && !matches!(action, Some(Action::CloseAfter)))
            }
            Kind::Token | Kind::Other => self.missing("NAME_UNKNOWN"),
        }
    }

    fn admit(&self, auth: &Auth, request: &Request) -> Admission {
        let repository = repository(&request.path);
        let mut ledger = lock(&self.shared.ledger);
        auth::admit(auth, &mut ledger, &self.shared.host, repository, request)
    }

    /// What a rule wants done with it. One that does something to content counts only requests that are
    /// admitted, which is decided with it; the others come before that.
    fn decide(&self, auth: &Auth, request: &Request) -> (Option<Action>, Option<Admission>) {
        let mut rules = lock(&self.shared.rules);
        let mut after = rules.clone();
        let action = pick(&mut after, request);
        let first = matches!(
            action,
            Some(Action::Answer(..) | Action::Raw(_) | Action::Close | Action::Delay(_))
        );
        if first || request.kind == Kind::Token {
            *rules = after;
            return (action, None);
        }
        let admission = self.admit(auth, request);
        if matches!(admission, Admission::Welcome | Admission::Limited(_)) {
            *rules = after;
        }
        (action, Some(admission))
    }

    fn missing(&mut self, code: &str) -> io::Result<bool> {
        let body = format!("{{\"errors\":[{{\"code\":\"{code}\",\"message\":\"unknown\"}}]}}");
        let headers = vec![header("Content-Type", "application/json")];
        self.whole(404, headers, body.as_bytes())
    }

    fn content(
        &mut self,
        request: &Request,
        action: Option<&Action>,
        limit: Option<u64>,
    ) -> io::Result<bool> {
        let Some((digest, media_type)) = self.find(request) else {
            return self.missing(if request.kind == Kind::Blob {
                "BLOB_UNKNOWN"
            } else {
                "MANIFEST_UNKNOWN"
            });
        };
        let Ok(mut file) = File::open(self.shared.layout.blob_path(&digest)) else {
            return self.missing("BLOB_UNKNOWN");
        };
        let size = file.metadata()?.len();
        let wanted = match action {
            Some(Action::IgnoreRange) => None,
            _ => request.header("range").and_then(|text| range(text, size)),
        };
        let refused = match action {
            Some(Action::RefuseRange) => wanted.is_some(),
            Some(Action::RefuseOpenRange) => {
                request.header("range").is_some_and(|r| r.ends_with('-'))
            }
            _ => matches!(wanted, Some(Err(()))),
        };
        if refused {
            let headers = vec![header("Content-Range", format!("bytes */{size}"))];
            return self.whole(416, headers, b"");
        }
        let partial = matches!(wanted, Some(Ok(_)));
        let (from, until) = match wanted {
            Some(Ok(range)) => range,
            _ => (0, size),
        };
        let shift = u64::from(partial && matches!(action, Some(Action::Shift(_))));
        let from = (from + shift).min(until);
        file.seek(SeekFrom::Start(from))?;
        let length = until - from;

        let mut headers = match action {
            Some(Action::Headers(more)) => more.clone(),
            _ => Headers::new(),
        };
        match action {
            Some(Action::ContentType(None)) => {}
            Some(Action::ContentType(Some(other))) => headers.push(header("Content-Type", other)),
            _ => headers.push(header("Content-Type", media_type)),
        }
        match action {
            Some(Action::DigestHeader(None) | Action::BareHead) => {}
            Some(Action::DigestHeader(Some(lie))) => {
                headers.push(header("Docker-Content-Digest", lie));
            }
            _ => headers.push(header("Docker-Content-Digest", digest)),
        }
        if partial {
            let said = match action {
                Some(Action::Shift(false)) => from - shift,
                _ => from,
            };
            let total = size + u64::from(matches!(action, Some(Action::WrongTotal)));
            let value = format!("bytes {said}-{}/{total}", until - 1);
            headers.push(header("Content-Range", value));
        }
        if matches!(action, Some(Action::Gzip)) {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            io::copy(&mut file.take(length), &mut gzip)?;
            headers.push(header("Content-Encoding", "gzip"));
            return self.whole(200, headers, &gzip.finish()?);
        }
        let promised = match action {
            Some(Action::Short(n)) => length.min(*n),
            Some(Action::OneMore) => length + 1,
            Some(Action::HeadLength(n)) if self.head => *n,
            _ => length,
        };
        let bare = matches!(action, Some(Action::BareHead)) && self.head;
        let chunked = matches!(action, Some(Action::Chunked));
        let endless = matches!(action, Some(Action::NoLength));
        if chunked {
            headers.push(header("Transfer-Encoding", "chunked"));
        } else if !bare && !endless {
            headers.push(header("Content-Length", promised.to_string()));
        }
        self.begin(if partial { 206 } else { 200 }, &headers)?;
        if self.head {
            return Ok(!bare && !endless);
        }
        match limit {
            Some(limit) if limit < length => {
                self.body(file, from, length, Some(&Action::Truncate(limit)))
            }
            _ => self.body(file, from, length, action),
        }
    }

    fn body(
        &mut self,
        file: File,
        from: u64,
        length: u64,
        action: Option<&Action>,
    ) -> io::Result<bool> {
        let (limit, piece) = match action {
            Some(Action::Truncate(n) | Action::Short(n) | Action::Stall(n) | Action::Reset(n)) => {
                (length.min(*n), 1 << 16)
            }
            Some(Action::Slow(piece, _)) => (length, *piece),
            _ => (length, 1 << 16),
        };
        let mut source = file.take(limit);
        let mut buffer = vec![0; piece];
        let mut at = from;
        loop {
            let n = source.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            let end = at + n as u64;
            if let Some(Action::FlipBit(which)) = action
                && (at..end).contains(which)
            {
                let offset = usize::try_from(which - at).map_err(io::Error::other)?;
                buffer[offset] ^= 1;
            }
            if let Some(Action::Chunked) = action {
                write!(self.stream, "{n:x}\r\n")?;
            }
            self.stream.write_all(&buffer[..n])?;
            if let Some(Action::Chunked) = action {
                self.stream.write_all(b"\r\n")?;
            }
            let request = {
                let mut log = lock(&self.shared.log);
                log[self.at].sent += n as u64;
                log[self.at].clone()
            };
            lock(&self.shared.ledger).charge(&request, n as u64);
            at = end;
            if let Some(Action::Slow(_, pause)) = action {
                net::idle(&self.shared.stop, *pause);
                if self.shared.stop.load(Ordering::Relaxed) {
                    return Ok(false);
                }
            }
        }
        match action {
            Some(Action::Truncate(_)) => Ok(limit == length),
            Some(Action::Reset(_)) => {
                net::reset(self.stream);
                Ok(false)
            }
            Some(Action::NoLength) => Ok(false),
            Some(Action::Stall(_)) => {
                net::stall(&self.shared.stop, self.stream);
                Ok(false)
            }
            Some(Action::OneMore) => {
                self.stream.write_all(b"!")?;
                Ok(true)
            }
            Some(Action::Chunked) => {
                self.stream.write_all(b"0\r\n\r\n")?;
                Ok(true)
            }
            _ => Ok(true),
        }
    }

    /// Digest and media type of what is asked for.
    fn find(&self, request: &Request) -> Option<(String, String)> {
        let layout = &self.shared.layout;
        match request.kind {
            Kind::Tag => {
                let entry = layout.find(&request.what)?;
                Some((
                    entry["digest"].as_str()?.to_owned(),
                    entry["mediaType"].as_str()?.to_owned(),
                ))
            }
            Kind::Manifest => {
                let top = layout.entries();
                let known = top.iter().find(|e| e["digest"] == request.what.as_str());
                let media_type = if let Some(entry) = known {
                    entry["mediaType"].as_str()?.to_owned()
                } else {
                    let path = layout.blob_path(&request.what);
                    let document: Value =
                        serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
                    // Some publishers leave it out; the shape tells.
                    let shape = if document["manifests"].is_array() {
                        media::INDEX
                    } else {
                        media::MANIFEST
                    };
                    document["mediaType"].as_str().unwrap_or(shape).to_owned()
                };
                Some((request.what.clone(), media_type))
            }
            _ => Some((request.what.clone(), "application/octet-stream".to_owned())),
        }
    }

    fn begin(&mut self, status: u16, headers: &Headers) -> io::Result<()> {
        lock(&self.shared.log)[self.at].status = status;
        let mut text =
            format!("HTTP/1.1 {status} Lab\r\nDocker-Distribution-Api-Version: registry/2.0\r\n");
        if self.last {
            text.push_str("Connection: close\r\n");
        }
        for (name, value) in headers {
            for part in [name, ": ", value, "\r\n"] {
                text.push_str(part);
            }
        }
        text.push_str("\r\n");
        self.stream.write_all(text.as_bytes())
    }

    fn whole(&mut self, status: u16, mut headers: Headers, body: &[u8]) -> io::Result<bool> {
        headers.push(header("Content-Length", body.len().to_string()));
        self.begin(status, &headers)?;
        if !self.head {
            self.stream.write_all(body)?;
            lock(&self.shared.log)[self.at].sent += body.len() as u64;
        }
        Ok(true)
    }
}

fn pick(rules: &mut [Rule], request: &Request) -> Option<Action> {
    for rule in rules {
        if !rule.fits(request) || rule.times == Some(0) {
            continue;
        }
        if rule.skip > 0 {
            rule.skip -= 1;
            continue;
        }
        if let Some(times) = &mut rule.times {
            *times -= 1;
        }
        return Some(rule.action.clone());
    }
    None
}

fn repository(path: &str) -> &str {
    let rest = path.strip_prefix("/v2/").unwrap_or(path);
    rest.split_once("/manifests/")
        .or_else(|| rest.split_once("/blobs/"))
        .map_or(rest, |(name, _)| name)
}

/// `bytes=N-` or `bytes=N-M`, as a half-open interval; `Err` when it cannot be met.
fn range(text: &str, size: u64) -> Option<Result<(u64, u64), ()>> {
    let (from, to) = text.strip_prefix("bytes=")?.split_once('-')?;
    let from: u64 = from.parse().ok()?;
    let until = if to.is_empty() {
        size
    } else {
        to.parse::<u64>().ok()?.saturating_add(1).min(size)
    };
    Some(if from < until {
        Ok((from, until))
    } else {
        Err(())
    })
}
