//! `containerd-shim-edgepull-v1`.

use std::io::Write;
use std::process::ExitCode;

use edgepull_shim::cli::{self, Flags};
use edgepull_shim::idmap;

/// One process runs for months beside each pod, and every probe of kubelet is an exec: memory that
/// is freed has to be joined again, or given back, which musl's allocator does to pages of one size alone.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let words = std::env::args_os().skip(1);
    if std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == idmap::HOLD)
    {
        idmap::hold();
        return ExitCode::SUCCESS;
    }
    let words = words.map(|word| word.to_string_lossy().into_owned());
    let result = Flags::parse(words).and_then(|flags| cli::run(&flags));
    // Whatever reads this takes all of it: nothing else may be printed, on either of the two.
    let printed = match result {
        Ok(bytes) => std::io::stdout()
            .write_all(&bytes)
            .map_err(|error| error.to_string()),
        Err(error) => Err(error.message().to_owned()),
    };
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "containerd-shim-edgepull-v1: {message}");
            ExitCode::FAILURE
        }
    }
}
