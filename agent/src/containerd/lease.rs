//! The lease that protects a pull from the garbage collector, also across restarts.
//!
//! Its id is a hash of what is pulled and a generation: a partial ingest lives as long
//! as the lease that it was opened under, so the next run must find the same one. Leases
//! cannot be extended; at half its life the next generation is made, given all the
//! resources of the old one, and the old one deleted.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use containerd_client::services::v1::{
    AddResourceRequest, CreateRequest, DeleteRequest, Lease as Found, ListRequest,
    ListResourcesRequest, Resource, leases_client::LeasesClient,
};
use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, sleep, sleep_until};
use tonic::transport::Channel;

use super::{
    client::{DIRECTORIES, Engine, MAX_MESSAGE, METADATA},
    failure::{Cause, Outcome},
    labels::{GC_EXPIRE, Labels},
};
use crate::{
    error::Result,
    oci::{ChainId, Digest},
};

/// The label by which a later run finds the lease.
const LEASE_LABEL: &str = "io.edgepull.lease";
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// With less than this left a lease is replaced instead of used.
const HALF_LIFE: Duration = Duration::from_secs(12 * 3600);
/// How often a superseded lease is looked at for users.
const USERS_POLL: Duration = Duration::from_secs(1);

/// The lease of one image's pull, check or repair. Generations change below it; take [`Lease::engine`]
/// anew for every step.
#[derive(Debug)]
pub struct Lease {
    engine: Engine,
    hash: String,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    generation: u64,
    id: Arc<str>,
    renew_at: Instant,
}

/// A connection under the lease. While it lives, its generation is not deleted.
#[derive(Debug, Clone)]
pub struct Leased {
    engine: Engine,
    id: Arc<str>,
}

impl std::ops::Deref for Leased {
    type Target = Engine;
    fn deref(&self) -> &Engine {
        &self.engine
    }
}

/// The hash that names the pull of `digest` for one namespace and snapshotter.
pub fn lease_hash(namespace: &str, snapshotter: &str, digest: &Digest) -> String {
    let text = format!("{namespace}\n{snapshotter}\n{digest}");
    Digest::of(text.as_bytes()).hex().chars().take(32).collect()
}

fn lease_id(hash: &str, generation: u64) -> String {
    format!("edgepull-{hash}-{generation}")
}

fn generation_of(id: &str, hash: &str) -> Option<u64> {
    let rest = id.strip_prefix("edgepull-")?.strip_prefix(hash)?;
    rest.strip_prefix('-')?.parse().ok()
}

/// How long a lease with this label still lives. One without a readable label was made
/// by somebody else under our name: it counts as over.
fn time_left(labels: &Labels, now: Timestamp) -> Duration {
    labels
        .get(GC_EXPIRE)
        .and_then(|text| text.parse::<Timestamp>().ok())
        .and_then(|until| Duration::try_from(until.duration_since(now)).ok())
        .unwrap_or_default()
        // A clock that jumped back would make a lease immortal for us, not for containerd.
        .min(LIFE)
}

fn client(channel: Channel) -> LeasesClient<Channel> {
    LeasesClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

impl Lease {
    /// Finds the lease of an earlier run, or makes one. Call it with the image's lock held, or
    /// with a hash that nobody else has.
    pub async fn acquire(engine: &Engine, hash: &str) -> Result<Self> {
        let mut found: Vec<(u64, Found)> = engine
            .leases(&format!("labels.\"{LEASE_LABEL}\"=={hash}"))
            .await?
            .into_iter()
            .filter_map(|lease| Some((generation_of(&lease.id, hash)?, lease)))
            .collect();
        found.sort_by_key(|(generation, _)| *generation);
        let newest = found.pop();
        let left = newest
            .as_ref()
            .map(|(_, lease)| time_left(&lease.labels, Timestamp::now()))
            .unwrap_or_default();
        let (generation, left) = match &newest {
            Some((generation, _)) if left > HALF_LIFE => (*generation, left),
            Some((generation, _)) => (generation + 1, LIFE),
            None => (1, LIFE),
        };
        let id = lease_id(hash, generation);
        if newest.as_ref().is_none_or(|(_, lease)| lease.id != id) {
            engine.create_lease(&id, hash).await?;
        }
        // Older ones: the newest if it was too old, and what a run left that died between
        // making a generation and deleting the one before.
        for old in found.into_iter().chain(newest) {
            if old.1.id != id {
                engine.move_lease(&old.1.id, &id).await?;
            }
        }
        Ok(Self {
            engine: engine.clone(),
            hash: hash.to_owned(),
            current: Mutex::new(Current {
                generation,
                id: id.into(),
                renew_at: renew_at(left),
            }),
        })
    }

    /// The connection to use for the next step.
    pub fn engine(&self) -> Result<Leased> {
        let id = Arc::clone(&self.lock().id);
        Ok(Leased {
            engine: self.engine.leased(&id)?,
            id,
        })
    }

    /// Whether `leased` is of a generation that is being replaced: whoever works long
    /// should end that step and go on under a new one.
    pub fn is_superseded(&self, leased: &Leased) -> bool {
        !Arc::ptr_eq(&self.lock().id, &leased.id)
    }

    /// The current generation's id.
    pub fn id(&self) -> String {
        self.lock().id.to_string()
    }

    /// Never ends well: sleeps until half the lease's life is gone, makes the next
    /// generation, and so on. Run it beside the pull and drop it after; it returns only
    /// the error that keeps it from renewing.
    pub async fn keep(&self) -> crate::error::Error {
        loop {
            let renew_at = self.lock().renew_at;
            sleep_until(renew_at).await;
            if let Err(error) = self.renew().await {
                return error.during("cannot renew the lease that protects this work");
            }
        }
    }

    /// Makes the next generation at once. Returns when nobody uses the old one any more
    /// and it is deleted.
    pub async fn renew(&self) -> Result<()> {
        let (generation, old) = {
            let current = self.lock();
            (current.generation + 1, Arc::clone(&current.id))
        };
        let id = lease_id(&self.hash, generation);
        self.engine.create_lease(&id, &self.hash).await?;
        {
            let mut current = self.lock();
            current.generation = generation;
            current.id = id.as_str().into();
            current.renew_at = renew_at(LIFE);
        }
        // An open write stream adds its blob to the lease that it was opened under, and
        // fails if that is gone: what is the old one's is moved when nobody uses it. It
        // protects for twelve more hours.
        while Arc::strong_count(&old) > 1 {
            sleep(USERS_POLL).await;
        }
        self.engine.move_lease(&old, &id).await
    }

    /// Adds a resource that exists already. `kind` is `content` or `snapshots/<name>`.
    async fn add(&self, id: &str, kind: &str) -> Result<()> {
        let lease = self.lock().id.to_string();
        self.engine
            .add_resource(
                &lease,
                Resource {
                    id: id.to_owned(),
                    r#type: kind.to_owned(),
                },
            )
            .await?;
        Ok(())
    }

    /// Protects a blob of the namespace.
    pub async fn add_blob(&self, digest: &Digest) -> Result<()> {
        self.add(digest.as_str(), "content").await
    }

    /// Protects a committed snapshot, and through it its parents.
    pub async fn add_snapshot(&self, snapshotter: &str, chain: &ChainId) -> Result<()> {
        self.add(chain.as_str(), &format!("snapshots/{snapshotter}"))
            .await
    }

    /// Whether containerd still has it: somebody else may delete a lease at any time.
    pub async fn exists(&self) -> Result<bool> {
        let id = self.id();
        let found = self.engine.leases(&format!("id==\"{id}\"")).await?;
        Ok(found.iter().any(|lease| lease.id == id))
    }

    /// Kind (`content`, `ingests`, `snapshots/<name>`) and id of everything that it holds.
    pub async fn resources(&self) -> Result<Vec<(String, String)>> {
        let found = self.engine.resources(&self.id()).await?;
        Ok(found.into_iter().map(|r| (r.r#type, r.id)).collect())
    }

    /// Deletes the lease, without waiting for a garbage collection. Only when the image
    /// record is written: nothing else protects the content then.
    pub async fn release(self) -> Result<()> {
        // Any generation that a renewal had not come to deleting goes as well.
        let filter = format!("labels.\"{LEASE_LABEL}\"=={}", self.hash);
        for lease in self.engine.leases(&filter).await? {
            self.engine.delete_lease(&lease.id, false).await?;
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Current> {
        // The value is replaced whole: a poisoned one is still a valid one.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn renew_at(left: Duration) -> Instant {
    Instant::now() + left.saturating_sub(HALF_LIFE)
}

impl Engine {
    async fn leases(&self, filter: &str) -> Result<Vec<Found>> {
        let message = ListRequest {
            filters: vec![filter.to_owned()],
        };
        let answer = self
            .call("list leases", METADATA, message, |c, r| async move {
                client(c).list(r).await
            })
            .await?;
        Ok(answer.leases)
    }

    /// The hash of the pull or the check of ours that holds the snapshot `key`, if one does.
    pub async fn holder_of(&self, snapshotter: &str, key: &str) -> Result<Option<String>> {
        let kind = format!("snapshots/{snapshotter}");
        for lease in self.leases(&format!("labels.\"{LEASE_LABEL}\"")).await? {
            let held = self.resources(&lease.id).await?;
            if held.iter().any(|r| r.r#type == kind && r.id == key) {
                return Ok(lease.labels.get(LEASE_LABEL).cloned());
            }
        }
        Ok(None)
    }

    /// The ids of all leases of ours in the namespace, whatever made them.
    pub async fn our_leases(&self) -> Result<Vec<String>> {
        let found = self.leases(&format!("labels.\"{LEASE_LABEL}\"")).await?;
        Ok(found.into_iter().map(|lease| lease.id).collect())
    }

    /// Deletes every lease of ours with this hash, whichever generation.
    pub async fn drop_leases_of(&self, hash: &str) -> Result<()> {
        for lease in self
            .leases(&format!("labels.\"{LEASE_LABEL}\"=={hash}"))
            .await?
        {
            self.delete_lease(&lease.id, false).await?;
        }
        Ok(())
    }

    /// Deletes a lease of ours, without waiting for a garbage collection; that it is gone
    /// is as good.
    pub async fn drop_lease(&self, id: &str) -> Result<()> {
        self.delete_lease(id, false).await
    }

    /// Makes a lease of full life. That it exists is as good: it is ours by its name.
    async fn create_lease(&self, id: &str, hash: &str) -> Result<()> {
        let until = Timestamp::now()
            .checked_add(SignedDuration::try_from(LIFE).unwrap_or(SignedDuration::ZERO))
            .unwrap_or(Timestamp::MAX);
        // Whole seconds: every RFC 3339 parser reads them.
        let until = until.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let message = CreateRequest {
            id: id.to_owned(),
            labels: Labels::from([
                (GC_EXPIRE.to_owned(), until),
                (LEASE_LABEL.to_owned(), hash.to_owned()),
            ]),
        };
        let answer = self
            .call("create a lease", METADATA, message, |c, r| async move {
                client(c).create(r).await
            })
            .await;
        match answer {
            Err(failure) if failure.cause != Cause::Exists => Err(failure.into()),
            _ => Ok(()),
        }
    }

    async fn add_resource(&self, lease: &str, resource: Resource) -> Outcome<()> {
        let message = AddResourceRequest {
            id: lease.to_owned(),
            resource: Some(resource),
        };
        self.call("add to the lease", METADATA, message, |c, r| async move {
            client(c).add_resource(r).await
        })
        .await
    }

    /// Everything that a lease holds; nothing if it is gone.
    async fn resources(&self, lease: &str) -> Result<Vec<Resource>> {
        let message = ListResourcesRequest {
            id: lease.to_owned(),
        };
        let action = "list the lease's resources";
        let answer = self
            .call(action, METADATA, message, |c, r| async move {
                client(c).list_resources(r).await
            })
            .await;
        match answer {
            Ok(answer) => Ok(answer.resources),
            Err(failure) if matches!(failure.cause, Cause::Missing | Cause::LeaseLost) => {
                Ok(Vec::new())
            }
            Err(failure) => Err(failure.into()),
        }
    }

    /// Gives everything of `old` to `new`, then deletes `old`.
    async fn move_lease(&self, old: &str, new: &str) -> Result<()> {
        for resource in self.resources(old).await? {
            self.add_resource(new, resource).await?;
        }
        self.delete_lease(old, false).await
    }

    /// Has containerd collect garbage, of all namespaces, and returns when it has: the
    /// deletion of a lease can be waited for, of one that holds nothing, too.
    pub async fn collect_garbage(&self) -> Result<()> {
        let id = format!("edgepull-collect-{}", std::process::id());
        self.create_lease(&id, "collect").await?;
        self.delete_lease(&id, true).await
    }

    async fn delete_lease(&self, id: &str, sync: bool) -> Result<()> {
        let message = DeleteRequest {
            id: id.to_owned(),
            sync,
        };
        let answer = self
            .call(
                "delete a lease",
                if sync { DIRECTORIES } else { METADATA },
                message,
                |c, r| async move { client(c).delete(r).await },
            )
            .await;
        match answer {
            Err(failure) if !matches!(failure.cause, Cause::Missing | Cause::LeaseLost) => {
                Err(failure.into())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_leads_back_to_its_generation() {
        let hash = lease_hash("k8s.io", "overlayfs", &Digest::of(b"x"));
        assert_eq!(hash.len(), 32);
        assert_ne!(hash, lease_hash("default", "overlayfs", &Digest::of(b"x")));
        assert_ne!(hash, lease_hash("k8s.io", "native", &Digest::of(b"x")));
        let id = lease_id(&hash, 12);
        assert!(id.len() <= 76, "containerd's limit for identifiers");
        assert_eq!(generation_of(&id, &hash), Some(12));
        assert_eq!(generation_of("edgepull-other-1", &hash), None);
        assert_eq!(generation_of(&format!("edgepull-{hash}-x"), &hash), None);
    }

    #[test]
    fn only_a_readable_future_counts_as_life() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let left = |text: &str| {
            time_left(
                &Labels::from([(GC_EXPIRE.to_owned(), text.to_owned())]),
                now,
            )
        };
        assert_eq!(left("2026-01-01T13:00:00Z"), Duration::from_secs(13 * 3600));
        assert_eq!(
            left("2026-01-01T13:00:00+01:00"),
            Duration::from_secs(12 * 3600)
        );
        assert_eq!(left("2025-12-31T00:00:00Z"), Duration::ZERO);
        assert_eq!(left("soon"), Duration::ZERO);
        assert_eq!(left("2030-01-01T00:00:00Z"), LIFE);
        assert_eq!(time_left(&Labels::new(), now), Duration::ZERO);
    }
}
