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

/// What is set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    pub emulation: Emulation,
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
        for (key, value) in shim {
            match (key.as_str(), value.as_str()) {
                ("emulation", Some("allow")) => config.emulation = Emulation::Allow,
                ("emulation", Some("never")) => config.emulation = Emulation::Never,
                ("emulation", _) => {
                    fault = Some("`shim.emulation` is `allow` or `never`".to_owned());
                }
                (other, _) => {
                    let known: String = other.escape_debug().take(64).collect();
                    fault = Some(format!("there is no key `shim.{known}`"));
                }
            }
        }
        (config, fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: Config = Config {
        emulation: Emulation::Never,
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
}
