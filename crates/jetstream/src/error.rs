//! Owns why the stream cannot be opened, and what mends it.

use std::path::PathBuf;

/// Why the stream cannot be opened. Every message says what to do, and none has a secret.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// What is configured cannot be.
    #[error("{0}")]
    Options(String),
    /// A file of the login or of TLS cannot be used.
    #[error("{}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No server could be reached.
    #[error(
        "no server of NATS at {servers} could be reached: {reason}; check the addresses, whether the servers \
         run, and TLS"
    )]
    Connect {
        /// The configured servers.
        servers: String,
        /// What the last attempt came to.
        reason: String,
    },
    /// The server knows nobody with this login.
    #[error(
        "NATS at {servers} refuses the login; check the user and password, token or credentials file \
         against the accounts of the server"
    )]
    Login {
        /// The configured servers.
        servers: String,
    },
    /// The server is configured in a way, or so old, that a promise would be broken.
    #[error("{0}")]
    Server(String),
    /// JetStream is not enabled: in the server, or for the account.
    #[error("{0}")]
    NoJetStream(String),
    /// The user may not do what a bridge has to do.
    #[error("the user of NATS may not do this: {0}; docs/jetstream.md lists what a bridge needs")]
    Permission(String),
    /// There is no such stream, and it is not to be created.
    #[error("NATS has no stream {stream}: check its name, the servers and the account")]
    Missing {
        /// The name of the stream.
        stream: String,
    },
    /// The stream cannot be created.
    #[error("the stream {stream} cannot be created: {reason}")]
    Create {
        /// The name of the stream.
        stream: String,
        /// What the server said, and what to do.
        reason: String,
    },
    /// The stream exists, but has settings that break a promise.
    #[error("the stream {stream} cannot be used: {}", .problems.join("; "))]
    Stream {
        /// The name of the stream.
        stream: String,
        /// What is wrong with it, each with the command that mends it.
        problems: Vec<String>,
    },
    /// The servers answer, but not with the stream.
    #[error("{0}; it may pass: try again")]
    Unavailable(String),
}
