//! What can go wrong, one type for each operation.

use std::path::PathBuf;

/// Why a platform typed by a person was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParsePlatformError {
    /// Nothing was given.
    #[error("a platform is missing")]
    Empty,
    /// More than three components.
    #[error("`{0}` has more than the three parts of os/architecture/variant")]
    TooManyParts(String),
    /// A component is empty or has characters that no platform has.
    #[error("`{0}` is not a platform: `{1}` is not a name")]
    BadPart(String, String),
    /// The part in parentheses is malformed.
    #[error("`{0}` is not a platform: cannot read the version and features in parentheses")]
    BadOsOptions(String),
    /// One component that is neither a known system nor a known architecture.
    #[error("`{0}` names no known architecture")]
    Unknown(String),
    /// Longer than any platform.
    #[error("a platform of {0} bytes is too long")]
    TooLong(usize),
}

/// Why facts about a host could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FactsError {
    /// The directory of a recorded host cannot be read.
    #[error("cannot read the recorded host `{path}`")]
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A directory without a single fact.
    #[error("`{path}` holds no recorded host: neither `probes` nor `proc/cpuinfo`")]
    NoFacts {
        /// The directory.
        path: PathBuf,
    },
    /// A file of a recorded host cannot be written.
    #[error("cannot write `{path}`")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// This system has no `uname`.
    #[error("the kernel does not tell its name")]
    Uname {
        /// What the system said.
        source: std::io::Error,
    },
}

/// Why facts do not make a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DetectError {
    /// Not Linux.
    #[error("hosts running `{0}` are not supported")]
    UnsupportedSystem(String),
    /// Neither `uname` nor the CPU description tells the architecture.
    #[error("nothing tells the architecture of this host")]
    NoArchitecture,
    /// `uname -m` has a name we do not know.
    #[error("unknown machine `{0}`")]
    UnknownMachine(String),
    /// A 32-bit Arm host of unknown variant: guessing would select images that cannot run.
    #[error("nothing tells the variant of this 32-bit Arm host")]
    NoArmVariant,
}
