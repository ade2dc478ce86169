//! Containers that were not started, as the shim tells: one datagram each.

use std::path::Path;

use tokio::net::UnixDatagram;

use super::socket::put_in_place;
use crate::{
    error::{Error, Result},
    metrics::Metrics,
};

/// Longer than any reason; the rest of a datagram is cut off.
const LONGEST: usize = 64;

/// Listens at `path` and counts, until dropped. Sending is for root alone. The lock of the
/// control socket beside it is the right to this one, too.
pub async fn count_refusals(path: &Path, metrics: Metrics) -> Result<()> {
    let socket = put_in_place(path, 0o600, None, |at| UnixDatagram::bind(at))?;
    let mut reason = [0; LONGEST];
    loop {
        let length = socket
            .recv(&mut reason)
            .await
            .map_err(|error| Error::io("read from", path, &error))?;
        metrics.refused_start(reason.get(..length).unwrap_or_default());
    }
}
