//! The whole program, from outside.
#![expect(clippy::unwrap_used, reason = "tests")]

mod cli;
mod configuration;
