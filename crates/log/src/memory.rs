//! Owns the log for tests and trials: the whole contract, in memory. Nothing survives the process,
//! so `200` promises less here; the command line says so.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    convert::Infallible,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;

use super::{
    Appended, Block, Commit, EarliestNow, Error, Follower, Gap, Log, Publisher, Range, ReadError,
    Status, Usage,
    block::Builder,
    clock::{self, Ages, Clock, LogClock, RetentionTime},
    epochs::Epochs,
    group::{self, Place, Prepared, Stamps},
    status::Health,
};
use prelude_bridge_event::{Batch, Epoch, EventKey, LogId, Sequence, UnixMicros};

/// How long an append takes at most, on a machine that has more to do than it can.
const SETTLING_TIME: Duration = Duration::from_millis(100);

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

/// Opens an empty log.
///
/// # Errors
/// When the system gives no random bytes for the log's identity.
pub fn open(options: Options) -> Result<Arc<Memory>, getrandom::Error> {
    open_with_clock(options, clock::system_clock())
}

/// The same with a clock of one's own.
pub(super) fn open_with_clock(
    options: Options,
    clock: Clock,
) -> Result<Arc<Memory>, getrandom::Error> {
    let (log, epoch) = (group::new_log_id()?, group::new_epoch()?);
    let clock = LogClock::new(clock, RetentionTime::default());
    let range = Range {
        earliest: Sequence(1),
        ..Range::default()
    };
    let epochs = Epochs::new(log, vec![(Sequence(1), epoch)]);
    Ok(Arc::new(Memory {
        log,
        publisher: Publisher::new(range, epochs, Health::Ready),
        clock: clock.watch(),
        writer: Mutex::new(Writer {
            ages: Ages::new(options.retention_age),
            options,
            epoch,
            builder: group::new_builder(),
            clock,
            stamps: Stamps::new(UnixMicros(0)),
            ids: Ids::default(),
        }),
        has_forgotten_ids: AtomicBool::new(false),
        kept: RwLock::default(),
    }))
}

/// A [`Log`] in memory.
pub struct Memory {
    log: LogId,
    publisher: Publisher,
    clock: Arc<clock::Watch>,
    /// Held for a whole append, so that appends and what followers see are in one order.
    writer: Mutex<Writer>,
    has_forgotten_ids: AtomicBool,
    /// Held for moments only, so that reading never waits for a follower.
    kept: RwLock<Kept>,
}

struct Writer {
    options: Options,
    /// That of the last commit, or of this run before the first.
    epoch: Epoch,
    builder: Builder,
    clock: LogClock,
    stamps: Stamps,
    ages: Ages,
    ids: Ids,
}

#[derive(Default)]
struct Kept {
    blocks: VecDeque<Arc<Block>>,
    bytes: u64,
}

/// Two generations of ids: when the newer one is full, the older one is forgotten.
#[derive(Default)]
struct Ids {
    current: Keys,
    previous: Keys,
}

/// Keys by the part of them that stands for the event.
type Keys = HashMap<[u8; 12], EventKey>;

impl Ids {
    /// Finds for each key the one of the same event that is remembered, or comes before it.
    fn find(&self, keys: &[EventKey]) -> Vec<Option<EventKey>> {
        let mut met = Keys::with_capacity(keys.len());
        let find = |key: &EventKey| {
            let event = key.event();
            self.get(&event).or_else(|| match met.entry(event) {
                Entry::Occupied(first) => Some(*first.get()),
                Entry::Vacant(none) => {
                    none.insert(*key);
                    None
                }
            })
        };
        keys.iter().map(find).collect()
    }

    fn get(&self, event: &[u8; 12]) -> Option<EventKey> {
        let found = self.current.get(event);
        found.or_else(|| self.previous.get(event)).copied()
    }

    /// Remembers an id. True when others are forgotten for it.
    fn remember(&mut self, key: EventKey, ids_min: usize) -> bool {
        let mut forgotten = Keys::new();
        if self.current.len() >= ids_min {
            forgotten = std::mem::replace(&mut self.previous, std::mem::take(&mut self.current));
        }
        self.current.insert(key.event(), key);
        !forgotten.is_empty()
    }
}

impl Memory {
    fn writer(&self) -> MutexGuard<'_, Writer> {
        // A follower that panicked did so between whole changes.
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
        self.refusal()?;
        let Prepared { commit, appended } = self.prepare(&mut writer, batch);
        // Nothing outlives the process, so there is nothing between the two to make durable.
        self.apply(&mut writer, &commit)?;
        Ok(appended.into_iter().next().unwrap_or_default())
    }

    fn prepare(&self, writer: &mut Writer, batch: &Batch) -> Prepared {
        let place = Place {
            log: self.log,
            epoch: writer.epoch,
            first_sequence: self.publisher.status().range().head.plus(1),
            received_at: writer.stamps.next(writer.clock.now().wall),
        };
        let deduplicate = |keys: &[_]| Ok(writer.ids.find(keys));
        let prepared = group::prepare(&mut writer.builder, place, [batch].into_iter(), deduplicate);
        prepared.unwrap_or_else(|never: Infallible| match never {})
    }

    /// Applies a commit of another writer of this log, which goes on in that writer's epoch. It does so
    /// also while it takes no batches, unless that is for good.
    ///
    /// # Errors
    /// [`Error::Failed`], when the commit is not the next one or the log has failed before, and
    /// [`Error::Closed`].
    pub fn apply_commit(&self, commit: &Commit) -> Result<(), Error> {
        let mut writer = self.writer();
        if self.status().health().is_final() {
            self.refusal()?;
        }
        self.apply(&mut writer, commit)
    }

    fn apply(&self, writer: &mut Writer, commit: &Commit) -> Result<(), Error> {
        let now = writer.clock.now().retention;
        // Nothing past the head can be read, so a block that is refused is never seen.
        self.kept_mut().push(&commit.blocks);
        let applied = self.publisher.apply(&commit.blocks);
        applied.map_err(|gap| Error::Failed(gap.to_string().into()))?;
        for &key in &commit.keys {
            if writer.ids.remember(key, writer.options.ids_min) {
                self.has_forgotten_ids.store(true, Ordering::Relaxed);
            }
        }
        if let Some(last) = commit.blocks.last() {
            writer.epoch = last.epoch();
            writer.stamps.used(last.received_at());
            writer.ages.note(last.last_sequence(), now.time);
        }
        let expired = writer.ages.expired(&now).unwrap_or_default();
        self.trim(writer, expired);
        Ok(())
    }

    fn trim(&self, writer: &mut Writer, expired: Sequence) {
        let mut kept = self.kept_mut();
        kept.trim(expired, writer.options.retention_bytes);
        let first = kept.blocks.front();
        let head = self.publisher.status().range().head;
        let earliest = first.map_or(head.plus(1), |block| block.first_sequence());
        let earliest_at = first.map(|block| block.received_at());
        self.publisher.trim(earliest, earliest_at);
        writer.ages.forget_before(earliest);
    }

    fn refusal(&self) -> Result<(), Error> {
        let refusal = self.publisher.status().health().refusal();
        refusal.map_or(Ok(()), Err)
    }

    /// Takes no events until [`resume`](Self::resume), as a log that others keep does when they do not
    /// answer: for tests of what is above it.
    pub fn suspend(&self, reason: &str) {
        let reason = reason.into();
        self.publisher.set_health(Health::Unavailable {
            reason,
            is_cut_off: false,
        });
    }

    /// Takes events again.
    pub fn resume(&self) {
        self.publisher.set_health(Health::Ready);
    }
}

impl Kept {
    fn push(&mut self, blocks: &[Arc<Block>]) {
        self.bytes += blocks.iter().map(weight).sum::<u64>();
        self.blocks.extend(blocks.iter().cloned());
    }

    /// Removes blocks up to `expired`, and while there are more than `bytes_max`.
    fn trim(&mut self, expired: Sequence, bytes_max: u64) {
        while let Some(first) = self.blocks.front() {
            let too_many = self.bytes > bytes_max && self.blocks.len() > 1;
            if first.last_sequence() > expired && !too_many {
                break;
            }
            self.bytes -= weight(first);
            self.blocks.pop_front();
        }
    }

    /// The blocks after `after` of a log that ends with `head`.
    fn read(
        &self,
        after: Sequence,
        head: Sequence,
        bytes_max: usize,
    ) -> Result<Vec<Arc<Block>>, ReadError> {
        let first = self.blocks.front();
        let earliest = first.map_or(head.plus(1), |block| block.first_sequence());
        if after.plus(1) < earliest {
            return Err(ReadError::Expired { earliest });
        }
        let start = self
            .blocks
            .partition_point(|block| block.last_sequence() <= after);
        let mut bytes = 0;
        let fitting = self.blocks.range(start..).enumerate().take_while(|block| {
            let (index, block) = block;
            bytes += block.as_bytes().len();
            block.last_sequence() <= head && (*index == 0 || bytes <= bytes_max)
        });
        Ok(fitting.map(|(_, block)| Arc::clone(block)).collect())
    }

    fn seek(&self, at: UnixMicros, head: Sequence) -> Sequence {
        let index = self
            .blocks
            .partition_point(|block| block.received_at() < at);
        let found = self.blocks.get(index);
        found.map_or(head, |block| block.first_sequence().before().min(head))
    }
}

fn weight(block: &Arc<Block>) -> u64 {
    block.memory_bytes() as u64
}

impl Log for Memory {
    fn append(&self, batch: Batch) -> BoxFuture<'_, Result<Appended, Error>> {
        let appended = self.append_now(&batch);
        Box::pin(async move { appended })
    }

    fn recall(&self, keys: Vec<EventKey>) -> BoxFuture<'_, Result<Vec<Option<EventKey>>, Error>> {
        Box::pin(async move {
            let writer = self.writer();
            self.refusal()?;
            Ok(keys
                .iter()
                .map(|key| writer.ids.get(&key.event()))
                .collect())
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // Whoever appends now is done first.
            let _writer = self.writer();
            self.publisher.set_health(Health::Closed);
        })
    }

    fn read(
        &self,
        after: Sequence,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<Vec<Arc<Block>>, ReadError>> {
        Box::pin(async move {
            let kept = self.kept();
            kept.read(after, self.status().range().head, bytes_max)
        })
    }

    fn seek(&self, at: UnixMicros) -> BoxFuture<'_, Result<Sequence, ReadError>> {
        Box::pin(async move { Ok(self.kept().seek(at, self.status().range().head)) })
    }

    fn follow(&self, after: Sequence, follower: Arc<dyn Follower>) -> Result<(), Gap> {
        self.publisher.follow(after, follower)
    }

    fn status(&self) -> &Status {
        self.publisher.status()
    }

    fn usage(&self) -> Usage {
        Usage {
            stored_bytes: self.kept().bytes,
            ids: None,
            queued_batches: 0,
            clock_jumps: self.clock.jumps(),
        }
    }

    fn has_forgotten_ids(&self) -> bool {
        self.has_forgotten_ids.load(Ordering::Relaxed)
    }

    fn now(&self) -> UnixMicros {
        self.clock.now()
    }

    fn earliest_now(&self) -> EarliestNow {
        self.clock.earliest_now()
    }

    fn settling_time(&self) -> Duration {
        SETTLING_TIME
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
        let log = open(options).unwrap();
        for n in 0..100 {
            let appended = log.append(fixtures::numbered("app_1", n..n + 1)).await;
            assert_eq!(appended.unwrap().accepted, 1);
            let ids = &log.writer().ids;
            assert!(ids.current.len() + ids.previous.len() <= 20);
            assert_eq!(log.has_forgotten_ids(), n >= 20, "{n}");
        }
        let again = log
            .append(fixtures::numbered("app_1", 90..100))
            .await
            .unwrap();
        assert_eq!(again.duplicates, 10);
    }
}
