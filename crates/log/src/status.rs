//! Owns what can be known of a log without asking for events: its two ends, its epochs, and whether
//! it takes events. Each can be read at once and awaited. They are apart because the ends change with
//! every commit: whoever waits for the log to fail sleeps through those.

use std::{fmt, sync::Arc, time::Duration};

use prelude_bridge_event::{Cursor, Sequence, UnixMicros};
use tokio::sync::watch;

use super::{epochs::Epochs, error::Error};

/// The two ends of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// The oldest event that is still there; one past the head in an empty log.
    pub earliest: Sequence,
    /// The newest event; what it was, in a log that retention has emptied; 0 in a new log.
    pub head: Sequence,
    /// When the oldest event was received; `None` in an empty log.
    pub earliest_at: Option<UnixMicros>,
    /// When the newest event was received; `None` in an empty log.
    pub head_at: Option<UnixMicros>,
}

impl Range {
    /// How many events are there.
    #[must_use]
    pub fn event_count(&self) -> u64 {
        self.head
            .0
            .saturating_add(1)
            .saturating_sub(self.earliest.0)
    }

    /// Whether there is nothing between a place and the events that are left.
    #[must_use]
    pub fn reaches(&self, after: Sequence) -> bool {
        after.plus(1) >= self.earliest
    }
}

/// Consecutive events that the log has and cannot read: the bytes on the disk are not those that were
/// written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Damaged {
    /// The first of them.
    pub first: Sequence,
    /// The last of them, at least the first.
    pub last: Sequence,
}

impl Damaged {
    /// The verb for them: a single event *is*, several *are*.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        if self.first == self.last { "is" } else { "are" }
    }
}

/// `event 3`, `events 3 to 5`.
impl fmt::Display for Damaged {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.first.to_last(self.last))
    }
}

/// How far a replica is that applies the commits of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatchUp {
    /// How many commits are known to be missing.
    pub commits_behind: u64,
    /// How many there were to apply in all.
    pub commits_total: u64,
    /// How long it has taken until now.
    pub took: Duration,
}

impl CatchUp {
    /// What is done of it, of a hundred.
    #[must_use]
    pub fn percent(&self) -> u64 {
        let percent = self
            .done()
            .saturating_mul(100)
            .checked_div(self.commits_total);
        percent.unwrap_or(100)
    }

    /// How fast it is.
    #[must_use]
    pub fn commits_per_second(&self) -> u64 {
        let millis = u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX);
        let per_second = self.done().saturating_mul(1_000).checked_div(millis);
        per_second.unwrap_or_default()
    }

    /// How long the rest takes if it goes on like this; `None` while nothing is done.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        let seconds = self.commits_behind.checked_div(self.commits_per_second());
        seconds.map(Duration::from_secs)
    }

    fn done(&self) -> u64 {
        self.commits_total.saturating_sub(self.commits_behind)
    }
}

/// `2 of 8 commits behind (75 %, 3 a second, 1 s left)`.
impl fmt::Display for CatchUp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (behind, total) = (self.commits_behind, self.commits_total);
        let commits = if total == 1 { "commit" } else { "commits" };
        write!(
            formatter,
            "{behind} of {total} {commits} behind ({} %",
            self.percent()
        )?;
        if let Some(remaining) = self.remaining() {
            let (rate, seconds) = (self.commits_per_second(), remaining.as_secs());
            write!(formatter, ", {rate} a second, {seconds} s left")?;
        }
        formatter.write_str(")")
    }
}

/// Whether a log takes events, and if not, why and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Ready,
    /// Not yet: commits of others are still being applied.
    CatchingUp(CatchUp),
    /// Not until there is room on the disk.
    Full,
    /// Not until what orders or keeps the events answers again.
    Unavailable {
        /// What does not answer.
        reason: Arc<str>,
        /// Nothing new is learned either: whoever follows the log elsewhere may know more.
        is_cut_off: bool,
    },
    /// Not any more: the process should end, and with a new start read back what is really there.
    Failed {
        /// What failed.
        reason: Arc<str>,
    },
    /// Not any more: it was closed.
    Closed,
}

impl Health {
    /// Whether it stays like this until the log is opened again.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Failed { .. } | Self::Closed => true,
            Self::Ready | Self::CatchingUp(_) | Self::Full | Self::Unavailable { .. } => false,
        }
    }

    /// Whether subscribers are better served elsewhere for now: the log does not know what is new.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        match self {
            Self::CatchingUp(_) => true,
            Self::Unavailable { is_cut_off, .. } => *is_cut_off,
            Self::Ready | Self::Full | Self::Failed { .. } | Self::Closed => false,
        }
    }

    /// What an append is refused with; `None` where it is taken.
    #[must_use]
    pub fn refusal(&self) -> Option<Error> {
        match self {
            Self::Ready => None,
            Self::CatchingUp(catch_up) => {
                let reason = format!("it is catching up, {catch_up}");
                Some(Error::Unavailable(reason.into()))
            }
            Self::Full => Some(Error::NoSpace),
            Self::Unavailable { reason, .. } => Some(Error::Unavailable(Arc::clone(reason))),
            Self::Failed { reason } => Some(Error::Failed(Arc::clone(reason))),
            Self::Closed => Some(Error::Closed),
        }
    }
}

/// The state of a log as of now, which also can be awaited.
#[derive(Clone)]
pub struct Status {
    pub(super) range: watch::Receiver<Range>,
    pub(super) epochs: watch::Receiver<Arc<Epochs>>,
    pub(super) health: watch::Receiver<Health>,
    pub(super) damaged: watch::Receiver<Arc<[Damaged]>>,
}

impl Status {
    /// The two ends. Cheap.
    #[must_use]
    pub fn range(&self) -> Range {
        *self.range.borrow()
    }

    /// Which part of the log was written in which epoch, to make and check cursors. An epoch is here
    /// before the first of its events can be seen anywhere.
    #[must_use]
    pub fn epochs(&self) -> Arc<Epochs> {
        Arc::clone(&self.epochs.borrow())
    }

    /// Whether the log takes events.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// The damaged events that are known of, in order, none of them twice. Damage is found when the
    /// log is opened, when it is read, or by checking it.
    #[must_use]
    pub fn damaged(&self) -> Arc<[Damaged]> {
        Arc::clone(&self.damaged.borrow())
    }

    /// Makes cursors for whoever makes many.
    #[must_use]
    pub fn cursors(&self) -> Cursors {
        let mut epochs = self.epochs.clone();
        let known = Arc::clone(&epochs.borrow_and_update());
        Cursors { epochs, known }
    }

    /// Resolves with the first health that fulfils a condition, at once where it does already. When
    /// the log is gone, it is [`Health::Closed`].
    pub async fn health_where(&self, condition: impl FnMut(&Health) -> bool) -> Health {
        let mut health = self.health.clone();
        let met = health.wait_for(condition).await;
        met.map_or(Health::Closed, |health| health.clone())
    }

    /// Resolves with the first range that fulfils a condition, at once where it does already. `None`
    /// when the log is gone before.
    pub async fn range_where(&self, condition: impl FnMut(&Range) -> bool) -> Option<Range> {
        let mut range = self.range.clone();
        let met = range.wait_for(condition).await;
        met.map(|range| *range).ok()
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Status")
            .field("range", &self.range())
            .field("health", &self.health())
            .finish_non_exhaustive()
    }
}

/// Makes cursors. Takes no lock as long as no new epoch begins.
#[derive(Clone)]
pub struct Cursors {
    epochs: watch::Receiver<Arc<Epochs>>,
    known: Arc<Epochs>,
}

impl Cursors {
    /// The cursor of the place after an event.
    pub fn at(&mut self, sequence: Sequence) -> Cursor {
        // It fails when the log is gone: then no epoch begins any more.
        if self.epochs.has_changed().unwrap_or(false) {
            self.known = Arc::clone(&self.epochs.borrow_and_update());
        }
        self.known.cursor(sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_a_replica_is_has_a_rate_and_an_end_once_something_is_done() {
        let said = |commits_behind, commits_total, seconds| {
            let took = Duration::from_secs(seconds);
            let catch_up = CatchUp {
                commits_behind,
                commits_total,
                took,
            };
            catch_up.to_string()
        };
        assert_eq!(said(1, 1, 0), "1 of 1 commit behind (0 %)");
        assert_eq!(said(8, 8, 3), "8 of 8 commits behind (0 %)");
        assert_eq!(
            said(2, 8, 2),
            "2 of 8 commits behind (75 %, 3 a second, 0 s left)"
        );
        assert_eq!(
            said(900, 1_000, 10),
            "900 of 1000 commits behind (10 %, 10 a second, 90 s left)"
        );
        assert_eq!(said(0, 0, 0), "0 of 0 commits behind (100 %)");
    }

    #[test]
    fn one_event_is_not_said_as_a_range() {
        let said = |first, last| {
            let damaged = Damaged {
                first: Sequence(first),
                last: Sequence(last),
            };
            format!("{damaged} {} damaged", damaged.verb())
        };
        assert_eq!(said(3, 3), "event 3 is damaged");
        assert_eq!(said(3, 5), "events 3 to 5 are damaged");
    }
}
