//! The worker's part for declared artifacts: files instead of an image. No engine is asked.

use super::{Done, Job, Pulled, Rechecked, child::Bench, hook};
use crate::{
    asked::Asked,
    desired::Artifact,
    error::{Error, Result},
    event::Events,
    kind::Kind,
    layout,
    oci::Reference,
    pull::{Bytes, Status, artifact, image},
    registry::Client,
    resolve::Want,
};

/// What is there now.
struct Kept {
    status: Status,
    bytes: Bytes,
    delivery: layout::Delivery,
}

impl Bench {
    /// Brings the files up to date, and has whoever is to be told, told.
    pub(super) async fn deliver(
        &mut self,
        job: &Job,
        declared: &Artifact,
        reference: &Reference,
        events: &Events,
    ) -> Result<Done> {
        let want = self.artifact_want(&job.platform)?;
        let client = self.client()?.clone();
        let ended = Box::pin(keep(&client, declared, reference, &want, events)).await;
        let told = match ended {
            Ok(kept) => tell(job, declared, &kept.delivery).await.map(|()| kept),
            Err(error) => Err(error),
        };
        let notices = client.take_notices();
        match told {
            Ok(kept) => Ok(Done::Pulled(Box::new(Pulled {
                status: kept.status,
                digest: kept.delivery.identity.target_digest,
                manifest: kept.delivery.identity.manifest_digest,
                platform: kept.delivery.identity.platform,
                snapshotter: None,
                bytes: kept.bytes,
                warnings: notices,
            }))),
            Err(error) => {
                let error = notices.into_iter().fold(error, Error::because);
                let host = self.session.host().ok();
                Err(image::named(error, reference, &job.platform, host))
            }
        }
    }

    /// Compares every byte with the record, and mends what is not as it was delivered.
    pub(super) async fn recheck_files(
        &mut self,
        job: &Job,
        declared: &Artifact,
        reference: &Reference,
        events: &Events,
    ) -> Result<Done> {
        let recorded = layout::delivered(&declared.dir).await?;
        if recorded.is_none() || layout::verified(&declared.dir).await?.is_some() {
            // What is not there is fetched, and new then.
            return Ok(Done::Rechecked(Box::default()));
        }
        let done = self.deliver(job, declared, reference, events).await;
        let done = done.map_err(|error| error.with_kind(Kind::StoreDamaged).retry(true))?;
        let fetched = match &done {
            Done::Pulled(pulled) => pulled.bytes.downloaded,
            Done::Rechecked(_) => 0,
        };
        Ok(Done::Rechecked(Box::new(Rechecked {
            repaired: true,
            damage: vec![format!(
                "files in `{}` were not as they were delivered",
                declared.dir.display()
            )],
            unchecked: Vec::new(),
            fetched,
        })))
    }

    fn artifact_want(&self, platform: &str) -> Result<Want> {
        match self.session.asked(platform, None, false)? {
            Asked::One(want) => Ok(*want),
            Asked::All => Err(Error::new(
                Kind::Config,
                "`all` is no platform of a declared artifact",
            )
            .hint("name the one platform that is wanted")),
        }
    }
}

async fn keep(
    client: &Client,
    declared: &Artifact,
    reference: &Reference,
    want: &Want,
    events: &Events,
) -> Result<Kept> {
    let repo = client.repository(reference);
    if let Some(delivery) = artifact::unchanged(reference, &repo, want, &declared.dir).await? {
        return Ok(Kept {
            status: Status::Present,
            bytes: Bytes {
                reused: delivery.files.iter().map(|file| file.size).sum(),
                ..Bytes::default()
            },
            delivery,
        });
    }
    let root = repo.get().await?;
    let choice = image::choose(reference.typed(), root, &repo, want, events).await?;
    let delivered = artifact::deliver(reference, want, &choice, &repo, &declared.dir).await;
    let delivered = delivered.map_err(|error| {
        // Where a unit may write is its administrator's decision.
        let causes = error.causes().join(" ");
        let refused = [
            "Read-only file system",
            "Permission denied",
            "not permitted",
        ];
        if refused.iter().any(|text| causes.contains(text)) {
            error.hint_also(
                "the unit writes only where `ReadWritePaths=` lets it: see edgepull-images(5)",
            )
        } else {
            error
        }
    })?;
    let (status, bytes) = artifact::outcome(&delivered);
    Ok(Kept {
        status,
        bytes,
        delivery: delivered.delivery,
    })
}

/// Once for each change, and again until it was done: what was done is written down after it.
async fn tell(job: &Job, declared: &Artifact, delivery: &layout::Delivery) -> Result<()> {
    if declared.hook.is_empty() || delivery.is_told() {
        return Ok(());
    }
    let hook = hook::Hook {
        words: &declared.hook,
        reference: &job.reference,
        platform: &job.platform,
        dir: &declared.dir,
        delivery,
    };
    hook.run(hook::LIMIT).await?;
    layout::notified(&declared.dir, delivery).await
}
