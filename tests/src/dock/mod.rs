//! A containerd with the shim under test, spoken to by its own services: every method of the Task
//! API, every event, and what is left on the machine afterwards.
//!
//! No image and no snapshotter is needed: a container's root is an overlay over one directory with
//! busybox in it, mounted by the shim as it would mount a snapshot's.

mod client;
mod events;
mod leaks;
mod spec;
mod stdio;
mod task;
pub mod ttrpc;
pub mod wire;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

pub use client::{Answer, Client};
pub use events::{Event, Events};
pub use leaks::{Held, sockets_of};
pub use spec::{Spec, cgroup_of};
pub use stdio::{Sink, Stdio, feed, numbers, sha256};
pub use task::{Exec, Make, Task, running};
pub use tonic::Code;

use crate::containerd::{Containerd, Setup, Version};
use crate::faulty::Faulty;
use crate::image::{Layout, host};
use crate::process::{self, Output};
use crate::scene::NAMESPACE;
use crate::tools::Lab;

/// The name under which containerd finds the shim. Another one is for the development of these
/// tests: what they ask holds for `io.containerd.runc.v2`, but for its known faults.
pub fn runtime() -> String {
    std::env::var("EDGEPULL_TEST_RUNTIME")
        .unwrap_or_else(|_| "io.containerd.edgepull.v1".to_owned())
}

/// True while these tests are tried with another shim.
pub fn is_foreign() -> bool {
    runtime() != "io.containerd.edgepull.v1"
}

/// Debian 13's crun, which accepts what every containerd writes. No crun wants control groups of both
/// versions at once: where this machine has them, it does not see the second version.
pub fn crun() -> PathBuf {
    let crun = Lab::get().tool("crun/usr/bin/crun");
    let both = fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers");
    if both.unwrap_or_default().trim().is_empty() {
        return crun;
    }
    let dir = Lab::get().cache().join("crun-apart");
    fs::create_dir_all(&dir).unwrap();
    let script = format!(
        "#!/bin/sh\nexec unshare --mount --propagation private sh -c \
         'umount -l /sys/fs/cgroup/unified && exec \"$0\" \"$@\"' '{}' \"$@\"\n",
        crun.display()
    );
    let new = dir.join(format!("new-{:?}", std::thread::current().id()));
    let new = new.with_extension(std::process::id().to_string());
    fs::write(&new, script).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&new, dir.join("crun")).unwrap();
    dir.join("crun")
}

/// The daemon and what belongs to it.
#[derive(Debug)]
pub struct Dock {
    /// The daemon.
    pub daemon: Containerd,
    client: Client,
    ids: Mutex<Vec<(String, String)>>,
}

/// `setup`, with the shim in its PATH (and criu, which the OCI runtimes look for).
#[track_caller]
pub fn with_shim(setup: Setup) -> Setup {
    let criu = Lab::get().tool("criu/usr/sbin/criu");
    let setup = setup.path(criu.parent().expect("a file has a parent"));
    if is_foreign() {
        return setup;
    }
    let shim = Lab::get().shim();
    setup.path(shim.parent().expect("a file has a parent"))
}

impl Dock {
    /// The usual daemon.
    #[track_caller]
    pub fn new(version: Version) -> Self {
        Self::with(Setup::new(version))
    }

    /// Any daemon.
    #[track_caller]
    pub fn with(setup: Setup) -> Self {
        let daemon = with_shim(setup).start();
        let client = Client::new(&daemon.address(), NAMESPACE);
        Self {
            daemon,
            client,
            ids: Mutex::default(),
        }
    }

    /// The connection of this thread.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// One more, for another thread.
    #[track_caller]
    pub fn connect(&self) -> Client {
        Client::new(&self.daemon.address(), NAMESPACE)
    }

    /// After a restart of the daemon.
    #[track_caller]
    pub fn connect_again(&mut self) {
        self.client = self.connect();
    }

    /// Its events from now on.
    #[track_caller]
    pub fn events(&self) -> Events {
        Events::of(&self.daemon.address(), &self.client)
    }

    /// An id that no other container of this machine has: what is outside of the daemon's directory
    /// (control groups, the OCI runtime's state) is told apart by it.
    pub fn id(&self, name: &str) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{n}-{name}", std::process::id());
        self.watch(&id);
        id
    }

    /// Looks for what is left of this one as well: a container, a group.
    pub fn watch(&self, id: &str) {
        self.watch_in(NAMESPACE, id);
    }

    /// The same in another namespace.
    pub fn watch_in(&self, namespace: &str, id: &str) {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.push((namespace.to_owned(), id.to_owned()));
    }

    fn watched(&self) -> Vec<(String, String)> {
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.clone()
    }

    /// A container being put together.
    pub fn make(&self, name: &str) -> Make<'_> {
        Make::new(self, self.id(name))
    }

    /// The same with an id that was used before.
    pub fn make_again(&self, id: &str) -> Make<'_> {
        Make::new(self, id.to_owned())
    }

    /// A container that runs this in busybox' shell.
    #[track_caller]
    pub fn sh(&self, name: &str, script: &str) -> Task<'_> {
        self.make(name).sh(script).start()
    }

    /// Brings an image, unpacked; its name.
    #[track_caller]
    pub fn pull(&self, layout: Layout) -> String {
        let registry = Faulty::start(layout, []);
        let reference = registry.reference("lab/dock", "latest");
        self.daemon.pull(NAMESPACE, &reference).ok();
        reference
    }

    /// `ctr` with this runtime: `run`, flags, an image, an id, a command.
    #[track_caller]
    pub fn ctr_run(&self, flags: &[&str], image: &str, id: &str, command: &[&str]) -> Output {
        let runtime = runtime();
        let mut args = vec!["run", "--runtime", &runtime, "--snapshotter", "overlayfs"];
        args.extend(flags);
        args.extend([image, id]);
        args.extend(command);
        self.daemon.ctr(NAMESPACE, &args)
    }

    /// Where a container's bundle is.
    pub fn bundle(&self, id: &str) -> PathBuf {
        let tasks = self
            .daemon
            .dir()
            .join("state/io.containerd.runtime.v2.task");
        tasks.join(NAMESPACE).join(id)
    }

    /// The pids of the shims: of those that serve, not of calls of `start` and `delete`.
    pub fn shims(&self) -> Vec<u32> {
        let mut shims = process::users_of(self.daemon.dir());
        shims.retain(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            let words: Vec<&str> = line.trim_end_matches('\0').split('\0').collect();
            words[0].contains("containerd-shim-")
                && !matches!(words.last(), Some(&("start" | "delete")))
        });
        shims
    }

    /// The one shim there is.
    #[track_caller]
    pub fn shim(&self) -> u32 {
        let shims = self.shims();
        assert_eq!(shims.len(), 1, "shims: {shims:?}\n{}", self.daemon.log());
        shims[0]
    }
}

/// A directory with busybox and a link for each thing it does; made once for a machine's lab.
pub fn rootfs() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let root = Lab::get().cache().join(format!("dock-{}", host().arch));
        if root.is_dir() {
            return root;
        }
        let busybox = Lab::get().tool(&format!("busybox-{}/bin/busybox", host().arch));
        let made = Lab::get()
            .cache()
            .join(format!("dock-{}.new", std::process::id()));
        let _earlier = fs::remove_dir_all(&made);
        for dir in ["bin", "dev", "proc", "sys", "tmp", "etc"] {
            fs::create_dir_all(made.join(dir)).unwrap();
        }
        fs::copy(&busybox, made.join("bin/busybox")).unwrap();
        fs::set_permissions(made.join("bin/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
        let list = process::run(std::process::Command::new(&busybox).arg("--list"));
        for name in list.ok().text().lines().filter(|name| *name != "busybox") {
            symlink("busybox", made.join("bin").join(name)).unwrap();
        }
        // Another process of these tests may have been first.
        if fs::rename(&made, &root).is_err() {
            fs::remove_dir_all(&made).unwrap();
        }
        assert!(root.is_dir(), "no {}", root.display());
        root
    })
}
