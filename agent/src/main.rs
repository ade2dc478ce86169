//! The binary `edgepull`: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    edgepull::cli::main()
}
