//! Owns the contract of sequencers: engines, such as JetStream and PostgreSQL, that give the commits of
//! several bridges one order and keep them. The replicated log is built on one; an engine's own crate
//! implements it. Knows nothing of what a commit contains.
//!
//! A writer appends the commit for the position after the last one that it knows. Exactly one commit wins
//! each position. Whatever the answer is, only what [`get`](Sequencer::get) finds at the position decides
//! who won it: an engine may refuse without another commit being there, and may store a commit whose
//! answer is lost.

#[cfg(any(test, feature = "testing"))]
#[allow(missing_docs, reason = "tests")]
pub mod memory;
mod secret;

pub use self::secret::Secret;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{future::BoxFuture, stream::BoxStream};
use tokio::sync::watch;

/// The place of a commit in a sequence. The first one has 1; 0 is the place before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

impl Position {
    /// The next place.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The first and the last commit that a sequence has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// The oldest commit that retention has left; one after `last` when none is left.
    pub first: Position,
    /// The newest commit there has ever been; 0 in a new sequence.
    pub last: Position,
}

/// What the engine says of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The commit is at the position, and as durable as the engine makes anything.
    Won,
    /// The engine refused it because of the condition. This does not prove that another commit is there.
    Refused,
}

/// Why an engine does not do what it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Outage {
    /// There is no connection to the engine. Whether a commit was stored is unknown. It passes.
    #[error("there is no connection to {0}")]
    Disconnected(Arc<str>),
    /// The engine answers, but cannot do this now, as without a leader or a quorum; or it did not answer in
    /// time. Whether a commit was stored is unknown. It passes.
    #[error("{0}")]
    Unavailable(Arc<str>),
    /// The engine has no room. The commit was not stored. It passes when there is room.
    #[error("{0}")]
    Full(Arc<str>),
    /// Retention has removed the commit that was asked for.
    #[error("the sequence begins at position {first}")]
    Removed {
        /// The oldest commit that is left.
        first: Position,
    },
    /// The engine refuses for a reason that does not pass by itself: it was configured in another way, or
    /// the stream or table is gone. Says what to do.
    #[error("{0}")]
    Unusable(Arc<str>),
}

/// An engine that orders commits and keeps them. All bridges of one log have the same sequence.
///
/// No call hangs: each ends with [`Outage::Unavailable`] or [`Outage::Disconnected`] after some seconds in
/// which the engine did not answer, also when its process is stopped without closing a connection.
/// Connections are made again by the implementation. No message of an error contains a password.
pub trait Sequencer: Send + Sync + 'static {
    /// Stores a commit at a position on the condition that the last position is the one before it. Stores
    /// it there or not at all. It is never sent over a later connection than the one at the time of the
    /// call: what follows a reconnection may belong to another history.
    ///
    /// # Errors
    /// [`Outage`]. Apart from [`Outage::Full`] it says nothing of whether the commit was stored, or still
    /// will be.
    fn append(&self, position: Position, commit: Bytes) -> BoxFuture<'_, Result<Outcome, Outage>>;

    /// The commit at a position; `None` when there is none (also: no more). It sees everything that was
    /// acknowledged before the call, to any writer.
    ///
    /// # Errors
    /// [`Outage`].
    fn get(&self, position: Position) -> BoxFuture<'_, Result<Option<Bytes>, Outage>>;

    /// The ends of the sequence; they have everything that was acknowledged before the call.
    ///
    /// # Errors
    /// [`Outage`].
    fn ends(&self) -> BoxFuture<'_, Result<Ends, Outage>>;

    /// All commits from a position on, in order and without holes, then those that come. Nothing comes
    /// while nothing is appended. It ends with its first error: whoever follows begins again after the
    /// last commit that came. Holds at most some MiB that were not taken yet.
    ///
    /// # Errors
    /// [`Outage::Removed`] when retention has removed the commit that comes next; [`Outage`], also when
    /// the engine has not answered for some seconds, or has left a hole.
    fn follow(&self, from: Position) -> BoxStream<'static, Result<(Position, Bytes), Outage>>;

    /// Removes the commits before a position, where the engine has no retention of its own. No more than a
    /// wish: nothing depends on when it is done.
    ///
    /// # Errors
    /// [`Outage`].
    fn trim(&self, before: Position) -> BoxFuture<'_, Result<(), Outage>>;

    /// How many connections there have been. Changes with each new one, before anything is answered over
    /// it.
    fn connections(&self) -> watch::Receiver<u64>;

    /// How many bytes a commit may have.
    fn commit_bytes_max(&self) -> usize;

    /// How long an append takes at most while everything works: whoever waits longer may take it for lost.
    fn append_time_max(&self) -> Duration;

    /// What it is, for messages: `the stream prelude-bridge of NATS at host:4222`. No secrets.
    fn name(&self) -> Arc<str>;

    /// Carries questions between the bridges; `None` where the engine does not.
    fn peers(&self) -> Option<Arc<dyn Peers>> {
        None
    }
}

/// Questions and answers between the bridges of one log, over the engine. Each bridge has a random number.
pub trait Peers: Send + Sync + 'static {
    /// Asks another bridge. `None` when there was no answer in time, or nobody has that number: whether
    /// the question arrived is unknown.
    fn ask(&self, peer: u32, question: Bytes, timeout: Duration) -> BoxFuture<'_, Option<Bytes>>;

    /// Answers questions to this number from now on, until the sequencer is dropped. At most once for each
    /// sequencer. Questions are answered at the same time.
    fn serve(&self, number: u32, answer: Answer);
}

/// Answers a question of another bridge; an empty answer is none.
pub type Answer = Arc<dyn Fn(Bytes) -> BoxFuture<'static, Bytes> + Send + Sync>;
