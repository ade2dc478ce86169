//! What others do to image records, told by containerd as it happens.
//!
//! Only image records are listened to. Snapshots and blobs go with every container that ends
//! and every garbage collection, and what is gone of an image that should be here is seen
//! when it is looked at next.

use std::{fmt, future::Future, pin::Pin};

use containerd_client::{
    services::v1::{
        ImageCreate, ImageDelete, ImageUpdate, SubscribeRequest, events_client::EventsClient,
    },
    types::Envelope,
};
use prost::Message as _;
use tonic::{Response, Status, Streaming};

use super::client::{Engine, MAX_MESSAGE};
use crate::{
    error::{Error, Result},
    kind::Kind,
};

const ACTION: &str = "listen to containerd's events";

/// What happened to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    Created,
    Updated,
    Deleted,
}

/// One change of one image record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub namespace: String,
    pub kind: ChangeKind,
    /// The record's name.
    pub name: String,
}

type Opening = Pin<Box<dyn Future<Output = Result<Response<Streaming<Envelope>>, Status>> + Send>>;

enum State {
    /// containerd begins its answer with the first event.
    Opening(Opening),
    Open(Box<Streaming<Envelope>>),
    Ended,
}

/// A subscription, which lasts as long as the connection.
pub struct Changes {
    engine: Engine,
    state: State,
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes")
            .field("engine", &self.engine)
            .field("open", &matches!(self.state, State::Open(_)))
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// The changes of image records in `namespaces`, from about now on: when it was set up,
    /// containerd does not say. Whoever must miss nothing looks once more a moment after the
    /// first call of [`Changes::next`], and now and then.
    pub fn changes<S: AsRef<str>>(&self, namespaces: &[S]) -> Changes {
        let message = SubscribeRequest {
            filters: filters(namespaces),
        };
        let mut client = EventsClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE);
        let request = self.request(message);
        Changes {
            engine: self.clone(),
            state: State::Opening(Box::pin(async move { client.subscribe(request).await })),
        }
    }
}

impl Changes {
    /// The next change. An error is the end of the subscription, and every later call gives
    /// one again; to connect anew is up to the caller. Dropping the future loses nothing.
    ///
    /// What is not read waits in containerd's memory: read on also while working.
    pub async fn next(&mut self) -> Result<Change> {
        loop {
            let answer = match &mut self.state {
                State::Opening(opening) => match opening.await {
                    Ok(response) => {
                        self.state = State::Open(Box::new(response.into_inner()));
                        continue;
                    }
                    Err(status) => Err(status),
                },
                State::Open(stream) => stream.message().await,
                State::Ended => return Err(self.ended()),
            };
            match answer {
                Ok(Some(envelope)) => {
                    if let Some(change) = decode(envelope) {
                        return Ok(change);
                    }
                }
                Ok(None) => {
                    self.state = State::Ended;
                    return Err(self.ended());
                }
                Err(status) => {
                    self.state = State::Ended;
                    return Err(self.engine.failed(ACTION, &status).into());
                }
            }
        }
    }

    fn ended(&self) -> Error {
        Error::new(
            Kind::ContainerdUnavailable,
            format_args!(
                "containerd at `{}` ended its stream of events",
                self.engine.address().display()
            ),
        )
    }
}

/// One filter for each namespace; containerd sends what fits any of them.
fn filters<S: AsRef<str>>(namespaces: &[S]) -> Vec<String> {
    namespaces
        .iter()
        .map(|namespace| {
            format!(
                r#"topic~="^/images/",namespace=="{}""#,
                namespace.as_ref().escape_default()
            )
        })
        .collect()
}

/// `None` for what is of no interest, or of a later version.
fn decode(envelope: Envelope) -> Option<Change> {
    let event = envelope.event.as_ref()?.value.as_slice();
    let (kind, name) = match envelope.topic.as_str() {
        "/images/create" => (ChangeKind::Created, ImageCreate::decode(event).ok()?.name),
        "/images/update" => (ChangeKind::Updated, ImageUpdate::decode(event).ok()?.name),
        "/images/delete" => (ChangeKind::Deleted, ImageDelete::decode(event).ok()?.name),
        _ => return None,
    };
    Some(Change {
        namespace: envelope.namespace,
        kind,
        name,
    })
}

#[cfg(test)]
mod tests {
    use prost_types::Any;

    use super::*;

    #[test]
    fn an_event_is_read_by_its_topic() {
        let update = ImageUpdate {
            name: "r.example/app:1".to_owned(),
            labels: [("key".to_owned(), "value".to_owned())].into(),
        };
        let envelope = |topic: &str, event: Option<Vec<u8>>| Envelope {
            namespace: "k8s.io".to_owned(),
            topic: topic.to_owned(),
            event: event.map(|value| Any {
                value,
                ..Any::default()
            }),
            ..Envelope::default()
        };
        let bytes = update.encode_to_vec();
        assert_eq!(
            decode(envelope("/images/update", Some(bytes.clone()))),
            Some(Change {
                namespace: "k8s.io".to_owned(),
                kind: ChangeKind::Updated,
                name: "r.example/app:1".to_owned(),
            })
        );
        for (topic, event) in [
            ("/images/squash", Some(bytes)),
            ("/images/update", None),
            ("/images/update", Some(vec![0xff])),
        ] {
            assert_eq!(decode(envelope(topic, event)), None, "{topic}");
        }
    }
}
