//! The shim's own log: lines into the FIFO `log` of a bundle, which containerd copies into its log.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;

thread_local! {
    static LOG: RefCell<Option<File>> = const { RefCell::new(None) };
    static DEBUG: Cell<bool> = const { Cell::new(false) };
}

/// Writes to `path` from now on. The FIFO is held open at both ends: so it can be opened, and
/// written to without SIGPIPE, whether containerd is there or not; what finds it full is dropped.
pub fn open(path: &Path, debug: bool) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW).bits())
        .open(path);
    DEBUG.set(debug);
    LOG.set(file.ok());
}

/// The same, if there is such a FIFO; otherwise the one before stays.
pub fn follow(path: &Path) {
    if path.exists() {
        open(path, DEBUG.get());
    }
}

fn line(level: &str, message: &dyn Display) {
    LOG.with_borrow_mut(|log| {
        let Some(log) = log else { return };
        let text: String = message
            .to_string()
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let line = format!("level={level} msg={text:?} runtime=io.containerd.edgepull.v1\n");
        // What finds the FIFO full is lost; a very long line may lose its end.
        let _ = log.write(line.as_bytes());
    });
}

pub fn debug(message: impl Display) {
    if DEBUG.get() {
        line("debug", &message);
    }
}

pub fn info(message: impl Display) {
    line("info", &message);
}

pub fn warn(message: impl Display) {
    line("warning", &message);
}
