//! The sequencer against real servers of NATS, which are killed, stopped and configured wrongly. `make tools`
//! installs the server; a test whose tool is missing fails and says so.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::needless_pass_by_value,
    reason = "helpers of tests are tests, too"
)]

mod contract;
mod failures;
mod log;
mod opening;
mod security;
mod support;
