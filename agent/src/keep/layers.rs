//! One layer read through: its blob hashed and, along the way, its files compared.

use std::path::PathBuf;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::{
    choose::is_damage,
    files::{Compared, compare},
};
use crate::{
    containerd::Engine,
    error::{Error, Result},
    kind::Kind,
    layout::{Chunks, inflated},
    oci::{Descriptor, Verifier},
};

/// Chunks on their way from the store to the comparison.
const AHEAD: usize = 2;

/// What reading a layer came to.
pub(super) struct Layer {
    /// What is wrong with the blob.
    pub(super) blob: Option<String>,
    /// Of the files, if a directory was given: what was found, or why nothing can be said.
    /// Means nothing if the blob is wrong.
    pub(super) files: Option<Result<Compared>>,
    /// Bytes of the blob.
    pub(super) bytes: u64,
}

/// Reads the blob of `layer`; `directory` is where its files are.
pub(super) async fn read(
    engine: &Engine,
    layer: &Descriptor,
    directory: Option<PathBuf>,
) -> Result<Layer> {
    let mut verifier = Verifier::new(layer);
    let (sender, comparison) = match directory {
        Some(directory) => {
            let (sender, receiver) = mpsc::channel(AHEAD);
            let task = tokio::task::spawn_blocking(move || {
                let tar = inflated(Chunks::new(receiver)).map_err(|error| {
                    Error::new(Kind::InvalidContent, "the layer cannot be read").caused_by(&error)
                })?;
                compare(tar, &directory)
            });
            (Some(sender), Some(task))
        }
        None => (None, None),
    };
    let hashed = hash(engine, layer, &mut verifier, sender).await;
    let bytes = verifier.seen();
    let blob = match hashed.and_then(|()| verifier.finish()) {
        Ok(()) => None,
        // A body that ends too early is no broken link here: the store has no more of it.
        Err(error) if is_damage(&error) || error.kind() == Kind::Unavailable => {
            Some(error.message().to_owned())
        }
        Err(error) => return Err(error),
    };
    let files = match comparison {
        Some(task) => Some(task.await.unwrap_or_else(|_| {
            Err(Error::new(
                Kind::Internal,
                "the thread that compares files ended early",
            ))
        })),
        None => None,
    };
    Ok(Layer { blob, files, bytes })
}

async fn hash(
    engine: &Engine,
    layer: &Descriptor,
    verifier: &mut Verifier,
    mut sender: Option<mpsc::Sender<Bytes>>,
) -> Result<()> {
    let mut stream = engine.read_blob(&layer.digest, 0).await?;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        verifier.update(&chunk)?;
        // Whoever compares may be done, or have given up; the hash wants all of it.
        if let Some(open) = &sender
            && open.send(chunk).await.is_err()
        {
            sender = None;
        }
    }
    Ok(())
}
