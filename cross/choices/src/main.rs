//! One candidate, measured: prints a line for every stretch of work, and marks its ends for
//! the emulator's plugin (`count.c`), which counts the instructions in between.

mod allocator;
mod blind;
mod mark;

#[cfg(feature = "inflate")]
mod inflate;
#[cfg(feature = "memory")]
mod memory;
#[cfg(feature = "sha")]
mod sha;
#[cfg(feature = "tls")]
mod tls;

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(feature = "agent")]
    let code = edgepull::cli::main();
    #[cfg(not(feature = "agent"))]
    let code = candidate();
    code
}

#[cfg(not(feature = "agent"))]
fn candidate() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    #[cfg(feature = "memory")]
    memory::run();
    #[cfg(feature = "sha")]
    sha::run();
    #[cfg(feature = "inflate")]
    inflate::run(&arguments[0]);
    #[cfg(feature = "tls")]
    tls::run(&arguments);
    // What every candidate has, so that the difference between two is what they were built for.
    mark::stretch(mark::OTHER, "nothing", arguments.len(), || ());
    ExitCode::SUCCESS
}
