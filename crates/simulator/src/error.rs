//! Owns why the simulator could not do what it was asked.

use std::net::SocketAddr;

use super::{BATCH_EVENTS_MAX, activation, keys, ledger::AttemptResult, options, webhooks};

/// Why the simulator could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option makes no sense.
    #[error("{0}")]
    Options(#[from] options::Invalid),
    /// The simulator cannot listen on the address.
    #[error(
        "cannot listen on {address}: {source} (choose another address, or port 0 for a free one)"
    )]
    Listen {
        /// The requested address.
        address: SocketAddr,
        /// The error of the system.
        source: std::io::Error,
    },
    /// A key cannot be made or used.
    #[error(transparent)]
    Key(#[from] keys::Error),
    /// The HTTP client cannot be set up.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(reqwest::Error),
    /// The system returned no random seed.
    #[error("the system gave no random seed: {0}")]
    Seed(getrandom::Error),
    /// No such app.
    #[error("the simulator plays no app or source `{0}`")]
    UnknownApp(String),
    /// No such webhook.
    #[error("the simulator knows no webhook `{0}`")]
    UnknownWebhook(String),
    /// The registry refused.
    #[error(transparent)]
    Webhook(#[from] webhooks::Error),
    /// The activation challenge failed.
    #[error("activation failed: {0}")]
    Activation(#[from] activation::Failure),
    /// A POST had no answer.
    #[error("the delivery had no answer: {0}")]
    NoAnswer(AttemptResult),
    /// Events could not be written as JSON.
    #[error("the events cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A source of Verify or Notify sends each event in a request of its own.
    #[error("{0} events are no delivery: sources of verify and notify send one event at a time")]
    NotOneEvent(usize),
    /// More events than a batch may hold.
    #[error("a batch of {0} events is too large: at most {BATCH_EVENTS_MAX}")]
    BatchSize(usize),
    /// The simulator was stopped.
    #[error("the simulator was stopped")]
    Stopped,
}
