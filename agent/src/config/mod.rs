//! `config.toml`: what holds for every call on this host. Read once, each key typed; a
//! key that is not known here is an error, because nothing may be set in vain.
//!
//! `docs/config.toml` shows every key. Flags and their variables count before it.

mod floor;
mod sections;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{ErrorKind, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

pub use self::floor::DiskFloor;
use crate::{
    error::{Error, Result},
    kind::Kind,
    proof::{Emulation, Policy},
    redact::Secret,
    registry::{Settings, Ways},
    schedule::{self, Backoff, Jitter, Refresh, Window, Windows},
    table::{Fault, Node, Reader, document},
};

/// Where it is if nobody says otherwise; it need not exist.
pub const PATH: &str = "/etc/edgepull/config.toml";

/// The most that is read (bytes).
const LARGEST: u64 = 1 << 20;
/// Asks a registry four times a day, which no limit notices; a moved tag is here the same day.
const REFRESH: Refresh = Refresh::Every(Duration::from_secs(6 * 3600));

/// `[shim]`: nothing here acts on it, but a fault in it is found here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shim {
    /// `emulation`.
    pub emulation: Option<Emulation>,
    /// `group`: whether all containers of a host share a shim, and not those of a pod alone.
    pub by_host: Option<bool>,
    /// `group_most`.
    pub group_most: Option<u64>,
}

/// The settings; `None` is what a key is without a line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// `[host] labels`.
    pub labels: BTreeMap<String, String>,
    /// `[containerd] address`.
    pub address: Option<PathBuf>,
    /// `[containerd] namespace`.
    pub namespace: Option<String>,
    /// `[containerd] snapshotter`.
    pub snapshotter: Option<String>,
    /// `[containerd] hosts_dir`; several with `:` between them.
    pub hosts_dir: Option<PathBuf>,
    /// `[limits] max_concurrent_downloads`.
    pub max_concurrent_downloads: Option<usize>,
    /// `[limits] rate`, bytes a second.
    pub rate: Option<u64>,
    /// `[limits] disk_floor`.
    pub disk_floor: Option<DiskFloor>,
    /// `[schedule] refresh`.
    pub refresh: Option<Refresh>,
    /// `[schedule] jitter`.
    pub jitter: Option<Duration>,
    /// `[schedule] windows`.
    pub windows: Vec<Window>,
    /// `[schedule] prune`.
    pub prune: Option<Refresh>,
    /// `[policy] image`.
    pub policy: Policy,
    /// `[policy] emulation`.
    pub emulation: Emulation,
    /// `[shim]`, which the shim reads by itself.
    pub shim: Shim,
    /// `[metrics] listen`.
    pub metrics_listen: Option<SocketAddr>,
    /// `[metrics] textfile`.
    pub metrics_textfile: Option<PathBuf>,
    /// `[registry] connect_timeout`.
    pub connect_timeout: Option<Duration>,
    /// `[registry] read_timeout`.
    pub read_timeout: Option<Duration>,
    /// `[registry] stall_timeout`.
    pub stall_timeout: Option<Duration>,
    /// `[registry] proxy` and `[registry."HOST"] proxy`.
    pub ways: Ways,
}

impl Config {
    /// The file that was named, which must exist, or the usual one, which need not.
    pub fn load(named: Option<&Path>) -> Result<Self> {
        Self::of_text(&Self::text(named)?, named)
    }

    /// What the file says, empty where it need not exist and does not.
    pub fn text(named: Option<&Path>) -> Result<String> {
        let path = named.unwrap_or(Path::new(PATH));
        let mut text = Vec::new();
        let read = File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut text));
        match read {
            Err(error) if named.is_none() && error.kind() == ErrorKind::NotFound => {
                return Ok(String::new());
            }
            Err(error) => {
                return Err(refuse(path, &error).hint("name another file with --config"));
            }
            Ok(_) if text.len() as u64 > LARGEST => {
                return Err(refuse(
                    path,
                    &format_args!("it has more than {LARGEST} bytes"),
                ));
            }
            Ok(_) => {}
        }
        String::from_utf8(text).map_err(|error| refuse(path, &error))
    }

    /// What a text says that came out of that file.
    pub fn of_text(text: &str, named: Option<&Path>) -> Result<Self> {
        let path = named.unwrap_or(Path::new(PATH));
        Self::parse(text).map_err(|fault| {
            let key = fault
                .key
                .map_or_else(String::new, |key| format!(", key `{key}`"));
            refuse(path, &format_args!("line {}{key}: {}", fault.line, fault.what))
                .hint("docs/config.toml of the source has every key; nothing is done until the file is right")
        })
    }

    /// Reads the text.
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        let document = document(text)?;
        let reader = Reader::new(text);
        let mut config = Self::default();
        for (name, span, value) in Node::root(&document).in_order() {
            let read = match name {
                "host" => Self::host,
                "containerd" => Self::containerd,
                "limits" => Self::limits,
                "schedule" => Self::schedule,
                "policy" => Self::policy,
                "shim" => Self::shim,
                "metrics" => Self::metrics,
                "registry" => Self::registry,
                _ => return Err(sections::unknown(&reader, name, &span)),
            };
            read(&mut config, &reader, &reader.table(name, value)?)?;
        }
        Ok(config)
    }

    /// What of it is about registries, upon `settings`.
    pub fn settle(&self, settings: Settings) -> Settings {
        Settings {
            connect_timeout: self.connect_timeout.unwrap_or(settings.connect_timeout),
            read_timeout: self.read_timeout.unwrap_or(settings.read_timeout),
            stall_timeout: self.stall_timeout.unwrap_or(settings.stall_timeout),
            rate: self.rate.or(settings.rate),
            max_concurrent_downloads: self
                .max_concurrent_downloads
                .unwrap_or(settings.max_concurrent_downloads),
            ways: self.ways.clone(),
            ..settings
        }
    }

    /// What of it is about time, on this machine ([`crate::clock::machine`]).
    pub fn timing(&self, machine: Secret) -> schedule::Settings {
        let jitter = Jitter::new(machine, self.jitter);
        schedule::Settings {
            windows: Windows::new(self.windows.clone()).spread(&jitter),
            jitter,
            backoff: Backoff::default(),
        }
    }

    /// How often an image is refreshed that does not say.
    pub fn default_refresh(&self) -> Refresh {
        self.refresh.unwrap_or(REFRESH)
    }

    /// After how long what is no longer desired is removed; usually never.
    pub fn prune_after(&self) -> Option<Duration> {
        match self.prune {
            None | Some(Refresh::Never) => None,
            Some(Refresh::Every(after)) => Some(after),
        }
    }

    /// What stays free on the disk of the images.
    pub fn free_floor(&self) -> DiskFloor {
        self.disk_floor.unwrap_or_default()
    }
}

fn refuse(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::new(
        Kind::Config,
        format_args!("cannot use the configuration `{}`", path.display()),
    )
    .because(why)
}

/// Reads the text, for fuzzing; not an interface.
#[doc(hidden)]
pub fn fuzz(text: &str) {
    drop(Config::parse(text));
}

#[cfg(test)]
mod tests;
