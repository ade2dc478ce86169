//! What a container may take of this host, as far as the host can limit it.

use std::{fs, path::Path};

use serde_json::{Map, Value, json};

/// Processes and threads.
const PIDS: i64 = 1024;
/// Of every hundred milliseconds this many microseconds: one core's worth.
const CPU_QUOTA: i64 = 100_000;
const CPU_PERIOD: u64 = 100_000;

/// The limits, and which of them this host cannot set.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Limits {
    /// `linux.resources` of the specification, without devices.
    pub(super) resources: Map<String, Value>,
    pub(super) missing: Vec<&'static str>,
}

/// What `root` (`/`) has controllers for. A board that boots without the memory controller, as
/// Raspberry Pi OS does unless told otherwise, starts no container that has a limit of memory.
pub(super) fn limits(root: &Path, memory: u64) -> Limits {
    let has = controllers(root);
    let mut limits = Limits::default();
    let wanted = [
        ("memory", json!({ "limit": memory })),
        ("pids", json!({ "limit": PIDS })),
        ("cpu", json!({ "quota": CPU_QUOTA, "period": CPU_PERIOD })),
    ];
    for (name, value) in wanted {
        if has.iter().any(|there| there == name) {
            limits.resources.insert(name.to_owned(), value);
        } else {
            limits.missing.push(name);
        }
    }
    limits
}

/// The controllers that can be used: of the one tree of version 2, else of the mounted ones of
/// version 1. Where both are mounted, runtimes take version 1.
fn controllers(root: &Path) -> Vec<String> {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let unified = read("sys/fs/cgroup/cgroup.controllers");
    if !unified.is_empty() {
        return unified.split_whitespace().map(str::to_owned).collect();
    }
    let mounts = read("proc/self/mountinfo");
    let mut found = Vec::new();
    for line in mounts.lines() {
        let Some((place, kind)) = line.split_once(" - ") else {
            continue;
        };
        let mut words = kind.split(' ');
        if words.next() != Some("cgroup") {
            continue;
        }
        let point = place.split(' ').nth(4).unwrap_or_default();
        for option in words.nth(1).unwrap_or_default().split(',') {
            // A kernel may have the controller, and no quotas.
            let quota = root
                .join(point.trim_start_matches('/'))
                .join("cpu.cfs_quota_us");
            if option != "cpu" || quota.exists() {
                found.push(option.to_owned());
            }
        }
    }
    found
}

/// The file that counts the kernel's kills for want of memory in the control group of `pid`, if
/// that can be told. It has to be found while the process is there.
pub(super) fn oom_file(pid: u32) -> Option<std::path::PathBuf> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let tree = Path::new("/sys/fs/cgroup");
    let path = |group: &str, file: &str| {
        let path = Path::new(group.trim_start_matches('/')).join(file);
        let clean = path
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)));
        clean.then_some(path)
    };
    groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, names, group) = (fields.next()?, fields.next()?, fields.next()?);
        let file = if names.split(',').any(|name| name == "memory") {
            tree.join("memory").join(path(group, "memory.oom_control")?)
        } else if number == "0" && names.is_empty() {
            tree.join(path(group, "memory.events")?)
        } else {
            return None;
        };
        file.exists().then_some(file)
    })
}

/// How many processes of a control group the kernel killed for want of memory.
pub(super) fn oom_kills(file: &Path) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("below")).expect("made");
            fs::write(path, text).expect("written");
        }
        dir
    }

    fn missing(files: &[(&str, &str)]) -> Vec<&'static str> {
        limits(host(files).path(), 1 << 29).missing
    }

    #[test]
    fn what_has_no_controller_is_left_out_and_told() {
        let v2 = "sys/fs/cgroup/cgroup.controllers";
        assert!(missing(&[(v2, "cpuset cpu io memory pids\n")]).is_empty());
        assert_eq!(missing(&[(v2, "cpuset cpu io pids\n")]), ["memory"]);
        let mounts = "proc/self/mountinfo";
        let v1 = "30 29 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
                  31 29 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                  32 29 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,memory\n";
        let quota = "sys/fs/cgroup/cpu/cpu.cfs_quota_us";
        assert_eq!(missing(&[(mounts, v1), (quota, "-1")]), ["memory"]);
        assert_eq!(missing(&[(mounts, v1)]), ["memory", "cpu"]);
        assert_eq!(missing(&[]), ["memory", "pids", "cpu"]);
        let host = host(&[(v2, "memory\n")]);
        assert_eq!(
            Value::Object(limits(host.path(), 64).resources),
            json!({"memory": {"limit": 64}})
        );
    }

    #[test]
    fn both_versions_count_kills() {
        for (text, kills) in [
            ("low 0\nhigh 0\nmax 4\noom 1\noom_kill 1\n", 1),
            ("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", 2),
            ("oom_kill_disable 1\nunder_oom 0\n", 0),
        ] {
            let dir = host(&[("events", text)]);
            assert_eq!(oom_kills(&dir.path().join("events")), kills, "{text}");
        }
    }
}
