//! The document of `detect`, and of `GET /v1/host`.

use edgepull_platform::{Host, Platform};
use serde::Serialize;

use crate::session::Attached;

/// What this host is, what its engine's reader looks up, and which engine that is.
#[derive(Debug, Serialize)]
pub struct HostDocument<'a> {
    #[serde(flatten)]
    pub host: &'a Host,
    pub selects: &'a [Platform],
    pub engine: Option<EngineRow>,
}

impl EngineRow {
    pub fn of(attached: &Attached) -> Self {
        Self {
            name: attached.profile.name,
            address: attached.profile.address.display().to_string(),
            namespace: attached.profile.namespace.clone(),
            snapshotter: attached.snapshotter.clone(),
            version: attached.engine.version().to_owned(),
            platform: attached.platform.clone(),
        }
    }
}

/// The engine in it.
#[derive(Debug, Serialize)]
pub struct EngineRow {
    pub name: &'static str,
    pub address: String,
    pub namespace: String,
    pub snapshotter: String,
    pub version: String,
    pub platform: Platform,
}
