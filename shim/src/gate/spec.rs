//! What the gate reads of a bundle's `config.json` (runtime-spec `config.md`), and of the process
//! that an exec brings. Null, missing and unknown keys are all the same; a document that is none
//! cannot be judged.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// The right to pass over the modes of files (`capabilities(7)`).
const DAC_OVERRIDE: &str = "CAP_DAC_OVERRIDE";
/// The hook by which docker gives a container its network. It brings no file.
const NETWORK_HOOK: &str = "libnetwork-setkey";
/// By these crun has something else than the kernel start the command.
const OTHER_STARTERS: [&str; 2] = ["run.oci.handler", "module.wasm.image/variant"];

/// A bundle's configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Bundle {
    #[serde(deserialize_with = "or_default")]
    pub(super) process: Option<Process>,
    #[serde(deserialize_with = "or_default")]
    pub(super) mounts: Vec<Mount>,
    #[serde(deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    hooks: BTreeMap<String, Option<Vec<Hook>>>,
    #[serde(deserialize_with = "or_default")]
    linux: Linux,
}

/// A process that is to be started.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Process {
    #[serde(deserialize_with = "or_default")]
    pub(super) args: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) cwd: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) user: User,
    #[serde(deserialize_with = "or_default")]
    capabilities: Capabilities,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct User {
    #[serde(deserialize_with = "or_default")]
    pub(super) uid: u32,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Capabilities {
    #[serde(deserialize_with = "or_default")]
    effective: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Mount {
    #[serde(deserialize_with = "or_default")]
    pub(super) destination: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) source: String,
    #[serde(rename = "type", deserialize_with = "or_default")]
    kind: String,
    #[serde(deserialize_with = "or_default")]
    options: Vec<String>,
    #[serde(rename = "uidMappings", deserialize_with = "or_default")]
    uid_mappings: Vec<serde::de::IgnoredAny>,
    #[serde(rename = "gidMappings", deserialize_with = "or_default")]
    gid_mappings: Vec<serde::de::IgnoredAny>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Hook {
    #[serde(deserialize_with = "or_default")]
    args: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Linux {
    #[serde(rename = "uidMappings", deserialize_with = "or_default")]
    uid_mappings: Vec<serde::de::IgnoredAny>,
    #[serde(deserialize_with = "or_default")]
    namespaces: Vec<Namespace>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Namespace {
    #[serde(rename = "type", deserialize_with = "or_default")]
    kind: String,
}

fn or_default<'de, T, D>(from: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl Bundle {
    /// Reads a `config.json`; `None` where that is none.
    pub fn parse(json: &[u8]) -> Option<Bundle> {
        serde_json::from_slice(json).ok()
    }

    /// An annotation that says something.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        let value = self.annotations.get(name)?.as_str();
        (!value.is_empty()).then_some(value)
    }

    /// The image by its reference, where CRI noted it. A digest alone is no name that a command takes.
    pub fn image(&self) -> Option<&str> {
        self.annotation("io.kubernetes.cri.image-name")
            .filter(|name| !name.starts_with("sha256:"))
    }

    /// Whether it is asked for that no emulator runs it. No annotation allows what the
    /// configuration forbids, so there is nothing else to ask for.
    pub(super) fn forbids_emulation(&self) -> bool {
        self.annotation("io.edgepull.emulation") == Some("never")
    }

    /// Whether files have other owners inside than seen from here, or handlers of its own may be
    /// registered.
    pub(super) fn has_own_users(&self) -> bool {
        let linux = &self.linux;
        !linux.uid_mappings.is_empty() || linux.namespaces.iter().any(|space| space.kind == "user")
    }

    /// Whether something else than the kernel may start the command.
    pub(super) fn is_started_otherwise(&self) -> bool {
        OTHER_STARTERS
            .iter()
            .any(|name| self.annotation(name).is_some())
    }

    /// Whether programs run before it that may put files or mounts into its root.
    pub(super) fn is_furnished(&self) -> bool {
        let before = [
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
        ];
        let hooks = before
            .iter()
            .filter_map(|name| self.hooks.get(*name)?.as_ref());
        hooks
            .flatten()
            .any(|hook| hook.args.first().is_none_or(|name| name != NETWORK_HOOK))
    }
}

impl Process {
    /// Reads the process of an exec; `None` where that is none.
    pub fn parse(json: &[u8]) -> Option<Process> {
        serde_json::from_slice(json).ok()
    }

    /// The value of `PATH`, as far as its directories mean the same to every runtime: some take an
    /// empty or a relative one for the working directory, some leave it out.
    pub(super) fn path(&self) -> Option<String> {
        let mut last_first = self.env.iter().rev();
        let value = last_first.find_map(|variable| variable.strip_prefix("PATH="))?;
        let absolute = value.split(':').take_while(|path| path.starts_with('/'));
        let absolute: Vec<&str> = absolute.collect();
        (!absolute.is_empty()).then(|| absolute.join(":"))
    }

    /// Whether modes of files do not count for it.
    pub(super) fn passes_over_modes(&self) -> bool {
        let effective = &self.capabilities.effective;
        self.user.uid == 0 && effective.iter().any(|name| name == DAC_OVERRIDE)
    }
}

impl Mount {
    /// A directory or a file of the host, which can be looked at; whether mounts below it come along.
    pub(super) fn bound(&self) -> Option<bool> {
        let has = |option: &str| self.options.iter().any(|given| given == option);
        let recursive = has("rbind");
        let bound = self.kind == "bind" || recursive || has("bind");
        (bound && !self.is_idmapped()).then_some(recursive)
    }

    /// A file system of the kernel's that begins without any link: what is mounted below is where
    /// its destination says.
    pub(super) fn is_fresh(&self) -> bool {
        matches!(
            self.kind.as_str(),
            "proc" | "sysfs" | "tmpfs" | "devpts" | "mqueue" | "cgroup" | "cgroup2"
        ) && self.bound().is_none()
            && !self.options.iter().any(|option| option == "tmpcopyup")
    }

    fn is_idmapped(&self) -> bool {
        let by_option =
            |option: &String| option.starts_with("idmap") || option.starts_with("ridmap");
        !self.uid_mappings.is_empty()
            || !self.gid_mappings.is_empty()
            || self.options.iter().any(by_option)
    }
}
