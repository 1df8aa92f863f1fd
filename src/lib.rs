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

// Shared vocabulary.

// The contract in `proto/`, as Rust types.
pub use prelude_bridge_contract as proto;

// Which text of others may appear in log lines and on a terminal.
pub mod plain;

// Which users can change the trusted files.
pub mod permissions;

// Token buckets, for all rate limits.
pub mod rate;

// The known name that is most similar to an unknown one.
pub mod nearest;

// Positions and syntax errors in TOML files.
pub mod toml_text;

// Event, cursor, bytes on the wire, blocks, filters: pure values.
pub use prelude_bridge_event as event;
pub use prelude_bridge_event::{filter, wire};

// Metrics and their names.
pub mod metrics;

// Listeners of all ports: binding, accepting, limits, HTTP/1.1.
pub mod net;

// The way in.

// Published key sets: fetched, refreshed, and kept for an outage.
pub mod key_source;

// Keys and RSA-PSS: the only room that can create a verified body.
pub mod signature;

// Verified bytes to events.
pub mod decode;

// The durable log: embedded, memory.
pub use prelude_bridge_log as log;

// Who may subscribe to what, and until when: tokens, certificates, JWTs.
pub mod credentials;

// The newest blocks in memory, and the wake-ups of the subscribers whose filter may match.
pub mod bus;

// The webhook port: routes, limits, statuses.
pub mod receiver;

// The way out.

// Subscriptions: what a client gets next, and why its stream ends. No connections, no statuses.
pub mod subscription;

// Connections of subscribers: their age, their limits, how responses reach them.
pub mod http2;

// The RPCs: one table, requests, statuses.
pub mod grpc;

// Health, readiness, metrics.
pub mod admin;

// Everything else.

// A client library whose subscriptions resume by themselves.
pub use prelude_bridge_client as client;

// Prelude's management API: registering webhooks.
pub mod management;

// The simulator of Prelude.
pub use prelude_bridge_simulator as simulator;

// Log lines on stderr.
pub mod logging;

// Flags, environment and file, with the origin of each value.
pub mod config;

// Wiring: start, run, drain.
pub mod server;

// Checks of a set-up, with remedies.
pub mod doctor;

// The commands.
pub mod cli;

// What the fuzz targets in `fuzz/` need of private rooms.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::{
        credentials::fuzzing::credentials,
        decode::fuzzing::{APP, batch, date, single_event},
        http2::fuzzing::frame_budget,
        log::fuzzing::frame,
    };

    /// A `Forwarded` header.
    pub fn forwarded(line: &[u8]) {
        crate::receiver::addresses(line);
    }
}
