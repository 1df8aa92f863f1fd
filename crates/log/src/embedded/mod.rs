//! Owns the log on disk: segment files, to which one thread appends, and what follows them.
//!
//! `queue` → `writer` (with `retention`) → the `active` segment → `readers`. A `commit` is durable when
//! its frames are (`frame` knows their bytes), with one write and one flush of space that was made
//! ready. The keys of weeks are in the files of `ids`; a sealed segment says by its `footer` what is in
//! it; the `manifest` says what is true of the log as a whole. All three may be behind the segments,
//! never ahead of them: a start (`opening`) reads in the segments (`recovery`, `scan`) what they have not got,
//! and makes a damaged manifest anew from them (`survey`). What is taken out of the log goes to the
//! `quarantine`. The `keeper` does what no commit is to wait for; the next segment (`preparation`) is a
//! part of it.
//!
//! Where several bridges write one log, each has a `replica` of it: `in_order` is the writer's part in that.
//! A `copy` takes a log from one store to another.
//!
//! Damage keeps nobody from the rest: a `walk` over the frames of a segment finds the next one that is
//! whole, for readers, for a start (`salvage`), and for what verifies a segment (`verify`): the `scrub`
//! in the background, and the `check` from outside. What they find is made known by `damage`.

mod active;
mod check;
mod commit;
pub mod copy;
mod damage;
#[cfg(test)]
mod damage_tests;
mod directory;
mod disk_error;
mod footer;
mod frame;
pub(crate) mod frames;
mod ids_budget;
mod in_order;
mod inspect;
mod keeper;
mod manifest;
mod missing_ids;
mod open_error;
mod opening;
mod preparation;
mod quarantine;
mod queue;
#[cfg(test)]
mod random_damage_tests;
mod readable;
mod readers;
mod recovery;
#[cfg(test)]
mod removal_tests;
mod replica;
mod reserve;
mod retention;
mod salvage;
mod scan;
mod scrub;
mod segments;
#[cfg(test)]
mod start_tests;
mod starting;
mod survey;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod verify;
mod walk;
mod writer;

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, atomic::AtomicBool},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

#[cfg(any(test, feature = "testing"))]
pub(super) use self::starting::open_replica_with_seams;
#[cfg(test)]
pub(super) use self::starting::open_with_seams;
pub use self::{
    check::{CheckFault, CheckProgress, CheckReport, Remedy, check},
    commit::{CommitReport, OnCommit},
    inspect::{Inspection, inspect},
    open_error::OpenError,
    starting::open_replica,
};
use self::{
    directory::Directory, keeper::Keeper, queue::Queue, readers::Readers, replica::Replicated,
    reserve::Reserve, scrub::Scrub, segments::Segments,
};
use super::{
    Appended, Block, EarliestNow, Error, Follower, Gap, Health, Log, Publisher, Range, ReadError,
    Status, Usage,
    clock::{self, Clock},
    ids,
};
use prelude_bridge_event::{Batch, EventKey, Sequence, UnixMicros};

/// What a commit takes at most on a local disk that more is asked of than it can do.
const SETTLING_TIME: Duration = Duration::from_millis(500);

/// How long batches wait for a store that does not take them. After that they are refused at once, so that no
/// queue grows and senders come back later. 2 s: a connection that was lost is usually there again by then, and
/// waiting so long costs a sender less than an attempt that fails.
const STORE_PATIENCE: Duration = Duration::from_secs(2);

/// How far the clocks of several bridges are apart, where they are kept right.
const CLOCKS_DIFFER: Duration = Duration::from_secs(1);

/// What the log keeps, and what it may take.
#[derive(Clone)]
pub struct Options {
    /// Blocks older than this are removed. 30 days: twice as long as the sender retries, so that
    /// whoever was offline for as long as that still finds everything.
    pub retention_age: Duration,
    /// The oldest segment is removed when the segments occupy more than this. The one that is written
    /// to always stays. 10 GiB: some twenty million events of usual size.
    pub retention_bytes: u64,
    /// For how long a repetition of an event is recognised, at least; up to a day longer. 15 days:
    /// the sender retries for 14.
    pub ids_age: Duration,
    /// When the files of ids occupy more than this, the oldest ids are forgotten before their time; those
    /// of the last day never are. 4 GiB: the ids of 180 events a second for 16 days, with some 300 MB
    /// of memory.
    pub ids_bytes: u64,
    /// How many batches may wait for the disk. 1,024: a second's worth on a slow disk, after which
    /// the sender had better come back later.
    pub queue_batches_max: usize,
    /// How many bytes of batches may wait, in memory. 64 MiB.
    pub queue_bytes_max: usize,
    /// How many events are committed together, at most (a larger batch is committed alone). 8,192:
    /// one block.
    pub group_events_max: usize,
    /// How many bytes of batches are committed together, at most. 4 MiB: a few milliseconds.
    pub group_bytes_max: usize,
    /// How many catch-ups read at once; more wait. 4: reading is copying, and a few cores' worth is
    /// enough.
    pub readers: usize,
    /// How much of the log is verified in a second, in the background; more where the whole log would
    /// take longer than a week. 1 MiB: 10 GiB take three hours, and any disk does it beside the rest.
    /// 0: nothing is verified.
    pub scrub_bytes_per_second: u64,
    /// Told of each commit, from the writer's thread. Must not block.
    pub on_commit: Option<OnCommit>,
}

impl Options {
    fn queue_limits(&self) -> queue::Limits {
        queue::Limits {
            queue_batches_max: self.queue_batches_max,
            queue_bytes_max: self.queue_bytes_max,
            group_events_max: self.group_events_max,
            group_bytes_max: self.group_bytes_max,
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            retention_age: Duration::from_secs(30 * 24 * 60 * 60),
            retention_bytes: 10 * 1024 * 1024 * 1024,
            ids_age: Duration::from_secs(15 * 24 * 60 * 60),
            ids_bytes: 4 * 1024 * 1024 * 1024,
            queue_batches_max: 1_024,
            queue_bytes_max: 64 * 1024 * 1024,
            group_events_max: 8_192,
            group_bytes_max: 4 * 1024 * 1024,
            readers: 4,
            scrub_bytes_per_second: 1024 * 1024,
            on_commit: None,
        }
    }
}

/// Opens the log in a directory, which is created if need be. Blocks for some milliseconds, and for
/// as long as it takes to read the last segment.
///
/// # Errors
/// [`OpenError`], which says what to do.
pub fn open(data_dir: &Path, options: Options) -> Result<Arc<Embedded>, OpenError> {
    starting::open_with_seams(data_dir, options, Seams::default())
}

/// What the files of ids in a data directory occupy, in bytes. Looks at their names and sizes only.
///
/// # Errors
/// A directory that cannot be read.
pub fn ids_bytes(data_dir: &Path) -> io::Result<u64> {
    ids::stored_bytes(&data_dir.join(directory::IDS_DIRECTORY))
}

/// Where tests take the place of the clock and of the disk.
pub(super) struct Seams {
    pub(super) clock: Clock,
    pub(super) fault: Fault,
    /// Smaller ones, so that there is more to see.
    pub(super) ids_limits: Option<ids::Limits>,
    /// How long batches wait for a store that does not take them; then they are refused at once.
    pub(super) store_patience: Duration,
}

/// May fail in the place of the disk.
pub(super) type Fault = Arc<dyn Fn(Stage) -> io::Result<()> + Send + Sync>;

/// What the writer or the keeper is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Write the manifest of a start.
    Open,
    /// Create or open a segment to write to it.
    Segment,
    /// Begin with a group.
    Begin,
    /// Write a commit.
    Write,
    /// Make it durable.
    Flush,
    /// Append the footer of a segment.
    Footer,
    /// Replace the manifest.
    Manifest,
    /// Do a step of the ids' work.
    Ids,
    /// Make the reserve.
    Reserve,
    /// Take something out of the log at a start.
    Quarantine,
}

impl Default for Seams {
    fn default() -> Self {
        Self {
            clock: clock::system_clock(),
            fault: Arc::new(|_| Ok(())),
            ids_limits: None,
            store_patience: STORE_PATIENCE,
        }
    }
}

/// A [`Log`] on disk.
pub struct Embedded {
    shared: Arc<Shared>,
    readers: Readers,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Without it the log works as well.
    scrub: Mutex<Option<JoinHandle<()>>>,
    ended: watch::Receiver<bool>,
    /// Last, so that the directory is given up when everything else is closed.
    _directory: Directory,
}

/// What the threads of a log and its handles have in common.
struct Shared {
    queue: Queue,
    keeper: Keeper,
    scrub: Scrub,
    segments: Arc<Segments>,
    publisher: Publisher,
    reserve: Reserve,
    /// What the ids occupy, as of a while ago.
    ids_usage: Mutex<ids::Usage>,
    clock: Arc<clock::Watch>,
    failure: OnceLock<Arc<str>>,
    no_space_at: Mutex<Option<Instant>>,
    /// Where others order the commits, why the log takes no events for now.
    engine_health: Mutex<Option<Health>>,
    has_missing_ids: AtomicBool,
    /// Where several bridges write the log.
    replicated: Option<Arc<Replicated>>,
    fault: Fault,
    done: watch::Sender<bool>,
}

impl Shared {
    fn range(&self) -> Range {
        self.publisher.status().range()
    }

    fn failure(&self) -> Option<Error> {
        self.failure.get().cloned().map(Error::Failed)
    }

    /// Refuses what comes from now on.
    fn close(&self) {
        self.queue.close();
        self.scrub.stop();
        self.publisher.set_health(Health::Closed);
    }

    /// Ends the log for good; the first reason counts.
    fn fail(&self, reason: &str) -> Error {
        let reason = self.failure.get_or_init(|| {
            tracing::error!(reason, "the log failed: restart the bridge");
            reason.into()
        });
        self.publisher.set_health(Health::Failed {
            reason: Arc::clone(reason),
        });
        let error = Error::Failed(Arc::clone(reason));
        self.queue.fail(&error);
        error
    }

    fn ids_usage(&self) -> MutexGuard<'_, ids::Usage> {
        self.ids_usage
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log for Embedded {
    fn append(&self, batch: Batch) -> BoxFuture<'_, Result<Appended, Error>> {
        // In line from now on, whatever becomes of the future.
        let pushed = self.shared.queue.push(batch);
        Box::pin(async move {
            let answer = pushed?;
            if self.shared.replicated.is_none() {
                return self.shared.answer(answer.await);
            }
            tokio::select! {
                biased;
                answer = answer => self.shared.answer(answer),
                // What is in progress goes on: its events are known when they come again.
                error = self.shared.queue.unavailable() => Err(error),
            }
        })
    }

    fn recall(&self, keys: Vec<EventKey>) -> BoxFuture<'_, Result<Vec<Option<EventKey>>, Error>> {
        let asked = self.shared.queue.recall(keys);
        Box::pin(async move { self.shared.answer(asked?.await) })
    }

    fn read(
        &self,
        after: Sequence,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<Vec<Arc<Block>>, ReadError>> {
        Box::pin(async move {
            let read = self.readers.read(self.status(), after, bytes_max).await;
            read.map_err(|failure| self.shared.evaluate_reading(failure))
        })
    }

    fn catch_up(&self) -> BoxFuture<'_, Result<(), ReadError>> {
        match &self.shared.replicated {
            Some(replicated) => replicated.catch_up(),
            None => Box::pin(async { Ok(()) }),
        }
    }

    fn seek(&self, at: UnixMicros) -> BoxFuture<'_, Result<Sequence, ReadError>> {
        Box::pin(async move {
            let found = self.readers.seek(self.status(), at).await;
            found.map_err(|failure| self.shared.evaluate_reading(failure))
        })
    }

    fn follow(&self, after: Sequence, follower: Arc<dyn Follower>) -> Result<(), Gap> {
        self.shared.publisher.follow(after, follower)
    }

    fn status(&self) -> &Status {
        self.shared.publisher.status()
    }

    fn usage(&self) -> Usage {
        let ids = *self.shared.ids_usage();
        Usage {
            stored_bytes: self.shared.segments.bytes() + ids.bytes,
            ids: Some(ids),
            queued_batches: self.shared.queue.len(),
            clock_jumps: self.shared.clock.jumps(),
        }
    }

    fn has_forgotten_ids(&self) -> bool {
        self.shared.ids_usage().forgotten > 0
    }

    fn now(&self) -> UnixMicros {
        self.shared.clock.now()
    }

    fn earliest_now(&self) -> EarliestNow {
        self.shared.clock.earliest_now()
    }

    fn settling_time(&self) -> Duration {
        let replicated = self.shared.replicated.as_ref();
        let engine = replicated.map_or(Duration::ZERO, |replicated| {
            replicated.sequencer.append_time_max() + CLOCKS_DIFFER
        });
        SETTLING_TIME + engine
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.shared.close();
        let mut ended = self.ended.clone();
        Box::pin(async move {
            // The sender lives as long as `shared`, so this ends with the writer.
            let _ = ended.wait_for(|&ended| ended).await;
        })
    }
}

/// Writes what is queued, and gives the directory up. Blocks for as long as that takes:
/// [`Log::close`] first, where that matters.
impl Drop for Embedded {
    fn drop(&mut self) {
        self.shared.close();
        for thread in [&mut self.scrub, &mut self.thread] {
            let thread = thread.get_mut().unwrap_or_else(PoisonError::into_inner);
            if let Some(thread) = thread.take()
                // A follower may hold the last handle.
                && thread.thread().id() != thread::current().id()
            {
                // Its panic, if any, was noted as the log's failure.
                let _ = thread.join();
            }
        }
    }
}
