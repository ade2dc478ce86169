//! The OCI runtime specification of the container: containerd's own default, and stricter.
//!
//! Differences from it, on purpose: the root is read-only, with a tmpfs where programs write; of the
//! capabilities `NET_RAW` and `MKNOD` are left out, since there is no network to be raw on and no
//! device to be made, and `AUDIT_WRITE`, which is about the host's log; `NET_BIND_SERVICE` stays,
//! because a service that listens on port 80 of its own empty network is what is to be tried.
//! The cgroup namespace is one of its own as well. There is no seccomp filter: containerd's default
//! specification has none either, and a filter would make failures that the device does not have.

use serde_json::{Map, Value, json};

use super::{rootfs::Directory, user::Ids};
use crate::proof::DEFAULT_PATH;

/// What a tmpfs of the container may hold; its pages count as the container's memory as well.
const TMPFS: &str = "size=65536k";

/// One container.
#[derive(Debug)]
pub(super) struct Container<'a> {
    pub(super) id: &'a str,
    pub(super) args: &'a [String],
    pub(super) env: &'a [String],
    pub(super) cwd: &'a str,
    pub(super) user: &'a Ids,
    pub(super) volumes: &'a [Volume],
    pub(super) resources: &'a Map<String, Value>,
    /// Namespaces and file systems that this kernel lacks are left out.
    pub(super) kernel: Kernel,
}

/// A declared volume.
#[derive(Debug, Clone)]
pub(super) struct Volume {
    pub(super) path: String,
    /// What the image has there.
    pub(super) like: Option<Directory>,
}

/// What a kernel may be built without.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    pub(super) cgroup_namespaces: bool,
    pub(super) mqueue: bool,
}

impl Kernel {
    pub(super) fn running() -> Self {
        let systems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        Self {
            cgroup_namespaces: std::path::Path::new("/proc/self/ns/cgroup").exists(),
            mqueue: systems.split_whitespace().any(|name| name == "mqueue"),
        }
    }
}

const CAPABILITIES: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
];

/// containerd's, in the longer form of its later versions.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The JSON.
pub(super) fn spec(container: &Container<'_>) -> Value {
    let mut env = container.env.to_vec();
    if !env.iter().any(|one| one.starts_with("PATH=")) {
        env.insert(0, format!("PATH={DEFAULT_PATH}"));
    }
    let cwd = match container.cwd {
        "" => "/".to_owned(),
        absolute if absolute.starts_with('/') => absolute.to_owned(),
        relative => format!("/{relative}"),
    };
    let mut namespaces = vec!["pid", "ipc", "uts", "mount", "network"];
    if container.kernel.cgroup_namespaces {
        namespaces.push("cgroup");
    }
    let namespaces: Vec<Value> = namespaces
        .iter()
        .map(|kind| json!({ "type": kind }))
        .collect();
    let mut resources = container.resources.clone();
    // Nothing but what every container has is allowed, as runtimes add it.
    resources.insert(
        "devices".to_owned(),
        json!([{ "allow": false, "access": "rwm" }]),
    );
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {
                "uid": container.user.uid,
                "gid": container.user.gid,
                "additionalGids": container.user.more,
            },
            "args": container.args,
            "env": env,
            "cwd": cwd,
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
            // Where the host runs out of memory, what is only tried goes first.
            "oomScoreAdj": 500,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "smoke",
        "mounts": mounts(container),
        "linux": {
            "namespaces": namespaces,
            // Nobody else's, whatever the namespace: it goes with the container.
            "cgroupsPath": format!("/{}", container.id),
            "resources": resources,
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    })
}

fn mounts(container: &Container<'_>) -> Vec<Value> {
    let mount = |to: &str, kind: &str, from: &str, options: &[&str]| json!({ "destination": to, "type": kind, "source": from, "options": options });
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
    ];
    if container.kernel.mqueue {
        mounts.push(mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ));
    }
    mounts.extend([
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
        mount(
            "/run",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", TMPFS],
        ),
        mount(
            "/tmp",
            "tmpfs",
            "tmpfs",
            &["nosuid", "nodev", "strictatime", "mode=1777", TMPFS],
        ),
    ]);
    // With the files and the owner that the image has there, as a volume of docker's.
    for Volume { path, like } in container.volumes {
        let mut options: Vec<String> = ["nosuid", "nodev", "tmpcopyup", TMPFS]
            .map(str::to_owned)
            .to_vec();
        if let Some(Directory { uid, gid, mode }) = like {
            options.push(format!("uid={uid}"));
            options.push(format!("gid={gid}"));
            options.push(format!("mode={mode:o}"));
        }
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        mounts.push(mount(path, "tmpfs", "tmpfs", &options));
    }
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(env: &[&str], cwd: &str, cgroup_namespaces: bool) -> Value {
        let env: Vec<String> = env.iter().map(|one| (*one).to_owned()).collect();
        spec(&Container {
            id: "edgepull-smoke-1",
            args: &["/app".to_owned()],
            env: &env,
            cwd,
            user: &Ids {
                uid: 33,
                gid: 34,
                more: vec![4],
            },
            volumes: &[Volume {
                path: "/data".to_owned(),
                like: Some(Directory {
                    uid: 33,
                    gid: 34,
                    mode: 0o750,
                }),
            }],
            resources: &Map::new(),
            kernel: Kernel {
                cgroup_namespaces,
                mqueue: false,
            },
        })
    }

    #[test]
    fn it_is_shut_in() {
        let spec = of(&[], "", true);
        assert_eq!(spec["root"]["readonly"], true);
        assert_eq!(spec["process"]["noNewPrivileges"], true);
        assert_eq!(spec["process"]["cwd"], "/");
        assert_eq!(spec["process"]["user"]["additionalGids"], json!([4]));
        let kinds: Vec<&str> = spec["linux"]["namespaces"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|one| one["type"].as_str())
            .collect();
        assert_eq!(kinds, ["pid", "ipc", "uts", "mount", "network", "cgroup"]);
        assert!(
            spec["linux"]["namespaces"]
                .as_array()
                .is_some_and(|all| all.iter().all(|one| one.get("path").is_none())),
            "none is shared"
        );
        assert_eq!(spec["linux"]["cgroupsPath"], "/edgepull-smoke-1");
        let text = spec["process"]["capabilities"].to_string();
        for none in ["NET_RAW", "NET_ADMIN", "MKNOD", "SYS_ADMIN", "AUDIT_WRITE"] {
            assert!(!text.contains(none), "{none}");
        }
        let text = spec["mounts"].to_string();
        assert!(text.contains("/data") && !text.contains("mqueue"), "{text}");
        assert!(
            text.contains("\"uid=33\",\"gid=34\",\"mode=750\""),
            "{text}"
        );
        assert!(
            !of(&[], "", false)["linux"]["namespaces"]
                .to_string()
                .contains("cgroup")
        );
    }

    #[test]
    fn a_path_is_given_where_the_image_has_none() {
        assert_eq!(
            of(&["A=b"], "", true)["process"]["env"][0],
            format!("PATH={DEFAULT_PATH}")
        );
        let spec = of(&["PATH=/x", "A=b"], "srv", true);
        assert_eq!(spec["process"]["env"], json!(["PATH=/x", "A=b"]));
        assert_eq!(spec["process"]["cwd"], "/srv");
    }
}
