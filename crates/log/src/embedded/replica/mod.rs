//! Owns what makes the log on disk a replica of a log that several bridges write: a sequence gives their
//! commits one order, and each bridge writes every commit into its own segments, whoever made it.
//!
//! ```text
//! begin    what a start finds: a replica that goes on, one that is made anew, or a new log
//! follow   takes the commits of others from the sequence, and what retention has removed there
//! settle   puts a commit into the sequence, and finds out which commit is at its position
//! forward  leaves batches to the bridge that wrote last
//! message  the bytes of a commit in the sequence
//! ```
//!
//! The segments of a replica are flushed once a second. What was not flushed before a crash is cut off by
//! the next start and comes from the sequence again, so nothing of a replica's end can be damaged.

mod begin;
mod follow;
mod forward;
mod message;
mod settle;
#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tokio::{runtime::Handle, sync::watch};

use self::forward::Forward;
pub(super) use self::{
    begin::{Start, position_of},
    follow::Follow,
    message::Message,
    settle::Settled,
};
use super::{
    Shared,
    commit::CommitFrames,
    frame::{Header, Link},
};
use crate::{
    CatchUp, Health, ReadError, group,
    sequencer::{Ends, Outage, Position, Sequencer},
};
use prelude_bridge_event::{Epoch, LogId, Sequence, UnixMicros};

/// A start waits for so long until the engine answers.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// How long [`Log::catch_up`](crate::Log::catch_up) waits.
const CATCH_UP: Duration = Duration::from_secs(5);

/// How often the log says how far a replica is that catches up.
const TELL_INTERVAL: Duration = Duration::from_secs(5);

/// What the handles of a replica share with its threads.
pub(super) struct Replicated {
    pub(super) sequencer: Arc<dyn Sequencer>,
    /// The position that the replica has reached.
    pub(super) applied: watch::Sender<Position>,
}

impl Replicated {
    pub(super) fn new(sequencer: Arc<dyn Sequencer>, position: Position) -> Self {
        Self {
            sequencer,
            applied: watch::Sender::new(position),
        }
    }

    /// Resolves once everything is applied that the sequence has now.
    pub(super) fn catch_up(&self) -> BoxFuture<'_, Result<(), ReadError>> {
        Box::pin(async move {
            let caught_up = async {
                let Ends { last, .. } = self.sequencer.ends().await?;
                let mut applied = self.applied.subscribe();
                let _ = applied.wait_for(|&applied| applied >= last).await;
                Ok(())
            };
            let unavailable = |reason: String| ReadError::Unavailable(reason.into());
            match tokio::time::timeout(CATCH_UP, caught_up).await {
                Ok(caught_up) => {
                    caught_up.map_err(|outage: Outage| unavailable(outage.to_string()))
                }
                Err(_) => Err(unavailable("it has not caught up in time".to_owned())),
            }
        })
    }
}

/// The writer's knowledge of the sequence.
pub(super) struct Replica {
    pub(super) shared: Arc<Replicated>,
    pub(super) runtime: Handle,
    pub(super) log: LogId,
    /// The number of this bridge.
    pub(super) writer: u32,
    /// The last position that was applied.
    pub(super) position: Position,
    /// The digest of the last commit with events; `None` where the replica began after it.
    pub(super) digest: Option<u64>,
    /// The epoch that this bridge begins with its next commit; `None` once it did, as it goes on in the
    /// epoch of the last commit then, whoever began it.
    pub(super) term: Option<Epoch>,
    pub(super) connections: watch::Receiver<u64>,
    /// A commit that is in the sequence, and has no room on this disk.
    pub(super) waiting: Option<(Position, CommitFrames)>,
    /// It has not caught up before this position.
    pub(super) catch_up_to: Position,
    /// Why nothing can be appended.
    pub(super) refusal: Option<Arc<str>>,
    /// Why nothing new is learned, and whether the engine itself answers.
    pub(super) outage: Option<Outage>,
    /// The last position has a mark.
    pub(super) ends_with_mark: bool,
    /// When the sequence last grew.
    pub(super) grown_at: Instant,
    pub(super) forward: Forward,
    /// When the engine was last asked to remove what is too old.
    pub(super) trimmed_at: Instant,
    /// Where and when it began to catch up; `None` when it has.
    catching_up: Option<(Position, Instant)>,
    /// When the log last said how far it is.
    told_at: Instant,
    /// Since when events cannot be taken; `None` when they can.
    trouble_since: Option<Instant>,
    /// How long batches wait then, before they are refused at once.
    patience: Duration,
}

/// Where a replica begins.
pub(super) struct Beginning {
    pub(super) log: LogId,
    position: Position,
    digest: Option<u64>,
    catch_up_to: Position,
}

impl Beginning {
    pub(super) fn position(&self) -> Position {
        self.position
    }
}

impl Replica {
    pub(super) fn new(
        shared: Arc<Replicated>,
        runtime: Handle,
        beginning: &Beginning,
        term: Epoch,
        patience: Duration,
    ) -> Result<Self, getrandom::Error> {
        let mut connections = shared.sequencer.connections();
        connections.mark_unchanged();
        let forward = Forward::new(shared.sequencer.peers());
        Ok(Self {
            shared,
            runtime,
            log: beginning.log,
            writer: getrandom::u32()?.max(1),
            position: beginning.position,
            digest: beginning.digest,
            term: Some(term),
            connections,
            waiting: None,
            catch_up_to: beginning.catch_up_to,
            refusal: None,
            outage: None,
            ends_with_mark: false,
            grown_at: Instant::now(),
            forward,
            trimmed_at: Instant::now(),
            catching_up: None,
            told_at: Instant::now(),
            trouble_since: None,
            patience,
        })
    }

    pub(super) fn sequencer(&self) -> &Arc<dyn Sequencer> {
        &self.shared.sequencer
    }

    /// What the manifest says of it.
    pub(super) fn place(&self) -> (Position, u64) {
        (self.position, self.digest.unwrap_or(0))
    }

    /// The number, the epoch and the link of the next commit, after an event of this epoch.
    pub(super) fn next_commit(&self, epoch_before: Epoch) -> (u64, Epoch, Link) {
        let link = Link {
            epoch_before,
            digest_before: self.digest.unwrap_or(0),
            writer: self.writer,
        };
        let epoch = self.term.unwrap_or(epoch_before);
        (self.position.next().0, epoch, link)
    }

    /// A mark for the next position.
    pub(super) fn mark(
        &self,
        head: Sequence,
        last_at: UnixMicros,
        epoch_before: Epoch,
    ) -> bytes::Bytes {
        let (number, _, link) = self.next_commit(epoch_before);
        let place = (head.plus(1), last_at);
        Message::mark(&Header::of_mark(
            self.log,
            place,
            (number, epoch_before),
            link,
        ))
    }

    /// Takes note that the replica has reached a position: that of a mark, or of a commit with events.
    pub(super) fn advance(&mut self, position: Position, digest: u64, is_mark: bool) {
        self.position = position;
        self.digest = Some(digest);
        self.ends_with_mark = is_mark;
        self.grown_at = Instant::now();
        self.shared.applied.send_replace(position);
    }

    /// A new connection: what was known of the sequence has to be compared, and an epoch begins.
    pub(super) fn begin_term(&mut self) -> Result<(), getrandom::Error> {
        self.connections.mark_unchanged();
        self.term = Some(group::new_epoch()?);
        Ok(())
    }

    /// Until when a batch that comes now waits for the store.
    pub(super) fn patience_ends(&self) -> Instant {
        self.trouble_since.unwrap_or_else(Instant::now) + self.patience
    }

    /// The trouble began when a batch came that waits until `patience_ends`.
    fn trouble_began(&mut self, patience_ends: Instant) {
        let began = patience_ends.checked_sub(self.patience);
        self.trouble_since = self.trouble_since.or(began);
    }

    /// It has not got everything yet that was in the sequence when it was opened or connected.
    pub(super) fn is_behind(&self) -> bool {
        self.position < self.catch_up_to
    }

    /// Makes known whether events can be taken. Batches are refused when they could not be for too long.
    pub(super) fn publish_health(&mut self, shared: &Shared) {
        if !self.is_behind() {
            self.catching_up = None;
        } else if self.catching_up.is_none() {
            self.catching_up = Some((self.position, Instant::now()));
        }
        let health = self.health();
        self.tell_of_progress(health.as_ref());
        if health.is_none() {
            self.trouble_since = None;
        } else {
            self.trouble_since.get_or_insert_with(Instant::now);
        }
        let is_over = self
            .trouble_since
            .is_some_and(|since| since.elapsed() >= self.patience);
        let refusal = health
            .as_ref()
            .filter(|_| is_over)
            .and_then(Health::refusal);
        // Who has seen that the log takes events is not to be refused, and who was refused sees that it does not.
        if refusal.is_none() {
            shared.queue.set_unavailable(None);
            shared.set_engine_health(health);
        } else {
            shared.set_engine_health(health);
            shared.queue.set_unavailable(refusal);
        }
    }

    fn tell_of_progress(&mut self, health: Option<&Health>) {
        if let Some(Health::CatchingUp(catch_up)) = health
            && self.told_at.elapsed() >= TELL_INTERVAL
        {
            self.told_at = Instant::now();
            tracing::info!(
                percent = catch_up.percent(),
                commits_behind = catch_up.commits_behind,
                commits_per_second = catch_up.commits_per_second(),
                remaining_seconds = catch_up.remaining().map(|remaining| remaining.as_secs()),
                "the replica catches up with the store"
            );
        }
    }

    /// Waits for an answer of the engine, which comes in bounded time. When it does not come until `patience_ends`,
    /// batches are refused meanwhile.
    pub(super) fn wait_until<T>(
        &mut self,
        answer: impl Future<Output = T>,
        patience_ends: Instant,
        shared: &Shared,
    ) -> T {
        let runtime = self.runtime.clone();
        runtime.block_on(async {
            let mut answer = std::pin::pin!(answer);
            if !shared.queue.is_unavailable() {
                tokio::select! {
                    biased;
                    answer = &mut answer => return answer,
                    () = tokio::time::sleep_until(patience_ends.into()) => {}
                }
                self.trouble_began(patience_ends);
                let name = self.sequencer().name();
                let reason = self.refusal.clone();
                let reason = reason.unwrap_or_else(|| format!("{name} does not answer").into());
                self.refuse(reason, shared);
            }
            answer.await
        })
    }

    /// The same for a question that comes now.
    pub(super) fn wait<T>(&mut self, answer: impl Future<Output = T>, shared: &Shared) -> T {
        self.wait_until(answer, self.patience_ends(), shared)
    }

    /// The engine takes no commits.
    pub(super) fn refuse(&mut self, reason: Arc<str>, shared: &Shared) {
        if self.refusal.is_none() {
            tracing::error!(%reason, "the store takes no events: the bridge is not ready");
        }
        self.refusal = Some(reason);
        self.publish_health(shared);
    }

    /// Whether events can be taken, and if not, why.
    fn health(&self) -> Option<Health> {
        if let Some(outage) = &self.outage {
            return Some(Health::Unavailable {
                reason: outage.to_string().into(),
                is_cut_off: matches!(outage, Outage::Disconnected(_)),
            });
        }
        if self.is_behind() {
            let (from, since) = self.catching_up.unwrap_or((self.position, Instant::now()));
            return Some(Health::CatchingUp(CatchUp {
                commits_behind: self.catch_up_to.0 - self.position.0,
                commits_total: self.catch_up_to.0.saturating_sub(from.0),
                took: since.elapsed(),
            }));
        }
        self.refusal.clone().map(|reason| Health::Unavailable {
            reason,
            is_cut_off: false,
        })
    }
}
