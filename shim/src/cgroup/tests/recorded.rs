//! A cgroup of version 2, as Linux 6.12 (Debian 13 on arm64) showed it: of a shell with limits of
//! 64 MiB, 8 MiB of swap, 100 processes and a fifth of a CPU; before and after the kernel killed
//! something in it; and when its last process had ended.

use std::fs;
use std::io::Write as _;

use super::*;
use crate::child::testing::run;
use crate::error::Code;
use crate::wire::metrics2::{IoEntry, Metrics, PsiData};

const RECORDED: &str = include_str!("linux-6.12.txt");
const CGROUP: &str = "sys/fs/cgroup/k8s.io/box";

struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Host {
        let host = Host(tempfile::tempdir().unwrap());
        for (name, content) in files() {
            if let Some(name) = name.strip_prefix("before/") {
                host.add(&format!("{CGROUP}/{name}"), content);
            } else if name.starts_with("proc/") {
                host.add(&name.replace("PID", "7"), content);
            }
        }
        host
    }

    fn add(&self, name: &str, content: &str) {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Shows a file as it was recorded later. The kernel's files are never empty in between.
    fn show(&self, when: &str, name: &str) {
        let wanted = format!("{when}/{name}");
        let (_, content) = files().find(|(name, _)| *name == wanted).unwrap();
        let path = self.0.path().join(CGROUP).join(name);
        let file = fs::OpenOptions::new().write(true).open(path);
        file.unwrap().write_all(content.as_bytes()).unwrap();
    }

    fn cgroup(&self) -> Cgroup {
        Cgroup::find(self.0.path(), Pid::from_raw(7)).unwrap()
    }

    fn stats(&self) -> Metrics {
        let (name, stats) = self.cgroup().stats().unwrap();
        assert_eq!(name, "io.containerd.cgroups.v2.Metrics");
        Metrics::decode(stats.as_slice()).unwrap()
    }
}

fn files() -> impl Iterator<Item = (&'static str, &'static str)> {
    let files = RECORDED.strip_prefix("@ ").unwrap().split("\n@ ");
    files.map(|file| file.split_once('\n').unwrap_or((file, "")))
}

#[test]
fn what_a_container_uses_is_told() {
    let stats = Host::new().stats();
    let pids = stats.pids.unwrap();
    assert_eq!((pids.current, pids.limit), (1, 100));
    let cpu = stats.cpu.unwrap();
    let cpu_fields = [
        cpu.usage_usec,
        cpu.user_usec,
        cpu.system_usec,
        cpu.nr_periods,
        cpu.nr_throttled,
        cpu.throttled_usec,
    ];
    assert_eq!(
        cpu_fields,
        [1_863_712, 1_407_520, 456_192, 98, 91, 6_743_809]
    );
    let waited = PsiData {
        avg10: 42.05,
        avg60: 9.37,
        avg300: 2.03,
        total: 7_478_162,
    };
    assert_eq!(cpu.psi.unwrap().some, Some(waited));
    let memory = stats.memory.unwrap();
    assert_eq!((memory.file, memory.shmem), (8_388_608, 8_388_608));
    assert_eq!((memory.slab, memory.pgfault), (17_744, 310));
    assert_eq!((memory.usage, memory.usage_limit), (8_560_640, 67_108_864));
    assert_eq!(
        (memory.max_usage, memory.swap_limit),
        (9_699_328, 8_388_608)
    );
    assert_eq!(memory.psi.unwrap().full, Some(PsiData::default()));
    let events = stats.memory_events.unwrap();
    assert_eq!((events.max, events.oom_kill), (0, 0));
    let io = stats.io.unwrap();
    assert!(io.usage.is_empty() && io.psi.is_some());
    assert_eq!(stats.rdma.unwrap().current, []);
}

#[test]
fn all_of_memory_is_told() {
    // By the numbers of their fields.
    let names = [
        "anon",
        "file",
        "kernel_stack",
        "slab",
        "sock",
        "shmem",
        "file_mapped",
        "file_dirty",
        "file_writeback",
        "anon_thp",
        "inactive_anon",
        "active_anon",
        "inactive_file",
        "active_file",
        "unevictable",
        "slab_reclaimable",
        "slab_unreclaimable",
        "pgfault",
        "pgmajfault",
        "workingset_refault",
        "workingset_activate",
        "workingset_nodereclaim",
        "pgrefill",
        "pgscan",
        "pgsteal",
        "pgactivate",
        "pgdeactivate",
        "pglazyfree",
        "pglazyfreed",
        "thp_fault_alloc",
        "thp_collapse_alloc",
        "usage",
        "usage_limit",
        "swap_usage",
        "swap_limit",
        "max_usage",
        "swap_max_usage",
    ];
    let host = Host::new();
    host.add(&format!("{CGROUP}/memory.stat"), &numbered(&names));
    let files = [
        "current",
        "max",
        "swap.current",
        "swap.max",
        "peak",
        "swap.peak",
    ];
    for (file, value) in files.iter().zip(1032..) {
        host.add(&format!("{CGROUP}/memory.{file}"), &format!("{value}\n"));
    }
    let memory = host.stats().memory.unwrap();
    assert_eq!(varints(&memory.encode_to_vec()), expected(&names));
}

#[test]
fn what_happens_with_memory_is_told() {
    let names = ["low", "high", "max", "oom", "oom_kill", "oom_group_kill"];
    let host = Host::new();
    host.add(&format!("{CGROUP}/memory.events"), &numbered(&names));
    let events = host.stats().memory_events.unwrap();
    assert_eq!(varints(&events.encode_to_vec()), expected(&names));
}

#[test]
fn devices_and_huge_pages_are_told_where_there_are_any() {
    let host = Host::new();
    let devices = "179:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n254:0 \n7:1 x\n";
    host.add(&format!("{CGROUP}/io.stat"), devices);
    host.add("sys/kernel/mm/hugepages/hugepages-2048kB/nr", "");
    host.add("sys/kernel/mm/hugepages/hugepages-64kB/nr", "");
    host.add("sys/kernel/mm/hugepages/hugepages-1048576kB/nr", "");
    host.add(&format!("{CGROUP}/hugetlb.2MB.events"), "max 4\n");
    host.add(
        &format!("{CGROUP}/rdma.max"),
        "mlx5_0 hca_handle=3 hca_object=max\n",
    );
    let stats = host.stats();
    let first = IoEntry {
        major: 179,
        minor: 0,
        rbytes: 4096,
        wbytes: 8192,
        rios: 1,
        wios: 2,
    };
    assert_eq!(stats.io.unwrap().usage[0], first);
    let huge: Vec<_> = stats
        .hugetlb
        .iter()
        .map(|size| (size.pagesize.as_str(), size.max, size.failcnt))
        .collect();
    assert_eq!(huge, [("64KB", u64::MAX, 0), ("2MB", u64::MAX, 4)]);
    let limit = &stats.rdma.unwrap().limit[0];
    assert_eq!((limit.hca_handles, limit.hca_objects), (3, u32::MAX));
}

#[test]
fn a_cgroup_that_is_gone_is_not_found() {
    let host = Host::new();
    let cgroup = host.cgroup();
    fs::remove_dir_all(host.0.path().join(CGROUP)).unwrap();
    let error = cgroup.stats().unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(!cgroup.take_oom());
}

#[test]
fn a_kill_is_told_once_and_the_end_ends() {
    run(async {
        let host = Host::new();
        let cgroup = host.cgroup();
        let mut watch = cgroup.watch_oom().unwrap();
        assert!(nothing_comes(&mut watch).await);
        host.show("after", "memory.events");
        assert_eq!(next(&mut watch).await, Some(()));
        assert!(cgroup.take_oom());
        // What happened was told; that something else has changed is no kill.
        host.show("after", "memory.events");
        assert!(nothing_comes(&mut watch).await);
        assert!(!cgroup.take_oom());
        host.show("over", "cgroup.events");
        assert_eq!(next(&mut watch).await, None);
    });
}

#[test]
fn a_kill_of_the_last_process_is_told_before_the_end() {
    run(async {
        let host = Host::new();
        let cgroup = host.cgroup();
        let mut watch = cgroup.watch_oom().unwrap();
        host.show("after", "memory.events");
        host.show("over", "cgroup.events");
        assert_eq!(next(&mut watch).await, Some(()));
        assert!(cgroup.take_oom());
        assert_eq!(next(&mut watch).await, None);
    });
}

#[test]
fn what_was_killed_before_is_not_told() {
    run(async {
        let host = Host::new();
        host.show("after", "memory.events");
        let cgroup = host.cgroup();
        assert!(!cgroup.take_oom());
        let mut watch = cgroup.watch_oom().unwrap();
        assert!(nothing_comes(&mut watch).await);
        fs::remove_file(host.0.path().join(CGROUP).join("memory.events")).unwrap();
        let error = cgroup.watch_oom().unwrap_err();
        assert!(
            error.message().contains("memory controller is off"),
            "{error}"
        );
        fs::remove_dir_all(host.0.path().join(CGROUP)).unwrap();
        assert_eq!(cgroup.watch_oom().unwrap_err().code(), Code::NotFound);
    });
}
