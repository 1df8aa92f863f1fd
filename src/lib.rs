//! prelude-bridge receives Prelude's signed webhook batches, makes them durable, and streams them
//! to any number of gRPC subscribers.
//!
//! The rooms, in the order an event travels; each imports only from those above it:
//!
//! ```text
//! POST /webhooks/{app} -> receiver -> signature -> decode -> log -> bus     -> 200
//!                                                             |      |
//!                                                  catch-up   v      v   live
//!                                              filter -> subscription -> http2 -> grpc
//! ```
//!
//! `ARCHITECTURE.md` has the bird's-eye view and the invariants.

// What everybody speaks of.

// The contract in `proto/`, as Rust types.
pub use prelude_bridge_contract as proto;

// What of others' text may be read in a log or on a terminal.
pub mod plain;

// Who can change the files that are trusted.
pub mod permissions;

// Token buckets: what all rate limits are made of.
pub mod rate;

// The known name that was probably meant.
pub mod nearest;

// TOML that people write: places and syntax errors.
pub mod toml_text;

// Event, cursor, bytes on the wire, blocks, filters: pure values.
pub use prelude_bridge_event as event;
pub use prelude_bridge_event::{filter, wire};

// What is counted, and under which name.
pub mod metrics;

// The door of every port: binding, accepting, limits, HTTP/1.1.
pub mod net;

// The way in.

// Where keys are published: how they are fetched, kept fresh, and kept for an outage.
pub mod key_source;

// Keys and RSA-PSS: only here a body becomes a verified one.
pub mod signature;

// Verified bytes to events.
pub mod decode;

// The promise that an acknowledged event is kept: embedded, memory.
pub use prelude_bridge_log as log;

// Who may subscribe to what: tokens, certificates, JWTs, and their end.
pub mod credentials;

// The newest blocks in memory, and who is woken for them: those whose filter may match.
pub mod bus;

// The webhook port: routes, limits, statuses.
pub mod receiver;

// The way out.

// Subscriptions: what a client is sent next, and why its stream ends. No connections, no statuses.
pub mod subscription;

// Connections of subscribers: how long they stay, what they may cost, how responses reach them.
pub mod http2;

// The RPCs: one table, requests, statuses.
pub mod grpc;

// Health, readiness, metrics.
pub mod admin;

// Around it.

// A client library whose subscriptions resume by themselves.
pub use prelude_bridge_client as client;

// Prelude's management API: registering webhooks.
pub mod management;

// The local stand-in for Prelude.
pub use prelude_bridge_simulator as simulator;

// Log lines on stderr.
pub mod logging;

// Flags, environment and file, with the origin of each value.
pub mod config;

// Wiring: start, run, drain.
pub mod server;

// What is wrong with a set-up, and what to do.
pub mod doctor;

// The commands.
pub mod cli;

// What the fuzz targets in `fuzz/` need of private rooms.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::{
        credentials::fuzzing::credentials,
        decode::fuzzing::{APP, batch, date},
        http2::fuzzing::frame_budget,
        log::fuzzing::frame,
    };

    /// A `Forwarded` header.
    pub fn forwarded(line: &[u8]) {
        crate::receiver::addresses(line);
    }
}
