//! Owns how old the events of a log are: for some places in it, the time by the retention clock at
//! which what is before them had been written. What the events are stamped with does not matter, so
//! neither stamps from a wrong clock nor those that had to wait for the time of an earlier event
//! keep an event for longer, or remove it too early.

use std::{collections::VecDeque, time::Duration};

use super::clock::{RetentionNow, RetentionTime};
use crate::event::Sequence;

/// Events are told apart by this part of the age at which they are removed: so they are removed by
/// that part too late at most, and not with each commit.
const SLOTS: i64 = 64;
/// A start adds one more. When there are so many, those of the last starts are taken together.
const MARKS_MAX: usize = 256;

/// The events up to one had been written by this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) through: Sequence,
    pub(super) at: RetentionTime,
}

/// When the events of a log become too old.
pub(super) struct Ages {
    age_micros: i64,
    slot_micros: i64,
    /// Ascending in both.
    marks: VecDeque<Mark>,
    /// The last mark is one of this run. What was written before it is not made younger.
    is_begun: bool,
}

impl Ages {
    /// For events that are removed at this age.
    pub(super) fn new(age: Duration) -> Self {
        let age_micros = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
        Self {
            age_micros,
            slot_micros: (age_micros / SLOTS).max(1),
            marks: VecDeque::new(),
            is_begun: false,
        }
    }

    /// The same for a log with events up to `head`, of which this is known. What is not known of
    /// an event's age is counted from now on.
    pub(super) fn resume(
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
    pub(super) fn note(&mut self, through: Sequence, now: RetentionTime) {
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
    pub(super) fn expired(&self, now: &RetentionNow) -> Option<Sequence> {
        let is_expired = |mark: &Mark| now.age_of(mark.at) > self.age_micros;
        let expired = self.marks.partition_point(is_expired);
        let last = expired.checked_sub(1)?;
        self.marks.get(last).map(|mark| mark.through)
    }

    /// Events before this one are gone.
    pub(super) fn forget_before(&mut self, earliest: Sequence) {
        while self
            .marks
            .front()
            .is_some_and(|mark| mark.through < earliest)
        {
            self.marks.pop_front();
        }
    }

    /// What has to be kept for [`resume`](Self::resume).
    pub(super) fn marks(&self) -> impl Iterator<Item = Mark> {
        self.marks.iter().copied()
    }
}
