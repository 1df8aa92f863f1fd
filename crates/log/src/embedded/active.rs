//! Owns the segment that is written to: where in it the next commit goes, and when the next segment
//! takes its place. A commit is written, flushed once, and only then counts.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

use super::{
    Fault, Stage,
    commit::CommitFrames,
    directory,
    frame::SEGMENT_HEADER_BYTES,
    keeper::Keeper,
    preparation::{Order, Preparation, Ready},
    recovery::Tip,
    segments,
};
use prelude_bridge_event::LogId;

/// The first segment has at most this size, …
const FIRST_BYTES: u64 = 1024 * 1024;
/// … each of the others is twice as large as the one before, up to this: a small log occupies
/// little, and a large one has few files.
const SEGMENT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// A log whose size is limited has at least so many segments, as it is whole segments that go.
const SEGMENTS_MIN: u64 = 16;
/// But none is smaller than this.
const SEGMENT_BYTES_MIN: u64 = 64 * 1024;
/// While the next segment is not ready, this one is written to up to so many times its size.
const OVERLONG: u64 = 2;

/// The segment that is written to.
pub(super) struct Active {
    file: File,
    ordinal: u64,
    /// Where the next commit goes.
    end: u64,
    /// At what size the next segment takes over.
    size: u64,
    size_max: u64,
    /// Whether the next segment was asked for.
    is_ordered: bool,
}

/// Where a commit is that is durable.
pub(super) struct Stored {
    pub(super) ordinal: u64,
    /// Where in the segment it begins.
    pub(super) offset: u64,
}

impl Active {
    /// Goes on at the tip, or begins the first segment, which is to have this number.
    pub(super) fn open(
        directory: &Path,
        log: LogId,
        place: Result<Tip, u64>,
        log_bytes_max: u64,
    ) -> io::Result<Self> {
        let size_max = (log_bytes_max / SEGMENTS_MIN).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
        let first_size = FIRST_BYTES.min(size_max);
        let (ready, end) = match place {
            Ok(tip) => {
                let file = directory::open_private(&segments::path(directory, tip.ordinal))?;
                make_durable(&file, &tip)?;
                let bytes = file.metadata()?.len();
                let ready = Ready {
                    file,
                    ordinal: tip.ordinal,
                    bytes,
                };
                (ready, tip.end)
            }
            Err(ordinal) => {
                let order = Order {
                    ordinal,
                    bytes: first_size,
                };
                let mut first = Preparation::begin(directory, log, order)?;
                while !first.go_on(true)? {}
                (first.ready(), SEGMENT_HEADER_BYTES)
            }
        };
        Ok(Self {
            size: ready.bytes.clamp(first_size, size_max),
            file: ready.file,
            ordinal: ready.ordinal,
            end,
            size_max,
            is_ordered: false,
        })
    }

    /// The segment that is needed after this one.
    fn next(&self) -> Order {
        Order {
            ordinal: self.ordinal + 1,
            bytes: self.size.saturating_mul(2).min(self.size_max),
        }
    }

    /// Writes a commit, and flushes it. On failure it is invisible to readers and to a start.
    pub(super) fn write(
        &mut self,
        commit: &CommitFrames,
        keeper: &Keeper,
        fault: &Fault,
    ) -> io::Result<Stored> {
        fault(Stage::Write)?;
        self.make_way(commit.bytes(), keeper)?;
        commit.write_at(&self.file, self.end)?;
        fault(Stage::Flush)
            .and_then(|()| self.file.sync_data())
            .map_err(|error| flush_error(&error))?;
        let stored = Stored {
            ordinal: self.ordinal,
            offset: self.end,
        };
        self.end += commit.bytes();
        Ok(stored)
    }

    /// Lets the next segment take over, if this one is full, and has one ready in time.
    fn make_way(&mut self, bytes: u64, keeper: &Keeper) -> io::Result<()> {
        let end = self.end.saturating_add(bytes);
        let is_empty = self.end == SEGMENT_HEADER_BYTES;
        if end > self.size && !is_empty {
            let ready = keeper.take();
            let is_overlong = end > self.size.saturating_mul(OVERLONG);
            if let Some(ready) = ready {
                self.go_on_in(ready);
            } else if is_overlong {
                let ready = keeper.demand(self.next())?;
                self.go_on_in(ready);
            }
        }
        if !self.is_ordered && self.end.saturating_add(bytes) > self.size / 2 {
            self.is_ordered = true;
            keeper.order(self.next());
        }
        Ok(())
    }

    fn go_on_in(&mut self, ready: Ready) {
        self.size = self.next().bytes;
        self.file = ready.file;
        self.ordinal = ready.ordinal;
        self.end = SEGMENT_HEADER_BYTES;
        self.is_ordered = false;
    }
}

/// Writes the last commit once more, and flushes it. The process before this one may have ended
/// while it flushed, or because that failed: then the system still has the bytes in memory, though
/// the disk has not got them, and may believe that it has.
fn make_durable(file: &File, tip: &Tip) -> io::Result<()> {
    let length = tip
        .end
        .min(file.metadata()?.len())
        .saturating_sub(tip.commit);
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, tip.commit)?;
    file.write_all_at(&bytes, tip.commit)?;
    file.sync_data()
}

/// A full disk may be reported by a flush too, but then it is unknown what was flushed.
fn flush_error(error: &io::Error) -> io::Error {
    io::Error::other(format!("flush: {error}"))
}
