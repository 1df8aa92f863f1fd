//! Owns a session as a response's body, for connections that know only bodies (HTTP/1.1, gRPC-Web).

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use futures_util::future::{BoxFuture, poll_immediate};
use http_body::{Body, Frame};
use tonic::Status;

use super::status::{ended, trailers};
use crate::subscription::{CursorSession, Step};

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
        // Within a message, nothing else notices that the stream has to end.
        poll_immediate(self.session.revoked()).await;
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
