//! Owns one subscription: what is sent next, and when it ends. The events come from a [`Source`];
//! the session adds notices, keeps the pace, and watches the credential and the drain. Whoever has a
//! connection asks [`Session::ready`] and then takes as much as the client has room for.

mod pieces;

use std::{collections::VecDeque, pin::Pin, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Subscriptions,
    failure::Failure,
    notice,
    permit::{Permit, PermitEnd, passed},
    registry::Registration,
    response::Response,
    rest::Rest,
    source::{Moved, Outbox, Source},
};

/// How many blocks without anything that matches a stream looks at before it lets others do so.
const TURN_STEPS_MAX: u32 = 32;

/// How long a stream that has more to send goes on once it drains.
const DRAIN_SENDING_MAX: Duration = Duration::from_secs(1);

/// One subscription.
pub(crate) struct Session<S> {
    subscriptions: Arc<Subscriptions>,
    source: S,
    outbox: Outbox,
    registration: Registration,
    permit: Permit,
    /// Cancelled when the server drains, or at the stream's age. It is a token of its own: streams that all
    /// wait for one token would take turns at its lock with each wait.
    draining: CancellationToken,
    /// What is still to be sent of a response that goes out in pieces.
    rest: Option<Box<Rest>>,
    /// Held while it has blocks of the log in memory, and since when.
    history: Option<(OwnedSemaphorePermit, Instant)>,
    /// Its turn to look for events of the past. It never waits for anything else while it has one.
    turn: Option<OwnedSemaphorePermit>,
    /// Its place among those that wait to read from the log. It keeps it while it sends progress.
    queued: Option<BoxFuture<'static, Option<OwnedSemaphorePermit>>>,
    progress_interval: Duration,
    progress_at: Instant,
    /// Fires no later than `progress_at`. That moves with each response; the timer follows when it
    /// fires.
    timer: Pin<Box<Sleep>>,
    /// When the last response was taken.
    sent_at: Instant,
    drain_by: Option<Instant>,
}

/// What a session gives next.
#[derive(Debug)]
pub(crate) enum Step {
    /// A response to send.
    Response(Response),
    /// The end of the stream.
    End(Result<(), Failure>),
}

impl<S: Source> Session<S> {
    /// Begins with these notices.
    pub(super) fn new(
        subscriptions: Arc<Subscriptions>,
        source: S,
        notices: VecDeque<Vec<u8>>,
        progress_interval: Duration,
        permit: Permit,
        registration: Registration,
    ) -> Self {
        let now = Instant::now();
        let progress_at = now + progress_interval;
        Self {
            draining: permit.draining().clone(),
            subscriptions,
            source,
            outbox: Outbox { notices, end: None },
            registration,
            permit,
            rest: None,
            history: None,
            turn: None,
            queued: None,
            progress_interval,
            progress_at,
            timer: Box::pin(sleep_until(progress_at)),
            sent_at: now,
            drain_by: None,
        }
    }

    /// Waits until there is something to take. Gives up nothing when it is dropped.
    pub(crate) async fn ready(&mut self) {
        if self.outbox.end.is_none()
            && let Some(ended) = self.permit.has_ended().await
        {
            self.revoke(ended);
        }
        let mut steps = 0;
        loop {
            self.take_turn().await;
            let is_draining = self.is_draining();
            if self.has_something() {
                return;
            }
            let moved = self.source.step(&mut self.outbox);
            if moved != Moved::Read {
                // A turn that came now would not be used.
                self.queued = None;
            }
            let has_taken_time = match moved {
                Moved::Ready => {
                    if self.source.is_live() {
                        // What it has is the bus's.
                        self.history = None;
                        self.turn = None;
                    }
                    return self.linger().await;
                }
                Moved::On => {
                    // A sparse filter can have far to go: let others run in between.
                    tokio::task::coop::consume_budget().await;
                    steps += 1;
                    if steps % TURN_STEPS_MAX == 0 {
                        self.turn = None;
                    }
                    true
                }
                Moved::Read | Moved::Wait if is_draining => return self.drain(),
                Moved::Read => self.read().await,
                Moved::Wait => {
                    self.history = None;
                    self.wait().await
                }
            };
            if has_taken_time && !self.has_something() && Instant::now() >= self.progress_at {
                self.outbox.notices.push_back(self.source.progress());
            }
        }
    }

    /// Waits for its turn. A stream that has come to the newest event, or has to end, needs none.
    async fn take_turn(&mut self) {
        if self.turn.is_some() || self.source.is_live() || self.outbox.end.is_some() {
            return;
        }
        let turn = Arc::clone(&self.subscriptions.catching_up).acquire_owned();
        tokio::select! {
            biased;
            turn = turn => self.turn = turn.ok(),
            () = self.draining.cancelled() => {}
            ended = self.permit.ended() => self.revoke(ended),
        }
    }

    /// Lets others look for events of the past, while this one waits for something else.
    pub(crate) fn end_turn(&mut self) {
        self.turn = None;
    }

    /// Reads from the log, if this stream's turn comes before something else does. Returns whether
    /// that took time.
    async fn read(&mut self) -> bool {
        // Nothing of what was read before is left.
        self.history = None;
        self.turn = None;
        self.set_timer(self.progress_at);
        let queued = self.queued.get_or_insert_with(|| {
            let turn = Arc::clone(&self.subscriptions.history).acquire_owned();
            Box::pin(async move { turn.await.ok() })
        });
        let turn = tokio::select! {
            biased;
            turn = queued => turn,
            () = self.draining.cancelled() => return false,
            ended = self.permit.ended() => {
                self.revoke(ended);
                return false;
            }
            () = self.timer.as_mut() => return true,
        };
        self.queued = None;
        if self.source.read(&mut self.outbox).await {
            // How long the read took is not the client's fault.
            self.history = turn.map(|turn| (turn, Instant::now()));
            return true;
        }
        // Others read while this one waits.
        drop(turn);
        self.wait().await
    }

    /// Lets more live events come before the ones at hand are sent, when there is load.
    async fn linger(&mut self) {
        if !self.source.is_live() || !self.outbox.is_empty() {
            return;
        }
        let Some(next) = self.subscriptions.pace.next_after(self.sent_at) else {
            return;
        };
        tokio::select! {
            () = sleep_until(next) => {}
            () = self.draining.cancelled() => {}
            ended = self.permit.ended() => self.revoke(ended),
        }
    }

    /// Whether the stream drains. What is at hand by then is still sent, so that a client's cursor
    /// covers what the server took last, but not for long.
    fn is_draining(&mut self) -> bool {
        if self.outbox.end.is_some() || !self.draining.is_cancelled() {
            return false;
        }
        if Instant::now() >= self.begin_draining() {
            self.drain();
        }
        true
    }

    /// The fewest bytes that [`take`](Self::take) can give next.
    #[must_use]
    pub(crate) fn response_bytes_min(&mut self) -> usize {
        if let Some(notice) = self.outbox.notices.front() {
            return Response::notice_bytes(self.source.cursor(), notice.len());
        }
        self.source.response_bytes_min()
    }

    /// The next response, of at most `bytes_max` unless a single event is larger; or the end.
    /// `None` when there is neither: ask [`ready`](Self::ready) first. Say [`sent`](Self::sent) once
    /// a response is on its way.
    pub(crate) fn take(&mut self, bytes_max: usize) -> Option<Step> {
        let response = if let Some(notice) = self.outbox.notices.pop_front() {
            self.source.notify(&notice)
        } else if self.source.has_events() {
            self.source.take(bytes_max, &mut self.outbox)
        } else {
            let end = self.outbox.end.clone()?;
            self.registration.ended(&end);
            return Some(Step::End(end));
        };
        Some(Step::Response(response))
    }

    /// The whole of the response that was taken last, of so many events and bytes, was sent.
    pub(crate) fn sent(&mut self, events: usize, bytes: usize) {
        self.turn = None;
        self.source.sent();
        self.sent_at = Instant::now();
        self.progress_at = self.sent_at + self.progress_interval;
        self.registration
            .told(self.source.position(), events, bytes);
    }

    /// Resolves when the stream has ended because its credential has, or at its deadline.
    pub(crate) async fn revoked(&mut self) {
        // Within a message, its end is not near.
        if self.outbox.end.is_some() && self.rest.is_none() {
            return std::future::pending().await;
        }
        let ended = self.permit.ended().await;
        self.revoke(ended);
    }

    /// Resolves at the deadline of the call, if it has one. Then the stream has to end, for whoever sends it as
    /// a body and does not ask for more while its client has no room.
    pub(crate) fn overdue(&self) -> Option<impl Future<Output = Failure> + Send + 'static> {
        let deadline = self.permit.deadline?;
        let (reason, cursor) = (self.registration.reason(), None);
        Some(async move {
            passed(deadline).await;
            let failure = Failure::DeadlineExceeded { cursor };
            let _ = reason.set(failure.reason());
            failure
        })
    }

    /// Ends the stream at once: not even what was found already is for this caller now.
    fn revoke(&mut self, ended: PermitEnd) {
        let cursor = Some(self.source.sent_cursor());
        self.end_now(match ended {
            PermitEnd::Credential(ended) => Failure::CredentialEnded { ended, cursor },
            PermitEnd::Deadline => Failure::DeadlineExceeded { cursor },
        });
    }

    /// Ends the stream: the client has not read for `waited`.
    pub(crate) fn give_up(&mut self, waited: Duration) {
        let cursor = self.source.sent_cursor();
        // While the stream drains, that is the reason, whatever else held it up.
        let failure = if self.draining.is_cancelled() {
            self.subscriptions.drained(Some(cursor))
        } else {
            Failure::SlowConsumer { waited, cursor }
        };
        self.end_now(failure);
    }

    fn end_now(&mut self, failure: Failure) {
        self.park();
        self.rest = None;
        self.outbox.notices.clear();
        self.outbox.end = Some(Err(failure));
    }

    /// Lets go of all blocks, for as long as the client has no room: a crowd of stalled clients
    /// holds no memory. What was found is found again from the place.
    pub(crate) fn park(&mut self) {
        self.source.park();
        self.history = None;
        self.turn = None;
        self.queued = None;
        if let Some(rest) = &mut self.rest {
            rest.park();
        }
    }

    /// What is under way by now is still sent once the stream drains, but not for long: until the
    /// returned time.
    pub(crate) fn begin_draining(&mut self) -> Instant {
        *self
            .drain_by
            .get_or_insert_with(|| Instant::now() + DRAIN_SENDING_MAX)
    }

    /// Whether others wait until this stream lets go of its blocks, or of a turn that may have come
    /// meanwhile.
    #[must_use]
    pub(crate) fn is_waited_for(&self) -> bool {
        let has_turn = self.history.is_some() || self.queued.is_some();
        has_turn && self.subscriptions.history.available_permits() == 0
    }

    /// Whether it has not come to the end of the log yet, or has fallen behind since.
    #[must_use]
    pub(crate) fn reads_history(&self) -> bool {
        !self.source.is_live()
    }

    /// Cancelled when the server begins to drain, or at the stream's age.
    #[must_use]
    pub(crate) fn draining(&self) -> &CancellationToken {
        &self.draining
    }

    /// Waits for a change, or until it is time to look without one: returns whether it was that.
    async fn wait(&mut self) -> bool {
        self.turn = None;
        self.registration.waiting(self.source.position());
        let mut until = self.progress_at;
        if let Some(left) = self.source.changes_within() {
            until = until.min(Instant::now() + left);
        }
        self.set_timer(until);
        tokio::select! {
            biased;
            () = self.source.changed() => false,
            () = self.timer.as_mut() => true,
            () = self.draining.cancelled() => false,
            ended = self.permit.ended() => {
                self.revoke(ended);
                false
            }
        }
    }

    /// Lets the timer fire at this time, or before.
    fn set_timer(&mut self, until: Instant) {
        if self.timer.is_elapsed() || until < self.timer.deadline() {
            self.timer.as_mut().reset(until);
        }
    }

    fn drain(&mut self) {
        self.park();
        let failure = self.subscriptions.drained(Some(self.source.cursor()));
        if let Some(retry_after) = failure.drain_retry_after() {
            self.outbox.notices.push_back(notice::draining(retry_after));
        }
        self.outbox.end = Some(Err(failure));
    }

    fn has_something(&self) -> bool {
        !self.outbox.is_empty() || self.source.has_events()
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Buf as _, Bytes};
    use futures_util::FutureExt as _;
    use tokio::sync::{Semaphore, watch};

    use super::*;
    use crate::{
        bus::{self, Bus},
        credentials::{Credentials, Presented},
        event::{Cursor, Sequence, UnixMicros},
        log::memory,
        metrics::Metrics,
        subscription::{Options, permit},
    };

    const INTERVAL: Duration = Duration::from_secs(5);

    /// A source that has as many events as the test says, and no log.
    struct Script {
        subscriptions: Arc<Subscriptions>,
        available: watch::Receiver<u64>,
        at_hand: u64,
        position: u64,
        /// Whether a read of the log finds something, if there has to be one.
        log: Option<bool>,
        not_before: Option<UnixMicros>,
        is_live: bool,
    }

    impl Source for Script {
        fn step(&mut self, _: &mut Outbox) -> Moved {
            if self.log.is_some() {
                return Moved::Read;
            }
            self.at_hand = *self.available.borrow_and_update() - self.position;
            if self.at_hand > 0 {
                Moved::Ready
            } else {
                Moved::Wait
            }
        }

        async fn read(&mut self, _: &mut Outbox) -> bool {
            self.log.take().unwrap()
        }

        async fn changed(&mut self) {
            self.available.changed().await.unwrap();
        }

        fn changes_within(&self) -> Option<Duration> {
            None
        }

        fn is_live(&self) -> bool {
            self.is_live
        }

        fn has_events(&self) -> bool {
            self.at_hand > 0
        }

        fn response_bytes_min(&self) -> usize {
            Response::bytes(1)
        }

        fn take(&mut self, _: usize, _: &mut Outbox) -> Response {
            self.position += self.at_hand;
            let mut response = self.notify(&[]);
            response.events = std::mem::take(&mut self.at_hand) as usize;
            response
        }

        fn notify(&mut self, notice: &[u8]) -> Response {
            Response::of_notice(self.cursor(), notice)
        }

        fn progress(&self) -> Vec<u8> {
            notice::progress(self.position(), self.position())
        }

        fn sent(&mut self) {}

        fn park(&mut self) {
            self.at_hand = 0;
        }

        async fn event(&mut self, _: Sequence) -> Result<Bytes, Failure> {
            Ok(Bytes::new())
        }

        fn position(&self) -> Sequence {
            Sequence(self.position)
        }

        fn cursor(&mut self) -> Cursor {
            let epochs = self.subscriptions.log.status().epochs();
            Cursor {
                not_before: self.not_before,
                ..epochs.cursor(self.position())
            }
        }

        fn sent_cursor(&mut self) -> Cursor {
            self.cursor()
        }
    }

    struct Scripted {
        session: Session<Script>,
        available: watch::Sender<u64>,
        draining: CancellationToken,
    }

    impl Scripted {
        fn new() -> Self {
            Self::aged(None)
        }

        fn aged(age: Option<Duration>) -> Self {
            let draining = CancellationToken::new();
            let log = memory::open(memory::Options::default()).unwrap();
            let bus = Bus::follow(bus::Options::default(), &*log).unwrap();
            let subscriptions = Subscriptions::new(
                Options::default(),
                log,
                bus,
                Arc::new(Metrics::new()),
                draining.clone(),
            );
            let (available, receiver) = watch::channel(0);
            let source = Script {
                subscriptions: Arc::clone(&subscriptions),
                available: receiver,
                at_hand: 0,
                position: 0,
                log: None,
                not_before: None,
                is_live: false,
            };
            let credentials = Credentials::anonymous();
            let grant = credentials.authenticate(Presented::default());
            let grant = grant.now_or_never().unwrap().unwrap();
            let limits = permit::Limits {
                streams_max: 1,
                deadline: None,
                age,
            };
            let permit = Permit::new(&grant, None, limits, draining.child_token()).unwrap();
            let registration = subscriptions.registry.admit().unwrap();
            let notices = VecDeque::new();
            let session = Session::new(
                subscriptions,
                source,
                notices,
                INTERVAL,
                permit,
                registration,
            );
            Self {
                session,
                available,
                draining,
            }
        }

        /// All turns of a log that has something to read.
        async fn turns(&mut self, finds_something: bool) -> (Arc<Semaphore>, OwnedSemaphorePermit) {
            self.session.source.log = Some(finds_something);
            let history = Arc::clone(&self.session.subscriptions.history);
            let all = history.available_permits() as u32;
            let turns = Arc::clone(&history).acquire_many_owned(all).await.unwrap();
            (history, turns)
        }

        /// Waits for a response, takes it, and says how many events it has.
        async fn response(&mut self) -> usize {
            self.session.ready().await;
            let Some(Step::Response(response)) = self.session.take(usize::MAX) else {
                panic!("no response");
            };
            let events = response.events;
            self.session.sent(events, response.remaining());
            events
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_notice_asks_for_room_for_all_of_its_cursor() {
        for not_before in [None, Some(UnixMicros(7))] {
            let mut scripted = Scripted::new();
            scripted.session.source.not_before = not_before;
            scripted.session.ready().await;
            let bytes = scripted.session.response_bytes_min();
            let Some(Step::Response(notice)) = scripted.session.take(0) else {
                panic!("no notice");
            };
            assert_eq!(bytes, notice.remaining());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn progress_comes_an_interval_after_the_last_response() {
        let mut scripted = Scripted::new();
        for number in 1..=10 {
            tokio::time::advance(INTERVAL * 3 / 5).await;
            scripted.available.send_replace(number);
            assert_eq!(scripted.response().await, 1, "no progress in between");
        }
        for _ in 0..2 {
            let since = Instant::now();
            assert_eq!(scripted.response().await, 0, "progress");
            assert_eq!(since.elapsed(), INTERVAL);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_there_when_the_server_drains_is_still_sent() {
        let mut scripted = Scripted::new();
        scripted.available.send_replace(3);
        scripted.draining.cancel();
        assert_eq!(scripted.response().await, 3);
        assert_eq!(scripted.response().await, 0, "the notice");
        scripted.session.ready().await;
        let end = scripted.session.take(0);
        let Some(Step::End(Err(Failure::Draining { cursor, .. }))) = end else {
            panic!("{end:?}");
        };
        assert_eq!(cursor.unwrap().sequence, Sequence(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_waits_drains_at_its_age() {
        let mut scripted = Scripted::aged(Some(INTERVAL * 7 / 2));
        let since = Instant::now();
        for responses in 1..=3 {
            assert_eq!(scripted.response().await, 0, "progress");
            assert_eq!(since.elapsed(), INTERVAL * responses);
        }
        assert_eq!(scripted.response().await, 0, "the notice");
        assert_eq!(since.elapsed(), INTERVAL * 7 / 2);
        scripted.session.ready().await;
        let end = scripted.session.take(0);
        assert!(
            matches!(end, Some(Step::End(Err(Failure::Aged { cursor: Some(_) })))),
            "{end:?}"
        );
        assert!(!scripted.draining.is_cancelled(), "only this stream ends");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_never_without_events_drains_soon_after_its_age() {
        let mut scripted = Scripted::aged(Some(INTERVAL));
        let since = Instant::now();
        let mut sent = 0;
        let end = loop {
            sent += 1;
            scripted.available.send_replace(sent);
            scripted.session.ready().await;
            match scripted.session.take(usize::MAX).unwrap() {
                Step::Response(response) => {
                    let (events, bytes) = (response.events, response.remaining());
                    scripted.session.sent(events, bytes);
                }
                Step::End(end) => break end,
            }
            tokio::time::advance(INTERVAL / 50).await;
        };
        let Err(Failure::Aged { cursor }) = end else {
            panic!("{end:?}");
        };
        let position = scripted.session.source.position();
        assert_eq!(cursor.unwrap().sequence, position);
        assert!(position.0 > 40, "it was sent its events until then");
        assert!(since.elapsed() >= INTERVAL && since.elapsed() <= INTERVAL * 3 / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_without_room_at_its_age_ends_for_that_and_not_as_slow() {
        let mut scripted = Scripted::aged(Some(INTERVAL));
        scripted.available.send_replace(3);
        scripted.session.ready().await;
        // What its connection does meanwhile.
        assert!(scripted.session.revoked().now_or_never().is_none());
        tokio::time::advance(INTERVAL).await;
        assert!(scripted.session.revoked().now_or_never().is_none());
        assert!(scripted.session.draining().is_cancelled());
        scripted.session.give_up(INTERVAL);
        let end = scripted.session.take(0);
        let Some(Step::End(Err(Failure::Aged { cursor }))) = end else {
            panic!("{end:?}");
        };
        assert_eq!(cursor.unwrap().sequence, Sequence(0), "nothing was sent");
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_wakes_a_stream_that_waits() {
        let mut scripted = Scripted::new();
        let draining = scripted.draining.clone();
        let since = Instant::now();
        let (events, ()) = tokio::join!(scripted.response(), async {
            tokio::task::yield_now().await;
            draining.cancel();
        });
        assert_eq!((events, since.elapsed()), (0, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn progress_comes_while_a_stream_waits_for_its_turn_and_costs_no_turn() {
        let mut scripted = Scripted::new();
        let (history, mut turns) = scripted.turns(true).await;
        for _ in 0..3 {
            let since = Instant::now();
            assert_eq!(scripted.response().await, 0, "progress");
            assert_eq!(since.elapsed(), INTERVAL);
        }
        let mut next = Box::pin(Arc::clone(&history).acquire_owned());
        assert!(next.as_mut().now_or_never().is_none());
        scripted.available.send_replace(1);
        drop(turns.split(1));
        let since = Instant::now();
        assert_eq!(scripted.response().await, 1);
        assert_eq!(since.elapsed(), Duration::ZERO);
        assert!(next.as_mut().now_or_never().is_none(), "it came later");
        scripted.session.park();
        assert!(next.now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_without_room_gives_up_the_turn_that_it_waits_for() {
        let mut scripted = Scripted::new();
        let (history, mut turns) = scripted.turns(true).await;
        scripted.session.ready().await;
        // Its client has no room for the progress, and then its turn comes.
        drop(turns.split(1));
        assert_eq!(history.available_permits(), 0);
        assert!(scripted.session.is_waited_for());
        scripted.session.park();
        assert_eq!(history.available_permits(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_as_old_as_its_read_however_many_responses_it_serves() {
        let mut scripted = Scripted::new();
        scripted.session.source.log = Some(true);
        let since = Instant::now();
        for number in 1..=5 {
            scripted.available.send_replace(number);
            assert_eq!(scripted.response().await, 1);
            assert_eq!(scripted.session.holds_since(), Some(since));
            tokio::time::advance(Duration::from_millis(40)).await;
        }
        scripted.session.park();
        assert_eq!(scripted.session.holds_since(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn streams_that_catch_up_take_turns_and_live_ones_need_none() {
        let mut scripted = Scripted::new();
        let turns = Arc::clone(&scripted.session.subscriptions.catching_up);
        let cpus = turns.available_permits();
        scripted.available.send_replace(1);
        let all = Arc::clone(&turns).acquire_many_owned(cpus as u32);
        let all = all.await.unwrap();
        assert!(scripted.session.ready().now_or_never().is_none());
        scripted.session.source.is_live = true;
        assert_eq!(scripted.response().await, 1);
        scripted.session.source.is_live = false;
        scripted.available.send_replace(2);
        let (events, ()) = tokio::join!(scripted.response(), async {
            tokio::task::yield_now().await;
            drop(all);
        });
        assert_eq!(events, 1);
        assert_eq!(turns.available_permits(), cpus, "it was sent");
        // What it found waits for room, and then there is nothing more.
        scripted.available.send_replace(3);
        scripted.session.ready().await;
        assert_eq!(turns.available_permits(), cpus - 1);
        scripted.session.end_turn();
        assert_eq!(turns.available_permits(), cpus);
        assert_eq!(scripted.response().await, 1);
        assert!(scripted.session.ready().now_or_never().is_none());
        assert_eq!(turns.available_permits(), cpus, "it waits for events");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_the_log_or_for_a_turn_keeps_nobody_from_looking_and_ends_in_time() {
        let mut scripted = Scripted::new();
        let turns = Arc::clone(&scripted.session.subscriptions.catching_up);
        let cpus = turns.available_permits();
        let (_history, _all_reading) = scripted.turns(true).await;
        assert!(scripted.session.ready().now_or_never().is_none());
        assert_eq!(turns.available_permits(), cpus, "it waits for the log");
        let _all_looking = Arc::clone(&turns).acquire_many_owned(cpus as u32).await;
        scripted.draining.cancel();
        assert_eq!(scripted.response().await, 0, "the notice");
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_finds_nothing_holds_no_turn_while_the_stream_waits() {
        let mut scripted = Scripted::new();
        let (history, mut turns) = scripted.turns(false).await;
        drop(turns.split(1));
        assert!(scripted.session.ready().now_or_never().is_none());
        assert_eq!(history.available_permits(), 1);
    }
}
