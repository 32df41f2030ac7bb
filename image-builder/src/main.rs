//! `magikvm-image`: parse, call, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    magikvm_image::cli::main()
}
