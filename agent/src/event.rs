//! Facts that work emits. Progress bars, plain lines, JSON lines, reports and
//! metrics are folds over these; work itself never prints.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::oci::Digest;

/// One fact about a pull (or export) in progress. Sizes are bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The reference is being looked up.
    Resolving { reference: String },
    /// The choice is made.
    Resolved {
        reference: String,
        digest: Digest,
        manifest: Digest,
        platform: String,
    },
    /// What the pull is going to do: one row a blob.
    Planned {
        reference: String,
        layers: usize,
        bytes_to_fetch: u64,
        bytes_present: u64,
    },
    /// A blob starts (or, with `offset` > 0, resumes).
    BlobStarted {
        reference: String,
        digest: Digest,
        size: u64,
        offset: u64,
    },
    /// `bytes` more of a blob have arrived and were handed to the store.
    BlobProgress {
        reference: String,
        digest: Digest,
        bytes: u64,
    },
    /// A blob is committed; `reused` when nothing of it was fetched.
    BlobDone {
        reference: String,
        digest: Digest,
        size: u64,
        reused: bool,
    },
    /// Another client holds the same blob; waiting for it.
    BlobWaiting { reference: String, digest: Digest },
    /// A layer is being unpacked.
    Unpacking { reference: String, digest: Digest },
    /// A layer's snapshot is committed (or was there: `reused`).
    Unpacked {
        reference: String,
        digest: Digest,
        reused: bool,
    },
    /// Data is being made durable before the image is called ready.
    Syncing { reference: String },
    /// Something the user should know, that is not a failure.
    Warning { reference: String, message: String },
    /// The end of one reference.
    Finished { reference: String, ok: bool },
}

/// Takes events; must be cheap and never block.
pub trait Observer: Send + Sync {
    fn observe(&self, event: &Event);
}

/// A shared handle to whoever listens; clone freely.
#[derive(Clone)]
pub struct Events(Arc<dyn Observer>);

impl Events {
    pub fn new(observer: impl Observer + 'static) -> Self {
        Self(Arc::new(observer))
    }

    /// Nobody listens.
    pub fn none() -> Self {
        struct Deaf;
        impl Observer for Deaf {
            fn observe(&self, _: &Event) {}
        }
        Self::new(Deaf)
    }

    pub fn emit(&self, event: &Event) {
        self.0.observe(event);
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}
