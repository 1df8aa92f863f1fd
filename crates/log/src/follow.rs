//! Owns how something follows a log: it is handed every commit, in order, and refuses what does not
//! continue what it has.

use std::sync::Arc;

use prelude_bridge_event::{LogId, Sequence, block::Block};

/// What follows a log, such as the bus.
pub trait Follower: Send + Sync + 'static {
    /// Takes the next block. Called right after its commit and before its batches are answered, in
    /// the log's order, by one thread of the log at a time. Must not block.
    ///
    /// # Errors
    /// [`Gap`], when the block does not continue what the follower has. The log fails then: nobody
    /// goes on after events that somebody missed.
    fn apply(&self, block: &Arc<Block>) -> Result<(), Gap>;
}

impl<F> Follower for F
where
    F: Fn(&Arc<Block>) -> Result<(), Gap> + Send + Sync + 'static,
{
    fn apply(&self, block: &Arc<Block>) -> Result<(), Gap> {
        self(block)
    }
}

/// Why a block, or a follower, does not continue a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Gap {
    /// Events between the head and the block are missing.
    #[error("event {found} follows event {}: those in between are missing", expected.before())]
    Missing {
        /// The event that comes next.
        expected: Sequence,
        /// The event that came.
        found: Sequence,
    },
    /// The block begins at or before the head: the log went back.
    #[error("event {found} comes after event {}: the log went back", expected.before())]
    Repeated {
        /// The event that comes next.
        expected: Sequence,
        /// The event that came.
        found: Sequence,
    },
    /// The block is of another log.
    #[error("a block of log {:016x} came from log {:016x}", found.0, expected.0)]
    OtherLog {
        /// The log that is followed.
        expected: LogId,
        /// The log of the block.
        found: LogId,
    },
}

impl Gap {
    /// Checks that a block is the next one of a log that ends with `head`.
    ///
    /// # Errors
    /// [`Gap`], when it is not.
    pub fn check(log: LogId, head: Sequence, block: &Block) -> Result<(), Self> {
        if block.log() != log {
            let (expected, found) = (log, block.log());
            return Err(Self::OtherLog { expected, found });
        }
        Self::check_sequence(head.plus(1), block.first_sequence())
    }

    /// Checks that a block that was read has the event after a place, or ends before it.
    ///
    /// # Errors
    /// [`Gap::Missing`], when events in between are missing.
    pub fn check_reaches(after: Sequence, block: &Block) -> Result<(), Self> {
        let expected = after.plus(1);
        Self::check_sequence(expected, block.first_sequence().max(expected))
    }

    /// Checks that the event that comes is the one that comes next.
    pub(crate) fn check_sequence(expected: Sequence, found: Sequence) -> Result<(), Self> {
        match found.cmp(&expected) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Greater => Err(Self::Missing { expected, found }),
            std::cmp::Ordering::Less => Err(Self::Repeated { expected, found }),
        }
    }
}
