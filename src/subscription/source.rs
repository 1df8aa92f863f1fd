//! Owns what a session asks of where its events come from. A client that keeps its own place reads
//! the log behind a cursor ([`CursorSource`](super::cursor::CursorSource)). A source that keeps the
//! place for its clients would be another implementation.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;

use super::{failure::Failure, response::Response};
use crate::event::{Cursor, Sequence};

/// What a session has to say besides events: its notices, and after them and the events its end.
#[derive(Default)]
pub(crate) struct Outbox {
    /// Each as the encoded field of a response.
    pub(super) notices: VecDeque<Vec<u8>>,
    pub(super) end: Option<Result<(), Failure>>,
}

impl Outbox {
    /// Whether nothing is to be said.
    pub(super) fn is_empty(&self) -> bool {
        self.notices.is_empty() && self.end.is_none()
    }
}

/// What one step of a source led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    /// There is something to take: events, a notice, or the end.
    Ready,
    /// Further, without finding anything: step again.
    On,
    /// [`Source::read`] has to come next.
    Read,
    /// There is nothing more for now.
    Wait,
}

/// Where the events of one session come from, in order.
pub(crate) trait Source: Send {
    /// Goes one step towards the next events. Never waits.
    fn step(&mut self, outbox: &mut Outbox) -> Moved;

    /// Reads what a step asked for. Returns false if there was nothing after all.
    fn read(&mut self, outbox: &mut Outbox) -> impl Future<Output = bool> + Send;

    /// Resolves when a step may find something new. Dropping the future loses nothing.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;

    /// How long it may be until a step finds something without a change.
    fn changes_within(&self) -> Option<Duration>;

    /// Whether it has come to the newest event, and not fallen behind since.
    fn is_live(&self) -> bool;

    /// Whether events are at hand.
    fn has_events(&self) -> bool;

    /// The fewest bytes that a response with them can have; 0 without events.
    fn response_bytes_min(&self) -> usize;

    /// A response of at most `bytes_max`, unless a single event is larger, with the events at hand
    /// and those that follow without waiting.
    fn take(&mut self, bytes_max: usize, outbox: &mut Outbox) -> Response;

    /// A response with a notice.
    fn notify(&mut self, notice: &[u8]) -> Response;

    /// A notice of how far it is.
    fn progress(&self) -> Vec<u8>;

    /// What was taken last was sent whole.
    fn sent(&mut self);

    /// Lets go of all blocks. What was at hand is found again.
    fn park(&mut self);

    /// An event that was taken before, as it was in its response.
    fn event(&mut self, sequence: Sequence) -> impl Future<Output = Result<Bytes, Failure>> + Send;

    /// Every event up to here was taken or is none of the session's.
    fn position(&self) -> Sequence;

    /// Where a client resumes that got everything that was taken.
    fn cursor(&mut self) -> Cursor;

    /// Where a client resumes that got only what was sent whole.
    fn sent_cursor(&mut self) -> Cursor;
}
