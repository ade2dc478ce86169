//! What every verb needs: the host, the engine, the registry client, the references.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use edgepull_platform::{Facts, Host, Platform, Selects, detect};

use super::{args::Global, output::Printer};
use crate::{
    asked::{Asked, Lookup, Reader, compares_os_features},
    config::Config,
    containerd::Engine,
    engine::{self, Overrides, Profile},
    error::{Error, Result},
    kind::Kind,
    layout::{LayoutRef, Local},
    oci::{Document, Reference},
    registry::{Client, Credentials, Environment, Repo, Settings},
    source::Source,
};

/// How long a local socket may take to answer.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(10);

/// Shared by the verbs of one call.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) global: Global,
    pub(crate) printer: Printer,
    /// The namespace that this call names, whatever is configured.
    pub(crate) named_namespace: Option<String>,
    config: Config,
    rate: Option<u64>,
    host: OnceLock<Host>,
    client: OnceLock<Client>,
}

/// An engine that answered, and what its reader will look up on this host.
#[derive(Debug, Clone)]
pub(crate) struct Attached {
    pub(crate) engine: Engine,
    pub(crate) profile: Profile,
    pub(crate) snapshotter: String,
    pub(crate) platform: Platform,
}

impl Attached {
    /// How its engine looks images up.
    fn lookup(&self) -> Lookup<'_> {
        Lookup {
            platform: &self.platform,
            os_features: compares_os_features(&self.engine),
        }
    }
}

/// What a REF on the command line stands for.
#[derive(Debug)]
pub(crate) enum Target {
    Registry { reference: Reference, repo: Repo },
    Local { local: Local, wanted: LayoutRef },
}

impl Target {
    pub(crate) fn source(&self) -> &dyn Source {
        match self {
            Self::Registry { repo, .. } => repo,
            Self::Local { local, .. } => local.source(),
        }
    }

    /// The document that the reference names.
    pub(crate) async fn root(&self) -> Result<Document> {
        match self {
            Self::Registry { repo, .. } => repo.get().await,
            Self::Local { local, wanted } => {
                let descriptor = local.resolve(wanted.selector())?;
                local.source().document(&descriptor).await
            }
        }
    }

    pub(crate) fn typed(&self) -> &str {
        match self {
            Self::Registry { reference, .. } => reference.typed(),
            Self::Local { wanted, .. } => wanted.typed(),
        }
    }

    pub(crate) fn registry(&self) -> Option<&str> {
        match self {
            Self::Registry { reference, .. } => Some(reference.repository().domain()),
            Self::Local { .. } => None,
        }
    }
}

impl Context {
    /// Where a flag is not given, its key in the configuration counts.
    pub(crate) fn new(global: Global, config: Config, printer: Printer) -> Self {
        let mut global = global;
        let named_namespace = global.namespace.clone();
        global.address = global.address.or_else(|| config.address.clone());
        global.namespace = global.namespace.or_else(|| config.namespace.clone());
        global.snapshotter = global.snapshotter.or_else(|| config.snapshotter.clone());
        global.hosts_dir = global.hosts_dir.or_else(|| config.hosts_dir.clone());
        Self {
            global,
            printer,
            named_namespace,
            config,
            rate: None,
            host: OnceLock::new(),
            client: OnceLock::new(),
        }
    }

    /// Bytes a second that all downloads of the call share.
    pub(crate) fn limit_rate(self, rate: Option<u64>) -> Self {
        Self { rate, ..self }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// The host truth: of this machine, or of the recorded one.
    pub(crate) fn host(&self) -> Result<&Host> {
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

    pub(crate) fn facts(&self) -> Result<Facts> {
        match &self.global.sysroot {
            Some(dir) => Facts::recorded(dir).map_err(|error| {
                Error::new(
                    Kind::Usage,
                    format_args!("cannot read the recorded host `{}`", dir.display()),
                )
                .caused_by(&error)
                .hint("`edgepull detect --record DIR` writes such a directory")
            }),
            None => Facts::live().map_err(|error| {
                Error::new(Kind::Internal, "cannot read this host's facts").caused_by(&error)
            }),
        }
    }

    pub(crate) fn client(&self) -> Result<&Client> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let credentials = Credentials::discover(
            self.global.creds.as_deref(),
            self.global.authfile.as_deref(),
            &Environment::of_process(),
        );
        let settings = Settings {
            plain_http: self.global.plain_http,
            hosts_dirs: self.hosts_dirs()?,
            credentials,
            ..self.config.settle(Settings::default())
        };
        let client = Client::new(Settings {
            rate: self.rate.or(settings.rate),
            ..settings
        });
        Ok(self.client.get_or_init(|| client))
    }

    /// Where `hosts.toml` files are: named, or the engine's. With a recorded host, too,
    /// it is this machine that asks the registry, with its own settings.
    fn hosts_dirs(&self) -> Result<Vec<PathBuf>> {
        let Some(named) = &self.global.hosts_dir else {
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

    /// Parses a registry reference.
    pub(crate) fn reference(typed: &str) -> Result<Reference> {
        // It would parse: as the tag of an image of that name on Docker Hub.
        if LayoutRef::parse(typed).is_some() {
            return Err(Error::new(
                Kind::InvalidReference,
                format_args!("`{typed}` is a local store, and a registry reference is needed here"),
            )
            .reference(typed)
            .hint("`export` reads local stores, and `import` puts an archive into containerd"));
        }
        Reference::parse(typed).map_err(|error| {
            Error::new(
                Kind::InvalidReference,
                format_args!("`{typed}` is no image reference"),
            )
            .because(error)
            .reference(typed)
        })
    }

    /// What REF stands for: a registry, a layout directory or an archive.
    pub(crate) async fn target(&self, typed: &str) -> Result<Target> {
        if let Some(parsed) = LayoutRef::parse(typed) {
            let wanted = parsed?;
            let local = Local::open(&wanted).await?;
            return Ok(Target::Local { local, wanted });
        }
        let reference = Self::reference(typed)?;
        let repo = self.client()?.repository(&reference);
        Ok(Target::Registry { reference, repo })
    }

    /// The profile that the flags and the running engines decide.
    pub(crate) fn profile(&self) -> Result<Profile> {
        engine::choose(&Overrides {
            address: self.global.address.clone(),
            namespace: self.global.namespace.clone(),
        })
    }

    /// Connects to the engine, or says why that is not possible.
    pub(crate) async fn attach(&self) -> Result<Attached> {
        let profile = self.profile()?;
        let engine = Engine::connect(&profile.address, &profile.namespace, ENGINE_TIMEOUT).await?;
        let snapshotter = engine
            .snapshotter(self.global.snapshotter.as_deref())?
            .name
            .clone();
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

    /// The engine if one answers. A recorded host has none; a socket that was named
    /// and does not answer is a warning, because looking needs no engine.
    pub(crate) async fn attach_if_alive(&self) -> Result<(Option<Attached>, Option<Error>)> {
        if self.global.sysroot.is_some() {
            return Ok((None, None));
        }
        match self.attach().await {
            Ok(attached) => Ok((Some(attached), None)),
            Err(error) if error.kind() == Kind::ContainerdUnavailable => Ok((None, Some(error))),
            Err(error) => Err(error),
        }
    }

    /// What the store's reader will look up on this host.
    pub(crate) fn selects(&self, attached: Option<&Attached>) -> Result<Selects> {
        let reader = Reader {
            host: Some(self.host()?),
            engine: attached.map(Attached::lookup),
            variant_best: false,
        };
        reader.selects()
    }

    /// `--platform` on `check`, `pull` and `export`: one want for each, `all` left out
    /// (it depends on the index) and reported by the second value.
    pub(crate) fn wants(
        &self,
        platforms: &[String],
        attached: Option<&Attached>,
        variant_best: bool,
    ) -> Result<Vec<Asked>> {
        let host = ["host".to_owned()];
        let list = if platforms.is_empty() {
            &host[..]
        } else {
            platforms
        };
        list.iter()
            .map(|text| self.want(text, attached, variant_best))
            .collect()
    }

    fn want(&self, text: &str, attached: Option<&Attached>, variant_best: bool) -> Result<Asked> {
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
}

/// Where locks and small state live: the machine's directory, else the user's. Whoever
/// writes there looks first whether it is private.
pub(crate) fn state_dir() -> PathBuf {
    use std::os::unix::fs::DirBuilderExt;

    // systemd gives a unit its own (RuntimeDirectory=); of several the first counts.
    let given = std::env::var_os("RUNTIME_DIRECTORY");
    if let Some(first) = given.as_deref().and_then(first_of) {
        return first;
    }
    let system = Path::new("/run/edgepull");
    // Whatever the umask: others find the socket in it, and write nothing.
    if std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(system)
        .is_ok()
    {
        return system.to_path_buf();
    }
    std::env::var_os("XDG_RUNTIME_DIR")
        .map_or_else(std::env::temp_dir, PathBuf::from)
        .join("edgepull")
}

/// The first of a colon-separated list of absolute paths.
fn first_of(list: &std::ffi::OsStr) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt;

    let first = list.as_bytes().split(|byte| *byte == b':').next()?;
    let first = Path::new(std::ffi::OsStr::from_bytes(first));
    first.is_absolute().then(|| first.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_runtime_directory_counts() {
        let first = |text: &str| first_of(text.as_ref());
        assert_eq!(first("/run/a:/run/b"), Some("/run/a".into()));
        assert_eq!(first("/run/a"), Some("/run/a".into()));
        assert_eq!(first(""), None);
        assert_eq!(first("relative"), None);
    }
}
