//! Owns the way from the write-ahead log into the database file: a thread and a connection of its
//! own, so that no commit pays for it.
//!
//! It goes on all the time, in small parts, each of which is flushed: a commit that flushes at the
//! same moment waits for little, and so does one that is held back. For SQLite begins the WAL anew
//! only when all of it has been carried over and flushed at the moment a commit begins, which under
//! steady load is never. So when the WAL has reached its size and little is left, the writer is held
//! back between two commits, for the time that this little takes.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rusqlite::{Connection, ErrorCode};

use super::{Shared, schema::PAGE_BYTES, wal::WalFile};

/// The WAL is carried over whenever it has grown by this: few enough bytes to flush at once.
const PART_PAGES: u64 = 4 * 1024 * 1024 / PAGE_BYTES;
/// The writer is held back only when at most this is left: 1 MiB.
const REST_PAGES_MAX: u64 = 1024 * 1024 / PAGE_BYTES;
/// How often the rest is made smaller before the writer is held back all the same.
const ROUNDS_MAX: usize = 6;
/// When the WAL has passed its limit, the readers of its last pages are waited for so long.
const READERS_WAIT: Duration = Duration::from_millis(50);
/// At so many times its limit the WAL is overgrown: the checkpointer is short of time, and commits
/// give way to it.
const OVERGROWN_LIMITS: u64 = 3;
/// But for no longer than this before each of them: a reader that holds the WAL slows the writer
/// down and does not stop it.
const OVERGROWN_WAIT: Duration = Duration::from_millis(250);
/// A WAL that nobody adds to is carried over after this time, so that a start has less to read.
const IDLE_WAIT: Duration = Duration::from_secs(5);

/// The meeting point of the writer and the checkpointer.
#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
    /// Pages in the WAL, as of the last commit.
    wal_pages: AtomicU64,
    /// From how many pages on the checkpointer wants to know.
    threshold_pages: AtomicU64,
    /// From how many pages on commits wait for the checkpointer.
    overgrown_pages: u64,
}

#[derive(Default)]
struct GateState {
    committing: bool,
    held: bool,
    grown: bool,
    stopped: bool,
}

/// What the checkpointer waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Woken {
    Grown,
    Idle,
    Stopped,
}

/// A commit may run as long as this lives.
pub(super) struct Pass<'a>(&'a Gate);

/// No commit runs as long as this lives.
struct Hold<'a>(&'a Gate);

impl Gate {
    pub(super) fn new(wal_bytes_max: u64) -> Self {
        Self {
            threshold_pages: AtomicU64::new(part_pages(wal_bytes_max / PAGE_BYTES)),
            overgrown_pages: (overgrown_bytes(wal_bytes_max) / PAGE_BYTES).max(2),
            ..Self::default()
        }
    }

    /// Called by the writer before a commit.
    pub(super) fn enter(&self) -> Pass<'_> {
        let mut state = self.state();
        if self.is_overgrown() {
            state.grown = true;
            self.changed.notify_all();
            let overgrown = |state: &mut GateState| self.is_overgrown() && !state.stopped;
            let waited = self
                .changed
                .wait_timeout_while(state, OVERGROWN_WAIT, overgrown);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        let mut state = self
            .changed
            .wait_while(state, |state| state.held)
            .unwrap_or_else(PoisonError::into_inner);
        state.committing = true;
        Pass(self)
    }

    /// Called by SQLite after each commit.
    pub(super) fn set_wal_pages(&self, pages: u64) {
        self.wal_pages.store(pages, Ordering::Relaxed);
        if pages >= self.threshold_pages.load(Ordering::Relaxed) {
            self.state().grown = true;
            self.changed.notify_all();
        }
    }

    fn is_overgrown(&self) -> bool {
        self.wal_pages.load(Ordering::Relaxed) >= self.overgrown_pages
    }

    /// Bytes in the WAL that the next commits do not write over.
    pub(super) fn wal_bytes(&self) -> u64 {
        self.wal_pages.load(Ordering::Relaxed) * PAGE_BYTES
    }

    /// Ends the checkpointer's thread.
    pub(super) fn stop(&self) {
        self.state().stopped = true;
        self.changed.notify_all();
    }

    /// Waits for the running commit, and holds back the next one.
    fn hold(&self) -> Hold<'_> {
        let mut state = self.state();
        state.held = true;
        drop(
            self.changed
                .wait_while(state, |state| state.committing)
                .unwrap_or_else(PoisonError::into_inner),
        );
        Hold(self)
    }

    /// Waits until the WAL has grown or nothing has happened for a while.
    fn wait(&self) -> Woken {
        let (mut state, _) = self
            .changed
            .wait_timeout_while(self.state(), IDLE_WAIT, |state| {
                !state.grown && !state.stopped
            })
            .unwrap_or_else(PoisonError::into_inner);
        match (state.stopped, std::mem::take(&mut state.grown)) {
            (true, _) => Woken::Stopped,
            (false, true) => Woken::Grown,
            (false, false) => Woken::Idle,
        }
    }

    fn state(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.state().committing = false;
        self.0.changed.notify_all();
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.state().held = false;
        self.0.changed.notify_all();
    }
}

/// From what size on the WAL is overgrown.
pub(super) fn overgrown_bytes(wal_bytes_max: u64) -> u64 {
    wal_bytes_max.saturating_mul(OVERGROWN_LIMITS)
}

fn part_pages(limit_pages: u64) -> u64 {
    PART_PAGES.min(limit_pages / 8).max(1)
}

/// Runs until the gate is stopped. A failure is the log's failure: what was flushed is unknown.
pub(super) fn run(
    shared: &Arc<Shared>,
    connection: &Connection,
    mut wal: WalFile,
    wal_bytes_max: u64,
) {
    let limit_pages = (wal_bytes_max / PAGE_BYTES).max(2);
    let worthwhile_pages = REST_PAGES_MAX.min(limit_pages / 2);
    loop {
        let woken = shared.gate.wait();
        let pages = shared.gate.wal_pages.load(Ordering::Relaxed);
        match woken {
            Woken::Stopped => break,
            Woken::Idle if pages < worthwhile_pages => continue,
            Woken::Idle | Woken::Grown => {}
        }
        let prepared = prepare(shared, &mut wal);
        let carried = prepared.and_then(|()| carry_over(shared, connection));
        let carried = carried.and_then(|()| {
            let pages = shared.gate.wal_pages.load(Ordering::Relaxed);
            // A little before the limit: commits go on until the writer is held back.
            if woken == Woken::Idle || pages >= limit_pages / 4 * 3 {
                begin_anew(shared, connection, limit_pages)?;
            }
            Ok(())
        });
        match carried {
            Ok(()) => {}
            Err(Error::Database(error)) if is_harmless(&error) => {}
            Err(error) => {
                shared.fail(&format!("checkpoint: {error}"));
            }
        }
        shared.gate.set_threshold(part_pages(limit_pages));
    }
}

impl Gate {
    /// After a checkpoint: woken again when the WAL has grown by another part.
    fn set_threshold(&self, part_pages: u64) {
        let pages = self.wal_pages.load(Ordering::Relaxed);
        let next = pages + part_pages;
        self.threshold_pages.store(next, Ordering::Relaxed);
        self.state().grown = false;
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Database(#[from] rusqlite::Error),
    #[error("flush: {0}")]
    Flush(#[from] io::Error),
}

/// Makes room in the file of the WAL before it is needed: a few times after each start.
fn prepare(shared: &Shared, wal: &mut WalFile) -> Result<(), Error> {
    if wal.is_short(shared.gate.wal_bytes()) {
        let _hold = shared.gate.hold();
        wal.make_room()?;
    }
    Ok(())
}

/// Carries the WAL over while commits go on, until little is left. SQLite itself flushes the
/// database only when nothing was committed meanwhile, and all at once.
fn carry_over(shared: &Shared, connection: &Connection) -> Result<(), Error> {
    for _ in 0..ROUNDS_MAX {
        let done = checkpoint(connection, "PASSIVE")?.carried_pages;
        shared.database_file.sync_data()?;
        let pages = shared.gate.wal_pages.load(Ordering::Relaxed);
        if pages.saturating_sub(done) <= REST_PAGES_MAX {
            break;
        }
    }
    Ok(())
}

/// Carries the rest over with the writer held back: the next commit begins the WAL anew.
fn begin_anew(shared: &Shared, connection: &Connection, limit_pages: u64) -> Result<(), Error> {
    let hold = shared.gate.hold();
    let mut progress = checkpoint(connection, "PASSIVE")?;
    if progress.wal_pages > limit_pages {
        // A reader that began before still needs pages. Readers take a few milliseconds.
        connection.busy_timeout(READERS_WAIT)?;
        let restarted = checkpoint(connection, "RESTART");
        connection.busy_timeout(Duration::ZERO)?;
        progress = restarted?;
    }
    if progress.wal_pages == progress.carried_pages {
        shared.gate.wal_pages.store(0, Ordering::Relaxed);
    }
    drop(hold);
    Ok(())
}

/// Carries everything over and empties the WAL, when no commit will come any more.
pub(super) fn finish(connection: &Connection) -> rusqlite::Result<()> {
    match checkpoint(connection, "TRUNCATE") {
        Ok(_) => Ok(()),
        Err(error) if is_harmless(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

struct Progress {
    wal_pages: u64,
    carried_pages: u64,
}

fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<Progress> {
    connection
        .prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))?
        .query_row([], |row| {
            let pages = |index| {
                row.get::<_, i64>(index)
                    .map(|pages| u64::try_from(pages).unwrap_or(0))
            };
            Ok(Progress {
                wal_pages: pages(1)?,
                carried_pages: pages(2)?,
            })
        })
}

/// What costs only time: a lock that is held, or a full disk. The WAL stays as it is.
fn is_harmless(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::DiskFull)
    )
}
