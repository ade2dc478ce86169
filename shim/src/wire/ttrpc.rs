//! ttrpc over a unix socket, as containerd speaks it: a frame is a header of ten bytes (length,
//! stream, type, flags) and a protobuf message of at most 4 MiB
//! (<https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md>). Unary calls alone: no service of a
//! shim has streams.
//!
//! Of the crates that speak it, none lets a call outlive its connection, and a `Create` that is
//! dropped half-way leaves a mount behind. Here each call is a task of its own, which is told when its
//! caller has gone ([`Call::abandoned`]) and decides itself.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, oneshot, watch};
use tokio::task::spawn_local;
use tokio::time::Instant;

use crate::error::{Code, Error, Result};

/// The longest message (bytes).
pub const LONGEST: usize = 4 << 20;
const HEADER: usize = 10;
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

/// `ttrpc.Request`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Request {
    #[prost(string, tag = "1")]
    pub service: String,
    #[prost(string, tag = "2")]
    pub method: String,
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    /// Nanoseconds; 0 is no limit.
    #[prost(int64, tag = "4")]
    pub timeout: i64,
}

/// `ttrpc.Response`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Response {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Status {
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
}

/// What a call may wait for besides its work.
#[derive(Debug, Clone)]
pub struct Call {
    /// When the caller stops to wait.
    pub deadline: Option<Instant>,
    connection: watch::Receiver<()>,
}

impl Call {
    /// Whether its connection was closed.
    pub fn is_gone(&self) -> bool {
        self.connection.has_changed().is_err()
    }

    /// Comes when nobody waits for the answer any more.
    pub async fn abandoned(&self) {
        let mut connection = self.connection.clone();
        let gone = async { while connection.changed().await.is_ok() {} };
        match self.deadline {
            Some(deadline) => drop(tokio::time::timeout_at(deadline, gone).await),
            None => gone.await,
        }
    }
}

/// The answer to a call, to come.
pub type Answer = Pin<Box<dyn Future<Output = Result<Vec<u8>>>>>;

/// What is served.
pub trait Service {
    /// Answers one call. A method that is not there is [`Code::Unimplemented`].
    fn call(&self, request: Request, call: Call) -> Answer;
}

/// One frame.
struct Frame {
    stream: u32,
    kind: u8,
    /// `None` where it was longer than anybody may send; it was read past.
    payload: Option<Vec<u8>>,
}

async fn read_frame(from: &mut OwnedReadHalf) -> io::Result<Frame> {
    let mut header = [0; HEADER];
    from.read_exact(&mut header).await?;
    let [l0, l1, l2, l3, s0, s1, s2, s3, kind, _flags] = header;
    let length = u32::from_be_bytes([l0, l1, l2, l3]);
    let stream = u32::from_be_bytes([s0, s1, s2, s3]);
    let mut frame = Frame {
        stream,
        kind,
        payload: None,
    };
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > LONGEST {
        let mut left = length;
        let mut waste = [0; 4096];
        while left > 0 {
            let most = left.min(waste.len());
            let part = waste.get_mut(..most).unwrap_or_default();
            let read = from.read(part).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= read;
        }
        return Ok(frame);
    }
    let mut payload = vec![0; length];
    from.read_exact(&mut payload).await?;
    frame.payload = Some(payload);
    Ok(frame)
}

fn frame(stream: u32, kind: u8, message: &impl Message) -> Option<Vec<u8>> {
    let length = message.encoded_len();
    if length > LONGEST {
        return None;
    }
    let mut bytes = Vec::with_capacity(HEADER + length);
    bytes.extend(u32::try_from(length).ok()?.to_be_bytes());
    bytes.extend(stream.to_be_bytes());
    bytes.extend([kind, 0]);
    message.encode(&mut bytes).ok()?;
    Some(bytes)
}

type Writer = Rc<Mutex<OwnedWriteHalf>>;

async fn respond(writer: &Writer, stream: u32, result: Result<Vec<u8>>) {
    let response = match result {
        Ok(payload) => Response {
            status: None,
            payload,
        },
        Err(error) => Response {
            status: Some(Status {
                code: error.code() as i32,
                message: error.message().to_owned(),
            }),
            payload: Vec::new(),
        },
    };
    let bytes = frame(stream, RESPONSE, &response).or_else(|| {
        let status = Status {
            code: Code::ResourceExhausted as i32,
            message: "the answer is longer than a message may be (4 MiB)".to_owned(),
        };
        let response = Response {
            status: Some(status),
            payload: Vec::new(),
        };
        frame(stream, RESPONSE, &response)
    });
    if let Some(bytes) = bytes {
        // A caller that has gone wants no answer.
        let _ = writer.lock().await.write_all(&bytes).await;
    }
}

/// Serves one connection until its peer closes it. Calls that are under way go on.
pub async fn serve(stream: UnixStream, service: Rc<dyn Service>) {
    let (mut reader, writer) = stream.into_split();
    let writer = Rc::new(Mutex::new(writer));
    // Dropped with this function: whoever listens sees the end.
    let (_open, connection) = watch::channel(());
    let mut last = 0;
    while let Ok(frame) = read_frame(&mut reader).await {
        let stream = frame.stream;
        let Some(payload) = frame.payload else {
            let error = Error::new(Code::ResourceExhausted, "the message is longer than 4 MiB");
            respond(&writer, stream, Err(error)).await;
            continue;
        };
        if frame.kind != REQUEST {
            // What later versions may send has to be passed over.
            continue;
        }
        if stream % 2 == 0 || stream <= last {
            let error = Error::invalid("stream ids of a client are odd, and grow");
            respond(&writer, stream, Err(error)).await;
            continue;
        }
        last = stream;
        let request = match Request::decode(payload.as_slice()) {
            Ok(request) => request,
            Err(error) => {
                let error = Error::invalid(format!("unreadable request: {error}"));
                respond(&writer, stream, Err(error)).await;
                continue;
            }
        };
        let timeout = u64::try_from(request.timeout).unwrap_or(0);
        let call = Call {
            deadline: (timeout > 0).then(|| Instant::now() + Duration::from_nanos(timeout)),
            connection: connection.clone(),
        };
        let answer = service.call(request, call);
        let writer = writer.clone();
        spawn_local(async move {
            let result = answer.await;
            respond(&writer, stream, result).await;
        });
    }
}

type Pending = Rc<RefCell<HashMap<u32, oneshot::Sender<Response>>>>;

/// A connection to a server: many calls at once.
#[derive(Debug)]
pub struct Client {
    writer: Writer,
    pending: Pending,
    next: Cell<u32>,
    reader: tokio::task::AbortHandle,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Client {
    pub async fn connect(path: &str) -> io::Result<Client> {
        let stream = UnixStream::connect(path).await?;
        let (mut reader, writer) = stream.into_split();
        let pending = Pending::default();
        let answered = pending.clone();
        let task = spawn_local(async move {
            while let Ok(frame) = read_frame(&mut reader).await {
                let sender = answered.borrow_mut().remove(&frame.stream);
                let response = frame
                    .payload
                    .and_then(|p| Response::decode(p.as_slice()).ok());
                if let (Some(sender), Some(response), RESPONSE) = (sender, response, frame.kind) {
                    let _ = sender.send(response);
                }
            }
            // Dropping the senders tells everybody who waits.
            answered.borrow_mut().clear();
        });
        Ok(Client {
            writer: Rc::new(Mutex::new(writer)),
            pending,
            next: Cell::new(1),
            reader: task.abort_handle(),
        })
    }

    /// Whether the peer has closed it.
    pub fn is_closed(&self) -> bool {
        self.reader.is_finished()
    }

    /// One call; the payload of its answer.
    pub async fn call(
        &self,
        service: &str,
        method: &str,
        message: &impl Message,
        timeout: Duration,
    ) -> Result<Vec<u8>> {
        let gone = || Error::new(Code::Unavailable, "the connection was closed");
        let stream = self.next.get();
        self.next.set(stream.wrapping_add(2));
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: message.encode_to_vec(),
            timeout: i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX),
        };
        let bytes = frame(stream, REQUEST, &request)
            .ok_or_else(|| Error::invalid("the message is longer than 4 MiB"))?;
        let (sender, receiver) = oneshot::channel();
        self.pending.borrow_mut().insert(stream, sender);
        let exchange = async {
            self.writer
                .lock()
                .await
                .write_all(&bytes)
                .await
                .map_err(|_| gone())?;
            if self.is_closed() {
                return Err(gone());
            }
            receiver.await.map_err(|_| gone())
        };
        let response = match tokio::time::timeout(timeout, exchange).await {
            Ok(response) => response,
            Err(_) => Err(Error::new(Code::DeadlineExceeded, "no answer in time")),
        };
        self.pending.borrow_mut().remove(&stream);
        let response = response?;
        match response.status {
            Some(status) if status.code != 0 => Err(Error::unknown(status.message)),
            _ => Ok(response.payload),
        }
    }
}

/// Why a single call came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Once {
    /// It was answered with an error.
    Refused,
    /// The peer went away.
    Lost,
    /// The peer took longer than the socket's own limit.
    Late,
}

/// One call, where there is no runtime for tasks: blocking, and the connection is closed after it.
pub fn call_once(
    mut stream: std::os::unix::net::UnixStream,
    service: &str,
    method: &str,
    message: &impl Message,
) -> std::result::Result<Vec<u8>, Once> {
    use std::io::{ErrorKind, Read, Write};
    let lost = |error: io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Once::Late,
        _ => Once::Lost,
    };
    let request = Request {
        service: service.to_owned(),
        method: method.to_owned(),
        payload: message.encode_to_vec(),
        timeout: 0,
    };
    let bytes = frame(1, REQUEST, &request).ok_or(Once::Refused)?;
    stream.write_all(&bytes).map_err(lost)?;
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).map_err(lost)?;
    let [l0, l1, l2, l3, ..] = header;
    let length = u32::from_be_bytes([l0, l1, l2, l3]);
    let mut payload = Vec::new();
    (&stream)
        .take(u64::from(length).min(LONGEST as u64))
        .read_to_end(&mut payload)
        .map_err(lost)?;
    let response = Response::decode(payload.as_slice()).map_err(|_| Once::Refused)?;
    match response.status {
        Some(status) if status.code != 0 => Err(Once::Refused),
        _ => Ok(response.payload),
    }
}

#[cfg(test)]
mod tests;
