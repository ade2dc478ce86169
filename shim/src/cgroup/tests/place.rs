//! Finding a process' cgroups on hosts of all kinds.

use std::fs;

use super::*;

/// A host whose process 7 has these cgroups and whose mounts are these.
fn host(cgroups: &str, mounts: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for process in ["7", "self"] {
        fs::create_dir_all(root.path().join("proc").join(process)).unwrap();
    }
    fs::write(root.path().join("proc/7/cgroup"), cgroups).unwrap();
    fs::write(root.path().join("proc/self/mountinfo"), mounts).unwrap();
    root
}

fn v1(root: &Path, name: &str) -> Option<String> {
    match Place::of(root, 7).unwrap() {
        Place::V1(controllers) => {
            let path = controllers.path(name)?.strip_prefix(root).unwrap();
            Some(path.to_str().unwrap().to_owned())
        }
        Place::V2(path) => panic!("{}", path.display()),
    }
}

fn v2(root: &Path) -> String {
    match Place::of(root, 7).unwrap() {
        Place::V1(controllers) => panic!("{controllers:?}"),
        Place::V2(path) => path
            .strip_prefix(root)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned(),
    }
}

const LEGACY: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

#[test]
fn version_1_wins_where_it_has_the_controllers() {
    let cgroups = "5:memory:/default/box\n2:cpu,cpuacct:/default/box\n1:name=systemd:/s\n0::/u\n";
    let host = host(cgroups, LEGACY);
    let root = host.path();
    assert_eq!(
        v1(root, "memory").unwrap(),
        "sys/fs/cgroup/memory/default/box"
    );
    let cpu = "sys/fs/cgroup/cpu,cpuacct/default/box";
    assert_eq!(v1(root, "cpu").unwrap(), cpu);
    assert_eq!(v1(root, "cpuacct").unwrap(), cpu);
    assert_eq!(v1(root, "pids"), None);
}

#[test]
fn a_mount_may_show_a_part() {
    let mounts = "\
34 31 0:32 /docker/other /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
35 31 0:32 /docker/abc /mnt/a\\040b rw - cgroup cgroup rw,memory
";
    let host = host("5:memory:/docker/abc/k8s.io/box\n", mounts);
    assert_eq!(v1(host.path(), "memory").unwrap(), "mnt/a b/k8s.io/box");
}

#[test]
fn version_2_is_found() {
    let mounts = "\
29 28 0:26 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw
30 28 0:27 / /sys/fs/cgroup/net_cls rw,relatime - cgroup cgroup rw,net_cls
31 28 0:28 / /mnt rw,relatime - cgroup cgroup rw,rdma
";
    let cgroups = "9:rdma:/\n3:net_cls:/\n0::/system.slice/box.scope\n";
    let host = host(cgroups, mounts);
    assert_eq!(v2(host.path()), "sys/fs/cgroup/system.slice/box.scope");
}

#[test]
fn what_cannot_be_found_is_said() {
    let mounts = "29 28 0:26 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n";
    for cgroups in ["0::/../box\n", "", "rubbish\n:\n", "4:memory:/box\n"] {
        let host = host(cgroups, mounts);
        let error = Cgroup::find(host.path(), Pid::from_raw(7)).unwrap_err();
        assert!(error.message().contains("cgroup of process 7"), "{error}");
    }
    let host = host("0::/box\n", mounts);
    let error = Cgroup::find(host.path(), Pid::from_raw(8)).unwrap_err();
    assert!(error.message().contains("proc/8/cgroup"), "{error}");
}

#[test]
fn this_process_is_found() {
    assert!(Cgroup::of(Pid::this()).is_ok());
}
