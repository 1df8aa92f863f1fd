//! Owns the writer's part in a replica: it puts its own commits into the sequence and applies them, and
//! those of others, in the sequence's order. A commit of somebody else may have events of the batches that
//! wait: they are left out then, and the rest is laid out again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::replica::{Message, Replica, Settled, position_of};
use crate::{
    Appended, Error,
    embedded::{
        commit::CommitFrames, directory::DIVERGED_FILE, frame::Header, queue::Arrival,
        retention::Due, writer::Writer,
    },
    ids,
    sequencer::{Outage, Position},
};
use prelude_bridge_event::{Batch, Sequence, UnixMicros};

/// A sequence in which nothing was committed for so long gets a mark, so that retention never empties it:
/// an empty one does not tell which event comes next. A day: retention is at least 15.
const MARK_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);
/// The pause before a comparison that failed is tried again.
const COMPARE_PAUSE: Duration = Duration::from_millis(50);
/// How often an engine is asked to remove what is too old.
const TRIM_INTERVAL: Duration = Duration::from_secs(1);
/// A commit is at most this part of what the engine takes, by the bytes of its batches.
pub(super) const GROUP_PART: (usize, usize) = (3, 4);

impl Writer {
    fn replica(&mut self) -> Result<&mut Replica, Error> {
        self.replica.as_deref_mut().ok_or(Error::Closed)
    }

    /// Appends batches together, unless that is more than the engine takes.
    pub(super) fn write_in_order(&mut self, batches: &[Batch]) -> Result<Vec<Appended>, Error> {
        let patience_ends = self.replica()?.patience_ends();
        loop {
            self.store_waiting()?;
            self.compare_history_patiently(patience_ends)?;
            let began = Instant::now();
            self.begin()?;
            let prepared = self.prepare(batches)?;
            if prepared.frames.is_empty() {
                return Ok(prepared.appended);
            }
            self.make_room()?;
            let commit = prepared.frames.to_bytes();
            let shared = Arc::clone(&self.shared);
            let replica = self.replica()?;
            let bytes_max = replica.sequencer().commit_bytes_max();
            if commit.len() > bytes_max {
                return self.write_apart(batches, (commit.len(), bytes_max));
            }
            let position = replica.position.next();
            match replica.settle(&commit, patience_ends, &shared) {
                Settled::Ours => {
                    self.appends_work(None);
                    if let Ok(replica) = self.replica() {
                        replica.term = None;
                    }
                    let duration = began.elapsed();
                    let report = prepared.frames.report(batches.len(), duration);
                    self.take(position, prepared.frames)?;
                    self.tell(report);
                    return Ok(prepared.appended);
                }
                Settled::Other(found) => {
                    self.appends_work(None);
                    self.take_found(position, &found)?;
                }
                Settled::Reconnected => {}
                Settled::Refused(outage) => {
                    let reason = outage.to_string();
                    self.appends_work(Some(outage));
                    return Err(Error::Unavailable(reason.into()));
                }
                Settled::Failed(reason) => return Err(self.diverge(&reason)),
            }
        }
    }

    /// Appends batches one after another. What of them is appended before one fails is known when they come
    /// again.
    fn write_apart(
        &mut self,
        batches: &[Batch],
        (bytes, bytes_max): (usize, usize),
    ) -> Result<Vec<Appended>, Error> {
        if batches.len() < 2 {
            let name = self.replica()?.sequencer().name();
            let reason = format!(
                "a batch makes a commit of {bytes} bytes, and {name} takes {bytes_max} at most: raise that, or lower \
                 limits.webhook.request_bytes_max"
            );
            tracing::error!(reason, "a batch is too large for the store: it is refused");
            return Err(Error::Unavailable(reason.into()));
        }
        let mut appended = Vec::with_capacity(batches.len());
        for batch in batches {
            appended.extend(self.write_in_order(std::slice::from_ref(batch))?);
        }
        Ok(appended)
    }

    /// Takes note of what came from the sequence.
    pub(super) fn arrived(&mut self, arrival: Arrival) {
        if self.shared.failure().is_some() {
            return;
        }
        match arrival {
            Arrival::Commit(position, bytes, _room) => self.commit_arrived(position, &bytes),
            Arrival::Trim(first) => self.trim_arrived(first),
            Arrival::Outage(outage) => self.outage_arrived(outage),
            Arrival::Reconnected => {
                let _ = self.compare_history();
            }
        }
    }

    fn commit_arrived(&mut self, position: Position, bytes: &Bytes) {
        let Some(replica) = &self.replica else {
            return;
        };
        // What was applied already is passed again after a new beginning; and what waits for room will.
        if position != replica.position.next() || replica.waiting.is_some() {
            return;
        }
        // What fails is said, and comes again.
        let _ = self.take_found(position, bytes);
        self.publish_health();
    }

    fn trim_arrived(&mut self, first: Sequence) {
        let range = self.shared.range();
        let first = first.min(range.head.plus(1));
        if first > range.earliest {
            let due = Due {
                through: first.before(),
                earliest_at: range.earliest_at.filter(|_| first <= range.head),
            };
            let exact = due.exact(&self.shared.segments, &range);
            self.give_up(&exact.unwrap_or(due));
        }
    }

    fn outage_arrived(&mut self, outage: Option<Outage>) {
        match &outage {
            Some(Outage::Unusable(reason)) => {
                self.shared.fail(reason);
                return;
            }
            Some(Outage::Removed { first }) => {
                let reason = format!(
                    "retention has removed commits that this bridge has not seen: the sequence begins with commit \
                     {first}; the next start makes the replica anew"
                );
                self.shared.fail(&reason);
                return;
            }
            _ => {}
        }
        let Some(replica) = &mut self.replica else {
            return;
        };
        let was_out = replica.outage.is_some();
        match (&outage, was_out) {
            (Some(outage), false) => {
                tracing::error!(%outage, "the bridge does not learn of new events: it is not ready");
            }
            (None, true) => tracing::info!("the bridge learns of new events again"),
            _ => {}
        }
        replica.outage = outage;
        if replica.outage.is_none() && was_out {
            // It may be far behind.
            let _ = self.look_how_far_behind();
        }
        self.publish_health();
    }

    /// Reads a commit of somebody else and applies it.
    fn take_found(&mut self, position: Position, bytes: &Bytes) -> Result<(), Error> {
        let refused = |reason: String| {
            format!("commit {position} of the sequence cannot be applied: {reason}")
        };
        let message = Message::parse(position, bytes);
        let message = message.map_err(|fault| self.shared.fail(&refused(fault.to_string())))?;
        let checked = message
            .header()
            .map_or(Ok(()), |header| self.follows(header));
        checked.map_err(|reason| self.diverge(&refused(reason)))?;
        match message {
            Message::Commit(frames) => {
                self.make_room()?;
                self.take(position, frames)
            }
            Message::Mark(header) => {
                let digest = header.link.digest_before;
                self.replica()?.advance(position, digest, true);
                Ok(())
            }
        }
    }

    /// Ends the log, as the sequence has another history. The next start makes the replica anew, and keeps what
    /// only this one may have.
    fn diverge(&self, reason: &str) -> Error {
        let path = self.shared.segments.directory().join(DIVERGED_FILE);
        if let Err(error) = std::fs::write(path, reason) {
            tracing::error!(%error, "it cannot be written down that the replica has another history");
        }
        self.shared.fail(reason)
    }

    /// Whether a commit follows what was applied.
    fn follows(&mut self, header: &Header) -> Result<(), String> {
        let head = self.shared.range().head;
        let Some(replica) = &self.replica else {
            return Ok(());
        };
        if header.log != replica.log {
            let (expected, found) = (replica.log.0, header.log.0);
            return Err(format!(
                "it is of log {found:016x}, not of log {expected:016x}"
            ));
        }
        if header.first_sequence != head.plus(1) {
            let found = header.first_sequence;
            return Err(format!(
                "it begins with event {found}, and event {} is next",
                head.plus(1)
            ));
        }
        let digest = replica.digest.unwrap_or(header.link.digest_before);
        if header.link.digest_before != digest {
            return Err(
                "it follows another commit than the one that this bridge has: the sequence was restored or \
                 replaced; the next start makes the replica anew"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// Writes a commit that is in the sequence into a segment, and makes it known.
    fn take(&mut self, position: Position, frames: CommitFrames) -> Result<(), Error> {
        let now = self.clock.now();
        let at = now.retention.time;
        let is_old = self.is_segment_old(&now.retention);
        let shared = Arc::clone(&self.shared);
        let written = self
            .active
            .write(&frames, at, is_old, (&shared.keeper, &shared.fault));
        let stored = match written {
            Ok(stored) => stored,
            Err(error) => {
                let error = shared.evaluate(&error, "log");
                if !matches!(error, Error::Failed(_)) {
                    self.replica()?.waiting = Some((position, frames));
                }
                return Err(error);
            }
        };
        shared.set_no_space(shared.reserve.is_missing());
        let digest = frames.digest();
        self.apply(&frames, &stored, at)?;
        let writer = frames.first().map(|first| first.link.writer);
        let replica = self.replica()?;
        replica.advance(position, digest, false);
        if let Some(writer) = writer {
            replica.forward.note(writer, replica.writer);
        }
        Ok(())
    }

    /// Whether what is in the sequence has to be applied before anything is appended.
    pub(super) fn waits_for_commits(&self) -> bool {
        let replica = self.replica.as_ref();
        replica.is_some_and(|replica| replica.is_behind() && !self.shared.queue.is_unavailable())
    }

    /// Writes what had no room.
    fn store_waiting(&mut self) -> Result<(), Error> {
        let Some((position, frames)) = self.replica()?.waiting.take() else {
            return Ok(());
        };
        self.take(position, frames)
    }

    /// The same as below. What fails and passes is tried again until batches are refused.
    fn compare_history_patiently(&mut self, patience_ends: Instant) -> Result<(), Error> {
        loop {
            let compared = self.compare_history();
            let passes = matches!(compared, Err(Error::Unavailable(_)));
            let is_over = Instant::now() >= patience_ends || self.shared.queue.is_unavailable();
            if !passes || is_over || self.shared.queue.is_ended_within(COMPARE_PAUSE) {
                return compared;
            }
        }
    }

    /// After a new connection: that the sequence still has what was applied.
    fn compare_history(&mut self) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let head = shared.range().head;
        let replica = self.replica()?;
        if !replica.is_reconnected() {
            return Ok(());
        }
        let compared = replica.compare(head, &shared);
        match compared {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => return Err(self.diverge(&reason)),
            Err(outage) => {
                let reason = outage.to_string();
                self.appends_work(Some(outage));
                return Err(Error::Unavailable(reason.into()));
            }
        }
        let begun = replica.begin_term();
        begun.map_err(|error| shared.fail(&error.to_string()))?;
        self.look_how_far_behind()
    }

    /// The replica has caught up when it has what the sequence has now.
    fn look_how_far_behind(&mut self) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let replica = self.replica()?;
        let sequencer = Arc::clone(replica.sequencer());
        let looked = replica.wait(sequencer.ends(), &shared);
        match looked {
            Ok(ends) => {
                replica.catch_up_to = ends.last;
                self.publish_health();
                Ok(())
            }
            Err(outage) => {
                let reason = outage.to_string();
                self.appends_work(Some(outage));
                Err(Error::Unavailable(reason.into()))
            }
        }
    }

    /// Takes note whether the engine takes commits.
    fn appends_work(&mut self, outage: Option<Outage>) {
        let Some(replica) = &mut self.replica else {
            return;
        };
        if let Some(outage) = outage {
            replica.refuse(outage.to_string().into(), &self.shared);
        } else if replica.refusal.take().is_some() {
            tracing::info!("the store takes events again");
            replica.publish_health(&self.shared);
        }
    }

    pub(super) fn publish_health(&mut self) {
        if let Some(replica) = &mut self.replica {
            replica.publish_health(&self.shared);
        }
    }

    /// What is to be done beside the commits.
    pub(super) fn maintain_replica(&mut self) {
        let Some(replica) = &self.replica else {
            return;
        };
        let is_refused = replica.refusal.is_some();
        let is_quiet = replica.grown_at.elapsed() >= MARK_INTERVAL;
        let asks_to_trim = replica.trimmed_at.elapsed() >= TRIM_INTERVAL;
        // What fails is said, and tried again.
        let ready = self.store_waiting().and_then(|()| self.compare_history());
        if ready.is_ok() && (is_refused || is_quiet) {
            let _ = self.append_mark();
        }
        if asks_to_trim {
            self.ask_to_trim();
        }
        self.publish_health();
    }

    /// Finds out by a mark whether the engine takes commits.
    fn append_mark(&mut self) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let head = shared.range().head;
        let (epoch, last_at) = (self.epoch_of_head(), self.stamps.last());
        let replica = self.replica()?;
        if replica.is_behind() {
            return Ok(());
        }
        let (position, mark) = (replica.position.next(), replica.mark(head, last_at, epoch));
        match replica.attempt(&mark, replica.patience_ends(), &shared) {
            Ok(Settled::Ours) => {
                let digest = replica.digest.unwrap_or(0);
                replica.advance(position, digest, true);
                self.appends_work(None);
            }
            Ok(Settled::Other(found)) => {
                self.appends_work(None);
                return self.take_found(position, &found);
            }
            Ok(Settled::Failed(reason)) => return Err(self.diverge(&reason)),
            Ok(Settled::Reconnected | Settled::Refused(_)) => {}
            Err(Outage::Unusable(reason)) => return Err(shared.fail(&reason)),
            Err(outage) => self.appends_work(Some(outage)),
        }
        Ok(())
    }

    /// Asks the engine to remove what is too old or too much. What it has removed comes back as a trim.
    fn ask_to_trim(&mut self) {
        let now = self.clock.now().retention;
        let expired = self.ages.expired(&now);
        let (segments, range) = (&self.shared.segments, self.shared.range());
        let active = self.active.ordinal();
        let through = self.retention.through(segments, &range, active, expired);
        let Some(replica) = &mut self.replica else {
            return;
        };
        replica.trimmed_at = Instant::now();
        let Some(through) = through else {
            return;
        };
        // An engine keeps its last commit: let that be a mark.
        let is_all = through >= range.head;
        if is_all && !replica.ends_with_mark {
            let _ = self.append_mark();
            return;
        }
        let before = if is_all {
            Some(replica.position)
        } else {
            position_of(segments, through.plus(1), range.head)
        };
        let Some(before) = before else {
            return;
        };
        let sequencer = Arc::clone(replica.sequencer());
        replica.runtime.spawn(async move {
            if let Err(outage) = sequencer.trim(before).await {
                tracing::warn!(%outage, "old events could not be removed from the store; it is tried again");
            }
        });
    }

    /// Makes what was committed durable on this disk too.
    pub(super) fn flush(&mut self) -> Result<(), Error> {
        let flushed = self.active.flush(&self.shared.fault);
        flushed.map_err(|error| self.shared.evaluate(&error, "log"))
    }

    /// The same, with a manifest that confirms it: no file of ids is to know more.
    pub(super) fn confirm(&mut self) -> Result<(), Error> {
        self.flush()?;
        self.save();
        Ok(())
    }

    pub(super) fn add_ids(
        &mut self,
        keys: &[ids::Key],
        last: Sequence,
        at: UnixMicros,
    ) -> Result<(), Error> {
        if self.ids.add(keys, last, at) {
            if self.replica.is_some() {
                self.confirm()?;
            }
            self.shared.keeper.work_on_ids();
        }
        Ok(())
    }
}
