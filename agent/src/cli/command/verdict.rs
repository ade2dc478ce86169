//! The word for how an image will run here: from its label, and from its bytes where those were
//! looked at.

use edgepull_platform::{Host, How, Platform, executable::Verdict};
use serde::Serialize;

/// `verdict` of `pull` and `import` (CONTRACT: labels decide where there are no bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RunVerdict {
    Native,
    Compat32,
    Emulated,
    Refused,
    Unknown,
}

impl RunVerdict {
    pub(super) fn of(platform: Option<&Platform>, host: Option<&Host>) -> Self {
        let (Some(platform), Some(host)) = (platform, host) else {
            return Self::Unknown;
        };
        match host.how(platform).map(|runs| runs.how) {
            Some(How::Native) => Self::Native,
            Some(How::Compat32) => Self::Compat32,
            Some(How::Emulated) => Self::Emulated,
            None if host.disproves(platform).is_some() => Self::Refused,
            None => Self::Unknown,
        }
    }

    /// What bytes prove counts before what the label says.
    pub(super) fn proven(self, verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Native => Self::Native,
            Verdict::Compat32 => Self::Compat32,
            Verdict::Emulated { .. } => Self::Emulated,
            Verdict::Refused { .. } => Self::Refused,
            Verdict::Unknown { .. } => self,
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Compat32 => "compat32",
            Self::Emulated => "emulated",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        }
    }
}
