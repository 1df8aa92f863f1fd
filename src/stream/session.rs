//! Owns one subscription: where it is, what comes next, and when it ends. It moves along the log
//! through one filter and one encoder, whether blocks come from the bus or from the log, so the
//! two meet without gap or repeat. Knows nothing of connections: whoever has one asks
//! [`Session::ready`] and then takes as much as the client has room for.

mod movement;
mod pieces;
mod start;

use std::{collections::VecDeque, ops::Range, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::{
    movement::clip,
    start::{Start, expired, skip},
};
use super::{
    access::Permit,
    notice,
    registry::Registration,
    request::Plan,
    response::{Response, Writer},
    rest::Rest,
    shared::Shared,
    status::Failure,
};
use crate::{
    bus::{self, Extract},
    credentials::Ended,
    event::{Cursor, Sequence, UnixMicros},
    log::{Block, Cursors, Format, ReadError, block::View},
};

/// How long a stream that has more to send goes on once the server drains.
const DRAIN_SENDING_MAX: Duration = Duration::from_secs(1);

/// How much of the log a catching-up subscriber reads and sends at once, in bytes: enough to keep
/// reads from being the cost, little enough that thousands can catch up together, and that whoever
/// is live waits for no more than this. Four times as much is a sixth faster.
const READ_BYTES_MAX: usize = 128 * 1024;

/// One subscription.
pub(super) struct Session {
    shared: Arc<Shared>,
    plan: Plan,
    subscriber: bus::Subscriber,
    registration: Registration,
    permit: Permit,
    draining: CancellationToken,
    /// Every event up to here was delivered or did not match.
    position: Sequence,
    /// The cursor of the last response that was sent whole.
    told: Sequence,
    cursors: Cursors,
    phase: Phase,
    bounds: Bounds,
    /// What the log gave and was not looked at yet.
    history: VecDeque<Arc<Block>>,
    /// A run of matching events right after the place.
    found: Option<Found>,
    /// What is still to be sent of a response that goes out in pieces.
    rest: Option<Box<Rest>>,
    notices: VecDeque<Vec<u8>>,
    progress_at: Instant,
    /// When the last response was taken.
    sent_at: Instant,
    drain_by: Option<Instant>,
    end: Option<Result<(), Failure>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    History,
    Live,
}

/// Which part of the log the subscription is about.
struct Bounds {
    /// The last event that may be delivered.
    last: Sequence,
    not_before: UnixMicros,
    before: Option<UnixMicros>,
    events_left: u64,
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

/// What a session gives next.
#[derive(Debug)]
pub(super) enum Step {
    /// A response to send.
    Response(Response),
    /// The end of the stream.
    End(Result<(), Failure>),
}

/// What one step along the log led to.
enum Moved {
    /// Something can be taken.
    Ready,
    /// On to the next block.
    On,
    /// The log has to be read.
    Read,
    /// There is nothing more for now.
    Wait,
}

impl Session {
    /// Begins at the place that a plan starts from.
    ///
    /// # Errors
    /// The [`Failure`] to answer with, before any response.
    pub(super) async fn open(
        shared: Arc<Shared>,
        plan: Plan,
        permit: Permit,
        mut registration: Registration,
    ) -> Result<Self, Failure> {
        // Subscribed before the head is read: nothing that comes after it goes by unseen.
        let subscriber = shared.bus.subscribe(plan.filter.clone());
        let start = match Start::find(&shared, &plan).await {
            Ok(start) => start,
            Err(failure) => {
                registration.ended(&Err(failure.clone()));
                return Err(failure);
            }
        };
        registration.opened(start.position);
        Ok(Self {
            subscriber,
            registration,
            permit,
            draining: shared.draining.clone(),
            position: start.position,
            told: start.position,
            cursors: shared.log.status().cursors(),
            phase: Phase::History,
            bounds: start.bounds,
            history: VecDeque::new(),
            found: None,
            rest: None,
            notices: start.notices,
            progress_at: Instant::now() + plan.progress_interval,
            sent_at: Instant::now(),
            drain_by: None,
            end: None,
            plan,
            shared,
        })
    }

    /// Waits until there is something to take. Gives up nothing when it is dropped.
    pub(super) async fn ready(&mut self) {
        if self.end.is_none()
            && let Some(ended) = self.permit.has_ended().await
        {
            self.revoke(ended);
        }
        loop {
            let is_draining = self.is_draining();
            if self.has_something() {
                return;
            }
            match self.step() {
                Moved::Ready => return self.linger().await,
                // A sparse filter can have far to go: let others run in between.
                Moved::On => tokio::task::coop::consume_budget().await,
                Moved::Read | Moved::Wait if is_draining => self.drain(),
                Moved::Read => self.read().await,
                Moved::Wait => self.wait().await,
            }
            if !self.has_something() && Instant::now() >= self.progress_at {
                self.notices
                    .push_back(notice::progress(self.position, self.head()));
            }
        }
    }

    /// Lets more live events come before the ones at hand are sent, when there is load.
    async fn linger(&mut self) {
        if self.phase != Phase::Live || !self.notices.is_empty() || self.end.is_some() {
            return;
        }
        let Some(next) = self.shared.pace.next_after(self.sent_at) else {
            return;
        };
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = self.draining.cancelled() => {}
            ended = self.permit.ended() => self.revoke(ended),
        }
    }

    /// Whether the server drains. What is at hand by then is still sent, so that a client's cursor
    /// covers what the server took last, but not for long.
    fn is_draining(&mut self) -> bool {
        if self.end.is_some() || !self.draining.is_cancelled() {
            return false;
        }
        let drain_by = *self
            .drain_by
            .get_or_insert_with(|| Instant::now() + DRAIN_SENDING_MAX);
        if Instant::now() >= drain_by {
            self.drain();
        }
        true
    }

    /// The fewest bytes that [`take`](Self::take) can give next.
    #[must_use]
    pub(super) fn response_bytes_min(&self) -> usize {
        if let Some(notice) = self.notices.front() {
            return Response::bytes(notice.len(), 0);
        }
        self.found.as_ref().map_or(0, |found| {
            let view = found.view(self.plan.format);
            let first = found.run.start;
            Response::bytes(0, view.slice_bytes(first..first + 1))
        })
    }

    /// The next response, of at most `bytes_max` unless a single event is larger; or the end.
    /// `None` when there is neither: ask [`ready`](Self::ready) first. Say [`sent`](Self::sent) once
    /// a response is on its way.
    pub(super) fn take(&mut self, bytes_max: usize) -> Option<Step> {
        let response = if let Some(notice) = self.notices.pop_front() {
            Response::of_notice(self.cursor(), &notice)
        } else if self.found.is_some() {
            self.take_events(bytes_max.min(self.shared.options.response_bytes_max))
        } else {
            let end = self.end.clone()?;
            self.registration.ended(&end);
            return Some(Step::End(end));
        };
        Some(Step::Response(response))
    }

    /// The whole of the response that was taken last, of so many events and bytes, was sent.
    pub(super) fn sent(&mut self, events: usize, bytes: usize) {
        self.told = self.position;
        self.sent_at = Instant::now();
        self.progress_at = self.sent_at + self.plan.progress_interval;
        self.registration.told(self.position, events, bytes);
    }

    fn unreadable(&mut self, error: &ReadError) -> Failure {
        let cursor = self.told_cursor();
        self.shared.unreadable(error, Some(cursor))
    }

    /// Resolves when the stream has ended because its credential has.
    pub(super) async fn revoked(&mut self) {
        // Within a message, its end is not near.
        if self.end.is_some() && self.rest.is_none() {
            return std::future::pending().await;
        }
        let ended = self.permit.ended().await;
        self.revoke(ended);
    }

    /// Ends the stream at once: not even what was found already is for this caller now.
    fn revoke(&mut self, ended: Ended) {
        let cursor = Some(self.told_cursor());
        self.end_now(Failure::CredentialEnded { ended, cursor });
    }

    /// Ends the stream: the client has not read for `waited`.
    pub(super) fn give_up(&mut self, waited: Duration) {
        // While the server drains, that is the reason, whatever else held the stream up.
        let failure = if self.draining.is_cancelled() {
            let retry_after = self.shared.options.drain_retry_after();
            Failure::Draining {
                retry_after,
                cursor: Some(self.told_cursor()),
            }
        } else {
            Failure::SlowConsumer {
                waited,
                cursor: self.told_cursor(),
            }
        };
        self.end_now(failure);
    }

    fn end_now(&mut self, failure: Failure) {
        self.park();
        self.rest = None;
        self.notices.clear();
        self.end = Some(Err(failure));
    }

    /// Lets go of all blocks, for as long as the client has no room: a crowd of stalled clients
    /// holds no memory. What was found is found again from the place.
    pub(super) fn park(&mut self) {
        self.history.clear();
        self.found = None;
        if let Some(rest) = &mut self.rest {
            rest.park();
        }
    }

    /// What is under way by now is still sent once the server drains, but not for long.
    pub(super) fn begin_draining(&mut self) {
        self.drain_by
            .get_or_insert_with(|| Instant::now() + DRAIN_SENDING_MAX);
    }

    /// Whether it has not come to the end of the log yet, or has fallen behind since.
    #[must_use]
    pub(super) fn reads_history(&self) -> bool {
        self.phase == Phase::History
    }

    /// Cancelled when the server begins to drain.
    #[must_use]
    pub(super) fn draining(&self) -> &CancellationToken {
        &self.draining
    }

    fn take_events(&mut self, bytes_max: usize) -> Response {
        let first = self.position.plus(1);
        let mut writer = Writer::new(bytes_max);
        while let Some(found) = self.found.take() {
            self.found = self.take_block(found, &mut writer);
            // Goes on with the next blocks while they are at hand, so that one response carries
            // all that is waiting.
            while self.found.is_none() && self.notices.is_empty() && self.end.is_none() {
                let Moved::On = self.step() else { break };
            }
            if writer.is_full() || !self.notices.is_empty() || self.end.is_some() {
                break;
            }
        }
        let mut response = writer.finish(self.cursor());
        response.first = Some(first);
        response
    }

    /// Adds the matching events of a block. Returns what of it did not fit.
    fn take_block(&mut self, mut found: Found, writer: &mut Writer) -> Option<Found> {
        let filter = self.plan.filter.clone();
        let first = found.block.first_sequence();
        loop {
            let wanted = usize::try_from(self.bounds.events_left).unwrap_or(usize::MAX);
            let wanted_end = found.run.end.min(found.run.start.saturating_add(wanted));
            let view = found.view(self.plan.format);
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
                self.end = Some(Ok(()));
                return None;
            }
            if end < found.run.end {
                return Some(found);
            }
            let more = match &found.extract {
                Some(_) => None,
                None => clip(filter.select(&found.block).next_run(end), found.end),
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

    async fn wait(&mut self) {
        self.registration.waiting(self.position);
        let stop_time = self.stop_time_left();
        let mut until = self.progress_at;
        if let Some(left) = stop_time {
            until = until.min(Instant::now() + left);
        }
        tokio::select! {
            () = self.subscriber.changed() => {
                if let Some(late) = self.subscriber.waited(self.position) {
                    self.shared.pace.ran_after(late);
                }
            }
            () = tokio::time::sleep_until(until) => {}
            () = self.draining.cancelled() => {}
            ended = self.permit.ended() => self.revoke(ended),
        }
    }

    /// How long it is until nothing more can come that was received before the stop time.
    fn stop_time_left(&self) -> Option<Duration> {
        let before = self.bounds.before?;
        let left = before.0.saturating_sub(self.shared.log.now().0);
        let settling_micros = self.shared.log.settling_time().as_micros();
        let left = left.saturating_add(i64::try_from(settling_micros).unwrap_or(i64::MAX));
        Some(Duration::from_micros(left.try_into().unwrap_or(0)))
    }

    /// The stop position is reached: says how far the stream came, then ends it.
    fn finish(&mut self) -> Moved {
        if self.position > self.told {
            self.notices
                .push_back(notice::progress(self.position, self.head()));
        }
        self.end = Some(Ok(()));
        Moved::Ready
    }

    fn drain(&mut self) {
        let retry_after = self.shared.options.drain_retry_after();
        self.park();
        self.notices.push_back(notice::draining(retry_after));
        self.end = Some(Err(Failure::Draining {
            retry_after,
            cursor: Some(self.cursor()),
        }));
    }

    fn has_something(&self) -> bool {
        self.found.is_some() || self.end.is_some() || !self.notices.is_empty()
    }

    fn head(&self) -> Sequence {
        self.subscriber.head().max(self.position)
    }

    fn cursor(&mut self) -> Cursor {
        self.cursors.at(self.position)
    }

    fn told_cursor(&mut self) -> Cursor {
        self.cursors.at(self.told)
    }
}
