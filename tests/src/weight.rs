//! What a process takes of the machine, as the kernel counts it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::process::{self, alive};

/// The unit of processor time in `/proc`, the same on every Linux that is met.
const TICK: Duration = Duration::from_millis(10);

/// A process at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weight {
    /// Resident memory, in KiB.
    pub rss_kib: u64,
    /// What of that is neither file nor shared, in KiB.
    pub own_kib: u64,
    /// The most that was ever resident, in KiB.
    pub peak_kib: u64,
    /// Open files.
    pub files: usize,
    /// Threads.
    pub tasks: usize,
    /// Processor time, its own and that of the children that it has waited for.
    pub processor: Duration,
    /// How often any of its threads went to sleep by itself, and so was woken up again.
    pub sleeps: u64,
}

impl Weight {
    /// Of a process that is there.
    #[track_caller]
    pub fn of(pid: u32) -> Self {
        let dir = Path::new("/proc").join(pid.to_string());
        let status = fs::read_to_string(dir.join("status")).unwrap();
        let stat = fs::read_to_string(dir.join("stat")).unwrap();
        // The second field is the program's name, which may hold anything.
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let ticks: u32 = fields
            .split_whitespace()
            .skip(11)
            .take(4)
            .map(|ticks| ticks.parse::<u32>().unwrap())
            .sum();
        let entries = |what: &str| fs::read_dir(dir.join(what)).unwrap().flatten();
        let sleeps = entries("task")
            .filter_map(|task| fs::read_to_string(task.path().join("status")).ok())
            .map(|status| number(&status, "voluntary_ctxt_switches:"))
            .sum();
        Self {
            rss_kib: number(&status, "VmRSS:"),
            own_kib: number(&status, "RssAnon:"),
            peak_kib: number(&status, "VmHWM:"),
            files: entries("fd").count(),
            tasks: entries("task").count(),
            processor: TICK * ticks,
            sleeps,
        }
    }

    /// Processor time since an earlier moment.
    pub fn spent_since(&self, earlier: &Self) -> Duration {
        self.processor.saturating_sub(earlier.processor)
    }
}

/// The pages of a process at one moment, as `smaps_rollup` has them, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pages {
    /// Its share of all: a page that four have counts a quarter.
    pub share: u64,
    /// What it alone has and has written.
    pub private_dirty: u64,
    /// All that it sees in memory.
    pub resident: u64,
}

impl Pages {
    /// Of a process that is there.
    #[track_caller]
    pub fn of(pid: u32) -> Self {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        Self {
            share: number(&text, "Pss:"),
            private_dirty: number(&text, "Private_Dirty:"),
            resident: number(&text, "Rss:"),
        }
    }
}

/// Waits until a process has no children: the daemon has no worker then.
#[track_caller]
pub fn wait_alone(pid: u32) {
    let children = format!("/proc/{pid}/task/{pid}/children");
    process::wait_for("the end of its workers", Duration::from_secs(60), || {
        assert!(alive(pid), "process {pid} has ended");
        fs::read_to_string(&children).unwrap().trim().is_empty()
    });
}

#[track_caller]
fn number(status: &str, key: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("no {key} in {status}"))
}
