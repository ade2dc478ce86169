//! Server-sent events: the whole document first, then every change after it.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde::Serialize;
use tokio::sync::{
    OwnedSemaphorePermit,
    broadcast::{Receiver, error::RecvError},
};

use super::answer::Body;
use crate::status::{Board, Notice};

/// How often a quiet stream says that it lives; while nobody listens, nothing wakes.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// The events of `board`, until the reader goes or the daemon ends. The reader holds a
/// place meanwhile.
pub(super) fn body(board: &Board, place: OwnedSemaphorePermit) -> Body {
    StreamBody::new(frames(board.clone(), place, HEARTBEAT)).boxed_unsync()
}

struct Listening {
    board: Board,
    notices: Receiver<Notice>,
    /// What is said before anything else.
    first: Option<Bytes>,
    heartbeat: Duration,
    _place: OwnedSemaphorePermit,
}

fn frames(
    board: Board,
    place: OwnedSemaphorePermit,
    heartbeat: Duration,
) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> {
    let (document, notices) = board.document_and_listen();
    let listening = Listening {
        board,
        notices,
        first: Some(event("status", &document)),
        heartbeat,
        _place: place,
    };
    stream::unfold(listening, async |mut listening| {
        let said = listening.next().await?;
        Some((Ok(Frame::data(said)), listening))
    })
}

impl Listening {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let Ok(heard) = tokio::time::timeout(self.heartbeat, self.notices.recv()).await else {
            return Some(Bytes::from_static(b": still here\n\n"));
        };
        match heard {
            Ok(Notice::Work(work)) => Some(event("work", &work)),
            Ok(Notice::Image(image)) => Some(event("image", &image)),
            Ok(Notice::Daemon(daemon)) => Some(event("daemon", &daemon)),
            Ok(Notice::Gone(key)) => Some(event(
                "gone",
                &serde_json::json!({
                    "reference": key.reference,
                    "platform": key.platform,
                    "namespace": key.namespace,
                }),
            )),
            // Who reads too slowly gets the document anew instead of what it missed.
            Err(RecvError::Lagged(missed)) => {
                let (document, notices) = self.board.document_and_listen();
                self.notices = notices;
                self.first = Some(event("status", &document));
                Some(event("lagged", &serde_json::json!({ "missed": missed })))
            }
            Err(RecvError::Closed) => None,
        }
    }
}

/// One event; JSON has no line ends of its own.
fn event(name: &str, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).unwrap_or_else(|_| "null".to_owned());
    format!("event: {name}\ndata: {data}\n\n").into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::StreamExt;
    use jiff::Timestamp;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::{desired::Key, event::Event, event::Observer};

    #[tokio::test]
    async fn the_document_comes_first_and_a_slow_reader_gets_it_again() {
        let board = Board::new("linux/arm64", "1", Timestamp::UNIX_EPOCH);
        let places = Arc::new(Semaphore::new(1));
        let place = Arc::clone(&places).try_acquire_owned().expect("free");
        let mut frames = Box::pin(frames(board.clone(), place, Duration::from_millis(50)));
        let mut next = async || {
            let frame = frames
                .next()
                .await
                .expect("it goes on")
                .expect("no failure");
            let data = frame.into_data().expect("data");
            String::from_utf8(data.to_vec()).expect("text")
        };
        assert!(next().await.starts_with("event: status\ndata: {\"schema\""));
        let key = Key {
            reference: "r.example/a\n:1".to_owned(),
            platform: "host".to_owned(),
            namespace: "default".to_owned(),
        };
        board.desired(&[key], Timestamp::UNIX_EPOCH);
        let said = next().await;
        assert!(said.starts_with("event: image\ndata: {\"reference\":\"r.example/a\\n:1\""));
        assert_eq!(said.matches('\n').count(), 3, "one line of data");
        assert!(next().await.starts_with("event: daemon\n"));
        assert!(
            next().await.starts_with(": "),
            "a comment while all is quiet"
        );
        for _ in 0..1000 {
            board.observe(&Event::Syncing {
                reference: "x".to_owned(),
            });
        }
        assert!(
            next()
                .await
                .starts_with("event: lagged\ndata: {\"missed\":")
        );
        assert!(next().await.starts_with("event: status\n"));
        board.observe(&Event::Syncing {
            reference: "x".to_owned(),
        });
        assert_eq!(
            next().await,
            "event: work\ndata: {\"event\":\"syncing\",\"reference\":\"x\"}\n\n"
        );
        drop(frames);
        assert_eq!(places.available_permits(), 1);
    }
}
