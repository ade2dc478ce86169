//! The proof of an image that is unpacked: through the directories that a read-only view of its
//! snapshot names.

use std::sync::atomic::{AtomicU64, Ordering};

use containerd_client::types::Mount;
use edgepull_platform::{
    Host,
    launch::{Place, follow},
};
use jiff::Timestamp;

use super::{
    judge::{Proof, prove},
    launch::Launch,
    layers::Layers,
};
use crate::{
    containerd::{Engine, Lease, lease::lease_hash, stack::directories},
    error::{Error, Result},
    kind::Kind,
    oci::{ChainId, Digest},
};

/// How the views of a look are named, as those of a recheck; whoever finds one may remove it.
const VIEW: &str = "edgepull-recheck-proof-";

/// Judges the image whose topmost snapshot is `top`, under a lease of its own. `layers` are the
/// layers' digests, from the bottom up. A snapshotter whose files cannot be seen from here makes
/// the verdict unknown.
///
/// # Errors
///
/// Where containerd fails.
pub async fn of_snapshot(
    engine: &Engine,
    snapshotter: &str,
    top: &ChainId,
    launch: Launch,
    layers: Vec<Digest>,
    host: &Host,
) -> Result<Proof> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    // In a container the process may have the same number again; the clock differs then.
    let own = format!(
        "{}-{}-{}",
        std::process::id(),
        COUNTER.fetch_add(1, Ordering::Relaxed),
        Timestamp::now().as_nanosecond()
    );
    let digest = Digest::of(top.as_str().as_bytes());
    let hash = lease_hash(engine.namespace(), &format!("{snapshotter} {own}"), &digest);
    let lease = Lease::acquire(engine, &hash).await?;
    let looked = tokio::select! {
        looked = look(&lease, snapshotter, &own, top, launch, layers, host) => looked,
        error = lease.keep() => Err(error),
    };
    let released = lease.release().await;
    if let Err(error) = released {
        tracing::warn!(%error, "a lease could not be given back; it expires by itself");
    }
    looked
}

async fn look(
    lease: &Lease,
    snapshotter: &str,
    own: &str,
    top: &ChainId,
    launch: Launch,
    layers: Vec<Digest>,
    host: &Host,
) -> Result<Proof> {
    let engine = lease.engine()?;
    let key = format!("{VIEW}{own} {top}");
    let mounts = engine.view(snapshotter, &key, top.as_str()).await?;
    let judged = of_mounts(&mounts, launch, layers, host).await;
    // It goes with the lease if not now: no reason to throw an answer away.
    if let Err(error) = engine.remove_snapshot_named(snapshotter, &key).await {
        tracing::warn!(%error, "a view of an image could not be removed");
    }
    judged
}

/// Judges what the mounts of a snapshot make up; what a container wrote there is not seen. Mounts
/// whose files cannot be seen from here make the verdict unknown.
///
/// # Errors
///
/// `internal`, where the look itself breaks off.
pub async fn of_mounts(
    mounts: &[Mount],
    launch: Launch,
    layers: Vec<Digest>,
    host: &Host,
) -> Result<Proof> {
    let host = host.clone();
    match directories(mounts) {
        Err(reason) => Ok(Proof::unknown(launch.words(), reason)),
        // A disk that hangs holds up a thread and not the rest.
        Ok(found) => tokio::task::spawn_blocking(move || {
            let one_each = found.paths.len() == layers.len();
            match Layers::open(&found.paths, one_each, found.user_names) {
                Ok(mut tree) => prove(&launch, &mut tree, &layers, &host),
                Err(error) => Proof::unknown(launch.words(), cannot_see(&error)),
            }
        })
        .await
        .map_err(|_| Error::new(Kind::Internal, "the thread that looks at files ended early")),
    }
}

/// The text of files of an image, each at most 1 MiB of it, through the directories that the
/// mounts of a snapshot name: `None` for one that is not there. What a container wrote is not seen.
///
/// # Errors
///
/// Where the files cannot be seen without a mount.
pub async fn texts(
    mounts: &[Mount],
    paths: &'static [&'static str],
) -> Result<Vec<Option<String>>> {
    let unseen = |reason: String| Error::new(Kind::Unsupported, reason);
    let found = directories(mounts).map_err(unseen)?;
    tokio::task::spawn_blocking(move || {
        let mut tree = Layers::open(&found.paths, false, found.user_names)?;
        let read = |path: &&str| match follow(&mut tree, path.as_bytes()) {
            Place::File { path, .. } => tree.text(&path).map(Some),
            Place::Nothing => Ok(None),
            Place::Unseen(reason) => Err(Error::new(Kind::Unsupported, reason)),
        };
        paths.iter().map(read).collect()
    })
    .await
    .map_err(|_| Error::new(Kind::Internal, "the thread that looks at files ended early"))?
}

fn cannot_see(error: &Error) -> String {
    let cause = error.causes().first();
    let cause = cause.map_or_else(String::new, |cause| format!(": {cause}"));
    format!(
        "the image's files cannot be seen: {}{cause}",
        error.message()
    )
}
