//! Owns the only thread that writes. It commits everything that waits as one transaction, hands the
//! new blocks to the tail, and answers; between commits it removes what is too old, a little at a
//! time.
//!
//! What fails: a full disk rolls the group back, and the next one is tried as if nothing had been.
//! Anything else (above all a failed flush, after which nobody knows what is on the disk) ends the
//! writer for good; nothing is tried twice.

use std::{
    sync::{Arc, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode, params};

use super::{
    Commit, OnCommit, Seams, Shared, Stage, checkpointer,
    ids::Ids,
    queue::{Job, Taken},
    retention::{Removed, Retention},
};
use crate::{
    event::{Batch, LogId, Term},
    log::{
        Appended, Block, Error, Tail,
        block::Builder,
        group::{self, Place, Stamps},
    },
};

/// How often an idle writer looks whether something has become too old.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);
/// The log is idle when nothing has come for so long. Then what is left to do for the ids is done,
/// which otherwise is a part of the commits.
const IDLE_AFTER: Duration = Duration::from_millis(20);

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) connection: Connection,
    pub(super) checkpointer: JoinHandle<()>,
    pub(super) tail: Tail,
    pub(super) on_commit: Option<OnCommit>,
    pub(super) log: LogId,
    pub(super) term: Term,
    /// Kept for its memory.
    pub(super) builder: Builder,
    pub(super) stamps: Stamps,
    pub(super) ids: Ids,
    pub(super) retention: Retention,
    pub(super) seams: Seams,
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
        if let Err(error) = self.ids.read_filters(&self.connection) {
            self.shared.fail(&error.to_string());
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
        self.shared.gate.stop();
        if self.checkpointer.join().is_err() {
            self.shared.fail("the checkpointer ended");
        }
        if self.shared.failure().is_none()
            && let Err(error) = checkpointer::finish(&self.connection)
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
            Ok(written) => {
                self.publish(&written.blocks, batches.len(), duration);
                written.appended.into_iter().map(Ok).collect()
            }
            Err(error) => batches.iter().map(|_| Err(error.clone())).collect(),
        };
        for (reply, fate) in replies.into_iter().zip(fates) {
            // The request may have been given up; its events are there all the same.
            let _ = reply.send(fate);
        }
    }

    fn write(&mut self, batches: &[Batch]) -> Result<Written, Error> {
        let shared = Arc::clone(&self.shared);
        let _pass = shared.gate.enter();
        if let Some(error) = shared.failure() {
            return Err(error);
        }
        let written = self.transact(|writer| writer.write_group(batches))?;
        Ok(written)
    }

    fn write_group(&mut self, batches: &[Batch]) -> rusqlite::Result<Written> {
        let events = || {
            batches
                .iter()
                .flat_map(|batch| batch.drafts.iter().map(move |draft| (batch, draft)))
        };
        let keys: Vec<_> = events().map(|(_, draft)| draft.key).collect();
        let received_at = self.stamps.next();
        let fresh = self.ids.insert(&self.connection, &keys, received_at)?;
        let place = Place {
            log: self.log,
            term: self.term,
            first_sequence: self.shared.range().head.plus(1),
            received_at,
        };
        let fresh_events = events()
            .zip(&fresh)
            .filter_map(|(event, &fresh)| fresh.then_some(event));
        let blocks = group::lay_out_with(&mut self.builder, place, fresh_events);
        let mut insert = self
            .connection
            .prepare_cached("INSERT INTO blocks VALUES (?1, ?2, ?3, ?4)")?;
        for block in &blocks {
            insert.execute(params![
                block.last_sequence().0.cast_signed(),
                block.first_sequence().0.cast_signed(),
                block.received_at().0,
                block.as_bytes().as_ref(),
            ])?;
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

    /// Does something as one transaction, all of it or nothing.
    fn transact<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        let done = self.try_transact(work);
        let error = match done {
            Ok(done) => {
                self.ids.committed();
                self.shared.set_no_space(false);
                return Ok(done);
            }
            Err(error) => error,
        };
        self.ids.rolled_back();
        let is_full = error.sqlite_error_code() == Some(ErrorCode::DiskFull);
        // SQLite may have rolled back by itself.
        let rolled_back =
            self.connection.is_autocommit() || self.connection.execute_batch("ROLLBACK").is_ok();
        if is_full && rolled_back {
            self.shared.set_no_space(true);
            return Err(Error::NoSpace);
        }
        Err(self.shared.fail(&error.to_string()))
    }

    fn try_transact<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        (self.seams.fault)(Stage::Begin, &self.connection)?;
        self.run_statement("BEGIN IMMEDIATE")?;
        let done = work(self)?;
        (self.seams.fault)(Stage::Commit, &self.connection)?;
        self.run_statement("COMMIT")?;
        Ok(done)
    }

    fn run_statement(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(drop)
    }

    /// Makes committed blocks known.
    fn publish(&mut self, blocks: &[Arc<Block>], batches: usize, duration: Duration) {
        let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else {
            return;
        };
        for block in blocks {
            (self.tail)(Arc::clone(block));
        }
        let mut range = self.shared.range_mut();
        range.earliest_at.get_or_insert(first.received_at());
        range.head = last.last_sequence();
        range.head_at = Some(last.received_at());
        drop(range);
        let bytes = blocks
            .iter()
            .map(|block| block.as_bytes().len() as u64)
            .sum();
        self.retention.added(bytes);
        if let Some(on_commit) = &self.on_commit {
            on_commit(Commit {
                batches,
                events: last.last_sequence().plus(1).0 - first.first_sequence().0,
                bytes,
                duration,
            });
        }
    }

    /// Removes a little of what is too old or too much, and tidies up when the log is idle. Returns
    /// how long to wait for appends until the next time.
    fn maintain(&mut self, idle: bool) -> Duration {
        if self.shared.failure().is_some() {
            return MAINTENANCE_INTERVAL;
        }
        let now = self.stamps.next();
        let measured = self.retention.measure(&self.connection);
        match measured {
            Ok(bytes) => self.shared.set_file_bytes(bytes),
            Err(error) => {
                self.shared.fail(&error.to_string());
                return MAINTENANCE_INTERVAL;
            }
        }
        let range = self.shared.range();
        let ids_untidy = self.ids.is_untidy(now);
        let blocks_due = self.retention.is_due(&range, now);
        if !(blocks_due || idle && ids_untidy) {
            return if ids_untidy {
                IDLE_AFTER
            } else {
                MAINTENANCE_INTERVAL
            };
        }
        let shared = Arc::clone(&self.shared);
        let _pass = shared.gate.enter();
        let removed = self.transact(|writer| {
            if idle && ids_untidy {
                writer.ids.tidy(&writer.connection, now)?;
            }
            if blocks_due {
                writer.retention.step(&writer.connection, &range, now)
            } else {
                Ok(None)
            }
        });
        match removed {
            Ok(Some(removed)) => self.forget(&removed),
            Ok(None) => {}
            // A full disk is tried again in a while.
            Err(_) => return MAINTENANCE_INTERVAL,
        }
        Duration::ZERO
    }

    /// Makes known that blocks were removed.
    fn forget(&mut self, removed: &Removed) {
        let mut range = self.shared.range_mut();
        range.earliest = removed.through.plus(1);
        range.earliest_at = removed.first.map(|(_, at)| at);
        if removed.first.is_none() {
            range.head_at = None;
        }
        drop(range);
        (self.seams.on_removed)(removed.blocks);
    }
}

/// Marks the end of the writer, however it comes.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.gate.stop();
            self.0.fail("the writer ended");
        }
        self.0.done.send_replace(true);
    }
}

impl Shared {
    fn range_mut(&self) -> std::sync::RwLockWriteGuard<'_, crate::log::Range> {
        self.range.write().unwrap_or_else(PoisonError::into_inner)
    }
}
