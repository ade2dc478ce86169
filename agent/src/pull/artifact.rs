//! An artifact of a reference, kept as files in a directory. It needs no container engine.

use std::path::Path;

use super::{Bytes, Choice, Status, image::is_artifact};
use crate::{
    error::{Error, Result},
    kind::Kind,
    layout::{self, Delivered, Delivery, Identity},
    oci::Reference,
    registry::Repo,
    resolve::Want,
    source::Source,
};

/// The delivery in `dir`, if it is what `reference` points at now and every byte of it is
/// there. That costs one HEAD for a tag, and nothing for a digest.
pub async fn unchanged(
    reference: &Reference,
    repo: &Repo,
    want: &Want,
    dir: &Path,
) -> Result<Option<Delivery>> {
    let Some(delivery) = layout::verified(dir).await? else {
        return Ok(None);
    };
    if !delivery.is_of(&reference.repository().to_string(), &wanted(want)) {
        return Ok(None);
    }
    let target = match reference.digest() {
        Some(digest) => Some(digest.clone()),
        None => repo.head().await?.map(|descriptor| descriptor.digest),
    };
    Ok(Some(delivery).filter(|it| target.as_ref() == Some(&it.identity.target_digest)))
}

/// Delivers the artifact that was chosen into `dir`.
pub async fn deliver(
    reference: &Reference,
    want: &Want,
    choice: &Choice,
    source: &dyn Source,
    dir: &Path,
) -> Result<Delivered> {
    let manifest = choice.manifest().filter(|_| is_artifact(choice));
    let manifest = manifest.ok_or_else(|| {
        Error::new(
            Kind::Unsupported,
            format_args!(
                "the reference offers an image for {}, and files of an artifact are wanted",
                want.asked
            ),
        )
        .hint("leave the directory out, or ask for the artifact's platform, such as zephyr/arm/v7")
    })?;
    let identity = Identity {
        repository: reference.repository().to_string(),
        wanted: wanted(want),
        target_digest: choice.root.descriptor.digest.clone(),
        manifest_digest: choice.leaf.descriptor.digest.clone(),
        platform: choice.platform.as_ref().map(ToString::to_string),
    };
    layout::deliver_artifact(dir, &identity, manifest, source).await
}

/// What a delivery took.
pub fn outcome(delivered: &Delivered) -> (Status, Bytes) {
    let status = if delivered.fetched > 0 {
        Status::Pulled
    } else {
        Status::Present
    };
    let bytes = Bytes {
        downloaded: delivered.fetched,
        written: delivered.fetched,
        reused: delivered.reused,
        ..Bytes::default()
    };
    (status, bytes)
}

fn wanted(want: &Want) -> Vec<String> {
    let platforms = want.wanted.platforms().iter();
    platforms.map(ToString::to_string).collect()
}
