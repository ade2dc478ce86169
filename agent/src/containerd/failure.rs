//! What an RPC failed of, in two views: the cause that the caller's next step depends
//! on, and the error that a person reads if there is no next step.

use tonic::{Code, Status};

use crate::{error::Error, kind::Kind};

/// Why a call to containerd failed, as far as a caller acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The connection is gone: containerd stopped, restarts, or never ran.
    Disconnected,
    /// Another client holds the ingest ref.
    Locked,
    /// It is already there.
    Exists,
    /// No such blob, snapshot, record or ingest.
    Missing,
    /// The lease of this call was deleted by somebody else.
    LeaseLost,
    /// The content is not what was announced (digest or size).
    Mismatch,
    /// The offset of a write is not the ingest's own.
    OutOfRange,
    /// No space, no inodes or no quota left.
    Full,
    /// This server does not have the call.
    Unsupported,
    /// The deadline of the call passed.
    Timeout,
    /// Anything else; nothing to do but to report it.
    Other,
}

/// A failed call: its cause and its report.
#[derive(Debug, Clone)]
pub struct Failure {
    pub cause: Cause,
    pub error: Error,
}

/// The result of one call.
pub type Outcome<T> = Result<T, Failure>;

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

impl Failure {
    pub fn new(cause: Cause, error: Error) -> Self {
        Self { cause, error }
    }

    /// A call that did not answer in time. `action` reads "read blob …".
    pub(super) fn timeout(action: &str, seconds: u64) -> Self {
        Self::new(
            Cause::Timeout,
            Error::new(
                Kind::Timeout,
                format_args!("containerd did not answer within {seconds} s: cannot {action}"),
            )
            .hint("look at the load of the disk and at containerd's log; a retry continues where this stopped"),
        )
    }

    /// A status of the server, or of the connection. `action` reads "read blob …".
    pub(super) fn of(action: &str, status: &Status) -> Self {
        let cause = classify(status);
        let error = Error::new(kind(cause), format_args!("cannot {action}"))
            .because(shown(status.message()));
        let error = match cause {
            Cause::Full => error.hint(
                "free some space on containerd's file system; what is already fetched is kept and resumed",
            ),
            Cause::Unsupported => {
                error.hint("this containerd lacks the call; 1.6, 1.7 and 2.x are supported")
            }
            Cause::LeaseLost => error
                .hint("somebody deleted the lease of this pull (`ctr leases`, a prune); run it again")
                .retry(true),
            _ if damaged(status.message()) => error
                .with_kind(Kind::StoreDamaged)
                .hint("containerd's disk fails or is read-only; look at the kernel's log"),
            _ => error,
        };
        Self::new(cause, error)
    }
}

fn kind(cause: Cause) -> Kind {
    match cause {
        Cause::Disconnected => Kind::ContainerdUnavailable,
        Cause::Locked | Cause::LeaseLost => Kind::Unavailable,
        Cause::Missing => Kind::NotFound,
        Cause::Mismatch => Kind::InvalidContent,
        Cause::Full => Kind::NoSpace,
        Cause::Unsupported => Kind::Unsupported,
        Cause::Timeout => Kind::Timeout,
        Cause::Exists | Cause::OutOfRange | Cause::Other => Kind::Internal,
    }
}

fn classify(status: &Status) -> Cause {
    let text = status.message();
    // The disk is full behind many codes: the text is the only constant.
    if [
        "no space left on device",
        "disk quota exceeded",
        "file too large",
    ]
    .iter()
    .any(|needle| text.contains(needle))
    {
        return Cause::Full;
    }
    // Only a failure of the transport has a source; what the server says has none.
    if std::error::Error::source(status).is_some() {
        return Cause::Disconnected;
    }
    match status.code() {
        Code::Unavailable if text.contains("locked") => Cause::Locked,
        // A server that shuts down cancels the calls it still has; ours are never
        // cancelled by ourselves without being dropped.
        Code::Unavailable | Code::Cancelled => Cause::Disconnected,
        Code::NotFound if text.contains("lease") => Cause::LeaseLost,
        Code::NotFound => Cause::Missing,
        Code::AlreadyExists => Cause::Exists,
        Code::FailedPrecondition if is_mismatch(text) => Cause::Mismatch,
        Code::OutOfRange => Cause::OutOfRange,
        Code::Unimplemented => Cause::Unsupported,
        Code::DeadlineExceeded => Cause::Timeout,
        _ => Cause::Other,
    }
}

/// containerd's content store words these "unexpected commit digest" and "unexpected
/// commit size" (or "failed size validation").
fn is_mismatch(text: &str) -> bool {
    ["unexpected commit", "size validation", "digest", "size"]
        .iter()
        .any(|needle| text.contains(needle))
}

fn damaged(text: &str) -> bool {
    [
        "input/output error",
        "read-only file system",
        "structure needs cleaning",
    ]
    .iter()
    .any(|needle| text.contains(needle))
}

/// A foreign text, bounded and on one line.
fn shown(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(600)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_texts_become_causes_and_kinds() {
        let cases = [
            (
                Code::Unavailable,
                "ref default/1/layer-sha256:x locked for 3s: unavailable",
                Cause::Locked,
                Kind::Unavailable,
            ),
            (
                Code::Unavailable,
                "connection refused",
                Cause::Disconnected,
                Kind::ContainerdUnavailable,
            ),
            (
                Code::ResourceExhausted,
                "write /x: no space left on device",
                Cause::Full,
                Kind::NoSpace,
            ),
            (
                Code::Unknown,
                "failed to apply: mkdir: no space left on device",
                Cause::Full,
                Kind::NoSpace,
            ),
            (
                Code::NotFound,
                "content digest sha256:x: not found",
                Cause::Missing,
                Kind::NotFound,
            ),
            (
                Code::NotFound,
                "lease does not exist: not found",
                Cause::LeaseLost,
                Kind::Unavailable,
            ),
            (
                Code::FailedPrecondition,
                "unexpected commit digest sha256:a, expected sha256:b",
                Cause::Mismatch,
                Kind::InvalidContent,
            ),
            (
                Code::FailedPrecondition,
                "namespace is required",
                Cause::Other,
                Kind::Internal,
            ),
            (
                Code::Unimplemented,
                "unknown service",
                Cause::Unsupported,
                Kind::Unsupported,
            ),
            (
                Code::DeadlineExceeded,
                "context deadline exceeded",
                Cause::Timeout,
                Kind::Timeout,
            ),
            (
                Code::Unknown,
                "read /x: input/output error",
                Cause::Other,
                Kind::StoreDamaged,
            ),
        ];
        for (code, text, cause, kind) in cases {
            let failure = Failure::of("do it", &Status::new(code, text));
            assert_eq!(
                (failure.cause, failure.error.kind()),
                (cause, kind),
                "{text}"
            );
        }
    }
}
