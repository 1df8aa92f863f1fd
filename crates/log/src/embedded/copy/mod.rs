//! Owns the copying of a log from one store to another: an embedded log into a sequence, a sequence into a
//! directory, or one sequence into another. The copy continues the same log: its id, its sequence numbers,
//! its epochs, the bytes of its blocks and the keys of its events are those of the source. Only the headers
//! of the frames are made anew, as they say where in its store a commit is.
//!
//! ```text
//! source    reads a store from its oldest block to its newest
//! sequence  appends blocks to a sequence, or goes on with a copy that was interrupted
//! replica   has a replica catch up, and makes it a log of its own
//! ```
//!
//! Nothing counts as copied until the target was read back and compared with the source.

mod files;
mod sequence;
mod source;
#[cfg(test)]
mod tests;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;

use self::{sequence::Target, source::Source};
use crate::{
    Block,
    embedded::open_error::OpenError,
    sequencer::{Outage, Sequencer},
};
use prelude_bridge_event::{Epoch, EventKey, LogId, Sequence, UnixMicros};

/// The pause before an engine is asked again, which doubles …
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// … up to this.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// For so long an engine is asked again that does not answer. A leader's election takes eight seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a log is.
#[derive(Clone)]
pub enum Store {
    /// In the files of this directory.
    Directory(PathBuf),
    /// In an engine that orders the commits of several bridges.
    Sequence(Arc<dyn Sequencer>),
}

impl Store {
    fn name(&self) -> String {
        match self {
            Self::Directory(path) => path.display().to_string(),
            Self::Sequence(sequencer) => sequencer.name().to_string(),
        }
    }
}

/// What a copy is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyPhase {
    /// It copies.
    Copy,
    /// It reads what was copied and compares it with the source.
    Verify,
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyProgress {
    /// What is done now.
    pub phase: CopyPhase,
    /// Events that this is done with.
    pub done_events: u64,
    /// Events in all.
    pub total_events: u64,
}

/// A log that was copied, and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyReport {
    /// Its identity.
    pub log: LogId,
    /// Its first event.
    pub first: Sequence,
    /// Its last event; the one before `first` where it has none.
    pub last: Sequence,
    /// How many events it has.
    pub events: u64,
    /// How many of them the target had before, of a copy that was interrupted.
    pub events_before: u64,
    /// The bytes of their blocks.
    pub bytes: u64,
    /// SHA-256 over all blocks: the number of the first event (u64), the bytes of the block (u64), the
    /// block, and the keys of its events. Numbers little-endian.
    pub checksum: [u8; 32],
}

/// Why a log is not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A directory cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The two stores do not go together. Says what to do.
    #[error("{0}")]
    Refused(String),
    /// A part of the source, or of what was copied, is damaged.
    #[error("{0}")]
    Damaged(String),
    /// The engine of a store does not do what it is asked for. The copy can be continued.
    #[error("{0}; run the same command again when it works, which goes on where this one ended")]
    Outage(#[from] Outage),
    /// A store was changed while it was copied.
    #[error("{0}")]
    Changed(String),
}

/// Told how far a copy is.
pub type OnProgress<'a> = &'a mut dyn FnMut(CopyProgress);

/// Refuses a directory without a log, before anything is made for the copy.
///
/// # Errors
/// [`CopyError`].
pub fn check_source(from: &Store) -> Result<(), CopyError> {
    match from {
        Store::Directory(path) => source::check_directory(path),
        Store::Sequence(_) => Ok(()),
    }
}

/// Copies a log. The target is empty, or has the beginning of this very copy. Blocks: it is not to be called
/// from a task of the runtime, which has to have several threads.
///
/// # Errors
/// [`CopyError`]. Whatever it is, the source is as it was, and the target is no log that anybody took for
/// whole: the same copy goes on.
pub fn copy(
    from: &Store,
    to: &Store,
    runtime: &Handle,
    progress: OnProgress<'_>,
) -> Result<CopyReport, CopyError> {
    copy_with_patience(from, to, &Engine::new(runtime, PATIENCE), progress)
}

fn copy_with_patience(
    from: &Store,
    to: &Store,
    engine: &Engine,
    progress: OnProgress<'_>,
) -> Result<CopyReport, CopyError> {
    if let (Store::Directory(from), Store::Directory(_)) = (from, to) {
        return Err(CopyError::Refused(format!(
            "both stores are directories: stop the bridge, and copy all files with `cp -a {}`",
            from.display()
        )));
    }
    let source = Source::open(from, engine)?;
    let contents = source.contents();
    let mut sum = Sum::default();
    let mut tell = Tell::new(&contents, progress);
    let events_before = match (&source, to) {
        (_, Store::Sequence(sequencer)) => {
            let mut target = Target::begin(sequencer, engine, &contents)?;
            let events_before = target.head().0.saturating_sub(contents.first.before().0);
            source.read(&mut |piece| {
                sum.add(&piece);
                tell.at(CopyPhase::Copy, piece.block.last_sequence());
                target.push(piece)
            })?;
            target.flush()?;
            events_before
        }
        (Source::Sequence(source), Store::Directory(path)) => {
            let events_before = files::copy(source, path, &contents, engine, &mut tell)?;
            source.read(&mut |piece| {
                sum.add(&piece);
                Ok(())
            })?;
            events_before
        }
        (Source::Files(_), Store::Directory(_)) => 0,
    };
    source.check_unchanged()?;
    let copied = verify(to, engine, &contents, &mut tell)?;
    let (sum, checksum) = sum.finish();
    if copied != (sum, checksum) {
        let (Totals { events, bytes }, name) = (copied.0, to.name());
        return Err(CopyError::Damaged(format!(
            "{name} has something else than {}: {events} events with {bytes} bytes, not {} events with {} bytes, or \
             another content: empty it, and copy again",
            from.name(),
            sum.events,
            sum.bytes
        )));
    }
    Ok(CopyReport {
        log: contents.log,
        first: contents.first,
        last: contents.head,
        events: sum.events,
        events_before,
        bytes: sum.bytes,
        checksum,
    })
}

/// Reads what was copied.
fn verify(
    to: &Store,
    engine: &Engine,
    contents: &Contents,
    tell: &mut Tell<'_>,
) -> Result<(Totals, [u8; 32]), CopyError> {
    let target = Source::open(to, engine)?;
    let found = target.contents();
    if found != *contents {
        return Err(CopyError::Damaged(format!(
            "{} has log {:016x} with the events {} to {}, and the source has log {:016x} with the events {} to {}: if \
             retention removed some meanwhile, raise it; otherwise empty the target, and copy again",
            to.name(),
            found.log.0,
            found.first,
            found.head,
            contents.log.0,
            contents.first,
            contents.head
        )));
    }
    let mut sum = Sum::default();
    target.read(&mut |piece| {
        sum.add(&piece);
        tell.at(CopyPhase::Verify, piece.block.last_sequence());
        Ok(())
    })?;
    Ok(sum.finish())
}

/// A block with the keys of its events.
struct Piece {
    block: Arc<Block>,
    keys: Vec<EventKey>,
}

impl Piece {
    fn is_same_as(&self, other: &Self) -> bool {
        self.block.as_bytes() == other.block.as_bytes() && self.keys == other.keys
    }
}

/// Takes the pieces of a store in their order.
type Take<'a> = &'a mut dyn FnMut(Piece) -> Result<(), CopyError>;

/// What a store has.
#[derive(Clone, Copy, Debug)]
struct Contents {
    log: LogId,
    /// The first event.
    first: Sequence,
    /// The last event.
    head: Sequence,
    /// The epoch of the last event that retention has removed.
    epoch_before: Epoch,
    /// When the last event was received, if the store has none any more.
    last_at: UnixMicros,
}

/// When an event was received is said by its block.
impl PartialEq for Contents {
    fn eq(&self, other: &Self) -> bool {
        let of = |it: &Self| (it.log, it.first, it.head, it.epoch_before);
        of(self) == of(other)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    events: u64,
    bytes: u64,
}

/// The checksum of what was read.
#[derive(Default)]
struct Sum {
    totals: Totals,
    digest: Sha256,
}

impl Sum {
    fn add(&mut self, Piece { block, keys }: &Piece) {
        let bytes = block.as_bytes().len() as u64;
        self.totals.events += block.entries().len() as u64;
        self.totals.bytes += bytes;
        self.digest.update(block.first_sequence().0.to_le_bytes());
        self.digest.update(bytes.to_le_bytes());
        self.digest.update(block.as_bytes());
        for EventKey(key) in keys {
            self.digest.update(key);
        }
    }

    fn finish(self) -> (Totals, [u8; 32]) {
        (self.totals, self.digest.finalize().into())
    }
}

/// Tells of progress.
struct Tell<'a> {
    before: Sequence,
    total_events: u64,
    progress: OnProgress<'a>,
}

impl<'a> Tell<'a> {
    fn new(contents: &Contents, progress: OnProgress<'a>) -> Self {
        let before = contents.first.before();
        Self {
            before,
            total_events: contents.head.0.saturating_sub(before.0),
            progress,
        }
    }

    fn at(&mut self, phase: CopyPhase, last: Sequence) {
        (self.progress)(CopyProgress {
            phase,
            done_events: last.0.saturating_sub(self.before.0),
            total_events: self.total_events,
        });
    }
}

/// Waits for the answers of engines.
#[derive(Clone)]
struct Engine {
    runtime: Handle,
    patience: Duration,
}

impl Engine {
    fn new(runtime: &Handle, patience: Duration) -> Self {
        Self {
            runtime: runtime.clone(),
            patience,
        }
    }

    /// Asks until there is an answer, or for as long as there is patience.
    fn ask<'a, T>(
        &self,
        ask: impl Fn() -> BoxFuture<'a, Result<T, Outage>>,
    ) -> Result<T, CopyError> {
        let mut patience = Patience::new(self.patience);
        loop {
            match self.runtime.block_on(ask()) {
                Ok(answer) => return Ok(answer),
                Err(outage) => patience.wait(outage)?,
            }
        }
    }
}

/// How long an engine may not answer.
struct Patience {
    since: Instant,
    limit: Duration,
    pause: Duration,
}

impl Patience {
    fn new(limit: Duration) -> Self {
        Self {
            since: Instant::now(),
            limit,
            pause: PAUSE_MIN,
        }
    }

    /// There was an answer.
    fn renew(&mut self) {
        *self = Self::new(self.limit);
    }

    /// Waits a moment, unless waiting is of no use or was too long.
    fn wait(&mut self, outage: Outage) -> Result<(), CopyError> {
        let passes = matches!(outage, Outage::Disconnected(_) | Outage::Unavailable(_));
        if !passes || self.since.elapsed() >= self.limit {
            return Err(outage.into());
        }
        std::thread::sleep(self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }
}
