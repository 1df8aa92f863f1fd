//! Owns what is done for the ids beside the commits, a slice at a time, in the index's transactions:
//! the newest are written out as a run, runs are merged, forgotten and deleted. What a transaction
//! changed counts in memory once it is known to have been committed.

use rusqlite::{Connection, params};

use super::{
    Effect, Effort, Ids, Job, Key, Source, State,
    filter::{Filter, Filters},
    recent::Recent,
    run::{self, Run, prefix_range},
};
use crate::clock::{RetentionNow, RetentionTime};

/// For each key that is appended so many are written out or merged, of each size: twice as many as
/// would keep up.
const PACE: u64 = 2;
/// Rows of `id_log` that are deleted in a transaction, once they are in a run: one more than it adds.
const TRIM_ROWS: i64 = 2;
/// The same when the log is idle.
const TRIM_ROWS_IDLE: i64 = 256;
/// Slices of a forgotten run that are deleted in a step when the log is idle.
const DELETE_SLICES_IDLE: u64 = 2;
/// The newest keys are written out at the latest when the oldest of them has reached this part of
/// its time, so that the last of a run is not remembered much longer than the first.
const RECENT_AGE_DIVISOR: i64 = 8;
/// A filter has so many bits a key, one false alarm in a thousand, …
const FILTER_BITS: usize = 16;
/// … or fewer when memory is short, but no fewer than these to begin with.
const FILTER_BITS_MIN: usize = 4;
/// A run is large when it has more than this part of all keys.
const LARGE_RUN_DIVISOR: u64 = 8;

impl Ids {
    /// Whether an idle log has something to tidy up, with [`Effort::Idle`].
    pub(in crate::embedded) fn is_untidy(&self, now: &RetentionNow) -> bool {
        self.log_is_untrimmed
            || !self.jobs.is_empty()
            || !self.dead.is_empty()
            || self.freeze_is_due(now)
            || self.runs.iter().any(|run| self.is_expired(run, now))
            || self.due_merge().is_some()
    }

    /// Each kind of work at most once: what it changes counts from the next transaction on.
    pub(super) fn work(
        &mut self,
        connection: &Connection,
        now: &RetentionNow,
        effort: Effort,
    ) -> rusqlite::Result<()> {
        let mut effects = Vec::new();
        for job in &self.jobs {
            let slices = match effort {
                Effort::Due => job.debt / self.limits.slice_keys,
                Effort::Idle => 1,
            };
            let slices = slices.min(job.output.slices().saturating_sub(job.written));
            if slices > 0 {
                effects.push(self.write(connection, job, slices)?);
            }
        }
        if let Some(&id) = self.dead.first() {
            let slices = match effort {
                Effort::Due => self.dead_debt / self.limits.slice_keys,
                Effort::Idle => DELETE_SLICES_IDLE,
            };
            if slices > 0 {
                let more = run::delete(connection, id, slices)?;
                effects.push(Effect::Deleted { id, slices, more });
            }
        }
        if self.log_is_untrimmed {
            effects.push(trim_log(connection, effort)?);
        }
        effects.extend(self.begin(connection, now)?);
        self.effects = effects;
        Ok(())
    }

    /// Begins the first thing that is due to begin.
    fn begin(
        &self,
        connection: &Connection,
        now: &RetentionNow,
    ) -> rusqlite::Result<Option<Effect>> {
        if let Some(run) = self.runs.iter().find(|run| self.is_expired(run, now)) {
            set_state(connection, run.id, State::DEAD)?;
            return Ok(Some(Effect::Expired(run.id)));
        }
        if self.freeze_is_due(now)
            && let Some((oldest_at, newest_at)) = self.young.times()
        {
            // What this transaction adds is frozen with the rest.
            let log_through = self.log_last + i64::from(self.unwritten_at.is_some());
            let keys = self.young.len() as u64;
            let output = self.new_run(0, keys, oldest_at, newest_at);
            let source = Source::Frozen { log_through };
            return start(connection, output, source).map(Some);
        }
        let Some(inputs) = self.due_merge() else {
            return Ok(None);
        };
        let (Some(first), Some(last)) = (inputs.first(), inputs.last()) else {
            return Ok(None);
        };
        let keys = inputs.iter().map(|run| run.keys).sum();
        let output = self.new_run(first.level + 1, keys, first.oldest_at, last.newest_at);
        let source = Source::Runs(inputs.iter().map(|run| run.id).collect());
        start(connection, output, source).map(Some)
    }

    fn new_run(
        &self,
        level: u32,
        keys: u64,
        oldest_at: RetentionTime,
        newest_at: RetentionTime,
    ) -> Run {
        Run {
            id: self.next_run,
            level,
            slice_bits: Run::slice_bits_for(keys, self.limits.slice_keys),
            keys,
            oldest_at,
            newest_at,
            filters: Filters::default(),
        }
    }

    fn freeze_is_due(&self, now: &RetentionNow) -> bool {
        let Some((oldest_at, _)) = self.young.times() else {
            return false;
        };
        let age = now.age_of(oldest_at);
        let is_old = age > self.limits.age_micros / RECENT_AGE_DIVISOR;
        let is_full = self.young.len() as u64 >= self.limits.recent_keys;
        self.frozen.is_none() && (is_full || is_old)
    }

    /// A run that is being merged is needed until it is in another one.
    fn is_expired(&self, run: &Run, now: &RetentionNow) -> bool {
        now.age_of(run.newest_at) > self.limits.age_micros && !self.is_input(run.id)
    }

    fn is_input(&self, id: i64) -> bool {
        self.jobs.iter().any(|job| match &job.source {
            Source::Runs(inputs) => inputs.contains(&id),
            Source::Frozen { .. } => false,
        })
    }

    /// The oldest runs of a size of which there are enough, from the oldest on.
    fn due_merge(&self) -> Option<Vec<&Run>> {
        let levels = self.runs.iter().map(|run| run.level).max()?;
        (0..=levels).find_map(|level| {
            if self.jobs.iter().any(|job| job.output.level == level + 1) {
                return None;
            }
            let of_level = self.runs.iter().filter(|run| run.level == level);
            let inputs: Vec<&Run> = of_level.take(self.limits.fan_in).collect();
            let (first, last) = (inputs.first()?, inputs.last()?);
            let span = last.newest_at.0.saturating_sub(first.oldest_at.0);
            let fit = inputs.len() == self.limits.fan_in && span <= self.limits.age_micros;
            fit.then_some(inputs)
        })
    }

    /// Writes some slices of a run; with the last of them it takes the place of its source.
    fn write(&self, connection: &Connection, job: &Job, slices: u64) -> rusqlite::Result<Effect> {
        let Job { output, source, .. } = job;
        let bits_per_key = self.filter_bits(output);
        let mut filters = Vec::new();
        for slice in job.written..job.written + slices {
            let keys = match source {
                Source::Frozen { .. } => (self.frozen.as_ref())
                    .map(|frozen| frozen.slice(slice, output.slice_bits))
                    .unwrap_or_default(),
                Source::Runs(inputs) => self.merge(connection, inputs, output, slice)?,
            };
            filters.push(output.write(connection, slice, &keys, bits_per_key)?);
        }
        if job.written + slices == output.slices() {
            match source {
                Source::Frozen { log_through } => {
                    connection
                        .prepare_cached("UPDATE log SET ids_in_runs = ?1")?
                        .execute([log_through])?;
                }
                Source::Runs(inputs) => {
                    for &input in inputs {
                        set_state(connection, input, State::DEAD)?;
                    }
                }
            }
            set_state(connection, output.id, State::LIVE)?;
        }
        Ok(Effect::Written {
            id: output.id,
            filters,
        })
    }

    /// The keys of a slice of the output, from all inputs.
    fn merge(
        &self,
        connection: &Connection,
        inputs: &[i64],
        output: &Run,
        slice: u64,
    ) -> rusqlite::Result<Vec<Key>> {
        let range = prefix_range(slice, output.slice_bits);
        let mut keys = Vec::new();
        for run in self.runs.iter().filter(|run| inputs.contains(&run.id)) {
            run.read(connection, &range, &mut keys)?;
        }
        // Not the unstable one: this one makes use of what is in order already.
        keys.sort();
        Ok(keys)
    }

    /// The transaction counts.
    pub(in crate::embedded) fn written(&mut self) {
        if self.unwritten_at.take().is_some() {
            self.log_last += 1;
        }
        let due = PACE * self.unwritten.len() as u64;
        self.unwritten.clear();
        for job in &mut self.jobs {
            job.debt += due;
        }
        if !self.dead.is_empty() {
            // Each key is deleted as often as it was merged.
            let levels = self.runs.iter().map(|run| u64::from(run.level)).max();
            self.dead_debt += due * (1 + levels.unwrap_or(0));
        }
        for effect in std::mem::take(&mut self.effects) {
            self.apply(effect);
        }
    }

    /// The transaction does not count.
    pub(in crate::embedded) fn not_written(&mut self) {
        self.effects.clear();
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Started(job) => {
                self.next_run = job.output.id + 1;
                if matches!(job.source, Source::Frozen { .. }) {
                    self.frozen = Some(std::mem::replace(&mut self.young, Recent::new()));
                }
                self.jobs.push(job);
            }
            Effect::Written { id, filters } => {
                let Some(index) = self.jobs.iter().position(|job| job.output.id == id) else {
                    return;
                };
                let (mut is_whole, mut slice) = (false, 0);
                if let Some(job) = self.jobs.get_mut(index) {
                    let written = filters.len() as u64;
                    slice = job.written;
                    job.written += written;
                    job.debt = job.debt.saturating_sub(written * self.limits.slice_keys);
                    is_whole = job.written == job.output.slices();
                }
                for (slice, filter) in (slice..).zip(filters) {
                    self.add_filter(id, slice, filter);
                }
                if is_whole {
                    let job = self.jobs.remove(index);
                    self.finish(job);
                }
            }
            Effect::Expired(id) => self.bury(id),
            Effect::Deleted { id, slices, more } => {
                let deleted = slices * self.limits.slice_keys;
                self.dead_debt = self.dead_debt.saturating_sub(deleted);
                if !more {
                    self.dead.retain(|&dead| dead != id);
                }
            }
            Effect::Trimmed { more } => self.log_is_untrimmed = more,
        }
    }

    /// The run takes the place of what it was made of.
    fn finish(&mut self, job: Job) {
        match job.source {
            Source::Frozen { .. } => {
                self.frozen = None;
                self.log_is_untrimmed = true;
            }
            Source::Runs(inputs) => inputs.into_iter().for_each(|id| self.bury(id)),
        }
        self.runs.push(job.output);
    }

    fn bury(&mut self, id: i64) {
        for run in self.runs.extract_if(.., |run| run.id == id) {
            self.filter_bytes -= run.filters.memory_bytes();
        }
        self.dead.push(id);
    }

    /// How many bits a key of a new filter gets. Only the largest runs take so much memory that they
    /// have to make do with their share of it.
    fn filter_bits(&self, output: &Run) -> usize {
        let keys: u64 = self.runs.iter().map(|run| run.keys).sum();
        if output.keys < keys / LARGE_RUN_DIVISOR {
            return FILTER_BITS;
        }
        let bits = self.limits.filter_bytes as u64 * 8 / keys.max(1);
        usize::try_from(bits)
            .unwrap_or(FILTER_BITS)
            .clamp(FILTER_BITS_MIN, FILTER_BITS)
    }

    /// Takes the filter of a slice of a run, in place of those that the run is made of, and halves
    /// others if that is too much.
    pub(super) fn add_filter(&mut self, id: i64, slice: u64, filter: Filter) {
        if let Some(run) = self.runs.iter_mut().find(|run| run.id == id) {
            self.filter_bytes += run.filters.add(slice, filter);
        } else if let Some(job) = self.jobs.iter_mut().find(|job| job.output.id == id) {
            let Job { output, source, .. } = job;
            self.filter_bytes += output.filters.add(slice, filter);
            if let Source::Runs(inputs) = source {
                for run in self.runs.iter_mut().filter(|run| inputs.contains(&run.id)) {
                    self.filter_bytes -= run.retire(output.slice_bits, output.filters.len());
                }
            }
        }
        while self.filter_bytes > self.limits.filter_bytes {
            let outputs = self.jobs.iter_mut().map(|job| &mut job.output);
            let runs = self.runs.iter_mut().chain(outputs);
            let costs = |run: &Run| {
                let slice_keys = run.keys as f64 / run.slices() as f64;
                run.filters.halving_costs(slice_keys)
            };
            let Some(run) = runs.min_by(|a, b| costs(a).total_cmp(&costs(b))) else {
                break;
            };
            self.filter_bytes -= run.filters.halve_one();
        }
    }
}

fn set_state(connection: &Connection, id: i64, state: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE id_runs SET state = ?2 WHERE id = ?1")?
        .execute([id, state])?;
    Ok(())
}

/// Notes that a run will be written.
fn start(connection: &Connection, output: Run, source: Source) -> rusqlite::Result<Effect> {
    let log_through = match source {
        Source::Frozen { log_through } => Some(log_through),
        Source::Runs(_) => None,
    };
    connection
        .prepare_cached("INSERT INTO id_runs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, NULL)")?
        .execute(params![
            output.id,
            State::WRITTEN,
            output.level,
            output.slice_bits,
            output.keys.cast_signed(),
            output.oldest_at.0,
            output.newest_at.0,
            log_through,
        ])?;
    if let Source::Runs(inputs) = &source {
        for &input in inputs {
            connection
                .prepare_cached("UPDATE id_runs SET merged_into = ?2 WHERE id = ?1")?
                .execute([input, output.id])?;
        }
    }
    Ok(Effect::Started(Job {
        output,
        source,
        written: 0,
        debt: 0,
    }))
}

/// Deletes some rows whose keys are in a run.
fn trim_log(connection: &Connection, effort: Effort) -> rusqlite::Result<Effect> {
    let rows = match effort {
        Effort::Due => TRIM_ROWS,
        Effort::Idle => TRIM_ROWS_IDLE,
    };
    let deleted = connection
        .prepare_cached(
            "DELETE FROM id_log WHERE place IN (SELECT place FROM id_log \
             WHERE place <= (SELECT ids_in_runs FROM log) ORDER BY place LIMIT ?1)",
        )?
        .execute([rows])?;
    Ok(Effect::Trimmed { more: deleted > 0 })
}
