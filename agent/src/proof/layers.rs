//! A root file system as directories of layers that lie over each other, as the overlay file
//! system reads them (Linux `Documentation/filesystems/overlayfs.rst`), without a mount: what a
//! check sees needs no right to mount, and the kernel's caches stay as they are.
//!
//! Every name is opened from the handle of its parent, and no link is followed on the way.

use std::{
    ffi::OsStr,
    fs::File,
    io::Read,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use edgepull_platform::{
    executable::Needs,
    launch::{FileNode, Node, Tree, Unseen},
};
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::stat::{FileStat, Mode, SFlag, fstatat},
};

use crate::{
    error::{Error, Result},
    kind::Kind,
};

/// The names of a mount's attributes, by its option `userxattr`. Of `trusted` ones nobody sees any
/// who may not administer the system; without them a hidden file is taken for one that shows.
const PREFIX: [&str; 2] = ["trusted.overlay.", "user.overlay."];
/// What is read of a text (bytes).
const LONGEST_TEXT: u64 = 1 << 20;
/// Any of the three rights to execute.
const EXECUTABLE: u32 = 0o111;

/// Directories of layers, the topmost first.
#[derive(Debug)]
pub(super) struct Layers {
    layers: Vec<Layer>,
}

/// What a directory or a file of a layer says about itself.
enum Marked {
    No,
    /// Nothing below shows through.
    Opaque,
    /// Something that only the kernel follows: its content is elsewhere.
    Otherwise,
}

#[derive(Debug)]
struct Layer {
    root: OwnedFd,
    /// Its number from the bottom, where each directory is one layer.
    number: Option<usize>,
    prefix: &'static str,
}

/// What one layer says of a path.
enum Said {
    /// Nothing: the layer below decides.
    Nothing,
    /// There is this, and what is below does not count.
    This(Node),
}

impl Layers {
    /// Opens `directories`, the topmost first. `one_each`: each is one layer of the image.
    /// `user_names`: the mount has the option `userxattr`.
    pub(super) fn open(directories: &[PathBuf], one_each: bool, user_names: bool) -> Result<Self> {
        let [trusted, user] = PREFIX;
        let prefix = if user_names { user } else { trusted };
        let count = directories.len();
        let open = |(at, path): (usize, &PathBuf)| {
            let root = File::open(path).map_err(|error| {
                Error::io("open the directory of a layer", path, &error)
                    .hint("run this as root, where containerd runs")
            })?;
            Ok(Layer {
                root: root.into(),
                number: one_each.then(|| count.saturating_sub(at).saturating_sub(1)),
                prefix,
            })
        };
        let layers = directories.iter().enumerate().map(open);
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
        })
    }

    /// The handle of the regular file at `path`, in the topmost layer that has it.
    fn file(&self, path: &[u8]) -> Result<File> {
        for layer in &self.layers {
            if let Said::This(node) = layer.say(path)? {
                let Node::File(_) = node else { break };
                let file = layer.open(path)?;
                return match layer.marked(&file) {
                    Marked::No => Ok(file),
                    _ => Err(followed_by_kernel(path)),
                };
            }
        }
        Err(cannot("open", path, Errno::ENOENT))
    }
}

impl Layers {
    /// The beginning of the file at `path`, as text.
    pub(super) fn text(&self, path: &[u8]) -> Result<String> {
        let mut bytes = Vec::new();
        let file = self.file(path)?;
        let read = file.take(LONGEST_TEXT).read_to_end(&mut bytes);
        let shown = Path::new(OsStr::from_bytes(path));
        read.map_err(|error| Error::io("read", shown, &error))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Tree for Layers {
    fn node(&mut self, path: &[u8]) -> Result<Node, Unseen> {
        for layer in &self.layers {
            if let Said::This(node) = layer.say(path).map_err(unseen)? {
                return Ok(node);
            }
        }
        Ok(Node::Missing)
    }

    fn needs(&mut self, path: &[u8]) -> Result<Needs, Unseen> {
        Ok(Needs::read(&self.file(path).map_err(unseen)?))
    }
}

impl Layer {
    fn say(&self, path: &[u8]) -> Result<Said> {
        let mut directory: Option<OwnedFd> = None;
        // Whether what is below shows through where this layer has nothing.
        let mut hides = false;
        let (parents, name) = split(path);
        for parent in parents {
            let from = directory.as_ref().unwrap_or(&self.root);
            match open_directory(from, parent) {
                Ok(next) => {
                    match self.marked(&next) {
                        Marked::No => {}
                        Marked::Opaque => hides = true,
                        Marked::Otherwise => return Err(followed_by_kernel(path)),
                    }
                    directory = Some(next);
                }
                Err(Errno::ENOENT) => return Ok(nothing(hides)),
                // Removed by this layer, or replaced by something else.
                Err(Errno::ENOTDIR | Errno::ELOOP) => return Ok(Said::This(Node::Missing)),
                Err(errno) => return Err(cannot("open a directory of", path, errno)),
            }
        }
        let from = directory.as_ref().unwrap_or(&self.root);
        let stat = match fstatat(from, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => return Ok(nothing(hides)),
            Err(errno) => return Err(cannot("look at", path, errno)),
        };
        Ok(Said::This(match kind(&stat) {
            SFlag::S_IFDIR => Node::Directory,
            SFlag::S_IFREG => Node::File(FileNode {
                executable: stat.st_mode & EXECUTABLE != 0,
                layer: self.number,
            }),
            SFlag::S_IFLNK => {
                let target = readlinkat(from, OsStr::from_bytes(name))
                    .map_err(|errno| cannot("read the link", path, errno))?;
                Node::Link(target.as_bytes().to_vec())
            }
            SFlag::S_IFCHR if stat.st_rdev == 0 => Node::Missing,
            _ => Node::Other,
        }))
    }

    fn open(&self, path: &[u8]) -> Result<File> {
        let failed = |errno| cannot("open", path, errno);
        let mut directory: Option<OwnedFd> = None;
        let (parents, name) = split(path);
        for parent in parents {
            let from = directory.as_ref().unwrap_or(&self.root);
            directory = Some(open_directory(from, parent).map_err(failed)?);
        }
        let from = directory.as_ref().unwrap_or(&self.root);
        // A pipe that took the file's place meanwhile must not hold this up.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = openat(from, OsStr::from_bytes(name), flags, Mode::empty()).map_err(failed)?;
        Ok(File::from(file))
    }
}

impl Layer {
    fn marked(&self, file: impl AsFd) -> Marked {
        let has = |name: &str| {
            let mut value = [0_u8; 2];
            let name = format!("{}{name}", self.prefix);
            match rustix::fs::fgetxattr(&file, name, &mut value[..]) {
                Ok(length) => Some(value.get(..length).unwrap_or_default().to_vec()),
                // It is longer: what it says is not asked for.
                Err(rustix::io::Errno::RANGE) => Some(Vec::new()),
                Err(_) => None,
            }
        };
        match has("opaque") {
            Some(value) if value == b"y" => return Marked::Opaque,
            Some(value) if value == b"x" => return Marked::Otherwise,
            _ => {}
        }
        if has("redirect").is_some() || has("metacopy").is_some() {
            return Marked::Otherwise;
        }
        Marked::No
    }
}

fn followed_by_kernel(path: &[u8]) -> Error {
    let path = String::from_utf8_lossy(path);
    Error::new(
        Kind::Unsupported,
        format_args!(
            "`{}` has its content elsewhere (overlay redirect or metacopy), which only a mount follows",
            path.escape_debug()
        ),
    )
}

#[allow(clippy::needless_pass_by_value, reason = "what `map_err` wants")]
fn unseen(error: Error) -> Unseen {
    Unseen(error.message().to_owned())
}

fn nothing(hides: bool) -> Said {
    if hides {
        Said::This(Node::Missing)
    } else {
        Said::Nothing
    }
}

fn open_directory(from: &OwnedFd, name: &[u8]) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(from, OsStr::from_bytes(name), flags, Mode::empty())
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// The directories on the way, and the last name.
fn split(path: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let mut names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    let name = names.pop().unwrap_or_default();
    (names, name)
}

fn cannot(action: &str, path: &[u8], errno: Errno) -> Error {
    Error::io(action, Path::new(OsStr::from_bytes(path)), &errno.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::sys::stat::mknod;

    use super::*;

    fn file(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("set");
    }

    fn whiteout(root: &Path, path: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        mknod(&path, SFlag::S_IFCHR, Mode::empty(), 0).expect("root");
    }

    fn layer(layers: &mut Layers, path: &str) -> Option<usize> {
        match layers.node(path.as_bytes()).expect("seen") {
            Node::File(file) => file.layer,
            _ => None,
        }
    }

    #[test]
    fn layers_lie_over_each_other_as_the_kernel_has_it() {
        assert!(
            nix::unistd::geteuid().is_root(),
            "whiteouts are made by root alone"
        );
        let dir = tempfile::tempdir().expect("a directory");
        let roots: Vec<PathBuf> = ["top", "middle", "bottom"]
            .map(|name| dir.path().join(name))
            .into();
        let [top, middle, bottom] = &roots[..] else {
            unreachable!()
        };
        for root in &roots {
            std::fs::create_dir(root).expect("made");
        }
        file(bottom, "bin/app", "old");
        file(bottom, "bin/tool", "tool");
        file(bottom, "lib/ld.so", "ld");
        file(bottom, "opt/a/x", "x");
        file(bottom, "srv/hidden", "h");
        file(bottom, "etc/file", "f");
        file(middle, "bin/app", "new");
        whiteout(middle, "bin/tool");
        whiteout(middle, "opt/a");
        file(middle, "srv/shown", "s");
        let srv = File::open(middle.join("srv")).expect("opened");
        rustix::fs::fsetxattr(
            &srv,
            "trusted.overlay.opaque",
            b"y",
            rustix::fs::XattrFlags::empty(),
        )
        .expect("root");
        file(top, "etc", "no directory any more");
        symlink("/usr/bin", top.join("sbin")).expect("linked");
        let mut layers = Layers::open(&roots, true, false).expect("opened");
        for (path, from) in [
            ("bin/app", Some(1)),
            ("bin/tool", None),
            ("lib/ld.so", Some(0)),
            ("opt/a/x", None),
            ("srv/hidden", None),
            ("srv/shown", Some(1)),
            ("etc/file", None),
            ("etc", Some(2)),
        ] {
            assert_eq!(layer(&mut layers, path), from, "{path}");
        }
        let link = Node::Link(b"/usr/bin".to_vec());
        assert_eq!(layers.node(b"sbin").expect("seen"), link);
        assert_eq!(layers.node(b"sbin/x").expect("seen"), Node::Missing);
        assert_eq!(layers.node(b"bin").expect("seen"), Node::Directory);
        let mut bytes = String::new();
        std::io::Read::read_to_string(&mut layers.file(b"bin/app").expect("there"), &mut bytes)
            .expect("read");
        assert_eq!(bytes, "new");
        assert!(layers.needs(b"bin/tool").is_err());

        // Names of another kind of mount mean nothing, and what only a mount follows is not guessed.
        let set = |path: &str, name: &str, value: &[u8]| {
            let file = File::open(path).expect("opened");
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::fsetxattr(&file, name, value, flags).expect("root");
        };
        let at = |root: &Path, path: &str| root.join(path).display().to_string();
        set(&at(middle, "bin"), "user.overlay.opaque", b"y");
        assert_eq!(layer(&mut layers, "lib/ld.so"), Some(0));
        file(bottom, "bin/old", "old");
        assert_eq!(layer(&mut layers, "bin/old"), Some(0));
        let mut rootless = Layers::open(&roots, true, true).expect("opened");
        assert_eq!(layer(&mut rootless, "bin/old"), None);
        set(&at(middle, "bin/app"), "trusted.overlay.metacopy", b"");
        assert!(layers.needs(b"bin/app").is_err());
        set(
            &at(bottom, "lib"),
            "trusted.overlay.redirect",
            b"/elsewhere",
        );
        assert!(layers.node(b"lib/ld.so").is_err());
    }

    /// A mounted overlay, unmounted at the end.
    struct Mounted(PathBuf);

    impl Mounted {
        fn new(at: PathBuf, layers: &[PathBuf]) -> Self {
            std::fs::create_dir(&at).expect("made");
            let list: Vec<_> = layers.iter().map(|dir| dir.display().to_string()).collect();
            let options = format!("ro,lowerdir={}", list.join(":"));
            let mounted = std::process::Command::new("mount")
                .args(["-t", "overlay", "overlay", "-o", &options])
                .arg(&at)
                .status();
            assert!(mounted.expect("mount(8)").success(), "{options}");
            Self(at)
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ended = std::process::Command::new("umount").arg(&self.0).status();
        }
    }

    /// What the kernel has there, over no link.
    fn kernel(root: &File, path: &str) -> Node {
        use nix::fcntl::{OpenHow, ResolveFlag, openat2};

        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT);
        let parent = path.rsplit_once('/').map_or(".", |(parent, _)| parent);
        let over_no_link =
            how.resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS);
        if openat2(root, parent, over_no_link).is_err() {
            return Node::Missing;
        }
        let Ok(found) = openat2(root, path, how) else {
            return Node::Missing;
        };
        let stat = nix::sys::stat::fstat(&found).expect("it is open");
        match kind(&stat) {
            SFlag::S_IFDIR => Node::Directory,
            SFlag::S_IFREG => Node::File(FileNode {
                executable: true,
                layer: None,
            }),
            SFlag::S_IFLNK => Node::Link(b"x".to_vec()),
            _ => Node::Other,
        }
    }

    /// Any layers over each other are seen as the kernel's own overlay shows them.
    #[test]
    fn what_is_seen_is_what_the_kernel_mounts() {
        let names = ["a", "b", "c"];
        let mut paths: Vec<String> = names.map(str::to_owned).into();
        for depth in 0..2 {
            let above: Vec<String> = paths
                .iter()
                .filter(|p| p.matches('/').count() == depth)
                .cloned()
                .collect();
            paths.extend(
                above
                    .iter()
                    .flat_map(|p| names.map(|name| format!("{p}/{name}"))),
            );
        }
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            usize::try_from(random >> 32).expect("64 bits") % below
        };
        let dir = tempfile::tempdir().expect("a directory");
        for case in 0..40 {
            let roots: Vec<PathBuf> = (0..3)
                .map(|layer| dir.path().join(format!("{case}-{layer}")))
                .collect();
            for root in &roots {
                std::fs::create_dir(root).expect("made");
                for _ in 0..8 {
                    let path = root.join(&paths[next(paths.len())]);
                    let parent = path.parent().expect("one");
                    // What is in the way stays: a layer has one thing under one name.
                    if std::fs::create_dir_all(parent).is_err() || path.symlink_metadata().is_ok() {
                        continue;
                    }
                    match next(5) {
                        0 => std::fs::create_dir(&path).expect("made"),
                        1 => symlink("x", &path).expect("linked"),
                        2 => mknod(&path, SFlag::S_IFCHR, Mode::empty(), 0).expect("root"),
                        3 => {
                            std::fs::create_dir(&path).expect("made");
                            let opaque = File::open(&path).expect("opened");
                            let flags = rustix::fs::XattrFlags::empty();
                            rustix::fs::fsetxattr(&opaque, "trusted.overlay.opaque", b"y", flags)
                                .expect("root");
                        }
                        _ => {
                            std::fs::write(&path, "x").expect("written");
                            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))
                                .expect("set");
                        }
                    }
                }
            }
            let mounted = Mounted::new(dir.path().join(format!("{case}-all")), &roots);
            let root = File::open(&mounted.0).expect("opened");
            let mut layers = Layers::open(&roots, false, false).expect("opened");
            for path in &paths {
                let seen = layers.node(path.as_bytes()).expect("seen");
                assert_eq!(seen, kernel(&root, path), "case {case}: {path}");
            }
        }
    }

    #[test]
    fn one_directory_of_several_layers_names_none() {
        let dir = tempfile::tempdir().expect("a directory");
        file(dir.path(), "app", "x");
        let mut layers = Layers::open(&[dir.path().to_owned()], false, false).expect("opened");
        assert_eq!(
            layers.node(b"app").expect("seen"),
            Node::File(FileNode {
                executable: true,
                layer: None
            })
        );
    }
}
