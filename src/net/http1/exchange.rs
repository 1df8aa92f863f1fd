//! Owns what the reader of a connection and its service tell each other.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use http::{HeaderValue, Request, Response, header};
use tokio_util::sync::CancellationToken;

use super::fault::Fault;
use crate::metrics::Closure;

/// What the service of a connection knows of its bytes.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    /// How many requests the service got.
    served: AtomicU64,
    /// Why a request is refused, and its number.
    fault: Mutex<Option<(u64, Fault)>>,
    closure: Mutex<Option<Closure>>,
    is_body_expected: AtomicBool,
    /// The client has closed its side, or the connection broke.
    pub(crate) closed: CancellationToken,
}

impl Exchange {
    /// Tells the service with the next request why that is to be refused, if it is.
    pub(crate) fn note_fault<B>(&self, request: &mut Request<B>) {
        let number = self.served.fetch_add(1, Ordering::Relaxed) + 1;
        let fault = *self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, fault)) = fault.filter(|(refused, _)| *refused == number) {
            request.extensions_mut().insert(fault);
        }
    }

    /// Lets an answer be the last one if a part of its request has not come yet: that would be taken for the
    /// next one.
    pub(crate) fn close_within_body<B>(&self, response: &mut Response<B>) {
        if self.is_body_expected() {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
    }

    /// What the connection was closed for.
    pub(crate) fn closure(&self) -> Option<Closure> {
        *self.closure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a part of the last request has not come yet.
    pub(super) fn is_body_expected(&self) -> bool {
        self.is_body_expected.load(Ordering::Acquire)
    }

    /// A malformed body ends the connection.
    pub(super) fn heed(&self, followed: Result<usize, Fault>) -> Result<usize, Fault> {
        followed.inspect_err(|_| self.close(Closure::Protocol))
    }

    /// The next request, which has this number, is the last one, and refused.
    pub(super) fn refuse(&self, request: u64, fault: Fault) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some((request, fault));
        self.close(match fault {
            Fault::HeaderTooSlow => Closure::Silent,
            _ => Closure::Protocol,
        });
        // More of it may come.
        self.expect_body(true);
    }

    /// Whether more of the last request is to come.
    pub(super) fn expect_body(&self, is_expected: bool) {
        self.is_body_expected.store(is_expected, Ordering::Release);
    }

    pub(super) fn close(&self, closure: Closure) {
        *self.closure.lock().unwrap_or_else(PoisonError::into_inner) = Some(closure);
    }
}
