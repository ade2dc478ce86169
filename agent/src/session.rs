//! What a call of the command line and the daemon have in common: flags and configuration
//! together, the host, how to reach an engine, how to make a registry client.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use edgepull_platform::{Facts, Host, Platform, Selects, detect};

use crate::{
    asked::{Asked, Lookup, Reader, compares_os_features},
    config::Config,
    containerd::Engine,
    desired::Verify,
    engine::{self, Overrides, Profile},
    error::{Error, Result},
    kind::Kind,
    proof::Policy,
    pull::Jury,
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
    pub creds: Option<Secret>,
    /// A recorded host, which is judged instead of this machine.
    pub sysroot: Option<PathBuf>,
    /// Bytes a second for all downloads together.
    pub rate: Option<u64>,
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

/// One namespace of an engine that answered, and what its reader will look up on this host.
#[derive(Debug, Clone)]
pub struct Attached {
    pub engine: Engine,
    pub profile: Profile,
    pub snapshotter: String,
    pub platform: Platform,
}

impl Attached {
    /// How its engine looks images up.
    pub fn lookup(&self) -> Lookup<'_> {
        Lookup {
            platform: &self.platform,
            os_features: compares_os_features(&self.engine),
        }
    }
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

    /// The host truth: of this machine, or of the recorded one; found out once.
    pub fn host(&self) -> Result<&Host> {
        if let Some(host) = self.host.get() {
            return Ok(host);
        }
        let host = detect(&self.facts()?).map_err(|error| {
            Error::new(Kind::Internal, "cannot tell what this host is")
                .caused_by(&error)
                .hint("run `edgepull detect --record DIR` and attach the directory to a report")
        })?;
        Ok(self.host.get_or_init(|| host))
    }

    /// What the host truth is made of.
    pub fn facts(&self) -> Result<Facts> {
        match &self.flags.sysroot {
            Some(dir) => Facts::recorded(dir).map_err(|error| {
                Error::new(
                    Kind::Usage,
                    format_args!("cannot read the recorded host `{}`", dir.display()),
                )
                .caused_by(&error)
                .hint("`edgepull detect --record DIR` writes such a directory")
            }),
            None => Facts::live().map_err(|error| {
                Error::new(Kind::Internal, "cannot read this host's facts")
                    .caused_by(&error)
                    .hint("are /proc and /sys mounted, and may this user read them?")
            }),
        }
    }

    /// Which engine is meant, and its usual namespace.
    pub fn profile(&self) -> Result<Profile> {
        let (flags, config) = (&self.flags, &self.config);
        engine::choose(&Overrides {
            address: flags.address.clone().or_else(|| config.address.clone()),
            namespace: flags.namespace.clone().or_else(|| config.namespace.clone()),
        })
    }

    /// Connects to the engine, or says why that is not possible; without `namespace` to its
    /// usual one.
    pub async fn attach(&self, namespace: Option<&str>) -> Result<Attached> {
        let profile = self.profile()?;
        let namespace = namespace.unwrap_or(&profile.namespace);
        let engine = Engine::connect(&profile.address, namespace, ENGINE_TIMEOUT).await?;
        let wanted = self.flags.snapshotter.as_deref();
        let wanted = wanted.or(self.config.snapshotter.as_deref());
        let snapshotter = engine.snapshotter(wanted)?.name.clone();
        let platform = match engine.platform() {
            Some(platform) => platform.clone(),
            // An engine that does not say is taken to be what the host is.
            None => self.host()?.platform.clone(),
        };
        Ok(Attached {
            engine,
            profile,
            snapshotter,
            platform,
        })
    }

    /// What the store's reader will look up on this host.
    pub fn selects(&self, attached: Option<&Attached>) -> Result<Selects> {
        let reader = Reader {
            host: Some(self.host()?),
            engine: attached.map(Attached::lookup),
            variant_best: false,
        };
        reader.selects()
    }

    /// Whether bytes are looked at before an image counts.
    pub fn judges(&self, verify: Verify) -> bool {
        (self.config.policy != Policy::Off || verify != Verify::None) && self.host().is_ok()
    }

    /// Who judges the bytes of an image, by the policy, or because it was declared so; nobody
    /// where it is not known what this host is.
    pub fn jury<'a>(&'a self, want: &'a Want, verify: Verify) -> Option<Jury<'a>> {
        let policy = match (self.config.policy, verify) {
            (Policy::Off, Verify::Static | Verify::Run) => Policy::Elf,
            (policy, _) => policy,
        };
        Some(Jury {
            host: self.host().ok()?,
            policy,
            emulation: self.config.emulation,
            wanted: want.wanted.platforms(),
        })
    }

    /// What a platform text means here.
    pub fn asked(
        &self,
        text: &str,
        attached: Option<&Attached>,
        variant_best: bool,
    ) -> Result<Asked> {
        let host = match text {
            "host" => Some(self.host()?),
            "all" => None,
            _ => self.host().ok(),
        };
        let reader = Reader {
            host,
            engine: attached.map(Attached::lookup),
            variant_best,
        };
        Asked::read(text, reader)
    }

    /// A registry client with the credentials and `hosts.toml` files as they are now.
    pub fn client(&self) -> Result<Client> {
        let flags = &self.flags;
        let credentials = Credentials::discover(
            flags.creds.as_ref().map(Secret::reveal),
            flags.authfile.as_deref(),
            &Environment::of_process(),
        );
        let settings = Settings {
            plain_http: flags.plain_http,
            hosts_dirs: self.hosts_dirs()?,
            credentials,
            ..self.config.settle(Settings::default())
        };
        Ok(Client::new(Settings {
            rate: flags.rate.or(settings.rate),
            ..settings
        }))
    }

    /// Where `hosts.toml` files are: named, or the engine's. With a recorded host, too,
    /// it is this machine that asks the registry, with its own settings.
    fn hosts_dirs(&self) -> Result<Vec<PathBuf>> {
        let named = self.flags.hosts_dir.as_ref();
        let Some(named) = named.or(self.config.hosts_dir.as_ref()) else {
            return Ok(engine::hosts_dirs(self.profile().ok().as_ref()));
        };
        let dirs: Vec<PathBuf> = std::env::split_paths(named)
            .filter(|dir| !dir.as_os_str().is_empty())
            .collect();
        for dir in &dirs {
            if !dir.is_dir() {
                return Err(Error::new(
                    Kind::Config,
                    format_args!(
                        "`{}`, the place of hosts.toml files, is no folder",
                        dir.display()
                    ),
                )
                .hint("it holds a folder for each registry, with a hosts.toml in it"));
            }
        }
        Ok(dirs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_in_what_is_printed_of_flags() {
        let flags = Flags {
            creds: Some(Secret::new("me:hunter2")),
            ..Flags::default()
        };
        let session = Session::new(flags, Config::default());
        assert!(!format!("{session:?}").contains("hunter2"));
    }

    /// Mirrors that are not asked because of a slip of the pen would go unnoticed.
    #[test]
    fn a_place_of_mirrors_that_is_none_is_told_wherever_it_was_named() {
        let missing = PathBuf::from("/no/such/certs.d");
        let by_flag = Flags {
            hosts_dir: Some(missing.clone()),
            ..Flags::default()
        };
        let by_key = Config {
            hosts_dir: Some(missing),
            ..Config::default()
        };
        for session in [
            Session::new(by_flag, Config::default()),
            Session::new(Flags::default(), by_key),
        ] {
            let error = session.client().map(|_| ()).expect_err("no folder");
            assert_eq!(error.kind(), Kind::Config);
            assert!(error.message().contains("/no/such/certs.d"), "{error}");
        }
    }
}
