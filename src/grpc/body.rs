//! Owns the bodies between RPCs and connections: a session as a response's body, for connections that
//! know only bodies (HTTP/1.1, gRPC-Web), and a request's body with a deadline.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use futures_util::future::BoxFuture;
use http_body::{Body, Frame};
use tokio::time::{Sleep, sleep};
use tonic::{Status, body};

use super::status::{Failure, ended, trailers};
use crate::{
    credentials::{CountedFilter, Quota},
    subscription::{CursorSession, Step, Subscriptions},
};

/// What gRPC puts before each message: a flag and its length, in bytes.
const PREFIX_BYTES: usize = 5;

/// A response's extension: the session behind its body, for a connection that can send responses
/// as they are. Who does not take it reads the body, which is the same stream as plain bytes.
#[derive(Clone)]
pub(super) struct Outlet(Arc<Mutex<Option<Box<CursorSession>>>>);

impl Outlet {
    pub(super) fn new(session: CursorSession) -> Self {
        // The session never moves again: it is large, and each future that it moved through would
        // have room for it for as long as the stream is open.
        Self(Arc::new(Mutex::new(Some(Box::new(session)))))
    }

    pub(super) fn take(&self) -> Option<Box<CursorSession>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A session as a body. Takes the session when it is first polled.
pub(super) struct SessionBody {
    state: State,
    frame_bytes_max: usize,
}

enum State {
    Idle(Outlet),
    Running(BoxFuture<'static, Next>),
    Done,
}

impl SessionBody {
    pub(super) fn new(outlet: Outlet, frame_bytes_max: usize) -> Self {
        Self {
            state: State::Idle(outlet),
            frame_bytes_max,
        }
    }
}

impl Body for SessionBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let bytes_max = self.frame_bytes_max;
        loop {
            match &mut self.state {
                State::Idle(outlet) => {
                    self.state = match outlet.take() {
                        Some(session) => {
                            let frames = Frames::new(*session, bytes_max);
                            State::Running(Box::pin(frames.next()))
                        }
                        None => State::Done,
                    };
                }
                State::Running(future) => {
                    let (frame, more) = ready!(future.as_mut().poll(context));
                    self.state = match more {
                        Some(frames) => State::Running(Box::pin(frames.next())),
                        None => State::Done,
                    };
                    return Poll::Ready(Some(frame));
                }
                State::Done => return Poll::Ready(None),
            }
        }
    }
}

/// The next frame, and those after it unless that was the last one.
type Next = (Result<Frame<Bytes>, Status>, Option<Frames>);

/// A session as frames of limited length: whoever sends one holds all of it until its client has room.
struct Frames {
    session: CursorSession,
    bytes_max: usize,
    /// How many events and bytes the response has that is sent now.
    sending: (usize, usize),
}

impl Frames {
    fn new(session: CursorSession, bytes_max: usize) -> Self {
        Self {
            session,
            bytes_max,
            sending: (0, 0),
        }
    }

    async fn next(mut self) -> Next {
        while self.session.rest_bytes() == 0 {
            self.session.ready().await;
            match self.session.take(self.bytes_max) {
                None => {}
                Some(Step::Response(response)) => {
                    self.sending = (response.events, response.remaining());
                    self.session.split(response);
                }
                Some(Step::End(end)) => {
                    return (Ok(Frame::trailers(trailers(&ended(&end)))), None);
                }
            }
        }
        let Some(mut piece) = self.session.piece(self.bytes_max).await else {
            // gRPC-Web's trailers are bytes of the body: within a message they would be taken for it.
            return match self.session.take(0) {
                Some(Step::End(end)) => (Err(ended(&end)), None),
                Some(Step::Response(_)) | None => (Err(Status::internal("no message")), None),
            };
        };
        let bytes = piece.copy_to_bytes(piece.remaining());
        if self.session.rest_bytes() == 0 {
            let (events, bytes) = self.sending;
            self.session.sent(events, bytes);
        }
        // Nobody says how long its client takes for this one.
        self.session.park();
        (Ok(Frame::data(bytes)), Some(self))
    }
}

/// A request's body of which a part may be read before anybody asks for it. So a call that waits for
/// something else does not hold the window that all calls of its connection share.
pub(super) struct ReadAhead {
    body: body::Body,
    message_bytes_max: usize,
    bytes: usize,
    frames: VecDeque<Result<Frame<Bytes>, Status>>,
    is_read: bool,
}

impl ReadAhead {
    /// With a message of so many bytes read ahead at most.
    pub(super) fn new(body: body::Body, message_bytes_max: usize) -> Self {
        Self {
            body,
            message_bytes_max,
            bytes: 0,
            frames: VecDeque::new(),
            is_read: false,
        }
    }

    /// Reads ahead. Resolves only if the body has more bytes than may be read ahead.
    pub(super) async fn overflow(&mut self) -> Failure {
        let bytes_max = self.message_bytes_max.saturating_add(PREFIX_BYTES);
        while self.bytes <= bytes_max && !self.is_read {
            let frame = poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await;
            self.is_read = !matches!(frame, Some(Ok(_)));
            let data = frame
                .as_ref()
                .and_then(|frame| frame.as_ref().ok()?.data_ref());
            self.bytes += data.map_or(0, Bytes::len);
            self.frames.extend(frame);
        }
        if self.bytes <= bytes_max {
            std::future::pending::<()>().await;
        }
        let bytes_max = self.message_bytes_max;
        Failure::Message {
            description: format!("a message of more than {bytes_max} bytes"),
        }
    }
}

impl Body for ReadAhead {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.frames.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None if self.is_read => Poll::Ready(None),
            None => Pin::new(&mut self.body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && (self.is_read || self.body.is_end_stream())
    }
}

/// A request's body whose bytes count until it is dropped: whoever reads it keeps them until the message
/// is whole. Those of strangers do not count; there are few of them, and they are small.
pub(super) struct Counted {
    body: body::Body,
    subscriptions: Arc<Subscriptions>,
    quota: Option<Arc<Quota>>,
    counted: Vec<CountedFilter>,
    /// How many bytes more are counted: of many messages, nobody keeps more than the one that is not
    /// whole yet.
    bytes_left: usize,
}

impl Counted {
    pub(super) fn new(
        body: body::Body,
        subscriptions: Arc<Subscriptions>,
        quota: Option<Arc<Quota>>,
        message_bytes_max: usize,
    ) -> Self {
        Self {
            body,
            subscriptions,
            quota,
            counted: Vec::new(),
            bytes_left: message_bytes_max.saturating_add(PREFIX_BYTES),
        }
    }

    fn count(&mut self, bytes: usize) -> Result<(), Status> {
        let bytes = bytes.min(self.bytes_left);
        if bytes == 0 || self.quota.is_none() {
            return Ok(());
        }
        let counted = self.subscriptions.count(bytes, self.quota.as_ref());
        let counted = counted.map_err(|failure| Status::from(&Failure::Stream(failure)))?;
        self.bytes_left -= bytes;
        if self.counted.is_empty() {
            self.counted = counted;
        } else {
            // However many frames there are.
            for (before, more) in self.counted.iter_mut().zip(counted) {
                before.absorb(more);
            }
        }
        Ok(())
    }
}

impl Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(bytes) = frame.data_ref()
            && let Err(status) = self.count(bytes.len())
        {
            return Poll::Ready(Some(Err(status)));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// A request's body that has to come within a time: tonic waits for messages for ever.
pub(super) struct Timed {
    body: body::Body,
    timeout: Duration,
    /// Made when the body is first waited for: most have come with their headers.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Timed {
    pub(super) fn new(body: body::Body, timeout: Duration) -> Self {
        Self {
            body,
            timeout,
            deadline: None,
        }
    }
}

impl Body for Timed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        let timeout = self.timeout;
        let deadline = self
            .deadline
            .get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(deadline.as_mut().poll(context));
        let waited = timeout;
        Poll::Ready(Some(Err(Status::from(&Failure::MessageTimeout { waited }))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, StreamExt as _};
    use http_body_util::{BodyExt as _, StreamBody};

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        bus::{self, Bus},
        log::memory,
        metrics::Metrics,
        subscription::Options,
    };

    #[tokio::test]
    async fn of_many_messages_no_more_counts_than_one_can_have() {
        let log = memory::open(memory::Options::default()).unwrap();
        let bus = Bus::follow(bus::Options::default(), &*log).unwrap();
        let options = Options {
            filters_bytes_per_credential_max: 25,
            ..Options::default()
        };
        let metrics = Arc::new(Metrics::new());
        let draining = CancellationToken::new();
        let subscriptions = Subscriptions::new(options, log, bus, metrics, draining);
        let quota = Arc::<Quota>::default();
        let frames = (0..10).map(|_| Ok::<_, Status>(Frame::data(Bytes::from_static(b"0123"))));
        let body = StreamBody::new(futures_util::stream::iter(frames));
        let body = body::Body::new(body);
        let mut body = Counted::new(body, subscriptions, Some(Arc::clone(&quota)), 10);
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            bytes += frame.unwrap().into_data().unwrap().len();
        }
        assert_eq!(bytes, 40);
        assert!(quota.filter(11, 25).is_err(), "the body is still there");
        assert!(quota.filter(10, 25).is_ok());
        drop(body);
        assert!(quota.filter(25, 25).is_ok());
    }

    fn ahead(parts: &'static [&'static [u8]], ends: bool) -> ReadAhead {
        let parts = parts
            .iter()
            .map(|part| Ok::<_, Status>(Frame::data(Bytes::from_static(part))));
        let parts = futures_util::stream::iter(parts);
        let rest = if ends {
            futures_util::stream::empty().boxed()
        } else {
            futures_util::stream::pending().boxed()
        };
        let body = StreamBody::new(parts.chain(rest));
        ReadAhead::new(body::Body::new(body), 10)
    }

    #[tokio::test]
    async fn what_was_read_ahead_comes_before_the_rest() {
        for polls in [0, 1] {
            let mut body = ahead(&[b"ab", b"cd"], true);
            for _ in 0..polls {
                assert!(body.overflow().now_or_never().is_none());
            }
            assert_eq!(body.collect().await.unwrap().to_bytes(), &b"abcd"[..]);
        }
    }

    #[tokio::test]
    async fn a_call_that_sends_too_much_before_it_is_let_in_is_refused() {
        let mut exact = ahead(&[b"\0\0\0\0\x0a", b"0123456789"], false);
        assert!(exact.overflow().now_or_never().is_none());
        let mut over = ahead(&[b"\0\0\0\0\x0b", b"0123456789", b"0", b"1"], false);
        let failure = over.overflow().now_or_never().unwrap();
        assert!(matches!(failure, Failure::Message { .. }));
    }
}
