//! Owns how responses reach a client over HTTP/2, as its windows allow. Responses are made to fit
//! the room that there is. A message that is larger goes out in pieces, the first of them at once:
//! some clients open their windows only after they have seen how long it is. Nothing is buffered for
//! a client that does not read, and such a client is ended with a status and its cursor, which need
//! no room.

use std::{future::poll_fn, pin::pin, task::Poll, time::Duration};

use bytes::{Buf as _, Bytes};
use futures_util::{FutureExt as _, future::BoxFuture};
use h2::{Reason, SendStream};
use http::HeaderMap;
use http_body::Body;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    Options, RequestHandler,
    frame_budget::ShortPieces,
    gather::Shelf,
    piece::Piece,
    unsent::{Backlog, Share, Unsent},
};
use crate::{
    credentials::Grant,
    subscription::{Failure, Response, Session, Source, Step},
};

/// How long a client without room keeps the blocks that it was about to get in memory.
const PARK_AFTER: Duration = Duration::from_secs(1);

/// The same where others wait for the memory.
const PARK_SOON_AFTER: Duration = Duration::from_millis(50);

/// Into so many parts the time is divided that a client has to take something: after each it is looked at
/// whether the socket took some of what is on its way.
const LOOKS: u32 = 4;

/// How long a client without room gets to make some once the server drains.
const DRAIN_ROOM_TIMEOUT: Duration = Duration::from_secs(1);

/// One response stream and what it is bound by.
pub(super) struct Sender<'a, H> {
    pub(super) handler: &'a H,
    pub(super) options: &'a Options,
    pub(super) draining: &'a CancellationToken,
    pub(super) unsent: &'a Unsent,
    pub(super) short_pieces: &'a ShortPieces,
    pub(super) shelf: &'a Shelf,
    pub(super) send: &'a mut SendStream<Piece>,
}

/// The client reset the stream, or the connection is gone: there is nobody to tell anything.
pub(super) struct Gone;

/// How many bytes can be sent, and the share of what may be unsent that they are to hold.
struct Room {
    bytes: usize,
    share: Share,
}

/// Until when a client has to take something. There is one for each response.
struct Patience {
    timeout: Duration,
    deadline: Instant,
    /// The deadline cannot be moved past this.
    latest: Option<Instant>,
}

impl Patience {
    fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            deadline: Instant::now() + timeout,
            latest: None,
        }
    }

    /// The client has taken something: it reads, however slowly.
    fn took_some(&mut self) {
        self.took_some_at(Instant::now());
    }

    fn took_some_at(&mut self, at: Instant) {
        self.deadline = self.deadline.max(at + self.timeout);
        self.clip();
    }

    /// Whatever the client takes from now on, there is little time for it.
    fn hurry(&mut self) {
        self.latest
            .get_or_insert_with(|| Instant::now() + DRAIN_ROOM_TIMEOUT);
        self.clip();
    }

    /// Resolves when the time is over. What the socket takes of the backlog gives the client time again:
    /// one message can take a slow link longer than that.
    async fn run_out(&mut self, backlog: &mut Backlog) {
        loop {
            if let Some(moved_at) = backlog.moved_at() {
                self.took_some_at(moved_at);
            }
            let now = Instant::now();
            if now >= self.deadline {
                return;
            }
            sleep_until(self.deadline.min(now + self.timeout / LOOKS)).await;
        }
    }

    fn clip(&mut self) {
        if let Some(latest) = self.latest {
            self.deadline = self.deadline.min(latest);
        }
    }
}

impl<H: RequestHandler> Sender<'_, H> {
    /// Sends the responses of a session, each as large as the client has room for.
    pub(super) async fn session<S: Source>(
        &mut self,
        session: &mut Session<S>,
    ) -> Result<(), Gone> {
        let began_at = Instant::now();
        let sent = self.responses(session).await;
        if sent.is_err() && self.unsent.is_squeezed() {
            // Nobody is told, but the operator: why its connection is gone is why the stream is.
            session.give_up(began_at.elapsed());
            session.take(0);
        }
        sent
    }

    async fn responses<S: Source>(&mut self, session: &mut Session<S>) -> Result<(), Gone> {
        loop {
            tokio::select! {
                biased;
                () = session.ready() => {}
                _ = poll_fn(|context| self.send.poll_reset(context)) => return Err(Gone),
            }
            let wanted = session.response_bytes_min();
            if wanted == 0 {
                // Only the end is left, and trailers need no room.
                return self.end_session(session);
            }
            // Most responses have room at once.
            let mut patience = None;
            let room = self.room(session, wanted, &mut patience).await?;
            let Some(room) = room else {
                return self.end_session(session);
            };
            match session.take(room.bytes) {
                // It had to let go of what it had found, and finds it again. Other streams of the
                // connection must not wait for the room that is not used now.
                None => self.send.reserve_capacity(0),
                Some(Step::Response(response)) => {
                    let (events, bytes) = (response.events, response.remaining());
                    if bytes <= room.bytes {
                        self.send_piece(response, room.share)?;
                    } else {
                        session.split(response);
                        let pieces = self.pieces(session, room, &mut patience);
                        if Box::pin(pieces).await?.is_none() {
                            return self.end_session(session);
                        }
                    }
                    session.sent(events, bytes);
                    // What is held back from the connection's other streams is given back.
                    self.send.reserve_capacity(0);
                    if session.reads_history() {
                        // Who has a lot to read lets what is live go first, after each response.
                        tokio::task::yield_now().await;
                    }
                }
                Some(Step::End(end)) => return self.end(&end),
            }
        }
    }

    /// Sends the response that the session has split, as room comes. `None` if the session has
    /// ended meanwhile.
    async fn pieces<S: Source>(
        &mut self,
        session: &mut Session<S>,
        mut room: Room,
        patience: &mut Option<Patience>,
    ) -> Result<Option<()>, Gone> {
        let patience = self.begun(patience);
        loop {
            let piece = tokio::select! {
                piece = session.piece(room.bytes) => piece,
                _ = poll_fn(|context| self.send.poll_reset(context)) => return Err(Gone),
            };
            let Some(piece) = piece else {
                return Ok(None);
            };
            patience.took_some();
            self.short_pieces.sent(piece.remaining());
            self.send_piece(piece, room.share)?;
            let left = session.rest_bytes();
            if left == 0 {
                return Ok(Some(()));
            }
            let bytes_max = left.min(self.options.response_bytes_max);
            self.send.reserve_capacity(bytes_max);
            session.end_turn();
            // Also where there is room already: the end must not wait for the end of the message.
            match self.later_room(session, left, bytes_max, patience).await? {
                Some(more) => room = more,
                None => return Ok(None),
            }
        }
    }

    /// Sends what fits into a share.
    fn send_piece(&mut self, mut piece: Response, mut share: Share) -> Result<(), Gone> {
        if !share.fit(piece.memory_bytes()) {
            // There is no memory for all of the block that it is in.
            piece.compact();
            share.fit(piece.memory_bytes());
        }
        let piece = Piece::new(piece, share, self.shelf.clone());
        self.send.send_data(piece, false).map_err(|_| Gone)
    }

    /// The patience with a client, which begins when it is first needed.
    fn begun<'p>(&self, patience: &'p mut Option<Patience>) -> &'p mut Patience {
        patience.get_or_insert_with(|| Patience::new(self.options.slow_consumer_timeout))
    }

    /// Takes room, for `wanted` bytes or for less, as soon as the client has some. `None` if the
    /// session has ended meanwhile.
    async fn room<S: Source>(
        &mut self,
        session: &mut Session<S>,
        wanted: usize,
        patience: &mut Option<Patience>,
    ) -> Result<Option<Room>, Gone> {
        let bytes_max = self.options.response_bytes_max.max(wanted);
        self.send.reserve_capacity(bytes_max);
        if let Some(room) = self.try_room(wanted, bytes_max) {
            return Ok(Some(room));
        }
        let patience = self.begun(patience);
        session.end_turn();
        // In memory of its own: most streams never wait for room.
        Box::pin(self.later_room(session, wanted, bytes_max, patience)).await
    }

    /// Waits for the room that was reserved.
    async fn later_room<S: Source>(
        &mut self,
        session: &mut Session<S>,
        wanted: usize,
        bytes_max: usize,
        patience: &mut Patience,
    ) -> Result<Option<Room>, Gone> {
        let draining = session.draining().clone();
        let holds_since = session.holds_since().unwrap_or_else(Instant::now);
        let park_after = if session.is_waited_for() {
            PARK_SOON_AFTER
        } else {
            PARK_AFTER
        };
        let mut parked = pin!(sleep_until(holds_since + park_after));
        let mut is_parked = false;
        let mut hurried = false;
        let mut backlog = self.unsent.backlog();
        let mut coming = pin!(self.coming_room(wanted, bytes_max));
        loop {
            tokio::select! {
                biased;
                () = draining.cancelled(), if !hurried => {
                    hurried = true;
                    session.begin_draining();
                    patience.hurry();
                }
                () = session.revoked() => return Ok(None),
                () = hurried_over(patience.latest) => {
                    session.give_up(patience.timeout);
                    return Ok(None);
                }
                room = &mut coming => return room.map(Some),
                () = patience.run_out(&mut backlog) => {
                    session.give_up(patience.timeout);
                    return Ok(None);
                }
                () = &mut parked, if !is_parked => {
                    is_parked = true;
                    session.park();
                }
            }
        }
    }

    /// Whether so much room lets only a piece be sent that has to wait for its turn.
    fn needs_turn(&self, capacity: usize, wanted: usize) -> bool {
        capacity < wanted && self.short_pieces.is_short(capacity)
    }

    /// The room that there is now, of what was reserved.
    fn try_room(&self, wanted: usize, bytes_max: usize) -> Option<Room> {
        let capacity = self.send.capacity().min(bytes_max);
        if capacity == 0 || self.needs_turn(capacity, wanted) {
            return None;
        }
        self.take_room(capacity, wanted)
    }

    fn take_room(&self, capacity: usize, wanted: usize) -> Option<Room> {
        let share = self.unsent.try_hold(wanted.min(capacity), capacity)?;
        let bytes = capacity.min(share.bytes());
        Some(Room { bytes, share })
    }

    /// Waits until there is some.
    async fn coming_room(&mut self, wanted: usize, bytes_max: usize) -> Result<Room, Gone> {
        let short_pieces = self.short_pieces;
        // A client is not to blame for the time that its turn takes.
        let turn_timeout = self.options.slow_consumer_timeout / 2;
        let mut turn = None;
        loop {
            let capacity = self.send.capacity().min(bytes_max);
            if capacity == 0 {
                more_room(self.send, true).await?;
                continue;
            }
            if self.needs_turn(capacity, wanted) {
                let turn = turn.get_or_insert_with(|| short_pieces.turn(turn_timeout));
                if Instant::now() < turn.at {
                    tokio::select! {
                        () = sleep_until(turn.at) => {}
                        more = more_room(self.send, true) => more?,
                    }
                    continue;
                }
            }
            if let Some(room) = self.take_room(capacity, wanted) {
                return Ok(room);
            }
            let share = tokio::select! {
                share = self.unsent.hold(wanted.min(capacity)) => share,
                more = more_room(self.send, false) => {
                    more?;
                    continue;
                }
            };
            // A client may have taken room back.
            let bytes = capacity.min(self.send.capacity()).min(share.bytes());
            if bytes > 0 {
                return Ok(Room { bytes, share });
            }
        }
    }

    /// Sends any other body. It is ended when its call is over, with its caller's credential, and, if it never
    /// ends by itself, such as a watch on the health, a moment after the server drains.
    pub(super) async fn body(
        &mut self,
        body: H::Body,
        grant: Option<Grant>,
        over: Option<BoxFuture<'static, HeaderMap>>,
    ) -> Result<(), Gone> {
        let draining = self.draining.clone();
        let over = over.unwrap_or_else(|| std::future::pending().boxed());
        let mut drained = pin!(async {
            draining.cancelled().await;
            sleep(DRAIN_ROOM_TIMEOUT).await;
        });
        let mut revoked = pin!(async {
            match grant {
                Some(grant) => grant.ended().await,
                None => std::future::pending().await,
            }
        });
        let handler = self.handler;
        let failure = tokio::select! {
            biased;
            sent = self.frames(body) => return sent,
            trailers = over => return self.send.send_trailers(trailers).map_err(|_| Gone),
            ended = &mut revoked => Failure::CredentialEnded { ended, cursor: None },
            () = &mut drained => handler.drained(),
        };
        self.end(&Err(failure))
    }

    async fn frames(&mut self, body: H::Body) -> Result<(), Gone> {
        let mut body = pin!(body);
        loop {
            let frame = tokio::select! {
                frame = poll_fn(|context| body.as_mut().poll_frame(context)) => frame,
                _ = poll_fn(|context| self.send.poll_reset(context)) => return Err(Gone),
            };
            let frame = match frame {
                None => {
                    let end = self.send.send_data(Piece::default(), true);
                    return end.map_err(|_| Gone);
                }
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    tracing::debug!(%error, "a response failed");
                    self.send.send_reset(Reason::INTERNAL_ERROR);
                    return Err(Gone);
                }
            };
            match frame.into_data() {
                Ok(bytes) => self.bytes(bytes).await?,
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    return self.send.send_trailers(trailers).map_err(|_| Gone);
                }
            }
        }
    }

    /// Sends bytes of a body, as room comes.
    async fn bytes(&mut self, mut bytes: Bytes) -> Result<(), Gone> {
        let mut patience = Patience::new(self.options.slow_consumer_timeout);
        while !bytes.is_empty() {
            let bytes_max = bytes.len().min(self.options.response_bytes_max);
            self.send.reserve_capacity(bytes_max);
            let mut backlog = self.unsent.backlog();
            let room = tokio::select! {
                room = self.coming_room(bytes.len(), bytes_max) => Some(room?),
                () = patience.run_out(&mut backlog) => None,
            };
            let Some(room) = room else {
                self.send.send_reset(Reason::CANCEL);
                return Err(Gone);
            };
            let piece = bytes.split_to(room.bytes.min(bytes.len()));
            patience.took_some();
            if !bytes.is_empty() {
                self.short_pieces.sent(piece.len());
            }
            self.send_piece(piece.into(), room.share)?;
        }
        Ok(())
    }

    /// Ends a stream whose session has ended.
    fn end_session<S: Source>(&mut self, session: &mut Session<S>) -> Result<(), Gone> {
        match session.take(0) {
            Some(Step::End(end)) => self.end(&end),
            Some(Step::Response(_)) | None => Err(Gone),
        }
    }

    fn end(&mut self, end: &Result<(), Failure>) -> Result<(), Gone> {
        let trailers = self.handler.trailers(end);
        self.send.send_trailers(trailers).map_err(|_| Gone)
    }
}

/// Resolves when even a client that takes something has no time left, at this time if there is one.
async fn hurried_over(latest: Option<Instant>) {
    match latest {
        Some(latest) => sleep_until(latest).await,
        None => std::future::pending().await,
    }
}

/// Resolves when the client has made room, if that is wanted, or fails when it has reset the stream.
async fn more_room(send: &mut SendStream<Piece>, wanted: bool) -> Result<(), Gone> {
    poll_fn(|context| {
        if send.poll_reset(context).is_ready() {
            return Poll::Ready(Err(Gone));
        }
        if !wanted {
            return Poll::Pending;
        }
        send.poll_capacity(context).map(|more| match more {
            Some(Ok(_)) => Ok(()),
            Some(Err(_)) | None => Err(Gone),
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn who_takes_something_has_time_again() {
        let mut patience = Patience::new(TIMEOUT);
        let first = patience.deadline;
        tokio::time::advance(TIMEOUT / 2).await;
        assert_eq!(patience.deadline, first);
        patience.took_some();
        assert_eq!(patience.deadline, first + TIMEOUT / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_something_does_not_hold_up_a_drain() {
        let mut patience = Patience::new(TIMEOUT);
        patience.hurry();
        let latest = Instant::now() + DRAIN_ROOM_TIMEOUT;
        assert_eq!(patience.deadline, latest);
        tokio::time::advance(DRAIN_ROOM_TIMEOUT / 2).await;
        patience.hurry();
        patience.took_some();
        assert_eq!(patience.deadline, latest);
    }
}
