//! What the store has of a desired image: one list of a namespace's records for all of its
//! images, then the documents of each. The registry is not asked.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use futures_util::{future::BoxFuture, stream};
use jiff::Timestamp;

use super::previous::hold_of;
use crate::{
    containerd::{
        Engine,
        image::ImageRecord,
        labels::{Labels, gc_children, gc_snapshot_key},
        records::{RecordsFor, records},
    },
    desired::Desired,
    error::{Error, Result},
    kind::Kind,
    oci::{Descriptor, Digest, Document, Verified},
    pull::{Choice, image::is_artifact, plan::Image},
    reconcile::Observed,
    resolve::{Want, resolve},
    source::{BlobStream, Source},
};

/// The image records of one namespace at one time.
#[derive(Debug, Clone, Default)]
pub struct Listing(BTreeMap<String, ImageRecord>);

impl Listing {
    /// Asks `engine`, once.
    pub async fn of(engine: &Engine) -> Result<Self> {
        Ok(engine.images(Vec::new()).await?.into_iter().collect())
    }

    pub fn get(&self, name: &str) -> Option<&ImageRecord> {
        self.0.get(name)
    }

    pub fn records(&self) -> impl Iterator<Item = &ImageRecord> {
        self.0.values()
    }

    /// Earlier targets of the record `name` that are held for a rollback, the youngest
    /// first. What it points at now is none of them, whatever a label says.
    pub fn previous(&self, name: &str) -> Vec<Digest> {
        let now = self.get(name).map(|record| &record.target.digest);
        let mut held: Vec<(Option<Timestamp>, &Digest)> = self
            .records()
            .filter_map(|record| {
                let hold = hold_of(record, name)?;
                Some((hold.since(), &record.target.digest))
            })
            .filter(|(_, digest)| Some(*digest) != now)
            .collect();
        held.sort_by(|one, other| other.cmp(one));
        let mut previous: Vec<Digest> = Vec::with_capacity(held.len());
        for (_, digest) in held {
            if !previous.contains(digest) {
                previous.push(digest.clone());
            }
        }
        previous
    }
}

impl FromIterator<ImageRecord> for Listing {
    fn from_iter<I: IntoIterator<Item = ImageRecord>>(records: I) -> Self {
        Self(
            records
                .into_iter()
                .map(|record| (record.name.clone(), record))
                .collect(),
        )
    }
}

/// What the store has of `desired`, with the records of its namespace in `listing`. `want`
/// is what the platform of `desired` means on this host.
///
/// What is missing or damaged is an observation; an error means that nothing is known.
pub async fn observe(
    engine: &Engine,
    snapshotter: &str,
    listing: &Listing,
    desired: &Desired,
    want: &Want,
) -> Result<Observed> {
    let name = desired.reference.record_name();
    let Some(record) = listing.get(&name) else {
        return Ok(Observed {
            previous: listing.previous(&name),
            ..Observed::default()
        });
    };
    let mut observed = Observed {
        target: Some(record.target.digest.clone()),
        previous: listing.previous(&name),
        ..Observed::default()
    };
    // Somebody let the name of a digest point elsewhere.
    if desired
        .reference
        .digest()
        .is_some_and(|digest| *digest != record.target.digest)
    {
        return Ok(observed);
    }
    let store = Reading::of(engine);
    let choice = match choose(&store, record, want).await {
        Ok(choice) => choice,
        Err(error) if is_silence(&error) => return Err(error),
        Err(error) => {
            tracing::debug!(image = %name, %error, "the store does not have all of it");
            return Ok(observed);
        }
    };
    // An artifact is never here as an image.
    if is_artifact(&choice) {
        return Ok(observed);
    }
    let of = RecordsFor {
        namespace: engine.namespace(),
        reference: &desired.reference,
        target: &record.target.digest,
        config: Some(choice.config.digest()),
        pin: false,
    };
    let all_are = |pin| {
        records(RecordsFor { pin, ..of }).iter().all(|wanted| {
            listing
                .get(&wanted.name)
                .is_some_and(|there| wanted.is(there, &record.target))
        })
    };
    observed.pinned = all_are(true);
    observed.complete = all_are(false)
        && match store.is_whole(&choice, snapshotter).await {
            Ok(whole) => whole,
            Err(error) if is_silence(&error) => return Err(error),
            Err(error) => {
                tracing::debug!(image = %name, %error, "the store does not have all of it");
                false
            }
        };
    Ok(observed)
}

/// Nobody answered, so that nothing is known of the image.
fn is_silence(error: &Error) -> bool {
    matches!(error.kind(), Kind::ContainerdUnavailable | Kind::Timeout)
}

async fn choose(store: &Reading<'_>, record: &ImageRecord, want: &Want) -> Result<Choice> {
    let root = store.document(&record.target).await?;
    resolve(root, store, want)
        .await?
        .outcome?
        .complete(store)
        .await
}

/// The store as a source that remembers the labels of what was read: each document costs
/// two calls, once.
#[derive(Debug)]
struct Reading<'a> {
    engine: &'a Engine,
    labels: Mutex<BTreeMap<Digest, Labels>>,
}

impl<'a> Reading<'a> {
    fn of(engine: &'a Engine) -> Self {
        Self {
            engine,
            labels: Mutex::default(),
        }
    }

    async fn read(&self, digest: &Digest) -> Result<Verified> {
        let (verified, labels) = self.engine.read_labelled(digest).await?;
        self.labels
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(digest.clone(), labels);
        Ok(verified)
    }

    /// Whether a read document keeps what is below it.
    fn keeps(&self, digest: &Digest, wanted: &Labels) -> bool {
        let labels = self.labels.lock().unwrap_or_else(PoisonError::into_inner);
        labels.get(digest).is_some_and(|labels| {
            wanted
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
        })
    }

    /// The documents were read, and are what they should be; the rest of the image: what
    /// keeps it from being collected, and its snapshots.
    async fn is_whole(&self, choice: &Choice, snapshotter: &str) -> Result<bool> {
        for document in choice.documents() {
            if !self.keeps(&document.descriptor.digest, &gc_children(document)) {
                return Ok(false);
            }
        }
        let image = Image::new(choice, true)?;
        let Some(top) = image.top() else {
            return Ok(true);
        };
        let held = Labels::from([(gc_snapshot_key(snapshotter), top.to_string())]);
        // A snapshot cannot be removed below another one: with the top, all are there.
        Ok(self.keeps(choice.config.digest(), &held)
            && self.engine.has_snapshot(snapshotter, top).await?)
    }
}

impl Source for Reading<'_> {
    fn document<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Document>> {
        Box::pin(async move {
            let verified = self.read(&descriptor.digest).await?;
            let known = Some(descriptor.media_type.as_str()).filter(|t| !t.is_empty());
            Document::parse(&verified, known)
        })
    }

    fn blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobStream>> {
        Box::pin(async move {
            if offset > 0 {
                return self.engine.read_blob(&descriptor.digest, offset).await;
            }
            let bytes = self.read(&descriptor.digest).await?.bytes().clone();
            Ok(Box::pin(stream::iter([Ok(bytes)])) as BlobStream)
        })
    }

    fn name(&self) -> &'static str {
        "containerd"
    }
}
