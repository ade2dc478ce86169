//! Whether this device's clock can be believed, and what tells this machine from others.

use std::{fs::File, io::Read, path::Path};

use jiff::Timestamp;

use crate::redact::Secret;

/// The day of this release, 2026-11-01: no clock that is right is before it. Raised with
/// each release.
pub const EARLIEST: Timestamp = Timestamp::constant(1_793_491_200, 0);

/// The most that is read of a file; the longest names of hosts have 253 bytes.
const LARGEST: u64 = 1024;
/// What systemd writes before the first boot has ended.
const UNINITIALISED: &str = "uninitialized";
/// By their order; the first that says anything counts.
const MACHINE: [&str; 4] = [
    "etc/machine-id",
    "var/lib/dbus/machine-id",
    "proc/sys/kernel/hostname",
    "etc/hostname",
];
/// Cards that are copied have one machine id for a whole fleet; the board's own number
/// differs even so.
const BOARD: &str = "proc/device-tree/serial-number";

/// Devices without a battery begin in 1970, or when they were switched off, until the
/// network tells them the time.
pub fn plausible(now: Timestamp) -> bool {
    now >= EARLIEST
}

/// What tells this machine from others and stays as it is, read below `root`. It is there
/// to be hashed, never to be shown; without any source it is empty.
pub fn machine(root: &Path) -> Secret {
    let machine = MACHINE.iter().find_map(|name| line(&root.join(name)));
    let board = line(&root.join(BOARD));
    let parts: Vec<String> = machine.into_iter().chain(board).collect();
    Secret::new(parts.join(" "))
}

/// Which boot of the kernel this is, read below `root`; empty where it cannot be told.
pub fn boot(root: &Path) -> String {
    line(&root.join("proc/sys/kernel/random/boot_id")).unwrap_or_default()
}

/// The first line, if it says anything.
fn line(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    file.take(LARGEST).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    // Texts of the device tree end in a zero byte.
    let line = text.lines().next()?.trim_matches(['\0', ' ', '\t']);
    let known = !matches!(line, "" | "(none)" | "localhost" | UNINITIALISED);
    (known && line.bytes().any(|byte| byte != b'0')).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_day_of_the_release_is_the_first_that_counts() {
        assert_eq!(EARLIEST.to_string(), "2026-11-01T00:00:00Z");
        assert!(plausible(EARLIEST));
        for early in ["1970-01-01T00:00:00Z", "2026-10-31T23:59:59Z"] {
            assert!(!plausible(early.parse().expect("a time")));
        }
    }

    #[test]
    fn the_first_source_that_says_anything_counts() {
        let root = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("inside")).expect("made");
            fs::write(path, text).expect("written");
        };
        let read = || machine(root.path()).reveal().to_owned();
        assert_eq!(read(), "");
        write("etc/hostname", "pi-17\n");
        assert_eq!(read(), "pi-17");
        write("proc/sys/kernel/hostname", "(none)\n");
        assert_eq!(read(), "pi-17");
        write("var/lib/dbus/machine-id", "0123\n");
        assert_eq!(read(), "0123");
        for nothing in ["uninitialized\n", "\n", "", "00000000\n"] {
            write("etc/machine-id", nothing);
            assert_eq!(read(), "0123", "{nothing:?}");
        }
        write("etc/machine-id", "89ab\n");
        assert_eq!(read(), "89ab");
        write("proc/device-tree/serial-number", "10000000cafe\0");
        assert_eq!(read(), "89ab 10000000cafe");
        assert!(!format!("{:?}", machine(root.path())).contains("cafe"));
    }
}
