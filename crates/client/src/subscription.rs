//! Owns a consumer's place in the log: takes responses apart into items, remembers how far the
//! consumer is, and resumes from there whenever the stream breaks.
//!
//! ```text
//!            ┌──────────── delay is over ───────────┐
//!            v                                      │
//! Idle ─> Calling ── accepted ──> Streaming ──> Waiting     retryable: notice `Reconnecting`
//!            └───────────────────────┴─> Ended              any other error, or the stop is reached
//! ```

use std::{
    collections::VecDeque,
    fmt,
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::time::{Instant, Sleep, sleep};
use tokio_stream::Stream;
use tonic::{Streaming, transport::Channel};

use super::{
    backoff::Backoff,
    credential::Credential,
    cursor_store::CursorStore,
    error::{Error, is_unsent},
};
use crate::proto::{
    CaughtUp, Draining, Event, FellBehind, Progress, SkipReason, Skipped, StartPosition, Started,
    StopPosition, SubscribeRequest, SubscribeResponse, event_service_client::EventServiceClient,
    start_position, stop_position, subscribe_response,
};

/// The contract's progress interval where the request names none.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// What a subscription yields.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all items are events")]
pub enum Item {
    /// An event that matches.
    Event(Event),
    /// Something to know about the stream. All notices can be ignored.
    Notice(Notice),
}

/// Something to know about a stream.
#[derive(Debug)]
#[non_exhaustive]
pub enum Notice {
    /// The server accepted the request, at first or again.
    Started(Started),
    /// Nothing matched for a while.
    Progress(Progress),
    /// All history was sent: what follows is live.
    CaughtUp(CaughtUp),
    /// This client reads more slowly than events arrive. Nothing is lost.
    FellBehind(FellBehind),
    /// Events were removed by retention or are damaged, and the request was to continue.
    Skipped(Skipped),
    /// The server is about to end the stream: because it shuts down or, without a delay in `retry_after`,
    /// because the stream has reached its maximum age. The subscription goes on by itself.
    Draining(Draining),
    /// The stream broke and is resumed after a delay. Nothing is lost.
    Reconnecting {
        /// Why it broke.
        error: Error,
        /// How long until the next attempt.
        delay: Duration,
    },
}

/// A stream of events that resumes by itself.
///
/// Yields an error only as its last item: one that does not pass by itself. Ends without an error
/// when the stop position is reached. Asking for the next item is cancel safe.
pub struct Subscription {
    service: EventServiceClient<Channel>,
    credential: Credential,
    request: SubscribeRequest,
    state: CallState,
    /// What is left of the last response.
    received: VecDeque<Item>,
    /// The place after the whole of the last response.
    received_cursor: String,
    /// The place after the last item that was yielded.
    cursor: Option<String>,
    store: Option<Box<dyn CursorStore>>,
    stored_cursor: Option<String>,
    backoff: Backoff,
    /// What the server asked for in a `Draining` notice.
    drain_retry_after: Option<Duration>,
    /// Set once as many events were received as were asked for.
    is_complete: bool,
    /// Whether the credential was refused since the stream last worked.
    was_refused: bool,
    silence: Silence,
}

enum CallState {
    Idle,
    Calling(BoxFuture<'static, Result<Streaming<SubscribeResponse>, Error>>),
    Streaming(Box<Streaming<SubscribeResponse>>),
    Waiting(Pin<Box<Sleep>>),
    Ended,
}

impl Subscription {
    pub(super) fn new(
        service: EventServiceClient<Channel>,
        credential: Credential,
        request: SubscribeRequest,
        silence_timeout: Duration,
        backoff: Backoff,
    ) -> Self {
        let interval = request
            .progress_interval
            .map_or(PROGRESS_INTERVAL, |interval| {
                interval.try_into().unwrap_or(PROGRESS_INTERVAL)
            });
        Self {
            service,
            credential,
            request,
            state: CallState::Idle,
            received: VecDeque::new(),
            received_cursor: String::new(),
            cursor: None,
            store: None,
            stored_cursor: None,
            backoff,
            drain_retry_after: None,
            is_complete: false,
            was_refused: false,
            silence: Silence::new(silence_timeout.max(interval.saturating_mul(3))),
        }
    }

    pub(super) fn with_store(mut self, store: Box<dyn CursorStore>) -> Self {
        self.store = Some(store);
        self
    }

    /// The place after the last item that was yielded: to be kept by a consumer that has processed
    /// it, and to be started from with [`Start::After`](super::Start::After). `None` before the
    /// server has accepted the request for the first time.
    #[must_use]
    pub fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }

    /// How many items can be had without waiting for the network. At 0 is a good moment to
    /// [`acknowledge`](Self::acknowledge): rarely enough to be cheap, and all that was sent is
    /// covered.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.received.len()
    }

    /// Says that all items that were yielded are processed, and keeps the cursor in the store, if
    /// the subscription has one and the cursor has moved.
    ///
    /// # Errors
    /// [`Error::Store`]. The subscription can go on; what was processed may come again after a
    /// restart of the program.
    pub async fn acknowledge(&mut self) -> Result<(), Error> {
        let (Some(store), Some(cursor)) = (&self.store, &self.cursor) else {
            return Ok(());
        };
        if self.stored_cursor.as_ref() != Some(cursor) {
            store.save(cursor).await.map_err(Error::Store)?;
            self.stored_cursor = Some(cursor.clone());
        }
        Ok(())
    }

    /// Calls the server, to continue where the consumer is.
    fn call(&mut self) {
        // A cursor knows a start time that has not come yet by the bridge's clock.
        if let Some(cursor) = &self.cursor {
            self.request.start = Some(StartPosition {
                position: Some(start_position::Position::AfterCursor(cursor.clone())),
            });
        }
        let mut service = self.service.clone();
        let request = self.request.clone();
        let credential = self.credential.clone();
        self.state = CallState::Calling(Box::pin(async move {
            let first = credential.request(request.clone()).await?;
            let called = match service.subscribe(first).await {
                Err(status) if is_unsent(&status) => {
                    service.subscribe(credential.request(request).await?).await
                }
                called => called,
            };
            Ok(called?.into_inner())
        }));
    }

    fn receive(&mut self, response: SubscribeResponse) {
        self.count_down(response.events.len() as u64);
        let notice = response.notice.map(Notice::from);
        match &notice {
            Some(Notice::Started(started)) => self.pin_head(started),
            Some(Notice::Draining(draining)) => {
                let retry_after = draining.retry_after.and_then(|delay| delay.try_into().ok());
                self.drain_retry_after = retry_after;
                // It is the planned end of a stream that worked, and the server says itself when to come back.
                self.backoff.reset();
            }
            _ => {}
        }
        // A stream that lives long enough for a progress notice works, even if nothing happens.
        if !response.events.is_empty() || matches!(notice, Some(Notice::Progress(_))) {
            self.backoff.reset();
            self.was_refused = false;
        }
        let events = response.events.into_iter().map(Item::Event);
        // What was skipped lies before the events of the same response; all else after them.
        let (before, after) = match notice {
            Some(notice @ (Notice::Started(_) | Notice::Skipped(_))) => (Some(notice), None),
            other => (None, other),
        };
        self.received.extend(before.map(Item::Notice));
        self.received.extend(events);
        self.received.extend(after.map(Item::Notice));
        self.received_cursor = response.cursor;
        if self.received.is_empty() {
            self.cursor = Some(self.received_cursor.clone());
        }
    }

    /// After an interruption only the rest of the wanted events is asked for.
    fn count_down(&mut self, received: u64) {
        if let Some(stop) = &mut self.request.stop
            && stop.max_events > 0
        {
            let left = stop.max_events.saturating_sub(received);
            self.is_complete = left == 0;
            stop.max_events = left.max(1);
        }
    }

    /// "The newest event at the time of the call" means the first call, not those that resume it.
    fn pin_head(&mut self, started: &Started) {
        let head = started.range.as_ref().and_then(|range| range.head.as_ref());
        if let (Some(stop), Some(head)) = (&mut self.request.stop, head)
            && matches!(stop.position, Some(stop_position::Position::Head(_)))
        {
            let cursor = head.cursor.clone();
            stop.position = Some(stop_position::Position::AtCursor(cursor));
        }
    }

    fn take_received(&mut self) -> Option<Item> {
        let item = self.received.pop_front()?;
        if self.received.is_empty() {
            self.cursor = Some(std::mem::take(&mut self.received_cursor));
        } else if let Item::Event(event) = &item {
            self.cursor = Some(event.cursor.clone());
        }
        Some(item)
    }

    /// Ends, or goes on after a delay.
    fn interrupt(&mut self, error: Error) -> Option<Result<Item, Error>> {
        let error = self.credential.explain(error);
        self.silence.stop();
        if self.is_complete {
            self.state = CallState::Ended;
            return None;
        }
        // A token that is kept in a file may have been replaced: it is read once more.
        let is_refused = matches!(error, Error::Refused { .. });
        let is_worth_another = is_refused && self.credential.can_change() && !self.was_refused;
        if !error.is_retryable() && !is_worth_another {
            self.state = CallState::Ended;
            return Some(Err(error));
        }
        self.was_refused |= is_refused;
        let retry_after = error.retry_after().or(self.drain_retry_after);
        self.drain_retry_after = None;
        let delay = self.backoff.next_delay(retry_after);
        self.state = CallState::Waiting(Box::pin(sleep(delay)));
        Some(Ok(Item::Notice(Notice::Reconnecting { error, delay })))
    }

    /// The server ended the stream with OK, which means that the stop position is reached.
    fn end(&mut self) -> Option<Result<Item, Error>> {
        let has_stop = |stop: &StopPosition| stop.position.is_some() || stop.max_events > 0;
        if !self.request.stop.as_ref().is_some_and(has_stop) {
            // A stream without a stop position has no reason to end well: something between cut it.
            return self.interrupt(Error::interrupted("the stream ended too early"));
        }
        self.state = CallState::Ended;
        None
    }

    /// Waits for the next thing to happen to the stream.
    fn poll_state(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Item, Error>>> {
        let happened = match &mut self.state {
            CallState::Idle => {
                self.call();
                return Poll::Ready(None);
            }
            CallState::Waiting(delay) => {
                ready!(delay.as_mut().poll(context));
                self.call();
                return Poll::Ready(None);
            }
            CallState::Ended => return Poll::Ready(None),
            CallState::Calling(call) => match call.as_mut().poll(context) {
                Poll::Ready(Ok(stream)) => {
                    self.silence.stop();
                    self.state = CallState::Streaming(Box::new(stream));
                    return Poll::Ready(None);
                }
                Poll::Ready(Err(error)) => Poll::Ready(Some(Err(error))),
                Poll::Pending => Poll::Pending,
            },
            CallState::Streaming(stream) => {
                let next = Pin::new(stream.as_mut()).poll_next(context);
                next.map(|response| response.map(|response| response.map_err(Error::from)))
            }
        };
        Poll::Ready(match happened {
            Poll::Ready(Some(Ok(response))) => {
                self.silence.stop();
                self.receive(response);
                None
            }
            Poll::Ready(Some(Err(error))) => self.interrupt(error),
            Poll::Ready(None) => self.end(),
            Poll::Pending => {
                ready!(self.silence.poll(context));
                self.interrupt(Error::interrupted(
                    "the server has been silent for too long",
                ))
            }
        })
    }
}

impl Stream for Subscription {
    type Item = Result<Item, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(item) = this.take_received() {
                return Poll::Ready(Some(Ok(item)));
            }
            let item = ready!(this.poll_state(context));
            if item.is_some() || matches!(this.state, CallState::Ended) {
                return Poll::Ready(item);
            }
        }
    }
}

/// Shows the place, not the events.
impl fmt::Debug for Subscription {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Subscription")
            .field("cursor", &self.cursor)
            .field("buffered", &self.received.len())
            .finish_non_exhaustive()
    }
}

/// A timer that runs while the network is waited for, and not while the consumer is busy.
struct Silence {
    timeout: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
    is_running: bool,
}

impl Silence {
    fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            sleep: None,
            is_running: false,
        }
    }

    fn stop(&mut self) {
        self.is_running = false;
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let timeout = self.timeout;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep(timeout)));
        if !self.is_running {
            sleep.as_mut().reset(Instant::now() + timeout);
            self.is_running = true;
        }
        sleep.as_mut().poll(context)
    }
}

impl From<subscribe_response::Notice> for Notice {
    fn from(notice: subscribe_response::Notice) -> Self {
        match notice {
            subscribe_response::Notice::Started(started) => Self::Started(started),
            subscribe_response::Notice::Progress(progress) => Self::Progress(progress),
            subscribe_response::Notice::CaughtUp(caught_up) => Self::CaughtUp(caught_up),
            subscribe_response::Notice::FellBehind(behind) => Self::FellBehind(behind),
            subscribe_response::Notice::Skipped(skipped) => Self::Skipped(skipped),
            subscribe_response::Notice::Draining(draining) => Self::Draining(draining),
        }
    }
}

impl Notice {
    /// Whether it is part of a change of connections that the server asked for without a delay, because the
    /// stream has reached its maximum age: nothing that a person has to know of.
    #[must_use]
    pub fn is_planned(&self) -> bool {
        match self {
            Self::Draining(draining) => {
                let delay = draining.retry_after.as_ref();
                delay.is_some_and(|delay| delay.seconds == 0 && delay.nanos == 0)
            }
            Self::Reconnecting { error, .. } => error.is_planned(),
            _ => false,
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started(Started { after_sequence, .. }) => {
                write!(formatter, "subscribed, after event {after_sequence}")
            }
            Self::Progress(Progress {
                sequence,
                head_sequence,
            }) => {
                write!(formatter, "at event {sequence} of {head_sequence}")
            }
            Self::CaughtUp(CaughtUp { sequence }) => {
                write!(formatter, "caught up at event {sequence}")
            }
            Self::FellBehind(FellBehind {
                sequence,
                head_sequence,
            }) => {
                let behind = head_sequence.saturating_sub(*sequence);
                write!(formatter, "fell {behind} events behind; nothing is lost")
            }
            Self::Skipped(skipped) => {
                let Skipped {
                    first_sequence,
                    last_sequence,
                    ..
                } = skipped;
                // An earlier release of the bridge gives no reason, and skips nothing else.
                let is_damaged = skipped.reason() == SkipReason::Damaged;
                if first_sequence == last_sequence {
                    let why = if is_damaged {
                        "is damaged on the bridge's disk, and is left out as requested"
                    } else {
                        "was removed by retention before it could be sent"
                    };
                    return write!(formatter, "event {first_sequence} {why}");
                }
                let why = if is_damaged {
                    "are damaged on the bridge's disk, and are left out as requested"
                } else {
                    "were removed by retention before they could be sent"
                };
                write!(
                    formatter,
                    "events {first_sequence} to {last_sequence} {why}"
                )
            }
            Self::Draining(_) if self.is_planned() => {
                formatter.write_str("the stream has reached its maximum age; nothing is lost")
            }
            Self::Draining(_) => formatter.write_str("the server is about to shut down"),
            Self::Reconnecting { error, delay } => {
                write!(
                    formatter,
                    "{error}; resuming in {:.1} s",
                    delay.as_secs_f64()
                )
            }
        }
    }
}

#[cfg(test)]
mod tests;
