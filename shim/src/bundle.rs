//! A container's bundle: the directory that containerd makes, with the specification, and with what
//! the shim leaves there for a `delete` that runs without it.

use std::collections::HashMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use prost::Message;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::wire::Any;
use crate::wire::options::{
    OLD_OPTIONS, OLD_RUNTIME, OPTIONS, OldOptions, OldRuntime, Options, RUNTIME_OPTIONS,
    RuntimeOptions,
};

/// The longest file of a bundle that is read (bytes).
const LONGEST: u64 = 16 << 20;

/// The annotations that put containers into one shim, the first one first.
const GROUPS: [&str; 2] = [
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
];

/// Whether an id can be a part of a path: what containerd allows, and nothing that leads elsewhere.
pub fn check_id(id: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    // The first one also keeps it from being taken for a flag.
    let begins = id.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !begins || id.len() > 255 || !id.chars().all(good) {
        return Err(Error::invalid(format!("`{}` is no id", id.escape_debug())));
    }
    Ok(())
}

/// A bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    path: PathBuf,
}

/// What the shim itself reads of `config.json`; everything else is the OCI runtime's.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Spec {
    pub annotations: HashMap<String, String>,
    pub linux: Option<Linux>,
    pub root: Option<Root>,
    pub hooks: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Root {
    pub path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Linux {
    pub namespaces: Vec<Namespace>,
    #[serde(rename = "cgroupsPath")]
    pub cgroups_path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    #[serde(rename = "type")]
    pub kind: String,
    pub path: String,
}

impl Spec {
    /// What names the containers that share one shim with this one.
    pub fn group(&self) -> Option<&str> {
        let mut named = GROUPS.iter().filter_map(|key| self.annotations.get(*key));
        named.find(|name| !name.is_empty()).map(String::as_str)
    }

    /// Whether programs of somebody else run beside the container's.
    pub fn has_hooks(&self) -> bool {
        self.hooks.as_ref().is_some_and(|hooks| !hooks.is_empty())
    }

    /// Whether the container's processes outlive its init, for lack of a pid namespace that is its own.
    pub fn shares_pids(&self) -> bool {
        let linux = self.linux.as_ref();
        let own = linux.and_then(|linux| linux.namespaces.iter().find(|ns| ns.kind == "pid"));
        own.is_none_or(|namespace| !namespace.path.is_empty())
    }
}

impl Bundle {
    pub fn new(path: impl Into<PathBuf>) -> Bundle {
        Bundle { path: path.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn rootfs(&self) -> PathBuf {
        self.join("rootfs")
    }

    /// The specification.
    pub fn spec(&self) -> Result<Spec> {
        let path = self.join("config.json");
        let bytes = read(&path)?;
        serde_json::from_slice(&bytes)
            .map_err(|error| Error::invalid(format!("{}: {error}", path.display())))
    }

    /// Leaves what a `delete` needs to know.
    pub fn remember(&self, options: &Options) -> Result<()> {
        let json = serde_json::json!({
            "no_pivot_root": options.no_pivot_root,
            "no_new_keyring": options.no_new_keyring,
            "shim_cgroup": options.shim_cgroup,
            "io_uid": options.io_uid,
            "io_gid": options.io_gid,
            "binary_name": options.binary_name,
            "root": options.root,
            "systemd_cgroup": options.systemd_cgroup,
            "criu_image_path": options.criu_image_path,
            "criu_work_path": options.criu_work_path,
        });
        write(&self.join("options.json"), json.to_string().as_bytes())?;
        // Older shims read the runtime's name from here; whoever cleans up may be one.
        write(&self.join("runtime"), options.binary_name.as_bytes())
    }

    /// What was left for a `delete`; the defaults where nothing was.
    pub fn remembered(&self) -> Result<Options> {
        let path = self.join("options.json");
        if !path.exists() {
            let runtime = fs::read_to_string(self.join("runtime")).unwrap_or_default();
            return Ok(Options {
                binary_name: runtime,
                ..Options::default()
            });
        }
        serde_json::from_slice(&read(&path)?)
            .map_err(|error| Error::invalid(format!("{}: {error}", path.display())))
    }
}

/// A whole file, if it is one of a reasonable size.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = |error| Error::io(path.display(), error);
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > LONGEST {
        let message = format!("{} has {length} bytes, more than {LONGEST}", path.display());
        return Err(Error::invalid(message));
    }
    fs::read(path).map_err(failed)
}

/// A whole file at once: whoever reads it sees all of it, or what was there before.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |error| Error::io(path.display(), error);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let part = path.with_file_name(name);
    match fs::remove_file(&part) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part)
        .map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    fs::rename(&part, path).map_err(failed)
}

/// The options of a container, of whichever of the three kinds they are.
pub fn options(any: Option<&Any>) -> Result<Options> {
    let Some(any) = any.filter(|any| !any.value.is_empty()) else {
        return Ok(Options::default());
    };
    let unreadable = |error: &dyn std::fmt::Display| {
        Error::invalid(format!("the runtime's options ({}): {error}", any.type_url))
    };
    if any.is(OPTIONS) {
        return Options::decode(any.value.as_slice()).map_err(|error| unreadable(&error));
    }
    if any.is(OLD_OPTIONS) {
        let old = OldOptions::decode(any.value.as_slice());
        return old.map(Options::from).map_err(|error| unreadable(&error));
    }
    if any.is(OLD_RUNTIME) {
        let old = OldRuntime::decode(any.value.as_slice());
        return old.map(Options::from).map_err(|error| unreadable(&error));
    }
    if RUNTIME_OPTIONS.iter().any(|name| any.is(name)) {
        let envelope =
            RuntimeOptions::decode(any.value.as_slice()).map_err(|error| unreadable(&error))?;
        let body = if !envelope.config_body.is_empty() {
            envelope.config_body
        } else if !envelope.config_path.is_empty() {
            read(Path::new(&envelope.config_path))?
        } else {
            return Ok(Options::default());
        };
        return parse_toml(&body).map_err(|error| unreadable(&error));
    }
    Err(Error::invalid(format!(
        "the runtime's options have the type `{}`; this runtime takes {OPTIONS} and {}",
        any.type_url.escape_debug(),
        RUNTIME_OPTIONS[0],
    )))
}

/// The keys of containerd's configuration, as a table of their own or below `options`.
fn parse_toml(body: &[u8]) -> std::result::Result<Options, String> {
    #[derive(Deserialize)]
    struct Outer {
        options: Options,
    }
    let text = std::str::from_utf8(body).map_err(|error| error.to_string())?;
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| error.message().to_owned())?;
    let value = toml::Value::Table(table.clone());
    if table.get("options").is_some_and(toml::Value::is_table) {
        let outer: Outer = value
            .try_into()
            .map_err(|error| error.message().to_owned())?;
        return Ok(outer.options);
    }
    value
        .try_into()
        .map_err(|error: toml::de::Error| error.message().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn ids_are_names_and_lead_nowhere() {
        for good in ["a", "x-1_2.3", &"a".repeat(255)] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "-x",
            "_",
            "a/b",
            "../x",
            "a b",
            "ä",
            &"a".repeat(256),
        ] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn all_kinds_of_options_are_understood() {
        assert_eq!(options(None).unwrap(), Options::default());
        let crun = Options {
            binary_name: "crun".to_owned(),
            systemd_cgroup: true,
            ..Options::default()
        };
        assert_eq!(options(Some(&Any::new(OPTIONS, &crun))).unwrap(), crun);
        for body in [
            "BinaryName = \"crun\"\nSystemdCgroup = true",
            "[options]\nBinaryName = \"crun\"\nSystemdCgroup = true\nUnknown = 1",
        ] {
            for name in RUNTIME_OPTIONS {
                let envelope = RuntimeOptions {
                    config_body: body.as_bytes().to_vec(),
                    ..RuntimeOptions::default()
                };
                assert_eq!(options(Some(&Any::new(name, &envelope))).unwrap(), crun);
            }
        }
        let old = OldOptions {
            shim_cgroup: "/x".to_owned(),
            no_new_keyring: true,
            ..OldOptions::default()
        };
        let read = options(Some(&Any::new(OLD_OPTIONS, &old))).unwrap();
        assert!(read.no_new_keyring && read.shim_cgroup == "/x");
        let old = OldRuntime {
            runtime: "crun".to_owned(),
            systemd_cgroup: true,
            ..OldRuntime::default()
        };
        assert_eq!(options(Some(&Any::new(OLD_RUNTIME, &old))).unwrap(), crun);
        let error = options(Some(&Any::new("x.Options", &crun))).unwrap_err();
        assert!(error.message().contains("`x.Options`"));
        let broken = RuntimeOptions {
            config_body: b"BinaryName = 3".to_vec(),
            ..RuntimeOptions::default()
        };
        assert!(options(Some(&Any::new(RUNTIME_OPTIONS[0], &broken))).is_err());
    }

    #[test]
    fn what_is_remembered_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::new(dir.path());
        assert_eq!(bundle.remembered().unwrap(), Options::default());
        let options = Options {
            binary_name: "/usr/bin/crun".to_owned(),
            root: "/run/x".to_owned(),
            io_uid: 7,
            ..Options::default()
        };
        bundle.remember(&options).unwrap();
        assert_eq!(bundle.remembered().unwrap(), options);
        assert_eq!(
            fs::read_to_string(bundle.join("runtime")).unwrap(),
            "/usr/bin/crun"
        );
    }

    #[test]
    fn the_specification_tells_the_group_and_the_namespace() {
        let spec: Spec = serde_json::from_str(
            r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"g"},
                "linux":{"namespaces":[{"type":"pid"},{"type":"mount"}]}}"#,
        )
        .unwrap();
        assert_eq!(spec.group(), Some("g"));
        assert!(!spec.shares_pids());
        let shared = r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}"#;
        for text in ["{}", shared] {
            let spec: Spec = serde_json::from_str(text).unwrap();
            assert!(spec.shares_pids());
            assert_eq!(spec.group(), None);
        }
    }
}
