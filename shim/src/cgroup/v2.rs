//! The statistics of a cgroup of version 2.

use std::path::Path;

use super::files::{Values, huge_page_sizes, number, rdma, text};
use crate::wire::metrics2::{
    CpuStat, HugeTlbStat, IoEntry, IoStat, MemoryEvents, MemoryStat, Metrics, PidsStat, PsiData,
    PsiStats, RdmaEntry, RdmaStat,
};

pub(super) fn stats(root: &Path, path: &Path) -> Metrics {
    let rdma_devices = |name: &str| {
        let devices = rdma(&path.join(name)).into_iter();
        devices
            .map(|(device, hca_handles, hca_objects)| RdmaEntry {
                device,
                hca_handles,
                hca_objects,
            })
            .collect()
    };
    Metrics {
        pids: Some(PidsStat {
            current: read(path, "pids.current"),
            limit: read(path, "pids.max"),
        }),
        cpu: Some(cpu(path)),
        memory: Some(memory(path)),
        rdma: Some(RdmaStat {
            current: rdma_devices("rdma.current"),
            limit: rdma_devices("rdma.max"),
        }),
        io: Some(IoStat {
            usage: io(path),
            psi: pressure(path, "io.pressure"),
        }),
        hugetlb: hugetlb(root, path),
        memory_events: memory_events(path),
    }
}

/// A file with one number; no limit is the greatest.
fn find(path: &Path, name: &str) -> Option<u64> {
    number(&text(&path.join(name))?, u64::MAX)
}

fn read(path: &Path, name: &str) -> u64 {
    find(path, name).unwrap_or(0)
}

fn cpu(path: &Path) -> CpuStat {
    let Some(values) = Values::read(&path.join("cpu.stat")) else {
        return CpuStat::default();
    };
    CpuStat {
        usage_usec: values.get("usage_usec"),
        user_usec: values.get("user_usec"),
        system_usec: values.get("system_usec"),
        nr_periods: values.get("nr_periods"),
        nr_throttled: values.get("nr_throttled"),
        throttled_usec: values.get("throttled_usec"),
        psi: pressure(path, "cpu.pressure"),
        nr_bursts: values.get("nr_bursts"),
        burst_usec: values.get("burst_usec"),
    }
}

fn memory(path: &Path) -> MemoryStat {
    let Some(values) = Values::read(&path.join("memory.stat")) else {
        return MemoryStat::default();
    };
    MemoryStat {
        anon: values.get("anon"),
        file: values.get("file"),
        kernel_stack: values.get("kernel_stack"),
        slab: values.get("slab"),
        sock: values.get("sock"),
        shmem: values.get("shmem"),
        file_mapped: values.get("file_mapped"),
        file_dirty: values.get("file_dirty"),
        file_writeback: values.get("file_writeback"),
        anon_thp: values.get("anon_thp"),
        inactive_anon: values.get("inactive_anon"),
        active_anon: values.get("active_anon"),
        inactive_file: values.get("inactive_file"),
        active_file: values.get("active_file"),
        unevictable: values.get("unevictable"),
        slab_reclaimable: values.get("slab_reclaimable"),
        slab_unreclaimable: values.get("slab_unreclaimable"),
        pgfault: values.get("pgfault"),
        pgmajfault: values.get("pgmajfault"),
        workingset_refault: values.get("workingset_refault"),
        workingset_activate: values.get("workingset_activate"),
        workingset_nodereclaim: values.get("workingset_nodereclaim"),
        pgrefill: values.get("pgrefill"),
        pgscan: values.get("pgscan"),
        pgsteal: values.get("pgsteal"),
        pgactivate: values.get("pgactivate"),
        pgdeactivate: values.get("pgdeactivate"),
        pglazyfree: values.get("pglazyfree"),
        pglazyfreed: values.get("pglazyfreed"),
        thp_fault_alloc: values.get("thp_fault_alloc"),
        thp_collapse_alloc: values.get("thp_collapse_alloc"),
        usage: read(path, "memory.current"),
        usage_limit: read(path, "memory.max"),
        swap_usage: read(path, "memory.swap.current"),
        swap_limit: read(path, "memory.swap.max"),
        max_usage: read(path, "memory.peak"),
        swap_max_usage: read(path, "memory.swap.peak"),
        psi: pressure(path, "memory.pressure"),
    }
}

fn memory_events(path: &Path) -> Option<MemoryEvents> {
    let values = Values::read(&path.join("memory.events"))?;
    Some(MemoryEvents {
        low: values.get("low"),
        high: values.get("high"),
        max: values.get("max"),
        oom: values.get("oom"),
        oom_kill: values.get("oom_kill"),
        oom_group_kill: values.get("oom_group_kill"),
    })
}

/// Lines such as `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`.
fn io(path: &Path) -> Vec<IoEntry> {
    let text = text(&path.join("io.stat")).unwrap_or_default();
    let entries = text.lines().filter_map(|line| {
        let (device, values) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        let mut entry = IoEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            ..IoEntry::default()
        };
        for (name, value) in values.split(' ').filter_map(|word| word.split_once('=')) {
            let place = match name {
                "rbytes" => &mut entry.rbytes,
                "wbytes" => &mut entry.wbytes,
                "rios" => &mut entry.rios,
                "wios" => &mut entry.wios,
                _ => continue,
            };
            *place = value.parse().unwrap_or(0);
        }
        Some(entry)
    });
    entries.collect()
}

fn hugetlb(root: &Path, path: &Path) -> Vec<HugeTlbStat> {
    let sizes = huge_page_sizes(root).into_iter();
    sizes
        .filter_map(|pagesize| {
            let events = Values::read(&path.join(format!("hugetlb.{pagesize}.events")));
            Some(HugeTlbStat {
                current: find(path, &format!("hugetlb.{pagesize}.current"))?,
                max: find(path, &format!("hugetlb.{pagesize}.max"))?,
                failcnt: events.unwrap_or_default().get("max"),
                pagesize,
            })
        })
        .collect()
}

/// Lines such as `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`. A kernel that does not count them
/// may have the file all the same, and refuses to be read.
fn pressure(path: &Path, name: &str) -> Option<PsiStats> {
    let text = text(&path.join(name))?;
    let mut stats = PsiStats::default();
    for line in text.lines() {
        let (kind, values) = line.split_once(' ')?;
        let mut data = PsiData::default();
        for (name, value) in values.split(' ').filter_map(|word| word.split_once('=')) {
            match name {
                "avg10" => data.avg10 = value.parse().ok()?,
                "avg60" => data.avg60 = value.parse().ok()?,
                "avg300" => data.avg300 = value.parse().ok()?,
                "total" => data.total = value.parse().ok()?,
                _ => {}
            }
        }
        match kind {
            "some" => stats.some = Some(data),
            "full" => stats.full = Some(data),
            _ => {}
        }
    }
    Some(stats)
}
