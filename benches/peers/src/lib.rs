//! The same work for prelude-bridge and for what a user would pick instead, in one run, alternating.
//!
//! ```text
//! events   what is published: made once, signed before anything is measured
//! process  a server in a process of its own, pinned to a core: CPU time, memory
//! system   which servers there are, how each is started, fed and subscribed to
//! load     one thread and one epoll for all connections of the load
//! protocol what is spoken on them: gRPC, NATS, HTTP/1.1, bare TCP
//! work     fan-out, latency, ingest, memory, and the limits
//! results  what is kept of a run: medians, ratios within a round
//! plan     which works on which servers
//! compare  which results are compared, and what is aimed at
//! report   tables, Markdown, SVG
//! ```

pub mod compare;
pub mod events;
pub mod feed;
pub mod load;
pub mod plan;
pub mod process;
pub mod protocol;
pub mod report;
pub mod results;
pub mod system;
pub mod work;

/// The contract in `proto/`, as Rust types.
#[expect(clippy::all, reason = "generated from the commented contract")]
pub mod proto {
    tonic::include_proto!("prelude.bridge.v1");
}
