//! Owns the patience with requests that are all wrapping and no content. A body in chunks (RFC 9112
//! section 7.1) may have a size in front of every byte, and sizes may have zeros in front of them
//! without end: a limit on the body never counts those. So every byte that is read costs, and what
//! comes out as body pays. Knows nothing of what the bytes are.

use std::{
    error::Error,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};

use super::tap::{Tap, Tapped};

/// What a byte of a body pays: itself, and the wrapping of one that is a chunk of its own, which is
/// five bytes, or a few more for who writes sizes with leading zeros.
const BYTES_PAID: u64 = 9;

/// What one connection has left. Clones share it.
#[derive(Clone, Debug)]
pub struct Framing {
    left: Arc<AtomicU64>,
    bytes_max: u64,
}

/// A request had more wrapping than it may.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("more than {bytes_max} bytes of the request are neither header nor body")]
pub struct Excess {
    /// The limit.
    pub bytes_max: u64,
}

impl Excess {
    /// Whether this is at the root of an error.
    #[must_use]
    pub fn caused(error: &(dyn Error + 'static)) -> bool {
        let mut cause = Some(error);
        while let Some(error) = cause {
            let inner = error.downcast_ref::<io::Error>();
            if inner.is_some_and(|error| error.get_ref().is_some_and(|inner| inner.is::<Self>())) {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

impl Framing {
    /// Lets each request have so many bytes that are not body: its header included.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        let bytes_max = bytes_max as u64;
        Self {
            left: Arc::new(AtomicU64::new(bytes_max)),
            bytes_max,
        }
    }

    /// The connection whose bytes cost.
    pub fn reading<S>(&self, stream: S) -> Tapped<S, Self> {
        Tapped::new(stream, self.clone())
    }

    /// The body of a request, whose bytes pay. It begins anew with each.
    pub fn paying<B>(&self, body: B) -> Paying<B> {
        self.left.store(self.bytes_max, Ordering::Relaxed);
        Paying {
            body,
            framing: self.clone(),
        }
    }

    fn pay(&self, bytes: usize) {
        let paid = (bytes as u64).saturating_mul(BYTES_PAID);
        // One task reads the connection and its bodies, so nobody comes between.
        let left = self.left.load(Ordering::Relaxed).saturating_add(paid);
        self.left.store(left.min(self.bytes_max), Ordering::Relaxed);
    }

    fn spend(&self, bytes: usize) -> io::Result<()> {
        let left = self.left.load(Ordering::Relaxed);
        let Some(left) = left.checked_sub(bytes as u64) else {
            let bytes_max = self.bytes_max;
            return Err(io::Error::other(Excess { bytes_max }));
        };
        self.left.store(left, Ordering::Relaxed);
        Ok(())
    }
}

impl Tap for Framing {
    fn read(&mut self, bytes: &[u8], _context: &mut Context<'_>) -> io::Result<()> {
        self.spend(bytes.len())
    }
}

/// A body whose bytes are counted.
pub struct Paying<B> {
    body: B,
    framing: Framing,
}

impl<B: Body + Unpin> Body for Paying<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.framing.pay(data.remaining());
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of a request with so many chunks of so many bytes, each after so much wrapping.
    fn request(
        framing: &Framing,
        chunks: usize,
        content: usize,
        wrapping: usize,
    ) -> io::Result<()> {
        drop(framing.paying(http_body_util::Empty::<bytes::Bytes>::new()));
        for _ in 0..chunks {
            framing.spend(wrapping + content)?;
            framing.pay(content);
        }
        Ok(())
    }

    #[test]
    fn chunks_of_one_byte_go_on_and_wrapping_without_content_does_not() {
        let framing = Framing::new(1_000);
        assert!(request(&framing, 10_000, 1, 5).is_ok());
        assert!(request(&framing, 10_000, 1, 8).is_ok());
        assert!(request(&framing, 10_000, 1, 20).is_err());
        assert!(request(&framing, 100, 0, 10).is_ok());
        assert!(request(&framing, 101, 0, 10).is_err());
    }

    #[test]
    fn what_one_request_paid_is_not_saved_for_the_next() {
        let framing = Framing::new(1_000);
        assert!(request(&framing, 1, 900, 0).is_ok());
        assert!(request(&framing, 101, 0, 10).is_err());
        // And a request that went over has nothing to do with the next.
        assert!(request(&framing, 100, 0, 10).is_ok());
    }

    #[test]
    fn the_cause_is_found_in_whatever_wraps_it() {
        let excess = Framing::new(1).spend(2).unwrap_err();
        assert!(Excess::caused(&excess));
        assert!(!Excess::caused(&io::Error::other("something else")));
    }
}
