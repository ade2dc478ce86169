//! What goes over the wire, message by message, as containerd's `.proto` files number it. Written
//! by hand: these few messages need no compiler at build time, and a field that a shim has no use
//! for is left out (protobuf skips what it does not know).

pub mod events;
pub mod group;
pub mod metrics1;
pub mod metrics2;
pub mod options;
pub mod start;
pub mod task;
pub mod ttrpc;

use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Any {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

impl Any {
    pub fn new(type_url: &str, message: &impl Message) -> Any {
        Any {
            type_url: type_url.to_owned(),
            value: message.encode_to_vec(),
        }
    }

    /// Whether it is of the type `name`, which some write as a full URL.
    pub fn is(&self, name: &str) -> bool {
        let url = self.type_url.strip_prefix("type.googleapis.com/");
        url.unwrap_or(&self.type_url) == name
    }
}

/// `google.protobuf.Empty`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Empty {}

/// `google.protobuf.Timestamp`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Timestamp {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Timestamp {
        // A clock before 1970 is a device without one: the epoch is as true as anything.
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        }
    }
}

/// `containerd.types.Mount`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Mount {
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(string, tag = "2")]
    pub source: String,
    /// Relative to the root file system; empty for the root itself.
    #[prost(string, tag = "3")]
    pub target: String,
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}
