//! The files of a container that does not run: seen as it would see them, by directory handle,
//! and by nobody else. A thread gives itself a mount namespace and mounts the snapshot there; when
//! it ends, however that comes, the mount is gone.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use containerd_client::types::Mount;
use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::stat::{SFlag, fstat},
};

use crate::{
    error::{Error, Result},
    kind::Kind,
};

/// Files of users and groups that are larger are not believed.
const MAX_TEXT: u64 = 1 << 20;
/// Tries to open a file while something on its file system is renamed.
const OPEN_TRIES: usize = 8;

/// The root of an image's files.
#[derive(Debug)]
pub(super) struct Root(OwnedFd);

/// Whose a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Directory {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
}

/// Looks at the files that `mounts` make up. `at` is an empty directory of the caller's.
pub(super) async fn within<T: Send + 'static>(
    mounts: &[Mount],
    at: PathBuf,
    look: impl FnOnce(&Root) -> T + Send + 'static,
) -> Result<T> {
    let mounts = mounts.to_vec();
    let (tell, told) = tokio::sync::oneshot::channel();
    // Not one of the runtime's threads: it never comes back to the namespace it had.
    let thread = std::thread::Builder::new().name("rootfs".to_owned());
    thread
        .spawn(move || {
            let seen = Root::open(&mounts, &at).map(|root| look(&root));
            // Nobody waits any more.
            let _ = tell.send(seen);
        })
        .map_err(|error| Error::new(Kind::Internal, "cannot start a thread").caused_by(&error))?;
    told.await.unwrap_or_else(|_| {
        Err(Error::new(
            Kind::Internal,
            "the thread that looks at the image's files ended early",
        ))
    })
}

impl Root {
    fn open(mounts: &[Mount], at: &Path) -> Result<Self> {
        let failed = |errno: Errno| {
            Error::new(Kind::Internal, "cannot look at the image's files")
                .caused_by(&errno)
                .hint("run this as root, on the machine that containerd runs on")
        };
        let [only] = mounts else {
            return Err(Error::new(
                Kind::Unsupported,
                "the snapshotter gives several mounts, whose files cannot be looked at from here",
            ));
        };
        unshare(CloneFlags::CLONE_NEWNS).map_err(failed)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(failed)?;
        match only.r#type.as_str() {
            "overlay" => {
                let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
                let options = read_only(&only.options);
                let kind = Some("overlay");
                mount(kind, at, kind, flags, Some(options.as_str())).map_err(failed)?;
            }
            "bind" => {
                let source = Some(only.source.as_str());
                mount(source, at, none, MsFlags::MS_BIND, none).map_err(failed)?;
            }
            other => {
                return Err(Error::new(
                    Kind::Unsupported,
                    format_args!(
                        "the snapshotter gives a mount of type `{}`, whose files cannot be looked at from here",
                        other.escape_debug()
                    ),
                ));
            }
        }
        let root = File::open(at).map_err(|error| Error::io("open", at, &error))?;
        Ok(Self(root.into()))
    }

    /// A regular file; `None` where there is none. Links are followed within the image only.
    pub(super) fn file(&self, path: &[u8]) -> io::Result<Option<File>> {
        // Without opening it: a device of the image's would be woken, a pipe wait.
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        for _ in 0..OPEN_TRIES {
            match openat2(&self.0, OsStr::from_bytes(path), how) {
                Ok(found) => {
                    let kind = SFlag::from_bits_truncate(fstat(found.as_fd())?.st_mode);
                    if kind & SFlag::S_IFMT != SFlag::S_IFREG {
                        return Ok(None);
                    }
                    // The very file that was found, opened.
                    let same = format!("/proc/self/fd/{}", found.as_raw_fd());
                    return File::open(same).map(Some);
                }
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(None),
                Err(Errno::EAGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(Errno::EAGAIN.into())
    }

    /// A directory's owner and mode; `None` where there is none.
    pub(super) fn directory(&self, path: &str) -> Option<Directory> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let found = openat2(&self.0, path, how).ok()?;
        let stat = fstat(found.as_fd()).ok()?;
        Some(Directory {
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: stat.st_mode & 0o7777,
        })
    }

    /// A text; nothing where there is none.
    pub(super) fn text(&self, path: &str) -> io::Result<String> {
        let Some(file) = self.file(path.as_bytes())? else {
            return Ok(String::new());
        };
        let mut bytes = Vec::new();
        file.take(MAX_TEXT + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_TEXT {
            return Err(io::Error::other(format!("{path} is longer than 1 MiB")));
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The options of an overlay to be read: what would be its upper layer is the highest of the lower
/// ones, because the container's own mount may have it already.
fn read_only(options: &[String]) -> String {
    let value = |name: &str| {
        options
            .iter()
            .find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
    };
    let lower = value("lowerdir").unwrap_or_default();
    let lower = match value("upperdir") {
        Some(upper) => format!("lowerdir={upper}:{lower}"),
        None => format!("lowerdir={lower}"),
    };
    let others = options.iter().filter(|option| {
        let name = option.split('=').next().unwrap_or_default();
        !matches!(
            name,
            "lowerdir" | "upperdir" | "workdir" | "index" | "volatile" | "rw" | "ro"
        )
    });
    std::iter::once(lower)
        .chain(others.cloned())
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_is_only_read() {
        let options = |list: &[&str]| {
            let list: Vec<String> = list.iter().map(|one| (*one).to_owned()).collect();
            read_only(&list)
        };
        assert_eq!(
            options(&[
                "index=off",
                "userxattr",
                "workdir=/w",
                "upperdir=/u",
                "lowerdir=/b:/a"
            ]),
            "lowerdir=/u:/b:/a,userxattr"
        );
        assert_eq!(options(&["lowerdir=/b:/a"]), "lowerdir=/b:/a");
    }

    #[test]
    fn links_stay_within_and_only_files_are_opened() {
        use std::os::unix::fs::symlink;

        let dir = tempfile::tempdir().expect("a directory");
        let outside = tempfile::tempdir().expect("a directory");
        std::fs::write(outside.path().join("passwd"), "host").expect("written");
        std::fs::create_dir(dir.path().join("etc")).expect("made");
        let etc = dir.path().join("etc");
        symlink(outside.path().join("passwd"), etc.join("passwd")).expect("linked");
        symlink("../../../../../../etc/own", etc.join("group")).expect("linked");
        std::fs::write(etc.join("own"), "image").expect("written");
        nix::unistd::mkfifo(&etc.join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("made");
        let root = Root(File::open(dir.path()).expect("opened").into());
        assert_eq!(root.text("/etc/passwd").expect("none"), "");
        assert_eq!(root.text("/etc/group").expect("within"), "image");
        for no_file in ["/etc", "/etc/pipe", "/etc/own/x", "/none"] {
            assert!(root.file(no_file.as_bytes()).expect("looked").is_none());
        }
    }
}
