//! What this host runs, as cheaply as a container's start allows.

use std::{
    fs,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    sync::OnceLock,
};

use edgepull_platform::{Facts, Host, detect};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// The host that a container is to be started on.
#[derive(Debug, Clone)]
pub struct Here {
    host: Host,
    /// It is this very host, which can be looked at more closely.
    live: bool,
}

impl Here {
    /// This host now. What does not change before the next boot is asked for once; handlers come
    /// and go, and are read each time. `None` where nothing tells what it is.
    pub fn now() -> Option<Here> {
        static FACTS: OnceLock<Option<Facts>> = OnceLock::new();
        let facts = FACTS.get_or_init(|| Facts::quick().ok()).as_ref()?;
        let host = detect(&facts.with_handlers(|| None)).ok()?;
        Some(Here { host, live: true })
    }

    /// A host that is known, of which no more can be told.
    pub fn known(host: Host) -> Here {
        Here { host, live: false }
    }

    /// What is known of it.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The same with everything that can be told, for milliseconds: the 32-bit mode, build options,
    /// and the kernel's table of handlers also where it is not mounted. `None`: that is all.
    pub(super) fn closely(&self) -> Option<Here> {
        if !self.live {
            return None;
        }
        let facts = Facts::live().ok()?;
        let mut table: Option<OwnedFd> = None;
        let facts = facts.with_handlers(|| {
            let opened = handlers().ok()?;
            let path = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
            table = Some(opened);
            Some(path)
        });
        drop(table);
        let host = detect(&facts).ok()?;
        Some(Here { host, live: false })
    }
}

/// The kernel's table of handlers, mounted nowhere (Linux 5.2 and later). In the first user
/// namespace there is one for all, and looking at it changes nothing. In another one this would make a
/// new and empty one (Linux 6.7 and later), which hides what the first one has: there nobody looks.
fn handlers() -> rustix::io::Result<OwnedFd> {
    if !is_first_of_users(&fs::read_to_string("/proc/self/uid_map").unwrap_or_default()) {
        return Err(rustix::io::Errno::PERM);
    }
    let context = fsopen("binfmt_misc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let flags = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

/// Whether a user's numbers are everybody's, by `/proc/self/uid_map`.
fn is_first_of_users(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_user_namespaces_are_known() {
        assert!(is_first_of_users("         0          0 4294967295\n"));
        for other in [
            "",
            "0 100000 65536\n",
            "0 0 65536\n",
            "0 0 1\n1 1 4294967294\n",
        ] {
            assert!(!is_first_of_users(other), "{other}");
        }
    }

    #[test]
    fn this_host_runs_what_it_is_and_a_closer_look_says_the_same() {
        let here = Here::now().expect("a host");
        let closely = here.closely().expect("live");
        assert_eq!(here.host().platform, closely.host().platform);
        assert!(here.host().how(&here.host().platform).is_some());
        assert_eq!(closely.closely().map(|_| ()), None);
        // As root on a kernel that has the table, it is seen even where nobody mounted it.
        assert!(closely.host().handlers_observed);
    }
}
