//! Owns the body of a call that has a slot: what is sent as long as the call keeps it, and the status
//! when another call takes it. Knows nothing of what the call does.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http_body::{Body, Frame, SizeHint};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::Status;

use super::{
    resources::{Refused, Resources},
    status::{Failure, trailers},
};
use crate::{
    http2::{Caller, NoSlot},
    net::slots::Slot,
};

/// The body of an answer, with the slot of its call: given back with the body, and the end of the
/// body when somebody else takes it.
pub(super) struct Held<B> {
    body: B,
    _slot: Slot,
    evicted: Pin<Box<WaitForCancellationFutureOwned>>,
    resources: Arc<Resources>,
    caller: Option<Caller>,
    is_over: bool,
}

impl<B> Held<B> {
    pub(super) fn new(
        body: B,
        slot: Slot,
        resources: Arc<Resources>,
        caller: Option<Caller>,
    ) -> Self {
        Self {
            body,
            evicted: Box::pin(slot.evicted()),
            _slot: slot,
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
        if self.evicted.as_mut().poll(context).is_ready() {
            self.is_over = true;
            let failure = Failure::NoSlot(NoSlot::Evicted);
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
