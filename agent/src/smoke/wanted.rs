//! What an image's config says about running it.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de::IgnoredAny};

use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::Verified,
};

/// The `config` of an image config, as far as it decides how the image is run. Published ones
/// carry `null` for every absent value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Wanted {
    #[serde(deserialize_with = "or_default")]
    pub(super) entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) cmd: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) user: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) working_dir: String,
    #[serde(deserialize_with = "or_default")]
    volumes: BTreeMap<String, Option<IgnoredNothing>>,
}

/// The value of a volume means nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
struct IgnoredNothing;

impl<'de> Deserialize<'de> for IgnoredNothing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// More volumes than anybody declares.
const MAX_VOLUMES: usize = 64;

/// Where the container has something of its own, which a volume must not cover.
const RESERVED: [&str; 6] = ["/", "/proc", "/sys", "/dev", "/tmp", "/run"];

impl Wanted {
    pub(super) fn read(config: &Verified) -> Result<Self> {
        #[derive(Deserialize)]
        struct Whole {
            #[serde(default)]
            config: Option<Wanted>,
        }
        let whole: Whole = serde_json::from_slice(config.bytes()).map_err(|error| {
            Error::new(
                Kind::InvalidContent,
                format_args!("image config {} cannot be read", config.digest()),
            )
            .caused_by(&error)
        })?;
        let wanted = whole.config.unwrap_or_default();
        let texts = [&wanted.entrypoint, &wanted.cmd, &wanted.env];
        if texts.into_iter().flatten().any(|text| text.contains('\0')) {
            return Err(Error::new(
                Kind::InvalidContent,
                format_args!(
                    "image config {} has a zero byte in its command or environment, which no program can be given",
                    config.digest()
                ),
            ));
        }
        Ok(wanted)
    }

    /// What is executed: `command` instead of entrypoint and command of the image, if one is given.
    pub(super) fn args(&self, command: &[String]) -> Vec<String> {
        if command.is_empty() {
            [&self.entrypoint[..], &self.cmd[..]].concat()
        } else {
            command.to_vec()
        }
    }

    /// The declared volumes that can be given, each before those below it: clean absolute paths.
    pub(super) fn volumes(&self) -> Vec<&str> {
        let paths = self.volumes.keys().map(|path| path.trim_end_matches('/'));
        paths
            .filter(|path| {
                path.starts_with('/')
                    && !path.contains('\0')
                    && !path
                        .split('/')
                        .skip(1)
                        .any(|name| matches!(name, "" | "." | ".."))
                    && !RESERVED.iter().any(|reserved| {
                        path == reserved
                            || (*reserved != "/"
                                && path
                                    .strip_prefix(reserved)
                                    .is_some_and(|rest| rest.starts_with('/')))
                    })
            })
            .take(MAX_VOLUMES)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::*;

    fn read(config: &Value) -> Wanted {
        Wanted::read(&Verified::of(Bytes::from(config.to_string()))).expect("a config")
    }

    #[test]
    fn what_is_null_or_absent_is_nothing() {
        for config in [
            json!({}),
            json!({"config": null}),
            json!({"config": {"Entrypoint": null, "Cmd": null, "Env": null, "User": null,
                "WorkingDir": null, "Volumes": null}}),
        ] {
            assert_eq!(read(&config), Wanted::default(), "{config}");
        }
        for wrong in [
            // A word instead of a list; a zero byte.
            json!({"config": {"Cmd": "sh"}}),
            json!({"config": {"Env": ["A=\0"]}}),
        ] {
            let wrong = Verified::of(Bytes::from(wrong.to_string()));
            let error = Wanted::read(&wrong).expect_err("no config");
            assert_eq!(error.kind(), Kind::InvalidContent);
        }
    }

    #[test]
    fn a_command_replaces_entrypoint_and_command() {
        let wanted = read(&json!({"config": {"Entrypoint": ["/a"], "Cmd": ["b"]}}));
        assert_eq!(wanted.args(&[]), ["/a", "b"]);
        assert_eq!(wanted.args(&["c".to_owned()]), ["c"]);
    }

    #[test]
    fn volumes_cover_nothing_that_the_container_needs() {
        let volumes = json!({"/data/deep": {}, "/data": null, "/var/lib/x/": {}, "/": {},
            "/proc/x": {}, "/dev": {}, "/tmp": {}, "relative": {}, "/a/../etc": {}, "//x": {},
            "/process": {}});
        let wanted = read(&json!({"config": {"Volumes": volumes}}));
        assert_eq!(
            wanted.volumes(),
            ["/data", "/data/deep", "/process", "/var/lib/x"]
        );
    }
}
