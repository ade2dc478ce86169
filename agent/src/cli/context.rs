//! What every verb needs: the host, the engine, the registry client, the references.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use edgepull_platform::{
    Facts, Host, How, Platform, Selects, Wanted, detect, selects_for_engine, selects_without_engine,
};

use super::{args::Global, output::Printer};
use crate::{
    config::Config,
    containerd::Engine,
    engine::{self, Overrides, Profile},
    error::{Error, Result},
    kind::Kind,
    layout::{LayoutRef, Local},
    oci::{Document, Reference},
    registry::{Client, Credentials, Environment, Repo, Settings},
    resolve::{Want, all_platforms},
    source::Source,
};

/// How long a local socket may take to answer.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(10);

/// Shared by the verbs of one call.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) global: Global,
    pub(crate) printer: Printer,
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
        global.address = global.address.or_else(|| config.address.clone());
        global.namespace = global.namespace.or_else(|| config.namespace.clone());
        global.snapshotter = global.snapshotter.or_else(|| config.snapshotter.clone());
        global.hosts_dir = global.hosts_dir.or_else(|| config.hosts_dir.clone());
        Self {
            global,
            printer,
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
        let host = self.host()?;
        Ok(match attached {
            Some(attached) => selects_for_engine(&attached.platform, host),
            None => selects_without_engine(host),
        })
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
        let ignore_features = attached.is_some_and(|a| !compares_os_features(&a.engine));
        let finish = |wanted: Wanted| {
            if ignore_features {
                wanted.ignoring_os_features()
            } else {
                wanted
            }
        };
        Ok(match text {
            "all" => Asked::All,
            "host" => {
                let host = self.host()?.clone();
                let wanted = if variant_best {
                    Wanted::list(
                        host.runs
                            .iter()
                            .filter(|r| r.how != How::Emulated)
                            .map(|r| r.platform.clone())
                            .collect(),
                    )
                } else {
                    Wanted::selects(&self.selects(attached)?)
                };
                Asked::One(Box::new(Want {
                    wanted: finish(wanted),
                    engine: attached.map(|a| a.platform.clone()),
                    host: Some(host),
                    asked: "host".to_owned(),
                    variant_best,
                }))
            }
            _ => {
                let (name, fallback) = match text.rsplit_once(',') {
                    Some((name, "fallback")) => (name, true),
                    _ => (text, false),
                };
                let platform = parse_platform(name)?;
                let wanted = if fallback {
                    Wanted::fallback(&platform)
                } else {
                    Wanted::exact(platform)
                };
                Asked::One(Box::new(Want {
                    wanted: finish(wanted),
                    host: self.host().ok().cloned(),
                    engine: None,
                    asked: text.to_owned(),
                    variant_best,
                }))
            }
        })
    }
}

/// One `--platform`.
#[derive(Debug, Clone)]
pub(crate) enum Asked {
    One(Box<Want>),
    All,
}

impl Asked {
    /// As it was typed.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::One(want) => &want.asked,
            Self::All => "all",
        }
    }
}

/// What one `--platform` means for `root`: itself, or with `all` each platform in it.
pub(crate) async fn wants_of(
    asked: &Asked,
    root: &Document,
    source: &dyn Source,
    host: Option<&Host>,
) -> Result<Vec<Want>> {
    Ok(match asked {
        Asked::One(want) => vec![want.as_ref().clone()],
        Asked::All => all_platforms(root, source)
            .await?
            .iter()
            .map(|platform| exact(platform, host))
            .collect(),
    })
}

/// The exact want for one entry of an index.
fn exact(platform: &Platform, host: Option<&Host>) -> Want {
    Want {
        wanted: Wanted::exact(platform.clone()),
        host: host.cloned(),
        engine: None,
        asked: platform.to_string(),
        variant_best: false,
    }
}

pub(crate) fn parse_platform(text: &str) -> Result<Platform> {
    Platform::parse(text).map_err(|error| {
        Error::new(Kind::Usage, format_args!("`{text}` is no platform"))
            .caused_by(&error)
            .hint("write OS/ARCH[/VARIANT], e.g. linux/arm64, linux/arm/v7, linux/amd64/v3; or `host`, `all`")
    })
}

/// containerd compares `os.features` of index entries from 2.3 on.
fn compares_os_features(engine: &Engine) -> bool {
    engine
        .version_numbers()
        .is_none_or(|version| version >= (2, 3))
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
