//! Owns the source of a client that keeps its own place: it goes along the log behind a cursor,
//! through one filter and one encoder, whether blocks come from the bus or from the log, so the two
//! meet without gap or repeat.

use std::{collections::VecDeque, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    Subscriptions,
    failure::Failure,
    notice,
    plan::{OnDamaged, OnExpired, Plan},
    response::{Response, Writer},
    source::{Moved, Outbox, Source},
    start::{Bounds, Start, expired, skip},
};
use crate::{
    bus::{self, Extract},
    event::{Cursor, Sequence},
    log::{Block, Cursors, Damaged, Format, Gap, ReadError, block::View},
    proto::SkipReason,
};

/// How much of the log a catching-up subscriber reads and sends at once, in bytes: enough to keep
/// reads from being the cost, little enough that thousands can catch up together, and that whoever
/// is live waits for no more than this. Four times as much is a sixth faster.
const READ_BYTES_MAX: usize = 128 * 1024;

/// A place in the log, and what of the log is wanted after it.
pub(crate) struct CursorSource {
    subscriptions: Arc<Subscriptions>,
    subscriber: bus::Subscriber,
    format: Format,
    on_expired: OnExpired,
    on_damaged: OnDamaged,
    /// Every event up to here was taken or did not match.
    position: Sequence,
    /// The cursor of the last response that was sent whole.
    sent: Cursor,
    cursors: Cursors,
    phase: Phase,
    bounds: Bounds,
    /// What the log gave and was not looked at yet.
    history: VecDeque<Arc<Block>>,
    /// A run of matching events right after the place.
    found: Option<Found>,
    /// It was woken, and has not found anything since.
    is_woken: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    History,
    Live,
}

struct Found {
    block: Arc<Block>,
    /// Indices of the block's events, or of the extract's where there is one.
    run: Range<usize>,
    /// Where the events within bounds end.
    end: usize,
    /// All that matches in the block, where others want it too.
    extract: Option<Arc<Extract>>,
}

impl Found {
    fn view(&self, format: Format) -> &View {
        match &self.extract {
            Some(extract) => extract.view(),
            None => self.block.view(format),
        }
    }
}

impl CursorSource {
    /// Finds the place that a plan starts from. Also returns what its client is told first.
    ///
    /// # Errors
    /// The [`Failure`] to answer with.
    pub(super) async fn open(
        subscriptions: Arc<Subscriptions>,
        plan: Plan,
    ) -> Result<(Self, VecDeque<Vec<u8>>), Failure> {
        // Subscribed before the head is read: nothing that comes after it goes by unseen.
        let subscriber = subscriptions.bus.subscribe(plan.filter.clone());
        let start = Start::find(&subscriptions, &plan).await?;
        let mut cursors = subscriptions.log.status().cursors();
        let sent = Cursor {
            not_before: start.bounds.not_before,
            ..cursors.at(start.position)
        };
        let source = Self {
            subscriptions,
            subscriber,
            format: plan.format,
            on_expired: plan.on_expired,
            on_damaged: plan.on_damaged,
            position: start.position,
            sent,
            cursors,
            phase: Phase::History,
            bounds: start.bounds,
            history: VecDeque::new(),
            found: None,
            is_woken: false,
        };
        Ok((source, start.notices))
    }

    fn cursor_after(&mut self, sequence: Sequence) -> Cursor {
        Cursor {
            not_before: self.bounds.not_before,
            ..self.cursors.at(sequence)
        }
    }

    /// Looks for matching events in a block, after the place and within bounds.
    fn examine(
        &mut self,
        block: Arc<Block>,
        extract: Option<Arc<Extract>>,
        outbox: &mut Outbox,
    ) -> Moved {
        if self
            .bounds
            .before
            .is_some_and(|before| block.received_at() >= before)
        {
            return self.finish(outbox);
        }
        let last = block.last_sequence().min(self.bounds.last);
        let first = block.first_sequence();
        let index = |sequence: Sequence| {
            usize::try_from(sequence.0.saturating_sub(first.0)).unwrap_or(usize::MAX)
        };
        let end = index(last.plus(1));
        let from = index(self.position.plus(1));
        // An extract is of the whole block.
        let extract = extract.filter(|_| from == 0 && last == block.last_sequence());
        let is_early = |at| block.received_at() < at;
        self.bounds.not_before = self.bounds.not_before.filter(|&at| is_early(at));
        let run = if self.bounds.not_before.is_some() {
            None
        } else if let Some(extract) = &extract {
            Some(0..extract.view().len()).filter(|run| !run.is_empty())
        } else {
            let selection = self.subscriber.filter().select(&block);
            clip(selection.next_run(from), end)
        };
        let Some(run) = run else {
            self.position = self.position.max(last);
            return Moved::On;
        };
        let index = match &extract {
            Some(extract) => extract.index(run.start).unwrap_or(end),
            None => run.start,
        };
        self.position = first.plus(index as u64).before();
        self.found = Some(Found {
            block,
            run,
            end,
            extract,
        });
        Moved::Ready
    }

    fn at_head(&mut self, outbox: &mut Outbox) -> Moved {
        // It has come once nothing is missing from before it.
        let has_come = |at| {
            self.subscriptions.settles_within(at).is_zero()
                && self.subscriber.head() <= self.position
        };
        self.bounds.not_before = self.bounds.not_before.filter(|&at| !has_come(at));
        if self.phase == Phase::History {
            self.phase = Phase::Live;
            outbox.notices.push_back(notice::caught_up(self.position));
            return Moved::Ready;
        }
        if self.changes_within().is_some_and(|left| left.is_zero()) {
            return self.finish(outbox);
        }
        Moved::Wait
    }

    /// The stop position is reached: says how far the stream came, then ends it.
    fn finish(&mut self, outbox: &mut Outbox) -> Moved {
        self.end(Ok(()), outbox);
        Moved::Ready
    }

    /// Says how far the stream came, then ends it.
    fn end(&mut self, end: Result<(), Failure>, outbox: &mut Outbox) {
        if self.position > self.sent.sequence {
            outbox.notices.push_back(self.progress());
        }
        outbox.end = Some(end);
    }

    /// Ends the stream before damaged events, or moves past them.
    fn meet_damage(&mut self, damaged: Damaged, outbox: &mut Outbox) {
        if damaged.last <= self.position {
            let error = ReadError::Failed("the log names other events than the next".into());
            outbox.end = Some(Err(self.unreadable(&error)));
            return;
        }
        let damaged = self.unless_in_memory(damaged);
        match self.on_damaged {
            OnDamaged::Fail => {
                let cursor = self.cursor();
                let failure = self.damaged(damaged, cursor);
                self.end(Err(failure), outbox);
            }
            OnDamaged::Skip => {
                // A stream that stops among them does not go further.
                let last = damaged.last.min(self.bounds.last);
                let notice = notice::skipped(self.position.plus(1), last, SkipReason::Damaged);
                outbox.notices.push_back(notice);
                self.position = last;
            }
        }
    }

    /// Those of the damaged events that the bus does not have either.
    fn unless_in_memory(&self, damaged: Damaged) -> Damaged {
        let Some(first) = self.subscriptions.bus.window_first() else {
            return damaged;
        };
        // What comes next has to be read from the log, whatever came into the window meanwhile.
        let lost = first.before().max(self.position.plus(1));
        Damaged {
            last: damaged.last.min(lost),
            ..damaged
        }
    }

    fn damaged(&mut self, damaged: Damaged, cursor: Cursor) -> Failure {
        Failure::LogDamaged {
            damaged,
            cursor,
            after: self.cursor_after(damaged.last),
        }
    }

    /// Adds the matching events of a block. Returns what of it did not fit.
    fn take_block(
        &mut self,
        mut found: Found,
        writer: &mut Writer,
        outbox: &mut Outbox,
    ) -> Option<Found> {
        let first = found.block.first_sequence();
        loop {
            let wanted = usize::try_from(self.bounds.events_left).unwrap_or(usize::MAX);
            let wanted_end = found.run.end.min(found.run.start.saturating_add(wanted));
            let view = found.view(self.format);
            let end = writer.push(view, found.run.start..wanted_end);
            self.bounds.events_left -= (end - found.run.start) as u64;
            found.run.start = end;
            // The place is right before the next event that matches, or at the end of the run.
            let index = match &found.extract {
                Some(extract) => extract.index(end).unwrap_or(found.end),
                None => end,
            };
            self.position = first.plus(index as u64).before();
            if self.bounds.events_left == 0 {
                outbox.end = Some(Ok(()));
                return None;
            }
            if end < found.run.end {
                return Some(found);
            }
            let more = match &found.extract {
                Some(_) => None,
                None => {
                    let selection = self.subscriber.filter().select(&found.block);
                    clip(selection.next_run(end), found.end)
                }
            };
            match more {
                Some(run) => found.run = run,
                None => {
                    self.position = first.plus(found.end as u64).before();
                    return None;
                }
            }
        }
    }

    /// The block that holds an event, from the window or from the log.
    async fn block(&mut self, sequence: Sequence) -> Result<Arc<Block>, Failure> {
        let after = sequence.before();
        let holds = |block: &Arc<Block>| {
            (block.first_sequence()..=block.last_sequence()).contains(&sequence)
        };
        if let bus::Next::Block { block, .. } = self.subscriber.next(after)
            && holds(&block)
        {
            return Ok(block);
        }
        let blocks = self.subscriptions.log.read(after, 1).await;
        let blocks = blocks.map_err(|error| self.interrupted(&error))?;
        let block = blocks.into_iter().find(holds);
        block.ok_or_else(|| {
            self.unreadable(&ReadError::Failed("an event is not there any more".into()))
        })
    }

    /// Why a stream ends within a message. No skip can come there: the client gets it when it resumes.
    fn interrupted(&mut self, error: &ReadError) -> Failure {
        let cursor = self.sent_cursor();
        match error {
            ReadError::Expired { .. } => match self.on_expired {
                OnExpired::Fail => {
                    let range = self.subscriptions.range();
                    expired(&self.subscriptions, &range, cursor.not_before)
                }
                OnExpired::Earliest | OnExpired::Latest => Failure::LogUnavailable {
                    cursor: Some(cursor),
                },
            },
            ReadError::Damaged(damaged) => match self.on_damaged {
                OnDamaged::Fail => self.damaged(self.unless_in_memory(*damaged), cursor),
                OnDamaged::Skip => Failure::LogUnavailable {
                    cursor: Some(cursor),
                },
            },
            ReadError::Failed(_) | ReadError::Unavailable(_) => self.unreadable(error),
        }
    }

    fn unreadable(&mut self, error: &ReadError) -> Failure {
        Subscriptions::unreadable(error, Some(self.sent_cursor()))
    }

    fn head(&self) -> Sequence {
        self.subscriber.head().max(self.position)
    }
}

impl Source for CursorSource {
    fn step(&mut self, outbox: &mut Outbox) -> Moved {
        if self.position >= self.bounds.last {
            return self.finish(outbox);
        }
        if let Some(block) = self.history.pop_front() {
            return match Gap::check_reaches(self.position, &block) {
                Ok(()) => self.examine(block, None, outbox),
                Err(gap) => {
                    let error = ReadError::Failed(gap.to_string().into());
                    outbox.end = Some(Err(self.unreadable(&error)));
                    Moved::Ready
                }
            };
        }
        match self.subscriber.next(self.position) {
            bus::Next::Block {
                block,
                published_at,
            } => {
                if std::mem::take(&mut self.is_woken) {
                    self.subscriptions.pace.ran_after(published_at.elapsed());
                }
                let extract = self.subscriber.extract(&block, self.format);
                self.examine(block, extract, outbox)
            }
            bus::Next::AtHead(head) if head > self.position => {
                self.position = head.min(self.bounds.last);
                Moved::On
            }
            bus::Next::AtHead(_) => self.at_head(outbox),
            bus::Next::Behind => {
                self.is_woken = false;
                if self.phase == Phase::Live {
                    self.phase = Phase::History;
                    let notice = notice::fell_behind(self.position, self.head());
                    outbox.notices.push_back(notice);
                    return Moved::Ready;
                }
                Moved::Read
            }
        }
    }

    async fn read(&mut self, outbox: &mut Outbox) -> bool {
        let log = &self.subscriptions.log;
        match log.read(self.position, READ_BYTES_MAX).await {
            // Not to be expected below the head. Waiting keeps it from becoming a busy loop.
            Ok(blocks) if blocks.is_empty() => return false,
            Ok(blocks) => self.history.extend(blocks),
            Err(ReadError::Expired { .. }) => {
                let range = self.subscriptions.range();
                let after = (self.position, self.bounds.not_before);
                match skip(&self.subscriptions, &range, after, self.on_expired) {
                    Ok((position, notice)) => {
                        self.position = position;
                        outbox.notices.push_back(notice);
                    }
                    Err(failure) => outbox.end = Some(Err(failure)),
                }
            }
            Err(ReadError::Damaged(damaged)) => self.meet_damage(damaged, outbox),
            Err(error @ (ReadError::Failed(_) | ReadError::Unavailable(_))) => {
                outbox.end = Some(Err(self.unreadable(&error)));
            }
        }
        true
    }

    async fn changed(&mut self) {
        self.subscriber.changed().await;
        self.is_woken = true;
    }

    /// Until nothing more can come that was received before the stop time.
    fn changes_within(&self) -> Option<Duration> {
        let before = self.bounds.before?;
        Some(self.subscriptions.settles_within(before))
    }

    fn is_live(&self) -> bool {
        self.phase == Phase::Live
    }

    fn has_events(&self) -> bool {
        self.found.is_some()
    }

    fn response_bytes_min(&self) -> usize {
        self.found.as_ref().map_or(0, |found| {
            let view = found.view(self.format);
            let first = found.run.start;
            Response::bytes(view.slice_bytes(first..first + 1))
        })
    }

    fn take(&mut self, bytes_max: usize, outbox: &mut Outbox) -> Response {
        let first = self.position.plus(1);
        let mut writer = Writer::new(bytes_max);
        while let Some(found) = self.found.take() {
            self.found = self.take_block(found, &mut writer, outbox);
            // Goes on with the next blocks while they are at hand, so that one response carries
            // all that is waiting.
            while self.found.is_none() && outbox.is_empty() {
                let Moved::On = self.step(outbox) else { break };
            }
            if writer.is_full() || !outbox.is_empty() {
                break;
            }
        }
        let mut response = writer.finish(self.cursors.at(self.position));
        response.first = Some(first);
        response
    }

    fn notify(&mut self, notice: &[u8]) -> Response {
        Response::of_notice(self.cursor(), notice)
    }

    fn progress(&self) -> Vec<u8> {
        notice::progress(self.position, self.head())
    }

    fn sent(&mut self) {
        self.sent = self.cursor();
    }

    fn park(&mut self) {
        self.history.clear();
        self.found = None;
    }

    async fn event(&mut self, sequence: Sequence) -> Result<Bytes, Failure> {
        let block = self.block(sequence).await?;
        let index = usize::try_from(sequence.0 - block.first_sequence().0).unwrap_or(usize::MAX);
        let view = block.view(self.format);
        Ok(view.slice(index..index.saturating_add(1)))
    }

    fn position(&self) -> Sequence {
        self.position
    }

    fn cursor(&mut self) -> Cursor {
        self.cursor_after(self.position)
    }

    fn sent_cursor(&mut self) -> Cursor {
        self.sent
    }
}

/// The part of a run before `end`, if there is any.
fn clip(run: Option<Range<usize>>, end: usize) -> Option<Range<usize>> {
    run.map(|run| run.start..run.end.min(end))
        .filter(|run| !run.is_empty())
}
