//! The other end of the control socket: how the command line asks the daemon.

use std::{
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Method, Request, Response,
    body::Incoming,
    client::conn::http1,
    header::{HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::UnixStream, task::JoinSet, time::timeout};

use crate::{
    error::{Error, Result},
    kind::Kind,
};

/// A local daemon that lives answers well before.
const PATIENCE: Duration = Duration::from_secs(10);
/// What the loop has to answer is answered between two of its steps, and a look at an engine
/// that hangs takes a minute.
const TURN: Duration = Duration::from_secs(120);
/// Bytes of one answer or event; a document of some thousand images has less.
const LARGEST: usize = 16 << 20;

/// Asks the daemon at one socket; every question is a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// One server-sent event.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// `status`, `image`, `gone`, `daemon`, `work`, `lagged`.
    pub name: String,
    pub data: Value,
}

/// Events as they come.
#[derive(Debug)]
pub struct Listening {
    socket: PathBuf,
    body: Incoming,
    buffer: BytesMut,
    _connection: JoinSet<()>,
}

impl Client {
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// The status document, of one reference or of all.
    pub async fn status(&self, reference: Option<&str>) -> Result<Value> {
        let path = with_reference("/v1/status", reference, "");
        self.ask(Method::GET, &path, Some(PATIENCE)).await
    }

    /// Asks for a pass over one reference or all. With `wait` the answer comes when it is
    /// done, and is the status document; there is no limit of time.
    pub async fn sync(&self, reference: Option<&str>, wait: bool) -> Result<Value> {
        let extra = if wait { "wait=1" } else { "" };
        let path = with_reference("/v1/sync", reference, extra);
        let limit = (!wait).then_some(TURN);
        self.ask(Method::POST, &path, limit).await
    }

    /// Has the configuration read now; the answer is the status document.
    pub async fn reload(&self) -> Result<Value> {
        self.ask(Method::POST, "/v1/reload", Some(TURN)).await
    }

    /// Everything that changes, the whole document first.
    pub async fn events(&self) -> Result<Listening> {
        let (answer, connection) = self.send(Method::GET, "/v1/events", Some(PATIENCE)).await?;
        if !answer.status().is_success() {
            return Err(self.refusal(answer).await);
        }
        Ok(Listening {
            socket: self.socket.clone(),
            body: answer.into_body(),
            buffer: BytesMut::new(),
            _connection: connection,
        })
    }

    async fn ask(&self, method: Method, path: &str, limit: Option<Duration>) -> Result<Value> {
        let (answer, _connection) = self.send(method, path, limit).await?;
        if !answer.status().is_success() {
            return Err(self.refusal(answer).await);
        }
        self.json(answer).await
    }

    /// The answer's head, and the task that its body comes through.
    async fn send(
        &self,
        method: Method,
        path: &str,
        limit: Option<Duration>,
    ) -> Result<(Response<Incoming>, JoinSet<()>)> {
        let late = |_| broken(&self.socket, &io::Error::from(io::ErrorKind::TimedOut));
        let stream = timeout(PATIENCE, UnixStream::connect(&self.socket))
            .await
            .map_err(late)?
            .map_err(|error| unreachable(&self.socket, &error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(&self.socket, &error))?;
        let mut task = JoinSet::new();
        task.spawn(async {
            // Whoever waits for the answer hears of the failure, too.
            let _ = connection.await;
        });
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|error| {
            Error::new(Kind::Internal, format_args!("cannot ask for `{path}`")).caused_by(&error)
        })?;
        let host = HeaderValue::from_static("edgepull");
        request.headers_mut().insert(HOST, host);
        let answer = sender.send_request(request);
        let answer = match limit {
            Some(limit) => timeout(limit, answer).await.map_err(late)?,
            None => answer.await,
        };
        let answer = answer.map_err(|error| broken(&self.socket, &error))?;
        Ok((answer, task))
    }

    async fn json(&self, answer: Response<Incoming>) -> Result<Value> {
        let body = Limited::new(answer.into_body(), LARGEST).collect();
        let body = timeout(PATIENCE, body)
            .await
            .map_err(|_| broken(&self.socket, &io::Error::from(io::ErrorKind::TimedOut)))?
            .map_err(|error| broken(&self.socket, error.as_ref()))?;
        serde_json::from_slice(&body.to_bytes()).map_err(|error| strange(&self.socket, &error))
    }

    /// What the daemon said instead of an answer.
    async fn refusal(&self, answer: Response<Incoming>) -> Error {
        let status = answer.status();
        let body = match self.json(answer).await {
            Ok(body) => body,
            Err(error) => return error,
        };
        body.get("error")
            .and_then(Error::from_json)
            .unwrap_or_else(|| strange(&self.socket, &format_args!("HTTP status {status}")))
    }
}

impl Listening {
    /// The next event; `None` when the daemon has ended the stream. May be dropped and
    /// called again: nothing is lost.
    pub async fn next(&mut self) -> Result<Option<Told>> {
        loop {
            if let Some(told) = take(&mut self.buffer) {
                match told {
                    Ok(Some(told)) => return Ok(Some(told)),
                    Ok(None) => continue,
                    Err(error) => return Err(strange(&self.socket, &error)),
                }
            }
            if self.buffer.len() > LARGEST {
                return Err(strange(&self.socket, &"an event has no end"));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(broken(&self.socket, &error)),
            }
        }
    }
}

/// The first whole event in `buffer`, or `Some(Ok(None))` for a comment.
fn take(buffer: &mut BytesMut) -> Option<Result<Option<Told>, serde_json::Error>> {
    let end = buffer.windows(2).position(|pair| pair == b"\n\n")?;
    let block = buffer.split_to(end);
    buffer.advance(2);
    let text = String::from_utf8_lossy(&block);
    let (mut name, mut data) = (None, String::new());
    for line in text.lines() {
        if let Some(value) = line.strip_prefix("event:") {
            name = Some(value.trim_start().to_owned());
        } else if let Some(value) = line.strip_prefix("data:") {
            data.push_str(value);
        }
    }
    Some(name.map_or(Ok(None), |name| {
        serde_json::from_str(&data).map(|data| Some(Told { name, data }))
    }))
}

fn with_reference(path: &str, reference: Option<&str>, extra: &str) -> String {
    let mut pairs: Vec<String> = Vec::new();
    if let Some(reference) = reference {
        let mut value = String::new();
        for byte in reference.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~:/@".contains(&byte) {
                value.push(char::from(byte));
            } else {
                let _ = write!(value, "%{byte:02X}");
            }
        }
        pairs.push(format!("reference={value}"));
    }
    if !extra.is_empty() {
        pairs.push(extra.to_owned());
    }
    if pairs.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{}", pairs.join("&"))
    }
}

/// Nobody is there, or we may not ask.
fn unreachable(socket: &Path, error: &io::Error) -> Error {
    let (why, hint) = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => (
            "it does not run",
            "start it with `systemctl start edgepull`; `journalctl -u edgepull` says why it ended",
        ),
        io::ErrorKind::PermissionDenied => (
            "this user may not ask it",
            "run this as root, or as a member of the group `edgepull` (`usermod -aG edgepull USER`)",
        ),
        _ => (
            "its socket does not work",
            "is it the socket of the edgepull daemon?",
        ),
    };
    Error::new(
        Kind::AgentUnavailable,
        format_args!("cannot ask the edgepull daemon at `{}`", socket.display()),
    )
    .because(why)
    .caused_by(error)
    .hint(hint)
}

/// It was there, and then it was not.
fn broken(socket: &Path, error: &(dyn std::error::Error + 'static)) -> Error {
    Error::new(
        Kind::AgentUnavailable,
        format_args!(
            "the edgepull daemon at `{}` did not answer",
            socket.display()
        ),
    )
    .caused_by(error)
    .hint("`systemctl status edgepull` shows whether it runs")
}

/// It answered something else.
fn strange(socket: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::new(
        Kind::AgentUnavailable,
        format_args!(
            "what answers at `{}` is no edgepull daemon",
            socket.display()
        ),
    )
    .because(why)
    .hint("another version of it may run: `systemctl restart edgepull`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_taken_one_by_one_wherever_they_are_cut() {
        let text = b"event: image\ndata: {\"a\":1}\n\n: still here\n\nevent: gone\ndata: {}\n\nevent: x\ndata: {";
        let mut buffer = BytesMut::new();
        let mut names = Vec::new();
        for byte in text {
            buffer.extend_from_slice(&[*byte]);
            if let Some(Ok(Some(told))) = take(&mut buffer) {
                names.push((told.name, told.data));
            }
        }
        assert_eq!(
            names,
            [
                ("image".to_owned(), serde_json::json!({"a": 1})),
                ("gone".to_owned(), serde_json::json!({})),
            ]
        );
        assert_eq!(&buffer[..], b"event: x\ndata: {");
        let mut wrong = BytesMut::from(&b"event: x\ndata: {\n\n"[..]);
        assert!(matches!(take(&mut wrong), Some(Err(_))));
    }

    #[test]
    fn a_reference_is_a_query() {
        assert_eq!(with_reference("/v1/status", None, ""), "/v1/status");
        assert_eq!(
            with_reference("/v1/sync", Some("r.example:5000/a&b@sha256:0 é"), "wait=1"),
            "/v1/sync?reference=r.example:5000/a%26b@sha256:0%20%C3%A9&wait=1"
        );
    }

    #[tokio::test]
    async fn a_daemon_that_does_not_run_is_told_with_the_next_step() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("edgepull.sock");
        let error = Client::new(&path).status(None).await.expect_err("nobody");
        assert_eq!(error.kind(), Kind::AgentUnavailable);
        assert!(error.causes()[0].contains("does not run"));
        // The socket of one that has ended.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        let error = Client::new(&path).events().await.expect_err("nobody");
        assert!(error.causes()[0].contains("does not run"));
        assert!(
            error
                .hint_text()
                .is_some_and(|hint| hint.contains("systemctl start"))
        );
    }

    #[tokio::test]
    async fn something_else_that_answers_is_no_daemon() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let listener = tokio::net::UnixListener::bind(&path).expect("bound");
        let answers = [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\n{}",
            "SSH-2.0-x\r\n",
            "",
        ];
        let server = async {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("asked");
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        };
        let asking = async {
            for answer in answers {
                let error = Client::new(&path).status(None).await.expect_err(answer);
                assert_eq!(error.kind(), Kind::AgentUnavailable, "{answer}");
            }
        };
        tokio::join!(server, asking);
    }
}
