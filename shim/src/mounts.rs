//! Mounting what a snapshotter describes, and taking it away.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::chdir;

use crate::aside::Aside;
use crate::child;
use crate::error::{Error, Result};
use crate::idmap::{self, Map};
use crate::loopback::Loop;
use crate::mountinfo;
use crate::wire::Mount;

/// The kernel takes one page of options.
const PAGE: usize = 4096;
/// What is read of a helper's words (bytes).
const LONGEST: u64 = 4096;
/// Left free of it, as containerd does.
const MARGIN: usize = 512;

const PROPAGATION: MsFlags = MsFlags::MS_SHARED
    .union(MsFlags::MS_PRIVATE)
    .union(MsFlags::MS_SLAVE)
    .union(MsFlags::MS_UNBINDABLE);

/// What a word of fstab(5) sets or takes back.
fn flag(word: &str) -> Option<(bool, MsFlags)> {
    Some(match word {
        "async" => (false, MsFlags::MS_SYNCHRONOUS),
        "atime" => (false, MsFlags::MS_NOATIME),
        "bind" => (true, MsFlags::MS_BIND),
        "defaults" => (true, MsFlags::empty()),
        "dev" => (false, MsFlags::MS_NODEV),
        "diratime" => (false, MsFlags::MS_NODIRATIME),
        "dirsync" => (true, MsFlags::MS_DIRSYNC),
        "exec" => (false, MsFlags::MS_NOEXEC),
        "mand" => (true, MsFlags::MS_MANDLOCK),
        "noatime" => (true, MsFlags::MS_NOATIME),
        "nodev" => (true, MsFlags::MS_NODEV),
        "nodiratime" => (true, MsFlags::MS_NODIRATIME),
        "noexec" => (true, MsFlags::MS_NOEXEC),
        "nomand" => (false, MsFlags::MS_MANDLOCK),
        "norelatime" => (false, MsFlags::MS_RELATIME),
        "nostrictatime" => (false, MsFlags::MS_STRICTATIME),
        "nosuid" => (true, MsFlags::MS_NOSUID),
        "rbind" => (true, MsFlags::MS_BIND.union(MsFlags::MS_REC)),
        "relatime" => (true, MsFlags::MS_RELATIME),
        "remount" => (true, MsFlags::MS_REMOUNT),
        "ro" => (true, MsFlags::MS_RDONLY),
        "rw" => (false, MsFlags::MS_RDONLY),
        "strictatime" => (true, MsFlags::MS_STRICTATIME),
        "suid" => (false, MsFlags::MS_NOSUID),
        "sync" => (true, MsFlags::MS_SYNCHRONOUS),
        "private" => (true, MsFlags::MS_PRIVATE),
        "rprivate" => (true, MsFlags::MS_PRIVATE.union(MsFlags::MS_REC)),
        "shared" => (true, MsFlags::MS_SHARED),
        "rshared" => (true, MsFlags::MS_SHARED.union(MsFlags::MS_REC)),
        "slave" => (true, MsFlags::MS_SLAVE),
        "rslave" => (true, MsFlags::MS_SLAVE.union(MsFlags::MS_REC)),
        "unbindable" => (true, MsFlags::MS_UNBINDABLE),
        "runbindable" => (true, MsFlags::MS_UNBINDABLE.union(MsFlags::MS_REC)),
        _ => return None,
    })
}

/// Options as the kernel takes them.
#[derive(Debug, PartialEq)]
struct Parsed {
    flags: MsFlags,
    /// What a bind mount is made private or shared with, in a call of its own.
    propagation: MsFlags,
    /// The source is a file, which is mounted through a block device.
    image: bool,
    data: Vec<String>,
}

fn parse(options: &[String]) -> Parsed {
    let mut parsed = Parsed {
        flags: MsFlags::empty(),
        propagation: MsFlags::empty(),
        image: false,
        data: Vec::new(),
    };
    for option in options {
        match flag(option) {
            Some((true, flags)) if flags.intersects(PROPAGATION) => parsed.propagation |= flags,
            Some((true, flags)) => parsed.flags |= flags,
            Some((false, flags)) => parsed.flags &= !flags,
            None if option == "loop" => parsed.image = true,
            None => parsed.data.push(option.clone()),
        }
    }
    parsed
}

/// Mounts one after the other onto `root`. What was mounted before one that fails stays: [`unmount`]
/// takes it away.
pub async fn mount_all(mounts: &[Mount], root: &Path) -> Result<()> {
    for one in mounts {
        let target = if one.target.is_empty() {
            root.to_owned()
        } else {
            below(root, &one.target)?
        };
        let mounted = match helper(&one.kind) {
            Some((program, kind)) => mount_by(program, kind, one, &target).await,
            None => mount_one(one, &target).await,
        };
        mounted.map_err(|error| {
            let what = format!("mounting {} on {}", one.kind, target.display());
            error.context(what)
        })?;
    }
    Ok(())
}

/// A target inside the root. containerd names such targets only where a snapshotter did; a path that
/// climbs, or leads over a link, is refused.
fn below(root: &Path, target: &str) -> Result<PathBuf> {
    let mut path = root.to_owned();
    for name in target
        .split('/')
        .filter(|name| !name.is_empty() && *name != ".")
    {
        if name == ".." {
            return Err(Error::invalid(format!(
                "the mount target `{target}` leads outside"
            )));
        }
        path.push(name);
        if path.symlink_metadata().is_ok_and(|meta| meta.is_symlink()) {
            return Err(Error::invalid(format!(
                "the mount target `{target}` leads over a link"
            )));
        }
    }
    Ok(path)
}

/// The program that mounts file systems of user space, and the name of one without its prefix.
fn helper(kind: &str) -> Option<(&'static str, &str)> {
    let of = |program, prefix| Some((program, kind.strip_prefix(prefix)?));
    of("mount.fuse3", "fuse3.").or_else(|| of("mount.fuse", "fuse."))
}

/// Mounts by a program, as containerd calls it. What serves the mount afterwards becomes a child of
/// this process.
async fn mount_by(program: &str, kind: &str, one: &Mount, target: &Path) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| Error::io(format!("`{program}`"), error);
    let output = memfd_create(c"output", MFdFlags::MFD_CLOEXEC).map_err(|error| failed(&error))?;
    let mut output = File::from(output);
    let copy = || output.try_clone().map_err(|error| failed(&error));
    let mut command = Command::new(program);
    command.arg(&one.source).arg(target);
    for option in &one.options {
        command.arg("-o").arg(option);
    }
    command.arg("-t").arg(kind).current_dir("/");
    command.stdin(Stdio::null()).stdout(copy()?).stderr(copy()?);
    let child = child::spawn(&mut command).map_err(|error| failed(&error))?;
    let status = child.ending.exit().await.status;
    if status == 0 {
        return Ok(());
    }
    let mut said = Vec::new();
    let _ = output.seek(SeekFrom::Start(0));
    let _ = output.take(LONGEST).read_to_end(&mut said);
    let said = String::from_utf8_lossy(&said);
    let said: Vec<&str> = said.split_whitespace().collect();
    Err(Error::unknown(format!(
        "`{program}` ended with status {status}: {}",
        said.join(" ")
    )))
}

async fn mount_one(one: &Mount, target: &Path) -> Result<()> {
    let mut options = one.options.clone();
    let map = Map::take(&mut options)?;
    let mut base = None;
    // Lower directories are shifted together, and before they are mounted; all else afterwards.
    let mut shifted = None;
    if let Some(map) = &map
        && one.kind == "overlay"
    {
        let common = shorten(&mut options, 1).ok_or_else(|| {
            Error::invalid("an overlay whose layers have no directory in common cannot be shifted")
        })?;
        let lower = idmap::shifted(&common, idmap::place(target), map)?;
        base = Some(lower.path().to_owned());
        shifted = Some(lower);
    }
    let length = |options: &[String]| options.iter().map(|one| one.len() + 1).sum::<usize>();
    if one.kind == "overlay" && base.is_none() && length(&options) >= PAGE - MARGIN {
        base = shorten(&mut options, 2);
    }
    let parsed = parse(&options);
    let data = parsed.data.join(",");
    if data.len() >= PAGE {
        return Err(Error::invalid(format!(
            "the options have {} bytes, the kernel takes {PAGE}: too many layers",
            data.len()
        )));
    }
    let calls = Calls {
        source: one.source.clone(),
        target: target.to_owned(),
        kind: Some(one.kind.clone()).filter(|kind| kind != "bind"),
        parsed,
        data: Some(data).filter(|data| !data.is_empty()),
        base,
    };
    // A disk or a server that does not answer holds up this container alone, for as long as it takes.
    let aside = Aside::default();
    let done = aside.run(1, Duration::MAX, move || calls.make()).await;
    done.unwrap_or_else(|| {
        Err(Error::unknown("no thread can be made for it: the host is short of memory, or at a limit of processes (`TasksMax` of containerd's unit, `pids.max`, `kernel.threads-max`)"))
    })?;
    if let Some(map) = &map
        && shifted.is_none()
    {
        idmap::shift(target, map)?;
    }
    Ok(())
}

/// What the kernel is asked for, in a thread of its own.
#[derive(Debug)]
struct Calls {
    source: String,
    target: PathBuf,
    kind: Option<String>,
    parsed: Parsed,
    data: Option<String>,
    /// Where relative layers are.
    base: Option<PathBuf>,
}

impl Calls {
    fn make(self) -> Result<()> {
        let Self { parsed, target, .. } = &self;
        let flags = parsed.flags;
        let failed = |errno: Errno| {
            let source = self.source.escape_debug();
            Error::unknown(format!("from `{source}`: {} ({errno})", errno.desc()))
        };
        if !flags.contains(MsFlags::MS_REMOUNT) || self.data.is_some() {
            // Only this thread goes there.
            if let Some(base) = &self.base {
                unshare(CloneFlags::CLONE_FS)
                    .map_err(|errno| Error::io("a working directory of its own", errno))?;
                chdir(base).map_err(|errno| {
                    Error::io(format!("going to the layers in {}", base.display()), errno)
                })?;
            }
            let device = parsed.image.then(|| {
                let read_only = flags.contains(MsFlags::MS_RDONLY);
                Loop::of(Path::new(&self.source), read_only)
            });
            let device = device.transpose()?;
            let source = device.as_ref().map_or(Path::new(&self.source), Loop::path);
            let (kind, data) = (self.kind.as_deref(), self.data.as_deref());
            mount(Some(source), target, kind, flags, data).map_err(failed)?;
        }
        let none: Option<&str> = None;
        if !parsed.propagation.is_empty() {
            mount(none, target, none, parsed.propagation, none).map_err(failed)?;
        }
        // A bind mount gets its rights by a second call alone.
        if flags.contains(MsFlags::MS_BIND | MsFlags::MS_RDONLY) {
            mount(none, target, none, flags | MsFlags::MS_REMOUNT, none).map_err(failed)?;
        }
        Ok(())
    }
}

/// Makes the lower directories of an overlay relative to the directory that holds all of them, and
/// returns that one; only where there are at least `least` of them.
fn shorten(options: &mut [String], least: usize) -> Option<PathBuf> {
    let option = options
        .iter_mut()
        .find(|one| one.starts_with("lowerdir="))?;
    let (_, value) = option.split_once('=')?;
    let lower: Vec<&str> = value.split(':').collect();
    let first = lower.first()?;
    let mut common = first.rsplit_once('/')?.0;
    while !lower.iter().all(|dir| {
        dir.strip_prefix(common)
            .is_some_and(|rest| rest.starts_with('/'))
    }) {
        common = common.rsplit_once('/')?.0;
    }
    if common.is_empty() || lower.len() < least {
        return None;
    }
    let base = PathBuf::from(common);
    let short: Vec<&str> = lower
        .iter()
        .filter_map(|dir| dir.strip_prefix(common)?.strip_prefix('/'))
        .collect();
    *option = format!("lowerdir={}", short.join(":"));
    Some(base)
}

/// Takes away all that is mounted on `root`, one above the other. An overlay writes its files to the
/// disk when it goes, which may take long: this is for a thread of its own.
pub fn unmount(root: &Path) -> Result<()> {
    // More than one only where a snapshotter stacks; the bound is against a race without end.
    for _ in 0..128 {
        match umount2(root, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINTR) => {}
            // Nothing is mounted there (any more).
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(Errno::EBUSY) => detach(root)?,
            Err(errno) => {
                return Err(Error::io(format!("unmounting {}", root.display()), errno));
            }
        }
    }
    Err(Error::unknown(format!("{} stays mounted", root.display())))
}

/// Takes what is mounted on `root` out of sight at once, with everything below it.
pub fn detach(root: &Path) -> Result<()> {
    match umount2(root, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(Error::io(format!("unmounting {}", root.display()), errno)),
    }
}

/// The same for everything below `root` as well, the deepest first.
pub fn unmount_recursive(root: &Path) -> Result<()> {
    let mut below = Vec::new();
    // Without the table `root` is tried all the same.
    let _ = mountinfo::lines(Path::new("/proc/self/mountinfo"), |line| {
        let point = line.split(' ').nth(4).unwrap_or_default();
        let point = PathBuf::from(mountinfo::unescape(point));
        if point != root && point.starts_with(root) {
            below.push(point);
        }
    });
    below.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    for point in below {
        unmount(&point)?;
    }
    unmount(root)
}

#[cfg(test)]
mod tests;
