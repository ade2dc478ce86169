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
    /// It ran, and failed.
    SmokeFailed,
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
    pub const ALL: [Self; 20] = [
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
        Self::SmokeFailed,
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
            Self::SmokeFailed => 12,
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
            Self::SmokeFailed => "smoke_failed",
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

    /// The kind of that name, as [`Self::name`] has it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The `MESSAGE_ID` of its records in the journal: a random number that never changes,
    /// under which the catalog (`systemd/edgepull.catalog`) says what to do.
    pub const fn message_id(self) -> &'static str {
        match self {
            Self::Internal => "94002c1f8480db31cb4e7bd97cbfaa78",
            Self::Usage => "963c7931fe62e3bad842be618d6ee5d5",
            // The shim says it of its part, too.
            Self::Config => edgepull_platform::starts::CONFIG,
            Self::InvalidReference => "1f432b071e60aa10072465b7b736e44d",
            Self::PlatformMissing => "d2c9b98197d7c7148b8604c294165780",
            Self::NotRunnable => "0d4fff7a50c809cfbbea2aa413b80588",
            Self::Mislabelled => "d46f6e2589ff85b3998fb2d1fa8b10f2",
            Self::SmokeFailed => "68dfc3e24937fd49321e807a20c6ca9a",
            Self::Unauthorized => "62c254fdf5b50e08169f67abf8749639",
            Self::NotFound => "2ddddabc78f002ee97666f202f69bfa8",
            Self::RateLimited => "3baa2ca953a470fccd50392ebc16d81d",
            Self::Unavailable => "e3016e0cbbc1a1d7b60d54263437eada",
            Self::InvalidContent => "12bbfb6b39da5a22956036ff7d9e88d5",
            Self::Unsupported => "897823f1638ee0e98b70957d3d79f0cf",
            Self::NoSpace => "0576de4f5edc886e3781bd4477e3d795",
            Self::StoreDamaged => "24e7cca30f20cee8e21b64c721bd6ade",
            Self::ContainerdUnavailable => "7375cef58662e80ae6a176a0b77b6739",
            Self::AgentUnavailable => "5245c2b8f95a43409f12b3209bd77d55",
            Self::Timeout => "139e3c37ef661b83d5da6e93efa7a399",
            Self::Cancelled => "3ecaa9ef28feb42ff2682ae6c751846f",
        }
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
            | Self::SmokeFailed
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
        Self::from_name(&name).ok_or_else(|| de::Error::custom("no such kind of failure"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_ranked_once() {
        let names: std::collections::BTreeSet<_> = Kind::ALL.iter().map(|k| k.name()).collect();
        assert_eq!(names.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            assert_eq!(Kind::from_name(kind.name()), Some(kind));
        }
        assert_eq!(Kind::from_name("nothing"), None);
    }

    #[test]
    fn every_kind_has_a_message_id_of_its_own() {
        let ids: std::collections::BTreeSet<_> =
            Kind::ALL.iter().map(|kind| kind.message_id()).collect();
        assert_eq!(ids.len(), Kind::ALL.len());
        for id in ids {
            assert!(
                id.len() == 32 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')),
                "{id}"
            );
        }
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
