//! Where things are, and a clean place for each test.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::process as proc;

/// The paths of the lab.
#[derive(Debug)]
pub struct Lab {
    workspace: PathBuf,
    dir: PathBuf,
    run: PathBuf,
}

/// A Unix socket path has 107 bytes; what containerd adds below a run directory needs about 40.
const LONGEST_RUN_PATH: usize = 60;

/// The runc of the lab.
const RUNC: &str = "runc/usr/sbin/runc";

/// What containerd looks for when a runtime is called `io.containerd.edgepull.v1`.
const SHIM: &str = "containerd-shim-edgepull-v1";

impl Lab {
    /// The lab of this workspace. Checked once per process: root, overlayfs, leftovers.
    pub fn get() -> &'static Self {
        static LAB: OnceLock<Lab> = OnceLock::new();
        LAB.get_or_init(Self::open)
    }

    fn home() -> PathBuf {
        env::var_os("EDGEPULL_LAB").map_or_else(
            || {
                let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
                workspace
                    .expect("the crate lies in the workspace")
                    .join("build/lab")
            },
            PathBuf::from,
        )
    }

    fn open() -> Self {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("the crate lies in the workspace")
            .to_path_buf();
        let dir = Self::home();
        assert!(
            dir.is_dir(),
            "the lab is not set up ({} is missing): run tests/setup",
            dir.display()
        );
        assert!(
            nix::unistd::geteuid().is_root(),
            "the lab needs root (mounts, containerd, runc): run the tests with sudo"
        );
        let mut run = dir.join("run");
        if run.as_os_str().len() > LONGEST_RUN_PATH {
            run = PathBuf::from("/var/tmp/edgepull-lab");
        }
        fs::create_dir_all(&run).unwrap_or_else(|e| panic!("cannot make {}: {e}", run.display()));
        let lab = Self {
            workspace,
            dir,
            run,
        };
        lab.sweep();
        lab.probe_overlay();
        lab
    }

    /// The workspace's root.
    pub fn workspace(&self) -> &Path {
        &self.workspace
    }

    /// What `tests/setup` made.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file that `tests/setup` brings, by its path below the lab.
    pub fn tool(&self, path: &str) -> PathBuf {
        let file = self.dir.join(path);
        assert!(
            file.exists(),
            "{} is missing: run tests/setup",
            file.display()
        );
        file
    }

    /// A program installed by `tests/setup` from a package.
    pub fn installed(&self, name: &str) -> PathBuf {
        ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/bin", "/sbin"]
            .iter()
            .map(|dir| Path::new(dir).join(name))
            .find(|file| file.exists())
            .unwrap_or_else(|| panic!("{name} is not installed: run tests/setup"))
    }

    /// The value of PATH for programs that start `runc`.
    pub fn path_with(&self, first: &Path) -> String {
        let runc = self.tool(RUNC);
        format!(
            "{}:{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            first.display(),
            runc.parent().expect("a file has a parent").display()
        )
    }

    /// The program under test: `EDGEPULL_BIN`, else the one next to the test's own profile
    /// directory.
    pub fn edgepull(&self) -> PathBuf {
        if let Some(path) = env::var_os("EDGEPULL_BIN") {
            let path = PathBuf::from(path);
            assert!(
                path.is_file(),
                "EDGEPULL_BIN names {}, which does not exist",
                path.display()
            );
            return path;
        }
        let path = beside_the_test("edgepull");
        assert!(
            path.is_file(),
            "{} is missing: run `cargo build -p edgepull` first (or name the program in EDGEPULL_BIN)",
            path.display()
        );
        refuse_stale(&path, &path.with_extension("d"), "cargo build -p edgepull");
        path
    }

    /// The shim under test: `EDGEPULL_SHIM_BIN`, else the one next to the test's own profile
    /// directory. containerd finds it by its name alone.
    pub fn shim(&self) -> PathBuf {
        let path =
            env::var_os("EDGEPULL_SHIM_BIN").map_or_else(|| beside_the_test(SHIM), PathBuf::from);
        assert!(
            path.is_file() && path.ends_with(SHIM),
            "{} is no {SHIM}: run `cargo build -p edgepull-shim` first (or name one in EDGEPULL_SHIM_BIN)",
            path.display()
        );
        refuse_stale(
            &path,
            &path.with_extension("d"),
            "cargo build -p edgepull-shim",
        );
        path
    }

    /// An empty directory for one test, removed (with the mounts below it) when dropped.
    pub fn run_dir(&self, what: &str) -> RunDir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = self.run.join(format!("{}-{n}-{what}", process::id()));
        fs::create_dir_all(&path).unwrap_or_else(|e| panic!("cannot make {}: {e}", path.display()));
        RunDir { path }
    }

    /// A directory kept from run to run, for what is expensive to make and always the same.
    pub fn cache(&self) -> PathBuf {
        let dir = self.dir.join("cache");
        fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("cannot make {}: {e}", dir.display()));
        dir
    }

    /// Ends and removes what test processes left that were killed before they could clean up.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.run).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.split('-').next().and_then(|pid| pid.parse().ok());
            let Some(owner) = owner else { continue };
            if !proc::alive(owner) {
                drop(RunDir { path: entry.path() });
            }
        }
    }

    fn probe_overlay(&self) {
        let dir = self.run_dir("overlay");
        for sub in ["lower", "upper", "work", "merged"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
        }
        let at = dir.path().display();
        let options = format!("lowerdir={at}/lower,upperdir={at}/upper,workdir={at}/work");
        let merged = dir.path().join("merged");
        mount(
            Some("overlay"),
            &merged,
            Some("overlay"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .unwrap_or_else(|e| {
            panic!("no overlayfs on {at} ({e}): set EDGEPULL_LAB to a directory on ext4 or xfs")
        });
        umount2(&merged, MntFlags::MNT_DETACH).unwrap();
    }
}

/// `cargo test` of this crate does not build the program: an old one would be tested in silence.
/// Its dep-info names every source it was made of.
pub(crate) fn refuse_stale(program: &Path, rules: &Path, remedy: &str) {
    let modified = |path: &Path| fs::metadata(path).and_then(|m| m.modified());
    let rules = fs::read_to_string(rules).unwrap_or_default();
    let (Ok(built), Some((_, sources))) = (modified(program), rules.split_once(": ")) else {
        return;
    };
    let newer = sources
        .split_whitespace()
        .find(|source| modified(Path::new(source)).is_ok_and(|when| when > built));
    if let Some(source) = newer {
        panic!(
            "{} is older than {source}: run `{remedy}` first",
            program.display()
        );
    }
}

/// A program that the shell would find.
pub(crate) fn in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// A file in the profile directory of the running test (`target/debug` or `target/release`).
pub(crate) fn beside_the_test(name: &str) -> PathBuf {
    let test = env::current_exe().expect("a running program has a path");
    let deps = test.parent().expect("a file has a parent");
    // Integration tests run from `deps/`, the library's own tests too, helpers from above it.
    let profile = if deps.ends_with("deps") {
        deps.parent().expect("deps lies in a profile directory")
    } else {
        deps
    };
    profile.join(name)
}

/// A temporary directory that may hold mounts and be the root of daemons.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Mount points below the directory, deepest last.
    pub fn mounts(&self) -> Vec<PathBuf> {
        mounts_below(&self.path)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        end_containers(&self.path);
        proc::kill_users_of(&self.path);
        for point in mounts_below(&self.path).iter().rev() {
            if let Err(e) = umount2(point, MntFlags::MNT_DETACH) {
                proc::note(&format!("cannot unmount {}: {e}", point.display()));
            }
        }
        if let Err(e) = fs::remove_dir_all(&self.path)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            proc::note(&format!("cannot remove {}: {e}", self.path.display()));
        }
    }
}

/// Ends the containers of the containerd in `dir`, and takes away what they have outside of it:
/// runc's state, the control group, the shim's socket. (The shims would do so, if asked; they are
/// about to be killed.)
pub(crate) fn end_containers(dir: &Path) {
    let tasks = dir.join("state/io.containerd.runtime.v2.task");
    for namespace in fs::read_dir(&tasks).into_iter().flatten().flatten() {
        for bundle in fs::read_dir(namespace.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            let root = Path::new("/run/containerd/runc").join(namespace.file_name());
            let id = bundle.file_name();
            if root.join(&id).exists() {
                let mut delete = Command::new(Lab::home().join(RUNC));
                delete.arg("--root").arg(root).args(["delete", "--force"]);
                let deleted = proc::run(delete.arg(id));
                if deleted.code != Some(0) {
                    proc::note(&deleted.transcript());
                }
            }
            // 1.x keeps the address as it is, 2.x within a document.
            for file in ["address", "bootstrap.json"] {
                let text = fs::read_to_string(bundle.path().join(file)).unwrap_or_default();
                let socket = text.split("unix://").nth(1).unwrap_or_default();
                let _gone = fs::remove_file(socket.split('"').next().unwrap_or_default().trim());
            }
        }
    }
}

/// Mount points at or below `dir`, in the order they were mounted.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(point.replace("\\040", " ")))
        .filter(|point| point.starts_with(dir))
        .collect()
}
