//! The document of `detect`, and of `GET /v1/host`.

use edgepull_platform::{Host, Platform};
use serde::Serialize;

/// What this host is, what its engine's reader looks up, and which engine that is.
#[derive(Debug, Serialize)]
pub struct HostDocument<'a> {
    #[serde(flatten)]
    pub host: &'a Host,
    pub selects: &'a [Platform],
    pub engine: Option<EngineRow>,
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
