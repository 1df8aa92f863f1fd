//! Owns the promise that an acknowledged event is kept: the log's contract, which the embedded log
//! (files) and the memory log fulfil. Everything above it knows only this file and the [`Block`].
//! Knows nothing of HTTP, gRPC and subscribers.

mod clock;
pub mod embedded;
mod group;
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "tests and benchmarks ask for its sizes")
)]
mod ids;
mod lineage;
pub mod memory;

use std::sync::Arc;

use futures_util::future::BoxFuture;

pub use self::lineage::{CursorFault, Lineage};
pub use prelude_bridge_event::block::{self, Block, Format};
use prelude_bridge_event::{Batch, Sequence, UnixMicros};

/// An ordered, durable sequence of events.
///
/// Appends are atomic and exactly once: a batch is there whole or not at all, and an event whose
/// key was appended within the time that ids are remembered is left out. Sequence numbers have no
/// holes. Handles are shared; dropping the last one closes the log.
pub trait Log: Send + Sync + 'static {
    /// Appends the events of a batch that are new, and resolves once they are durable *and* passed
    /// to the [`Tail`]. The batch goes on even when the returned future is dropped.
    fn append(&self, batch: Batch) -> BoxFuture<'_, Result<Appended, Error>>;

    /// Returns the blocks that hold the events after `after`, oldest first: as many as fit into
    /// `bytes_max`, but at least one unless `after` is the head. The first block may begin before
    /// the place; the caller skips those events.
    ///
    /// # Errors
    /// [`ReadError::Expired`] when retention has removed the event after `after`.
    fn read(
        &self,
        after: Sequence,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<Vec<Arc<Block>>, ReadError>>;

    /// The place before the first event received at or after `at`: the head when there is none yet.
    fn seek(&self, at: UnixMicros) -> BoxFuture<'_, Result<Sequence, ReadError>>;

    /// The two ends, as of now. Cheap.
    fn range(&self) -> Range;

    /// Identifies this log, to make and check cursors. Constant while the log is open.
    fn lineage(&self) -> &Lineage;

    /// What the log occupies, and what waits to be written. Cheap.
    fn usage(&self) -> Usage;

    /// The time that an event would be stamped with which is appended now, unless the newest event
    /// has a later one: a jump of the system's clock changes it only when it lasts.
    fn now(&self) -> UnixMicros {
        UnixMicros::now()
    }

    /// Why nothing can be appended, if so. After a [`Error::Failed`] this never recovers: the
    /// process should end, and with a new start read back what is really there.
    fn health(&self) -> Result<(), Error>;

    /// Waits until everything queued is durable, then refuses further appends.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// Receives each block right after its commit, in the log's order, from the log's own thread. Must
/// not block.
pub type Tail = Box<dyn Fn(Arc<Block>) + Send + Sync>;

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Events that were new.
    pub accepted: usize,
    /// Events that the log had already.
    pub duplicates: usize,
}

/// The two ends of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// The oldest event that is still there; one past the head in an empty log.
    pub earliest: Sequence,
    /// The newest event; what it was, in a log that retention has emptied; 0 in a new log.
    pub head: Sequence,
    /// When the oldest event was received; `None` in an empty log.
    pub earliest_at: Option<UnixMicros>,
    /// When the newest event was received; `None` in an empty log.
    pub head_at: Option<UnixMicros>,
}

impl Range {
    /// How many events are there.
    #[must_use]
    pub fn event_count(&self) -> u64 {
        self.head
            .0
            .saturating_add(1)
            .saturating_sub(self.earliest.0)
    }

    /// Whether there is nothing between a place and the events that are left.
    #[must_use]
    pub fn reaches(&self, after: Sequence) -> bool {
        after.plus(1) >= self.earliest
    }
}

/// What a log occupies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes on disk (memory, for the memory log).
    pub stored_bytes: u64,
    /// Batches that wait to be written.
    pub queued_batches: usize,
    /// How often the system's clock jumped since the log was opened.
    pub clock_jumps: u64,
}

/// Why a batch was not appended. Nothing of it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The queue is full: more arrives than the disk can take. Safe to retry.
    #[error("the log's queue is full")]
    Overloaded,
    /// The disk is full. Safe to retry once there is room.
    #[error("the disk of the data directory is full")]
    NoSpace,
    /// A write or flush failed. What is on the disk is unknown until the log is opened again, so
    /// nothing more is written.
    #[error("the log failed and accepts nothing until the process is restarted: {0}")]
    Failed(Arc<str>),
    /// The log is shutting down.
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
    /// The log could not be read.
    #[error("the log cannot be read: {0}")]
    Failed(Arc<str>),
}

#[cfg(test)]
pub(crate) use prelude_bridge_event::testing as fixtures;

#[cfg(test)]
mod clock_tests;

#[cfg(test)]
mod contract_tests;
