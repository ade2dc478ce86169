//! `config.toml`: what holds for every call on this host. Read once, each key typed; a
//! key that is not known here is an error, because nothing may be set in vain.
//!
//! `docs/config.toml` shows every key. Flags and their variables count before it.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    error::{Error, Result},
    kind::Kind,
    registry::{Settings, Via, Ways, parse_rate},
    table::{Fault, Node, Reader, Value, document, duration},
};

/// Where it is if nobody says otherwise; it need not exist.
pub const PATH: &str = "/etc/edgepull/config.toml";

/// The most that is read (bytes).
const LARGEST: u64 = 1 << 20;
/// More downloads at once only take memory and each other's time.
const MOST_DOWNLOADS: u64 = 64;
/// Times below a second end transfers that are only slow.
const SHORTEST: Duration = Duration::from_secs(1);

/// The settings; `None` is what a key is without a line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
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
        let path = named.unwrap_or(Path::new(PATH));
        let refuse = |why: &dyn std::fmt::Display| {
            Error::new(
                Kind::Config,
                format_args!("cannot use the configuration `{}`", path.display()),
            )
            .because(why)
        };
        let mut text = Vec::new();
        let read = File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut text));
        match read {
            Err(error) if named.is_none() && error.kind() == ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => {
                return Err(refuse(&error).hint("name another file with --config"));
            }
            Ok(_) if text.len() as u64 > LARGEST => {
                return Err(refuse(&format_args!("it has more than {LARGEST} bytes")));
            }
            Ok(_) => {}
        }
        let text = String::from_utf8(text).map_err(|error| refuse(&error))?;
        Self::parse(&text).map_err(|fault| {
            let key = fault
                .key
                .map_or_else(String::new, |key| format!(", key `{key}`"));
            refuse(&format_args!("line {}{key}: {}", fault.line, fault.what))
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
                "containerd" => Self::containerd,
                "limits" => Self::limits,
                "registry" => Self::registry,
                _ => return Err(unknown(&reader, name, &span)),
            };
            read(&mut config, &reader, &reader.table(name, value)?)?;
        }
        Ok(config)
    }

    fn containerd(&mut self, reader: &Reader<'_>, table: &Node<'_, '_>) -> Result<(), Fault> {
        for (name, span, value) in table.in_order() {
            let key = table.name(name);
            let text = || filled(reader, &key, value);
            match name {
                "address" => self.address = Some(text()?.into()),
                "namespace" => self.namespace = Some(text()?.to_owned()),
                "snapshotter" => self.snapshotter = Some(text()?.to_owned()),
                "hosts_dir" => self.hosts_dir = Some(text()?.into()),
                _ => return Err(unknown(reader, &key, &span)),
            }
        }
        Ok(())
    }

    fn limits(&mut self, reader: &Reader<'_>, table: &Node<'_, '_>) -> Result<(), Fault> {
        for (name, span, value) in table.in_order() {
            let key = table.name(name);
            match name {
                "max_concurrent_downloads" => {
                    let number = reader.integer(&key, value, 1..MOST_DOWNLOADS + 1)?;
                    self.max_concurrent_downloads = usize::try_from(number).ok();
                }
                "rate" => {
                    let rate = parse_rate(filled(reader, &key, value)?).map_err(|error| {
                        let why = error.causes().join(", ");
                        let what = format!("{}: {why}", error.message());
                        reader.fault(&key, &value.span(), what)
                    })?;
                    self.rate = Some(rate);
                }
                _ => return Err(unknown(reader, &key, &span)),
            }
        }
        Ok(())
    }

    fn registry(&mut self, reader: &Reader<'_>, table: &Node<'_, '_>) -> Result<(), Fault> {
        for (name, span, value) in table.in_order() {
            let key = table.name(name);
            match name {
                "connect_timeout" => self.connect_timeout = Some(time(reader, &key, value)?),
                "read_timeout" => self.read_timeout = Some(time(reader, &key, value)?),
                "stall_timeout" => self.stall_timeout = Some(time(reader, &key, value)?),
                "proxy" => self.ways.default = Some(via(reader, &key, value)?),
                // A registry's name, which has settings of its own.
                host if matches!(value.get_ref(), toml::de::DeValue::Table(_)) => {
                    let own = reader.table(&key, value)?;
                    for (name, span, value) in own.in_order() {
                        let key = own.name(name);
                        if name != "proxy" {
                            return Err(unknown(reader, &key, &span));
                        }
                        let via = via(reader, &key, value)?;
                        self.ways.by_host.insert(host.to_ascii_lowercase(), via);
                    }
                }
                _ => return Err(unknown(reader, &key, &span)),
            }
        }
        Ok(())
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
}

fn unknown(reader: &Reader<'_>, key: &str, at: &std::ops::Range<usize>) -> Fault {
    reader.fault(key, at, "there is no such key")
}

fn filled<'v>(reader: &Reader<'_>, key: &str, value: &'v Value<'_>) -> Result<&'v str, Fault> {
    let text = reader.string(key, value)?;
    if text.trim().is_empty() || text.contains('\0') {
        return Err(reader.fault(key, &value.span(), "it is empty; leave the line out"));
    }
    Ok(text)
}

fn time(reader: &Reader<'_>, key: &str, value: &Value<'_>) -> Result<Duration, Fault> {
    duration(reader.string(key, value)?)
        .filter(|time| *time >= SHORTEST)
        .ok_or_else(|| {
            reader.fault(
                key,
                &value.span(),
                "a time like `20s` or `1m30s` is wanted, a second at least",
            )
        })
}

/// The text may hold a password: no message has it.
fn via(reader: &Reader<'_>, key: &str, value: &Value<'_>) -> Result<Via, Fault> {
    Via::parse(reader.string(key, value)?).ok_or_else(|| {
        reader.fault(
            key,
            &value.span(),
            "`direct` or the address of an HTTP proxy like `http://proxy.example:3128` is wanted",
        )
    })
}

/// Reads the text, for fuzzing; not an interface.
#[doc(hidden)]
pub fn fuzz(text: &str) {
    drop(Config::parse(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY_KEY: &str = include_str!("../../docs/config.toml");

    #[test]
    fn the_example_has_every_key_and_is_right() {
        let uncommented: String = EVERY_KEY
            .lines()
            .map(|line| line.strip_prefix("#: ").unwrap_or(line))
            .flat_map(|line| [line, "\n"])
            .collect();
        let config = Config::parse(&uncommented).expect("right");
        let Config {
            address: Some(_),
            namespace: Some(_),
            snapshotter: Some(_),
            hosts_dir: Some(_),
            max_concurrent_downloads: Some(3),
            rate: Some(2_097_152),
            connect_timeout: Some(_),
            read_timeout: Some(_),
            stall_timeout: Some(_),
            ways,
        } = config
        else {
            panic!("a key is missing in docs/config.toml: {config:?}")
        };
        assert_eq!(ways.by_host["registry.example:5000"], Via::Direct);
        assert!(ways.default.is_some());
        // As it is delivered it sets nothing.
        assert_eq!(Config::parse(EVERY_KEY), Ok(Config::default()));
    }

    #[test]
    fn a_fault_has_its_line_and_key_and_no_secret() {
        for (text, line, key) in [
            ("\n[limit]\n", 2, "limit"),
            ("[limits]\nrates = \"1M\"", 2, "limits.rates"),
            ("[limits]\nrate = 5", 2, "limits.rate"),
            ("[limits]\nrate = \"0\"", 2, "limits.rate"),
            (
                "[limits]\nmax_concurrent_downloads = 0",
                2,
                "limits.max_concurrent_downloads",
            ),
            (
                "[limits]\nmax_concurrent_downloads = 65",
                2,
                "limits.max_concurrent_downloads",
            ),
            (
                "[limits]\nmax_concurrent_downloads = \"3\"",
                2,
                "limits.max_concurrent_downloads",
            ),
            ("[containerd]\naddress = \"\"", 2, "containerd.address"),
            (
                "[registry]\nstall_timeout = \"1ms\"",
                2,
                "registry.stall_timeout",
            ),
            (
                "[registry]\nproxy = \"socks5://me:hunter2@a\"",
                2,
                "registry.proxy",
            ),
            (
                "[registry.\"a.example\"]\nmirror = \"b\"",
                2,
                "registry.a.example.mirror",
            ),
            ("registry = 1", 1, "registry"),
        ] {
            let fault = Config::parse(text).expect_err(text);
            assert_eq!(fault.line, line, "{text}");
            assert_eq!(fault.key.as_deref(), Some(key), "{text}");
            assert!(!fault.what.contains("hunter2"), "{}", fault.what);
        }
        assert!(Config::parse("[limits").is_err());
        assert_eq!(Config::parse(""), Ok(Config::default()));
    }

    #[test]
    fn a_named_file_must_exist() {
        let missing = Config::load(Some(Path::new("/no/such/config.toml")));
        let error = missing.expect_err("there is none");
        assert_eq!(error.kind(), Kind::Config);
        assert!(error.message().contains("/no/such/config.toml"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_configuration_or_a_fault(text in "(\\[|\\]|registry|limits|rate|=|\"|\n|1|x|\\.){0,40}") {
            drop(Config::parse(&text));
        }
    }
}
