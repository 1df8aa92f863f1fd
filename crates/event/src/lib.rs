//! What an event is, from its identity to the bytes that everybody shares. Owns values and their
//! encodings; knows nothing of HTTP, gRPC, files, or who stores and sends the bytes.
//!
//! ```text
//! event    identity, cursor, and a batch on its way to the log
//! wire     how events and responses are laid out as protobuf
//! block    one commit with its events already encoded: stored, held and sent as it is
//! filter   which events a subscriber wants: parse, check, match
//! ```

mod event;

pub mod wire;

pub mod block;

pub mod filter;

#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use self::event::*;
