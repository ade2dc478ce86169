//! What came of a look, for the journal and for edgepull's daemon. Neither is waited for.

use std::path::Path;

use edgepull_platform::starts::{self, RefusedStart};

use super::{
    refusal::{About, Emulated, Refusal},
    spec::Bundle,
};
use crate::journal::{Priority, Record, send};

/// What all these records are about, by the name that the contract has for it.
const KIND: &str = "not_runnable";

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
    record(refusal, container).send();
    tell_daemon(Path::new(starts::SOCKET), refusal, container);
}

/// Tells that one is started which an emulator runs.
pub fn emulated(emulated: &Emulated, container: &Container<'_>) {
    warning(emulated, container).send();
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
