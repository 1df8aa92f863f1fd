//! Owns the memory for repetitions: which event keys were appended within the last weeks. Commits
//! keep their keys beside their events, so it can't be of another opinion than the log.
//!
//! Keys are hashes: wherever they are kept in order, each new one belongs to another page. So the
//! newest are in a set in memory (`recent`). The index follows a little behind: it gets the keys of
//! some commits one after another, as a row of `id_log`, and what it has not got at a crash, is read
//! from the segments again. When the set is full it is written out in order, as a *run* (`run`), and
//! when there are [many](Limits::fan_in) runs of a size they are merged into one. For each run
//! there is a filter in memory, so that only a key that was there before, and one new key in some
//! hundreds, is looked up on disk. Slice by slice a merged run's filters take the place of those
//! that it is made of: both would take twice the memory, or make them so coarse that each new key
//! is looked up several times.
//!
//! All of this happens a slice at a time, in the index's transactions, in proportion to what they
//! add; so none of them takes long and none is needed for this alone, except when the log is idle.
//! What was begun is found in the tables after a crash, and is continued.
//!
//! No key has a time of its own: a run is forgotten when its newest key is old enough. Runs are
//! merged only if together they are no older than that, so a key is remembered for one to two times
//! its time.

mod filter;
mod recent;
mod run;
#[cfg(test)]
mod tests;
mod upkeep;

use rusqlite::{Connection, params};

pub(super) use self::run::PAGE_BYTES;
use self::{
    filter::{Filter, Filters},
    recent::Recent,
    run::{Pages, Run},
};
use super::checksum;
use crate::clock::{RetentionNow, RetentionTime};
use prelude_bridge_event::EventKey;

/// An [`EventKey`] as a number, in the same order.
type Key = u128;

/// How long keys are remembered, and what that may take.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Keys are remembered for so long at least, and for twice as long at most.
    pub(super) age_micros: i64,
    /// How many new keys are kept in memory until they are written out. As many again are there
    /// while they are written.
    pub(super) recent_keys: u64,
    /// How many keys a slice of a run has, at most, on average.
    pub(super) slice_keys: u64,
    /// So many runs of a size are merged.
    pub(super) fan_in: usize,
    /// What all filters may take in memory. When they would take more they become coarser.
    pub(super) filter_bytes: usize,
}

impl Limits {
    pub(super) fn new(age_micros: i64) -> Self {
        Self {
            age_micros,
            // 213,000 keys: 5 MB, which a start reads in some milliseconds. Full slices, and room
            // in them for the commit that goes beyond.
            recent_keys: 64 * run::SLICE_KEYS_MEAN_MAX * 13 / 14,
            slice_keys: run::SLICE_KEYS_MEAN_MAX,
            // A key is written three times until there are 54 million, and looked for in 15 filters
            // on average.
            fan_in: 16,
            // 67 million keys before filters become coarser.
            filter_bytes: 128 * 1024 * 1024,
        }
    }
}

pub(super) struct Ids {
    limits: Limits,
    /// Keys that no run has.
    young: Recent,
    /// Keys that are being written into a run.
    frozen: Option<Recent>,
    /// Runs that are whole. Each key is in one of them only.
    runs: Vec<Run>,
    /// Runs that are being written.
    jobs: Vec<Job>,
    /// Runs that are being deleted.
    dead: Vec<i64>,
    dead_debt: u64,
    /// The newest row of `id_log`.
    log_last: i64,
    /// Whether `id_log` has rows that are in a run.
    log_is_untrimmed: bool,
    next_run: i64,
    filter_bytes: usize,
    /// New keys of the running commit.
    tentative: Vec<Key>,
    /// Keys of commits that are durable, and are not in the index.
    unwritten: Vec<Key>,
    /// When the newest of them were appended.
    unwritten_at: Option<RetentionTime>,
    /// What the running transaction of the index does.
    effects: Vec<Effect>,
}

/// A run that is being written.
struct Job {
    output: Run,
    source: Source,
    written: u64,
    /// How many keys are due to be written.
    debt: u64,
}

impl Job {
    fn is_merge(&self) -> bool {
        matches!(self.source, Source::Runs(_))
    }
}

#[derive(Clone)]
enum Source {
    /// The frozen keys: those up to this row of `id_log`.
    Frozen { log_through: i64 },
    /// These runs.
    Runs(Vec<i64>),
}

enum Effect {
    Started(Job),
    Written { id: i64, filters: Vec<Filter> },
    Expired(i64),
    Deleted { id: i64, slices: u64, more: bool },
    Trimmed { more: bool },
}

/// How much is done in one transaction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Effort {
    /// What the keys that were added make due.
    Due,
    /// A little of everything.
    Idle,
}

impl Ids {
    /// Finds out what is remembered. The filters are not read: see
    /// [`read_filters`](Self::read_filters).
    pub(super) fn open(connection: &Connection, limits: Limits) -> rusqlite::Result<Self> {
        let mut ids = Self {
            limits,
            young: Recent::new(),
            frozen: None,
            runs: Vec::new(),
            jobs: Vec::new(),
            dead: Vec::new(),
            dead_debt: 0,
            log_last: 0,
            log_is_untrimmed: true,
            next_run: 1,
            filter_bytes: 0,
            tentative: Vec::new(),
            unwritten: Vec::new(),
            unwritten_at: None,
            effects: Vec::new(),
        };
        ids.open_runs(connection)?;
        ids.open_log(connection)?;
        Ok(ids)
    }

    fn open_runs(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let mut statement = connection.prepare(
            "SELECT id, state, level, slice_bits, keys, oldest_at, newest_at, log_through \
             FROM id_runs ORDER BY id",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let output = Run {
                id: row.get(0)?,
                level: row.get(2)?,
                slice_bits: row.get(3)?,
                keys: row.get::<_, i64>(4)?.cast_unsigned(),
                oldest_at: RetentionTime(row.get(5)?),
                newest_at: RetentionTime(row.get(6)?),
                filters: Filters::default(),
            };
            self.next_run = output.id + 1;
            match row.get(1)? {
                State::WRITTEN => {
                    let log_through: Option<i64> = row.get(7)?;
                    let source = match log_through {
                        Some(log_through) => Source::Frozen { log_through },
                        None => Source::Runs(inputs(connection, output.id)?),
                    };
                    self.jobs.push(Job {
                        written: output.written(connection)?,
                        output,
                        source,
                        debt: 0,
                    });
                }
                State::LIVE => self.runs.push(output),
                _ => self.dead.push(output.id),
            }
        }
        Ok(())
    }

    /// Reads the keys that are in no run. They are few, whatever is remembered.
    fn open_log(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let in_runs: i64 =
            connection.query_row("SELECT ids_in_runs FROM log", [], |row| row.get(0))?;
        self.log_last = in_runs;
        let mut freezing = self.jobs.iter().find_map(|job| match job.source {
            Source::Frozen { log_through } => Some(log_through),
            Source::Runs(_) => None,
        });
        let mut statement = connection.prepare(
            "SELECT place, at, keys, checksum FROM id_log WHERE place > ?1 ORDER BY place",
        )?;
        let mut rows = statement.query([in_runs])?;
        while let Some(row) = rows.next()? {
            let place = row.get(0)?;
            let (at, bytes): (i64, _) = (row.get(1)?, row.get_ref(2)?.as_blob()?);
            let fits = place == self.log_last + 1
                && row.get::<_, i64>(3)? == row_checksum(place, at, bytes);
            checksum::check(fits, || format!("row {place} of the newest ids is damaged"))?;
            if freezing.is_some_and(|through| place > through) {
                self.frozen = Some(std::mem::replace(&mut self.young, Recent::new()));
                freezing = None;
            }
            self.log_last = place;
            self.young.note(RetentionTime(at));
            let (keys, _) = bytes.as_chunks();
            for &key in keys {
                self.young.insert(Key::from_be_bytes(key));
            }
        }
        if freezing.is_some() {
            self.frozen = Some(std::mem::replace(&mut self.young, Recent::new()));
        }
        Ok(())
    }

    /// Reads the filters. Until then everything is looked up on disk.
    pub(super) fn read_filters(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let outputs = self.jobs.iter().map(|job| (job.output.id, job.written));
        let runs = self.runs.iter().map(|run| (run.id, run.slices()));
        let ids: Vec<(i64, u64)> = runs.chain(outputs).collect();
        for (id, slices) in ids {
            let mut slice = 0;
            Run::read_filters(connection, id, slices, |filter| {
                self.add_filter(id, slice, filter);
                slice += 1;
            })?;
        }
        Ok(())
    }

    /// Tells which of the keys are new. Of a key that occurs more than once, the first is new. They
    /// are remembered, unless [`forget`](Self::forget) follows instead of [`keep`](Self::keep).
    pub(super) fn sift(
        &mut self,
        connection: &Connection,
        keys: &[EventKey],
    ) -> rusqlite::Result<Vec<bool>> {
        let keys: Vec<Key> = keys.iter().map(|key| Key::from_be_bytes(key.0)).collect();
        let mut fresh: Vec<bool> = Vec::with_capacity(keys.len());
        for &key in &keys {
            let frozen = self.frozen.as_ref().is_some_and(|it| it.contains(key));
            let is_fresh = !frozen && self.young.insert(key);
            if is_fresh {
                self.tentative.push(key);
            }
            fresh.push(is_fresh);
        }
        self.look_up(connection, &keys, &mut fresh)?;
        Ok(fresh)
    }

    /// The commit with the new keys is durable.
    pub(super) fn keep(&mut self, at: RetentionTime) {
        if !self.tentative.is_empty() {
            self.young.note(at);
            self.unwritten_at = Some(at);
            self.unwritten.append(&mut self.tentative);
        }
    }

    /// There is no commit with the new keys.
    pub(super) fn forget(&mut self) {
        for key in self.tentative.drain(..) {
            self.young.remove(key);
        }
    }

    /// Remembers keys of commits that the index has not got.
    pub(super) fn restore(&mut self, keys: &[EventKey], at: RetentionTime) {
        let keys = keys.iter().map(|key| Key::from_be_bytes(key.0));
        for key in keys {
            if self.young.insert(key) {
                self.tentative.push(key);
            }
        }
        self.keep(at);
    }

    /// How many keys the index has not got.
    pub(super) fn unwritten(&self) -> usize {
        self.unwritten.len()
    }

    /// Brings the index up to date, and does a little of what else is to do. Part of a transaction,
    /// whose end [`written`](Self::written) or [`not_written`](Self::not_written) has to be told.
    pub(super) fn write_behind(
        &mut self,
        connection: &Connection,
        now: &RetentionNow,
        effort: Effort,
    ) -> rusqlite::Result<()> {
        if let Some(at) = self.unwritten_at {
            let keys = self.unwritten.iter();
            let bytes: Vec<u8> = keys.flat_map(|key| key.to_be_bytes()).collect();
            let place = self.log_last + 1;
            let checksum = row_checksum(place, at.0, &bytes);
            connection
                .prepare_cached("INSERT INTO id_log VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![place, at.0, bytes, checksum])?;
        }
        self.work(connection, now, effort)
    }

    /// Finds keys in the runs.
    fn look_up(
        &mut self,
        connection: &Connection,
        keys: &[Key],
        fresh: &mut [bool],
    ) -> rusqlite::Result<()> {
        let suspects = self.suspects(keys, fresh);
        if suspects.is_empty() {
            return Ok(());
        }
        // Without a transaction around them, each look would take SQLite's locks anew.
        let transaction = connection.unchecked_transaction()?;
        let mut page = Pages::new(&transaction)?;
        let mut found = Vec::new();
        for (index, key, run) in suspects {
            if run.holds(&mut page, key)? {
                found.push((index, key));
            }
        }
        for &(index, key) in &found {
            if let Some(fresh) = fresh.get_mut(index) {
                *fresh = false;
            }
            self.young.remove(key);
        }
        if !found.is_empty() {
            let young = &self.young;
            self.tentative.retain(|&key| young.contains(key));
        }
        drop(page);
        transaction.commit()
    }

    /// Which of the keys that are new so far have to be looked up, and in which run.
    fn suspects(&self, keys: &[Key], fresh: &[bool]) -> Vec<(usize, Key, &Run)> {
        let mut suspects = Vec::new();
        // Run by run: the processor fetches the filter's words for several keys at once.
        let mut suspect = |run, may_hold: fn(&Run, Key) -> bool| {
            let candidates = keys.iter().zip(fresh).enumerate();
            suspects.extend(candidates.filter_map(|(index, (&key, &fresh))| {
                (fresh && may_hold(run, key)).then_some((index, key, run))
            }));
        };
        self.runs.iter().for_each(|run| suspect(run, Run::may_hold));
        let merges = self.jobs.iter().filter(|job| job.is_merge());
        merges.for_each(|job| suspect(&job.output, Run::may_hold_already));
        suspects
    }
}

/// What a run is, as it is stored.
struct State;

impl State {
    /// It is being written.
    const WRITTEN: i64 = 0;
    /// It is whole.
    const LIVE: i64 = 1;
    /// It is being deleted.
    const DEAD: i64 = 2;
}

/// The runs that become another one.
fn inputs(connection: &Connection, output: i64) -> rusqlite::Result<Vec<i64>> {
    connection
        .prepare("SELECT id FROM id_runs WHERE merged_into = ?1 ORDER BY id")?
        .query_map([output], |row| row.get(0))?
        .collect()
}

fn row_checksum(place: i64, at: i64, keys: &[u8]) -> i64 {
    checksum::of_row("id_log", &[place, at], keys)
}

/// What the row of the log keeps of the ids: the newest row of `id_log`, and a checksum of all runs.
pub(super) fn summary(connection: &Connection) -> rusqlite::Result<(i64, i64)> {
    let last = connection
        .prepare_cached("SELECT max(place) FROM id_log")?
        .query_row([], |row| row.get::<_, Option<i64>>(0))?;
    let mut statement = connection.prepare_cached(
        "SELECT id, state, level, slice_bits, keys, oldest_at, newest_at, \
         ifnull(log_through, -1), ifnull(merged_into, -1) FROM id_runs ORDER BY id",
    )?;
    let mut rows = statement.query([])?;
    let mut numbers = Vec::new();
    while let Some(row) = rows.next()? {
        for column in 0..9 {
            numbers.push(row.get(column)?);
        }
    }
    let checksum = checksum::of_row("id_runs", &numbers, &[]);
    Ok((last.unwrap_or(0), checksum))
}
