//! What an image starts: the part of its config that a runtime reads (image-spec config.md).

pub use edgepull_platform::launch::DEFAULT_PATH;
use edgepull_platform::launch::Surroundings;
use serde::Deserialize;

use crate::oci::Verified;

/// The command of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Launch {
    entrypoint: Vec<String>,
    command: Vec<String>,
    around: Surroundings,
    /// Where something may be mounted.
    volumes: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Wire {
    #[serde(default)]
    config: Option<WireConfig>,
}

#[derive(Debug, Default, Deserialize)]
struct WireConfig {
    #[serde(default, rename = "Entrypoint")]
    entrypoint: Option<Vec<String>>,
    #[serde(default, rename = "Cmd")]
    command: Option<Vec<String>>,
    #[serde(default, rename = "Env")]
    environment: Option<Vec<String>>,
    #[serde(default, rename = "WorkingDir")]
    directory: Option<String>,
    #[serde(default, rename = "Volumes")]
    volumes: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Launch {
    /// What `config` starts; `None` where that cannot be read.
    pub fn of(config: &Verified) -> Option<Self> {
        let wire: Wire = serde_json::from_slice(config.bytes()).ok()?;
        let wire = wire.config.unwrap_or_default();
        let path = wire
            .environment
            .iter()
            .flatten()
            .rev()
            .find_map(|variable| variable.strip_prefix("PATH="))
            .unwrap_or(DEFAULT_PATH);
        let directory = wire.directory.unwrap_or_default();
        Some(Self {
            around: Surroundings::new(path, &directory),
            entrypoint: wire.entrypoint.unwrap_or_default(),
            command: wire.command.unwrap_or_default(),
            volumes: wire
                .volumes
                .unwrap_or_default()
                .into_iter()
                .map(|(path, _)| path)
                .collect(),
        })
    }

    /// The same image with another command in the place of its own, entrypoint and all.
    #[must_use]
    pub fn with_command(mut self, words: Vec<String>) -> Self {
        self.entrypoint = words;
        self.command = Vec::new();
        self
    }

    /// All words of the command.
    pub fn words(&self) -> Vec<String> {
        [self.entrypoint.as_slice(), self.command.as_slice()].concat()
    }

    /// The command that the entrypoint is given, where there are both.
    pub fn given(&self) -> Option<&str> {
        let given = self.command.first().filter(|_| !self.entrypoint.is_empty());
        given.map(String::as_str)
    }

    /// What its words mean.
    pub fn surroundings(&self) -> &Surroundings {
        &self.around
    }

    /// Where a runtime looks for `word`, in order.
    pub fn places(&self, word: &str) -> Vec<Vec<u8>> {
        self.around.places(word)
    }

    /// Whether it is below a volume that the image declares.
    pub fn is_volume(&self, path: &[u8]) -> bool {
        let names = |path: &[u8]| -> Vec<Vec<u8>> {
            let names = path.split(|byte| *byte == b'/');
            names
                .filter(|name| !matches!(*name, b"" | b"."))
                .map(<[u8]>::to_vec)
                .collect()
        };
        let path = names(path);
        let mut volumes = self.volumes.iter().map(|volume| names(volume.as_bytes()));
        volumes.any(|volume| !volume.is_empty() && path.starts_with(&volume))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn launch(json: &str) -> Option<Launch> {
        Launch::of(&Verified::of(Bytes::copy_from_slice(json.as_bytes())))
    }

    fn places(launch: &Launch, word: &str) -> Vec<String> {
        let text = |path: Vec<u8>| String::from_utf8(path).expect("text");
        launch.places(word).into_iter().map(text).collect()
    }

    #[test]
    fn entrypoint_and_command_are_one_command() {
        let both = launch(r#"{"config":{"Entrypoint":["/e","x"],"Cmd":["c"]}}"#).expect("read");
        assert_eq!(both.words(), ["/e", "x", "c"]);
        assert_eq!(both.given(), Some("c"));
        let one = launch(r#"{"config":{"Entrypoint":null,"Cmd":["c"]}}"#).expect("read");
        assert_eq!((one.words(), one.given()), (vec!["c".to_owned()], None));
        for none in ["{}", r#"{"config":null}"#, r#"{"config":{"Cmd":[]}}"#] {
            assert!(launch(none).expect(none).words().is_empty());
        }
        assert_eq!(launch(r#"{"config":{"Cmd":"c"}}"#), None);
        let other = both.with_command(vec!["sh".to_owned()]);
        assert_eq!(
            (other.words().join(" ").as_str(), other.given()),
            ("sh", None)
        );
    }

    #[test]
    fn a_word_is_looked_for_as_a_runtime_does() {
        let image = launch(r#"{"config":{"Env":["PATH=/old","PATH=/a:/b:"],"WorkingDir":"srv"}}"#);
        let image = image.expect("read");
        assert_eq!(places(&image, "app"), ["/a/app", "/b/app", "/srv/./app"]);
        assert_eq!(places(&image, "./app"), ["/srv/./app"]);
        assert_eq!(places(&image, "/app"), ["/app"]);
        let plain = launch("{}").expect("read");
        assert_eq!(places(&plain, "sh").len(), 6);
        assert_eq!(places(&plain, "bin/sh"), ["//bin/sh"]);
    }
}
