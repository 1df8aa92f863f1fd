//! Owns the reasons why a log does not take or give events, and which of them pass.

use std::sync::Arc;

use crate::Damaged;
use prelude_bridge_event::Sequence;

/// Why a batch was not appended. Retrying is always safe: what the log has already, it leaves out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The queue is full: more arrives than the disk can take. Nothing of the batch was appended.
    #[error("the log's queue is full")]
    Overloaded,
    /// The disk is full. Nothing of the batch was appended; retry once there is room.
    #[error("the disk of the data directory is full")]
    NoSpace,
    /// What orders or keeps the events does not answer, or this log has not caught up with it.
    /// Whether the batch was appended may be unknown; it passes without a restart.
    #[error("the log is unavailable for now: {0}")]
    Unavailable(Arc<str>),
    /// A write or flush failed, or the log is not what it was. What is stored is unknown until the
    /// log is opened again, so nothing more is written.
    #[error("the log failed and accepts nothing until the process is restarted: {0}")]
    Failed(Arc<str>),
    /// The log is shutting down. Nothing of the batch was appended.
    #[error("the log is closed")]
    Closed,
}

/// Why nothing could be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Retention has removed events after the place that was asked for.
    #[error("retention has passed this place: the log begins with event {earliest}")]
    Expired {
        /// The oldest event that is left.
        earliest: Sequence,
    },
    /// The event after the place that was asked for is damaged, as are those up to the last one of
    /// the range: what comes after that can be read.
    #[error("{0} {verb} damaged", verb = .0.verb())]
    Damaged(Damaged),
    /// What keeps the events does not answer. It passes without a restart.
    #[error("the log cannot be read for now: {0}")]
    Unavailable(Arc<str>),
    /// The log could not be read.
    #[error("the log cannot be read: {0}")]
    Failed(Arc<str>),
}
