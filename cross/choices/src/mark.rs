//! The ends of what is measured.

use std::hint::black_box;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

/// What belongs to no stretch: starting, preparing, printing.
pub const OTHER: u32 = 0;
/// A system call number's argument that no kernel knows; the plugin looks for it.
const MAGIC: libc::c_int = 0x0ED6_E9E7;

/// Microseconds of each slot so far, and the slot that is counted now.
static TIMES: [AtomicI64; 64] = [const { AtomicI64::new(0) }; 64];
static NOW: AtomicUsize = AtomicUsize::new(0);
static SINCE: AtomicI64 = AtomicI64::new(0);

/// From here on, what is executed counts for `slot` (below 64).
pub fn slot(slot: u32) {
    let used = used();
    let since = SINCE.swap(used, Ordering::Relaxed);
    let before = NOW.swap(slot as usize, Ordering::Relaxed);
    TIMES[before].fetch_add(used - since, Ordering::Relaxed);
    // SAFETY: the kernel knows no such option and answers EINVAL.
    unsafe { libc::prctl(MAGIC, libc::c_ulong::from(slot), 0, 0, 0) };
}

/// Prints `NAME SLOT UNITS MICROSECONDS`: what `slot` was used for, and how often or how much.
pub fn report(slot: u32, name: &str, units: usize) {
    let time = TIMES[slot as usize].load(Ordering::Relaxed);
    println!("{name} {slot} {units} {time}");
}

/// Processor time of this process, in microseconds.
fn used() -> i64 {
    // SAFETY: plain integers, written by the call.
    unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time);
        #[allow(clippy::unnecessary_cast, reason = "32 bits on Arm, 64 elsewhere")]
        let microseconds = time.tv_sec as i64 * 1_000_000 + time.tv_nsec as i64 / 1000;
        microseconds
    }
}

/// Does `work` as `number`, and reports it.
pub fn stretch<T>(number: u32, name: &str, units: usize, work: impl FnOnce() -> T) -> T {
    slot(number);
    let result = black_box(work());
    slot(OTHER);
    report(number, name, units);
    result
}
