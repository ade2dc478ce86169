//! What the daemon says of its images: one document, the same for `status`, for the event
//! stream and for metrics. The [`Board`] is where the loop writes it down.

mod board;

use edgepull_platform::starts::RefusedStart;
use jiff::Timestamp;
use serde::Serialize;

pub use self::board::{Board, Ready};
use crate::{desired::Key, error::Error, event::Event, kind::Kind, oci::Digest};

/// The `schema` of the document.
pub const SCHEMA: &str = "edgepull.status/1";

/// How one image stands. An image that is on the device is ready, whatever became of the
/// last look at its registry: `error` has that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Whole on the device, and usable.
    Ready,
    /// Being worked on now.
    Pulling,
    /// Not here yet; `reason` says what is waited for.
    Waiting,
    /// Its reference offers nothing for this host.
    MissingPlatform,
    /// Not here, and the last try failed.
    Failed,
}

impl State {
    /// The name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Pulling => "pulling",
            Self::Waiting => "waiting",
            Self::MissingPlatform => "missing_platform",
            Self::Failed => "failed",
        }
    }
}

/// What is being done to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Resolving,
    Fetching,
    Unpacking,
    Syncing,
}

impl Phase {
    /// The name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Resolving => "resolving",
            Self::Fetching => "fetching",
            Self::Unpacking => "unpacking",
            Self::Syncing => "syncing",
        }
    }
}

/// How far the work on an image is, in bytes to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Progress {
    pub phase: Phase,
    pub bytes: u64,
    pub total: u64,
}

/// One desired image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Image {
    /// The name of the image record.
    pub reference: String,
    /// What is wanted: `host`, or a platform.
    pub platform: String,
    /// What was chosen for it.
    pub selected_platform: Option<String>,
    pub namespace: String,
    pub snapshotter: Option<String>,
    pub state: State,
    /// What the image record points at.
    pub digest: Option<Digest>,
    pub pinned: bool,
    /// When `state` became what it is.
    pub since: Timestamp,
    /// What is waited for.
    pub reason: Option<String>,
    /// When it is looked at again.
    pub next_try: Option<Timestamp>,
    /// When it was last known to be as its registry has it.
    pub last_success: Option<Timestamp>,
    /// While it is worked on.
    pub progress: Option<Progress>,
    /// The last failure, until a success; in the form of the contract.
    pub error: Option<serde_json::Value>,
}

impl Image {
    fn new(key: &Key, now: Timestamp) -> Self {
        Self {
            reference: key.reference.clone(),
            platform: key.platform.clone(),
            selected_platform: None,
            namespace: key.namespace.clone(),
            snapshotter: None,
            state: State::Waiting,
            digest: None,
            pinned: false,
            since: now,
            reason: Some("not looked at yet".to_owned()),
            next_try: None,
            last_success: None,
            progress: None,
            error: None,
        }
    }

    /// Which one it is.
    pub fn key(&self) -> Key {
        Key {
            reference: self.reference.clone(),
            platform: self.platform.clone(),
            namespace: self.namespace.clone(),
        }
    }

    /// Whether it is this one.
    pub fn is(&self, key: &Key) -> bool {
        self.reference == key.reference
            && self.platform == key.platform
            && self.namespace == key.namespace
    }

    /// Whether the image is on the device; work on it does not take it away.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Whether its reference offers nothing for this host, whether or not an earlier image
    /// of it is here.
    pub fn misses_platform(&self) -> bool {
        self.state == State::MissingPlatform || self.error_kind() == Some(Kind::PlatformMissing)
    }

    /// Why it is not as it should be after a pass that was to bring it, if it is not. What
    /// another version wrote down may not be readable, and an image may be missing for no
    /// failure of its own: neither makes it well.
    pub fn failure(&self) -> Option<Error> {
        let told = self.error.as_ref().and_then(Error::from_json);
        if told.is_some() || (self.is_ready() && self.error.is_none()) {
            return told;
        }
        let kind = match self.state {
            State::MissingPlatform => Kind::PlatformMissing,
            State::Ready | State::Failed => Kind::Internal,
            State::Pulling | State::Waiting => Kind::Timeout,
        };
        let message = format_args!("`{}` is {}", self.reference, self.state.name());
        let why = self.reason.as_deref();
        let error = Error::new(kind, message)
            .because(why.unwrap_or("its last failure cannot be read; another version wrote it"))
            .reference(&self.reference)
            .platform(&self.platform);
        Some(error.hint("try again; `edgepull status` shows how it stands"))
    }

    /// The kind of the last failure.
    pub fn error_kind(&self) -> Option<Kind> {
        let kind = self.error.as_ref()?.get("kind")?.as_str()?;
        Kind::from_name(kind)
    }
}

/// The containerd that images go to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Engine {
    /// The engine profile, e.g. `k3s/rke2`.
    pub name: String,
    pub address: String,
    pub namespace: String,
    pub snapshotter: Option<String>,
    pub version: Option<String>,
    /// Whether it answered the last time it was asked.
    pub reachable: bool,
}

/// How many images stand how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    pub desired: usize,
    pub ready: usize,
    pub pulling: usize,
    pub waiting: usize,
    pub missing_platform: usize,
    pub failed: usize,
}

/// Containers that the shim did not start for one reason; the last of them by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusedStarts {
    #[serde(flatten)]
    pub start: RefusedStart,
    pub count: u64,
    pub last: Timestamp,
}

/// The document without its images.
#[derive(Debug, Clone, Serialize)]
pub struct Daemon {
    pub schema: &'static str,
    /// The platform of this host.
    pub host: String,
    pub version: String,
    pub started: Timestamp,
    /// Every image was looked at at least once.
    pub first_pass_done: bool,
    pub last_pass: Option<Timestamp>,
    /// Why nothing is fetched at present, e.g. memory pressure.
    pub paused: Option<String>,
    pub engine: Option<Engine>,
    /// Why the engine could not be reached.
    pub engine_error: Option<Error>,
    /// Faults of the configuration; what was last right is in force.
    pub faults: Vec<Error>,
    /// What the shim did not start lately, the latest first.
    pub refused_starts: Vec<RefusedStarts>,
    pub counts: Counts,
}

/// The document of `GET /v1/status`.
#[derive(Debug, Clone, Serialize)]
pub struct Document {
    #[serde(flatten)]
    pub daemon: Daemon,
    /// In the order in which they are declared.
    pub images: Vec<Image>,
}

/// What whoever listens is told.
#[derive(Debug, Clone)]
pub enum Notice {
    /// A fact about the work.
    Work(Event),
    /// The state, the phase or the failure of an image changed.
    Image(Box<Image>),
    /// An image is not desired any longer.
    Gone(Key),
    /// Something about the daemon changed.
    Daemon(Box<Daemon>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_as_it_should_be_is_a_failure_whoever_wrote_it_down() {
        let key = Key {
            reference: "r.example/a:1".to_owned(),
            platform: "host".to_owned(),
            namespace: "default".to_owned(),
        };
        // Of a version that knew less, and of one that knows more.
        let short = serde_json::json!({"kind": "no_space", "message": "the disk is full"});
        let strange = serde_json::json!({"kind": "news", "message": "something"});
        let whole = serde_json::to_value(Error::new(Kind::NotFound, "no tag")).expect("plain");
        for (state, error, kind) in [
            (State::Ready, None, None),
            (State::Ready, Some(&whole), Some(Kind::NotFound)),
            (State::Ready, Some(&strange), Some(Kind::Internal)),
            (State::Failed, Some(&short), Some(Kind::NoSpace)),
            (State::Failed, Some(&strange), Some(Kind::Internal)),
            (State::Failed, None, Some(Kind::Internal)),
            (State::MissingPlatform, None, Some(Kind::PlatformMissing)),
            (State::Waiting, None, Some(Kind::Timeout)),
            (State::Pulling, None, Some(Kind::Timeout)),
        ] {
            let image = Image {
                state,
                error: error.cloned(),
                ..Image::new(&key, Timestamp::UNIX_EPOCH)
            };
            let found = image.failure().map(|error| error.kind());
            assert_eq!(found, kind, "{state:?} {error:?}");
        }
    }
}
