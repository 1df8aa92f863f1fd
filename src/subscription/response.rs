//! Owns how responses are put together from bytes that were encoded long before: long runs of
//! events are shared slices of their block, short ones are copied side by side.

use std::{collections::VecDeque, io::IoSlice, ops::Range};

use bytes::{Buf, Bytes};

use crate::{
    event::{Cursor, Sequence},
    log::block::View,
    wire::{self, RESPONSE_HEAD_BYTES},
};

/// A slice of its own costs a reference count, an entry in the vector of a write, and a detour of
/// the CPU's prefetcher; a copy costs its length. Below this many bytes the copy is cheaper.
const SHARED_BYTES_MIN: usize = 4_096;

/// A slice keeps all of its block in memory. What is a smaller part of its block than one of this many
/// is copied, so that a filter does not keep large blocks in memory with a few events of each.
const SHARED_PART: usize = 2;

/// A whole gRPC message with a `SubscribeResponse`, ready to be sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Response {
    parts: VecDeque<Bytes>,
    remaining: usize,
    /// How much of blocks it keeps in memory besides what is to be sent, in bytes.
    kept_bytes: usize,
    /// How many events it carries.
    pub(crate) events: usize,
    /// The first of them.
    pub(super) first: Option<Sequence>,
}

impl Response {
    /// The length of a response with events of this length.
    #[must_use]
    pub(super) fn bytes(events_bytes: usize) -> usize {
        RESPONSE_HEAD_BYTES + events_bytes
    }

    /// The length of a response with an encoded notice of this length.
    #[must_use]
    pub(super) fn notice_bytes(cursor: Cursor, notice_bytes: usize) -> usize {
        wire::response_head_bytes(cursor) + notice_bytes
    }

    /// A response with a notice and no events.
    #[must_use]
    pub(super) fn of_notice(cursor: Cursor, notice: &[u8]) -> Self {
        let mut message = Vec::new();
        wire::put_response_head(&mut message, cursor, notice.len());
        message.extend_from_slice(notice);
        Bytes::from(message).into()
    }

    /// Puts bytes at its end.
    pub(super) fn push(&mut self, bytes: Bytes) {
        self.remaining += bytes.len();
        self.parts.push_back(bytes);
    }

    /// How much memory it takes, in bytes: what is to be sent, and its part of the blocks that it is
    /// in.
    #[must_use]
    pub(crate) fn memory_bytes(&self) -> usize {
        self.remaining + self.kept_bytes
    }

    /// Moves it into memory of its own, which lets go of all blocks.
    pub(crate) fn compact(&mut self) {
        self.kept_bytes = 0;
        let bytes = self.copy_to_bytes(self.remaining);
        self.push(bytes);
    }

    /// The shared slices that it consists of.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &Bytes> {
        self.parts.iter()
    }

    /// The first `bytes` as a response of their own; the rest stays.
    #[must_use]
    pub(super) fn split_to(&mut self, bytes: usize) -> Self {
        let mut front = Self::default();
        if self.remaining > 0 {
            let part = bytes.min(self.remaining);
            front.kept_bytes = self.kept_bytes.saturating_mul(part) / self.remaining;
            self.kept_bytes -= front.kept_bytes;
        }
        while front.remaining < bytes
            && let Some(mut part) = self.parts.pop_front()
        {
            let wanted = bytes - front.remaining;
            if part.len() > wanted {
                let rest = part.split_off(wanted);
                self.parts.push_front(rest);
            }
            self.remaining -= part.len();
            front.remaining += part.len();
            front.parts.push_back(part);
        }
        front
    }
}

/// Lets a connection write all parts with one system call.
impl Buf for Response {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.parts.front().map_or(&[], |part| part)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let filled = slices.iter_mut().zip(&self.parts);
        filled
            .map(|(slice, part)| *slice = IoSlice::new(part))
            .count()
    }

    #[expect(clippy::panic, reason = "the contract of Buf::advance")]
    fn advance(&mut self, mut count: usize) {
        if count > self.remaining {
            panic!("advanced past the end of a response");
        }
        self.remaining -= count;
        while let Some(part) = self.parts.front_mut() {
            if count < part.len() {
                part.advance(count);
                break;
            }
            count -= part.len();
            self.parts.pop_front();
        }
    }
}

impl From<Bytes> for Response {
    fn from(bytes: Bytes) -> Self {
        Self {
            remaining: bytes.len(),
            parts: VecDeque::from([bytes]),
            ..Self::default()
        }
    }
}

/// Collects the events of a response.
pub(super) struct Writer {
    bytes_left: usize,
    /// Begins with room for the head, whose contents are known last.
    copied: Vec<u8>,
    /// Where in `copied` each shared part belongs.
    shared: Vec<(usize, Bytes)>,
    kept_bytes: usize,
    events_bytes: usize,
    events: usize,
    full: bool,
}

impl Writer {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_left: bytes_max.saturating_sub(RESPONSE_HEAD_BYTES),
            copied: Vec::new(),
            shared: Vec::new(),
            kept_bytes: 0,
            events_bytes: 0,
            events: 0,
            full: false,
        }
    }

    /// Whether something did not fit.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    /// Adds as much of a run as there is room for, but at least one event to an empty response.
    /// Returns the index after the last event that was added.
    pub(super) fn push(&mut self, view: &View, run: Range<usize>) -> usize {
        let mut end = view.fitting_end(run.start, self.bytes_left).min(run.end);
        self.full |= end < run.end;
        if self.events == 0 {
            end = end.max(run.start + 1);
        }
        if end == run.start {
            return end;
        }
        let bytes = view.slice_bytes(run.start..end);
        self.bytes_left = self.bytes_left.saturating_sub(bytes);
        self.events_bytes += bytes;
        self.events += end - run.start;
        let is_copied = bytes < SHARED_BYTES_MIN.max(view.bytes() / SHARED_PART);
        if self.copied.is_empty() {
            self.begin(if is_copied { bytes } else { 0 });
        }
        if is_copied {
            self.copied.extend_from_slice(view.as_slice(run.start..end));
        } else {
            let shared = view.slice(run.start..end);
            self.kept_bytes += view.held_bytes(bytes).saturating_sub(bytes);
            self.shared.push((self.copied.len(), shared));
        }
        end
    }

    /// Makes room for the head and the first events.
    fn begin(&mut self, copied_bytes: usize) {
        self.copied
            .reserve_exact(RESPONSE_HEAD_BYTES + copied_bytes);
        self.copied.resize(RESPONSE_HEAD_BYTES, 0);
    }

    /// A response with the events. Its cursor is behind them, so it has no time.
    pub(super) fn finish(mut self, cursor: Cursor) -> Response {
        if self.copied.is_empty() {
            self.begin(0);
        }
        if let Some(mut place) = self.copied.get_mut(..RESPONSE_HEAD_BYTES) {
            let cursor = Cursor {
                not_before: None,
                ..cursor
            };
            wire::put_response_head(&mut place, cursor, self.events_bytes);
        }
        let mut copied = Bytes::from(self.copied);
        let mut parts = VecDeque::with_capacity(1 + 2 * self.shared.len());
        let mut cut = 0;
        for (at, shared) in self.shared {
            if at > cut {
                parts.push_back(copied.split_to(at - cut));
                cut = at;
            }
            parts.push_back(shared);
        }
        if !copied.is_empty() {
            parts.push_back(copied);
        }
        Response {
            parts,
            remaining: RESPONSE_HEAD_BYTES + self.events_bytes,
            kept_bytes: self.kept_bytes,
            events: self.events,
            ..Response::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::{
        event::testing as fixtures,
        event::{Epoch, LogId, Sequence},
        log::Format,
        proto::SubscribeResponse,
    };

    const CURSOR: Cursor = Cursor {
        log: LogId(1),
        epoch: Epoch(1),
        sequence: Sequence(9),
        not_before: None,
    };

    fn decode(mut response: Response) -> SubscribeResponse {
        let mut bytes = response.copy_to_bytes(response.remaining());
        assert_eq!(bytes.get_u8(), 0);
        assert_eq!(bytes.get_u32() as usize, bytes.len());
        SubscribeResponse::decode(bytes).unwrap()
    }

    #[test]
    fn short_and_long_runs_mix_in_order() {
        let small = fixtures::block(Sequence(1), 3);
        let large = fixtures::block(Sequence(4), 200);
        let mut writer = Writer::new(usize::MAX);
        assert_eq!(writer.push(small.view(Format::Typed), 0..3), 3);
        assert_eq!(writer.push(large.view(Format::Typed), 0..150), 150);
        assert_eq!(writer.push(large.view(Format::Typed), 160..161), 161);
        assert_eq!(writer.push(large.view(Format::Typed), 161..200), 200);
        let response = writer.finish(CURSOR);
        assert!(response.parts.len() > 2, "long runs are shared");
        let decoded = decode(response.clone());
        let sequences: Vec<u64> = decoded.events.iter().map(|event| event.sequence).collect();
        let expected: Vec<u64> = (1..=3).chain(4..154).chain(164..204).collect();
        assert_eq!(sequences, expected);
        assert_eq!(decoded.cursor, CURSOR.to_string());

        let mut rest = response.clone();
        let mut joined = Vec::new();
        for bytes in [1, 34, 1_000, 9_000, usize::MAX] {
            let mut front = rest.split_to(bytes);
            assert!(front.remaining() <= bytes);
            joined.extend_from_slice(&front.copy_to_bytes(front.remaining()));
        }
        let mut whole = response;
        assert_eq!(joined, whole.copy_to_bytes(whole.remaining()));
    }

    #[test]
    fn each_piece_has_its_part_of_what_is_kept_however_little_that_is() {
        let mut rest = Response::from(Bytes::from(vec![0; 1_000]));
        rest.kept_bytes = 900;
        let half = rest.split_to(500);
        assert_eq!((half.memory_bytes(), rest.memory_bytes()), (950, 950));
        let tenth = rest.split_to(50);
        assert_eq!((tenth.memory_bytes(), rest.memory_bytes()), (95, 855));
    }

    #[test]
    fn a_response_keeps_to_its_budget_but_carries_at_least_one_event() {
        let block = fixtures::block(Sequence(1), 10);
        let view = block.view(Format::Typed);
        let mut writer = Writer::new(0);
        assert_eq!(writer.push(view, 0..10), 1);
        assert_eq!(writer.push(view, 1..10), 1);
        let budget = Response::bytes(view.slice_bytes(0..4));
        let mut writer = Writer::new(budget);
        assert_eq!(writer.push(view, 0..10), 4);
        assert_eq!(writer.finish(CURSOR).remaining(), budget);
    }
}
