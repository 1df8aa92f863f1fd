//! The same work for prelude-bridge and for what a user would pick instead, in one run, alternating.
//! The load is that of `prelude-bridge bench`: keys, processes and their CPU time, the engine that
//! drives connections, the subscriber. Here is what only a comparison needs.
//!
//! ```text
//! events   what is published: made once, signed before anything is measured
//! feed     the plain connection to servers that take no webhooks
//! protocol what only other servers speak: NATS, bare TCP
//! system   which servers there are, how each is started, fed and subscribed to
//! store    a log that several bridges have, and its engine
//! work     fan-out, latency, ingest, memory, and the limits
//! results  what is kept of a run: medians, ratios within a round
//! plan     which works on which servers
//! compare  which results are compared, and what is aimed at
//! report   tables, Markdown, SVG
//! ```

pub mod compare;
pub mod events;
pub mod feed;
pub mod plan;
pub mod protocol;
pub mod report;
pub mod results;
pub mod store;
pub mod system;
pub mod work;

/// The contract in `proto/`, as Rust types.
pub mod proto {
    pub use prelude_bridge_contract::*;

    mod generated {
        tonic::include_proto!("prelude.bridge.v1");
    }

    pub use generated::event_service_server;
}
