//! Owns what a call is bound by beside its credential: the slot that it holds, and its deadline. Ends a
//! call that loses its slot or whose deadline passes, before it is answered and afterwards. Knows
//! nothing of what the call does.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;
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
            Some(at) => subscription::passed(at).await,
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

    /// Resolves when the answer has to end, which is then counted as refused.
    pub(super) fn ending(&self, resources: &Arc<Resources>, caller: Option<&Caller>) -> Over {
        let (over, resources, caller) = (self.over(), Arc::clone(resources), caller.cloned());
        Box::pin(async move {
            let failure = over.await;
            resources.refused(Refused::Call, caller.as_ref(), &failure);
            trailers(&Status::from(&failure))
        })
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

/// Resolves when an answer has to end, with the trailers to end it with.
pub(super) type Over = BoxFuture<'static, HeaderMap>;

/// A response's extension: what ends it while its body waits for room and is not polled.
#[derive(Clone)]
pub(super) struct Ending(Arc<Mutex<Option<Over>>>);

impl Ending {
    pub(super) fn new(over: Over) -> Self {
        Self(Arc::new(Mutex::new(Some(over))))
    }

    pub(super) fn take(&self) -> Option<Over> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The body of an answer that is bound. Gives the slot back when it is dropped.
pub(super) struct Held<B> {
    body: B,
    _slot: Option<Slot>,
    over: Over,
    is_over: bool,
}

impl<B> Held<B> {
    pub(super) fn new(body: B, slot: Option<Slot>, over: Over) -> Self {
        Self {
            body,
            _slot: slot,
            over,
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
        if let Poll::Ready(trailers) = self.over.as_mut().poll(context) {
            self.is_over = true;
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_has_passed_waits_for_no_timer() {
        let now = Instant::now();
        assert!(Deadline(Some(now)).passed().now_or_never().is_some());
        let soon = Deadline(Some(now + Duration::from_micros(1))).passed();
        assert!(soon.now_or_never().is_none());
        assert!(Deadline(None).passed().now_or_never().is_none());
        let bounds = Bounds {
            slot: None,
            deadline: Deadline(Some(now)),
        };
        assert!(bounds.within(async {}).await.is_err());
    }
}
