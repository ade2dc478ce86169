//! An image that is wanted for a moment: its layers fetched and unpacked under a lease, and
//! nothing that would keep them when the lease is gone.

use std::sync::Mutex;

use super::{
    Choice,
    fetch::{self, Arrivals},
    plan::{Image, unique},
    unpack::{Unpacker, snapshots_present},
};
use crate::{
    containerd::{Engine, Lease, ingest::Ingest},
    error::Result,
    event::{Event, Events},
    oci::{ChainId, Repository},
    source::Source,
};

/// Brings images under a lease.
#[derive(Debug, Clone, Copy)]
pub struct Holder<'a> {
    pub engine: &'a Engine,
    pub lease: &'a Lease,
    pub snapshotter: &'a str,
    pub events: &'a Events,
}

/// What is there now, as long as the lease is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The snapshot with all layers; `None` for an image without any.
    pub top: Option<ChainId>,
    /// Whether anything was written for it, which goes with the lease.
    pub written: bool,
}

impl Holder<'_> {
    /// Fetches what is missing of the layers of `choice` from `source`, and unpacks it. Neither
    /// documents nor records are written: with the manifest in the store an index that somebody
    /// else keeps would keep the layers for good. `repository` is that of a registry.
    ///
    /// It is not synced: whoever comes to keep the same layers has to do that anyway.
    pub async fn hold(
        &self,
        reference: &str,
        choice: &Choice,
        source: &dyn Source,
        repository: Option<&Repository>,
    ) -> Result<Held> {
        let image = Image::new(choice, true)?;
        let present = snapshots_present(self.engine, self.lease, self.snapshotter, &image).await?;
        let needed = unique(image.needed(present));
        self.announce(reference, &needed).await?;
        let ingest = Ingest {
            lease: self.lease,
            source,
            repository,
            events: self.events,
            reference,
        };
        let arrivals = Arrivals::expecting(&needed);
        let unpacker = Unpacker {
            lease: self.lease,
            snapshotter: self.snapshotter,
            events: self.events,
            reference,
            active: Mutex::new(None),
        };
        let fetch = fetch::layers(&ingest, &needed, &arrivals);
        let unpack = unpacker.chain(&image, present, &arrivals);
        if let Err(error) = tokio::try_join!(fetch, unpack) {
            return Err(unpacker.clean(error).await);
        }
        Ok(Held {
            top: image.top().cloned(),
            written: !needed.is_empty(),
        })
    }

    async fn announce(&self, reference: &str, needed: &[&crate::oci::Descriptor]) -> Result<()> {
        let (mut to_fetch, mut there) = (0, 0);
        for blob in needed {
            if self.engine.blob_info(&blob.digest).await?.is_some() {
                there += blob.size;
            } else {
                to_fetch += blob.size;
            }
        }
        self.events.emit(&Event::Planned {
            reference: reference.to_owned(),
            layers: needed.len(),
            bytes_to_fetch: to_fetch,
            bytes_present: there,
        });
        Ok(())
    }
}
