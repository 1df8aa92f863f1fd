//! A log whose failures are ordered, for tests of what is above logs.

#![allow(clippy::unwrap_used, reason = "only tests use it")]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::{self, BoxFuture, FutureExt as _};

use tokio::sync::watch;

use super::{
    Appended, Block, Damaged, EarliestNow, Error, Follower, Gap, Log, ReadError, Status, Usage,
};
use prelude_bridge_event::{Batch, EventKey, Sequence, UnixMicros};

/// A log that does what another does, unless it is told to fail.
pub struct Scripted<L> {
    inner: Arc<L>,
    appends: Mutex<Script<Error>>,
    reads: Mutex<Script<ReadError>>,
    follows: Mutex<Option<Gap>>,
    /// How many events after the place reading leaves out.
    left_out: AtomicU64,
    earliest_now: Mutex<Option<EarliestNow>>,
    has_forgotten_ids: AtomicBool,
    damaged: watch::Sender<Arc<[Damaged]>>,
    status: Status,
}

/// What is done when the log is asked.
#[derive(Clone, Debug)]
pub enum Script<E> {
    /// What the other log does.
    Works,
    /// It fails, and asks nobody.
    Fails(E),
    /// There is never an answer.
    NeverAnswers,
}

impl<L: Log> Scripted<L> {
    /// Over another log; all works until something else is said.
    #[must_use]
    pub fn new(inner: Arc<L>) -> Self {
        let (damaged, damaged_seen) = watch::channel(Arc::default());
        let status = Status {
            damaged: damaged_seen,
            ..inner.status().clone()
        };
        Self {
            damaged,
            status,
            inner,
            appends: Mutex::new(Script::Works),
            reads: Mutex::new(Script::Works),
            follows: Mutex::default(),
            left_out: AtomicU64::new(0),
            earliest_now: Mutex::default(),
            has_forgotten_ids: AtomicBool::new(false),
        }
    }

    /// The other log.
    #[must_use]
    pub fn inner(&self) -> &Arc<L> {
        &self.inner
    }

    /// What appends, and questions for ids, lead to from now on.
    pub fn script_appends(&self, script: Script<Error>) {
        *self.appends.lock().unwrap() = script;
    }

    /// What reading and seeking lead to from now on.
    pub fn script_reads(&self, script: Script<ReadError>) {
        *self.reads.lock().unwrap() = script;
    }

    /// Leaves so many events out at the beginning of what is read from now on.
    pub fn leave_out(&self, events: u64) {
        self.left_out.store(events, Ordering::Relaxed);
    }

    /// The earliest time that it can be, from now on.
    pub fn set_earliest_now(&self, earliest: EarliestNow) {
        *self.earliest_now.lock().unwrap() = Some(earliest);
    }

    /// Says from now on that ids were forgotten; the other log still recognises what it did.
    pub fn forget_ids(&self) {
        self.has_forgotten_ids.store(true, Ordering::Relaxed);
    }

    /// Damages these events from now on: ranges in order, none of them twice. Whole blocks become
    /// unreadable, as on a disk: a range begins and ends where blocks do.
    pub fn damage(&self, ranges: &[Damaged]) {
        self.damaged.send_replace(ranges.into());
    }

    /// The damaged range that an event is in.
    fn damaged_at(&self, sequence: Sequence) -> Option<Damaged> {
        let ranges = self.status.damaged();
        let mut ranges = ranges.iter();
        ranges
            .find(|range| (range.first..=range.last).contains(&sequence))
            .copied()
    }

    /// Lets nobody follow from now on, for this reason.
    pub fn refuse_followers(&self, gap: Gap) {
        *self.follows.lock().unwrap() = Some(gap);
    }
}

fn act_out<'a, T: Send + 'a, E: Clone + Send + 'a>(
    script: &Mutex<Script<E>>,
    ask: impl FnOnce() -> BoxFuture<'a, Result<T, E>>,
) -> BoxFuture<'a, Result<T, E>> {
    match script.lock().unwrap().clone() {
        Script::Works => ask(),
        Script::Fails(error) => future::ready(Err(error)).boxed(),
        Script::NeverAnswers => future::pending().boxed(),
    }
}

impl<L: Log> Log for Scripted<L> {
    fn append(&self, batch: Batch) -> BoxFuture<'_, Result<Appended, Error>> {
        act_out(&self.appends, || self.inner.append(batch))
    }

    fn remembers(&self, keys: Vec<EventKey>) -> BoxFuture<'_, Result<bool, Error>> {
        act_out(&self.appends, || self.inner.remembers(keys))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }

    fn read(
        &self,
        after: Sequence,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<Vec<Arc<Block>>, ReadError>> {
        let after = after.plus(self.left_out.load(Ordering::Relaxed));
        if let Some(damaged) = self.damaged_at(after.plus(1)) {
            return future::ready(Err(ReadError::Damaged(damaged))).boxed();
        }
        act_out(&self.reads, || {
            let read = self.inner.read(after, bytes_max);
            async move {
                let mut blocks = read.await?;
                let readable = blocks
                    .iter()
                    .take_while(|block| self.damaged_at(block.first_sequence()).is_none())
                    .count();
                blocks.truncate(readable);
                Ok(blocks)
            }
            .boxed()
        })
    }

    fn seek(&self, at: UnixMicros) -> BoxFuture<'_, Result<Sequence, ReadError>> {
        act_out(&self.reads, || {
            let seek = self.inner.seek(at);
            async move {
                let place = seek.await?;
                match self.damaged_at(place.plus(1)) {
                    Some(damaged) => Err(ReadError::Damaged(damaged)),
                    None => Ok(place),
                }
            }
            .boxed()
        })
    }

    fn follow(&self, after: Sequence, follower: Arc<dyn Follower>) -> Result<(), Gap> {
        let refused = *self.follows.lock().unwrap();
        refused.map_or_else(|| self.inner.follow(after, follower), Err)
    }

    fn status(&self) -> &Status {
        &self.status
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }

    fn has_forgotten_ids(&self) -> bool {
        self.has_forgotten_ids.load(Ordering::Relaxed) || self.inner.has_forgotten_ids()
    }

    fn now(&self) -> UnixMicros {
        self.inner.now()
    }

    fn earliest_now(&self) -> EarliestNow {
        let set = *self.earliest_now.lock().unwrap();
        set.unwrap_or_else(|| self.inner.earliest_now())
    }

    fn settling_time(&self) -> Duration {
        self.inner.settling_time()
    }
}
