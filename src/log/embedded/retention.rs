//! Owns the decision which events are too old or too many. By age they go to the event; by size a
//! segment at a time, as that is what gives room back. Removes nothing itself.

use std::time::Duration;

use super::{
    readers::{self, Fault},
    segments::Segments,
};
use crate::{
    event::{Sequence, UnixMicros},
    log::Range,
};

/// Events are removed when the oldest is over its age by this part of it: so not with each commit.
const SLACK_DIVISOR: i64 = 64;

pub(super) struct Retention {
    age_micros: i64,
    bytes_max: u64,
}

/// What is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    /// The newest event that goes, …
    pub(super) through: Sequence,
    /// … and a time at or before which it was received, and all that stays, after.
    pub(super) through_at: UnixMicros,
    /// When the oldest event that stays was received; `None` when none stays.
    pub(super) earliest_at: Option<UnixMicros>,
}

impl Retention {
    pub(super) fn new(age: Duration, bytes_max: u64) -> Self {
        Self {
            age_micros: i64::try_from(age.as_micros()).unwrap_or(i64::MAX),
            bytes_max,
        }
    }

    /// What is to go now; the index occupies `index_bytes`.
    pub(super) fn due(
        &self,
        segments: &Segments,
        range: &Range,
        index_bytes: u64,
        now: UnixMicros,
    ) -> Result<Option<Due>, Fault> {
        let (Some(earliest_at), Some(head_at)) = (range.earliest_at, range.head_at) else {
            return Ok(None);
        };
        let age_max = self
            .age_micros
            .saturating_add(self.age_micros / SLACK_DIVISOR);
        if now.0.saturating_sub(earliest_at.0) > age_max {
            let oldest = UnixMicros(now.0.saturating_sub(self.age_micros));
            return match readers::seek(segments, range.head, oldest) {
                Ok(Some((through, earliest_at))) => Ok(Some(Due {
                    through,
                    through_at: oldest.min(earliest_at),
                    earliest_at: Some(earliest_at),
                })),
                Ok(None) => Ok(Some(Due {
                    through: range.head,
                    through_at: head_at,
                    earliest_at: None,
                })),
                // What is damaged ends no log: it goes when its segment does.
                Err(Fault::Damaged(_)) => {
                    let segment = segments.oldest_of_several();
                    Ok(segment.filter(|&(_, at)| at < oldest).map(whole_segment))
                }
                Err(fault) => Err(fault),
            };
        }
        if segments.bytes() + index_bytes <= self.bytes_max {
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
        through_at,
        earliest_at: Some(through_at),
    }
}
