//! What a platform text means: `host`, `P`, `P,fallback` or `all`, as `--platform` takes it
//! and as an image is declared with it, for one host and the engine on it.

use edgepull_platform::{
    Host, How, Platform, Selects, Wanted, selects_for_engine, selects_without_engine,
};

use crate::{
    containerd::Engine,
    desired,
    error::{Error, Result},
    kind::Kind,
    oci::Document,
    resolve::{Want, all_platforms},
    source::Source,
};

/// A platform text that was read.
#[derive(Debug, Clone)]
pub enum Asked {
    One(Box<Want>),
    /// Every image of the reference; which ones, its index says ([`wants_of`]).
    All,
}

/// For whom a text is read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reader<'a> {
    /// The host that the image is for. Only `host` cannot do without it.
    pub host: Option<&'a Host>,
    /// The engine whose reader looks the image up in the store; `None` where nobody does.
    pub engine: Option<Lookup<'a>>,
    /// `--variant best`: what the host runs best, even where the reader looks elsewhere.
    pub variant_best: bool,
}

/// How an engine looks an image up.
#[derive(Debug, Clone, Copy)]
pub struct Lookup<'a> {
    /// The platform that it looks for.
    pub platform: &'a Platform,
    /// Whether it compares `os.features` of index entries.
    pub os_features: bool,
}

impl<'a> Lookup<'a> {
    /// How `engine` does it. One that does not say is taken to be what the host is.
    pub fn of(engine: &'a Engine, host: &'a Platform) -> Self {
        Self {
            platform: engine.platform().unwrap_or(host),
            os_features: compares_os_features(engine),
        }
    }
}

/// containerd compares `os.features` of index entries from 2.3 on.
pub fn compares_os_features(engine: &Engine) -> bool {
    engine
        .version_numbers()
        .is_none_or(|version| version >= (2, 3))
}

impl Asked {
    /// Reads `text` for `reader`.
    pub fn read(text: &str, reader: Reader<'_>) -> Result<Self> {
        Ok(match text {
            "all" => Self::All,
            "host" => Self::One(Box::new(reader.host()?)),
            _ => Self::One(Box::new(reader.platform(text)?)),
        })
    }

    /// As it was typed.
    pub fn text(&self) -> &str {
        match self {
            Self::One(want) => &want.asked,
            Self::All => "all",
        }
    }
}

impl Reader<'_> {
    /// What the store's reader will look up on this host.
    pub fn selects(&self) -> Result<Selects> {
        let host = self.known_host()?;
        Ok(match self.engine {
            Some(engine) => selects_for_engine(engine.platform, host),
            None => selects_without_engine(host),
        })
    }

    fn known_host(&self) -> Result<&Host> {
        self.host
            .ok_or_else(|| Error::new(Kind::Internal, "it is not known what this host is"))
    }

    fn host(&self) -> Result<Want> {
        let host = self.known_host()?;
        let wanted = if self.variant_best {
            Wanted::list(
                host.runs
                    .iter()
                    .filter(|r| r.how != How::Emulated)
                    .map(|r| r.platform.clone())
                    .collect(),
            )
        } else {
            Wanted::selects(&self.selects()?)
        };
        Ok(Want {
            wanted: self.finish(wanted),
            engine: self.engine.map(|engine| engine.platform.clone()),
            host: Some(host.clone()),
            asked: "host".to_owned(),
            variant_best: self.variant_best,
            probation: false,
        })
    }

    fn platform(&self, text: &str) -> Result<Want> {
        let (name, fallback) = desired::parts(text);
        let platform = parse_platform(name)?;
        let wanted = if fallback {
            Wanted::fallback(&platform)
        } else {
            Wanted::exact(platform)
        };
        Ok(Want {
            wanted: self.finish(wanted),
            host: self.host.cloned(),
            engine: None,
            asked: text.to_owned(),
            variant_best: self.variant_best,
            probation: false,
        })
    }

    fn finish(&self, wanted: Wanted) -> Wanted {
        if self.engine.is_some_and(|engine| !engine.os_features) {
            wanted.ignoring_os_features()
        } else {
            wanted
        }
    }
}

/// What one platform text means for `root`: itself, or with `all` each platform in it.
pub async fn wants_of(
    asked: &Asked,
    root: &Document,
    source: &dyn Source,
    host: Option<&Host>,
) -> Result<Vec<Want>> {
    Ok(match asked {
        Asked::One(want) => vec![want.as_ref().clone()],
        Asked::All => all_platforms(root, source)
            .await?
            .iter()
            .map(|platform| exact(platform, host))
            .collect(),
    })
}

/// The exact want for one entry of an index.
fn exact(platform: &Platform, host: Option<&Host>) -> Want {
    Want {
        wanted: Wanted::exact(platform.clone()),
        host: host.cloned(),
        engine: None,
        asked: platform.to_string(),
        variant_best: false,
        probation: false,
    }
}

/// A platform as a user writes it.
pub fn parse_platform(text: &str) -> Result<Platform> {
    Platform::parse(text).map_err(|error| {
        Error::new(Kind::Usage, format_args!("`{text}` is no platform"))
            .caused_by(&error)
            .hint("write OS/ARCH[/VARIANT], e.g. linux/arm64, linux/arm/v7, linux/amd64/v3; or `host`, `all`")
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use edgepull_platform::{Facts, detect};

    use super::*;

    fn pi4() -> Host {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../platform/tests/data/hosts");
        detect(&Facts::recorded(&data.join("pi4-armhf-on-64")).expect("recorded")).expect("a host")
    }

    fn wanted(text: &str, reader: Reader<'_>) -> Vec<String> {
        match Asked::read(text, reader).expect("a platform") {
            Asked::One(want) => {
                assert_eq!(want.asked, text);
                want.wanted
                    .platforms()
                    .iter()
                    .map(ToString::to_string)
                    .collect()
            }
            Asked::All => vec!["all".to_owned()],
        }
    }

    #[test]
    fn each_text_has_its_meaning() {
        let host = pi4();
        let arm = Platform::parse("linux/arm/v7").expect("a platform");
        let alone = Reader {
            host: Some(&host),
            ..Reader::default()
        };
        let engine = Reader {
            engine: Some(Lookup {
                platform: &arm,
                os_features: true,
            }),
            ..alone
        };
        let best = Reader {
            variant_best: true,
            ..engine
        };
        let nobody = Reader::default();
        for (text, reader, means) in [
            (
                "host",
                alone,
                "linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5",
            ),
            ("host", engine, "linux/arm/v7 linux/arm/v6 linux/arm/v5"),
            (
                "host",
                best,
                "linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5",
            ),
            ("aarch64", engine, "linux/arm64"),
            ("linux/arm/v7", nobody, "linux/arm/v7"),
            (
                "linux/arm/v7,fallback",
                nobody,
                "linux/arm/v7 linux/arm/v6 linux/arm/v5",
            ),
            ("all", nobody, "all"),
        ] {
            assert_eq!(
                wanted(text, reader).join(" "),
                means,
                "{text} for {reader:?}"
            );
        }
        for text in ["", "linux/", "linux/arm64,", "linux/arm64,other"] {
            let error = Asked::read(text, alone).expect_err("no platform");
            assert_eq!(error.kind(), Kind::Usage, "{text}");
        }
        let error = Asked::read("host", nobody).expect_err("which host");
        assert_eq!(error.kind(), Kind::Internal);
    }

    #[test]
    fn only_host_asks_the_engine() {
        let host = pi4();
        let arm = Platform::parse("linux/arm/v7").expect("a platform");
        let reader = Reader {
            host: Some(&host),
            engine: Some(Lookup {
                platform: &arm,
                os_features: false,
            }),
            variant_best: false,
        };
        for (text, engine) in [("host", Some(&arm)), ("linux/arm64", None)] {
            let Asked::One(want) = Asked::read(text, reader).expect("a platform") else {
                panic!("one platform");
            };
            assert_eq!(want.engine.as_ref(), engine, "{text}");
            assert!(want.host.is_some(), "{text}");
        }
    }
}
