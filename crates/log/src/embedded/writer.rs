//! Owns the only thread that writes. It commits everything that waits together, hands the new blocks
//! to the followers, and answers. Between commits it brings the index up to date, some commits at a time,
//! and gives up what is too old.
//!
//! What fails: a full disk refuses the group, and the next one is tried as if nothing had been.
//! Anything else (above all a failed flush, after which nobody knows what is on the disk) ends the
//! writer for good; nothing is tried twice.

use std::{
    io,
    sync::{Arc, PoisonError, TryLockError, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode};

use super::{
    Commit, OnCommit, Seams, Shared, Stage,
    active::{Active, Stored},
    clock_row, disk_error,
    ids::{Effort, Ids, PAGE_BYTES},
    keeper,
    queue::{Job, Taken},
    retention::{Due, Retention},
    schema::{self, Notes},
};
use crate::{
    Appended, Block, Error,
    block::Builder,
    clock::{Ages, LogClock},
    group::{self, Place, Stamps},
};
use prelude_bridge_event::{Batch, Epoch, EventKey, LogId, Sequence, UnixMicros};

/// How often an idle writer looks whether something has become too old.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);
/// The log is idle when nothing has come for so long. Then what is left to do for the ids is done,
/// which otherwise is a part of the commits.
const IDLE_AFTER: Duration = Duration::from_millis(20);

/// The index is brought up to date when it is behind by so many ids: some tenths of a millisecond
/// of work, …
const BEHIND_IDS: usize = 1_024;
/// … or by so many bytes of events, which a start would have to read, …
const BEHIND_BYTES: u64 = 16 * 1024 * 1024;
/// … or for so long.
const BEHIND_TIME: Duration = Duration::from_secs(1);
/// While the keeper has the index for itself, it may fall behind by so many times that.
const BEHIND_TIMES_MAX: usize = 64;

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) connection: Connection,
    pub(super) keeper: JoinHandle<()>,
    pub(super) on_commit: Option<OnCommit>,
    pub(super) log: LogId,
    pub(super) term: Epoch,
    /// Kept for its memory.
    pub(super) builder: Builder,
    pub(super) clock: LogClock,
    pub(super) stamps: Stamps,
    pub(super) ages: Ages,
    pub(super) ids: Ids,
    pub(super) active: Active,
    /// Segments that the index does not know to be sealed, of which the last one is not.
    pub(super) unsealed: Vec<u64>,
    pub(super) behind: Behind,
    pub(super) retention: Retention,
    pub(super) seams: Seams,
}

/// What the index has not got, beside the ids.
#[derive(Default)]
pub(super) struct Behind {
    bytes: u64,
    /// When the first of these commits was written.
    since: Option<Instant>,
    trimmed: Option<(Sequence, UnixMicros)>,
    given_up: Vec<u64>,
}

/// What became of a group.
struct Written {
    blocks: Vec<Arc<Block>>,
    appended: Vec<Appended>,
}

impl Writer {
    /// Runs until the queue has ended.
    pub(super) fn run(mut self) {
        // Whatever ends this thread, nobody waits for it in vain.
        let _ended = Ended(Arc::clone(&self.shared));
        let opened = self.ids.read_filters(&self.connection);
        if let Err(error) = opened.and_then(|()| self.measure()) {
            self.shared.fail_index(&error);
        }
        let mut wait = Duration::ZERO;
        let mut idle = false;
        loop {
            match self.shared.queue.take(wait) {
                Taken::Group(jobs) => {
                    idle = false;
                    self.append(jobs);
                }
                Taken::Nothing => idle |= wait >= IDLE_AFTER,
                Taken::End => break,
            }
            wait = self.maintain(idle);
        }
        if self.shared.failure().is_none() {
            // A full disk loses nothing: the next start reads what the index has not got.
            let _ = self.index(Effort::Due);
        }
        self.shared.keeper.stop();
        if self.keeper.join().is_err() {
            self.shared.fail("the keeper ended");
        }
        if self.shared.failure().is_none()
            && let Err(error) = keeper::finish(&self.connection)
        {
            self.shared.fail(&format!("last checkpoint: {error}"));
        }
    }

    /// Writes a group, and answers everybody in it.
    fn append(&mut self, jobs: Vec<Job>) {
        let (batches, replies): (Vec<_>, Vec<_>) =
            jobs.into_iter().map(|job| (job.batch, job.reply)).unzip();
        let started = Instant::now();
        let written = self.write(&batches);
        let duration = started.elapsed();
        let fates: Vec<_> = match written {
            Ok(written) => match self.publish(&written.blocks, batches.len(), duration) {
                Ok(()) => written.appended.into_iter().map(Ok).collect(),
                Err(error) => batches.iter().map(|_| Err(error.clone())).collect(),
            },
            Err(error) => batches.iter().map(|_| Err(error.clone())).collect(),
        };
        for (reply, fate) in replies.into_iter().zip(fates) {
            // The request may have been given up; its events are there all the same.
            let _ = reply.send(fate);
        }
    }

    fn write(&mut self, batches: &[Batch]) -> Result<Written, Error> {
        if let Some(error) = self.shared.failure() {
            return Err(error);
        }
        (self.seams.fault)(Stage::Begin).map_err(|error| self.judge(&error))?;
        let written = self.write_group(batches);
        match &written {
            Ok(written) if written.blocks.is_empty() => self.ids.forget(),
            Ok(_) => self.shared.set_no_space(false),
            Err(_) => self.ids.forget(),
        }
        written
    }

    fn write_group(&mut self, batches: &[Batch]) -> Result<Written, Error> {
        let events = || {
            batches
                .iter()
                .flat_map(|batch| batch.drafts.iter().map(move |draft| (batch, draft)))
        };
        let keys: Vec<_> = events().map(|(_, draft)| draft.key).collect();
        // Before the keys are looked at: what moves them must not meet those that are tentative.
        let caught_up = self.catch_up();
        let sifted = self.ids.sift(&self.connection, &keys);
        let fresh = sifted.map_err(|error| self.shared.fail_index(&error))?;
        let now = self.clock.now();
        let received_at = self.stamps.next(now.wall);
        let place = Place {
            log: self.log,
            epoch: self.term,
            first_sequence: self.shared.range().head.plus(1),
            received_at,
        };
        let fresh_events = events()
            .zip(&fresh)
            .filter_map(|(event, &fresh)| fresh.then_some(event));
        let blocks = group::lay_out_with(&mut self.builder, place, fresh_events);
        if !blocks.is_empty() {
            let fresh_keys = keys.iter().zip(&fresh);
            let fresh_keys = fresh_keys.filter_map(|(&key, &fresh)| fresh.then_some(key));
            let fresh_keys: Vec<EventKey> = fresh_keys.collect();
            // What is known already needs no room.
            caught_up?;
            let stored = self.active.write(
                &blocks,
                &fresh_keys,
                &self.shared.keeper,
                &mut self.seams.fault,
            );
            let stored = stored.map_err(|error| self.judge(&error))?;
            self.note(&stored);
            self.stamps.used(received_at);
            let head = self.shared.segments.last_sequence();
            self.ages.note(head, now.retention.time);
            self.ids.keep(now.retention.time);
        }
        let mut fresh = fresh.into_iter();
        let appended = batches
            .iter()
            .map(|batch| {
                let events = batch.drafts.len();
                let accepted = fresh.by_ref().take(events).filter(|&fresh| fresh).count();
                Appended {
                    accepted,
                    duplicates: events - accepted,
                }
            })
            .collect();
        Ok(Written { blocks, appended })
    }

    /// What a failure of the disk means for those who wait.
    fn judge(&self, error: &io::Error) -> Error {
        if disk_error::is_no_space(error) {
            self.shared.set_no_space(true);
            return Error::NoSpace;
        }
        // Only what opens a file fails so, which is before anything is written.
        if disk_error::is_no_descriptor(error) {
            tracing::error!(%error, "no file can be opened: events are refused until one can");
            return Error::Overloaded;
        }
        self.shared.fail(&error.to_string())
    }

    /// Takes note of what was written.
    fn note(&mut self, stored: &Stored) {
        let Stored {
            ordinal,
            offset,
            headers,
        } = stored;
        self.shared.segments.add(*ordinal, *offset, headers);
        if self.unsealed.last() != Some(ordinal) {
            self.unsealed.push(*ordinal);
        }
        let bytes = headers.iter().map(super::frame::Header::frame_bytes);
        self.behind.bytes += bytes.sum::<u64>();
        self.behind.since.get_or_insert_with(Instant::now);
    }

    /// Whether the index is behind, and it is worth the while.
    fn is_behind(&self, times: usize) -> bool {
        self.ids.unwritten() >= BEHIND_IDS * times
            || self.behind.bytes >= BEHIND_BYTES * times as u64
    }

    /// Whether the index has not got a commit for too long. What it has got is known to have been
    /// whole: so it cannot be taken for torn when it is damaged later.
    fn is_overdue(&self) -> bool {
        let since = self.behind.since;
        since.is_some_and(|since| since.elapsed() >= BEHIND_TIME)
    }

    /// Does not let the index fall behind any further.
    fn catch_up(&mut self) -> Result<(), Error> {
        if self.is_behind(BEHIND_TIMES_MAX) {
            self.index(Effort::Due)?;
        }
        Ok(())
    }

    /// Brings the index up to date, in a transaction.
    fn index(&mut self, effort: Effort) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let _index = shared
            .keeper
            .index
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        (self.seams.fault)(Stage::Index).map_err(|error| self.judge(&error))?;
        // All but the last segment are sealed. Retention may have given up some of them already.
        let sealed = self
            .unsealed
            .split_last()
            .map_or(&[][..], |(_, sealed)| sealed);
        let first = shared.segments.first();
        let notes = Notes {
            indexed_through: shared.segments.last_sequence(),
            trimmed: self
                .behind
                .trimmed
                .zip(first)
                .map(|((through, at), first)| (through, at, first)),
            sealed: sealed
                .iter()
                .filter_map(|&ordinal| shared.segments.get(ordinal))
                .collect(),
        };
        let now = self.clock.now().retention;
        let clock = self.clock.snapshot();
        let done = self.transact(|writer| {
            notes.write(&writer.connection)?;
            writer.ids.write_behind(&writer.connection, &now, effort)?;
            clock_row::store(&writer.connection, &clock, writer.ages.marks())?;
            schema::seal(&writer.connection)?;
            writer.measure()
        });
        let Err(error) = done else {
            self.ids.written();
            let sealed = self.unsealed.len().saturating_sub(1);
            self.unsealed.drain(..sealed);
            let behind = std::mem::take(&mut self.behind);
            shared.keeper.remove(behind.given_up);
            return Ok(());
        };
        self.ids.not_written();
        let is_full = error.sqlite_error_code() == Some(ErrorCode::DiskFull);
        // SQLite may have rolled back by itself.
        let rolled_back =
            self.connection.is_autocommit() || self.connection.execute_batch("ROLLBACK").is_ok();
        if is_full && rolled_back {
            shared.set_no_space(true);
            return Err(Error::NoSpace);
        }
        Err(shared.fail_index(&error))
    }

    fn transact(
        &mut self,
        work: impl FnOnce(&mut Self) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        self.run_statement("BEGIN IMMEDIATE")?;
        work(self)?;
        self.run_statement("COMMIT")
    }

    fn run_statement(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(drop)
    }

    /// Finds out what the index occupies.
    fn measure(&self) -> rusqlite::Result<()> {
        let number = |sql| {
            self.connection
                .prepare_cached(sql)?
                .query_row([], |row| row.get::<_, i64>(0))
                .map(i64::cast_unsigned)
        };
        let pages = number("PRAGMA page_count")?;
        let used = pages.saturating_sub(number("PRAGMA freelist_count")?);
        let bytes = used * PAGE_BYTES;
        self.shared.index_bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Makes committed blocks known.
    fn publish(
        &mut self,
        blocks: &[Arc<Block>],
        batches: usize,
        duration: Duration,
    ) -> Result<(), Error> {
        let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else {
            return Ok(());
        };
        let applied = self.shared.publisher.apply(blocks);
        applied.map_err(|gap| self.shared.fail(&gap.to_string()))?;
        let bytes = blocks
            .iter()
            .map(|block| block.as_bytes().len() as u64)
            .sum();
        if let Some(on_commit) = &self.on_commit {
            on_commit(Commit {
                batches,
                events: last.last_sequence().plus(1).0 - first.first_sequence().0,
                bytes,
                duration,
            });
        }
        Ok(())
    }

    /// Gives up what is too old or too much, and brings the index up to date when it is behind or
    /// the log is idle. Returns how long to wait for appends until the next time.
    fn maintain(&mut self, idle: bool) -> Duration {
        if self.shared.failure().is_some() {
            return MAINTENANCE_INTERVAL;
        }
        self.shared.forget_no_space();
        let now = self.clock.now().retention;
        let range = self.shared.range();
        let due = self.retention.due(
            &self.shared.segments,
            &range,
            self.shared.index_bytes(),
            self.ages.expired(&now),
        );
        match due {
            Ok(Some(due)) => self.give_up(&due),
            Ok(None) => {}
            // It is tried again in a while.
            Err(error) if error.is_no_descriptor() => {}
            Err(error) => {
                self.shared.fail(&format!("retention: {error}"));
                return MAINTENANCE_INTERVAL;
            }
        }
        let has_news = self.ids.unwritten() > 0 || self.behind.trimmed.is_some();
        let is_untidy = has_news || self.ids.is_untidy(&now) || self.clock.store_is_due();
        let is_time = self.is_behind(1) || self.is_overdue() || idle && is_untidy;
        if is_time && self.index_is_free() {
            let effort = if idle { Effort::Idle } else { Effort::Due };
            return match self.index(effort) {
                Ok(()) => {
                    if idle && has_news {
                        self.shared.keeper.confirm();
                    }
                    Duration::ZERO
                }
                // A full disk is tried again in a while.
                Err(_) => MAINTENANCE_INTERVAL,
            };
        }
        if is_untidy {
            IDLE_AFTER
        } else {
            MAINTENANCE_INTERVAL
        }
    }

    /// Whether the keeper is not busy in the index.
    fn index_is_free(&self) -> bool {
        let index = self.shared.keeper.index.try_lock();
        !matches!(index, Err(TryLockError::WouldBlock))
    }

    /// Nobody sees the events any more; their segments go when the index has noted it.
    fn give_up(&mut self, due: &Due) {
        let earliest = due.through.plus(1);
        self.shared.publisher.trim(earliest, due.earliest_at);
        self.ages.forget_before(due.through.plus(1));
        self.behind.trimmed = Some((due.through, due.through_at));
        let given_up = self.shared.segments.forget(due.through);
        self.behind.given_up.extend(given_up);
    }
}

/// Marks the end of the writer, however it comes.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.keeper.stop();
            self.0.fail("the writer ended");
        }
        self.0.done.send_replace(true);
    }
}
