//! The `tlsward` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    tlsward::main()
}
