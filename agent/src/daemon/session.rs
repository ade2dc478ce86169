//! What of a session only a daemon wants.

use std::path::Path;

use super::host_document::{EngineRow, HostDocument};
use crate::{
    asked::Asked,
    clock,
    desired::{Traits, Verify},
    error::{Error, Result},
    kind::Kind,
    resolve::Want,
    schedule,
    session::{Attached, Session},
};

impl Session {
    /// What of the configuration is about time, on this machine.
    pub(super) fn timing(&self) -> schedule::Settings {
        self.config().timing(clock::machine(Path::new("/")))
    }

    /// What decides which declared images this host should have.
    pub fn traits(&self) -> Result<Traits> {
        let host = self.host()?;
        // Without an engine it is not known what it would call its namespace; the usual one
        // stands in until there is one.
        let namespace = self
            .profile()
            .map_or_else(|_| "default".to_owned(), |profile| profile.namespace);
        Ok(Traits {
            arch: host.architecture.clone(),
            model: host.machine.clone(),
            labels: self.config().labels.clone(),
            namespace,
            default_refresh: self.config().default_refresh(),
        })
    }

    /// Connects to a namespace of the engine; `None` is its usual one.
    pub(super) async fn join(&self, namespace: Option<&str>) -> Result<Attached> {
        self.attach(namespace).await.map_err(|error| {
            match error.kind() {
            // Several engines are a question. For somebody who starts a service, the place
            // to answer it is another one than for a call.
            Kind::Usage => error.with_kind(Kind::Config).because(
                "a daemon does not guess: `[containerd] address` in config.toml names the engine",
            ),
            _ => error,
        }
        })
    }

    /// What a declared platform means here.
    pub(super) fn want(&self, attached: &Attached, platform: &str, verify: Verify) -> Result<Want> {
        match self.asked(platform, Some(attached), false)? {
            Asked::One(want) => Ok(Want {
                probation: self.judges(verify),
                ..*want
            }),
            Asked::All => Err(
                Error::new(Kind::Config, "`all` is no platform of a declared image")
                    .hint("name each platform that this host should have"),
            ),
        }
    }

    /// The document of `detect`, as far as the engine is known.
    pub(super) fn host_document(&self, attached: Option<&Attached>) -> Result<String> {
        let selects = self.selects(attached)?;
        let document = HostDocument {
            host: self.host()?,
            selects: &selects.platforms,
            engine: attached.map(EngineRow::of),
        };
        serde_json::to_string(&document).map_err(|error| {
            Error::new(Kind::Internal, "cannot write the host's document")
                .caused_by(&error)
                .hint(super::REPORT)
        })
    }
}
