//! The `cryoscope` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    cryoscope::cli::main()
}
