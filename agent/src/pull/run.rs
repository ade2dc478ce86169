//! The pipeline, in the order that leaves nothing behind at any point but what can be
//! resumed or collected: lock, lease, documents with their labels, layers and snapshots,
//! sync, records, and last the end of the lease.

use std::{path::Path, sync::Mutex};

use serde::{Deserialize, Serialize};

use super::{
    Choice,
    fetch::{self, Arrivals},
    jury::{self, Jury, Look},
    plan::{Image, unique},
    present::{is_present, records_for},
    room::{self, Need, Room},
    unpack::{Unpacker, snapshots_present},
};
use crate::{
    containerd::{
        Engine, ImageLock, Lease,
        ingest::{Ingest, Ingested, begun},
        labels::{Labels, MANAGED},
        lease::lease_hash,
        records::records,
    },
    error::{Error, Result},
    event::{Event, Events},
    kind::Kind,
    oci::{Descriptor, Digest, Reference},
    proof::Proof,
    source::Source,
};

/// Runs of one pull whose lease is deleted below it.
const LEASE_TRIES: u32 = 3;

/// One pull.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line, and they are independent"
)]
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub reference: &'a Reference,
    /// The image that the records are for, and that is unpacked.
    pub choice: &'a Choice,
    /// Other images below the same root (`--all-platforms`).
    pub more: &'a [Choice],
    /// Whether those are unpacked too; what this host cannot run need not be.
    pub unpack_more: bool,
    pub source: &'a dyn Source,
    /// Whether the source is the reference's registry: then containerd is told so by
    /// its label on every blob, and can mount it in a push.
    pub from_registry: bool,
    /// `None`: the namespace's default.
    pub snapshotter: Option<&'a str>,
    /// `false`: content and records only.
    pub unpack: bool,
    /// Must be `true`.
    pub keep_layers: bool,
    pub pin: bool,
    /// Value of `io.edgepull.managed` on records that this pull creates: who asked for it.
    pub managed_by: &'a str,
    /// Asked before the first byte of a layer; `None`: there is always room.
    pub room: Option<&'a dyn Room>,
    /// Looks at the bytes of what was unpacked before it counts; `None`: labels decide.
    pub jury: Option<Jury<'a>>,
}

/// Whether anything had to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Pulled,
    /// Everything was there; nothing was written.
    Present,
}

/// What it took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    /// Fetched from the source.
    pub downloaded: u64,
    /// Found in an unfinished ingest and not fetched again.
    pub resumed: u64,
    /// Of blobs that were in the store, or whose snapshots were.
    pub reused: u64,
    /// Written to the store: blobs and unpacked layers.
    pub written: u64,
}

/// A pull that ended well.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub status: Status,
    pub bytes: Bytes,
    pub warnings: Vec<String>,
    /// What the image's bytes proved, where they were looked at.
    pub proof: Option<Proof>,
}

/// The images of a request, the one that counts first.
pub(super) fn images<'a>(request: &Request<'a>) -> Result<Vec<Image<'a>>> {
    let mut images = vec![Image::new(request.choice, request.unpack)?];
    for choice in request.more {
        images.push(Image::new(choice, request.unpack && request.unpack_more)?);
    }
    Ok(images)
}

/// Pulls into containerd. Nothing is visible before all of it is there, verified and
/// synced. A failure leaves what the next call resumes; so does dropping the future.
///
/// `state_dir` is where the lock of the image goes (`/run/edgepull/locks`).
pub async fn pull_into(
    engine: &Engine,
    request: &Request<'_>,
    events: &Events,
    state_dir: &Path,
) -> Result<Outcome> {
    pull(engine, request, events, state_dir)
        .await
        .map_err(|error| error.reference(request.reference.typed()))
}

/// The lock of one image in one engine: two containerds on a host have nothing to share,
/// and one of them that hangs must not hold up the other.
pub fn lock_name(address: &Path, lease_hash: &str) -> String {
    let address = std::fs::canonicalize(address).unwrap_or_else(|_| address.to_owned());
    let key = format!("{}\n{lease_hash}", address.display());
    Digest::of(key.as_bytes()).hex().chars().take(32).collect()
}

async fn pull(
    engine: &Engine,
    request: &Request<'_>,
    events: &Events,
    state_dir: &Path,
) -> Result<Outcome> {
    if !request.keep_layers {
        return Err(Error::new(
            Kind::Unsupported,
            "layers cannot be dropped while they are unpacked by containerd's diff service",
        ));
    }
    let images = images(request)?;
    let snapshotter = engine.snapshotter(request.snapshotter)?.name.clone();
    if is_present(engine, request).await? {
        return Ok(present(&images));
    }
    let typed = request.reference.typed();
    let hash = lease_hash(
        engine.namespace(),
        &snapshotter,
        &request.choice.target().digest,
    );
    let mut waited = false;
    let name = lock_name(engine.address(), &hash);
    let lock = ImageLock::acquire(state_dir, &name, &format!("pulling {typed}"), |owner| {
        waited = true;
        events.emit(&Event::Warning {
            reference: typed.to_owned(),
            message: format!("another edgepull works on this image; waiting ({owner})"),
        });
    })
    .await?;
    if waited && is_present(engine, request).await? {
        return Ok(present(&images));
    }
    let work = Work {
        engine,
        request,
        events,
        images: &images,
        snapshotter: &snapshotter,
    };
    let mut tries = 1;
    let outcome = loop {
        let lease = Lease::acquire(engine, &hash).await?;
        let result = tokio::select! {
            result = work.run(&lease) => result,
            error = lease.keep() => Err(error),
        };
        // Without its lease any part of the work may be collected already: a failure says
        // nothing, and a success only if everything is still there now.
        let away = |error: &Error| error.kind() == Kind::ContainerdUnavailable;
        let lost = !result.as_ref().is_err_and(away) && matches!(lease.exists().await, Ok(false));
        if !lost || (result.is_ok() && is_present(engine, request).await?) {
            break match result {
                Ok(outcome) => released(outcome, lease).await,
                Err(error) => return Err(error),
            };
        }
        if tries >= LEASE_TRIES {
            return Err(match result {
                Err(error) => error,
                Ok(_) => Error::new(
                    Kind::Unavailable,
                    "the image was collected while it was pulled",
                ),
            }
            .because("the lease that protects the pull was deleted by somebody else")
            .retry(true));
        }
        tries += 1;
        events.emit(&Event::Warning {
            reference: typed.to_owned(),
            message: "somebody deleted the lease of this pull; beginning again".to_owned(),
        });
    };
    drop(lock);
    Ok(outcome)
}

/// The records hold everything now. A lease that stays costs space for a day, no more.
async fn released(mut outcome: Outcome, lease: Lease) -> Outcome {
    if let Err(error) = lease.release().await {
        outcome.warnings.push(error.to_string());
    }
    outcome
}

fn present(images: &[Image<'_>]) -> Outcome {
    Outcome {
        status: Status::Present,
        bytes: Bytes {
            reused: blobs(images).iter().map(|blob| blob.size).sum(),
            ..Bytes::default()
        },
        warnings: Vec::new(),
        proof: None,
    }
}

/// Every layer blob of every image, once.
fn blobs<'a>(images: &'a [Image<'_>]) -> Vec<&'a Descriptor> {
    unique(images.iter().flat_map(|image| &image.manifest.layers))
}

struct Work<'a> {
    engine: &'a Engine,
    request: &'a Request<'a>,
    events: &'a Events,
    images: &'a [Image<'a>],
    snapshotter: &'a str,
}

impl Work<'_> {
    async fn run(&self, lease: &Lease) -> Result<Outcome> {
        let typed = self.request.reference.typed();
        let ingest = Ingest {
            lease,
            source: self.request.source,
            repository: self
                .request
                .from_registry
                .then(|| self.request.reference.repository()),
            events: self.events,
            reference: typed,
        };
        let documents = fetch::documents(&ingest, self.images).await?;
        let mut present = Vec::with_capacity(self.images.len());
        for image in self.images {
            present.push(snapshots_present(self.engine, lease, self.snapshotter, image).await?);
        }
        let needed = unique(
            self.images
                .iter()
                .zip(&present)
                .flat_map(|(image, present)| image.needed(*present)),
        );
        let to_fetch = self.announce(&needed).await?;
        self.ask_for_room(to_fetch, &present).await?;
        let arrivals = Arrivals::expecting(&needed);
        let unpacker = Unpacker {
            lease,
            snapshotter: self.snapshotter,
            events: self.events,
            reference: typed,
            active: Mutex::new(None),
        };
        let unpack = async {
            let mut written = 0;
            for (image, present) in self.images.iter().zip(&present) {
                if image.unpack {
                    written += unpacker.image(image, *present, &arrivals).await?;
                }
            }
            Ok::<_, Error>(written)
        };
        let fetch = fetch::layers(&ingest, &needed, &arrivals);
        let (layers, applied) = match tokio::try_join!(fetch, unpack) {
            Ok(done) => done,
            Err(error) => return Err(unpacker.clean(error).await),
        };
        let below: u64 = blobs(self.images)
            .iter()
            .filter(|blob| !needed.iter().any(|other| other.digest == blob.digest))
            .map(|blob| blob.size)
            .sum();
        let found = self.judge().await?;
        let mut warnings = found.warnings;
        warnings.extend(self.finish(lease).await?);
        Ok(Outcome {
            status: Status::Pulled,
            bytes: sum(documents, layers, below, applied),
            warnings,
            proof: found.proof,
        })
    }

    /// Says what is going to be done; returns what is to be fetched.
    async fn announce<'d>(&self, needed: &[&'d Descriptor]) -> Result<Vec<&'d Descriptor>> {
        let mut to_fetch = Vec::new();
        let mut there = 0;
        for blob in needed {
            if self.engine.blob_info(&blob.digest).await?.is_some() {
                there += blob.size;
            } else {
                to_fetch.push(*blob);
            }
        }
        self.events.emit(&Event::Planned {
            reference: self.request.reference.typed().to_owned(),
            layers: needed.len(),
            bytes_to_fetch: to_fetch.iter().map(|blob| blob.size).sum(),
            bytes_present: there,
        });
        Ok(to_fetch)
    }

    /// What an earlier run fetched of a blob lies on the disk already, and is not asked for
    /// once more: what was begun can be ended.
    async fn ask_for_room(&self, to_fetch: Vec<&Descriptor>, present: &[usize]) -> Result<()> {
        let Some(room) = self.request.room else {
            return Ok(());
        };
        let mut need = Need::default();
        for blob in to_fetch {
            let begun = begun(self.engine, blob).await?;
            need.fetch = need.fetch.saturating_add(blob.size.saturating_sub(begun));
        }
        for (image, present) in self.images.iter().zip(present) {
            need.unpack = need.unpack.saturating_add(room::unpacked(image, *present));
        }
        room.ask(need)
    }

    /// Looks at the bytes of each image that was unpacked; what the first one is, is told.
    async fn judge(&self) -> Result<jury::Found> {
        let mut all = jury::Found::default();
        let Some(jury) = &self.request.jury else {
            return Ok(all);
        };
        for (at, image) in self.images.iter().enumerate() {
            let found = jury
                .judge(self.engine, self.snapshotter, image, Look::Again)
                .await?;
            all.warnings.extend(found.warnings);
            if at == 0 {
                all.proof = found.proof;
            }
        }
        for message in &all.warnings {
            self.events.emit(&Event::Warning {
                reference: self.request.reference.typed().to_owned(),
                message: message.clone(),
            });
        }
        Ok(all)
    }

    /// Makes it durable, then visible.
    async fn finish(&self, lease: &Lease) -> Result<Vec<String>> {
        let typed = self.request.reference.typed();
        self.events.emit(&Event::Syncing {
            reference: typed.to_owned(),
        });
        let unpacked = self.images.iter().any(|image| image.unpack);
        let warnings = self
            .engine
            .sync_stores(unpacked.then_some(self.snapshotter))
            .await?;
        for message in &warnings {
            self.events.emit(&Event::Warning {
                reference: typed.to_owned(),
                message: message.clone(),
            });
        }
        let target = self.request.choice.target();
        let ours = Labels::from([(MANAGED.to_owned(), self.request.managed_by.to_owned())]);
        let engine = lease.engine()?;
        for record in records(records_for(self.engine, self.request, self.images)) {
            engine
                .put_image(&record.name, target, &record.labels, &ours)
                .await?;
        }
        Ok(warnings)
    }
}

fn sum(documents: Ingested, layers: Ingested, below: u64, unpacked: u64) -> Bytes {
    let downloaded = documents.downloaded + layers.downloaded;
    Bytes {
        downloaded,
        resumed: layers.resumed,
        reused: documents.reused + layers.reused + below,
        written: downloaded + unpacked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The daemon runs pulls as tasks of their own.
    #[test]
    fn a_pull_can_be_a_task() {
        fn is_send<T: Send>(_: impl FnOnce() -> T) {}
        is_send(|| async {
            let (engine, request): (Engine, Request<'_>) = std::future::pending().await;
            pull_into(&engine, &request, &Events::none(), Path::new("/")).await
        });
    }

    #[test]
    fn two_engines_have_two_locks() {
        let (one, other) = (Path::new("/run/a.sock"), Path::new("/run/b.sock"));
        assert_eq!(lock_name(one, "x"), lock_name(one, "x"));
        assert_ne!(lock_name(one, "x"), lock_name(other, "x"));
        assert_ne!(lock_name(one, "x"), lock_name(one, "y"));
    }
}
