//! Where credentials come from: the list in the documentation, first that has the
//! registry. Files are read when a registry asks, not before, and again when a
//! token is renewed: node agents and helpers rewrite them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::io::AsyncReadExt;

use super::{
    docker_config::{DockerConfig, Login, password},
    helper,
    notices::Notices,
};
use crate::{
    error::{Error, Result},
    kind::Kind,
};

/// A configuration with thousands of registries is far below this.
const MAX_FILE: u64 = 1 << 20;

/// The environment as far as credentials depend on it; a value, so that tests and
/// the daemon decide what it is.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `$REGISTRY_AUTH_FILE`
    pub registry_auth_file: Option<PathBuf>,
    /// `$DOCKER_AUTH_CONFIG`: the configuration itself, not a path.
    pub docker_auth_config: Option<crate::redact::Secret>,
    /// `$CREDENTIALS_DIRECTORY`, set by systemd.
    pub credentials_directory: Option<PathBuf>,
    /// `$DOCKER_CONFIG`: a directory.
    pub docker_config: Option<PathBuf>,
    /// `$HOME`
    pub home: Option<PathBuf>,
    /// `$XDG_RUNTIME_DIR`
    pub runtime_dir: Option<PathBuf>,
    /// edgepull's own file on this machine.
    pub machine: Option<PathBuf>,
    /// kubelet's.
    pub kubelet: Option<PathBuf>,
}

impl Environment {
    /// The environment of this process.
    pub fn of_process() -> Self {
        let path = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        Self {
            registry_auth_file: path("REGISTRY_AUTH_FILE"),
            docker_auth_config: std::env::var("DOCKER_AUTH_CONFIG")
                .ok()
                .filter(|value| !value.is_empty())
                .map(crate::redact::Secret::new),
            credentials_directory: path("CREDENTIALS_DIRECTORY"),
            docker_config: path("DOCKER_CONFIG"),
            home: path("HOME"),
            runtime_dir: path("XDG_RUNTIME_DIR"),
            machine: Some(PathBuf::from("/etc/edgepull/auth.json")),
            kubelet: Some(PathBuf::from("/var/lib/kubelet/config.json")),
        }
    }
}

/// The sources of credentials, in order. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    sources: Arc<[Source]>,
}

#[derive(Debug)]
enum Source {
    /// `--creds`: for every registry of the call.
    Given(Login),
    Text {
        name: &'static str,
        text: crate::redact::Secret,
    },
    File {
        path: PathBuf,
        /// The user named this file; that it is missing is a fault.
        named: bool,
    },
}

/// A login and where it was found.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) login: Login,
    pub(super) source: Arc<str>,
}

impl Credentials {
    /// Nobody: every request is anonymous.
    pub fn none() -> Self {
        Self::default()
    }

    /// One user for every registry that asks.
    pub fn user(user: &str, secret: &str) -> Self {
        Self {
            sources: Arc::new([Source::Given(password(user, secret))]),
        }
    }

    /// One file in docker's format; that it is missing is a fault.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self {
            sources: Arc::new([Source::File {
                path: path.into(),
                named: true,
            }]),
        }
    }

    /// The documented order: `--creds`, `--authfile`, then the environment and the
    /// well-known files.
    pub fn discover(
        creds: Option<&str>,
        authfile: Option<&Path>,
        environment: &Environment,
    ) -> Self {
        let mut sources = Vec::new();
        if let Some(creds) = creds {
            let (user, secret) = creds.split_once(':').unwrap_or((creds, ""));
            sources.push(Source::Given(password(user, secret)));
        }
        let mut file = |path: PathBuf, named: bool| sources.push(Source::File { path, named });
        if let Some(path) = authfile {
            file(path.to_owned(), true);
        }
        if let Some(path) = &environment.registry_auth_file {
            file(path.clone(), true);
        }
        if let Some(text) = &environment.docker_auth_config {
            sources.push(Source::Text {
                name: "$DOCKER_AUTH_CONFIG",
                text: text.clone(),
            });
        }
        let known = [
            environment
                .credentials_directory
                .as_ref()
                .map(|dir| dir.join("registry-auth.json")),
            environment.machine.clone(),
            environment
                .docker_config
                .as_ref()
                .map(|dir| dir.join("config.json")),
            environment
                .home
                .as_ref()
                .map(|dir| dir.join(".docker/config.json")),
            environment
                .runtime_dir
                .as_ref()
                .map(|dir| dir.join("containers/auth.json")),
            environment.kubelet.clone(),
        ];
        sources.extend(
            known
                .into_iter()
                .flatten()
                .map(|path| Source::File { path, named: false }),
        );
        Self {
            sources: sources.into(),
        }
    }

    /// The first login for the repository. A file that nobody named and that cannot be
    /// used is told of and passed over.
    /// What was given for the registries of a call is not for their mirrors.
    pub(super) async fn lookup(
        &self,
        domain: &str,
        path: &str,
        is_mirror: bool,
        notices: &Notices,
    ) -> Result<Option<Found>> {
        for source in self.sources.iter() {
            let found = match source {
                Source::Given(_) if is_mirror => None,
                Source::Given(login) => Some(Found {
                    login: login.clone(),
                    source: "--creds".into(),
                }),
                Source::Text { name, text } => {
                    match DockerConfig::parse(text.reveal().as_bytes()) {
                        Ok(config) => search(&config, name, domain, path, notices).await,
                        Err(fault) => {
                            notices.say(unreadable(name, &fault));
                            None
                        }
                    }
                }
                Source::File { path: file, named } => {
                    let name = file.display().to_string();
                    match read(file).await {
                        Ok(Some(config)) => search(&config, &name, domain, path, notices).await,
                        Ok(None) if *named => {
                            return Err(Error::new(
                                Kind::Config,
                                format_args!("the credentials file `{name}` does not exist"),
                            ));
                        }
                        Ok(None) => None,
                        Err(fault) if *named => {
                            return Err(Error::new(
                                Kind::Config,
                                format_args!("cannot read the credentials file `{name}`"),
                            )
                            .because(fault));
                        }
                        Err(fault) => {
                            notices.say(unreadable(&name, &fault));
                            None
                        }
                    }
                }
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

/// A helper first, as docker does; then what the file itself holds.
async fn search(
    config: &DockerConfig,
    name: &str,
    domain: &str,
    path: &str,
    notices: &Notices,
) -> Option<Found> {
    if let Some(call) = config.helper(domain) {
        match helper::get(&call).await {
            Ok(Some(login)) => {
                return Some(Found {
                    login,
                    source: format!("docker-credential-{} ({name})", call.program).into(),
                });
            }
            Ok(None) => {}
            Err(fault) => notices.say(format!(
                "the credential helper docker-credential-{} ({name}) gave no login: {fault}",
                call.program
            )),
        }
    }
    match config.entry(domain, path) {
        Ok(login) => login.map(|login| Found {
            login,
            source: name.into(),
        }),
        Err(fault) => {
            notices.say(unreadable(name, &fault));
            None
        }
    }
}

fn unreadable(name: &str, fault: &str) -> String {
    format!("the credentials in `{name}` cannot be read: {fault}")
}

/// The file, `None` if there is none.
async fn read(path: &Path) -> Result<Option<DockerConfig>, String> {
    let file = match tokio::fs::File::open(path).await {
        Ok(file) => file,
        // A parent that is a file, too, means that nothing is there.
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error.to_string()),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .await
        .map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("it is larger than {MAX_FILE} bytes"));
    }
    DockerConfig::parse(&bytes).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redact::Secret;

    fn user(found: Option<Found>) -> Option<(String, String)> {
        match found?.clone() {
            Found {
                login: Login::Password { user, .. },
                source,
            } => Some((user, source.to_string())),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn the_first_source_that_has_the_registry_wins() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("inside")).expect("created");
            std::fs::write(&path, text).expect("written");
            path
        };
        let authfile = write("a.json", r#"{"auths":{"a.example":{"username":"file"}}}"#);
        write(
            "d/config.json",
            r#"{"auths":{"a.example":{"username":"docker"},"b.example":{"username":"docker"},"c.example":{"username":"docker"}}}"#,
        );
        write("h/.docker/config.json", "not json");
        let environment = Environment {
            docker_auth_config: Some(Secret::new(
                r#"{"auths":{"b.example":{"username":"text"}}}"#,
            )),
            docker_config: Some(dir.path().join("d")),
            home: Some(dir.path().join("h")),
            ..Environment::default()
        };
        let credentials = Credentials::discover(None, Some(&authfile), &environment);
        for (domain, expected) in [
            ("a.example", Some("file")),
            ("b.example", Some("text")),
            ("c.example", Some("docker")),
            ("d.example", None),
        ] {
            let found = credentials
                .lookup(domain, "x", false, &Notices::default())
                .await
                .expect("readable");
            assert_eq!(user(found).map(|(user, _)| user).as_deref(), expected);
        }
        let given = Credentials::discover(Some("me:hunter2:x"), Some(&authfile), &environment);
        let found = given
            .lookup("a.example", "x", false, &Notices::default())
            .await
            .expect("readable");
        assert_eq!(user(found), Some(("me".to_owned(), "--creds".to_owned())));
        assert!(!format!("{given:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn a_named_file_must_be_there_and_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        let missing = Credentials::file(dir.path().join("none"));
        let error = missing
            .lookup("a", "b", false, &Notices::default())
            .await
            .expect_err("missing");
        assert_eq!(error.kind(), Kind::Config);
        let big = dir.path().join("big");
        std::fs::write(&big, vec![b' '; 2 << 20]).expect("written");
        let error = Credentials::file(big)
            .lookup("a", "b", false, &Notices::default())
            .await
            .expect_err("big");
        assert_eq!(error.kind(), Kind::Config);
    }
}
