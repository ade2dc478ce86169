//! What this host should have: declared images, read from where they are declared. The
//! rest of the program sees [`Desired`] values and does not know where they came from.

use std::{fmt, path::PathBuf};

use crate::{oci::Reference, schedule::Refresh};

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
    pub origin: Origin,
}

/// Where an image is declared, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
}

/// What makes two declarations the same image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The name of the image record ([`Reference::record_name`]).
    pub reference: String,
    pub platform: String,
    pub namespace: String,
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

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}, {})",
            self.reference, self.platform, self.namespace
        )
    }
}
