//! Cgroups of version 1: those of this kernel, and files that it may not have.

use std::fs;
use std::process::{Command, Stdio};

use super::*;
use crate::child::testing::run;
use crate::child::{self, Child};
use crate::error::Code;
use crate::wire::metrics1::{BlkIoEntry, Metrics, RdmaEntry};

/// A cgroup of each controller.
struct Group(Vec<PathBuf>);

impl Group {
    fn new(name: &str) -> Group {
        let mounts = ["memory", "cpu", "cpuacct", "pids", "blkio"];
        let group = Group(
            mounts
                .map(|controller| {
                    let mount = Path::new("/sys/fs/cgroup").join(controller);
                    mount.join(format!("edgepull-test-{name}-{}", std::process::id()))
                })
                .into(),
        );
        for path in &group.0 {
            fs::create_dir(path).expect("a host with cgroups of version 1");
        }
        group
    }

    fn write(&self, controller: usize, name: &str, value: &str) {
        fs::write(self.0[controller].join(name), value).unwrap();
    }

    /// Runs a script in it, once it is asked for on the script's stdin.
    fn start(&self, script: &str) -> (Child, Cgroup) {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", &format!("read line; {script}")])
            .stdin(Stdio::piped());
        let child = child::spawn(&mut command).unwrap();
        for path in &self.0 {
            fs::write(path.join("cgroup.procs"), child.pid.to_string()).unwrap();
        }
        let cgroup = Cgroup::of(child.pid).unwrap();
        (child, cgroup)
    }

    /// It takes a moment until what was killed is gone.
    async fn remove(self) {
        for path in &self.0 {
            while let Err(error) = fs::remove_dir(path) {
                assert_eq!(error.raw_os_error(), Some(nix::libc::EBUSY), "{error}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        std::mem::forget(self);
    }
}

impl Drop for Group {
    /// A failed test leaves nothing that runs.
    fn drop(&mut self) {
        for path in &self.0 {
            let tasks = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            for pid in tasks.lines().filter_map(|pid| pid.parse().ok()) {
                let _ = nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
            std::thread::sleep(MOMENT);
            let _ = fs::remove_dir(path);
        }
    }
}

/// Lets a script go on.
fn go(child: &mut Child) {
    use std::io::Write as _;
    child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
}

const HOG: &str = "tail /dev/zero";

#[test]
fn what_a_container_uses_is_told() {
    run(async {
        let group = Group::new("stats");
        group.write(0, "memory.limit_in_bytes", "67108864");
        group.write(1, "cpu.cfs_quota_us", "50000");
        group.write(3, "pids.max", "17");
        let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; read line; exit 0";
        let (mut child, cgroup) = group.start(script);
        go(&mut child);
        tokio::time::sleep(MOMENT).await;
        let (name, stats) = cgroup.stats().unwrap();
        assert_eq!(name, "io.containerd.cgroups.v1.Metrics");
        let stats = Metrics::decode(stats.as_slice()).unwrap();
        let pids = stats.pids.unwrap();
        assert_eq!((pids.current, pids.limit), (1, 17));
        let cpu = stats.cpu.unwrap();
        let usage = cpu.usage.unwrap();
        assert!(usage.total > 1_000_000, "{usage:?}");
        assert_eq!(usage.per_cpu.iter().sum::<u64>(), usage.total);
        assert!(cpu.throttling.unwrap().periods > 0);
        let memory = stats.memory.unwrap();
        let usage = memory.usage.unwrap();
        assert_eq!(usage.limit, 67_108_864);
        assert!((4096..=usage.max).contains(&usage.usage), "{usage:?}");
        assert_eq!(memory.hierarchical_memory_limit, 67_108_864);
        assert_eq!(stats.memory_oom_control.unwrap().oom_kill, 0);
        assert!(stats.blkio.is_some());

        go(&mut child);
        assert_eq!(child.ending.exit().await.status, 0);
        group.remove().await;
        let error = cgroup.stats().unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
        assert!(
            error.message().starts_with("cgroup does not exist"),
            "{error}"
        );
        assert!(!cgroup.take_oom());
    });
}

#[test]
fn a_kill_is_told_once_and_the_end_ends() {
    run(async {
        let group = Group::new("oom");
        group.write(0, "memory.limit_in_bytes", "20971520");
        let (mut child, cgroup) = group.start(&format!("{HOG}; {HOG}; read line; exit 0"));
        let mut watch = cgroup.watch_oom().unwrap();
        assert!(nothing_comes(&mut watch).await);
        assert!(!cgroup.take_oom());
        go(&mut child);
        let mut told = 0;
        while cgroup.told.get() < 2 {
            next(&mut watch).await.unwrap();
            assert!(cgroup.take_oom());
            told += 1;
        }
        assert!(told <= 2);
        assert!(nothing_comes(&mut watch).await);
        assert!(!cgroup.take_oom());
        go(&mut child);
        assert_eq!(child.ending.exit().await.status, 0);
        group.remove().await;
        assert_eq!(next(&mut watch).await, None);
    });
}

#[test]
fn a_kill_just_before_the_exit_is_known_at_the_exit() {
    run(async {
        let group = Group::new("last");
        group.write(0, "memory.limit_in_bytes", "20971520");
        let (mut child, cgroup) = group.start(&format!("exec {HOG}"));
        go(&mut child);
        assert_eq!(child.ending.exit().await.status, 128 + 9);
        assert!(cgroup.take_oom());
        assert!(!cgroup.take_oom());
        group.remove().await;
    });
}

#[test]
fn memory_that_runs_out_without_a_kill_is_told() {
    run(async {
        let group = Group::new("still");
        group.write(0, "memory.limit_in_bytes", "20971520");
        group.write(0, "memory.oom_control", "1");
        let (mut child, cgroup) = group.start(&format!("exec {HOG}"));
        let mut watch = cgroup.watch_oom().unwrap();
        go(&mut child);
        assert_eq!(next(&mut watch).await, Some(()));
        assert!(cgroup.take_oom());
        nix::sys::signal::kill(child.pid, nix::sys::signal::SIGKILL).unwrap();
        child.ending.exit().await;
        group.remove().await;
    });
}

/// A host with a cgroup of version 1 that has these files.
fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let (mut cgroups, mut mounts) = (String::new(), String::new());
    for name in [
        "memory", "cpu", "cpuacct", "blkio", "pids", "hugetlb", "rdma",
    ] {
        writeln!(cgroups, "1:{name}:/box").unwrap();
        let mount = format!("/sys/fs/cgroup/{name}");
        writeln!(mounts, "1 1 0:1 / {mount} rw - cgroup cgroup rw,{name}").unwrap();
    }
    let all = [
        ("proc/7/cgroup", cgroups.as_str()),
        ("proc/self/mountinfo", &mounts),
    ];
    for (name, content) in all.iter().chain(files) {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    root
}

fn stats(host: &tempfile::TempDir) -> Metrics {
    let cgroup = Cgroup::find(host.path(), Pid::from_raw(7)).unwrap();
    let (_, stats) = cgroup.stats().unwrap();
    Metrics::decode(stats.as_slice()).unwrap()
}

#[test]
fn devices_and_huge_pages_are_told_where_there_are_any() {
    let partitions = "major minor  #blocks  name\n\n 179        0   31166976 mmcblk0\n";
    let bytes = "179:0 Read 4096\n179:0 Write 8192\n254:7 Read 1\nTotal 12289\n";
    let host = host(&[
        ("proc/partitions", partitions),
        ("sys/kernel/mm/hugepages/hugepages-2048kB/nr", ""),
        ("sys/kernel/mm/hugepages/hugepages-1048576kB/nr", ""),
        (
            "sys/fs/cgroup/blkio/box/blkio.throttle.io_service_bytes",
            bytes,
        ),
        (
            "sys/fs/cgroup/blkio/box/blkio.throttle.io_serviced",
            "179:0 Read 3\n",
        ),
        (
            "sys/fs/cgroup/blkio/box/blkio.io_serviced_recursive",
            "Total 0\n",
        ),
        (
            "sys/fs/cgroup/hugetlb/box/hugetlb.2MB.usage_in_bytes",
            "2097152\n",
        ),
        (
            "sys/fs/cgroup/hugetlb/box/hugetlb.2MB.max_usage_in_bytes",
            "4194304\n",
        ),
        ("sys/fs/cgroup/hugetlb/box/hugetlb.2MB.failcnt", "5\n"),
        (
            "sys/fs/cgroup/rdma/box/rdma.current",
            "mlx4_0 hca_handle=2 hca_object=20\n",
        ),
        (
            "sys/fs/cgroup/rdma/box/rdma.max",
            "mlx4_0 hca_handle=3 hca_object=max\n",
        ),
        ("sys/fs/cgroup/pids/box/pids.current", "3\n"),
        ("sys/fs/cgroup/pids/box/pids.max", "max\n"),
        (
            "sys/fs/cgroup/cpuacct/box/cpuacct.stat",
            "user 150\nsystem 25\n",
        ),
        ("sys/fs/cgroup/cpuacct/box/cpuacct.usage_percpu", "7 8 \n"),
        (
            "sys/fs/cgroup/memory/box/memory.stat",
            "cache 1\nnew_one what\nrss 2\n",
        ),
        ("sys/fs/cgroup/memory/box/memory.memsw.failcnt", "-1\n"),
        (
            "sys/fs/cgroup/memory/box/memory.memsw.usage_in_bytes",
            "9\n",
        ),
    ]);
    let stats = stats(&host);
    let blkio = stats.blkio.unwrap();
    let entry = |op: &str, device: &str, major, minor, value| BlkIoEntry {
        op: op.into(),
        device: device.into(),
        major,
        minor,
        value,
    };
    assert_eq!(
        blkio.io_service_bytes_recursive,
        [
            entry("Read", "/dev/mmcblk0", 179, 0, 4096),
            entry("Write", "/dev/mmcblk0", 179, 0, 8192),
            entry("Read", "", 254, 7, 1),
        ]
    );
    let serviced = [entry("Read", "/dev/mmcblk0", 179, 0, 3)];
    assert_eq!(blkio.io_serviced_recursive, serviced);
    let [huge] = stats.hugetlb.as_slice() else {
        panic!("{:?}", stats.hugetlb);
    };
    assert_eq!(
        (huge.usage, huge.max, huge.failcnt),
        (2_097_152, 4_194_304, 5)
    );
    assert_eq!(huge.pagesize, "2MB");
    let rdma = stats.rdma.unwrap();
    let device = |hca_handles, hca_objects| RdmaEntry {
        device: "mlx4_0".into(),
        hca_handles,
        hca_objects,
    };
    assert_eq!(rdma.current, [device(2, 20)]);
    assert_eq!(rdma.limit, [device(3, u32::MAX)]);
    let pids = stats.pids.unwrap();
    assert_eq!((pids.current, pids.limit), (3, 0));
    let usage = stats.cpu.unwrap().usage.unwrap();
    assert_eq!((usage.user, usage.kernel), (1_500_000_000, 250_000_000));
    assert_eq!(usage.per_cpu, [7, 8]);
    let memory = stats.memory.unwrap();
    assert_eq!((memory.cache, memory.rss), (1, 2));
    let swap = memory.swap.unwrap();
    assert_eq!((swap.usage, swap.failcnt), (9, 0));
}

#[test]
fn all_of_memory_is_told() {
    // By the numbers of their fields.
    let names = [
        "cache",
        "rss",
        "rss_huge",
        "mapped_file",
        "dirty",
        "writeback",
        "pgpgin",
        "pgpgout",
        "pgfault",
        "pgmajfault",
        "inactive_anon",
        "active_anon",
        "inactive_file",
        "active_file",
        "unevictable",
    ];
    let totals = names.map(|name| format!("total_{name}"));
    let limits = ["hierarchical_memory_limit", "hierarchical_memsw_limit"];
    let all = names.into_iter().chain(limits);
    let all: Vec<&str> = all.chain(totals.iter().map(String::as_str)).collect();
    let host = host(&[("sys/fs/cgroup/memory/box/memory.stat", &numbered(&all))]);
    let memory = stats(&host).memory.unwrap();
    assert_eq!(varints(&memory.encode_to_vec()), expected(&all));
}

#[test]
fn the_scheduler_of_a_device_counts_more() {
    let host = host(&[
        (
            "sys/fs/cgroup/blkio/box/blkio.io_service_bytes_recursive",
            "8:0 Sync 5\nTotal 5\n",
        ),
        (
            "sys/fs/cgroup/blkio/box/blkio.sectors_recursive",
            "8:0 77\n",
        ),
        (
            "sys/fs/cgroup/blkio/box/blkio.throttle.io_service_bytes",
            "8:0 Read 1\n",
        ),
    ]);
    let blkio = stats(&host).blkio.unwrap();
    assert_eq!(blkio.io_service_bytes_recursive[0].op, "Sync");
    assert_eq!(blkio.io_service_bytes_recursive[0].value, 5);
    assert_eq!(blkio.sectors_recursive[0].value, 77);
    assert_eq!(blkio.sectors_recursive[0].op, "");
}

#[test]
fn without_the_memory_controller_nothing_is_watched() {
    run(async {
        let host = host(&[("sys/fs/cgroup/pids/box/pids.current", "1\n")]);
        let cgroup = Cgroup::find(host.path(), Pid::from_raw(7)).unwrap();
        let error = cgroup.watch_oom().unwrap_err();
        assert!(error.message().contains("memory.oom_control"), "{error}");
        assert!(!cgroup.take_oom());
        assert_eq!(stats(&host).memory, None);
    });
}
