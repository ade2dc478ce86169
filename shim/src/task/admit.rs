//! The gate, asked before the OCI runtime is.

use std::path::{Path, PathBuf};
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

impl Inner {
    /// Lets a container through, or says why it cannot run here. With `process`, that one in a
    /// container that runs already.
    pub(super) async fn admit(
        &self,
        id: &str,
        of: &Bundle,
        rootfs: PathBuf,
        process: Option<&serde_json::Value>,
        runtime: &Runtime,
    ) -> Result<()> {
        if !gate::knows(Path::new(runtime.program())) {
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
        let decision = gate::within(LIMIT, move || {
            let Some(here) = Here::now() else {
                return Decision::Go;
            };
            match &process {
                None => gate::examine(&asked, &rootfs, &here, policy),
                Some(process) => gate::examine_process(&asked, process, &rootfs, &here, policy),
            }
        })
        .await;
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
