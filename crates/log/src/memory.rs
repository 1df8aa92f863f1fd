//! Owns the log for tests and trials: the whole contract, in memory. Nothing survives the process,
//! so `200` promises less here; the command line says so.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use futures_util::future::BoxFuture;

use super::{
    Appended, Block, Error, Lineage, Log, Range, ReadError, Tail, Usage,
    clock::{self, Ages, Clock, LogClock, RetentionTime},
    group::{self, Place, Stamps},
};
use prelude_bridge_event::{Batch, EventKey, Sequence, Term, UnixMicros};

/// What the memory log keeps.
#[derive(Clone, Debug)]
pub struct Options {
    /// Blocks older than this are removed. 30 days, as on disk.
    pub retention_age: Duration,
    /// The oldest blocks are removed when all together hold more bytes than this. 256 MiB: a trial
    /// should not take the machine. The newest block always stays.
    pub retention_bytes: u64,
    /// How many event ids are remembered, at least; up to twice as many are. A million: a few
    /// dozen MiB, and far more than a sender retries.
    pub ids_min: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            retention_age: Duration::from_secs(30 * 24 * 60 * 60),
            retention_bytes: 256 * 1024 * 1024,
            ids_min: 1_000_000,
        }
    }
}

/// Opens an empty log, which passes what is appended to `tail`.
///
/// # Errors
/// When the system gives no random bytes for the log's identity.
pub fn open(options: Options, tail: Tail) -> Result<Arc<Memory>, getrandom::Error> {
    open_with_clock(options, tail, clock::system_clock())
}

/// The same with a clock of one's own.
pub(super) fn open_with_clock(
    options: Options,
    tail: Tail,
    clock: Clock,
) -> Result<Arc<Memory>, getrandom::Error> {
    let term = group::new_term()?;
    let lineage = Lineage::new(group::new_log_id()?, vec![(Sequence(1), term)]);
    let clock = LogClock::new(clock, RetentionTime::default());
    Ok(Arc::new(Memory {
        lineage,
        clock: clock.watch(),
        writer: Mutex::new(Writer {
            ages: Ages::new(options.retention_age),
            options,
            tail,
            term,
            clock,
            stamps: Stamps::new(UnixMicros(0)),
            ids: Ids::default(),
            closed: false,
        }),
        kept: RwLock::new(Kept {
            blocks: VecDeque::new(),
            bytes: 0,
            head: Sequence::ZERO,
        }),
    }))
}

/// A [`Log`] in memory.
pub struct Memory {
    lineage: Lineage,
    clock: Arc<clock::Watch>,
    /// Held for a whole append, so that appends and the calls of the tail are in one order.
    writer: Mutex<Writer>,
    /// Held for moments only, so that reading never waits for the tail.
    kept: RwLock<Kept>,
}

struct Writer {
    options: Options,
    tail: Tail,
    term: Term,
    clock: LogClock,
    stamps: Stamps,
    ages: Ages,
    ids: Ids,
    closed: bool,
}

struct Kept {
    blocks: VecDeque<Arc<Block>>,
    bytes: u64,
    head: Sequence,
}

/// Two generations of ids: when the newer one is full, the older one is forgotten.
#[derive(Default)]
struct Ids {
    current: HashSet<EventKey>,
    previous: HashSet<EventKey>,
}

impl Ids {
    /// Remembers a key, and tells whether it is new.
    fn insert(&mut self, key: EventKey, ids_min: usize) -> bool {
        if self.current.len() >= ids_min {
            self.previous = std::mem::take(&mut self.current);
        }
        !self.previous.contains(&key) && self.current.insert(key)
    }
}

impl Memory {
    fn writer(&self) -> MutexGuard<'_, Writer> {
        // Whoever panicked (the tail) did so between whole changes.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> RwLockReadGuard<'_, Kept> {
        self.kept.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept_mut(&self) -> RwLockWriteGuard<'_, Kept> {
        self.kept.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn append_now(&self, batch: &Batch) -> Result<Appended, Error> {
        let mut writer = self.writer();
        if writer.closed {
            return Err(Error::Closed);
        }
        let Writer { options, ids, .. } = &mut *writer;
        let fresh: Vec<_> = batch
            .drafts
            .iter()
            .filter(|draft| ids.insert(draft.key, options.ids_min))
            .collect();
        let appended = Appended {
            accepted: fresh.len(),
            duplicates: batch.drafts.len() - fresh.len(),
        };
        let now = writer.clock.now();
        let place = Place {
            log: self.lineage.log(),
            term: writer.term,
            first_sequence: self.kept().head.plus(1),
            received_at: writer.stamps.next(now.wall),
        };
        let blocks = group::lay_out(place, fresh.into_iter().map(|draft| (batch, draft)));
        for block in blocks {
            // Nothing can be read that the tail has not seen, as with the log on disk.
            (writer.tail)(Arc::clone(&block));
            writer.stamps.used(block.received_at());
            writer.ages.note(block.last_sequence(), now.retention.time);
            self.kept_mut().push(block);
        }
        let expired = writer.ages.expired(&now.retention);
        let earliest = self
            .kept_mut()
            .trim(expired.unwrap_or_default(), writer.options.retention_bytes);
        writer.ages.forget_before(earliest);
        Ok(appended)
    }
}

impl Kept {
    fn push(&mut self, block: Arc<Block>) {
        self.head = block.last_sequence();
        self.bytes += block.memory_bytes() as u64;
        self.blocks.push_back(block);
    }

    /// Removes blocks up to `expired`, and while there are more than `bytes_max`. Returns the oldest
    /// event that is left.
    fn trim(&mut self, expired: Sequence, bytes_max: u64) -> Sequence {
        while let Some(first) = self.blocks.front() {
            let too_many = self.bytes > bytes_max && self.blocks.len() > 1;
            if first.last_sequence() > expired && !too_many {
                break;
            }
            self.bytes -= first.memory_bytes() as u64;
            self.blocks.pop_front();
        }
        self.range().earliest
    }

    fn range(&self) -> Range {
        let (first, last) = (self.blocks.front(), self.blocks.back());
        Range {
            earliest: first.map_or(self.head.plus(1), |block| block.first_sequence()),
            head: self.head,
            earliest_at: first.map(|block| block.received_at()),
            head_at: last.map(|block| block.received_at()),
        }
    }

    fn read(&self, after: Sequence, bytes_max: usize) -> Result<Vec<Arc<Block>>, ReadError> {
        let range = self.range();
        if !range.reaches(after) {
            let earliest = range.earliest;
            return Err(ReadError::Expired { earliest });
        }
        let start = self
            .blocks
            .partition_point(|block| block.last_sequence() <= after);
        let mut bytes = 0;
        let fitting = self.blocks.range(start..).enumerate().take_while(|block| {
            let (index, block) = block;
            bytes += block.as_bytes().len();
            *index == 0 || bytes <= bytes_max
        });
        Ok(fitting.map(|(_, block)| Arc::clone(block)).collect())
    }

    fn seek(&self, at: UnixMicros) -> Sequence {
        let index = self
            .blocks
            .partition_point(|block| block.received_at() < at);
        self.blocks
            .get(index)
            .map_or(self.head, |block| block.first_sequence().before())
    }
}

impl Log for Memory {
    fn append(&self, batch: Batch) -> BoxFuture<'_, Result<Appended, Error>> {
        let appended = self.append_now(&batch);
        Box::pin(async move { appended })
    }

    fn read(
        &self,
        after: Sequence,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<Vec<Arc<Block>>, ReadError>> {
        Box::pin(async move { self.kept().read(after, bytes_max) })
    }

    fn seek(&self, at: UnixMicros) -> BoxFuture<'_, Result<Sequence, ReadError>> {
        Box::pin(async move { Ok(self.kept().seek(at)) })
    }

    fn range(&self) -> Range {
        self.kept().range()
    }

    fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    fn usage(&self) -> Usage {
        Usage {
            stored_bytes: self.kept().bytes,
            queued_batches: 0,
            clock_jumps: self.clock.jumps(),
        }
    }

    fn now(&self) -> UnixMicros {
        self.clock.now()
    }

    fn health(&self) -> Result<(), Error> {
        if self.writer().closed {
            return Err(Error::Closed);
        }
        Ok(())
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move { self.writer().closed = true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    #[tokio::test]
    async fn ids_are_remembered_in_bounded_memory() {
        let options = Options {
            ids_min: 10,
            ..Options::default()
        };
        let log = open(options, Box::new(|_| {})).unwrap();
        for n in 0..100 {
            let appended = log.append(fixtures::numbered("app_1", n..n + 1)).await;
            assert_eq!(appended.unwrap().accepted, 1);
            let ids = &log.writer().ids;
            assert!(ids.current.len() + ids.previous.len() <= 20);
        }
        let again = log
            .append(fixtures::numbered("app_1", 90..100))
            .await
            .unwrap();
        assert_eq!(again.duplicates, 10);
    }
}
