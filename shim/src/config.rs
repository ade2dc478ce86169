//! The table `[shim]` of edgepull's configuration. The daemon refuses a file with a fault in it;
//! here nothing but this table is looked at, and a fault never stops a container: it is told, and
//! counts as if nothing were set.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
};

use edgepull_platform::starts;

use crate::journal::{Priority, Record};

/// Where it is if nobody says otherwise; it need not exist.
const PATH: &str = "/etc/edgepull/config.toml";
/// The most that is read (bytes), as of the daemon.
const LARGEST: u64 = 1 << 20;

/// `[shim] emulation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Emulation {
    /// A container that a registered emulator runs is started, and that is told.
    #[default]
    Allow,
    /// It is refused.
    Never,
}

/// `[shim] group`: which containers share a shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Grouping {
    /// Those of a pod.
    #[default]
    Pod,
    /// All of a namespace, up to so many in one: the least memory, and a shim that is killed takes
    /// all of its containers with it.
    Host {
        /// `[shim] group_most`.
        most: u32,
    },
}

/// Containers in one shim of a host, unless `group_most` says otherwise.
const MOST: u32 = 32;

/// What is set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    pub emulation: Emulation,
    pub grouping: Grouping,
}

impl Config {
    /// The file that `EDGEPULL_CONFIG` names, or the usual one.
    pub fn load() -> Config {
        let named = std::env::var_os("EDGEPULL_CONFIG").filter(|path| !path.is_empty());
        let path = named.map_or_else(|| PathBuf::from(PATH), PathBuf::from);
        let (config, fault) = Config::read(&path);
        if let Some(fault) = fault {
            let text = format!(
                "cannot use `[shim]` of the configuration `{}`: {fault}; containers start as if nothing were set there; `edgepull agent --check-config` has the line",
                path.display()
            );
            Record::new(Priority::Warning, &text)
                .field("MESSAGE_ID", starts::CONFIG)
                .field("EDGEPULL_KIND", "config")
                .send();
        }
        config
    }

    /// What the file sets, and what is wrong with it.
    fn read(path: &Path) -> (Config, Option<String>) {
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes));
        match read {
            Err(error) if error.kind() == ErrorKind::NotFound => return (Config::default(), None),
            Err(error) => return (Config::default(), Some(error.to_string())),
            Ok(_) => {}
        }
        if bytes.len() as u64 > LARGEST {
            let fault = format!("it has more than {LARGEST} bytes");
            return (Config::default(), Some(fault));
        }
        match std::str::from_utf8(&bytes) {
            Ok(text) => Config::parse(text),
            Err(error) => (Config::default(), Some(error.to_string())),
        }
    }

    fn parse(text: &str) -> (Config, Option<String>) {
        let mut config = Config::default();
        let document: toml::Table = match text.parse() {
            Ok(document) => document,
            Err(error) => {
                let error: toml::de::Error = error;
                return (config, Some(error.message().to_owned()));
            }
        };
        let shim = match document.get("shim") {
            None => return (config, None),
            Some(toml::Value::Table(shim)) => shim,
            Some(_) => return (config, Some("`shim` is no table".to_owned())),
        };
        let mut fault = None;
        let mut host = false;
        let mut most = MOST;
        for (key, value) in shim {
            match (key.as_str(), value.as_str()) {
                ("emulation", Some("allow")) => config.emulation = Emulation::Allow,
                ("emulation", Some("never")) => config.emulation = Emulation::Never,
                ("emulation", _) => {
                    fault = Some("`shim.emulation` is `allow` or `never`".to_owned());
                }
                ("group", Some("pod")) => host = false,
                ("group", Some("host")) => host = true,
                ("group", _) => fault = Some("`shim.group` is `pod` or `host`".to_owned()),
                ("group_most", _) => match value.as_integer().map(u32::try_from) {
                    Some(Ok(number @ 1..=1000)) => most = number,
                    _ => fault = Some("`shim.group_most` is a number from 1 to 1000".to_owned()),
                },
                (other, _) => {
                    let known: String = other.escape_debug().take(64).collect();
                    fault = Some(format!("there is no key `shim.{known}`"));
                }
            }
        }
        if host {
            config.grouping = Grouping::Host { most };
        }
        (config, fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: Config = Config {
        emulation: Emulation::Never,
        grouping: Grouping::Pod,
    };

    #[test]
    fn what_is_right_counts_whatever_else_is_wrong() {
        for (text, config, fault) in [
            ("", Config::default(), None),
            ("[limits]\nrate = \"2M\"\n", Config::default(), None),
            ("[shim]\n", Config::default(), None),
            ("[shim]\nemulation = \"never\"", NEVER, None),
            ("[shim]\nemulation = \"allow\"", Config::default(), None),
            (
                "[nonsense]\nx = 1\n[shim]\nemulation = \"never\"",
                NEVER,
                None,
            ),
            (
                "[shim]\nemulation = \"never\"\ncolour = 1",
                NEVER,
                Some("no key `shim.colour`"),
            ),
            (
                "[shim]\nemulation = true",
                Config::default(),
                Some("`allow` or `never`"),
            ),
            ("shim = 1", Config::default(), Some("no table")),
            ("[shim", Config::default(), Some("")),
        ] {
            let (found, told) = Config::parse(text);
            assert_eq!(found, config, "{text}");
            assert_eq!(told.is_some(), fault.is_some(), "{text}: {told:?}");
            let told = told.unwrap_or_default();
            assert!(told.contains(fault.unwrap_or_default()), "{text}: {told}");
            assert!(!told.contains('\n'), "{told}");
        }
    }

    #[test]
    fn groups_are_of_a_pod_or_of_the_host() {
        let parse = |text: &str| Config::parse(&format!("[shim]\n{text}"));
        for (text, grouping) in [
            ("group = \"pod\"", Grouping::Pod),
            ("group_most = 7", Grouping::Pod),
            ("group = \"host\"", Grouping::Host { most: MOST }),
            (
                "group_most = 7\ngroup = \"host\"",
                Grouping::Host { most: 7 },
            ),
        ] {
            assert_eq!(
                parse(text),
                (
                    Config {
                        grouping,
                        ..Config::default()
                    },
                    None
                ),
                "{text}"
            );
        }
        for bad in [
            "group = 1",
            "group = \"x\"",
            "group_most = 0",
            "group_most = \"7\"",
        ] {
            assert!(parse(bad).1.is_some(), "{bad}");
        }
    }

    #[test]
    fn a_file_that_is_missing_is_no_fault_and_one_that_cannot_be_read_stops_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config.toml");
        assert_eq!(Config::read(&path), (Config::default(), None));
        std::fs::write(&path, b"[shim]\nemulation = \"never\"\n").expect("written");
        assert_eq!(Config::read(&path), (NEVER, None));
        std::fs::write(&path, b"\xff").expect("written");
        assert!(Config::read(&path).1.is_some());
        std::fs::write(&path, vec![b'#'; 2 << 20]).expect("written");
        assert!(Config::read(&path).1.expect("told").contains("bytes"));
        assert!(Config::read(dir.path()).1.is_some());
    }

    #[test]
    fn every_key_of_the_example_is_known() {
        let text: String = include_str!("../../docs/config.toml")
            .lines()
            .map(|line| line.strip_prefix("#: ").unwrap_or(line))
            .flat_map(|line| [line, "\n"])
            .collect();
        let wanted = Config {
            emulation: Emulation::Never,
            grouping: Grouping::Host { most: MOST },
        };
        assert_eq!(Config::parse(&text), (wanted, None));
    }
}
