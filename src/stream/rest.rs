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
        self.loaded.split_to(bytes_max)
    }
}
