//! A container's root file system as the container will see it: the directory, and over it what
//! `config.json` mounts. Nothing is followed by the kernel, no device and no pipe is opened, and
//! what cannot be told is [`Unseen`].

use std::{
    fs::File,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use edgepull_platform::{
    executable::Needs,
    launch::{FileNode, LONGEST, MOST_LINKS, Node, Tree, Unseen, components},
};
use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, open, openat, openat2, readlinkat},
    io::Errno,
};

use super::spec::{Mount, Process};

/// More mounts than any container has; beyond them nobody knows what is where.
const MOST_MOUNTS: usize = 1024;
/// A handle by which something is looked at and nothing is opened.
const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Any of the three rights to execute.
const EXECUTABLE: u32 = 0o111;

/// A root file system.
#[derive(Debug)]
pub(super) struct Root {
    base: OwnedFd,
    mounts: Vec<Placed>,
    user: Option<u32>,
    /// The kernel has no `openat2` (before 5.6), or it is not for us.
    by_steps: bool,
    /// The file that was looked at last.
    last: Option<(Vec<u8>, OwnedFd)>,
}

/// A mount, and where it lies, without links.
#[derive(Debug)]
struct Placed {
    at: Vec<u8>,
    what: What,
}

#[derive(Debug)]
enum What {
    /// Of the host; whether mounts below it come along.
    Bound {
        source: PathBuf,
        recursive: bool,
        handle: Option<OwnedFd>,
    },
    /// Nothing that could be looked at.
    Other { destination: String, fresh: bool },
}

/// Where something stands.
enum At {
    Handle(OwnedFd, Stat),
    Missing,
}

impl Root {
    /// Opens `rootfs` with what lies over it. Fails where it cannot be told what is where.
    pub(super) fn open(rootfs: &Path, mounts: &[Mount], process: &Process) -> Result<Root, Unseen> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let base = open(rootfs, flags, Mode::empty())
            .map_err(|errno| Unseen(format!("the root file system cannot be opened: {errno}")))?;
        if mounts.len() > MOST_MOUNTS {
            return Err(Unseen(
                "there are more mounts than can be followed".to_owned(),
            ));
        }
        let mut root = Root {
            base,
            mounts: Vec::with_capacity(mounts.len()),
            user: (!process.passes_over_modes()).then_some(process.user.uid),
            by_steps: false,
            last: None,
        };
        for mount in mounts {
            let at = root.landing(mount.destination.as_bytes())?;
            let what = match mount.bound() {
                // A relative source is the bundle's, which is not known here.
                Some(recursive) if mount.source.starts_with('/') => What::Bound {
                    source: PathBuf::from(&mount.source),
                    recursive,
                    handle: None,
                },
                _ => What::Other {
                    destination: mount.destination.clone(),
                    fresh: mount.is_fresh(),
                },
            };
            root.mounts.push(Placed { at, what });
        }
        Ok(root)
    }

    /// Where a runtime mounts what is for `destination`: links are followed inside the root, and
    /// what is missing is made.
    fn landing(&mut self, destination: &[u8]) -> Result<Vec<u8>, Unseen> {
        let mut done: Vec<Vec<u8>> = Vec::new();
        let mut ahead = components(destination);
        let mut links = 0;
        // Below something that is missing, or fresh, there is no link.
        let mut plain = false;
        while let Some(name) = ahead.pop_front() {
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    done.pop();
                    continue;
                }
                _ => done.push(name),
            }
            let here = done.join(&b'/');
            if here.len() > LONGEST {
                return Err(Unseen("a mount has too long a path".to_owned()));
            }
            if plain || self.is_fresh(&here) {
                plain = true;
                continue;
            }
            match self.look(&here)? {
                At::Missing => plain = true,
                At::Handle(handle, stat) if is(&stat, FileType::Symlink) => {
                    links += 1;
                    let target = target(&handle)?;
                    if links > MOST_LINKS {
                        return Err(Unseen("a mount is for a link without end".to_owned()));
                    }
                    if target.starts_with(b"/") {
                        done.clear();
                    } else {
                        done.pop();
                    }
                    let mut next = components(&target);
                    next.append(&mut ahead);
                    ahead = next;
                }
                At::Handle(..) => {}
            }
        }
        Ok(done.join(&b'/'))
    }

    /// The mount that `path` is in: the last one that covers it.
    fn mount(&self, path: &[u8]) -> Option<usize> {
        self.mounts
            .iter()
            .rposition(|mount| below(path, &mount.at).is_some())
    }

    fn leads_to_mount(&self, path: &[u8]) -> bool {
        self.mounts
            .iter()
            .any(|mount| below(&mount.at, path).is_some_and(|rest| !rest.is_empty()))
    }

    fn is_fresh(&self, path: &[u8]) -> bool {
        let mount = self.mount(path).and_then(|at| self.mounts.get(at));
        matches!(
            mount,
            Some(Placed {
                what: What::Other { fresh: true, .. },
                ..
            })
        )
    }

    /// What stands under `path`, which leads over no link.
    fn look(&mut self, path: &[u8]) -> Result<At, Unseen> {
        let mut by_steps = self.by_steps;
        let mounted = self.mount(path);
        let found = match mounted.and_then(|at| self.mounts.get_mut(at)) {
            None => step_down(&self.base, path, true, &mut by_steps),
            Some(Placed { at, what }) => match what {
                What::Other { destination, .. } => Err(Unseen(format!(
                    "it is below {}, which is mounted when the container starts",
                    destination.escape_debug()
                ))),
                What::Bound {
                    source,
                    recursive,
                    handle,
                } => {
                    let source = match handle {
                        Some(source) => source,
                        None => handle.insert(of_host(source)?),
                    };
                    let rest = below(path, at).unwrap_or_default();
                    step_down(source, rest, *recursive, &mut by_steps)
                }
            },
        };
        self.by_steps = by_steps;
        found
    }

    /// Whether the one that the container runs as may execute, or go through; `None`: it depends.
    fn may_execute(&self, stat: &Stat) -> Option<bool> {
        let mode = u32::from_ne_bytes(stat.st_mode.to_ne_bytes());
        match self.user {
            _ if mode & EXECUTABLE == 0 => {
                Some(is(stat, FileType::Directory) && self.user.is_none())
            }
            None => Some(true),
            _ if mode & EXECUTABLE == EXECUTABLE => Some(true),
            Some(user) if stat.st_uid == user => Some(mode & 0o100 != 0),
            // Groups decide, which are not looked up.
            Some(_) => None,
        }
    }
}

impl Tree for Root {
    fn node(&mut self, path: &[u8]) -> Result<Node, Unseen> {
        let (handle, stat) = match self.look(path)? {
            // The runtime makes what is missing on the way to a mount.
            At::Missing if self.leads_to_mount(path) => return Ok(Node::Directory),
            At::Missing => return Ok(Node::Missing),
            At::Handle(handle, stat) => (handle, stat),
        };
        let closed = || Unseen("who may use it is not known".to_owned());
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => match self.may_execute(&stat) {
                Some(true) => Node::Directory,
                _ => return Err(closed()),
            },
            FileType::RegularFile => {
                let executable = self.may_execute(&stat).ok_or_else(closed)?;
                self.last = Some((path.to_vec(), handle));
                Node::File(FileNode {
                    executable,
                    layer: None,
                })
            }
            FileType::Symlink => Node::Link(target(&handle)?),
            _ => Node::Other,
        })
    }

    fn needs(&mut self, path: &[u8]) -> Result<Needs, Unseen> {
        let kept = self.last.take().filter(|(of, _)| of == path);
        let handle = match kept {
            Some((_, handle)) => handle,
            None => match self.look(path)? {
                At::Handle(handle, stat) if is(&stat, FileType::RegularFile) => handle,
                _ => return Err(Unseen("it is no file any longer".to_owned())),
            },
        };
        // The very file that was looked at, so that it cannot have become a device meanwhile.
        let again = format!("/proc/self/fd/{}", handle.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = open(again, flags, Mode::empty())
            .map_err(|errno| Unseen(format!("it cannot be opened: {errno}")))?;
        Ok(Needs::read(&File::from(file)))
    }
}

/// The rest of `path` below `mount`; none where it is not there.
fn below<'p>(path: &'p [u8], mount: &[u8]) -> Option<&'p [u8]> {
    if mount.is_empty() {
        return Some(path);
    }
    match path.strip_prefix(mount)? {
        [] => Some(b""),
        [b'/', rest @ ..] => Some(rest),
        _ => None,
    }
}

/// The source of a bind mount, which the kernel follows as for whoever mounts it.
fn of_host(source: &Path) -> Result<OwnedFd, Unseen> {
    open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
        let source = source.display().to_string();
        Unseen(format!(
            "`{}` cannot be seen: {errno}",
            source.escape_debug()
        ))
    })
}

/// Looks at `path` below `from`. `across`: other file systems that are mounted there count.
fn step_down(from: &OwnedFd, path: &[u8], across: bool, by_steps: &mut bool) -> Result<At, Unseen> {
    let unseen = |errno: Errno| Unseen(format!("it cannot be seen: {errno}"));
    let handle = if path.is_empty() {
        from.try_clone().map_err(|error| Unseen(error.to_string()))
    } else {
        let name = std::ffi::OsStr::from_bytes(path);
        let mut resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        if !across {
            resolve |= ResolveFlags::NO_XDEV;
        }
        let opened = if *by_steps {
            Err(Errno::NOSYS)
        } else {
            openat2(from, name, LOOK, Mode::empty(), resolve)
        };
        match opened {
            Ok(handle) => Ok(handle),
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(At::Missing),
            Err(Errno::NOSYS | Errno::PERM) if !across => Err(Unseen(
                "what is mounted below a mount cannot be told apart on this kernel".to_owned(),
            )),
            Err(Errno::NOSYS | Errno::PERM) => {
                *by_steps = true;
                match one_by_one(from, path) {
                    Ok(handle) => Ok(handle),
                    Err(Errno::NOENT | Errno::NOTDIR) => return Ok(At::Missing),
                    Err(errno) => Err(unseen(errno)),
                }
            }
            Err(errno) => Err(unseen(errno)),
        }
    }?;
    let stat = fstat(&handle).map_err(unseen)?;
    Ok(At::Handle(handle, stat))
}

/// The same without `openat2`.
fn one_by_one(from: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let mut names = components(path);
    let last = names.pop_back().ok_or(Errno::NOENT)?;
    let mut directory: Option<OwnedFd> = None;
    for name in names {
        let above = directory.as_ref().unwrap_or(from);
        directory = Some(openat(
            above,
            name,
            LOOK | OFlags::DIRECTORY,
            Mode::empty(),
        )?);
    }
    openat(
        directory.as_ref().unwrap_or(from),
        last,
        LOOK,
        Mode::empty(),
    )
}

fn target(link: &OwnedFd) -> Result<Vec<u8>, Unseen> {
    let read = readlinkat(link, "", Vec::new());
    let text = read.map_err(|errno| Unseen(format!("a link cannot be read: {errno}")))?;
    Ok(text.into_bytes())
}

fn is(stat: &Stat, kind: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == kind
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn scene() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path();
        fs::create_dir_all(root.join("usr/bin")).expect("made");
        fs::write(root.join("usr/bin/app"), b"#!/x\n").expect("written");
        symlink("usr/bin", root.join("bin")).expect("linked");
        symlink("/", root.join("usr/up")).expect("linked");
        dir
    }

    fn root(dir: &Path, mounts: &str) -> Root {
        let mounts: Vec<Mount> = serde_json::from_str(mounts).expect("mounts");
        Root::open(dir, &mounts, &Process::default()).expect("opened")
    }

    #[test]
    fn an_old_kernel_is_looked_at_step_by_step_with_the_same_result() {
        let dir = scene();
        let seen = |by_steps: bool| {
            let mut root = root(dir.path(), "[]");
            root.by_steps = by_steps;
            let paths = [
                "usr",
                "usr/bin/app",
                "usr/bin/app/x",
                "bin",
                "bin/app",
                "gone",
                "usr/up/etc",
            ];
            let nodes = paths.map(|path| root.node(path.as_bytes()).map_err(drop));
            let needs = root.needs(b"usr/bin/app").expect("read");
            (nodes, needs)
        };
        let (nodes, needs) = seen(true);
        assert_eq!(nodes[0], Ok(Node::Directory));
        assert_eq!(nodes[3], Ok(Node::Link(b"usr/bin".to_vec())));
        assert_eq!(nodes[5], Ok(Node::Missing));
        // Links on the way are followed by nobody: that is for whoever asks.
        for at in [4, 6] {
            assert!(
                !matches!(nodes[at], Ok(Node::File(_) | Node::Directory)),
                "{nodes:?}"
            );
        }
        let (newer, same) = seen(false);
        assert_eq!(
            (&newer[..4], &newer[5], same),
            (&nodes[..4], &nodes[5], needs)
        );
    }

    #[test]
    fn other_mounts_below_a_plain_bind_are_not_taken_for_it() {
        let dir = scene();
        let mounts =
            r#"[{"destination": "/opt", "type": "bind", "source": "/", "options": ["OPTION"]}]"#;
        let look = |option: &str, by_steps: bool| {
            let mut root = root(dir.path(), &mounts.replace("OPTION", option));
            root.by_steps = by_steps;
            root.node(b"opt/proc/version")
        };
        assert!(matches!(look("rbind", false), Ok(Node::File(_))));
        assert!(matches!(look("rbind", true), Ok(Node::File(_))));
        assert!(look("bind", false).is_err());
        assert!(look("bind", true).is_err());
    }
}
