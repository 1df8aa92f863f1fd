//! The whole program, from outside.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod cli;
mod configuration;
mod doctor;
mod setup;
mod signatures;
mod simulator;
mod tail;
mod trigger;
