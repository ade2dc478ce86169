//! A shim spoken to as containerd speaks to it: ttrpc, by hand.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use prost::Message;

/// An answer that does not come fails the test.
const PATIENCE: Duration = Duration::from_secs(60);

const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(string, tag = "1")]
    service: String,
    #[prost(string, tag = "2")]
    method: String,
    #[prost(bytes = "vec", tag = "3")]
    payload: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(message, optional, tag = "1")]
    status: Option<Refusal>,
    #[prost(bytes = "vec", tag = "2")]
    payload: Vec<u8>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
pub struct Refusal {
    /// As gRPC numbers them.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// In words.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// `{ string id = 1 }`, which is what most requests begin with.
#[derive(Clone, PartialEq, Message)]
pub struct Id {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// `ConnectResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct Connected {
    /// Of the shim itself.
    #[prost(uint32, tag = "1")]
    pub shim_pid: u32,
    /// Of the container's first process.
    #[prost(uint32, tag = "2")]
    pub task_pid: u32,
}

/// A connection.
#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
    next: u32,
}

impl Wire {
    /// To the socket of a shim (`unix://` or a path).
    pub fn connect(address: &str) -> io::Result<Self> {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        let stream = UnixStream::connect(Path::new(path))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream, next: 1 })
    }

    /// One call; what came back, or how it was refused.
    #[track_caller]
    pub fn call<T: Message + Default>(
        &mut self,
        service: &str,
        method: &str,
        message: &impl Message,
    ) -> Result<T, Refusal> {
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: message.encode_to_vec(),
        };
        let stream = self.next;
        self.next += 2;
        self.frame(stream, REQUEST, &request.encode_to_vec())
            .unwrap();
        let (answered, kind, body) = self.answer().unwrap();
        assert_eq!((answered, kind), (stream, RESPONSE), "{method}");
        let response = Response::decode(body.as_slice()).unwrap();
        match response.status {
            Some(status) if status.code != 0 => Err(status),
            _ => Ok(T::decode(response.payload.as_slice()).unwrap()),
        }
    }

    /// Sends one frame, whatever is in it.
    pub fn frame(&mut self, stream: u32, kind: u8, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len()).expect("a short message");
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend(stream.to_be_bytes());
        bytes.extend([kind, 0]);
        bytes.extend(body);
        self.stream.write_all(&bytes)
    }

    /// Sends bytes.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next frame.
    pub fn answer(&mut self) -> io::Result<(u32, u8, Vec<u8>)> {
        let mut header = [0; 10];
        self.stream.read_exact(&mut header)?;
        let word = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let mut body = vec![0; word(0) as usize];
        self.stream.read_exact(&mut body)?;
        Ok((word(4), header[8], body))
    }
}
