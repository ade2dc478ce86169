//! An OCI specification.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::scene::NAMESPACE;

/// The document of one container.
#[derive(Debug, Clone)]
pub struct Spec(
    /// As JSON; tests change what they are about.
    pub Value,
);

/// What a process needs that is not its arguments.
pub(super) fn process(args: &[&str]) -> Value {
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SYS_CHROOT"
    ]);
    json!({
        "terminal": false,
        "user": {"uid": 0, "gid": 0},
        "args": args,
        "env": ["PATH=/bin", "TERM=xterm"],
        "cwd": "/",
        "capabilities": {
            "bounding": capabilities, "effective": capabilities, "permitted": capabilities
        },
        "noNewPrivileges": true,
    })
}

impl Spec {
    /// As containerd's own clients would write it.
    pub(super) fn new(id: &str) -> Self {
        let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
        let namespaces: Vec<Value> = ["pid", "ipc", "uts", "mount", "network"]
            .iter()
            .map(|kind| json!({ "type": kind }))
            .collect();
        Self(json!({
            "ociVersion": "1.0.2",
            "process": process(&["true"]),
            "root": {"path": "rootfs"},
            "hostname": "dock",
            "mounts": [
                mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
                mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
                mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666",
                    "mode=0620", "gid=5"]),
                mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            ],
            "annotations": {},
            "linux": {
                "cgroupsPath": format!("/{NAMESPACE}/{id}"),
                "namespaces": namespaces,
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            },
        }))
    }
}

/// Every control group of a container: one a controller on v1, one on v2.
pub fn cgroup_of(namespace: &str, id: &str) -> Vec<PathBuf> {
    let tree = Path::new("/sys/fs/cgroup");
    let trees = fs::read_dir(tree).into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> = trees.map(|entry| entry.path()).collect();
    all.push(tree.to_path_buf());
    all.iter()
        .map(|tree| tree.join(namespace).join(id))
        .filter(|group| group.is_dir())
        .collect()
}
