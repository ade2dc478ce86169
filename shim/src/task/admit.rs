//! The gate, asked before the OCI runtime is.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::bundle::{self, Bundle};
use crate::error::{Error, Result};
use crate::gate::tell::{self, Container};
use crate::gate::{self, Decision, Here, Process};
use crate::oci::Runtime;

use super::Inner;

/// How long a look at a root file system may take.
const LIMIT: Duration = Duration::from_secs(2);
/// Looks at a time; where as many hang, nobody is looked at.
const MOST_LOOKS: usize = 8;

impl Inner {
    /// Lets a container through, or says why it cannot run here. With `process`, that one in a
    /// container that runs already, and `rootfs` is its root as it sees it.
    pub(super) async fn admit(
        &self,
        id: &str,
        of: &Bundle,
        rootfs: PathBuf,
        process: Option<&serde_json::Value>,
        runtime: &Runtime,
    ) -> Result<()> {
        // Others add files of their own, or run it in a machine that is not this one.
        if runtime.known().is_none() {
            return Ok(());
        }
        let config = bundle::read(&of.join("config.json"))?;
        // What it cannot read, the runtime is to read.
        let Some(bundle) = gate::Bundle::parse(&config) else {
            return Ok(());
        };
        let process = match process {
            None => None,
            Some(spec) => match Process::parse(spec.to_string().as_bytes()) {
                Some(process) => Some(process),
                None => return Ok(()),
            },
        };
        let bundle = Arc::new(bundle);
        let asked = bundle.clone();
        let policy = self.config.emulation;
        let look = move || {
            let Some(here) = Here::now() else {
                return Decision::Go;
            };
            match &process {
                None => gate::examine(&asked, &rootfs, &here, policy),
                Some(process) => gate::examine_process(&asked, process, &rootfs, &here, policy),
            }
        };
        // A root file system may be on a network that does not answer: what takes long is tried.
        let decision = self.looks.run(MOST_LOOKS, LIMIT, look).await;
        let decision = decision.unwrap_or(Decision::Go);
        let container = Container {
            id,
            namespace: &self.namespace,
            bundle: &bundle,
        };
        match decision {
            Decision::Go => Ok(()),
            Decision::GoWithWarning(emulated) => {
                tell::emulated(&emulated, &container);
                Ok(())
            }
            Decision::Refuse(refusal) => {
                tell::refused(&refusal, &container);
                Err(Error::precondition(refusal.line()))
            }
        }
    }
}
