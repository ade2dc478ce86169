//! What came of a look, for the journal and for edgepull's daemon. Neither is waited for.

use std::{
    cell::RefCell,
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
    time::{Duration, Instant},
};

use edgepull_platform::starts::{self, RefusedStart};

use super::{
    refusal::{About, Emulated, Refusal},
    spec::Bundle,
};
use crate::journal::{Priority, Record, send};

/// What all these records are about, by the name that the contract has for it.
const KIND: &str = "not_runnable";

/// How long the same is not said again: a probe that is refused comes every second.
const SILENCE: Duration = Duration::from_secs(600);
/// What was said lately; more containers than a host starts in a while.
const MOST_SAID: usize = 64;

/// The container that was asked about.
#[derive(Debug, Clone, Copy)]
pub struct Container<'a> {
    pub id: &'a str,
    /// In containerd.
    pub namespace: &'a str,
    pub bundle: &'a Bundle,
}

/// Tells that a container, or a process in it, was not started.
pub fn refused(refusal: &Refusal, container: &Container<'_>) {
    if is_news(container, refusal.line()) {
        record(refusal, container).send();
    }
    tell_daemon(Path::new(starts::SOCKET), refusal, container);
}

/// Tells that one is started which an emulator runs.
pub fn emulated(emulated: &Emulated, container: &Container<'_>) {
    if is_news(container, emulated.line()) {
        warning(emulated, container).send();
    }
}

/// Whether this was not said of this container just now.
fn is_news(container: &Container<'_>, line: &str) -> bool {
    thread_local! {
        static SAID: RefCell<VecDeque<(Instant, u64)>> = RefCell::default();
    }
    // By their hashes: a line has a thousand bytes, and a shim is to be small.
    let mut hasher = DefaultHasher::new();
    (container.namespace, container.id, line).hash(&mut hasher);
    let what = hasher.finish();
    SAID.with_borrow_mut(|said| {
        said.retain(|(at, _)| at.elapsed() < SILENCE);
        if said.iter().any(|(_, known)| *known == what) {
            return false;
        }
        said.truncate(MOST_SAID - 1);
        said.push_front((Instant::now(), what));
        true
    })
}

fn warning(emulated: &Emulated, container: &Container<'_>) -> Record {
    let record = Record::new(Priority::Warning, emulated.line());
    let record = record.field("MESSAGE_ID", starts::EMULATED);
    described(record, emulated.about(), container)
}

fn record(refusal: &Refusal, container: &Container<'_>) -> Record {
    let record = Record::new(Priority::Error, refusal.line())
        .field("MESSAGE_ID", starts::REFUSED)
        .field("EDGEPULL_KIND", KIND)
        .field("EDGEPULL_REASON", refusal.reason());
    described(record, refusal.about(), container)
}

fn described(record: Record, about: &About, container: &Container<'_>) -> Record {
    let annotation = |name| container.bundle.annotation(name);
    record
        .field("EDGEPULL_PLATFORM", &about.host)
        .field("EDGEPULL_FILE", &about.file)
        .field("EDGEPULL_NEEDS", &about.needs)
        .optional("EDGEPULL_REFERENCE", container.bundle.image())
        .field("CONTAINER_ID", container.id)
        .field("CONTAINER_NAMESPACE", container.namespace)
        .optional(
            "CONTAINER_NAME",
            annotation("io.kubernetes.cri.container-name"),
        )
        .optional("POD_NAME", annotation("io.kubernetes.cri.sandbox-name"))
        .optional(
            "POD_NAMESPACE",
            annotation("io.kubernetes.cri.sandbox-namespace"),
        )
}

fn tell_daemon(socket: &Path, refusal: &Refusal, container: &Container<'_>) {
    if let Ok(datagram) = serde_json::to_vec(&told(refusal, container)) {
        send(socket, &datagram);
    }
}

fn told(refusal: &Refusal, container: &Container<'_>) -> RefusedStart {
    let annotation = |name| container.bundle.annotation(name);
    let pod = annotation("io.kubernetes.cri.sandbox-name").map(|name| {
        let namespace = annotation("io.kubernetes.cri.sandbox-namespace");
        format!("{}/{name}", namespace.unwrap_or("default"))
    });
    RefusedStart {
        reason: refusal.reason().to_owned(),
        message: refusal.line().to_owned(),
        container: container.id.to_owned(),
        namespace: container.namespace.to_owned(),
        reference: container.bundle.image().map(str::to_owned),
        pod,
    }
}

#[cfg(test)]
mod tests;
