//! containerd, as far as edgepull uses it: a typed wrapper around the few calls of a
//! correct client-side pull. What a version lacks is found by introspection, once.
//!
//! Everything written here is what containerd's own clients write (ingest refs, labels,
//! leases, snapshot names), so that kubelet, docker and ctr see our content as theirs.

pub mod client;
pub mod containers;
pub mod content;
mod cri;
pub mod diff;
pub mod events;
pub mod failure;
pub mod image;
pub mod ingest;
pub mod labels;
pub mod lease;
pub mod lock;
pub mod records;
pub mod snapshot;
pub mod stack;
pub mod store_source;
pub mod sync;
pub mod tasks;
mod transfer;
mod writer;

pub use client::{Engine, Snapshotter};
pub use events::{Change, ChangeKind, Changes};
pub use failure::{Cause, Failure};
pub use lease::Lease;
pub use lock::ImageLock;
pub use store_source::StoreSource;

/// The namespace of Kubernetes; CRI ignores every other one.
pub const K8S_NAMESPACE: &str = "k8s.io";
