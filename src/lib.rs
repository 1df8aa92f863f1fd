//! prelude-bridge receives Prelude's signed webhook batches, makes them durable, and streams them
//! to any number of gRPC subscribers.

pub mod decode;
pub mod event;
pub mod filter;
pub mod log;
pub mod metrics;
pub mod net;
pub mod signature;

/// The contract in `proto/`, as Rust types.
#[expect(clippy::all, reason = "generated from the commented contract")]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/prelude.bridge.v1.rs"));

    /// The compiled contract, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
pub mod wire;

pub mod cli {
    //! The commands.
    pub mod verify;
}
