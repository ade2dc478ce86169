//! An image that is declared to be run before it is called ready: once for each image and host.

use std::{path::Path, time::Duration};

use edgepull_platform::Host;

use crate::{
    choice::Choice,
    containerd::labels::{Labels, RAN},
    error::Result,
    event::Events,
    oci::{Digest, Reference},
    session::Attached,
    smoke::{Image, MEMORY, RUNTIME, Smoke, Stop, Watch},
    source::Source,
};

/// A service is well that lives so long; what ends earlier has to end with 0.
const ALIVE: Duration = Duration::from_secs(10);

/// Where, and for whom.
pub(super) struct Trial<'a> {
    pub(super) attached: &'a Attached,
    pub(super) host: &'a Host,
    pub(super) runtime_dir: &'a Path,
    pub(super) events: &'a Events,
}

impl Trial<'_> {
    /// Runs the image, unless it ran here before. What should be known of it.
    ///
    /// # Errors
    ///
    /// `smoke_failed` or `not_runnable`; or why it could not be tried.
    pub(super) async fn run(
        &self,
        reference: &Reference,
        choice: &Choice,
        source: &dyn Source,
    ) -> Result<Vec<String>> {
        let engine = &self.attached.engine;
        let config = choice.config.digest();
        let here = self.here(choice);
        let info = engine.blob_info(config).await?;
        if info.is_some_and(|info| info.labels.get(RAN) == Some(&here)) {
            return Ok(Vec::new());
        }
        // Nobody asks it to stop but by ending the worker; then the next one sweeps.
        let (_tell, stop) = Stop::new();
        let smoke = Smoke {
            engine,
            snapshotter: &self.attached.snapshotter,
            runtime: RUNTIME,
            host: self.host,
            runtime_dir: self.runtime_dir,
            command: &[],
            watch: Watch::Alive(ALIVE),
            memory: MEMORY,
            events: self.events,
            stop,
        };
        let mut warnings: Vec<String> = smoke
            .sweep()
            .await
            .iter()
            .map(ToString::to_string)
            .collect();
        let image = Image {
            reference: reference.typed(),
            choice,
            source,
            repository: Some(reference.repository()),
        };
        let report = smoke.run(image).await?;
        warnings.extend(report.warnings.iter().cloned());
        if let Some(error) = report.error(reference.typed()) {
            let said = report.output_tail();
            let last = said.lines().rev().find(|line| !line.trim().is_empty());
            let error = match last {
                Some(line) => error.because(format_args!("the last that it printed: {line}")),
                None => error,
            };
            return Err(error.digest(&choice.target().digest).hint(format_args!(
                "`edgepull smoke --alive {}s {}` runs it again and shows what it prints",
                ALIVE.as_secs(),
                reference.typed()
            )));
        }
        let label = Labels::from([(RAN.to_owned(), here)]);
        engine.label_blob(config, label).await?;
        Ok(warnings)
    }

    /// The image and the host as one word.
    fn here(&self, choice: &Choice) -> String {
        let text = format!("{} {:?}", choice.leaf.descriptor.digest, self.host);
        Digest::of(text.as_bytes()).hex().chars().take(32).collect()
    }
}
