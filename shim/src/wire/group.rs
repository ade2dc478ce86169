//! A call of our own: `start` asks a shim that is there already to wait for one more container.
//! Without it a shim whose last container has just gone would end between the two.

use prost::Message;

/// The service's name; its method is `Hold`.
pub const SERVICE: &str = "edgepull.shim.v1.Group";

#[derive(Clone, PartialEq, Eq, Message)]
pub struct HoldRequest {
    /// The container that is to come.
    #[prost(string, tag = "1")]
    pub id: String,
    /// How many containers one shim may have; 0 is no limit.
    #[prost(uint32, tag = "2")]
    pub most: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct HoldResponse {
    #[prost(bool, tag = "1")]
    pub granted: bool,
}
