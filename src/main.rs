//! The `prelude-bridge` command. Everything it does is in the library, in `cli`.

use std::{env, process::ExitCode};

fn main() -> ExitCode {
    prelude_bridge::cli::main(env::args_os())
}
