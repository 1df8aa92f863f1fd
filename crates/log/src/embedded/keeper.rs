//! Owns the work beside the commits, on a thread of its own: making the next segment ready, carrying
//! the index's write-ahead log over into its database file, and removing segments. No commit waits
//! for any of it, and none of it for the whole of another: a segment is made a piece at a time.

use std::{
    fs::File,
    io,
    path::Path,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode};

use super::{
    Shared,
    directory::DATABASE_FILE,
    disk_error,
    ids::PAGE_BYTES,
    preparation::{Order, Preparation, Ready},
    segments,
};
use prelude_bridge_event::LogId;

/// A write-ahead log that nobody adds to is carried over after this time, …
const IDLE_WAIT: Duration = Duration::from_secs(5);
/// … if it has so many pages: a start has less to read.
const IDLE_PAGES_MIN: u64 = 16;
/// The index is flushed at most so often for the sake of the last commit.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(1);

/// Where the writer leaves its wishes, and finds what came of them.
pub(super) struct Keeper {
    state: Mutex<State>,
    changed: Condvar,
    /// Held by whoever must not be disturbed in the index: the writer while it writes there, the
    /// keeper while it carries the write-ahead log over.
    pub(super) index: Mutex<()>,
    /// Pages in the write-ahead log, as of the last transaction.
    wal_pages: AtomicU64,
    wal_pages_max: u64,
}

#[derive(Default)]
struct State {
    order: Option<Order>,
    making: bool,
    made: Option<io::Result<Ready>>,
    /// What is being made was looked for already: there is no time to rest.
    is_late: bool,
    /// Somebody waits for what is being made.
    hurry: bool,
    /// Segments whose end is in the index, though it may not have been flushed.
    given_up: Vec<u64>,
    carry_over: bool,
    /// When the index's write-ahead log is to be flushed.
    confirm_at: Option<Instant>,
    /// That is news.
    confirm_is_new: bool,
    confirmed_at: Option<Instant>,
    stopped: bool,
    ended: bool,
}

/// What there is to do.
struct Chores {
    order: Option<Order>,
    /// What is being made is looked for already, …
    is_late: bool,
    /// … and has to do as it is.
    is_enough: bool,
    given_up: Vec<u64>,
    carry_over: bool,
    confirm: bool,
}

impl Keeper {
    pub(super) fn new(wal_bytes_max: u64) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            index: Mutex::default(),
            wal_pages: AtomicU64::new(0),
            wal_pages_max: (wal_bytes_max / PAGE_BYTES).max(2),
        }
    }

    /// Asks for a segment.
    pub(super) fn order(&self, order: Order) {
        self.state().order = Some(order);
        self.changed.notify_all();
    }

    /// Takes the segment that was asked for, if it is ready.
    pub(super) fn take(&self) -> Option<Ready> {
        let mut state = self.state();
        if state.made.is_none() && !state.is_late {
            state.is_late = true;
            self.changed.notify_all();
        }
        state.made.take()?.ok()
    }

    /// Waits for a segment, as it is.
    pub(super) fn demand(&self, order: Order) -> io::Result<Ready> {
        let mut state = self.state();
        if !state.making && state.made.is_none() {
            state.order = Some(order);
        }
        state.hurry = true;
        self.changed.notify_all();
        let waiting = |state: &mut State| state.made.is_none() && !state.ended;
        let waited = self.changed.wait_while(state, waiting);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.hurry = false;
        let made = state.made.take();
        made.unwrap_or_else(|| Err(io::Error::other("the keeper ended")))
    }

    /// Has files removed whose end the index has noted.
    pub(super) fn remove(&self, ordinals: Vec<u64>) {
        if !ordinals.is_empty() {
            self.state().given_up.extend(ordinals);
            self.changed.notify_all();
        }
    }

    /// Has the index flushed soon, so that it knows of the last commit also after a loss of power.
    pub(super) fn confirm(&self) {
        let mut state = self.state();
        if state.confirm_at.is_none() {
            let rested = state.confirmed_at.map(|at| at + CONFIRM_INTERVAL);
            let now = Instant::now();
            state.confirm_at = Some(rested.map_or(now, |rested| rested.max(now)));
            state.confirm_is_new = true;
            self.changed.notify_all();
        }
    }

    /// Called by SQLite after each transaction.
    pub(super) fn set_wal_pages(&self, pages: u64) {
        self.wal_pages.store(pages, Ordering::Relaxed);
        if pages >= self.wal_pages_max {
            self.state().carry_over = true;
            self.changed.notify_all();
        }
    }

    /// Bytes in the write-ahead log that the next transactions do not write over.
    pub(super) fn wal_bytes(&self) -> u64 {
        self.wal_pages.load(Ordering::Relaxed) * PAGE_BYTES
    }

    /// Ends the thread.
    pub(super) fn stop(&self) {
        self.state().stopped = true;
        self.changed.notify_all();
    }

    /// Waits until there is something to do; `None` when nothing more will be. When a segment is
    /// being made there is, from the end of the rest on.
    fn wait(&self, rest_ends_at: Option<Instant>) -> Option<Chores> {
        let state = self.state();
        let now = Instant::now();
        let until = |at: Instant| at.saturating_duration_since(now);
        let moment = rest_ends_at.map_or(IDLE_WAIT, until);
        let moment = moment.min(state.confirm_at.map_or(IDLE_WAIT, until));
        let nothing = |state: &mut State| {
            let is_urgent = state.making && (state.is_late || state.hurry);
            let idle = state.order.is_none() && state.given_up.is_empty() && !is_urgent;
            idle && !state.carry_over && !state.confirm_is_new && !state.stopped
        };
        let waited = self.changed.wait_timeout_while(state, moment, nothing);
        let (mut state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        let idle_pages = self.wal_pages.load(Ordering::Relaxed);
        let now = Instant::now();
        let confirm = state.confirm_at.take_if(|at| *at <= now).is_some();
        if confirm {
            state.confirmed_at = Some(now);
        }
        state.confirm_is_new = false;
        let is_idle = !state.making && timeout.timed_out() && idle_pages >= IDLE_PAGES_MIN;
        let is_idle = is_idle && !confirm;
        state.making |= state.order.is_some();
        (!state.stopped).then(|| Chores {
            order: state.order.take(),
            is_late: state.is_late,
            is_enough: state.hurry,
            given_up: std::mem::take(&mut state.given_up),
            carry_over: std::mem::take(&mut state.carry_over) || is_idle,
            confirm,
        })
    }

    /// Leaves a segment for whoever asked for it.
    fn hand_over(&self, made: io::Result<Ready>) {
        let mut state = self.state();
        state.making = false;
        state.is_late = false;
        state.made = Some(made);
        drop(state);
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs until the keeper is stopped.
pub(super) fn run(shared: &Shared, connection: &Connection, directory: &Path, log: LogId) {
    let keeper = &shared.keeper;
    let _ended = Ended(keeper);
    let mut making: Option<Preparation> = None;
    let mut given_up = Vec::new();
    while let Some(chores) = keeper.wait(making.as_ref().map(Preparation::rest_ends_at)) {
        // First, as a commit may wait for it.
        if let Some(order) = chores.order {
            match Preparation::begin(directory, log, order) {
                Ok(begun) => making = Some(begun),
                Err(error) => keeper.hand_over(Err(error)),
            }
        }
        if let Some(mut segment) = making.take() {
            let is_whole = if chores.is_enough {
                Ok(true)
            } else {
                segment.go_on(chores.is_late)
            };
            match is_whole {
                Ok(true) => keeper.hand_over(Ok(segment.ready())),
                Ok(false) => making = Some(segment),
                Err(error) => keeper.hand_over(Err(error)),
            }
        }
        if chores.carry_over {
            let index = keeper.index.lock().unwrap_or_else(PoisonError::into_inner);
            match carry_over(connection) {
                Ok(true) => keeper.wal_pages.store(0, Ordering::Relaxed),
                Ok(false) => {}
                Err(error) if is_harmless(&error) => {}
                // What was flushed is unknown.
                Err(error) => {
                    shared.fail_index(&error);
                }
            }
            drop(index);
        }
        if chores.confirm
            && let Err(error) = flush_wal(directory)
            && !disk_error::is_no_descriptor(&error)
        {
            shared.fail(&format!("flush of the index: {error}"));
        }
        given_up.extend(chores.given_up);
        if !given_up.is_empty() {
            match remove(directory, &given_up) {
                Ok(()) => given_up.clear(),
                // They go with the next ones.
                Err(error) if disk_error::is_no_descriptor(&error) => {}
                Err(error) => {
                    shared.fail(&format!("removal of old events: {error}"));
                }
            }
        }
    }
    // Zeros that nobody wrote over. Where that fails, the next start removes them.
    let made = keeper.state().made.take().and_then(Result::ok);
    if let Some(unused) = making.map(Preparation::ready).or(made) {
        let _ = remove(directory, &[unused.ordinal]);
    }
}

/// Marks the end of the thread, however it comes.
struct Ended<'a>(&'a Keeper);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.state().ended = true;
        self.0.changed.notify_all();
    }
}

/// Removes segments, oldest first. That they were given up has to be durable before.
pub(super) fn remove(directory: &Path, ordinals: &[u64]) -> io::Result<()> {
    if ordinals.is_empty() {
        return Ok(());
    }
    flush_wal(directory)?;
    for &ordinal in ordinals {
        match std::fs::remove_file(segments::path(directory, ordinal)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Makes what is in the index durable.
fn flush_wal(directory: &Path) -> io::Result<()> {
    match File::open(directory.join(format!("{DATABASE_FILE}-wal"))) {
        Ok(wal) => wal.sync_data(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Carries the whole write-ahead log over, so that the next transaction begins it anew. False when
/// somebody still reads in it.
pub(super) fn carry_over(connection: &Connection) -> rusqlite::Result<bool> {
    checkpoint(connection, "PASSIVE")
}

/// Carries everything over and empties the write-ahead log, when nothing will come any more.
pub(super) fn finish(connection: &Connection) -> rusqlite::Result<()> {
    match checkpoint(connection, "TRUNCATE") {
        Ok(_) => Ok(()),
        Err(error) if is_harmless(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))?
        .query_row([], |row| Ok(row.get::<_, i64>(1)? == row.get::<_, i64>(2)?))
}

/// What costs only time: a lock that is held, or a full disk. The write-ahead log stays as it is.
fn is_harmless(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::DiskFull)
    )
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::embedded::frame;

    #[test]
    fn nothing_waits_until_a_segment_is_made() {
        let keeper = Keeper::new(10 * PAGE_BYTES);
        keeper.order(Order {
            ordinal: 7,
            bytes: 1,
        });
        let chores = keeper.wait(None).unwrap();
        assert!(chores.order.is_some_and(|order| order.ordinal == 7));
        // It rests for longer than anybody would wait.
        let rest = Some(Instant::now() + Duration::from_secs(3_600));

        keeper.set_wal_pages(10);
        assert!(keeper.wait(rest).unwrap().carry_over);
        keeper.remove(vec![3]);
        assert_eq!(keeper.wait(rest).unwrap().given_up, [3]);
        assert!(keeper.take().is_none());
        let chores = keeper.wait(rest).unwrap();
        assert!(chores.is_late && !chores.carry_over && chores.given_up.is_empty());
        keeper.stop();
        assert!(keeper.wait(rest).is_none());
    }
    #[test]
    fn the_index_is_confirmed_at_once_and_then_after_an_interval() {
        let keeper = Keeper::new(10 * PAGE_BYTES);
        keeper.confirm();
        let first = Instant::now();
        assert!(keeper.wait(None).unwrap().confirm);
        keeper.confirm();
        let chores = keeper.wait(None).unwrap();
        assert!(!chores.confirm, "it is only told of it");
        assert!(keeper.wait(None).unwrap().confirm);
        assert!(first.elapsed() >= CONFIRM_INTERVAL);
    }

    #[test]
    fn what_is_demanded_comes_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Keeper::new(10 * PAGE_BYTES);
        let order = Order {
            ordinal: 1,
            bytes: 10_000_000,
        };
        thread::scope(|scope| {
            let demanded = scope.spawn(|| keeper.demand(order).unwrap());
            let chores = loop {
                let chores = keeper.wait(None).unwrap();
                if chores.order.is_some() {
                    break chores;
                }
            };
            assert!(chores.is_enough);
            let made = Preparation::begin(dir.path(), LogId(1), chores.order.unwrap());
            keeper.hand_over(made.map(Preparation::ready));
            let ready = demanded.join().unwrap();
            assert_eq!(ready.bytes, frame::SEGMENT_HEADER_BYTES);
        });
    }
}
