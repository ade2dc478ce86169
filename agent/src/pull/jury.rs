//! The bytes of an image against its label, before anybody sees it.

use edgepull_platform::{Host, Platform};

use std::path::Path;

use super::plan::Image;
use crate::{
    clock,
    containerd::{
        Engine,
        labels::{Labels, PROOF},
    },
    error::Result,
    oci::{Digest, ImageConfig},
    proof::{Emulation, Launch, Policy, Promise, Proof, of_snapshot},
};

/// Who judges, and for whom.
#[derive(Debug, Clone, Copy)]
pub struct Jury<'a> {
    pub host: &'a Host,
    pub policy: Policy,
    pub emulation: Emulation,
    /// What was wanted, best first.
    pub wanted: &'a [Platform],
}

/// Whether an image that was judged before is judged again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Not if it was found right in this boot, under what holds now.
    Once,
    Again,
}

/// What was found, where there was something to look at.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    pub proof: Option<Proof>,
    pub warnings: Vec<String>,
}

impl Jury<'_> {
    /// Judges an image that is unpacked. With policy `off`, or an image that was only stored,
    /// nothing is looked at.
    ///
    /// # Errors
    ///
    /// `mislabelled`, `not_runnable`, `platform_missing`; or where containerd fails.
    pub(super) async fn judge(
        &self,
        engine: &Engine,
        snapshotter: &str,
        image: &Image<'_>,
        look: Look,
    ) -> Result<Found> {
        let choice = image.choice;
        let (Some(top), true) = (image.top(), self.policy != Policy::Off) else {
            return match &choice.probation {
                Some(error) => Err(error.as_ref().clone()),
                None => Ok(Found::default()),
            };
        };
        let known = self.what_is_known(snapshotter, image);
        if let Some(known) = &known
            && look == Look::Once
            && choice.probation.is_none()
        {
            let info = engine.blob_info(choice.config.digest()).await?;
            if info.is_some_and(|info| info.labels.get(PROOF) == Some(known)) {
                return Ok(Found::default());
            }
        }
        let proof = match Launch::of(&choice.config) {
            Some(launch) => {
                let layers: Vec<Digest> = image
                    .steps
                    .iter()
                    .map(|step| step.layer.digest.clone())
                    .collect();
                of_snapshot(engine, snapshotter, top, launch, layers, self.host).await?
            }
            None => Proof::unknown(Vec::new(), "what the image starts cannot be read"),
        };
        let config = Platform::from_label(&ImageConfig::parse(&choice.config)?.label);
        let promise = Promise {
            label: choice.platform.as_ref(),
            config: config.as_ref(),
            manifest: &choice.leaf.descriptor.digest,
            host: self.host,
            emulation: self.emulation,
            probation: choice
                .probation
                .as_deref()
                .map(|error| (error, self.wanted)),
        };
        let judged = match self.policy.judge(&proof, &promise) {
            Ok(judged) => judged,
            Err(error) => {
                // If it stays, somebody takes the image for right once more, until the next boot.
                let none = Labels::from([(PROOF.to_owned(), String::new())]);
                if let Err(failed) = engine.label_blob(choice.config.digest(), none).await {
                    tracing::debug!(%failed, "an earlier proof could not be taken back");
                }
                return Err(error.digest(&choice.target().digest));
            }
        };
        if let Some(known) = known
            && judged.warnings.is_empty()
            && proof.verdict.runs()
        {
            let label = Labels::from([(PROOF.to_owned(), known)]);
            engine.label_blob(choice.config.digest(), label).await?;
        }
        Ok(Found {
            proof: Some(proof),
            warnings: judged.warnings,
        })
    }

    /// All that an answer depends on, as one word: another boot, where a power cut may have left
    /// other files and another kernel may run, another host, policy or program ask again. `None`:
    /// it cannot be told which boot this is.
    fn what_is_known(&self, snapshotter: &str, image: &Image<'_>) -> Option<String> {
        let boot = Some(clock::boot(Path::new("/"))).filter(|boot| !boot.is_empty())?;
        let manifest = &image.choice.leaf.descriptor.digest;
        let label = &image.choice.platform;
        let version = env!("CARGO_PKG_VERSION");
        let text = format!(
            "{version} {boot} {snapshotter} {manifest} {label:?} {:?} {:?} {:?}",
            self.policy, self.emulation, self.host
        );
        Some(Digest::of(text.as_bytes()).hex().chars().take(32).collect())
    }
}
