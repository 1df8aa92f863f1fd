//! Owns how old the events of a log are: for some places in it, the time by the retention clock at
//! which what is before them had been written. What the events are stamped with does not matter, so
//! neither stamps from a wrong clock nor those that had to wait for the time of an earlier event
//! keep an event for longer, or remove it too early.

use std::{collections::VecDeque, time::Duration};

use super::{HOUR, RetentionNow, RetentionTime};
use prelude_bridge_event::Sequence;

/// Events are told apart by this part of the age at which they are removed: so they are removed by
/// that part too late at most, and not with each commit; …
const SLOTS: i64 = 64;
/// … by no more than this, as what is removed has to be off the disk within a day, …
const SLOT_MICROS_MAX: i64 = 4 * HOUR;
/// … unless that makes more slots than this: a year of them takes 35 KB.
const SLOTS_MAX: i64 = 2_200;
/// A start adds one more. When there are so many, those of the last starts are taken together.
const MARKS_MAX: usize = SLOTS_MAX as usize + 256;

/// The events up to one had been written by this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) through: Sequence,
    pub(crate) at: RetentionTime,
}

/// When the events of a log become too old.
pub(crate) struct Ages {
    age_micros: i64,
    slot_micros: i64,
    /// Ascending in both.
    marks: VecDeque<Mark>,
    /// The last mark is one of this run. What was written before it is not made younger.
    is_begun: bool,
}

impl Ages {
    /// For events that are removed at this age.
    pub(crate) fn new(age: Duration) -> Self {
        let age_micros = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
        Self {
            age_micros,
            slot_micros: (age_micros / SLOTS)
                .min(SLOT_MICROS_MAX)
                .max(age_micros / SLOTS_MAX)
                .max(1),
            marks: VecDeque::new(),
            is_begun: false,
        }
    }

    /// The same for a log with events up to `head`, of which this is known. What is not known of
    /// an event's age is counted from now on.
    pub(crate) fn resume(
        age: Duration,
        known: &[Mark],
        head: Sequence,
        now: RetentionTime,
    ) -> Self {
        let mut ages = Self::new(age);
        for mark in known {
            let last = ages.marks.back();
            let ascends = last.is_none_or(|last| mark.through > last.through && mark.at >= last.at);
            if ascends && mark.through <= head && mark.at <= now {
                ages.marks.push_back(*mark);
            }
        }
        if ages.marks.back().is_none_or(|last| last.through < head) && head > Sequence::ZERO {
            ages.note(head, now);
        }
        ages
    }

    /// Events up to this one were written now.
    pub(crate) fn note(&mut self, through: Sequence, now: RetentionTime) {
        let slot = |at: RetentionTime| at.0.div_euclid(self.slot_micros);
        let mark = Mark { through, at: now };
        match self.marks.back_mut() {
            Some(last) if self.is_begun && slot(last.at) == slot(now) => *last = mark,
            _ => self.marks.push_back(mark),
        }
        self.is_begun = true;
        if self.marks.len() > MARKS_MAX {
            self.marks.remove(MARKS_MAX - 1);
        }
    }

    /// The newest event that is too old now.
    pub(crate) fn expired(&self, now: &RetentionNow) -> Option<Sequence> {
        let is_expired = |mark: &Mark| now.age_of(mark.at) > self.age_micros;
        let expired = self.marks.partition_point(is_expired);
        let last = expired.checked_sub(1)?;
        self.marks.get(last).map(|mark| mark.through)
    }

    /// The earliest time at which an event can have been written, if it is known.
    pub(crate) fn written_at(&self, event: Sequence) -> Option<RetentionTime> {
        let before = self.marks.partition_point(|mark| mark.through < event);
        let mark = self.marks.get(before)?;
        let into_slot = mark.at.0.rem_euclid(self.slot_micros);
        Some(RetentionTime(mark.at.0.saturating_sub(into_slot)))
    }

    /// Events before this one are gone. How old the newest of them was stays known, as their files may
    /// be there for a while.
    pub(crate) fn forget_before(&mut self, earliest: Sequence) {
        let gone = self.marks.partition_point(|mark| mark.through < earliest);
        self.marks.drain(..gone.saturating_sub(1));
    }

    /// What has to be kept for [`resume`](Self::resume).
    pub(crate) fn marks(&self) -> impl Iterator<Item = Mark> {
        self.marks.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: Duration = Duration::from_micros(6_400);

    fn expired(ages: &Ages, now: i64) -> Option<u64> {
        let expired = ages.expired(&RetentionNow::at(now));
        expired.map(|sequence| sequence.0)
    }

    #[test]
    fn an_event_goes_when_it_and_all_of_its_slot_are_too_old() {
        let mut ages = Ages::new(AGE);
        for n in 0..100_u64 {
            ages.note(Sequence(n + 1), RetentionTime(n.cast_signed() * 10));
        }
        // The first ten were written within a slot of 100, the last of them at 90.
        assert_eq!(expired(&ages, 6_490), None);
        assert_eq!(expired(&ages, 6_491), Some(10));
        assert_eq!(expired(&ages, 6_591), Some(20));
        assert_eq!(expired(&ages, 100_000), Some(100));
        ages.forget_before(Sequence(11));
        assert_eq!(expired(&ages, 6_590), Some(10));
        assert_eq!(ages.marks().count(), 10);
        ages.forget_before(Sequence(22));
        assert_eq!(expired(&ages, 6_590), None);
        assert_eq!(expired(&ages, 6_591), Some(20), "its file may be there");
        assert_eq!(ages.marks().count(), 9);
    }

    #[test]
    fn what_is_not_known_after_a_restart_is_as_old_as_the_restart() {
        let mut before = Ages::new(AGE);
        before.note(Sequence(5), RetentionTime(10));
        let marks: Vec<Mark> = before.marks().collect();
        let mut ages = Ages::resume(AGE, &marks, Sequence(8), RetentionTime(50));
        // Of the same slot, but what was known stays known.
        ages.note(Sequence(9), RetentionTime(60));
        assert_eq!(expired(&ages, 6_411), Some(5));
        assert_eq!(expired(&ages, 6_460), Some(5));
        assert_eq!(expired(&ages, 6_461), Some(9));
    }

    #[test]
    fn marks_that_do_not_fit_the_log_are_not_believed() {
        let mark = |through, at| Mark {
            through: Sequence(through),
            at: RetentionTime(at),
        };
        for marks in [
            vec![mark(9, 10)],
            vec![mark(3, 500)],
            vec![mark(3, 50), mark(3, 60), mark(5, 20)],
        ] {
            let ages = Ages::resume(AGE, &marks, Sequence(5), RetentionTime(100));
            assert_ne!(expired(&ages, 6_450), Some(5), "{marks:?}");
            assert_eq!(expired(&ages, 6_501), Some(5), "{marks:?}");
        }
    }

    #[test]
    fn marks_are_bounded_and_none_makes_an_event_older() {
        let mut marks = vec![Mark {
            through: Sequence(1),
            at: RetentionTime(0),
        }];
        for n in 2..4_000_u64 {
            let now = RetentionTime(n.cast_signed());
            let ages = Ages::resume(AGE, &marks, Sequence(n), now);
            marks = ages.marks().collect();
            assert!(marks.len() <= MARKS_MAX);
            // Each event was written when its number says.
            assert!(
                marks
                    .iter()
                    .all(|mark| mark.at.0 >= mark.through.0.cast_signed() - 1)
            );
        }
        assert_eq!(marks[0].through, Sequence(1), "the oldest stay known");
        assert_eq!(marks.last().unwrap().through, Sequence(3_999));
        assert_eq!(marks.len(), MARKS_MAX);
    }

    #[test]
    fn events_are_removed_late_by_a_64th_of_their_age_and_by_no_more_than_four_hours() {
        let day = 24 * HOUR;
        for (age_days, slot_micros) in [
            (1, day / 64),
            (10, 10 * day / 64),
            (11, 4 * HOUR),
            (366, 4 * HOUR),
            (3_660, 3_660 * day / SLOTS_MAX),
        ] {
            let age = Duration::from_secs(age_days * 24 * 3_600);
            assert_eq!(Ages::new(age).slot_micros, slot_micros, "{age_days}");
        }
        assert_eq!(Ages::new(Duration::ZERO).slot_micros, 1);
    }

    #[test]
    fn an_event_was_written_no_earlier_than_its_slot_began() {
        let mut ages = Ages::new(AGE);
        for (through, at) in [(3, 110), (5, 190), (7, 200), (9, 555)] {
            ages.note(Sequence(through), RetentionTime(at));
        }
        let written = |event| ages.written_at(Sequence(event)).map(|at| at.0);
        assert_eq!([1, 3, 5].map(written), [Some(100); 3]);
        assert_eq!([6, 7].map(written), [Some(200); 2]);
        assert_eq!([8, 9].map(written), [Some(500); 2]);
        assert_eq!(written(10), None);
    }
}
