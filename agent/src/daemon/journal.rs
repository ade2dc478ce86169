//! Records for the journal, with fields, where standard error leads there.
//!
//! Our own instead of a crate: fields get the names of the contract, each kind of failure
//! its `MESSAGE_ID`, and a journal that is restarted or stuck costs a record, never time.
//! Every record is far below a datagram's limit, so no file descriptor needs to be passed.

mod catalog;

use std::{
    borrow::Cow,
    ffi::OsStr,
    fmt::{self, Debug, Write as _},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixDatagram,
    },
    path::{Path, PathBuf},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Layer};

pub use self::catalog::catalog;
use crate::{desired::Key, error::Error, kind::Kind};

/// Where journald takes records.
const SOCKET: &str = "/run/systemd/journal/socket";
/// Bytes of one field; the journal is no place for documents.
const LONGEST: usize = 8 * 1024;
/// Fields of one record besides the message; none of ours has half as many.
const MOST_FIELDS: usize = 32;

/// What happens to an image that is no failure, and that somebody may want to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Notice {
    /// The image is on the device, as it should be.
    Ready,
    /// The image, or its pin, was taken away by somebody else, and comes back.
    TakenAway,
    /// The configuration was read, and holds from now on.
    Reloaded,
}

impl Notice {
    pub const ALL: [Self; 3] = [Self::Ready, Self::TakenAway, Self::Reloaded];

    /// The value of `EDGEPULL_NOTICE`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::TakenAway => "taken_away",
            Self::Reloaded => "reloaded",
        }
    }

    /// Its `MESSAGE_ID`; see [`Kind::message_id`].
    pub const fn message_id(self) -> &'static str {
        match self {
            Self::Ready => "93ded1171dcad165ded0ac015ac601f2",
            Self::TakenAway => "39d776ab6e14d7cbe7aefe7b1def373c",
            Self::Reloaded => "8725f75f27bb184f36fbee2a4f52a75c",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|notice| notice.name() == name)
    }
}

/// Reports a failure, of one image or of the daemon itself: whole, with the next step. What
/// may pass by itself is a warning; the rest needs somebody.
pub fn report(error: &Error, key: Option<&Key>) {
    report_during(error, key, During::default());
}

/// What was being done when it failed.
#[derive(Debug, Clone, Copy, Default)]
pub struct During<'a> {
    pub phase: Option<&'a str>,
    /// What the reference was found to mean.
    pub digest: Option<&'a str>,
}

/// The same of work on an image.
pub fn report_during(error: &Error, key: Option<&Key>, during: During<'_>) {
    let During { phase, digest } = during;
    let mut text = error.message().to_owned();
    for cause in error.causes() {
        let _ = write!(text, ": {cause}");
    }
    if !error.wanted().is_empty() {
        let (wanted, offered) = (error.wanted().join(", "), error.offered().join(", "));
        let _ = write!(text, "; wanted {wanted}, offered {offered}");
    }
    if let Some(hint) = error.hint_text() {
        let _ = write!(text, " (hint: {hint})");
    }
    // Registries and files write into causes.
    let text = crate::redact::printable(&of_image(key, &text), LONGEST);
    let kind = error.kind().name();
    // tracing wants the level at compile time.
    match (key, error.is_retryable()) {
        (
            Some(Key {
                reference,
                platform,
                namespace,
            }),
            true,
        ) => {
            tracing::warn!(
                kind, reference, platform, namespace, phase, digest, "{text}"
            );
        }
        (
            Some(Key {
                reference,
                platform,
                namespace,
            }),
            false,
        ) => {
            tracing::error!(
                kind, reference, platform, namespace, phase, digest, "{text}"
            );
        }
        (None, true) => tracing::warn!(kind, "{text}"),
        (None, false) => tracing::error!(kind, "{text}"),
    }
}

/// The text, with the image's name before it unless it says it: `journalctl` and
/// `systemctl status` show nothing but the text.
fn of_image<'a>(key: Option<&Key>, text: &'a str) -> Cow<'a, str> {
    match key {
        Some(key) if !text.contains(&key.reference) => {
            Cow::Owned(format!("{}: {text}", key.reference))
        }
        _ => Cow::Borrowed(text),
    }
}

/// Tells what happened to an image.
pub fn notice(notice: Notice, key: Option<&Key>, digest: Option<&str>, text: &str) {
    let name = notice.name();
    let text = crate::redact::printable(&of_image(key, text), LONGEST);
    if let Some(Key {
        reference,
        platform,
        namespace,
    }) = key
    {
        tracing::info!(
            notice = name,
            reference,
            platform,
            namespace,
            digest,
            "{text}"
        );
    } else {
        tracing::info!(notice = name, "{text}");
    }
}

/// A layer that writes to the journal.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Journal {
    /// The journal, if standard error is a stream into it (`systemd.exec(5)`,
    /// `$JOURNAL_STREAM`): then nobody reads these records on a terminal.
    pub fn behind_stderr() -> Option<Self> {
        let named = std::env::var_os("JOURNAL_STREAM")?;
        is_stream(&named, io::stderr().as_fd())
            .then(|| Self::at(Path::new(SOCKET)).ok())
            .flatten()
    }

    pub(super) fn at(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
        })
    }

    /// Sends one record. Where journald takes none now, the line goes to its stream, which
    /// systemd keeps open while journald restarts.
    fn send(&self, record: &Record) {
        if self.socket.send_to(&record.bytes, &self.path).is_err() {
            use io::Write as _;

            let line = format!("<{}>{}\n", record.priority, record.message);
            let _ = io::stderr().lock().write_all(line.as_bytes());
        }
    }
}

/// Whether `stream` is the device and inode that `$JOURNAL_STREAM` names.
fn is_stream(named: &OsStr, stream: BorrowedFd<'_>) -> bool {
    let Some((device, inode)) = named.to_str().and_then(|text| text.split_once(':')) else {
        return false;
    };
    let Ok(found) = nix::sys::stat::fstat(stream) else {
        return false;
    };
    device.parse() == Ok(found.st_dev) && inode.parse() == Ok(found.st_ino)
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        self.send(&Record::new(
            *event.metadata().level(),
            event.metadata().target(),
            fields,
        ));
    }
}

/// What an event carries, in the order of its fields.
#[derive(Debug, Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            // From libraries that log without fields.
            name if name.starts_with("log.") => {}
            name if self.others.len() < MOST_FIELDS => self.others.push((name, value)),
            _ => {}
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, format!("{value:?}"));
    }
}

/// A record in journald's native protocol.
struct Record {
    priority: u8,
    message: String,
    bytes: Vec<u8>,
}

impl Record {
    fn new(level: Level, target: &str, fields: Fields) -> Self {
        let priority = match level {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        let mut record = Self {
            priority,
            message: fields.message,
            bytes: Vec::with_capacity(512),
        };
        for (name, value) in &fields.others {
            // A constant message with its values, as on a terminal; what has a field that
            // people know to look for is in the message already.
            if !matches!(
                *name,
                "kind" | "notice" | "reference" | "platform" | "namespace" | "phase" | "digest"
            ) {
                let _ = write!(record.message, " {name}={value}");
            }
        }
        let message = std::mem::take(&mut record.message);
        record.field("MESSAGE", &message);
        record.message = message;
        record.field("PRIORITY", &priority.to_string());
        record.field("SYSLOG_IDENTIFIER", "edgepull");
        record.field("EDGEPULL_TARGET", target);
        for (name, value) in &fields.others {
            let id = match *name {
                "kind" => Kind::from_name(value).map(Kind::message_id),
                "notice" => Notice::from_name(value).map(Notice::message_id),
                _ => None,
            };
            if let Some(id) = id {
                record.field("MESSAGE_ID", id);
            }
            record.field(&field_name(name), value);
        }
        record
    }

    /// `NAME=value`, or with a line end in it `NAME`, its length and the bytes: a value must
    /// never become a field of its own.
    fn field(&mut self, name: &str, value: &str) {
        let mut end = value.len().min(LONGEST);
        while !value.is_char_boundary(end) {
            end -= 1;
        }
        let value = value.get(..end).unwrap_or_default();
        self.bytes.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            self.bytes.push(b'\n');
            self.bytes
                .extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            self.bytes.push(b'=');
        }
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(b'\n');
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.bytes))
    }
}

/// `EDGEPULL_REFERENCE` of `reference`: journald takes capitals, digits and underscores.
fn field_name(name: &str) -> String {
    let tail = name.chars().map(|c| match c.to_ascii_uppercase() {
        c if c.is_ascii_alphanumeric() => c,
        _ => '_',
    });
    // journald refuses names of more than 64 characters.
    "EDGEPULL_".chars().chain(tail).take(64).collect()
}

#[cfg(test)]
mod tests;
