//! Owns the passing over the frames of a segment whatever became of them: which events have a frame
//! that can be found, and which have none. Where a frame should be and is not, the next whole header is
//! looked for. Knows nothing of commits, and does not look at blocks.

use std::io;

use super::{frame::Header, frames::Frames, segments::Place};
use crate::Damaged;
use prelude_bridge_event::Sequence;

/// The events of a segment that are still to come, and where its frames end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    pub(super) next: Sequence,
    pub(super) through: Sequence,
    pub(super) end: u64,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A frame, of which the header is whole. It is to be [passed](Walk::pass).
    Frame(Header),
    /// Events without a frame, and the bytes where their frames should be.
    Damaged(Damaged, (u64, u64)),
}

impl Walk {
    /// From a place to the end of its segment.
    pub(super) fn new(place: &Place) -> Self {
        Self {
            next: place.sequence,
            through: place.through,
            end: place.end,
        }
    }

    /// Finds what comes next; `None` after the last event.
    pub(super) fn step(&mut self, frames: &mut Frames) -> io::Result<Option<Step>> {
        let Self { next, through, end } = *self;
        if next > through {
            return Ok(None);
        }
        let from = frames.offset();
        let fits = |at: u64, header: &Header| {
            let is_expected = header.first_sequence >= next && header.last_sequence() <= through;
            is_expected && at.saturating_add(header.frame_bytes()) <= end
        };
        let here = frames.header()?;
        let here = here.filter(|header| header.first_sequence == next && fits(from, header));
        if let Some(header) = here {
            return Ok(Some(Step::Frame(header)));
        }
        let found = frames.find(from, end, fits)?;
        let (to, header) = found.map_or((end, None), |(at, header)| (at, Some(header)));
        frames.go_to(to);
        match header {
            // Bytes that belong to no event.
            Some(header) if header.first_sequence == next => Ok(Some(Step::Frame(header))),
            header => {
                let last = header.map_or(through, |header| header.first_sequence.before());
                self.next = last.plus(1);
                let events = Damaged { first: next, last };
                Ok(Some(Step::Damaged(events, (from, to))))
            }
        }
    }

    /// Goes on behind a frame.
    pub(super) fn pass(&mut self, frames: &mut Frames, header: &Header) {
        frames.skip(header);
        self.next = header.last_sequence().plus(1);
    }
}
