//! Where a shim listens.

use std::fmt::Write;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use ring::digest;

use crate::error::{Error, Result};

/// The directory that all of containerd's shims use, unless it says otherwise.
const DIRECTORY: &str = "/run/containerd/s";
/// The longest path of a socket (bytes); `sun_path` with its end.
const LONGEST: usize = 107;

/// The address of the group `group` of a namespace of one containerd: the same for everybody who asks.
pub(super) fn path(
    directory: Option<&str>,
    containerd: &str,
    namespace: &str,
    group: &str,
) -> Result<PathBuf> {
    // As Go joins paths: whatever a part begins with, it stands below the one before it.
    let joined = format!("{containerd}/{namespace}/{group}");
    let mut clean = String::with_capacity(joined.len());
    for name in joined
        .split('/')
        .filter(|name| !name.is_empty() && *name != ".")
    {
        if name == ".." {
            let message = format!("the group `{}` leads elsewhere", group.escape_debug());
            return Err(Error::invalid(message));
        }
        clean.push('/');
        clean.push_str(name);
    }
    let hash = digest::digest(&digest::SHA256, clean.as_bytes());
    let mut name = String::with_capacity(64);
    for byte in hash.as_ref() {
        // Into a string: it cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    let path = Path::new(directory.filter(|dir| !dir.is_empty()).unwrap_or(DIRECTORY)).join(name);
    if path.as_os_str().len() > LONGEST {
        return Err(Error::invalid(format!(
            "the socket's path {} is longer than {LONGEST} bytes; a shorter socket_dir is needed",
            path.display()
        )));
    }
    Ok(path)
}

/// What is at an address.
pub(super) enum Bound {
    /// Nobody was there: now we are.
    New(UnixListener),
    /// A shim answers there.
    Taken(UnixStream),
}

/// Listens at `path`, or finds who does. What a dead shim left is taken away.
pub(super) fn bind(path: &Path) -> Result<Bound> {
    let failed = |error: std::io::Error| Error::io(format!("the socket {}", path.display()), error);
    let directory = path.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed)?;
    // Two may race for it: who loses finds the other in the next round.
    for _ in 0..8 {
        {
            let _turn = turn(directory).map_err(failed)?;
            match UnixListener::bind(path) {
                Ok(listener) => {
                    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
                        .map_err(failed)?;
                    return Ok(Bound::New(listener));
                }
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let connected = match UnixStream::connect(path) {
            // Once more, where nobody is between `bind` and `listen`: that is refused as well.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                let _turn = turn(directory).map_err(failed)?;
                let connected = UnixStream::connect(path);
                if matches!(&connected, Err(error) if error.kind() == ErrorKind::ConnectionRefused)
                {
                    match std::fs::remove_file(path) {
                        Err(error) if error.kind() != ErrorKind::NotFound => {
                            return Err(failed(error));
                        }
                        _ => {}
                    }
                    continue;
                }
                connected
            }
            connected => connected,
        };
        match connected {
            Ok(stream) => return Ok(Bound::Taken(stream)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Err(Error::unknown(format!(
        "the socket {} is neither free nor answered",
        path.display()
    )))
}

/// Takes away the socket that the file `address` of a bundle names, or where there is no such file (yet)
/// the one at `usual`, if nobody answers there any more. One shim of several containers may have died:
/// then the first that is cleaned up does it.
pub(super) fn forget(address: &Path, usual: &Path) {
    let text = std::fs::read_to_string(address).unwrap_or_default();
    let named = Path::new(text.trim().strip_prefix("unix://").unwrap_or(text.trim()));
    let path = if named.is_absolute() { named } else { usual };
    let Some(_turn) = path.parent().and_then(|directory| turn(directory).ok()) else {
        return;
    };
    let refused = |error: &std::io::Error| error.kind() == ErrorKind::ConnectionRefused;
    if UnixStream::connect(path).is_err_and(|error| refused(&error)) {
        let _ = std::fs::remove_file(path);
    }
}

/// One at a time makes a socket in a directory, or takes away what a dead shim left there.
fn turn(directory: &Path) -> std::io::Result<Flock<File>> {
    let file = File::open(directory)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn an_address_is_short_and_the_same_for_all_shims() {
        // As containerd's own shims compute it: sha256 of the joined path.
        let hashed = path(None, "/run/containerd/containerd.sock", "default", "x").unwrap();
        assert_eq!(
            hashed.to_str().unwrap(),
            "/run/containerd/s/5e250b13f984a15f73216d143af1bf3c64171aa56c781ba9d4040c75b2c1eee2"
        );
        let rooted = path(None, "/run/containerd/containerd.sock", "default", "//x/.").unwrap();
        assert_eq!(rooted, hashed, "a group stays within its namespace");
        assert!(path(None, "/run/c", "n", "../m/x").is_err());
        let long = path(None, "/run/c", "n", &"x".repeat(255)).unwrap();
        assert!(long.as_os_str().len() <= LONGEST);
        assert!(path(Some(&"/d".repeat(40)), "/run/c", "n", "x").is_err());
    }

    #[test]
    fn a_socket_that_nobody_answers_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let usual = dir.path().join("usual");
        let (path, address) = (dir.path().join("s"), dir.path().join("address"));
        forget(&address, &usual);
        let Bound::New(listener) = bind(&path).unwrap() else {
            panic!("nobody was there");
        };
        std::fs::write(&address, format!("unix://{}", path.display())).unwrap();
        forget(&address, &usual);
        assert!(path.exists(), "it is answered");
        drop(listener);
        forget(&address, &usual);
        assert!(!path.exists());
        // Where the file was not written yet.
        std::fs::remove_file(&address).unwrap();
        let Bound::New(listener) = bind(&usual).unwrap() else {
            panic!("nobody was there");
        };
        drop(listener);
        forget(&address, &usual);
        assert!(!usual.exists());
    }

    #[test]
    fn what_is_dead_is_replaced_and_what_lives_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deeper/s");
        let Bound::New(first) = bind(&path).unwrap() else {
            panic!("nobody was there");
        };
        assert!(matches!(bind(&path).unwrap(), Bound::Taken(_)));
        drop(first);
        assert!(path.exists());
        assert!(matches!(bind(&path).unwrap(), Bound::New(_)));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}
