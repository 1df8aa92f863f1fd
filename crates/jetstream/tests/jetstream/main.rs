//! The sequencer against real servers of NATS, which are killed, stopped and configured wrongly. `make tools`
//! installs the server; a test whose tool is missing fails and says so.

mod contract;
mod failures;
mod opening;
mod security;
mod support;
