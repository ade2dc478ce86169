//! `journalctl -x`: for each kind of failure, and each notice, what to do.

use std::fmt::Write as _;

use edgepull_platform::starts;

use super::Notice;
use crate::kind::Kind;

/// The text of `systemd/edgepull.catalog`, which is installed as it is there.
pub fn catalog() -> String {
    let mut text = String::from(
        "# What `journalctl -x` says of edgepull's records. The program writes it; a test compares.\n",
    );
    let kinds = Kind::ALL.map(|kind| (kind.message_id(), of_kind(kind)));
    let notices = Notice::ALL.map(|notice| (notice.message_id(), of_notice(notice)));
    for (id, (subject, advice)) in kinds.into_iter().chain(notices).chain(STARTS) {
        let _ = write!(
            text,
            "\n-- {id}\nSubject: edgepull: {subject}\nDefined-By: edgepull\n\
             Support: https://github.com/edgepull/edgepull\nDocumentation: man:edgepull(1)\n\n{advice}\n"
        );
    }
    text
}

/// What the shim says of containers. Its message names the file, and has the next step.
pub(super) const STARTS: [(&str, (&str, &str)); 2] = [
    (
        starts::REFUSED,
        (
            "a container was not started, because it cannot run here",
            "@EDGEPULL_FILE@ of container @CONTAINER_ID@ (@CONTAINER_NAMESPACE@) is what it starts,\n\
             and cannot run on this host (@EDGEPULL_PLATFORM@); the message says why and what to do.\n\
             `edgepull detect` says what this host runs, `edgepull verify` looks at a whole image.\n\
             Where this is wrong, please report it; the container starts with\n\
             `io.containerd.runc.v2` as its runtime.",
        ),
    ),
    (
        starts::EMULATED,
        (
            "a container runs under an emulator",
            "@EDGEPULL_FILE@ of container @CONTAINER_ID@ (@CONTAINER_NAMESPACE@) is for other cores\n\
             than this host's (@EDGEPULL_PLATFORM@). It was started, and is slow. `edgepull check`\n\
             tells whether its image is published for this host. To have such containers refused,\n\
             set `emulation = \"never\"` below `[shim]` in /etc/edgepull/config.toml, or the\n\
             annotation io.edgepull.emulation=never.",
        ),
    ),
];

/// One line, and what to do. journalctl puts in the value of `@FIELD@`.
const fn of_kind(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Internal => (
            "a fault of edgepull itself",
            "This should not happen. Please report it, with the output of\n\
             `edgepull status -o json` and this record (`journalctl -o json`).",
        ),
        Kind::Usage => (
            "it was asked for something that does not exist",
            "Correct the command line or the unit; `edgepull --help` lists what there is.",
        ),
        Kind::Config => (
            "a configuration file is wrong",
            "The message has the file, the line and the key. Until it is corrected the last\n\
             configuration that was right stays in force.",
        ),
        Kind::InvalidReference => (
            "an image reference does not parse",
            "Correct @EDGEPULL_REFERENCE@ below /etc/edgepull/images.d.",
        ),
        Kind::PlatformMissing => (
            "an image is not published for this host",
            "@EDGEPULL_REFERENCE@ offers nothing that this host can run; the message has what\n\
             it offers. Only its publisher can change that.\n\
             `edgepull explain @EDGEPULL_REFERENCE@` has the reason for every entry, and\n\
             `edgepull detect` says what this host is. It is looked for again at the usual\n\
             interval; other images are not held up.",
        ),
        Kind::NotRunnable => (
            "an image cannot run on this host",
            "@EDGEPULL_REFERENCE@ is for this architecture, but its program needs something\n\
             that this host lacks: a CPU level, a page size, a loader. Ask its publisher.",
        ),
        Kind::Mislabelled => (
            "an image is labelled wrongly",
            "@EDGEPULL_REFERENCE@ says that it is for this host, and its bytes are for another\n\
             machine. Ask its publisher to correct it.",
        ),
        Kind::SmokeFailed => (
            "an image was run and failed",
            "@EDGEPULL_REFERENCE@ can be started here; its program ended with a failure, which the\n\
             message has. `edgepull smoke @EDGEPULL_REFERENCE@` runs it again and shows what it prints.",
        ),
        Kind::Unauthorized => (
            "a registry refused access",
            "Put credentials that may read @EDGEPULL_REFERENCE@ into /etc/edgepull/auth.json\n\
             (docker's config.json format). Registries say so, too, of what does not exist.",
        ),
        Kind::NotFound => (
            "an image does not exist",
            "Correct @EDGEPULL_REFERENCE@ below /etc/edgepull/images.d, or publish it.",
        ),
        Kind::RateLimited => (
            "a registry asks to slow down",
            "It is asked again when it said, or later. Credentials raise the limit of many\n\
             registries; a mirror in hosts.toml avoids it.",
        ),
        Kind::Unavailable => (
            "a registry does not answer",
            "The network, its name, its certificate or the registry itself; the message says\n\
             which. It is tried again by itself, at growing intervals.",
        ),
        Kind::InvalidContent => (
            "content is not what it should be",
            "A digest, a size or a format is wrong, so nothing of it was used. If it is always\n\
             the same image, its publisher has to push it again; otherwise suspect a proxy or\n\
             the disk.",
        ),
        Kind::Unsupported => (
            "an image needs something that is not supported",
            "The message says what. Convert the image, or use a newer edgepull or containerd.",
        ),
        Kind::NoSpace => (
            "there is no room for an image",
            "Make room on containerd's file system: `edgepull prune` lets go of images that are\n\
             not declared any longer. It is tried again by itself.",
        ),
        Kind::StoreDamaged => (
            "containerd's store has lost something",
            "`edgepull repair @EDGEPULL_REFERENCE@` checks, and fetches what is damaged again.\n\
             If it comes back, suspect the SD card or the disk.",
        ),
        Kind::ContainerdUnavailable => (
            "containerd does not answer",
            "`systemctl status containerd` shows it; docker, k3s, rke2, microk8s and k0s bring one of\n\
             their own, and its log is in that service's. edgepull waits, and goes on by itself.",
        ),
        Kind::AgentUnavailable => (
            "the edgepull daemon does not answer",
            "`systemctl status edgepull` shows it.",
        ),
        Kind::Timeout => (
            "something took too long",
            "It is tried again by itself. If it stays so, the message says what is slow.",
        ),
        Kind::Cancelled => (
            "work was stopped",
            "What was fetched is kept; the next try goes on from there.",
        ),
    }
}

const fn of_notice(notice: Notice) -> (&'static str, &'static str) {
    match notice {
        Notice::Ready => (
            "an image is ready",
            "@EDGEPULL_REFERENCE@ is whole on this host. Nothing is to be done.",
        ),
        Notice::TakenAway => (
            "an image was taken away",
            "Somebody removed or unpinned @EDGEPULL_REFERENCE@, which is declared below\n\
             /etc/edgepull/images.d; edgepull brings it back. To be rid of it, remove the\n\
             declaration first.",
        ),
        Notice::Reloaded => (
            "the configuration was read again",
            "It holds from now on. Nothing is to be done.",
        ),
    }
}
