//! Owns the only thread that writes. It commits everything that waits together, in three steps:
//!
//! - *prepare*: leave out what is known, stamp what is new, lay it out as the frames of a commit;
//! - *commit*: make the frames durable, with one write and one flush;
//! - *apply*: note the commit in the lists of segments and ids, pass its blocks to the followers, answer.
//!
//! The last two take the frames alone, whoever prepared them. Between commits it gives up what is too
//! old, and leaves the manifest to the keeper.
//!
//! What fails: a full disk refuses the group, and the next one is tried as if nothing had been.
//! Anything else (above all a failed flush, after which nobody knows what is on the disk) ends the
//! writer for good; nothing is tried twice.

use std::{
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    CommitReport, OnCommit, Shared, Stage,
    active::{Active, Stored},
    commit::{CommitFrames, from_number, numbers},
    frame::Link,
    ids_budget::IdsBudget,
    keeper::Save,
    manifest::Manifest,
    missing_ids::{self, MissingIds},
    queue::{Job, Taken},
    replica::Replica,
    retention::{Due, Retention},
    segments::Segment,
};
use crate::{
    Appended, Error,
    block::Builder,
    clock::{Ages, LogClock, RetentionNow, RetentionTime},
    group::{self, Place, Stamps},
    ids::{self, Ids},
};
use prelude_bridge_event::{Batch, Epoch, EventKey, LogId, Sequence, UnixMicros};

/// How often an idle writer looks whether something has become too old.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);
/// The manifest is replaced at most so often. It confirms the last commit: what it confirms cannot be
/// taken for torn when it is damaged later.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);
/// The quarantine is looked through so many times while a file may be there, and at least each hour.
const QUARANTINE_LOOKS: i64 = 24;
const QUARANTINE_LOOK_MICROS_MAX: i64 = 60 * 60 * 1_000_000;

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) keeper: JoinHandle<()>,
    pub(super) on_commit: Option<OnCommit>,
    pub(super) log: LogId,
    pub(super) epoch: Epoch,
    /// Kept for its memory.
    pub(super) builder: Builder,
    pub(super) clock: LogClock,
    pub(super) stamps: Stamps,
    pub(super) ages: Ages,
    pub(super) ids: Ids,
    /// Ids that a start found no room for; `None` when all are there.
    pub(super) missing_ids: Option<MissingIds>,
    pub(super) active: Active,
    /// The number of the next commit. They begin anywhere, and each attempt has one of its own.
    pub(super) next_commit: u64,
    pub(super) retention: Retention,
    pub(super) unsaved: Unsaved,
    pub(super) ids_budget: IdsBudget,
    /// Where several bridges write the log.
    pub(super) replica: Option<Box<Replica>>,
}

/// What the manifest does not say yet.
#[derive(Default)]
pub(super) struct Unsaved {
    /// There are commits that it does not confirm, or events that were removed.
    pub(super) has_news: bool,
    /// Segments that nobody reads any more, oldest first, each with its last event.
    pub(super) given_up: Vec<(u64, Sequence)>,
    pub(super) saved_at: Option<Instant>,
    /// The newest event that is known to be too old, or one too many. Where the range begins is only
    /// what the manifest said at the start, and no file is removed for that alone.
    pub(super) removed: Sequence,
    /// The last event that the manifest confirms, …
    pub(super) confirmed: Sequence,
    /// … and segments that a start found without a footer. Both say of what follows that it is durable: a
    /// start does not know that of the last commit until the segment could be opened.
    pub(super) unsealed: Vec<Segment>,
    /// When the quarantine was looked through.
    pub(super) quarantine_at: Option<RetentionTime>,
}

/// A group that is ready to be committed.
pub(super) struct Prepared {
    pub(super) frames: CommitFrames,
    /// When, by the retention clock.
    at: RetentionTime,
    /// The segment that is written to is to get no more.
    is_segment_old: bool,
    pub(super) appended: Vec<Appended>,
}

impl Writer {
    /// Runs until the queue has ended.
    pub(super) fn run(mut self) {
        // Whatever ends this thread, nobody waits for it in vain.
        let _ended = Ended(Arc::clone(&self.shared));
        let mut wait = Duration::ZERO;
        loop {
            match self.shared.queue.take(wait, self.waits_for_commits()) {
                Taken::Group(jobs) => self.process(jobs),
                Taken::Arrival(arrival) => self.arrived(arrival),
                Taken::Nothing => {}
                Taken::End => break,
            }
            wait = self.maintain();
        }
        if self.shared.failure().is_none() && self.flush().is_ok() {
            self.save();
        }
        self.shared.keeper.stop();
        if self.keeper.join().is_err() {
            self.shared.fail("the keeper ended");
        }
    }

    /// Writes a group, and then says what is remembered. Answers everybody in it.
    fn process(&mut self, jobs: Vec<Job>) {
        let (mut here, mut anywhere, mut questions) = (Vec::new(), Vec::new(), Vec::new());
        for job in jobs {
            match job {
                Job::Append {
                    batch,
                    reply,
                    is_forwarded: true,
                } => here.push((batch, reply)),
                Job::Append { batch, reply, .. } => anywhere.push((batch, reply)),
                Job::Recall { keys, reply } => questions.push((keys, reply)),
            }
        }
        if let Some(replica) = &mut self.replica {
            anywhere = replica.forward(anywhere, &self.shared);
        }
        here.append(&mut anywhere);
        let (batches, replies): (Vec<_>, Vec<_>) = here.into_iter().unzip();
        if !batches.is_empty() {
            let fates: Vec<_> = match self.write(&batches) {
                Ok(appended) => appended.into_iter().map(Ok).collect(),
                Err(error) => batches.iter().map(|_| Err(error.clone())).collect(),
            };
            for (reply, fate) in replies.into_iter().zip(fates) {
                // The request may have been given up; its events are there all the same.
                let _ = reply.send(fate);
            }
        }
        for (keys, reply) in questions {
            let _ = reply.send(self.recall(&keys));
        }
    }

    fn recall(&mut self, keys: &[EventKey]) -> Result<Vec<Option<EventKey>>, Error> {
        self.read_missing_ids()?;
        let mut known = Vec::with_capacity(keys.len());
        let looked_up = self.ids.find(&numbers(keys), &mut known);
        looked_up.map_err(|error| self.shared.evaluate_ids(&error))?;
        Ok(known.into_iter().map(from_number).collect())
    }

    /// Reads the ids that a start found no room for. Refuses while it fails, and when the log has failed.
    fn read_missing_ids(&mut self) -> Result<(), Error> {
        if let Some(error) = self.shared.failure() {
            return Err(error);
        }
        if let Some(missing) = &mut self.missing_ids {
            missing.read(&self.shared, &mut self.ids)?;
            self.missing_ids = None;
        }
        Ok(())
    }

    fn write(&mut self, batches: &[Batch]) -> Result<Vec<Appended>, Error> {
        if self.replica.is_some() {
            return self.write_in_order(batches);
        }
        let began = Instant::now();
        self.begin()?;
        let prepared = self.prepare(batches)?;
        // What is known already needs no room.
        if !prepared.frames.is_empty() {
            self.make_room()?;
            let stored = self.commit(&prepared)?;
            let report = prepared.frames.report(batches.len(), began.elapsed());
            self.apply(&prepared.frames, &stored, prepared.at)?;
            self.tell(report);
        }
        Ok(prepared.appended)
    }

    /// Refuses a group while that is all that can be done.
    pub(super) fn begin(&mut self) -> Result<(), Error> {
        self.read_missing_ids()?;
        let begun = (self.shared.fault)(Stage::Begin);
        begun.map_err(|error| self.shared.evaluate(&error, "log"))
    }

    /// Makes room for the keys of one more commit.
    pub(super) fn make_room(&mut self) -> Result<(), Error> {
        if self.replica.is_some() && self.ids.is_full() {
            self.confirm()?;
        }
        missing_ids::make_room(&self.shared, &mut self.ids)?;
        if self.replica.is_some() && self.shared.reserve.is_missing() {
            self.shared.set_no_space(true);
            return Err(Error::NoSpace);
        }
        Ok(())
    }

    /// The epoch of the newest event; 0 where there is none.
    pub(super) fn epoch_of_head(&self) -> Epoch {
        let status = self.shared.publisher.status();
        status.epochs().cursor(status.range().head).epoch
    }

    /// Leaves out the events that are known, stamps the others, and lays them out.
    pub(super) fn prepare(&mut self, batches: &[Batch]) -> Result<Prepared, Error> {
        let now = self.clock.now();
        let (number, epoch, link) = match &self.replica {
            Some(replica) => replica.next_commit(self.epoch_of_head()),
            None => (self.next_commit, self.epoch, Link::NONE),
        };
        let place = Place {
            log: self.log,
            epoch,
            first_sequence: self.shared.range().head.plus(1),
            received_at: self.stamps.next(now.wall),
        };
        let (shared, ids) = (&self.shared, &mut self.ids);
        let deduplicate = |keys: &[_]| deduplicate(shared, ids, keys);
        let group::Prepared { commit, appended } =
            group::prepare(&mut self.builder, place, batches.iter(), deduplicate)?;
        self.next_commit = self.next_commit.wrapping_add(1);
        let number = (number, link);
        Ok(Prepared {
            frames: CommitFrames::new(self.log, number, commit.blocks, commit.keys),
            at: now.retention.time,
            is_segment_old: self.is_segment_old(&now.retention),
            appended,
        })
    }

    /// Makes a commit durable.
    fn commit(&mut self, prepared: &Prepared) -> Result<Stored, Error> {
        let shared = &self.shared;
        if shared.reserve.is_missing() {
            shared.set_no_space(true);
            return Err(Error::NoSpace);
        }
        let stored = self.active.write(
            &prepared.frames,
            prepared.at,
            prepared.is_segment_old,
            (&shared.keeper, &shared.fault),
        );
        let stored = stored.map_err(|error| shared.evaluate(&error, "log"))?;
        shared.set_no_space(false);
        Ok(stored)
    }

    /// Takes note of a commit that is durable, and makes it known.
    pub(super) fn apply(
        &mut self,
        frames: &CommitFrames,
        stored: &Stored,
        at: RetentionTime,
    ) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let before = shared.segments.last_ordinal();
        let Stored { ordinal, offset } = *stored;
        shared.segments.add(ordinal, offset, frames.headers());
        if let Some(sealed) = before.filter(|&before| before != ordinal)
            && let Some(segment) = shared.segments.get(sealed)
        {
            shared.keeper.seal(segment);
        }
        self.ages.note(frames.last_sequence(), at);
        let keys = numbers(frames.keys());
        self.add_ids(&keys, frames.last_sequence(), UnixMicros(at.0))?;
        self.unsaved.has_news = true;
        for block in frames.blocks() {
            self.stamps.used(block.received_at());
        }
        let applied = shared.publisher.apply(frames.blocks());
        applied.map_err(|gap| shared.fail(&gap.to_string()))
    }

    /// Tells the metrics of a commit.
    pub(super) fn tell(&self, report: CommitReport) {
        if let Some(on_commit) = &self.on_commit {
            on_commit(report);
        }
    }

    /// Gives up what is too old or too much, and has the manifest replaced when there is news.
    /// Returns how long to wait for appends until the next time.
    fn maintain(&mut self) -> Duration {
        if self.shared.failure().is_some() {
            return MAINTENANCE_INTERVAL;
        }
        self.shared.forget_no_space();
        self.maintain_replica();
        // Also when no batch comes. What fails is tried again in a while.
        let _ = self.read_missing_ids();
        let now = self.clock.now().retention;
        let range = self.shared.range();
        let expired = self.ages.expired(&now);
        let active = self.active.ordinal();
        // A replica has what the sequence has.
        if self.replica.is_none() {
            let segments = &self.shared.segments;
            // What failed is tried again in a while.
            if let Ok(Some(due)) = self.retention.due(segments, &range, active, expired) {
                self.give_up(&due);
            }
        }
        let expired = expired.unwrap_or(Sequence::ZERO);
        self.unsaved.removed = self.unsaved.removed.max(expired);
        self.replace_segment(&now);
        self.seal_found();
        self.forget_segments();
        let rested = self.unsaved.saved_at.map(|at| at.elapsed());
        if let Some(rest) = rested.and_then(|rested| SAVE_INTERVAL.checked_sub(rested)) {
            return rest;
        }
        if self.flush().is_err() {
            return MAINTENANCE_INTERVAL;
        }
        self.forget_ids(&now);
        self.look_through_quarantine(&now);
        if self.unsaved.has_news || self.clock.store_is_due() {
            self.save();
        }
        MAINTENANCE_INTERVAL
    }

    /// Lets an empty segment take the place of one whose first events are so old that its file would
    /// be there for too long.
    fn replace_segment(&mut self, now: &RetentionNow) {
        if !self.is_segment_old(now) {
            return;
        }
        let shared = &self.shared;
        let replaced = self.active.replace(&shared.keeper, &shared.fault);
        if let Err(error) = replaced {
            // It passes, and is tried again in a while, or the log has failed.
            shared.evaluate(&error, "the next segment");
        }
    }

    /// Has the segments sealed that a start found without a footer.
    fn seal_found(&mut self) {
        if self.active.is_open() {
            let unsealed = self.unsaved.unsealed.drain(..);
            unsealed.for_each(|segment| self.shared.keeper.seal(segment));
        }
    }

    pub(super) fn is_segment_old(&self, now: &RetentionNow) -> bool {
        let began = self.active.began();
        began.is_some_and(|began| self.retention.is_span_over(now, began))
    }

    /// Forgets ids that are old enough, or too many.
    fn forget_ids(&mut self, now: &RetentionNow) {
        if self.ids.forget(now) {
            self.shared.keeper.work_on_ids();
        }
        let usage = self.ids.usage(self.shared.range().head, Some(now));
        *self.shared.ids_usage() = usage;
        self.ids_budget.compare(&usage, now.time);
    }

    fn look_through_quarantine(&mut self, now: &RetentionNow) {
        let micros_max = self.retention.quarantine_micros();
        let interval = (micros_max / QUARANTINE_LOOKS).min(QUARANTINE_LOOK_MICROS_MAX);
        let looked_at = self.unsaved.quarantine_at;
        if looked_at.is_none_or(|at| now.age_of(at) >= interval) {
            self.unsaved.quarantine_at = Some(now.time);
            let keeper = &self.shared.keeper;
            keeper.look_through_quarantine(now.clone(), micros_max);
        }
    }

    /// Leaves the manifest, as of now, to the keeper.
    pub(super) fn save(&mut self) {
        let range = self.shared.range();
        let clock = self.clock.snapshot();
        // A segment stays until its keys are in files: a start reads them from it.
        let ids_through = self.ids.through();
        let unsaved = &mut self.unsaved;
        let given_up = unsaved
            .given_up
            .extract_if(.., |(_, last)| *last <= ids_through);
        let given_up: Vec<u64> = given_up.map(|(ordinal, _)| ordinal).collect();
        let first_kept = unsaved.given_up.first().map(|&(ordinal, _)| ordinal);
        let first_ordinal = first_kept.or(self.shared.segments.first(&range));
        let first_ordinal = first_ordinal.unwrap_or(self.active.ordinal());
        unsaved.has_news = first_kept.is_some();
        unsaved.saved_at = Some(Instant::now());
        if self.active.is_open() {
            unsaved.confirmed = range.head;
        }
        if first_kept.is_some() && self.ids.seal() {
            self.shared.keeper.work_on_ids();
        }
        let manifest = Manifest {
            log: self.log,
            trimmed: range.earliest.before(),
            first_ordinal,
            // What was removed needs no confirmation.
            confirmed: unsaved.confirmed.max(range.earliest.before()),
            epochs: self.shared.publisher.status().epochs().entries().to_vec(),
            clock: clock.encode(self.ages.marks()),
            last_at: self.stamps.last(),
            replica: self.replica.as_ref().map(|replica| replica.place()),
        };
        self.shared.keeper.save(Save {
            manifest,
            given_up,
            waits_for_ids: first_kept.is_some(),
        });
    }

    /// Nobody sees the events any more.
    pub(super) fn give_up(&mut self, due: &Due) {
        let earliest = due.through.plus(1);
        // A segment that waited for its ids at the end of the last run may be before the range.
        if earliest > self.shared.range().earliest {
            self.shared.publisher.trim(earliest, due.earliest_at);
        }
        self.ages.forget_before(earliest);
        self.unsaved.removed = self.unsaved.removed.max(due.through);
        self.unsaved.has_news = true;
    }

    /// Segments in which everything was removed are nobody's any more, also those that waited for
    /// their ids when the last process ended. They go when the manifest has noted it.
    fn forget_segments(&mut self) {
        let trimmed = self.shared.range().earliest.before();
        let active = self.active.ordinal();
        let through = trimmed.min(self.unsaved.removed);
        let given_up = self.shared.segments.forget(through, active);
        self.unsaved.has_news |= !given_up.is_empty();
        self.unsaved.given_up.extend(given_up);
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

/// Finds for each key the one that its event was first appended with, in the log or in this group.
fn deduplicate(
    shared: &Shared,
    ids: &mut Ids,
    keys: &[EventKey],
) -> Result<Vec<Option<EventKey>>, Error> {
    let keys = numbers(keys);
    let mut known = Vec::with_capacity(keys.len());
    ids.find(&keys, &mut known)
        .map_err(|error| shared.evaluate_ids(&error))?;
    let mut group = ids::KeySet::with_capacity(keys.len());
    let first = keys.into_iter().zip(known).map(|(key, known)| match known {
        None if group.insert(key) => None,
        None => group.find(key),
        known => known,
    });
    Ok(first.map(from_number).collect())
}
