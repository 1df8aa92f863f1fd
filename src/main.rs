//! The `prelude-bridge` command. Everything it does is in the library, in `cli`.

use std::{env, process::ExitCode};

/// An idle subscriber takes a fifth less memory than with glibc's allocator, at the same rates: a
/// connection's buffers are pages that nobody touched yet. Not where jemalloc cannot be built.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    prelude_bridge::cli::main(env::args_os())
}
