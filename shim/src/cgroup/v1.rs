//! The statistics of cgroups of version 1.

use std::path::Path;

use super::Controllers;
use super::files::{Values, huge_page_sizes, number, rdma, text};
use crate::wire::metrics1::{
    BlkIoEntry, BlkIoStat, CpuStat, CpuUsage, HugetlbStat, MemoryEntry, MemoryOomControl,
    MemoryStat, Metrics, PidsStat, RdmaEntry, RdmaStat, Throttle,
};

/// `cpuacct.stat` counts in hundredths of a second on every architecture.
const NANOSECONDS_OF_A_TICK: u64 = 10_000_000;

pub(super) fn stats(root: &Path, controllers: &Controllers) -> Metrics {
    let each = |name: &str| controllers.path(name);
    Metrics {
        hugetlb: each("hugetlb").map_or_else(Vec::new, |path| hugetlb(root, path)),
        pids: each("pids").and_then(pids),
        cpu: Some(CpuStat {
            usage: Some(each("cpuacct").map(usage).unwrap_or_default()),
            throttling: Some(each("cpu").map(throttling).unwrap_or_default()),
        }),
        memory: each("memory").and_then(memory),
        blkio: each("blkio").map(|path| blkio(root, path)),
        rdma: each("rdma").and_then(rdma_devices),
        memory_oom_control: each("memory").and_then(oom_control),
    }
}

/// A file with one number; no limit is 0.
fn read(path: &Path, name: &str) -> Option<u64> {
    number(&text(&path.join(name))?, 0)
}

fn pids(path: &Path) -> Option<PidsStat> {
    Some(PidsStat {
        current: read(path, "pids.current")?,
        limit: read(path, "pids.max")?,
    })
}

fn usage(path: &Path) -> CpuUsage {
    let times = Values::read(&path.join("cpuacct.stat")).unwrap_or_default();
    let each = text(&path.join("cpuacct.usage_percpu")).unwrap_or_default();
    CpuUsage {
        total: read(path, "cpuacct.usage").unwrap_or(0),
        kernel: times.get("system").saturating_mul(NANOSECONDS_OF_A_TICK),
        user: times.get("user").saturating_mul(NANOSECONDS_OF_A_TICK),
        per_cpu: each
            .split_whitespace()
            .map_while(|usage| usage.parse().ok())
            .collect(),
    }
}

fn throttling(path: &Path) -> Throttle {
    let values = Values::read(&path.join("cpu.stat")).unwrap_or_default();
    Throttle {
        periods: values.get("nr_periods"),
        throttled_periods: values.get("nr_throttled"),
        throttled_time: values.get("throttled_time"),
    }
}

fn memory(path: &Path) -> Option<MemoryStat> {
    let values = Values::read(&path.join("memory.stat"))?;
    let entry = |kind: &str| {
        let read = |name: &str| read(path, &format!("memory.{kind}{name}")).unwrap_or(0);
        Some(MemoryEntry {
            limit: read("limit_in_bytes"),
            usage: read("usage_in_bytes"),
            max: read("max_usage_in_bytes"),
            failcnt: read("failcnt"),
        })
    };
    Some(MemoryStat {
        cache: values.get("cache"),
        rss: values.get("rss"),
        rss_huge: values.get("rss_huge"),
        mapped_file: values.get("mapped_file"),
        dirty: values.get("dirty"),
        writeback: values.get("writeback"),
        pg_pg_in: values.get("pgpgin"),
        pg_pg_out: values.get("pgpgout"),
        pg_fault: values.get("pgfault"),
        pg_maj_fault: values.get("pgmajfault"),
        inactive_anon: values.get("inactive_anon"),
        active_anon: values.get("active_anon"),
        inactive_file: values.get("inactive_file"),
        active_file: values.get("active_file"),
        unevictable: values.get("unevictable"),
        hierarchical_memory_limit: values.get("hierarchical_memory_limit"),
        hierarchical_swap_limit: values.get("hierarchical_memsw_limit"),
        total_cache: values.get("total_cache"),
        total_rss: values.get("total_rss"),
        total_rss_huge: values.get("total_rss_huge"),
        total_mapped_file: values.get("total_mapped_file"),
        total_dirty: values.get("total_dirty"),
        total_writeback: values.get("total_writeback"),
        total_pg_pg_in: values.get("total_pgpgin"),
        total_pg_pg_out: values.get("total_pgpgout"),
        total_pg_fault: values.get("total_pgfault"),
        total_pg_maj_fault: values.get("total_pgmajfault"),
        total_inactive_anon: values.get("total_inactive_anon"),
        total_active_anon: values.get("total_active_anon"),
        total_inactive_file: values.get("total_inactive_file"),
        total_active_file: values.get("total_active_file"),
        total_unevictable: values.get("total_unevictable"),
        usage: entry(""),
        swap: entry("memsw."),
        kernel: entry("kmem."),
        kernel_tcp: entry("kmem.tcp."),
    })
}

fn oom_control(path: &Path) -> Option<MemoryOomControl> {
    let values = Values::read(&path.join("memory.oom_control"))?;
    Some(MemoryOomControl {
        oom_kill_disable: values.get("oom_kill_disable"),
        under_oom: values.get("under_oom"),
        oom_kill: values.get("oom_kill"),
    })
}

fn hugetlb(root: &Path, path: &Path) -> Vec<HugetlbStat> {
    let sizes = huge_page_sizes(root).into_iter();
    sizes
        .filter_map(|pagesize| {
            let read = |name: &str| read(path, &format!("hugetlb.{pagesize}.{name}"));
            Some(HugetlbStat {
                usage: read("usage_in_bytes")?,
                max: read("max_usage_in_bytes")?,
                failcnt: read("failcnt")?,
                pagesize,
            })
        })
        .collect()
}

fn rdma_devices(path: &Path) -> Option<RdmaStat> {
    let entries = |name: &str| {
        let devices = rdma(&path.join(name)).into_iter();
        devices
            .map(|(device, hca_handles, hca_objects)| RdmaEntry {
                device,
                hca_handles,
                hca_objects,
            })
            .collect()
    };
    path.join("rdma.current").exists().then(|| RdmaStat {
        current: entries("rdma.current"),
        limit: entries("rdma.max"),
    })
}

/// What the scheduler of the device counts, if it does; else what the throttling counts.
fn blkio(root: &Path, path: &Path) -> BlkIoStat {
    let devices = Devices::read(root);
    let read = |name: &str| devices.entries(&path.join(format!("blkio.{name}")));
    let scheduled = BlkIoStat {
        io_service_bytes_recursive: read("io_service_bytes_recursive"),
        io_serviced_recursive: read("io_serviced_recursive"),
        io_queued_recursive: read("io_queued_recursive"),
        io_service_time_recursive: read("io_service_time_recursive"),
        io_wait_time_recursive: read("io_wait_time_recursive"),
        io_merged_recursive: read("io_merged_recursive"),
        io_time_recursive: read("time_recursive"),
        sectors_recursive: read("sectors_recursive"),
    };
    if scheduled != BlkIoStat::default() {
        return scheduled;
    }
    BlkIoStat {
        io_service_bytes_recursive: read("throttle.io_service_bytes"),
        io_serviced_recursive: read("throttle.io_serviced"),
        ..BlkIoStat::default()
    }
}

/// The names of the block devices of this host, by their numbers.
struct Devices(Vec<((u64, u64), String)>);

impl Devices {
    fn read(root: &Path) -> Devices {
        let text = text(&root.join("proc/partitions")).unwrap_or_default();
        let devices = text.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let (major, minor) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            Some(((major, minor), format!("/dev/{}", words.nth(1)?)))
        });
        Devices(devices.collect())
    }

    /// Lines such as `8:0 Read 4096`; the total of all devices is none.
    fn entries(&self, path: &Path) -> Vec<BlkIoEntry> {
        let text = text(path).unwrap_or_default();
        let entries = text.lines().filter_map(|line| {
            let mut words = line.split([' ', ':']);
            let (major, minor) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            let (op, value) = match (words.next()?, words.next()) {
                (op, Some(value)) => (op, value),
                (value, None) => ("", value),
            };
            let device = self.0.iter().find(|(number, _)| *number == (major, minor));
            Some(BlkIoEntry {
                op: op.to_owned(),
                device: device.map_or_else(String::new, |(_, name)| name.clone()),
                major,
                minor,
                value: value.parse().ok()?,
            })
        });
        entries.collect()
    }
}
