//! prelude-bridge receives Prelude's signed webhook batches, makes them durable, and streams them
//! to any number of gRPC subscribers.

/// The contract in `proto/`, as Rust types.
#[expect(clippy::all, reason = "generated from the commented contract")]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/prelude.bridge.v1.rs"));

    /// The compiled contract, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

pub mod event;

pub mod wire;

pub mod metrics;

pub mod net;

pub mod signature;

pub mod decode;

pub mod log;

pub mod bus;

pub mod filter;

pub mod receiver;

pub mod stream;

pub mod admin;

pub mod client;

pub mod management;

pub mod simulator;

pub mod config;

pub mod logging;

pub mod server;

pub mod doctor;

pub mod cli;
