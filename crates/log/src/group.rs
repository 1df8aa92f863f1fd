//! Owns what all implementations of the log do alike when they commit: numbering events, laying
//! them out as blocks, and stamping them with a time that never goes back. Stores nothing.

use std::sync::Arc;

use super::block::{Block, Builder};
use prelude_bridge_event::{Batch, Draft, LogId, Sequence, Term, UnixMicros};

/// Stamps blocks: the time of the clock, or the last stamp where the clock went back, so that a
/// place can be found by its time.
pub(super) struct Stamps {
    last: UnixMicros,
}

impl Stamps {
    /// Goes on after the last stamp of a log.
    pub(super) fn new(last: UnixMicros) -> Self {
        Self { last }
    }

    /// The stamp for what is committed now.
    pub(super) fn next(&self, now: UnixMicros) -> UnixMicros {
        self.last.max(now)
    }

    /// A commit got this stamp. A time at which nothing was committed leaves no trace.
    pub(super) fn used(&mut self, stamp: UnixMicros) {
        self.last = self.last.max(stamp);
    }
}

/// Where in a log a commit begins.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) log: LogId,
    pub(super) term: Term,
    pub(super) first_sequence: Sequence,
    pub(super) received_at: UnixMicros,
}

/// Lays events out as blocks, in order; none where there are no events.
pub(super) fn lay_out<'a>(
    place: Place,
    events: impl Iterator<Item = (&'a Batch, &'a Draft)>,
) -> Vec<Arc<Block>> {
    lay_out_with(&mut new_builder(), place, events)
}

/// The same in the memory of another time: fresh memory costs as much as what is written to it.
pub(super) fn lay_out_with<'a>(
    builder: &mut Builder,
    place: Place,
    events: impl Iterator<Item = (&'a Batch, &'a Draft)>,
) -> Vec<Arc<Block>> {
    let mut blocks = Vec::new();
    builder.begin(
        place.log,
        place.term,
        place.first_sequence,
        place.received_at,
    );
    for (batch, draft) in events {
        builder.push(batch, draft);
        if builder.is_full() {
            blocks.extend(builder.finish().map(Arc::new));
        }
    }
    blocks.extend(builder.finish().map(Arc::new));
    blocks
}

/// For [`lay_out_with`].
pub(super) fn new_builder() -> Builder {
    Builder::new(LogId(0), Term(0), Sequence(1), UnixMicros(0))
}

/// A random identity for a new log.
pub(super) fn new_log_id() -> Result<LogId, getrandom::Error> {
    getrandom::u64().map(LogId)
}

/// A random identity for one run of a writer; never 0, which is the place before the first event.
pub(super) fn new_term() -> Result<Term, getrandom::Error> {
    getrandom::u32().map(|term| Term(term.max(1)))
}
