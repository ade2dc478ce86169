//! What systemd is told (`sd_notify(3)`): a datagram of lines. Without `NOTIFY_SOCKET`
//! nobody wants to know.
//!
//! Our own, since all of it is less than a crate's interface: one socket, six lines.

use std::{
    env,
    ffi::{OsStr, OsString},
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use crate::redact::printable;

/// The most of a status line that is worth showing.
const LONGEST_STATUS: usize = 200;

/// The service manager, if there is one that listens.
#[derive(Debug)]
pub struct Notifier {
    to: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As the environment of this process says.
    pub fn from_environment() -> Self {
        Self::new(
            env::var_os("NOTIFY_SOCKET").as_deref(),
            env::var_os("WATCHDOG_USEC"),
            env::var_os("WATCHDOG_PID"),
            std::process::id(),
        )
    }

    /// Nobody is told.
    pub fn silent() -> Self {
        Self {
            to: None,
            watchdog: None,
        }
    }

    pub(super) fn new(
        socket: Option<&OsStr>,
        watchdog: Option<OsString>,
        watched: Option<OsString>,
        own: u32,
    ) -> Self {
        let to = socket.and_then(|name| match open(name) {
            Ok(opened) => Some(opened),
            Err(error) => {
                tracing::warn!(%error, "cannot reach the service manager that started this");
                None
            }
        });
        let number = |text: OsString| text.to_str()?.parse::<u64>().ok();
        let meant = watched.is_none_or(|pid| number(pid) == Some(own.into()));
        let watchdog = watchdog
            .and_then(number)
            .filter(|micros| *micros > 0 && meant && to.is_some())
            .map(Duration::from_micros);
        Self { to, watchdog }
    }

    /// How often [`Self::alive`] has to be called, if the watchdog is on: twice in the time
    /// after which systemd would act.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// Start-up, or a reload, is done.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// What is being done, in one line for `systemctl status`.
    pub fn status(&self, text: &str) {
        self.send(&format!("STATUS={}", printable(text, LONGEST_STATUS)));
    }

    /// The loop goes round.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// The configuration is being read again; [`Self::ready`] ends that.
    pub fn reloading(&self) {
        // Type=notify-reload wants the time, to tell this reload from an earlier one.
        let micros = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
            .map_or(Duration::ZERO, Duration::from)
            .as_micros();
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    /// The daemon ends, as it was told to.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// systemd's queue may be full for a moment: the next word comes soon, and waiting
    /// would hold up the work.
    fn send(&self, state: &str) {
        if let Some((socket, address)) = &self.to
            && let Err(error) = socket.send_to_addr(state.as_bytes(), address)
        {
            tracing::debug!(%error, "cannot tell the service manager");
        }
    }
}

/// `@name` is a socket without a file.
fn open(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut text = [0; 1024];
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("set");
        let length = socket.recv(&mut text).expect("told");
        String::from_utf8_lossy(&text[..length]).into_owned()
    }

    #[test]
    fn everything_is_told_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let name = format!("edgepull-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        for (socket, name) in [
            (UnixDatagram::bind(&path), path.clone().into_os_string()),
            (UnixDatagram::bind_addr(&address), format!("@{name}").into()),
        ] {
            let socket = socket.expect("bound");
            let notifier = Notifier::new(Some(&name), None, None, 1);
            notifier.ready();
            assert_eq!(heard(&socket), "READY=1");
            notifier.status("pulling a\nWATCHDOG=trigger\u{1b}[2J");
            assert_eq!(heard(&socket), "STATUS=pulling a WATCHDOG=trigger[2J");
            notifier.alive();
            assert_eq!(heard(&socket), "WATCHDOG=1");
            notifier.reloading();
            let text = heard(&socket);
            let micros = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
            assert!(
                micros.is_some_and(|m| m.parse::<u64>().is_ok_and(|m| m > 0)),
                "{text}"
            );
            notifier.stopping();
            assert_eq!(heard(&socket), "STOPPING=1");
        }
    }

    #[test]
    fn nobody_and_nonsense_are_no_failure() {
        for name in [
            None,
            Some(""),
            Some("@"),
            Some("relative"),
            Some("/no/such"),
        ] {
            let notifier = Notifier::new(name.map(OsStr::new), Some("9".into()), None, 1);
            notifier.ready();
            notifier.status("x");
        }
        assert_eq!(
            Notifier::new(None, Some("2000000".into()), None, 1).watchdog_interval(),
            None
        );
    }

    #[test]
    fn the_watchdog_is_for_this_process_alone() {
        let interval = |usec: &str, pid: Option<&str>| {
            let socket = Some(OsStr::new("@edgepull-test"));
            Notifier::new(socket, Some(usec.into()), pid.map(Into::into), 7).watchdog_interval()
        };
        let second = Some(Duration::from_secs(1));
        assert_eq!(interval("2000000", None), second);
        assert_eq!(interval("2000000", Some("7")), second);
        assert_eq!(interval("2000000", Some("8")), None);
        assert_eq!(interval("0", None), None);
        assert_eq!(interval("soon", None), None);
    }
}
