//! Owns the identity of a log over time, and with it the decision whether a cursor belongs to it.

use prelude_bridge_event::{Cursor, Epoch, LogId, Sequence};

/// A log's id, and which part of it was written in which epoch. It grows while the log is open: a
/// writer begins an epoch with its first commit after a start.
#[derive(Clone, Debug)]
pub struct Epochs {
    log: LogId,
    /// Each epoch with the first event that was or will be written in it, ascending.
    epochs: Vec<(Sequence, Epoch)>,
}

/// Why a cursor does not belong to a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CursorFault {
    /// It is of another log.
    #[error("the cursor is of another log")]
    OtherLog,
    /// It is of this log, but of events that were lost when the log was restored.
    #[error(
        "the cursor is from before this log was restored to an earlier state: events up to it are \
         not those that were delivered"
    )]
    OtherEpoch,
    /// It is of this log, but the log ends before it.
    #[error("the cursor is ahead of the log, which ends with event {head}: was it restored?")]
    Ahead {
        /// The newest event.
        head: Sequence,
    },
}

impl Epochs {
    /// A log with these epochs. The last one is current: what is written from now on belongs to it.
    #[must_use]
    pub fn new(log: LogId, mut epochs: Vec<(Sequence, Epoch)>) -> Self {
        epochs.sort_by_key(|&(first, _)| first);
        Self { log, epochs }
    }

    /// The id of the log.
    #[must_use]
    pub fn log(&self) -> LogId {
        self.log
    }

    /// Each epoch with its first event, ascending: for whoever stores them.
    #[must_use]
    pub fn entries(&self) -> &[(Sequence, Epoch)] {
        &self.epochs
    }

    /// The epoch that is written in now; 0 where there is none.
    #[must_use]
    pub fn current(&self) -> Epoch {
        self.epochs.last().map_or(Epoch(0), |&(_, epoch)| epoch)
    }

    /// The same with an epoch that begins with the event `first`. One in which nothing was written
    /// before that leaves no trace.
    #[must_use]
    pub fn with(&self, first: Sequence, epoch: Epoch) -> Self {
        let written = self.epochs.partition_point(|&(begun, _)| begun < first);
        let mut epochs = self.epochs.get(..written).unwrap_or_default().to_vec();
        epochs.push((first, epoch));
        Self {
            log: self.log,
            epochs,
        }
    }

    /// The cursor of the place after an event.
    #[must_use]
    pub fn cursor(&self, sequence: Sequence) -> Cursor {
        Cursor {
            log: self.log,
            epoch: self.epoch_of(sequence),
            sequence,
            not_before: None,
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
        // Of events that were removed before this replica began, no epoch is known.
        let known_from = self
            .epochs
            .first()
            .map_or(Sequence::ZERO, |&(first, _)| first);
        let is_known = cursor.sequence >= known_from || cursor.sequence == Sequence::ZERO;
        if is_known && cursor.epoch != self.epoch_of(cursor.sequence) {
            return Err(CursorFault::OtherEpoch);
        }
        Ok(cursor.sequence)
    }

    /// The epoch that an event was written in. The place before the first event belongs to no epoch
    /// (0), so that its cursor stays valid whatever happens to the log.
    fn epoch_of(&self, sequence: Sequence) -> Epoch {
        let started = self.epochs.partition_point(|&(first, _)| first <= sequence);
        let epoch = started
            .checked_sub(1)
            .and_then(|index| self.epochs.get(index));
        match epoch {
            Some(&(_, epoch)) if sequence > Sequence::ZERO => epoch,
            _ => Epoch(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epochs(epochs: &[(u64, u32)]) -> Epochs {
        let epochs = epochs
            .iter()
            .map(|&(first, epoch)| (Sequence(first), Epoch(epoch)))
            .collect();
        Epochs::new(LogId(1), epochs)
    }

    #[test]
    fn cursors_stay_valid_over_restarts() {
        let before = epochs(&[(1, 70)]);
        let after = epochs(&[(1, 70), (11, 80)]);
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
        let other = Epochs::new(LogId(2), vec![(Sequence(1), Epoch(70))]);
        let fault = epochs(&[(1, 70)]).check(other.cursor(Sequence(1)), Sequence(20));
        assert_eq!(fault, Err(CursorFault::OtherLog));
    }

    #[test]
    fn a_cursor_of_events_that_a_restore_lost_is_recognised() {
        // Events 11 to 15 were written, then the log was restored to a state that ends with 10.
        let lost = epochs(&[(1, 70), (11, 80)]);
        let restored = epochs(&[(1, 70), (11, 90)]);
        let cursor = lost.cursor(Sequence(15));
        let ahead = restored.check(cursor, Sequence(10));
        assert_eq!(ahead, Err(CursorFault::Ahead { head: Sequence(10) }));
        assert_eq!(
            restored.check(cursor, Sequence(15)),
            Err(CursorFault::OtherEpoch)
        );
        assert_eq!(
            restored.check(lost.cursor(Sequence(10)), Sequence(15)),
            Ok(Sequence(10))
        );
    }

    #[test]
    fn an_epoch_that_begins_while_the_log_is_open_leaves_older_cursors_valid() {
        let before = epochs(&[(1, 70), (11, 80)]);
        let cursors = [0, 1, 10, 15].map(|n| before.cursor(Sequence(n)));
        let after = before.with(Sequence(16), Epoch(90));
        assert_eq!(after.current(), Epoch(90));
        for cursor in cursors {
            assert_eq!(after.check(cursor, Sequence(20)), Ok(cursor.sequence));
        }
        assert_eq!(after.cursor(Sequence(16)).epoch, Epoch(90));
        let outdated = before.cursor(Sequence(16));
        assert_eq!(
            after.check(outdated, Sequence(20)),
            Err(CursorFault::OtherEpoch)
        );
    }

    #[test]
    fn an_epoch_without_events_leaves_no_trace() {
        let opened = epochs(&[(1, 70), (11, 80)]);
        let after = opened.with(Sequence(11), Epoch(90));
        assert_eq!(after.cursor(Sequence(10)).epoch, Epoch(70));
        assert_eq!(after.cursor(Sequence(11)).epoch, Epoch(90));
        let entries = [(Sequence(1), Epoch(70)), (Sequence(11), Epoch(90))];
        assert_eq!(after.entries(), entries);
    }
}
