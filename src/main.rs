//! The `prelude-bridge` command.
fn main() {}
