//! Owns the unsent rest of a response that is larger than its client's room. While the client is
//! slow the rest is not kept in memory: it is read from the log again, from where it was left.
//! Knows nothing of where an event comes from.

use bytes::{Buf as _, Bytes};
use tokio::time::Instant;

use super::response::Response;
use crate::event::Sequence;

/// How much of a response a slow client keeps in memory, in bytes. With ten thousand streams this is
/// 40 MiB. Each time that it is used up, the event is read again, so less would cost more reads.
const PARKED_BYTES_MAX: usize = 4_096;

/// What is still to be sent of a response.
#[derive(Debug)]
pub(super) struct Rest {
    /// What is in memory: the beginning of the rest.
    loaded: Response,
    /// How many bytes come after that.
    unloaded_bytes: usize,
    /// The event that these can be read from: they are its last bytes.
    event: Option<Sequence>,
    loaded_at: Instant,
    /// What is loaded is a copy.
    is_parked: bool,
    /// The client has been slow with this response. From then on a block is held only while a piece
    /// is taken of it: otherwise a client that takes a little each second would always hold one.
    is_slow: bool,
}

impl Rest {
    /// All of a response with one event or a notice.
    pub(super) fn new(response: Response) -> Self {
        Self {
            event: response.first.filter(|_| response.events == 1),
            loaded: response,
            unloaded_bytes: 0,
            loaded_at: Instant::now(),
            is_parked: false,
            is_slow: false,
        }
    }

    /// Its length in bytes.
    #[must_use]
    pub(super) fn remaining(&self) -> usize {
        self.loaded.remaining() + self.unloaded_bytes
    }

    /// Since when it holds the bytes that it holds.
    #[must_use]
    pub(super) fn loaded_at(&self) -> Instant {
        self.loaded_at
    }

    /// Lets go of the block, and keeps a copy of what comes next. A notice has memory of its own.
    pub(super) fn park(&mut self) {
        if self.is_parked || self.event.is_none() {
            return;
        }
        let count = self.loaded.remaining().min(PARKED_BYTES_MAX);
        let kept = self.loaded.split_to(count).copy_to_bytes(count);
        self.unloaded_bytes += self.loaded.remaining();
        self.loaded = kept.into();
        self.is_parked = true;
        self.is_slow = true;
    }

    /// The event that has to be read before the next piece can be given.
    #[must_use]
    pub(super) fn unloaded(&self) -> Option<Sequence> {
        let is_empty = self.loaded.remaining() == 0 && self.unloaded_bytes > 0;
        self.event.filter(|_| is_empty)
    }

    /// Takes the event's bytes. Returns false if they are too few.
    #[must_use]
    pub(super) fn load(&mut self, mut event: Bytes) -> bool {
        let Some(skipped) = event.len().checked_sub(self.unloaded_bytes) else {
            return false;
        };
        event.advance(skipped);
        self.loaded.push(event);
        self.unloaded_bytes = 0;
        self.loaded_at = Instant::now();
        self.is_parked = false;
        true
    }

    /// The next piece, of at most `bytes_max` and no more than what is in memory.
    #[must_use]
    pub(super) fn split_to(&mut self, bytes_max: usize) -> Response {
        let mut piece = self.loaded.split_to(bytes_max);
        if self.is_slow {
            // The connection may hold the piece for long as well.
            piece.compact();
            self.park();
        }
        piece
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: Sequence = Sequence(7);

    fn bytes(count: usize) -> Bytes {
        (0..count).map(|at| (at % 251) as u8).collect()
    }

    /// A response with one event of a block that others hold as well.
    fn response(head: &Bytes, event: &Bytes) -> Response {
        let mut response = Response::from(head.clone());
        response.push(event.clone());
        response.events = 1;
        response.first = Some(EVENT);
        response
    }

    fn take(rest: &mut Rest, bytes_max: usize) -> Bytes {
        let mut piece = rest.split_to(bytes_max);
        assert!(piece.remaining() <= bytes_max);
        piece.copy_to_bytes(piece.remaining())
    }

    #[test]
    fn a_parked_rest_holds_no_block_and_goes_on_where_it_was_left() {
        let (head, event) = (bytes(35), bytes(20_000));
        let whole = [&head[..], &event[..]].concat();
        for cut in [1, 34, 35, 36, 5_000, 10_000, 19_999, 20_034] {
            let mut rest = Rest::new(response(&head, &event));
            let mut got = take(&mut rest, cut).to_vec();
            rest.park();
            rest.park();
            assert!(event.is_unique() && head.is_unique(), "cut at {cut}");
            assert!(rest.loaded.remaining() <= PARKED_BYTES_MAX);
            assert_eq!(rest.remaining(), whole.len() - cut);
            while rest.remaining() > 0 {
                if rest.unloaded() == Some(EVENT) {
                    assert!(rest.load(event.clone()));
                }
                got.extend_from_slice(&take(&mut rest, 3_000));
                assert!(event.is_unique(), "cut at {cut}");
            }
            assert!(got == whole, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_read_again_must_be_as_long_as_it_was() {
        let (head, event) = (bytes(35), bytes(20_000));
        let mut rest = Rest::new(response(&head, &event));
        rest.park();
        let kept = take(&mut rest, usize::MAX);
        assert_eq!(kept.len(), PARKED_BYTES_MAX);
        assert!(!rest.load(event.slice(..10_000)));
        assert!(rest.load(event));
    }

    #[test]
    fn a_notice_is_never_read_again() {
        let notice = bytes(PARKED_BYTES_MAX + 100);
        let mut rest = Rest::new(notice.clone().into());
        rest.park();
        assert_eq!(rest.unloaded(), None);
        assert_eq!(take(&mut rest, usize::MAX), notice);
    }
}
