//! Calls of `edgepull smoke`, and what a daemon holds before and after.

use std::fs;
use std::path::{Path, PathBuf};

use crate::containerd::Containerd;
use crate::edgepull::Edgepull;
use crate::image::Layout;
use crate::process;
use crate::scene::NAMESPACE;
use crate::tools::mounts_below;

/// Where the runs of a daemon have their places: calls of other tests are not seen.
pub fn runtime_dir(daemon: &Containerd) -> PathBuf {
    daemon.dir().join("edgepull")
}

/// `edgepull smoke oci:LAYOUT` on this daemon, as JSON.
#[track_caller]
pub fn smoke(daemon: &Containerd, layout: &Layout) -> Edgepull {
    smoke_ref(daemon, &format!("oci:{}", layout.path().display()))
}

/// `edgepull smoke REF`, the same.
#[track_caller]
pub fn smoke_ref(daemon: &Containerd, reference: &str) -> Edgepull {
    Edgepull::new(["smoke"])
        .json()
        .on(daemon, NAMESPACE)
        .env("RUNTIME_DIRECTORY", runtime_dir(daemon))
        .arg(reference)
}

/// The ids of the runs that go on, or were left.
pub fn runs(daemon: &Containerd) -> Vec<String> {
    let places = fs::read_dir(runtime_dir(daemon).join("smoke"));
    let names = places.into_iter().flatten().flatten();
    names
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some(name.strip_suffix(".lock")?.to_owned())
        })
        .collect()
}

/// The control groups of a run, of any controller.
pub fn cgroups(id: &str) -> Vec<PathBuf> {
    let tree = Path::new("/sys/fs/cgroup");
    let trees = fs::read_dir(tree).into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> = trees.map(|entry| entry.path().join(id)).collect();
    all.push(tree.join(id));
    all.retain(|path| path.exists());
    all
}

/// What the store of a daemon has: names of images, digests, snapshots of any kind, leases,
/// containers, tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stand {
    lists: Vec<(&'static str, Vec<String>)>,
}

const LISTS: [(&str, &[&str]); 6] = [
    ("images", &["images", "ls", "-q"]),
    ("blobs", &["content", "ls", "-q"]),
    ("snapshots", &["snapshots", "ls"]),
    ("leases", &["leases", "ls", "-q"]),
    ("containers", &["containers", "ls", "-q"]),
    ("tasks", &["tasks", "ls", "-q"]),
];

impl Stand {
    /// As it is now.
    #[track_caller]
    pub fn of(daemon: &Containerd) -> Self {
        let list = |args: &[&str]| {
            let text = daemon.ctr(NAMESPACE, args).ok().text();
            let rows = text.lines().filter(|line| !line.starts_with("KEY "));
            let mut rows: Vec<String> = rows.map(|line| line.trim().to_owned()).collect();
            rows.sort();
            rows
        };
        let lists = LISTS.iter().map(|(name, args)| (*name, list(args)));
        Self {
            lists: lists.collect(),
        }
    }

    /// Of a daemon that was not used.
    pub fn nothing() -> Self {
        let lists = LISTS.iter().map(|(name, _)| (*name, Vec::new()));
        Self {
            lists: lists.collect(),
        }
    }

    /// Fails the test unless it is the same now, and no process, mount or file of a run is left.
    #[track_caller]
    pub fn is_left(&self, daemon: &Containerd) {
        assert_eq!(*self, Self::of(daemon), "of {}", daemon.version());
        assert_eq!(runs(daemon), [""; 0], "places");
        let places = fs::read_dir(runtime_dir(daemon).join("smoke"));
        assert_eq!(places.map_or(0, Iterator::count), 0, "files of runs");
        let mounts = mounts_below(daemon.dir());
        assert!(mounts.is_empty(), "{mounts:?}");
        // A shim ends a moment after its task is deleted.
        process::wait_for(
            "the end of every shim",
            std::time::Duration::from_secs(10),
            || {
                let users = process::users_of(daemon.dir());
                users.iter().all(|pid| *pid == daemon.pid())
            },
        );
    }
}
