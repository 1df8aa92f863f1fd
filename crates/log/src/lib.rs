//! Owns the promise that an acknowledged event is kept: the contract of logs, and the logs that
//! fulfil it. Everything above knows the contract and the [`Block`], and only what opens a log knows
//! which one it is. Knows nothing of HTTP, gRPC and subscribers.
//!
//! ```text
//! lib          appending, reading, following, the status: the trait
//! error        why events are not taken or given
//! epochs       cursors, and which of them belong to the log
//! follow       what follows a log, and what it refuses
//! status       range, epochs and health, to be read or awaited
//! publisher    makes every commit known, for all logs alike
//! sequencer    the contract of engines that order the commits of several bridges
//! group        makes batches a commit, for all logs alike
//! clock        stamps, and the age of events, whatever the system's clock does
//! memory       a log in memory: trials, tests
//! embedded     a log on disk
//! conformance  what every log must do, as tests
//! testing      a log that fails when it is told to
//! ```

mod clock;
pub mod embedded;
mod epochs;
mod error;
mod follow;
mod group;
#[cfg_attr(not(test), expect(dead_code, reason = "tests ask for its sizes"))]
mod ids;
pub mod memory;
mod publisher;
pub mod sequencer;
mod status;

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

pub use self::{
    embedded::{
        CheckFault, CheckProgress, CheckReport, Inspection, OpenError, Remedy, check, ids_bytes,
        inspect,
    },
    epochs::{CursorFault, Epochs},
    error::{Error, ReadError},
    follow::{Follower, Gap},
    group::Commit,
    publisher::Publisher,
    status::{CatchUp, Cursors, Damaged, Health, Range, Status},
};
pub use prelude_bridge_event::block::{self, Block, Format};
use prelude_bridge_event::{Batch, EventKey, Sequence, UnixMicros, wire};

/// An ordered, durable sequence of events.
///
/// Appends are atomic and exactly once: a batch is there whole or not at all, and an event that was
/// appended within the time that ids are remembered (of the same app, id and type, whatever its
/// content) is left out. Sequence numbers have no
/// holes. Handles are shared; dropping the last one closes the log.
///
/// An implementation passes the tests of `conformance`, and has a [`Publisher`], which does
/// [`follow`](Self::follow) and [`status`](Self::status) for it.
pub trait Log: Send + Sync + 'static {
    /// Appends the events of a batch that are new, and resolves once they are durable and all
    /// [followers](Self::follow) have them. The batch goes on even when the returned future is
    /// dropped.
    ///
    /// # Errors
    /// [`Error`]. Retrying is always safe, and useful but for [`Error::Failed`] and
    /// [`Error::Closed`].
    fn append(&self, batch: Batch) -> BoxFuture<'_, Result<Appended, Error>>;

    /// Finds for each key the one that its event was appended with, within the time that ids are remembered.
    /// What is being appended meanwhile may count or not. Changes nothing.
    ///
    /// # Errors
    /// [`Error`], when it cannot be told now.
    fn recall(&self, keys: Vec<EventKey>) -> BoxFuture<'_, Result<Vec<Option<EventKey>>, Error>>;

    /// Waits until everything queued is durable, then refuses further appends.
    fn close(&self) -> BoxFuture<'_, ()>;

    /// Returns the blocks that hold the events after `after`, oldest first: as many as fit into
    /// `bytes_max`, but at least one unless `after` is the head. The first block may begin before
    /// the place; the caller skips those events.
    ///
    /// # Errors
    /// [`ReadError::Expired`] when retention has removed the event after `after`, and
    /// [`ReadError::Damaged`] when it is damaged. Blocks before damage are returned first.
    fn read(
        &self,
        after: Sequence,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<Vec<Arc<Block>>, ReadError>>;

    /// Resolves once the log has every event that was acknowledged anywhere before the call: at once where
    /// it has one writer.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`], when that cannot be told now.
    fn catch_up(&self) -> BoxFuture<'_, Result<(), ReadError>> {
        Box::pin(async { Ok(()) })
    }

    /// The place before the first event received at or after `at`: the head when there is none yet.
    ///
    /// # Errors
    /// [`ReadError`], other than that it expired.
    fn seek(&self, at: UnixMicros) -> BoxFuture<'_, Result<Sequence, ReadError>>;

    /// Hands every commit after the head to a follower, which has everything up to `after`. Replays
    /// nothing. When the follower refuses a block, the log fails.
    ///
    /// # Errors
    /// [`Gap`], when the log does not end with `after`: it may have grown since that was read.
    fn follow(&self, after: Sequence, follower: Arc<dyn Follower>) -> Result<(), Gap>;

    /// The ends of the log, its epochs, and whether it takes events: as of now, or to be awaited.
    fn status(&self) -> &Status;

    /// The two ends of the log, as of now.
    fn range(&self) -> Range {
        self.status().range()
    }

    /// What the log occupies, and what waits to be written. Cheap.
    fn usage(&self) -> Usage;

    /// Whether there may be an event, in the log or removed, whose repetition it does not recognise any
    /// more: the id was forgotten, at its time or before it, or was lost to damage. Cheap.
    fn has_forgotten_ids(&self) -> bool;

    /// The time that an event would be stamped with which is appended now, unless the newest event
    /// has a later one: a jump of the system's clock changes it only when it lasts.
    fn now(&self) -> UnixMicros;

    /// The earliest time that it can be now. It is [`now`](Self::now), except for a day after the
    /// system's clock was set forwards or the machine was rebooted: the time that passed meanwhile by
    /// that clock alone counts once it has kept pace with the steady clock for a day, as it does for the
    /// age of events.
    fn earliest_now(&self) -> EarliestNow;

    /// How far before [`now`](Self::now) an event may be stamped that cannot be seen yet, because its
    /// commit is under way: at most what a commit takes, and what the clocks of several writers
    /// differ. Nobody who waited so long after a time misses an event from before it.
    fn settling_time(&self) -> Duration;
}

/// The earliest time that it can be now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EarliestNow {
    /// The time.
    pub at: UnixMicros,
    /// Whether the system's clock has ever kept pace with the steady clock for a day since the log is
    /// there. If not, only a reading of the former says so.
    pub is_confirmed: bool,
}

/// What became of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// Events that were new.
    pub accepted: usize,
    /// Events that the log had already.
    pub duplicates: usize,
    /// Of the duplicates, those with another content than the event that the log has and keeps.
    pub changed: usize,
    /// The id of the first of these.
    pub changed_id: Option<Box<str>>,
}

impl Appended {
    /// What becomes of a batch: `known` has for each event the key that it was first appended with, and
    /// none for a new one.
    pub fn of<'a>(batch: &Batch, known: impl IntoIterator<Item = &'a Option<EventKey>>) -> Self {
        let mut appended = Self::default();
        for (draft, first) in batch.drafts.iter().zip(known) {
            let Some(first) = first else {
                appended.accepted += 1;
                continue;
            };
            appended.duplicates += 1;
            if *first != draft.key {
                appended.changed += 1;
                appended.changed_id.get_or_insert_with(|| {
                    let id = wire::event_id(batch.head(draft));
                    String::from_utf8_lossy(id).into()
                });
            }
        }
        appended
    }
}

/// What the ids occupy by which repetitions are recognised.
pub use ids::Usage as IdsUsage;

/// What a log occupies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes on disk (memory, for the memory log).
    pub stored_bytes: u64,
    /// What of that the ids occupy; `None` where that is not limited.
    pub ids: Option<IdsUsage>,
    /// Batches that wait to be written.
    pub queued_batches: usize,
    /// How often the system's clock jumped since the log was opened.
    pub clock_jumps: u64,
}

#[cfg(fuzzing)]
#[doc(hidden)]
pub use embedded::frames::fuzzing;

#[cfg(any(test, feature = "testing"))]
pub mod conformance;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

#[cfg(test)]
pub(crate) use prelude_bridge_event::testing as fixtures;

#[cfg(test)]
mod clock_tests;

#[cfg(test)]
mod conformance_tests;
