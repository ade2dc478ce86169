//! What this host should have: declared images, read from where they are declared. The
//! rest of the program sees [`Desired`] values and does not know where they came from.

mod declared;
mod directory;
mod only;

use std::{collections::BTreeMap, fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

pub use self::directory::Directory;
use crate::{error::Error, oci::Reference, schedule::Refresh};

/// One image that this host should have: one reference, one platform, one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    pub reference: Reference,
    /// `host`, or a platform as `--platform` takes it, in its one printed form.
    pub platform: String,
    pub namespace: String,
    pub refresh: Refresh,
    pub pin: bool,
    /// Earlier targets of the same reference that are kept for a rollback.
    pub keep_previous: usize,
    pub verify: Verify,
    /// Files that are kept in a directory, instead of an image in an engine.
    pub artifact: Option<Artifact>,
    pub origin: Origin,
}

/// What an image has to show before it is ready, beyond what `[policy] image` asks of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    #[default]
    None,
    /// Its bytes are judged at each refresh, also where the policy goes by labels.
    Static,
    /// The same, and it is run once on this host.
    Run,
}

/// Where the files of an artifact are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    pub dir: PathBuf,
    /// A program and its arguments, called when there are new files; empty: nobody is told.
    pub hook: Vec<String>,
}

/// Where an image is declared, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
}

/// What makes two declarations the same image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// The name of the image record ([`Reference::record_name`]).
    pub reference: String,
    pub platform: String,
    pub namespace: String,
}

/// What of this host decides which declared images it should have, and what holds for an
/// image that does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traits {
    /// The architecture by its OCI name: `arm64`.
    pub arch: String,
    /// The board or machine, where something names it.
    pub model: Option<String>,
    /// `[host] labels`.
    pub labels: BTreeMap<String, String>,
    /// The engine's namespace.
    pub namespace: String,
    /// `[schedule] refresh`.
    pub default_refresh: Refresh,
}

/// Where desired images come from.
pub trait Source: fmt::Debug + Send {
    /// What this host should have now. What cannot be read is a fault, and what was last
    /// read of it still counts.
    fn read(&mut self, host: &Traits) -> Read;
}

/// What was read, in an order that does not change by itself.
#[derive(Debug, Default)]
pub struct Read {
    pub images: Vec<Desired>,
    /// What could not be read, each with its place.
    pub faults: Vec<Error>,
    /// What its owner should know.
    pub notes: Vec<String>,
    /// Everything that is declared was read just now: what is not among `images` is not
    /// desired. Nothing may be removed otherwise.
    pub complete: bool,
}

/// Parts `P,fallback`, as `--platform` takes it, too: the platform, and whether containerd's
/// order of its fallbacks counts.
pub fn parts(platform: &str) -> (&str, bool) {
    match platform.strip_suffix(",fallback") {
        Some(name) => (name, true),
        None => (platform, false),
    }
}

/// Reads the text as a file of either kind, for fuzzing; not an interface.
#[doc(hidden)]
pub fn fuzz(text: &str) {
    drop(declared::toml(text));
    drop(declared::lines(text));
}

impl Desired {
    pub fn key(&self) -> Key {
        Key {
            reference: self.reference.record_name(),
            platform: self.platform.clone(),
            namespace: self.namespace.clone(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`, line {}", self.file.display(), self.line)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}, {})",
            self.reference, self.platform, self.namespace
        )
    }
}
