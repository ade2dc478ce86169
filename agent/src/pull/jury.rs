//! The bytes of an image against its label, before anybody sees it.

use edgepull_platform::{Host, Platform};

use super::plan::Image;
use crate::{
    containerd::Engine,
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
    ) -> Result<Found> {
        let choice = image.choice;
        let (Some(top), true) = (image.top(), self.policy != Policy::Off) else {
            return match &choice.probation {
                Some(error) => Err(error.as_ref().clone()),
                None => Ok(Found::default()),
            };
        };
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
        let judged = self
            .policy
            .judge(&proof, &promise)
            .map_err(|error| error.digest(&choice.target().digest))?;
        Ok(Found {
            proof: Some(proof),
            warnings: judged.warnings,
        })
    }
}
