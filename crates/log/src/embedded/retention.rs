//! Owns the decision which events are too old or too many. By age they go to the event; by size a
//! segment at a time, as that is what gives room back. Removes nothing itself, and knows no clock:
//! which events are too old is told.

use super::{
    readers::{self, Fault},
    segments::Segments,
};
use crate::Range;
use prelude_bridge_event::{Sequence, UnixMicros};

pub(super) struct Retention {
    bytes_max: u64,
}

/// What is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    /// The newest event that goes.
    pub(super) through: Sequence,
    /// When the oldest event that stays was received; `None` when none stays.
    pub(super) earliest_at: Option<UnixMicros>,
}

impl Retention {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max }
    }

    /// What is to go now; the files of ids occupy `ids_bytes`, and the events up to `expired` are too
    /// old.
    pub(super) fn due(
        &self,
        segments: &Segments,
        range: &Range,
        ids_bytes: u64,
        expired: Option<Sequence>,
    ) -> Result<Option<Due>, Fault> {
        let Some(earliest_at) = range.earliest_at else {
            return Ok(None);
        };
        if let Some(through) = expired.filter(|&through| through >= range.earliest) {
            let through = through.min(range.head);
            let due = match readers::time_after(segments, range.head, through) {
                Ok(earliest_at) => Due {
                    through,
                    earliest_at,
                },
                // Damage keeps nothing: what is left was received no earlier than what goes.
                Err(Fault::Damaged(_)) => Due {
                    through,
                    earliest_at: Some(earliest_at),
                },
                Err(fault) => return Err(fault),
            };
            return Ok(Some(due));
        }
        if segments.bytes() + ids_bytes <= self.bytes_max {
            return Ok(None);
        }
        // The newest segment stays, whatever its size.
        let Some(segment) = segments.oldest_of_several() else {
            return Ok(None);
        };
        let due = whole_segment(segment);
        match readers::time_after(segments, range.head, due.through) {
            Ok(earliest_at) => Ok(Some(Due { earliest_at, ..due })),
            Err(Fault::Damaged(_)) => Ok(Some(due)),
            Err(fault) => Err(fault),
        }
    }
}

/// A segment that goes, when it is not known more exactly what comes after it.
fn whole_segment((through, through_at): (Sequence, UnixMicros)) -> Due {
    Due {
        through,
        earliest_at: Some(through_at),
    }
}
