//! Bodies that are read whole, within a limit of bytes and time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::Response;
use tokio::time::{Instant, timeout_at};

/// Where a body is expected to be small, it must also be there soon: a server that
/// sends one byte before each read limit would hold a pull for ever.
pub(super) const SMALL_BODY_TIME: Duration = Duration::from_secs(60);
/// What is read of an error's body, and how long; it only improves the message.
const ERROR_BODY: usize = 64 << 10;
const ERROR_BODY_TIME: Duration = Duration::from_secs(5);

/// Why a body could not be read.
pub(super) enum BodyFault {
    TooLarge,
    Slow,
    Broken(reqwest::Error),
}

/// The whole body. More than `limit` bytes are refused while reading, whatever the
/// headers say.
pub(super) async fn read(
    response: &mut Response,
    limit: usize,
    time: Duration,
) -> Result<Bytes, BodyFault> {
    let deadline = Instant::now() + time;
    let mut bytes = BytesMut::new();
    if response
        .content_length()
        .is_some_and(|length| length > limit as u64)
    {
        return Err(BodyFault::TooLarge);
    }
    loop {
        match timeout_at(deadline, response.chunk()).await {
            Err(_) => return Err(BodyFault::Slow),
            Ok(Err(error)) => return Err(BodyFault::Broken(error)),
            Ok(Ok(None)) => return Ok(bytes.freeze()),
            Ok(Ok(Some(chunk))) => {
                if bytes.len().saturating_add(chunk.len()) > limit {
                    return Err(BodyFault::TooLarge);
                }
                bytes.extend_from_slice(&chunk);
            }
        }
    }
}

/// As much of an error's body as comes; never fails.
pub(super) async fn read_error(response: &mut Response) -> Vec<u8> {
    let deadline = Instant::now() + ERROR_BODY_TIME;
    let mut bytes = Vec::new();
    while let Ok(Ok(Some(chunk))) = timeout_at(deadline, response.chunk()).await {
        let room = ERROR_BODY.saturating_sub(bytes.len());
        bytes.extend(chunk.iter().take(room));
        if bytes.len() >= ERROR_BODY {
            break;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::{
        super::test_server::{Reply, TestServer},
        *,
    };

    async fn answer(reply: Reply) -> Response {
        let server = TestServer::start(move |_| reply.clone()).await;
        // Whatever else runs in this process may have set the same one.
        let _set = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build();
        let url = format!("http://{}/", server.authority());
        let answer = client.expect("a client").get(url).send().await;
        answer.expect("an answer")
    }

    #[tokio::test]
    async fn a_body_that_keeps_trickling_ends_in_time() {
        // Each byte comes soon after the last one, so that no limit of one read tells.
        let drip = Duration::from_millis(20);
        let mut slow = answer(Reply::new(200).body([b'x'; 10_000]).trickle(drip)).await;
        let read = read(&mut slow, 1 << 20, Duration::from_millis(300)).await;
        assert!(matches!(read, Err(BodyFault::Slow)));
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_its_limit() {
        for (limit, fits) in [(999, false), (1000, true)] {
            let mut whole = answer(Reply::new(200).body([b'x'; 1000])).await;
            let read = read(&mut whole, limit, SMALL_BODY_TIME).await;
            assert_eq!(read.is_ok_and(|bytes| bytes.len() == 1000), fits);
        }
    }
}
