//! Mounts whose owners are shifted: the root file system of a container in a user namespace of its
//! own, without a copy that is owned differently. For Kubernetes' `hostUsers: false`.
//!
//! Needs Linux 5.12, and 5.19 for overlays (`mount_setattr(2)`, `MOUNT_ATTR_IDMAP`).

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::child::{self, Child};
use crate::error::{Error, Result};
use crate::log;

/// Ids of a container and of the host, as `uidmap=` and `gidmap=` have them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Map {
    uids: String,
    gids: String,
}

impl Map {
    /// Takes the two options out of `options`; both or none.
    pub fn take(options: &mut Vec<String>) -> Result<Option<Map>> {
        let mut map = Map::default();
        let mut found = 0;
        let mut kept = Vec::with_capacity(options.len());
        for option in options.drain(..) {
            if let Some(value) = option.strip_prefix("uidmap=") {
                map.uids = lines(value)?;
                found |= 1;
            } else if let Some(value) = option.strip_prefix("gidmap=") {
                map.gids = lines(value)?;
                found |= 2;
            } else {
                kept.push(option);
            }
        }
        *options = kept;
        match found {
            0 => Ok(None),
            3 => Ok(Some(map)),
            _ => Err(Error::invalid(
                "uidmap and gidmap are given together or not at all",
            )),
        }
    }
}

/// `container:host:size[,…]` as the kernel takes it.
fn lines(value: &str) -> Result<String> {
    let mut text = String::new();
    for part in value.split(',') {
        let numbers: Option<Vec<u32>> = part.split(':').map(|number| number.parse().ok()).collect();
        match numbers.as_deref() {
            Some([inside, outside, size]) if *size > 0 => {
                // Into a string: it cannot fail.
                let _ = writeln!(text, "{inside} {outside} {size}");
            }
            _ => {
                let shown = part.escape_debug();
                return Err(Error::invalid(format!(
                    "`{shown}` is no mapping; `container:host:size` is"
                )));
            }
        }
    }
    Ok(text)
}

/// A user namespace with a map. Only a process can have one, so one is made for it, and ends with it.
struct Namespace {
    handle: OwnedFd,
    /// It waits for the end of its input.
    _holder: Child,
}

impl Namespace {
    fn new(map: &Map) -> Result<Namespace> {
        let failed = |error: &dyn std::fmt::Display| Error::io("making a user namespace", error);
        let mut command = Command::new("/proc/self/exe");
        command.arg(HOLD).env_clear().current_dir("/");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        #[allow(
            unsafe_code,
            reason = "a process can change its own user namespace alone, and only before it has threads"
        )]
        // SAFETY: one unshare(2), which allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(|| Ok(unshare(CloneFlags::CLONE_NEWUSER)?));
        }
        // When this returns the program was started, so the namespace is there.
        let holder = child::spawn(&mut command).map_err(|error| failed(&error))?;
        let proc = PathBuf::from(format!("/proc/{}", holder.pid));
        for (name, lines) in [("gid_map", &map.gids), ("uid_map", &map.uids)] {
            let file = File::options().write(true).open(proc.join(name));
            // In one write, as the kernel wants it.
            file.and_then(|mut file| file.write_all(lines.as_bytes()))
                .map_err(|error| failed(&error))?;
        }
        let handle = File::open(proc.join("ns/user")).map_err(|error| failed(&error))?;
        Ok(Namespace {
            handle: handle.into(),
            _holder: holder,
        })
    }
}

/// The argument that makes this program do nothing but wait for the end of its input.
pub const HOLD: &str = "hold-user-namespace";

/// What stands behind [`HOLD`].
pub fn hold() {
    let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
}

/// A mount whose lower directories are shifted, and where they are; taken away when it is dropped,
/// which what was mounted from it does not mind.
#[derive(Debug)]
pub struct Shifted(PathBuf);

impl Shifted {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Shifted {
    fn drop(&mut self) {
        // Detached: whoever has a file open in there delays nobody.
        if let Err(errno) = umount2(&self.0, MntFlags::MNT_DETACH) {
            log::warn(format!("{}: {errno}", self.0.display()));
        }
        if let Err(error) = std::fs::remove_dir(&self.0) {
            log::warn(format!("{}: {error}", self.0.display()));
        }
    }
}

/// How the directory is called on which lower directories are shifted; a number follows.
const NAME: &str = "shifted-";

/// Where that is done for a root file system that is mounted on `target`.
pub fn place(target: &Path) -> PathBuf {
    target.with_file_name(format!("{NAME}{}", std::process::id()))
}

/// What a shim that was killed half-way left in `bundle`.
pub fn left_in(bundle: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(bundle).into_iter().flatten().flatten();
    let left = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(NAME));
    left.map(|entry| entry.path()).collect()
}

/// Mounts `source` once more, read-only and shifted, on the new directory `target`.
pub fn shifted(source: &Path, target: PathBuf, map: &Map) -> Result<Shifted> {
    std::fs::create_dir_all(&target).map_err(|error| Error::io(target.display(), error))?;
    if let Err(error) = attach(source, &target, map, libc::MOUNT_ATTR_RDONLY) {
        let _ = std::fs::remove_dir(&target);
        return Err(error);
    }
    Ok(Shifted(target))
}

/// Shifts what is mounted on `target`.
pub fn shift(target: &Path, map: &Map) -> Result<()> {
    attach(target, target, map, 0)
}

fn attach(source: &Path, target: &Path, map: &Map, attributes: u64) -> Result<()> {
    let namespace = Namespace::new(map)?;
    let failed = |what: &str, errno: &dyn std::fmt::Display| {
        Error::unknown(format!(
            "{what} {} with other owners: {errno} (idmapped mounts need Linux 5.19 for overlays)",
            source.display()
        ))
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(rustix::fs::CWD, source, flags)
        .map_err(|errno| failed("copying the mount", &errno))?;
    set_attributes(tree.as_fd(), namespace.handle.as_fd(), attributes)
        .map_err(|errno| failed("mounting", &errno))?;
    move_mount(
        &tree,
        "",
        rustix::fs::CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(|errno| failed("attaching", &errno))
}

/// `mount_setattr(2)` with a user namespace.
fn set_attributes(
    tree: BorrowedFd<'_>,
    namespace: BorrowedFd<'_>,
    attributes: u64,
) -> nix::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | attributes,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).map_err(|_| Errno::EBADF)?,
    };
    #[allow(unsafe_code, reason = "no library has this call")]
    // SAFETY: both descriptors are open, the path is a C string, and the structure has the size that
    // is said and outlives the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(done).map(drop)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_is_left_is_found_by_its_name() {
        let bundle = tempfile::tempdir().unwrap();
        let root = bundle.path().join("rootfs");
        for place in [&root, &place(&root)] {
            std::fs::create_dir(place).unwrap();
        }
        assert_eq!(left_in(bundle.path()), [place(&root)]);
        assert!(left_in(&root.join("none")).is_empty());
    }

    #[test]
    fn maps_are_read() {
        let mut options = vec![
            "uidmap=0:33:65535".to_owned(),
            "x".to_owned(),
            "gidmap=0:66:100,100:666:65536".to_owned(),
        ];
        let map = Map::take(&mut options).unwrap().unwrap();
        assert_eq!(map.uids, "0 33 65535\n");
        assert_eq!(map.gids, "0 66 100\n100 666 65536\n");
        assert_eq!(options, ["x"]);
        assert_eq!(Map::take(&mut options).unwrap(), None);
        for bad in ["uidmap=0:1:1", "uidmap=0:1", "gidmap=a:b:c", "uidmap=0:0:0"] {
            assert!(Map::take(&mut vec![bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
