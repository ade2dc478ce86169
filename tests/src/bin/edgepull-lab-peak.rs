//! Runs a command and writes the most memory it ever had resident, in KiB, to a file.
//!
//! A program of its own because the kernel keeps one maximum over all ended children: in a test
//! process that is the largest containerd, here it is the one command.
#![allow(
    clippy::unwrap_used,
    reason = "a helper of the tests: a panic with a position is the failure report"
)]

use std::process::{Command, ExitCode};

use nix::sys::resource::{UsageWho, getrusage};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let report = args.next().expect("usage: edgepull-lab-peak FILE COMMAND…");
    let program = args.next().expect("usage: edgepull-lab-peak FILE COMMAND…");
    let status = Command::new(program).args(args).status().unwrap();
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss();
    std::fs::write(report, peak.to_string()).unwrap();
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    ExitCode::from(code.unwrap_or(255))
}
