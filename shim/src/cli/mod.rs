//! What containerd calls: `start` and `delete`, `-info` and `-v`, and the server that `start` leaves.

mod delete;
mod flags;
mod info;
mod server;
mod socket;
mod start;

pub use flags::{Action, Flags, USAGE};

use crate::error::Result;

/// Does what the command line says; what is to be printed on stdout, byte for byte.
pub fn run(flags: &Flags) -> Result<Vec<u8>> {
    match flags.action {
        Action::Help => Ok(USAGE.as_bytes().to_vec()),
        Action::Version => Ok(format!(
            "containerd-shim-edgepull-v1 {}\n",
            env!("CARGO_PKG_VERSION")
        )
        .into_bytes()),
        Action::Info => info::run(),
        Action::Start => start::run(flags),
        Action::Delete => delete::run(flags),
        Action::Serve => server::run(flags).map(|()| Vec::new()),
    }
}

/// The longest standard input that is read (bytes): options, or all that containerd 2.3 tells.
const INPUT: u64 = 4 << 20;

fn read_stdin() -> Vec<u8> {
    use std::io::Read;
    let mut bytes = Vec::new();
    // Called by hand, there may be nothing to read; containerd's own is never a terminal.
    if !std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        let _ = std::io::stdin().lock().take(INPUT).read_to_end(&mut bytes);
    }
    bytes
}

/// One thread, and all of its tasks on it.
fn block_on<T>(work: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| crate::error::Error::io("starting", error))?;
    let tasks = tokio::task::LocalSet::new();
    Ok(tasks.block_on(&runtime, work))
}
