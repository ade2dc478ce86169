//! Is the image here already, completely? Answered by the store alone, with reads only.

use super::{
    plan::Image,
    run::{Request, images},
};
use crate::{
    containerd::{
        Engine,
        labels::{Labels, gc_children, gc_snapshot_key},
        records::{RecordsFor, records},
    },
    error::Result,
    oci::Digest,
};

/// Whether nothing is left to do for `request`: records and their labels, documents
/// (read and verified), configs, and all snapshots of the chains, or all layer blobs
/// where nothing is unpacked.
///
/// The choice may itself come from the store (resolve over a
/// [`StoreSource`](crate::containerd::StoreSource) from the digest that a HEAD
/// gave): then this needs no registry, and the request's source is not used.
pub async fn is_present(engine: &Engine, request: &Request<'_>) -> Result<bool> {
    let images = images(request)?;
    let snapshotter = engine.snapshotter(request.snapshotter)?.name.clone();
    // The records first: for a new image that is one call, and the answer is no.
    for record in records(records_for(engine, request, &images)) {
        let there = engine.image(&record.name).await?;
        if !there.is_some_and(|there| record.is(&there, request.choice.target())) {
            return Ok(false);
        }
    }
    for image in &images {
        if !image_is_present(engine, image, &snapshotter).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What the records of the request's image depend on.
pub(super) fn records_for<'a>(
    engine: &'a Engine,
    request: &Request<'a>,
    images: &[Image<'a>],
) -> RecordsFor<'a> {
    let artifact = images.first().is_none_or(|i| i.manifest.is_artifact());
    RecordsFor {
        namespace: engine.namespace(),
        reference: request.reference,
        target: &request.choice.target().digest,
        config: (!artifact).then(|| request.choice.config.digest()),
        pin: request.pin,
    }
}

async fn image_is_present(engine: &Engine, image: &Image<'_>, snapshotter: &str) -> Result<bool> {
    for document in image.choice.documents() {
        let digest = &document.descriptor.digest;
        if !has_labels(engine, digest, &gc_children(document)).await? {
            return Ok(false);
        }
        engine.read_document(digest).await?;
    }
    let mut config_labels = Labels::new();
    if let Some(top) = image.top() {
        config_labels.insert(gc_snapshot_key(snapshotter), top.to_string());
    }
    let config = image.choice.config.digest();
    if !has_labels(engine, config, &config_labels).await? {
        return Ok(false);
    }
    engine.read_document(config).await?;
    // From the top: what is not there is most likely missing there.
    for step in image.steps.iter().rev() {
        if !engine.has_snapshot(snapshotter, &step.chain).await? {
            return Ok(false);
        }
    }
    // With snapshots, blobs may be gone: containerd can be told to discard them.
    if !image.unpack {
        for layer in &image.manifest.layers {
            if engine.blob_info(&layer.digest).await?.is_none() {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

async fn has_labels(engine: &Engine, digest: &Digest, labels: &Labels) -> Result<bool> {
    Ok(engine.blob_info(digest).await?.is_some_and(|info| {
        labels
            .iter()
            .all(|(key, value)| info.labels.get(key) == Some(value))
    }))
}
