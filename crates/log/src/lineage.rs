//! Owns the identity of a log over time, and with it the judgement whether a cursor belongs here.

use prelude_bridge_event::{Cursor, LogId, Sequence, Term};

/// A log's id, and which term wrote which part of it.
#[derive(Clone, Debug)]
pub struct Lineage {
    log: LogId,
    /// Each term with the first sequence number that it wrote or will write, ascending.
    terms: Vec<(Sequence, Term)>,
}

/// Why a cursor does not belong to a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CursorFault {
    /// It is of another log.
    #[error("the cursor is of another log")]
    OtherLog,
    /// It is of this log, but of a history that was given up when the log was restored.
    #[error(
        "the cursor is from before this log was restored to an earlier state: events up to it are \
         not those that were delivered"
    )]
    OtherHistory,
    /// It is of this log, but the log ends before it.
    #[error("the cursor is ahead of the log, which ends with event {head}: was it restored?")]
    Ahead {
        /// The newest event.
        head: Sequence,
    },
}

impl Lineage {
    /// A log with these terms. The last one is the current one, the one that writes from now on.
    #[must_use]
    pub fn new(log: LogId, mut terms: Vec<(Sequence, Term)>) -> Self {
        terms.sort_by_key(|&(first, _)| first);
        Self { log, terms }
    }

    /// The id of the log.
    #[must_use]
    pub fn log(&self) -> LogId {
        self.log
    }

    /// The cursor of the place after an event.
    #[must_use]
    pub fn cursor(&self, sequence: Sequence) -> Cursor {
        Cursor {
            log: self.log,
            term: self.term_of(sequence),
            sequence,
        }
    }

    /// Checks that a cursor belongs to this log, which ends with `head`.
    ///
    /// # Errors
    /// [`CursorFault`], when it does not.
    pub fn check(&self, cursor: Cursor, head: Sequence) -> Result<Sequence, CursorFault> {
        if cursor.log != self.log {
            return Err(CursorFault::OtherLog);
        }
        if cursor.sequence > head {
            return Err(CursorFault::Ahead { head });
        }
        if cursor.term != self.term_of(cursor.sequence) {
            return Err(CursorFault::OtherHistory);
        }
        Ok(cursor.sequence)
    }

    /// The term that wrote an event. The place before the first event belongs to no term (0), so
    /// that its cursor stays valid whatever happens to the log.
    fn term_of(&self, sequence: Sequence) -> Term {
        let started = self.terms.partition_point(|&(first, _)| first <= sequence);
        let term = started
            .checked_sub(1)
            .and_then(|index| self.terms.get(index));
        match term {
            Some(&(_, term)) if sequence > Sequence::ZERO => term,
            _ => Term(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lineage(terms: &[(u64, u32)]) -> Lineage {
        let terms = terms
            .iter()
            .map(|&(first, term)| (Sequence(first), Term(term)))
            .collect();
        Lineage::new(LogId(1), terms)
    }

    #[test]
    fn cursors_stay_valid_over_restarts() {
        let before = lineage(&[(1, 70)]);
        let after = lineage(&[(1, 70), (11, 80)]);
        for sequence in [0, 1, 10].map(Sequence) {
            assert_eq!(
                after.check(before.cursor(sequence), Sequence(20)),
                Ok(sequence)
            );
        }
        assert_eq!(
            after.check(after.cursor(Sequence(11)), Sequence(20)),
            Ok(Sequence(11))
        );
    }

    #[test]
    fn a_cursor_of_another_log_is_recognised() {
        let other = Lineage::new(LogId(2), vec![(Sequence(1), Term(70))]);
        let fault = lineage(&[(1, 70)]).check(other.cursor(Sequence(1)), Sequence(20));
        assert_eq!(fault, Err(CursorFault::OtherLog));
    }

    #[test]
    fn a_cursor_of_a_history_that_was_given_up_is_recognised() {
        // Events 11 to 15 were written, then the log was restored to a state that ends with 10.
        let lost = lineage(&[(1, 70), (11, 80)]);
        let restored = lineage(&[(1, 70), (11, 90)]);
        let cursor = lost.cursor(Sequence(15));
        let ahead = restored.check(cursor, Sequence(10));
        assert_eq!(ahead, Err(CursorFault::Ahead { head: Sequence(10) }));
        assert_eq!(
            restored.check(cursor, Sequence(15)),
            Err(CursorFault::OtherHistory)
        );
        assert_eq!(
            restored.check(lost.cursor(Sequence(10)), Sequence(15)),
            Ok(Sequence(10))
        );
    }
}
