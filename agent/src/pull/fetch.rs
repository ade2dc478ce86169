//! Content: documents and configs first, then the layers, several at once.

use std::collections::BTreeMap;

use futures_util::{StreamExt, stream};
use tokio::sync::watch;

use super::plan::Image;
use crate::{
    containerd::{
        ingest::{Ingest, Ingested},
        labels::{Labels, gc_children},
    },
    error::{Error, Result},
    kind::Kind,
    oci::{Descriptor, Digest},
};

/// Which blobs have arrived, for whoever unpacks them.
#[derive(Debug)]
pub(super) struct Arrivals(BTreeMap<Digest, watch::Sender<bool>>);

impl Arrivals {
    pub(super) fn expecting(blobs: &[&Descriptor]) -> Self {
        Self(
            blobs
                .iter()
                .map(|blob| (blob.digest.clone(), watch::Sender::new(false)))
                .collect(),
        )
    }

    fn announce(&self, digest: &Digest) {
        if let Some(sender) = self.0.get(digest) {
            sender.send_replace(true);
        }
    }

    /// Waits for a blob. One that nobody fetches never comes, and that is our fault.
    pub(super) async fn of(&self, digest: &Digest) -> Result<()> {
        let arrived = match self.0.get(digest) {
            Some(sender) => sender
                .subscribe()
                .wait_for(|arrived| *arrived)
                .await
                .is_ok(),
            None => false,
        };
        if arrived {
            return Ok(());
        }
        Err(Error::new(
            Kind::Internal,
            format_args!("layer {digest} was to be unpacked, but nobody fetches it"),
        ))
    }
}

/// Documents from the top down and the configs, each with its labels: from then on the
/// lease holds all that they refer to.
pub(super) async fn documents(ingest: &Ingest<'_>, images: &[Image<'_>]) -> Result<Ingested> {
    let mut sum = Ingested::default();
    let mut done: Vec<&Digest> = Vec::new();
    for image in images {
        for document in image.choice.documents() {
            if done.contains(&&document.descriptor.digest) {
                continue;
            }
            done.push(&document.descriptor.digest);
            let labels = gc_children(document);
            let ingested = ingest
                .bytes(&document.descriptor, &document.bytes, &labels)
                .await?;
            add(&mut sum, ingested, document.descriptor.size);
        }
        let config = &image.manifest.config;
        if !done.contains(&&config.digest) {
            done.push(&config.digest);
            let ingested = ingest
                .bytes(config, image.choice.config.bytes(), &Labels::new())
                .await?;
            add(&mut sum, ingested, config.size);
        }
    }
    Ok(sum)
}

/// What was not in the store came over the network when the image was chosen.
fn add(sum: &mut Ingested, ingested: Ingested, size: u64) {
    sum.reused += ingested.reused;
    sum.downloaded += size.saturating_sub(ingested.reused);
}

/// Fetches `blobs` in order of need, as many at once as the source gives.
pub(super) async fn layers(
    ingest: &Ingest<'_>,
    blobs: &[&Descriptor],
    arrivals: &Arrivals,
) -> Result<Ingested> {
    let labels = Labels::new();
    let jobs: Vec<_> = blobs
        .iter()
        .map(|blob| {
            let labels = &labels;
            async move {
                let ingested = ingest.blob(blob, labels).await?;
                arrivals.announce(&blob.digest);
                Ok::<_, Error>(ingested)
            }
        })
        .collect();
    let mut running = stream::iter(jobs).buffer_unordered(ingest.source.at_once().max(1));
    let mut sum = Ingested::default();
    while let Some(ingested) = running.next().await {
        let ingested = ingested?;
        sum.downloaded += ingested.downloaded;
        sum.resumed += ingested.resumed;
        sum.reused += ingested.reused;
    }
    Ok(sum)
}
