//! The closed list of failure kinds. One kind drives the exit code, the retry
//! decision, the metric label and the report field; each by an exhaustive
//! match, so that a new kind does not compile before all of them are decided.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What went wrong, as users, scripts and dashboards know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A fault of edgepull itself.
    Internal,
    /// The command line is wrong.
    Usage,
    /// A configuration file is wrong.
    Config,
    /// A reference does not parse.
    InvalidReference,
    /// The reference offers nothing that this host (or `--platform`) can take.
    PlatformMissing,
    /// The right machine, but it cannot run here (pages, ISA, loader, empty file).
    NotRunnable,
    /// The label promises one machine, the bytes are for another.
    Mislabelled,
    /// The registry refuses: 401, 403, no credentials.
    Unauthorized,
    /// No such repository, tag, digest or image record.
    NotFound,
    /// The registry asks to slow down (429).
    RateLimited,
    /// Network, DNS, TLS, 5xx: no usable answer.
    Unavailable,
    /// Wrong digest, size or format; a hostile layer.
    InvalidContent,
    /// Understood, but not supported: schema 1, a media type, a version.
    Unsupported,
    /// The store's file system is full.
    NoSpace,
    /// The store lost or damaged something it says it has.
    StoreDamaged,
    /// containerd does not answer.
    ContainerdUnavailable,
    /// The edgepull daemon does not answer.
    AgentUnavailable,
    /// A time limit was reached.
    Timeout,
    /// Stopped by a signal.
    Cancelled,
}

impl Kind {
    /// Every kind, in the order of "worst first" used for the exit code of
    /// several results; those that end before any work come last but one.
    pub const ALL: [Self; 19] = [
        Self::Cancelled,
        Self::Internal,
        Self::StoreDamaged,
        Self::NoSpace,
        Self::ContainerdUnavailable,
        Self::AgentUnavailable,
        Self::InvalidContent,
        Self::Unsupported,
        Self::Unauthorized,
        Self::Unavailable,
        Self::RateLimited,
        Self::Timeout,
        Self::NotFound,
        Self::Mislabelled,
        Self::NotRunnable,
        Self::PlatformMissing,
        Self::InvalidReference,
        Self::Config,
        Self::Usage,
    ];

    /// The process exit code.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Internal => 1,
            Self::Usage | Self::Config | Self::InvalidReference => 2,
            Self::PlatformMissing => 3,
            Self::NotRunnable => 10,
            Self::Mislabelled => 11,
            Self::Unauthorized => 20,
            Self::NotFound => 21,
            Self::RateLimited => 22,
            Self::Unavailable => 23,
            Self::InvalidContent => 24,
            Self::Unsupported => 25,
            Self::NoSpace => 30,
            Self::StoreDamaged => 31,
            Self::ContainerdUnavailable => 40,
            Self::AgentUnavailable => 41,
            Self::Timeout => 124,
            Self::Cancelled => 130,
        }
    }

    /// The name in JSON, in metric labels and in the journal.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Usage => "usage",
            Self::Config => "config",
            Self::InvalidReference => "invalid_reference",
            Self::PlatformMissing => "platform_missing",
            Self::NotRunnable => "not_runnable",
            Self::Mislabelled => "mislabelled",
            Self::Unauthorized => "unauthorized",
            Self::NotFound => "not_found",
            Self::RateLimited => "rate_limited",
            Self::Unavailable => "unavailable",
            Self::InvalidContent => "invalid_content",
            Self::Unsupported => "unsupported",
            Self::NoSpace => "no_space",
            Self::StoreDamaged => "store_damaged",
            Self::ContainerdUnavailable => "containerd_unavailable",
            Self::AgentUnavailable => "agent_unavailable",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
        }
    }

    /// The kind of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether the same call may succeed later without anybody changing anything.
    pub const fn retryable(self) -> bool {
        match self {
            Self::RateLimited
            | Self::Unavailable
            | Self::NoSpace
            | Self::ContainerdUnavailable
            | Self::AgentUnavailable
            | Self::Timeout
            | Self::Cancelled => true,
            Self::Internal
            | Self::Usage
            | Self::Config
            | Self::InvalidReference
            | Self::PlatformMissing
            | Self::NotRunnable
            | Self::Mislabelled
            | Self::Unauthorized
            | Self::NotFound
            | Self::InvalidContent
            | Self::Unsupported
            | Self::StoreDamaged => false,
        }
    }

    /// The worst of several, which becomes the exit code of a call over many references.
    pub fn worst(kinds: impl IntoIterator<Item = Self>) -> Option<Self> {
        kinds.into_iter().min_by_key(|kind| {
            Self::ALL
                .iter()
                .position(|known| known == kind)
                .unwrap_or(usize::MAX)
        })
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::named(&name).ok_or_else(|| de::Error::custom("no such kind of failure"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_ranked_once() {
        let names: std::collections::BTreeSet<_> = Kind::ALL.iter().map(|k| k.name()).collect();
        assert_eq!(names.len(), Kind::ALL.len());
        assert!(Kind::ALL.iter().all(|k| Kind::named(k.name()) == Some(*k)));
    }

    #[test]
    fn worst_follows_the_documented_order() {
        assert_eq!(
            Kind::worst([Kind::PlatformMissing, Kind::NotFound]),
            Some(Kind::NotFound)
        );
        assert_eq!(
            Kind::worst([Kind::NoSpace, Kind::Cancelled, Kind::Internal]),
            Some(Kind::Cancelled)
        );
        assert_eq!(
            Kind::worst([Kind::Unauthorized, Kind::InvalidContent]),
            Some(Kind::InvalidContent)
        );
        assert_eq!(Kind::worst([]), None);
    }
}
