//! Owns the decision which events are too old or too many, and when a segment is so old that nothing is
//! to be added to it. By age they go to the event; by size a segment at a time, as that is what gives
//! room back. Removes nothing itself, and knows no clock: which events are too old is told.

use std::time::Duration;

use super::{
    readers::{self, Fault},
    segments::Segments,
};
use crate::{Range, clock::RetentionNow, clock::RetentionTime};
use prelude_bridge_event::{Sequence, UnixMicros};

const HOUR: i64 = 60 * 60 * 1_000_000;
/// A segment gets no commits for longer than this: its file goes when the last of its events is too
/// old, and the first of them has to be off the disk within a day. 18 hours: with the four by which
/// events may be removed late, and some minutes.
const SPAN_MICROS_MAX: i64 = 18 * HOUR;
/// Where events are kept briefly, a segment has no more than this part of their age.
const SPANS: i64 = 4;
/// What a start took out of the log is kept for so long, unless events are kept for less. Two weeks:
/// for somebody to come back from holidays.
const QUARANTINE_MICROS_MAX: i64 = 14 * 24 * HOUR;

pub(super) struct Retention {
    bytes_max: u64,
    age_micros: i64,
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
    pub(super) fn new(bytes_max: u64, age_max: Duration) -> Self {
        Self {
            bytes_max,
            age_micros: i64::try_from(age_max.as_micros()).unwrap_or(i64::MAX),
        }
    }

    /// Whether a segment that has commits since then is to get no more.
    pub(super) fn is_span_over(&self, now: &RetentionNow, began: RetentionTime) -> bool {
        now.age_of(began) >= (self.age_micros / SPANS).min(SPAN_MICROS_MAX)
    }

    /// For how many microseconds the quarantine keeps a file.
    pub(super) fn quarantine_micros(&self) -> i64 {
        self.age_micros.min(QUARANTINE_MICROS_MAX)
    }

    /// The last event that is to go from a sequence which several replicas follow: the events up to `expired` are
    /// too old, and the segment with the number `active` is written to.
    pub(super) fn through(
        &self,
        segments: &Segments,
        range: &Range,
        active: u64,
        expired: Option<Sequence>,
    ) -> Option<Sequence> {
        let expired = expired.map(|through| through.min(range.head));
        let excess = segments.excess(self.bytes_max, active);
        let through = expired.max(excess);
        through.filter(|&through| through >= range.earliest)
    }

    /// What is to go now. The events up to `expired` are too old, and the segment with the number
    /// `active` is written to. Fails for want of a file descriptor only.
    pub(super) fn due(
        &self,
        segments: &Segments,
        range: &Range,
        active: u64,
        expired: Option<Sequence>,
    ) -> Result<Option<Due>, Fault> {
        let Some(earliest_at) = range.earliest_at else {
            return Ok(None);
        };
        if let Some(through) = expired.filter(|&through| through >= range.earliest) {
            let through = through.min(range.head);
            // What is left was received no earlier than what goes.
            let earliest_at = Some(earliest_at);
            let due = Due {
                through,
                earliest_at,
            };
            return due.exact(segments, range).map(Some);
        }
        if segments.bytes() <= self.bytes_max {
            return Ok(None);
        }
        // The segment that is written to stays, whatever its size.
        let Some(segment) = segments.oldest_before(active) else {
            return Ok(None);
        };
        whole_segment(segment).exact(segments, range).map(Some)
    }
}

impl Due {
    /// The same with the time of the oldest event that stays. Neither damage nor a disk that cannot be read
    /// keeps anything: then it is as it was.
    pub(super) fn exact(self, segments: &Segments, range: &Range) -> Result<Self, Fault> {
        match readers::time_after(segments, range.head, self.through) {
            Ok(earliest_at) => Ok(Self {
                earliest_at,
                ..self
            }),
            Err(fault) if fault.is_no_descriptor() => Err(fault),
            Err(_) => Ok(self),
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

#[cfg(test)]
mod tests {
    use crate::embedded::segments::{self, Mark, Segment};
    use prelude_bridge_event::{Epoch, LogId};

    use super::*;

    const DAY: u64 = 24 * 3_600;

    #[test]
    fn a_segment_gets_commits_for_a_part_of_the_age_and_never_for_a_day() {
        for (days, hours) in [(1, 6), (2, 12), (3, 18), (4, 18), (36_500, 18)] {
            let retention = Retention::new(1, Duration::from_secs(days * DAY));
            let began = RetentionTime(5);
            let is_over = |micros| retention.is_span_over(&RetentionNow::at(micros), began);
            let span = hours * HOUR;
            assert!(!is_over(span + 4), "{days}");
            assert!(is_over(span + 5), "{days}");
        }
        let unlimited = Retention::new(1, Duration::MAX);
        assert!(!unlimited.is_span_over(&RetentionNow::at(SPAN_MICROS_MAX - 1), RetentionTime(0)));
    }

    fn segment(ordinal: u64) -> Segment {
        let at = UnixMicros(i64::try_from(ordinal).unwrap());
        Segment {
            ordinal,
            first_sequence: Sequence(ordinal),
            last_sequence: Sequence(ordinal),
            last_at: at,
            end: 1_000,
            marks: vec![Mark {
                sequence: Sequence(ordinal),
                at,
                offset: 32,
            }],
            epochs: vec![(Sequence(ordinal), Epoch(1))],
        }
    }

    #[test]
    fn a_segment_that_cannot_be_read_keeps_nothing() {
        let dir = tempfile::tempdir().unwrap();
        // To read a directory fails, as on a disk that is failing.
        std::fs::create_dir(segments::path(dir.path(), 2)).unwrap();
        let segments = Segments::new(dir.path(), LogId(1), [segment(1), segment(2)].into());
        let range = Range {
            earliest: Sequence(1),
            earliest_at: Some(UnixMicros(1)),
            head: Sequence(2),
            head_at: Some(UnixMicros(2)),
        };
        let fault = readers::time_after(&segments, range.head, Sequence(1));
        assert!(matches!(fault, Err(Fault::Io(_))));
        for (bytes_max, expired) in [(u64::MAX, Some(Sequence(1))), (0, None)] {
            let retention = Retention::new(bytes_max, Duration::MAX);
            let due = retention.due(&segments, &range, 2, expired).unwrap();
            let earliest_at = Some(UnixMicros(1));
            let through = Sequence(1);
            assert_eq!(
                due,
                Some(Due {
                    through,
                    earliest_at
                })
            );
        }
    }

    #[test]
    fn the_quarantine_keeps_files_for_two_weeks_and_never_longer_than_events() {
        let days = |days| Retention::new(1, Duration::from_secs(days * DAY)).quarantine_micros();
        assert_eq!((days(3), days(14)), (72 * HOUR, 14 * 24 * HOUR));
        assert_eq!(days(30), 14 * 24 * HOUR);
    }
}
