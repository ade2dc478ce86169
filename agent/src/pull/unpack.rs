//! Unpacking through containerd's diff service: strictly in order, each layer as soon
//! as its blob is there.

use std::sync::{Mutex, PoisonError};

use super::{
    fetch::Arrivals,
    plan::{Image, Step},
};
use crate::{
    containerd::{
        Cause, Engine, Failure, Lease,
        diff::Applied,
        labels::{Labels, UNCOMPRESSED, gc_snapshot_key},
        snapshot::{ActiveSnapshot, LayerOf, Prepared},
    },
    error::{Error, Result},
    event::{Event, Events},
    kind::Kind,
    oci::ChainId,
};

/// Times that one layer is begun again after containerd went away below it.
const RESTARTS: u32 = 3;

/// How many of the lowest layers of `image` have their snapshots. The highest of them is put
/// under the lease, and looked at again: only then nobody can take it away.
pub(super) async fn snapshots_present(
    engine: &Engine,
    lease: &Lease,
    snapshotter: &str,
    image: &Image<'_>,
) -> Result<usize> {
    for (index, step) in image.steps.iter().enumerate().rev() {
        if !engine.has_snapshot(snapshotter, &step.chain).await? {
            continue;
        }
        lease.add_snapshot(snapshotter, &step.chain).await?;
        if engine.has_snapshot(snapshotter, &step.chain).await? {
            return Ok(index + 1);
        }
    }
    Ok(0)
}

/// Unpacks images; remembers what has to be removed if it is stopped in the middle.
#[derive(Debug)]
pub(super) struct Unpacker<'a> {
    pub(super) lease: &'a Lease,
    pub(super) snapshotter: &'a str,
    pub(super) events: &'a Events,
    pub(super) reference: &'a str,
    pub(super) active: Mutex<Option<ActiveSnapshot>>,
}

impl Unpacker<'_> {
    /// Unpacks what is above the `present` lowest layers, and ties the result to the
    /// config. Returns the bytes written.
    pub(super) async fn image(
        &self,
        image: &Image<'_>,
        present: usize,
        arrivals: &Arrivals,
    ) -> Result<u64> {
        let written = self.chain(image, present, arrivals).await?;
        if let Some(top) = image.top() {
            // The only thing that keeps the snapshots once the lease is gone.
            let label = (gc_snapshot_key(self.snapshotter), top.to_string());
            self.lease
                .engine()?
                .label_blob(image.choice.config.digest(), Labels::from([label]))
                .await?;
        }
        Ok(written)
    }

    /// The same for somebody who keeps nothing: nothing but the lease holds the result.
    pub(super) async fn chain(
        &self,
        image: &Image<'_>,
        present: usize,
        arrivals: &Arrivals,
    ) -> Result<u64> {
        let mut written = 0;
        let mut parent: Option<&ChainId> = None;
        for (index, step) in image.steps.iter().enumerate() {
            if index < present {
                self.done(step, true);
            } else {
                arrivals.of(&step.layer.digest).await?;
                written += self.layer(step, parent).await?;
            }
            parent = Some(&step.chain);
        }
        Ok(written)
    }

    async fn layer(&self, step: &Step, parent: Option<&ChainId>) -> Result<u64> {
        let mut restarts = 0;
        loop {
            let engine = self.lease.engine()?;
            match self.attempt(&engine, step, parent).await {
                Ok(written) => {
                    self.done(step, written.is_none());
                    return Ok(written.unwrap_or_default());
                }
                Err(failure) => {
                    // The half-unpacked files are of no use: unpacking again onto them
                    // would stumble over its own whiteouts. This waits for a daemon that
                    // is away; if it does not come back, so will nothing else.
                    let removed = self.remove_active().await;
                    let again = failure.cause == Cause::Disconnected
                        && removed.is_ok()
                        && restarts < RESTARTS;
                    if !again {
                        return Err(match removed {
                            Ok(()) => failure.error,
                            Err(other) => failure.error.because(other),
                        });
                    }
                    restarts += 1;
                }
            }
        }
    }

    /// Bytes written; `None` if the snapshot was there.
    async fn attempt(
        &self,
        engine: &Engine,
        step: &Step,
        parent: Option<&ChainId>,
    ) -> Result<Option<u64>, Failure> {
        let other = |error: Error| Failure::new(Cause::Other, error);
        let of = LayerOf {
            layer: &step.layer,
            diff_id: &step.diff_id,
            chain: &step.chain,
            parent,
        };
        let prepared = engine.prepare_layer(self.snapshotter, of).await?;
        let snapshot = match prepared {
            Prepared::Exists => {
                self.lease
                    .add_snapshot(self.snapshotter, &step.chain)
                    .await
                    .map_err(other)?;
                return Ok(None);
            }
            Prepared::Active(snapshot) => snapshot,
        };
        self.set_active(Some(snapshot.clone()));
        if snapshot.is_staged() {
            engine.commit_layer(&snapshot).await?;
            self.set_active(None);
            return Ok(None);
        }
        self.events.emit(&Event::Unpacking {
            reference: self.reference.to_owned(),
            digest: step.layer.digest.clone(),
        });
        let applied: Applied = engine.apply(&step.layer, snapshot.mounts.clone()).await?;
        applied.check(&step.layer, &step.diff_id).map_err(other)?;
        engine.commit_layer(&snapshot).await?;
        self.set_active(None);
        let label = (UNCOMPRESSED.to_owned(), step.diff_id.to_string());
        engine
            .label_blob(&step.layer.digest, Labels::from([label]))
            .await
            .map_err(other)?;
        Ok(Some(applied.size))
    }

    fn done(&self, step: &Step, reused: bool) {
        self.events.emit(&Event::Unpacked {
            reference: self.reference.to_owned(),
            digest: step.layer.digest.clone(),
            reused,
        });
    }

    fn set_active(&self, snapshot: Option<ActiveSnapshot>) {
        *self.active.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    /// Removes an unfinished snapshot, because of `error`. What cannot be removed now
    /// dies with the lease; the error says so too.
    pub(super) async fn clean(&self, error: Error) -> Error {
        // It was waited for long enough.
        if error.kind() == Kind::ContainerdUnavailable {
            return error;
        }
        match self.remove_active().await {
            Ok(()) => error,
            Err(other) => error.because(other),
        }
    }

    async fn remove_active(&self) -> Result<()> {
        let left = self
            .active
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match left {
            Some(snapshot) => self.lease.engine()?.remove_snapshot(&snapshot).await,
            None => Ok(()),
        }
    }
}
