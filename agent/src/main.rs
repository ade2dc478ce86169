//! The binary `edgepull`: everything is in the library.

use std::process::ExitCode;

/// The C library that the static programs are linked with copies a block that grows byte by
/// byte, which costs as much as decrypting it; `cross/CHOICES.md` has the figures.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: rlsf::SmallGlobalTlsf = rlsf::SmallGlobalTlsf::new();

fn main() -> ExitCode {
    edgepull::cli::main()
}
