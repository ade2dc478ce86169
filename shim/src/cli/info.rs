//! `-info`: what this shim and its OCI runtime can do.

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message;

use crate::bundle;
use crate::child::Reaper;
use crate::error::{Error, Result};
use crate::oci::Runtime;
use crate::wire::Any;
use crate::wire::start::{RuntimeInfo, RuntimeVersion};

/// The type of an OCI runtime's own answer.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

pub(super) fn run() -> Result<Vec<u8>> {
    let stdin = super::read_stdin();
    let options = Any::decode(stdin.as_slice())
        .ok()
        .filter(|any| !any.type_url.is_empty());
    let parsed = bundle::options(options.as_ref())?;
    let runtime = Runtime::new(&parsed, "", Path::new("/"));
    let features = super::block_on(async {
        let reaper = Reaper::new().map_err(|error| Error::io("waiting for children", error))?;
        tokio::task::spawn_local(reaper.reap_forever());
        Ok::<_, Error>(runtime.features().await)
    })??;
    let info = RuntimeInfo {
        name: "io.containerd.edgepull.v1".to_owned(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: String::new(),
        }),
        options,
        features: features.map(|value| Any {
            type_url: FEATURES.to_owned(),
            value,
        }),
        annotations: BTreeMap::new(),
    };
    Ok(info.encode_to_vec())
}
