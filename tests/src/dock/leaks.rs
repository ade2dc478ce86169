//! What containers leave on a machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::stdio::sha256;
use super::{Dock, cgroup_of};
use crate::process::{self, wait_for};
use crate::tools::mounts_below;

/// Where shims listen, whatever daemon they are of.
const SOCKETS: &str = "/run/containerd/s";
/// Where the OCI runtimes keep their state.
const STATE: &str = "/run/containerd/runc";

/// The sockets that a shim of this daemon may have for a container or a group: the task service, and
/// the one of its debugger where there is one.
pub fn sockets_of(address: &Path, namespace: &str, group: &str) -> Vec<PathBuf> {
    ["", "debug"]
        .iter()
        .map(|part| {
            let path = address.join(namespace).join(group).join(part);
            let path = path.to_string_lossy();
            Path::new(SOCKETS).join(sha256(path.trim_end_matches('/').as_bytes()))
        })
        .collect()
}

fn entries(dir: PathBuf) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

/// What a process holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Open files, as the kernel names them.
    pub files: Vec<String>,
    /// Threads.
    pub threads: usize,
}

impl Held {
    /// By a process.
    #[track_caller]
    pub fn by(pid: u32) -> Self {
        let entries = |what: &str| {
            fs::read_dir(format!("/proc/{pid}/{what}"))
                .unwrap_or_else(|e| panic!("process {pid}: {e}"))
                .flatten()
        };
        let mut files: Vec<String> = entries("fd")
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .map(|target| target.to_string_lossy().into_owned())
            .collect();
        files.sort();
        Self {
            files,
            threads: entries("task").count(),
        }
    }
}

impl Dock {
    /// All that is left of the containers of this dock, in words; nothing when all is gone.
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        let daemon = self.daemon.dir();
        for pid in process::users_of(daemon) {
            if pid != self.daemon.pid() {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                left.push(format!("process {pid}: {line}"));
            }
        }
        for mount in mounts_below(daemon) {
            left.push(format!("mount {}", mount.display()));
        }
        let bundles = self.bundles();
        left.extend(bundles.map(|bundle| format!("bundle {}", bundle.display())));
        for (namespace, id) in &self.watched() {
            let state = Path::new(STATE).join(namespace).join(id);
            if state.exists() {
                left.push(format!("state {}", state.display()));
            }
            for group in cgroup_of(namespace, id) {
                left.push(format!("control group {}", group.display()));
            }
            for socket in sockets_of(&self.daemon.address(), namespace, id) {
                if socket.exists() {
                    left.push(format!("socket {} of {id}", socket.display()));
                }
            }
        }
        left
    }

    /// The bundles, and their directories that outlive a boot.
    fn bundles(&self) -> impl Iterator<Item = PathBuf> {
        let parts = ["state", "root"].map(|part| self.daemon.dir().join(part));
        let namespaces = parts
            .map(|part| part.join("io.containerd.runtime.v2.task"))
            .into_iter()
            .flat_map(entries);
        namespaces.flat_map(entries)
    }

    /// containerd takes a bundle out of sight (a dot before its name) and then removes it. Killed between
    /// the two it passes over the rest for good (`atomicDelete` and `loadShims` in its `runtime/v2`): what
    /// it left of this container is taken away, and of no other.
    pub fn forget_half_removed(&self, id: &str) {
        let hidden = format!(".{id}");
        for bundle in self.bundles().filter(|bundle| bundle.ends_with(&hidden)) {
            fs::remove_dir_all(&bundle).unwrap_or_else(|e| panic!("{}: {e}", bundle.display()));
        }
    }

    /// Fails the test unless nothing is left of any container. A shim ends a moment after its last
    /// one is deleted, and half a minute after its start where nobody came; so this waits.
    #[track_caller]
    pub fn is_clean(&self) {
        let mut left = Vec::new();
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while std::time::Instant::now() < end {
            left = self.left();
            if left.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("left behind: {left:#?}\n{}", self.daemon.log());
    }

    /// Waits until a container's processes are over.
    #[track_caller]
    pub fn wait_dead(&self, pid: u32) {
        wait_for(
            &format!("the end of process {pid}"),
            Duration::from_secs(30),
            || !process::alive(pid),
        );
    }
}
