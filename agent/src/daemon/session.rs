//! What the daemon and its workers have in common: the settings, the host, how to reach an
//! engine, how to make a registry client.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use edgepull_platform::{Facts, Host, detect};

use super::host_document::{EngineRow, HostDocument};
use crate::{
    asked::{Asked, Lookup, Reader},
    clock,
    config::Config,
    containerd::Engine,
    desired::Traits,
    engine::{self, Overrides, Profile},
    error::{Error, Result},
    kind::Kind,
    redact::Secret,
    registry::{Client, Credentials, Environment, Settings},
    resolve::Want,
};

/// How long the engine's socket may take to answer.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(10);

/// What flags and their variables said.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    pub address: Option<PathBuf>,
    pub namespace: Option<String>,
    pub snapshotter: Option<String>,
    pub hosts_dir: Option<PathBuf>,
    pub plain_http: bool,
    pub authfile: Option<PathBuf>,
    pub creds: Option<String>,
    /// Where locks and sockets go.
    pub runtime_dir: PathBuf,
}

/// Flags and configuration together; a flag counts before its key.
#[derive(Debug)]
pub struct Session {
    flags: Flags,
    config: Config,
    host: OnceLock<Host>,
}

/// One namespace of an engine that answered.
#[derive(Debug, Clone)]
pub struct Attached {
    pub engine: Engine,
    pub profile: Profile,
    pub snapshotter: String,
}

impl Session {
    pub fn new(flags: Flags, config: Config) -> Self {
        Self {
            flags,
            config,
            host: OnceLock::new(),
        }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Other settings from now on. The host stays what it is.
    pub fn configure(&mut self, config: Config) {
        self.config = config;
    }

    /// Where image locks go.
    pub fn runtime_dir(&self) -> &Path {
        &self.flags.runtime_dir
    }

    /// What this host is; found out once.
    pub fn host(&self) -> Result<&Host> {
        if let Some(host) = self.host.get() {
            return Ok(host);
        }
        let unknown = |error: &dyn std::error::Error| {
            Error::new(Kind::Internal, "cannot tell what this host is").because(error)
        };
        let facts = Facts::live().map_err(|error| unknown(&error))?;
        let host = detect(&facts).map_err(|error| {
            unknown(&error)
                .hint("run `edgepull detect --record DIR` and attach the directory to a report")
        })?;
        Ok(self.host.get_or_init(|| host))
    }

    /// What tells this machine from others, for spreading work over time.
    pub fn machine(&self) -> Secret {
        clock::machine(Path::new("/"))
    }

    /// Which engine is meant, and its usual namespace.
    pub fn profile(&self) -> Result<Profile> {
        let flags = &self.flags;
        let config = &self.config;
        engine::choose(&Overrides {
            address: flags.address.clone().or_else(|| config.address.clone()),
            namespace: flags.namespace.clone().or_else(|| config.namespace.clone()),
        })
        .map_err(|error| match error.kind() {
            // For somebody who starts a service, the place to say it is another one.
            Kind::Usage => error.with_kind(Kind::Config).because(
                "a daemon does not guess: `[containerd] address` in config.toml names the engine",
            ),
            _ => error,
        })
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
            labels: self.config.labels.clone(),
            namespace,
            default_refresh: self.config.default_refresh(),
        })
    }

    /// Connects to the engine; `None` is its usual namespace.
    pub async fn attach(&self, namespace: Option<&str>) -> Result<Attached> {
        let profile = self.profile()?;
        let namespace = namespace.unwrap_or(&profile.namespace);
        let engine = Engine::connect(&profile.address, namespace, ENGINE_TIMEOUT).await?;
        let wanted = self
            .flags
            .snapshotter
            .as_deref()
            .or(self.config.snapshotter.as_deref());
        let snapshotter = engine.snapshotter(wanted)?.name.clone();
        Ok(Attached {
            engine,
            profile,
            snapshotter,
        })
    }

    /// What a declared platform means here.
    pub fn want(&self, attached: &Attached, platform: &str) -> Result<Want> {
        let host = self.host()?;
        let reader = Reader {
            host: Some(host),
            engine: Some(Lookup::of(&attached.engine, &host.platform)),
            variant_best: false,
        };
        match Asked::read(platform, reader)? {
            Asked::One(want) => Ok(*want),
            Asked::All => Err(
                Error::new(Kind::Config, "`all` is no platform of a declared image")
                    .hint("name each platform that this host should have"),
            ),
        }
    }

    /// The document of `detect`, as far as the engine is known.
    pub fn host_document(&self, attached: Option<&Attached>) -> Result<String> {
        let host = self.host()?;
        let reader = Reader {
            host: Some(host),
            engine: attached.map(|attached| Lookup::of(&attached.engine, &host.platform)),
            variant_best: false,
        };
        let selects = reader.selects()?;
        let document = HostDocument {
            host,
            selects: &selects.platforms,
            engine: attached.map(|attached| EngineRow {
                name: attached.profile.name,
                address: attached.profile.address.display().to_string(),
                namespace: attached.profile.namespace.clone(),
                snapshotter: attached.snapshotter.clone(),
                version: attached.engine.version().to_owned(),
                platform: attached.engine.platform().unwrap_or(&host.platform).clone(),
            }),
        };
        serde_json::to_string(&document).map_err(|error| {
            Error::new(Kind::Internal, "cannot write the host's document").caused_by(&error)
        })
    }

    /// A registry client with the credentials and `hosts.toml` files as they are now.
    pub fn client(&self) -> Result<Client> {
        let flags = &self.flags;
        let credentials = Credentials::discover(
            flags.creds.as_deref(),
            flags.authfile.as_deref(),
            &Environment::of_process(),
        );
        Ok(Client::new(Settings {
            plain_http: flags.plain_http,
            hosts_dirs: self.hosts_dirs(),
            credentials,
            ..self.config.settle(Settings::default())
        }))
    }

    fn hosts_dirs(&self) -> Vec<PathBuf> {
        let named = self
            .flags
            .hosts_dir
            .as_ref()
            .or(self.config.hosts_dir.as_ref());
        match named {
            Some(named) => std::env::split_paths(named)
                .filter(|dir| !dir.as_os_str().is_empty())
                .collect(),
            None => engine::hosts_dirs(self.profile().ok().as_ref()),
        }
    }
}
