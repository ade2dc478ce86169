//! Records for the journal, in its native protocol (systemd's `docs/JOURNAL_NATIVE_PROTOCOL`): one
//! datagram each, never waited for. Where there is no journal, or it is busy, a record is lost.

use std::{os::unix::net::UnixDatagram, path::Path};

/// Where journald takes records.
const SOCKET: &str = "/run/systemd/journal/socket";
/// Who we are there.
const IDENTIFIER: &str = "containerd-shim-edgepull";
/// Bytes of one field; with all fields a record stays far below what a datagram may have.
const LONGEST: usize = 2 << 10;

/// How much it matters (`syslog(3)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Priority {
    Error = 3,
    Warning = 4,
    Info = 6,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record(Vec<u8>);

impl Record {
    pub fn new(priority: Priority, message: &str) -> Record {
        Record(Vec::with_capacity(512))
            .field("MESSAGE", message)
            .field("PRIORITY", &(priority as u8).to_string())
            .field("SYSLOG_IDENTIFIER", IDENTIFIER)
    }

    /// With one field more: `NAME=value`, or with a line end in it `NAME`, its length and the bytes,
    /// so that no value becomes a field of its own. `name` is capitals, digits and underscores.
    #[must_use]
    pub fn field(mut self, name: &str, value: &str) -> Record {
        let end = (0..=value.len().min(LONGEST))
            .rev()
            .find(|at| value.is_char_boundary(*at));
        let value = value.get(..end.unwrap_or(0)).unwrap_or_default();
        self.0.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            self.0.push(b'\n');
            self.0
                .extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            self.0.push(b'=');
        }
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'\n');
        self
    }

    /// The same, if there is a value.
    #[must_use]
    pub fn optional(self, name: &str, value: Option<&str>) -> Record {
        match value {
            Some(value) => self.field(name, value),
            None => self,
        }
    }

    /// Sends it.
    pub fn send(&self) {
        send(Path::new(SOCKET), &self.0);
    }

    /// What is sent.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Sends one datagram to whoever takes it there now; else it is lost.
pub fn send(to: &Path, datagram: &[u8]) {
    let sent = UnixDatagram::unbound().and_then(|socket| {
        socket.set_nonblocking(true)?;
        socket.send_to(datagram, to)
    });
    // What is told here stops nothing.
    drop(sent);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_never_becomes_a_field() {
        let record = Record::new(Priority::Warning, "one\nPRIORITY=0")
            .field("EDGEPULL_FILE", "/app")
            .optional("CONTAINER_ID", None);
        let mut wanted = b"MESSAGE\n\x0e\0\0\0\0\0\0\0one\nPRIORITY=0\nPRIORITY=4\n".to_vec();
        wanted
            .extend_from_slice(b"SYSLOG_IDENTIFIER=containerd-shim-edgepull\nEDGEPULL_FILE=/app\n");
        assert_eq!(record.bytes(), wanted);
        let long = Record::new(Priority::Info, &"ä".repeat(LONGEST));
        assert!(long.bytes().len() < LONGEST + 200);
    }

    #[test]
    fn nobody_is_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("socket");
        send(&path, b"nobody is there");
        let socket = UnixDatagram::bind(&path).expect("bound");
        // More than the queue takes.
        for _ in 0..10_000 {
            send(&path, b"told");
        }
        let mut bytes = [0; 16];
        assert_eq!(socket.recv(&mut bytes).expect("one"), 4);
    }
}
