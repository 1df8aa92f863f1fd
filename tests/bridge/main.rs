//! The whole program, from outside.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod admin;
mod cli;
mod configuration;
mod grpc;
mod http;
mod signatures;
mod simulator;
mod support;
mod tail;
mod tools;
