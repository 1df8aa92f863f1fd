//! Owns what a call is bound by beside its credential: the slot that it holds, and its deadline. Ends a
//! call that loses its slot or whose deadline passes, before it is answered and afterwards. Knows
//! nothing of what the call does.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use super::{
    resources::{Refused, Resources},
    status::{Failure, trailers},
};
use crate::{
    http2::{Caller, NoSlot},
    net::slots::Slot,
    subscription,
};

/// When a call ends, whatever has become of it; an extension of its request.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Deadline(pub(super) Option<Instant>);

impl Deadline {
    /// Resolves when it has passed.
    pub(super) async fn passed(self) -> Failure {
        match self.0 {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
        Failure::Stream(subscription::Failure::DeadlineExceeded { cursor: None })
    }
}

/// What ends a call early.
pub(super) struct Bounds {
    pub(super) slot: Option<Slot>,
    pub(super) deadline: Deadline,
}

impl Bounds {
    /// Does some work, until the call has to end.
    ///
    /// # Errors
    /// Why it had to.
    pub(super) async fn within<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::select! {
            biased;
            failure = self.over() => Err(failure),
            done = work => Ok(done),
        }
    }

    /// Resolves when the call has to end.
    fn over(&self) -> impl Future<Output = Failure> + Send + use<> {
        let evicted = self.slot.as_ref().map(Slot::evicted);
        let deadline = self.deadline;
        async move {
            let evicted = async {
                match evicted {
                    Some(evicted) => evicted.await,
                    None => std::future::pending().await,
                }
                Failure::NoSlot(NoSlot::Evicted)
            };
            tokio::select! {
                biased;
                failure = evicted => failure,
                failure = deadline.passed() => failure,
            }
        }
    }
}

/// The body of an answer that is bound. Gives the slot back when it is dropped.
pub(super) struct Held<B> {
    body: B,
    _slot: Option<Slot>,
    over: BoxFuture<'static, Failure>,
    resources: Arc<Resources>,
    caller: Option<Caller>,
    is_over: bool,
}

impl<B> Held<B> {
    pub(super) fn new(
        body: B,
        bounds: Bounds,
        resources: Arc<Resources>,
        caller: Option<Caller>,
    ) -> Self {
        Self {
            body,
            over: Box::pin(bounds.over()),
            _slot: bounds.slot,
            resources,
            caller,
            is_over: false,
        }
    }
}

impl<B: Body + Unpin> Body for Held<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(failure) = self.over.as_mut().poll(context) {
            self.is_over = true;
            self.resources
                .refused(Refused::Call, self.caller.as_ref(), &failure);
            let trailers = trailers(&Status::from(&failure));
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
