//! Healing what a check found: damaged blobs are fetched again, damaged snapshots removed
//! and unpacked again. Nothing that is intact is downloaded.
//!
//! It may be stopped at any point. No record and no pin is taken away, so the image stays
//! wanted; what is intact is under a lease that the next call finds; and what is missing
//! then is what any pull brings back.

use std::{path::Path, time::Duration};

use super::{
    choose::{below, choose},
    recheck::{Report, Sound, VIEW, Verdict, recheck},
    stand::{Standing, User, is_layer},
};
use crate::{
    choice::Choice,
    containerd::{
        Engine, ImageLock, Lease, StoreSource,
        image::ImageRecord,
        ingest::{Ingest, begun},
        labels::{Labels, UNCOMPRESSED, gc_children},
        lease::lease_hash,
    },
    error::{Error, Result},
    event::{Event, Events},
    kind::Kind,
    oci::{ChainId, Descriptor, Digest, Reference},
    pull::{self, Room, grown, plan::Image},
    registry::{Client, Repo},
    resolve::Want,
    source::{Nearest, Source},
};

/// Checks of one image, with something healed between: a layer's files can only be looked
/// at when its blob is whole.
const ROUNDS: usize = 3;
/// How long a lock may take that nobody should hold.
const LOCK: Duration = Duration::from_millis(500);

/// What repairing needs.
#[derive(Debug, Clone, Copy)]
pub struct Repair<'a> {
    pub engine: &'a Engine,
    pub snapshotter: &'a str,
    /// Asked only for what is damaged.
    pub client: &'a Client,
    pub want: &'a Want,
    pub events: &'a Events,
    /// Where the locks of images are.
    pub state_dir: &'a Path,
    /// Value of `io.edgepull.managed` on records that have to be created.
    pub managed_by: &'a str,
    /// Asked before anything is taken away; `None`: nobody is.
    pub room: Option<&'a dyn Room>,
}

/// What became of one image.
#[derive(Debug)]
pub struct Repaired {
    /// What the first check found.
    pub report: Report,
    /// After the last one.
    pub verdict: Verdict,
    /// Bytes that were downloaded.
    pub fetched: u64,
    /// Records of other images that stood on a damaged layer, and were unpacked again.
    pub others: Vec<String>,
    pub warnings: Vec<String>,
    /// Why it is still damaged.
    pub error: Option<Error>,
}

/// What was done in one round.
#[derive(Debug, Default)]
struct Healed {
    fetched: u64,
    others: Vec<String>,
    warnings: Vec<String>,
}

impl Repair<'_> {
    /// Checks the image of a record, and heals it. Fails only if it could not be looked at.
    pub async fn image(
        &self,
        reference: &Reference,
        record: &ImageRecord,
        sound: &mut Sound,
    ) -> Result<Repaired> {
        let target = &record.target;
        let report = recheck(self.engine, self.snapshotter, target, self.want, sound).await?;
        let mut ended = Repaired {
            verdict: report.verdict(),
            report,
            fetched: 0,
            others: Vec::new(),
            warnings: Vec::new(),
            error: None,
        };
        let mut again: Option<Report> = None;
        for _ in 0..ROUNDS {
            let latest = again.as_ref().unwrap_or(&ended.report);
            if latest.verdict() != Verdict::Damaged {
                break;
            }
            let mut healed = Healed::default();
            let result = Box::pin(self.heal(reference, record, latest, &mut healed)).await;
            ended.fetched += healed.fetched;
            ended.others.extend(healed.others);
            ended.warnings.extend(healed.warnings);
            if let Err(error) = result {
                ended.error = Some(
                    error
                        .during(format_args!("cannot repair `{}`", reference.typed()))
                        .reference(reference.typed()),
                );
                return Ok(ended);
            }
            again = Some(recheck(self.engine, self.snapshotter, target, self.want, sound).await?);
        }
        match again.as_ref().map(Report::verdict) {
            None => {}
            Some(Verdict::Damaged) => {
                ended.error = Some(still_damaged(reference, again.as_ref()));
            }
            Some(_) => ended.verdict = Verdict::Repaired,
        }
        Ok(ended)
    }

    async fn heal(
        &self,
        reference: &Reference,
        record: &ImageRecord,
        report: &Report,
        healed: &mut Healed,
    ) -> Result<()> {
        let repo = self.client.repository(reference);
        let choice = match &report.choice {
            Some(choice) => choice.clone(),
            None => self.choose_from_afar(&record.target, &repo).await?,
        };
        let hash = lease_hash(
            self.engine.namespace(),
            self.snapshotter,
            &record.target.digest,
        );
        // As the pull names it: one works on the image, or the other.
        let lock = self.lock(&hash, reference).await?;
        let own = format!("{} repair", self.snapshotter);
        let own = lease_hash(self.engine.namespace(), &own, &record.target.digest);
        let lease = Lease::acquire(self.engine, &own).await?;
        let result = tokio::select! {
            result = self.under_lease(reference, record, report, &choice, &repo, &lease, &hash, lock, healed) => result,
            error = lease.keep() => Err(error),
        };
        let released = lease.release().await;
        result.and(released)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one step of `heal`, apart because the lease is kept beside it"
    )]
    async fn under_lease(
        &self,
        reference: &Reference,
        record: &ImageRecord,
        report: &Report,
        choice: &Choice,
        repo: &Repo,
        lease: &Lease,
        hash: &str,
        lock: ImageLock,
        healed: &mut Healed,
    ) -> Result<()> {
        // An artifact, or what nobody can unpack, has blobs only.
        let image = match Image::new(choice, true) {
            Ok(image) => image,
            Err(_) => Image::new(choice, false)?,
        };
        self.ask_for_room(&image, report).await?;
        self.protect(lease, &image, report).await?;
        let ingest = Ingest {
            lease,
            source: repo,
            repository: Some(reference.repository()),
            events: self.events,
            reference: reference.typed(),
        };
        healed.fetched += self.blobs(&ingest, &image, report).await?;
        // Only now: without the blobs a damaged snapshot is better than none.
        let mut others = Vec::new();
        let mut result = Ok(());
        if let Some(lowest) = report.lowest
            && let Some(step) = image.steps.get(lowest)
        {
            let doomed = self.unused_above(&step.chain, hash).await?;
            others = self.standing_on(&step.chain, record).await?;
            result = self.remove(&doomed).await;
        }
        if result.is_ok() {
            let unpack = image.unpack && (report.unpacked || report.choice.is_none());
            result = self
                .again(reference, record, choice, repo, unpack, lock, healed)
                .await;
        }
        // What stood on the layer is gone, however the rest went.
        self.restore_all(others, healed).await;
        result
    }

    /// Brings back what was taken away of the image itself.
    #[expect(
        clippy::too_many_arguments,
        reason = "one step of `under_lease`, apart because more is to be done when it fails"
    )]
    async fn again(
        &self,
        reference: &Reference,
        record: &ImageRecord,
        choice: &Choice,
        repo: &Repo,
        unpack: bool,
        lock: ImageLock,
        healed: &mut Healed,
    ) -> Result<()> {
        let there = self.engine.image(&record.name).await?;
        if there.is_none_or(|there| there.target.digest != record.target.digest) {
            return Err(Error::new(
                Kind::Unavailable,
                "the image was changed by somebody else meanwhile",
            )
            .hint("run it again"));
        }
        // The pull takes the lock itself.
        drop(lock);
        let outcome = self.pull(reference, record, choice, repo, unpack).await?;
        healed.fetched += outcome.bytes.downloaded;
        healed.warnings.extend(outcome.warnings);
        Ok(())
    }

    async fn restore_all(&self, others: Vec<(ImageRecord, Choice)>, healed: &mut Healed) {
        for (other, choice) in others {
            match self.restore(&other, &choice).await {
                Ok(bytes) => {
                    healed.fetched += bytes;
                    healed.others.push(other.name);
                }
                Err(error) => {
                    healed.warnings.push(format!(
                        "`{}` stands on the same layer and is not unpacked again yet: {}",
                        other.name,
                        error.message()
                    ));
                    // Each of the others would wait as long for it.
                    if error.kind() == Kind::ContainerdUnavailable {
                        break;
                    }
                }
            }
        }
    }

    /// Whether what is damaged fits when it is whole again. What stays as big as it was is
    /// not asked for: it takes the place of what is taken away.
    async fn ask_for_room(&self, image: &Image<'_>, report: &Report) -> Result<()> {
        let Some(room) = self.room else {
            return Ok(());
        };
        let mut need = report.lost;
        let unpacks = report.unpacked || report.choice.is_none();
        let mut again = false;
        for (at, step) in image.steps.iter().enumerate().filter(|_| unpacks) {
            let there = self
                .engine
                .has_snapshot(self.snapshotter, &step.chain)
                .await?;
            again |= !there || report.lowest == Some(at);
            if !there {
                need.unpack = need.unpack.saturating_add(grown(&step.layer));
            }
            // Without its blob it is fetched for that.
            let digest = &step.layer.digest;
            if again
                && !report.wanting.contains(digest)
                && self.engine.blob_info(digest).await?.is_none()
            {
                need.fetch = need.fetch.saturating_add(step.layer.size);
            }
        }
        for layer in &image.manifest.layers {
            need.fetch = need.fetch.saturating_sub(begun(self.engine, layer).await?);
        }
        room.ask(need)
    }

    /// The choice where the store's documents do not tell: from the registry, by digest.
    async fn choose_from_afar(&self, target: &Descriptor, repo: &Repo) -> Result<Choice> {
        let store = StoreSource::new(self.engine.clone());
        let nearest = Nearest {
            near: &store,
            far: repo,
        };
        let root = nearest.document(target).await?;
        below(&root, &nearest, self.want).await
    }

    async fn lock(&self, hash: &str, reference: &Reference) -> Result<ImageLock> {
        let name = pull::lock_name(self.engine.address(), hash);
        let typed = reference.typed();
        ImageLock::acquire(
            self.state_dir,
            &name,
            &format!("repairing {typed}"),
            |owner| {
                self.events.emit(&Event::Warning {
                    reference: typed.to_owned(),
                    message: format!("another edgepull works on this image; waiting ({owner})"),
                });
            },
        )
        .await
    }

    /// Puts everything that is intact under the lease: a document that is deleted holds
    /// nothing any more, nor does a config hold a chain whose top is gone.
    async fn protect(&self, lease: &Lease, image: &Image<'_>, report: &Report) -> Result<()> {
        let documents = image.choice.documents();
        let digests = documents
            .iter()
            .map(|document| &document.descriptor.digest)
            .chain([image.choice.config.digest()])
            .chain(image.manifest.layers.iter().map(|layer| &layer.digest));
        for digest in digests {
            if self.engine.blob_info(digest).await?.is_some() {
                lease.add_blob(digest).await?;
            }
        }
        let sound = report.lowest.unwrap_or(image.steps.len());
        for step in image.steps.iter().take(sound).rev() {
            if self
                .engine
                .has_snapshot(self.snapshotter, &step.chain)
                .await?
            {
                lease.add_snapshot(self.snapshotter, &step.chain).await?;
                break;
            }
        }
        Ok(())
    }

    /// Deletes the damaged blobs and brings them back; bytes that were downloaded.
    async fn blobs(&self, ingest: &Ingest<'_>, image: &Image<'_>, report: &Report) -> Result<u64> {
        let config = &image.manifest.config;
        let documents: Vec<_> = image
            .choice
            .documents()
            .into_iter()
            .map(|document| (&document.descriptor, &document.bytes, gc_children(document)))
            .chain([(config, image.choice.config.bytes(), Labels::new())])
            .collect();
        let mut damaged = Vec::new();
        for document in documents {
            let digest = &document.0.digest;
            // Without a choice it was not said which of them it is.
            let wrong = if report.choice.is_none() {
                self.engine.read_document(digest).await.is_err()
            } else {
                report.wanting.contains(digest)
            };
            if wrong {
                damaged.push(document);
            }
        }
        let layers: Vec<(usize, &Descriptor)> = image
            .manifest
            .layers
            .iter()
            .enumerate()
            .filter(|(_, layer)| report.wanting.contains(&layer.digest))
            .collect();
        if damaged.is_empty() && layers.is_empty() {
            return Ok(0);
        }
        for digest in damaged
            .iter()
            .map(|(descriptor, _, _)| &descriptor.digest)
            .chain(layers.iter().map(|(_, layer)| &layer.digest))
        {
            self.engine.delete_blob(digest).await?;
        }
        // Until its file is gone, too, containerd would take it for what it is asked to write.
        self.engine.collect_garbage().await?;
        let mut fetched = 0;
        for (descriptor, bytes, labels) in damaged {
            let ingested = ingest.bytes(descriptor, bytes, &labels).await?;
            fetched += descriptor.size.saturating_sub(ingested.reused);
        }
        for (at, layer) in layers {
            let labels = image
                .steps
                .get(at)
                .map(|step| (UNCOMPRESSED.to_owned(), step.diff_id.to_string()))
                .into_iter()
                .collect();
            fetched += ingest.blob(layer, &labels).await?.downloaded;
        }
        self.engine.sync_stores(None).await?;
        Ok(fetched)
    }

    /// The snapshot of `chain` and all that stand on it, the highest first; an error if
    /// somebody works with one of them. `lock` is the hash whose lock is held.
    async fn unused_above(&self, chain: &ChainId, lock: &str) -> Result<Vec<String>> {
        let standing = Standing::of(self.engine, self.snapshotter).await?;
        let doomed = standing.above(chain.as_str());
        let mut users = Vec::new();
        for snapshot in &doomed {
            if snapshot.committed {
                // What is no layer is somebody's own: docker keeps one for each container.
                if !is_layer(&snapshot.name) {
                    users.push(format!("snapshot {}", snapshot.name));
                }
                continue;
            }
            match standing.user(&snapshot.name) {
                User::Container(id) => users.push(format!("container {id}")),
                User::Unpack if self.is_left_over(&snapshot.name, lock).await? => {}
                User::Unpack => users.push("an unpack that is under way".to_owned()),
                User::Snapshot if snapshot.name.starts_with(VIEW) => {}
                User::Snapshot => users.push(format!("snapshot {}", snapshot.name)),
            }
        }
        if !users.is_empty() {
            users.sort();
            return Err(Error::new(
                Kind::StoreDamaged,
                "the damaged files are in use, and cannot be replaced below whoever uses them",
            )
            .because(format_args!("used by {}", users.join(", ")))
            .hint("stop and remove what uses the image, and run `edgepull repair` again"));
        }
        Ok(doomed
            .into_iter()
            .map(|snapshot| snapshot.name.clone())
            .collect())
    }

    async fn remove(&self, names: &[String]) -> Result<()> {
        for name in names {
            self.engine
                .remove_snapshot_named(self.snapshotter, name)
                .await?;
        }
        Ok(())
    }

    /// Whether an unfinished unpack is of a pull of ours that is not running any more.
    async fn is_left_over(&self, key: &str, held: &str) -> Result<bool> {
        let Some(hash) = self.engine.holder_of(self.snapshotter, key).await? else {
            return Ok(false);
        };
        if hash == held {
            return Ok(true);
        }
        let name = pull::lock_name(self.engine.address(), &hash);
        let lock = ImageLock::acquire(self.state_dir, &name, "repairing", |_| {});
        match tokio::time::timeout(LOCK, lock).await {
            Ok(lock) => lock.map(|_| true),
            Err(_) => Ok(false),
        }
    }

    /// The other images that are unpacked through `chain`.
    async fn standing_on(
        &self,
        chain: &ChainId,
        record: &ImageRecord,
    ) -> Result<Vec<(ImageRecord, Choice)>> {
        let mut found: Vec<(ImageRecord, Choice)> = Vec::new();
        for other in self.engine.images(Vec::new()).await? {
            let known = |target: &Digest| {
                *target == record.target.digest
                    || found.iter().any(|(one, _)| one.target.digest == *target)
            };
            // An image of several names is unpacked once, and CRI's own name is no reference.
            if other.name.starts_with("sha256:") || known(&other.target.digest) {
                continue;
            }
            let Ok((choice, _)) = choose(self.engine, &other.target, self.want).await else {
                continue;
            };
            let top = match Image::new(&choice, true) {
                Ok(image) if image.steps.iter().any(|step| step.chain == *chain) => {
                    image.top().cloned()
                }
                _ => None,
            };
            if let Some(top) = top
                && self.engine.has_snapshot(self.snapshotter, &top).await?
            {
                found.push((other, choice));
            }
        }
        Ok(found)
    }

    async fn restore(&self, record: &ImageRecord, choice: &Choice) -> Result<u64> {
        let reference = Reference::parse(&record.name).map_err(|error| {
            Error::new(Kind::InvalidReference, "its name is no image reference").because(error)
        })?;
        let repo = self.client.repository(&reference);
        let outcome = self.pull(&reference, record, choice, &repo, true).await?;
        Ok(outcome.bytes.downloaded)
    }

    async fn pull(
        &self,
        reference: &Reference,
        record: &ImageRecord,
        choice: &Choice,
        repo: &Repo,
        unpack: bool,
    ) -> Result<pull::Outcome> {
        let request = pull::Request {
            reference,
            choice,
            more: &[],
            unpack_more: false,
            source: repo,
            from_registry: true,
            snapshotter: Some(self.snapshotter),
            unpack,
            keep_layers: true,
            pin: record.is_pinned(),
            managed_by: self.managed_by,
            room: None,
            // It mends what is here; what it is worth was judged when it came.
            jury: None,
        };
        pull::pull_into(self.engine, &request, self.events, self.state_dir).await
    }
}

fn still_damaged(reference: &Reference, report: Option<&Report>) -> Error {
    let error = Error::new(
        Kind::StoreDamaged,
        format_args!("`{}` is still damaged after it was repaired", reference.typed()),
    )
    .reference(reference.typed())
    .hint("another namespace may hold the same damaged content (`ctr namespaces ls`), or the disk fails: look at the kernel's log");
    match report.and_then(|report| report.damage.first()) {
        Some(first) => error.because(format_args!(
            "{}: {} is wanted, {} is there",
            first.path.as_deref().unwrap_or(first.digest.as_str()),
            first.expected,
            first.found
        )),
        None => error,
    }
}
