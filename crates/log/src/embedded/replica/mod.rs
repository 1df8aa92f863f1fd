//! Owns what makes the log on disk a replica of a log that several bridges write: a sequence gives their
//! commits one order, and each bridge writes every commit into its own segments, whoever made it.
//!
//! ```text
//! begin    what a start finds: a replica that goes on, one that is made anew, or a new log
//! follow   takes the commits of others from the sequence, and what retention has removed there
//! settle   puts a commit into the sequence, and finds out which commit is at its position
//! forward  leaves batches to the bridge that wrote last
//! writing  the writer's part: prepare, settle, apply, and again after somebody else's commit
//! message  the bytes of a commit in the sequence
//! copy     a log from one store to another
//! ```
//!
//! The segments of a replica are flushed once a second. What was not flushed before a crash is cut off by
//! the next start and comes from the sequence again, so nothing of a replica's end can be damaged.

mod begin;
mod copy;
mod follow;
mod forward;
mod message;
mod settle;
#[cfg(test)]
mod tests;
mod writing;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tokio::{runtime::Handle, sync::watch};

pub use self::copy::{CopyError, CopyPhase, CopyProgress, CopyReport, OnProgress, Store, copy};
use self::{forward::Forward, message::Message};
pub(super) use self::{begin::Start, follow::Follow, writing::GROUP_PART};
use super::{
    Embedded, OpenError, Options, Seams,
    commit::CommitFrames,
    frame::{Header, Link},
};
use crate::{
    Health, ReadError, group,
    sequencer::{Ends, Outage, Position, Sequencer},
};
use prelude_bridge_event::{Epoch, LogId, Sequence, UnixMicros};

/// A start waits for so long until the engine answers.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// How long [`Log::catch_up`](crate::Log::catch_up) waits.
const CATCH_UP: Duration = Duration::from_secs(5);

/// Opens the replica of a log in a directory, which is created if need be; the log too, where the sequence
/// is new. Resolves before the replica has caught up.
///
/// # Errors
/// [`OpenError`], which says what to do.
pub async fn open(
    data_dir: &Path,
    options: Options,
    sequencer: Arc<dyn Sequencer>,
) -> Result<Arc<Embedded>, OpenError> {
    open_with_seams(data_dir, options, sequencer, Seams::default()).await
}

/// The same with seams.
pub(crate) async fn open_with_seams(
    data_dir: &Path,
    options: Options,
    sequencer: Arc<dyn Sequencer>,
    seams: Seams,
) -> Result<Arc<Embedded>, OpenError> {
    let (data_dir, runtime) = (data_dir.to_owned(), Handle::current());
    let opened = runtime.clone().spawn_blocking(move || {
        super::open_replica(&data_dir, options, sequencer, runtime, seams)
    });
    let opened = opened.await;
    opened.unwrap_or_else(|panic| Err(OpenError::Thread(std::io::Error::other(panic))))
}

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
                Ok(caught_up) => caught_up.map_err(|outage: Outage| unavailable(outage.to_string())),
                Err(_) => Err(unavailable("it has not caught up in time".to_owned())),
            }
        })
    }
}

/// The writer's knowledge of the sequence.
pub(super) struct Replica {
    pub(super) shared: Arc<Replicated>,
    runtime: Handle,
    log: LogId,
    /// The number of this bridge.
    writer: u32,
    /// The last position that was applied.
    position: Position,
    /// The digest of the last commit with events; `None` where the replica began after it.
    digest: Option<u64>,
    /// The epoch that this bridge begins with its next commit; `None` once it did, as it goes on in the
    /// epoch of the last commit then, whoever began it.
    term: Option<Epoch>,
    connections: watch::Receiver<u64>,
    /// A commit that is in the sequence, and has no room on this disk.
    waiting: Option<(Position, CommitFrames)>,
    /// It has not caught up before this position.
    catch_up_to: Position,
    /// Why nothing can be appended.
    refusal: Option<Arc<str>>,
    /// Why nothing new is learned, and whether the engine itself answers.
    outage: Option<Outage>,
    /// When the sequence last grew.
    grown_at: Instant,
    forward: Forward,
    /// When the engine was last asked to remove what is too old.
    trimmed_at: Instant,
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
            grown_at: Instant::now(),
            forward,
            trimmed_at: Instant::now(),
        })
    }

    fn sequencer(&self) -> &Arc<dyn Sequencer> {
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
    fn mark(&self, head: Sequence, last_at: UnixMicros, epoch_before: Epoch) -> bytes::Bytes {
        let (number, _, link) = self.next_commit(epoch_before);
        let place = (head.plus(1), last_at);
        Message::mark(&Header::of_mark(
            self.log,
            place,
            (number, epoch_before),
            link,
        ))
    }

    /// Takes note that the replica has reached a position.
    fn advance(&mut self, position: Position, digest: u64) {
        self.position = position;
        self.digest = Some(digest);
        self.grown_at = Instant::now();
        self.shared.applied.send_replace(position);
    }

    /// A new connection: what was known of the sequence has to be compared, and an epoch begins.
    fn begin_term(&mut self) -> Result<(), getrandom::Error> {
        self.connections.mark_unchanged();
        self.term = Some(group::new_epoch()?);
        Ok(())
    }

    /// Whether events can be taken, and if not, why.
    fn health(&self) -> Option<Health> {
        if let Some(outage) = &self.outage {
            return Some(Health::Unavailable {
                reason: outage.to_string().into(),
                is_cut_off: matches!(outage, Outage::Disconnected(_)),
            });
        }
        if self.position < self.catch_up_to {
            let commits_behind = self.catch_up_to.0 - self.position.0;
            return Some(Health::CatchingUp { commits_behind });
        }
        self.refusal.clone().map(|reason| Health::Unavailable {
            reason,
            is_cut_off: false,
        })
    }
}
