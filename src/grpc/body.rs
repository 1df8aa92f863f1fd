//! Owns the meeting of sessions and HTTP bodies: a session as a response body, for connections that
//! know only bodies (HTTP/1.1, gRPC-Web), and an HTTP/2 request's body for tonic.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use futures_util::future::BoxFuture;
use http_body::{Body, Frame};
use tokio::time::{Sleep, sleep};
use tonic::Status;

use super::{
    session::{Session, Step},
    status::{Failure, trailers},
};

/// A response's extension: the session behind its body, for a connection that can send responses
/// as they are. Who does not take it reads the body, which is the same stream as plain bytes.
#[derive(Clone)]
pub(super) struct Outlet(Arc<Mutex<Option<Session>>>);

impl Outlet {
    pub(super) fn new(session: Session) -> Self {
        Self(Arc::new(Mutex::new(Some(session))))
    }

    pub(super) fn take(&self) -> Option<Session> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A session as a body. Takes the session when it is first polled.
pub(super) struct SessionBody(State);

enum State {
    Idle(Outlet),
    Running(BoxFuture<'static, (Option<Frame<Bytes>>, Option<Session>)>),
    Done,
}

impl SessionBody {
    pub(super) fn new(outlet: Outlet) -> Self {
        Self(State::Idle(outlet))
    }
}

impl Body for SessionBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            match &mut self.0 {
                State::Idle(outlet) => {
                    self.0 = match outlet.take() {
                        Some(session) => State::Running(Box::pin(next(session))),
                        None => State::Done,
                    };
                }
                State::Running(future) => {
                    let (frame, session) = ready!(future.as_mut().poll(context));
                    self.0 = match session {
                        Some(session) => State::Running(Box::pin(next(session))),
                        None => State::Done,
                    };
                    return Poll::Ready(frame.map(Ok));
                }
                State::Done => return Poll::Ready(None),
            }
        }
    }
}

/// The next frame, and the session unless that was the last one.
async fn next(mut session: Session) -> (Option<Frame<Bytes>>, Option<Session>) {
    loop {
        session.ready().await;
        match session.take(usize::MAX) {
            None => {}
            Some(Step::Response(mut response)) => {
                let bytes = response.copy_to_bytes(response.remaining());
                session.sent(response.events, bytes.len());
                return (Some(Frame::data(bytes)), Some(session));
            }
            Some(Step::End(end)) => {
                let status = end.map_or_else(|failure| Status::from(&failure), |()| Status::ok(""));
                return (Some(Frame::trailers(trailers(&status))), None);
            }
        }
    }
}

/// The body of a request on an HTTP/2 connection.
pub(super) struct RequestBody(pub(super) h2::RecvStream);

impl Body for RequestBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match ready!(self.0.poll_data(context)) {
            Some(Ok(bytes)) => {
                // What was read makes room for more.
                self.0.flow_control().release_capacity(bytes.len())?;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => match ready!(self.0.poll_trailers(context)) {
                Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Ok(None) => Poll::Ready(None),
                Err(error) => Poll::Ready(Some(Err(error))),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

/// A request's body that has to come within a time: services wait for their messages for ever.
pub(super) struct Patient<B> {
    body: B,
    timeout: Duration,
    /// Made when the body is first waited for: most have come with their headers.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<B> Patient<B> {
    pub(super) fn new(body: B, timeout: Duration) -> Self {
        Self {
            body,
            timeout,
            deadline: None,
        }
    }
}

impl<B> Body for Patient<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(|e| Status::from_error(e.into()))));
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
