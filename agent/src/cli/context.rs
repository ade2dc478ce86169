//! What every verb needs: the host, the engine, the registry client, the references.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use edgepull_platform::{Facts, Host, Selects};

use super::{args::Global, output::Printer};
use crate::{
    asked::Asked,
    config::Config,
    desired::Traits,
    error::{Error, Result},
    kind::Kind,
    layout::{LayoutRef, Local},
    oci::{Document, Reference},
    redact::Secret,
    registry::{Client, Repo},
    session::{Attached, Flags, Session},
    source::Source,
};

/// Shared by the verbs of one call.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) global: Global,
    pub(crate) printer: Printer,
    /// The engine that this call names, whatever is configured.
    pub(crate) named_address: Option<PathBuf>,
    /// The namespace that this call names, whatever is configured.
    pub(crate) named_namespace: Option<String>,
    session: Session,
    client: OnceLock<Client>,
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
    /// `rate` is what all downloads of the call share (bytes a second). Where a flag is not
    /// given, its key in the configuration counts.
    pub(crate) fn new(global: Global, config: Config, printer: Printer, rate: Option<u64>) -> Self {
        let session = Session::new(flags(&global, rate), config.clone());
        let mut global = global;
        let named_address = global.address.clone();
        let named_namespace = global.namespace.clone();
        global.address = global.address.or(config.address);
        global.namespace = global.namespace.or(config.namespace);
        Self {
            global,
            printer,
            named_address,
            named_namespace,
            session,
            client: OnceLock::new(),
        }
    }

    /// The settings and what follows from them.
    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// The host truth: of this machine, or of the recorded one.
    pub(crate) fn host(&self) -> Result<&Host> {
        self.session.host()
    }

    /// What decides which declared images `namespace` of the engine should have.
    pub(crate) fn traits(&self, namespace: &str) -> Result<Traits> {
        Ok(Traits {
            namespace: namespace.to_owned(),
            ..self.session.traits()?
        })
    }

    pub(crate) fn facts(&self) -> Result<Facts> {
        self.session.facts()
    }

    pub(crate) fn client(&self) -> Result<&Client> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = self.session.client()?;
        Ok(self.client.get_or_init(|| client))
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

    /// Connects to the engine, or says why that is not possible.
    pub(crate) async fn attach(&self) -> Result<Attached> {
        self.session.attach(None).await
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
        self.session.selects(attached)
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
            .map(|text| self.session.asked(text, attached, variant_best))
            .collect()
    }
}

/// What the flags say, for a session.
pub(crate) fn flags(global: &Global, rate: Option<u64>) -> Flags {
    Flags {
        address: global.address.clone(),
        namespace: global.namespace.clone(),
        snapshotter: global.snapshotter.clone(),
        hosts_dir: global.hosts_dir.clone(),
        plain_http: global.plain_http,
        authfile: global.authfile.clone(),
        creds: global.creds.clone().map(Secret::new),
        sysroot: global.sysroot.clone(),
        rate,
        runtime_dir: state_dir(),
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
