//! Owns the work beside the commits, on a thread of its own: making the next segment ready, carrying
//! the index's write-ahead log over into its database file, and removing segments. No commit waits
//! for any of it.
//!
//! A segment is made ready by filling it with zeros, and flushing them. A flush of what is written
//! over them waits for the disk only; at the end of a file, or in space that is merely reserved, it
//! also waits for the file system to note down where the bytes are, which takes twice as long.

use std::{
    fs::File,
    io::{self, Write as _},
    path::Path,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode};

use super::{
    Shared, frame,
    schema::{self, DATABASE_FILE, PAGE_BYTES},
    segments,
};
use crate::event::LogId;

/// A segment is made ready in pieces of this size, each flushed: a commit that flushes at the same
/// moment waits for no more than this.
const PIECE_BYTES: u64 = 128 * 1024;
/// After a piece the keeper rests for so many times as long as that took, while there is time: most
/// commits find the disk free. It still makes more ready in a second than usually comes in a minute.
const REST_TIMES: u32 = 3;
/// Segments are made ready only where the disk has so many times as much room: on a disk that is
/// nearly full the room is worth more.
const FREE_SEGMENTS_MIN: u64 = 16;
/// A write-ahead log that nobody adds to is carried over after this time, …
const IDLE_WAIT: Duration = Duration::from_secs(5);
/// … if it has so many pages: a start has less to read.
const IDLE_PAGES_MIN: u64 = 16;

/// Which segment to make ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) ordinal: u64,
    pub(super) bytes: u64,
}

/// A segment that can be written to: its file, and how much of it is ready.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) file: File,
    pub(super) ordinal: u64,
    pub(super) bytes: u64,
}

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
    stopped: bool,
    ended: bool,
}

/// What there is to do.
struct Chores {
    order: Option<Order>,
    given_up: Vec<u64>,
    carry_over: bool,
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

    /// Rests for a moment if there is time. Says whether what is made has to do as it is.
    fn rest(&self, moment: Duration) -> bool {
        let has_time = |state: &mut State| !state.stopped && !state.hurry && !state.is_late;
        let rested = self
            .changed
            .wait_timeout_while(self.state(), moment, has_time);
        let (state, _) = rested.unwrap_or_else(PoisonError::into_inner);
        state.stopped || state.hurry
    }

    /// Waits until there is something to do; `None` when nothing more will be.
    fn wait(&self) -> Option<Chores> {
        let nothing = |state: &mut State| {
            let idle = state.order.is_none() && state.given_up.is_empty();
            idle && !state.carry_over && !state.stopped
        };
        let waited = self
            .changed
            .wait_timeout_while(self.state(), IDLE_WAIT, nothing);
        let (mut state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        let idle_pages = self.wal_pages.load(Ordering::Relaxed);
        let is_idle = timeout.timed_out() && idle_pages >= IDLE_PAGES_MIN;
        state.making = state.order.is_some();
        (!state.stopped).then(|| Chores {
            order: state.order.take(),
            given_up: std::mem::take(&mut state.given_up),
            carry_over: std::mem::take(&mut state.carry_over) || is_idle,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs until the keeper is stopped.
pub(super) fn run(shared: &Shared, connection: &Connection, directory: &Path, log: LogId) {
    let keeper = &shared.keeper;
    let _ended = Ended(keeper);
    while let Some(chores) = keeper.wait() {
        // First, as a commit may wait for it.
        if let Some(order) = chores.order {
            let made = make_ready(directory, log, order, |moment| keeper.rest(moment));
            let mut state = keeper.state();
            state.making = false;
            state.is_late = false;
            state.made = Some(made);
            keeper.changed.notify_all();
        }
        if chores.carry_over {
            let index = keeper.index.lock().unwrap_or_else(PoisonError::into_inner);
            match carry_over(connection) {
                Ok(true) => keeper.wal_pages.store(0, Ordering::Relaxed),
                Ok(false) => {}
                Err(error) if is_harmless(&error) => {}
                // What was flushed is unknown.
                Err(error) => {
                    shared.fail(&format!("checkpoint: {error}"));
                }
            }
            drop(index);
        }
        if !chores.given_up.is_empty()
            && let Err(error) = remove(directory, &chores.given_up)
        {
            shared.fail(&format!("removal of old events: {error}"));
        }
    }
    // Zeros that nobody wrote over. Where that fails, the next start removes them.
    if let Some(Ok(unused)) = keeper.state().made.take() {
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

/// Creates a segment and makes it ready, as far as that can be done. Between pieces it may `rest` for
/// some time, which says whether it is enough.
pub(super) fn make_ready(
    directory: &Path,
    log: LogId,
    order: Order,
    rest: impl Fn(Duration) -> bool,
) -> io::Result<Ready> {
    let path = segments::path(directory, order.ordinal);
    let mut file = schema::open_private(&path)?;
    // What an attempt has left behind goes.
    file.set_len(0)?;
    file.write_all(&frame::segment_header(log, order.ordinal))?;
    file.sync_all()?;
    schema::sync_directory(directory)?;
    let mut bytes = frame::SEGMENT_HEADER_BYTES;
    if !has_room(&file, order.bytes) {
        return Ok(Ready {
            file,
            ordinal: order.ordinal,
            bytes,
        });
    }
    let zeros = vec![0; usize::try_from(PIECE_BYTES).unwrap_or_default()];
    let mut moment = Duration::ZERO;
    while bytes < order.bytes && !rest(moment) {
        let began = Instant::now();
        let piece = PIECE_BYTES.min(order.bytes - bytes);
        let piece = zeros.get(..usize::try_from(piece).unwrap_or_default());
        let piece = piece.unwrap_or_default();
        if file.write_all(piece).is_err() {
            // It works without, and whoever set a limit meant it.
            file.set_len(bytes)?;
            break;
        }
        file.sync_data()?;
        bytes += piece.len() as u64;
        moment = began.elapsed() * REST_TIMES;
    }
    Ok(Ready {
        file,
        ordinal: order.ordinal,
        bytes,
    })
}

fn has_room(file: &File, bytes: u64) -> bool {
    rustix::fs::fstatvfs(file).is_ok_and(|disk| {
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        free >= bytes.saturating_mul(FREE_SEGMENTS_MIN)
    })
}

/// Removes segments, oldest first. That they were given up has to be durable before.
pub(super) fn remove(directory: &Path, ordinals: &[u64]) -> io::Result<()> {
    let mut wal = directory.join(DATABASE_FILE).into_os_string();
    wal.push("-wal");
    match File::open(wal) {
        Ok(wal) => wal.sync_data()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    for &ordinal in ordinals {
        match std::fs::remove_file(segments::path(directory, ordinal)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Carries the whole write-ahead log over, so that the next transaction begins it anew. False when
/// somebody still reads in it.
fn carry_over(connection: &Connection) -> rusqlite::Result<bool> {
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
    use super::*;
    use crate::log::embedded::frame::Kind;

    #[test]
    fn a_segment_is_made_ready_with_room_in_it_and_over_what_was_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let order = Order {
            ordinal: 3,
            bytes: PIECE_BYTES + 1_000,
        };
        let path = segments::path(dir.path(), 3);
        std::fs::write(&path, vec![7; 5_000_000]).unwrap();
        let ready = make_ready(dir.path(), LogId(1), order, |_| false).unwrap();
        assert_eq!(ready.bytes, PIECE_BYTES + 1_000);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, ready.bytes);
        assert!(bytes[32..].iter().all(|&byte| byte == 0));
        let kind = frame::identify(&ready.file, LogId(1), 3).unwrap();
        assert_eq!(kind, Kind::Segment);
        assert_eq!(segments::ordinals(dir.path()).unwrap(), [3]);
        remove(dir.path(), &[2, 3]).unwrap();
        assert_eq!(segments::ordinals(dir.path()).unwrap(), [0; 0]);
    }

    #[test]
    fn no_room_is_made_where_there_is_little_or_no_time() {
        let dir = tempfile::tempdir().unwrap();
        for (bytes, in_a_hurry) in [(u64::MAX / 2, false), (10_000_000, true)] {
            let order = Order { ordinal: 1, bytes };
            let ready = make_ready(dir.path(), LogId(1), order, |_| in_a_hurry).unwrap();
            assert_eq!(ready.bytes, frame::SEGMENT_HEADER_BYTES);
        }
    }
}
