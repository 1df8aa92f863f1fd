//! Owns the segment that is written to: where in it the next commit goes, and when the next segment
//! takes its place. A commit is written, flushed once, and only then counts.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

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
use crate::clock::RetentionTime;
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

/// The segment that is written to. It is opened when it is needed, so that a log can be read which
/// has no room to go on.
pub(super) struct Active {
    directory: PathBuf,
    log: LogId,
    /// Where the log ends, or the number of the segment that it goes on in.
    tip: Result<Tip, u64>,
    first_size: u64,
    size_max: u64,
    open: Option<OpenSegment>,
    /// When its first commit was written; `None` where there is none.
    began: Option<RetentionTime>,
    /// Whether each commit is flushed. Those of a replica are not: they are kept elsewhere too.
    flushes: bool,
    /// Segments with commits that were not flushed.
    unflushed: Vec<File>,
}

struct OpenSegment {
    file: File,
    ordinal: u64,
    /// Where the next commit goes.
    end: u64,
    /// So much of the file is filled, with commits or with zeros.
    ready_bytes: u64,
    /// At what size the next segment takes over.
    size: u64,
    /// The next segment, once it was asked for.
    ordered: Option<Order>,
}

/// Where a commit is that is durable.
pub(super) struct Stored {
    pub(super) ordinal: u64,
    /// Where in the segment it begins.
    pub(super) offset: u64,
}

impl Active {
    /// Goes on at the tip, whose segment has commits since `began`, or in a first segment, which is
    /// to have this number.
    pub(super) fn new(
        directory: &Path,
        log: LogId,
        tip: Result<Tip, u64>,
        began: Option<RetentionTime>,
        log_bytes_max: u64,
    ) -> Self {
        let size_max = (log_bytes_max / SEGMENTS_MIN).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
        Self {
            directory: directory.to_owned(),
            log,
            tip,
            first_size: FIRST_BYTES.min(size_max),
            size_max,
            open: None,
            began: began.filter(|_| tip.is_ok()),
            flushes: true,
            unflushed: Vec::new(),
        }
    }

    /// Flushes commits only when it is told to.
    pub(super) fn leave_unflushed(&mut self) {
        self.flushes = false;
    }

    /// Makes all commits durable.
    pub(super) fn flush(&mut self, fault: &Fault) -> io::Result<()> {
        if self.unflushed.is_empty() {
            return Ok(());
        }
        fault(Stage::Flush).map_err(|error| flush_error(&error))?;
        for file in self.unflushed.drain(..) {
            file.sync_data().map_err(|error| flush_error(&error))?;
        }
        Ok(())
    }

    /// The number of its file.
    pub(super) fn ordinal(&self) -> u64 {
        let open = self.open.as_ref().map(|open| open.ordinal);
        open.unwrap_or(self.tip.map_or_else(|ordinal| ordinal, |tip| tip.ordinal))
    }

    /// Whether it was opened: until then the last commit that was found may be in memory alone.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// When its first commit was written; `None` where there is none.
    pub(super) fn began(&self) -> Option<RetentionTime> {
        self.began
    }

    /// Opens the file, if it is not open yet. What fails can be tried again.
    pub(super) fn open(&mut self, fault: &Fault) -> io::Result<()> {
        if self.open.is_some() {
            return Ok(());
        }
        fault(Stage::Segment)?;
        let (ready, end) = match self.tip {
            Ok(tip) => {
                let path = segments::path(&self.directory, tip.ordinal);
                let file = directory::open_private(&path)?;
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
                    bytes: self.first_size,
                    is_replacement: false,
                };
                let mut first = Preparation::begin(&self.directory, self.log, order)?;
                while !first.go_on(true)? {}
                (first.ready(), SEGMENT_HEADER_BYTES)
            }
        };
        let size = ready.bytes.clamp(self.first_size, self.size_max);
        self.open = Some(OpenSegment::new(ready, end, size));
        Ok(())
    }

    /// Writes a commit at a time of the retention clock, and flushes it; into the next segment if this one
    /// is so old that it is to get no more. On failure it is invisible to readers and to a start.
    pub(super) fn write(
        &mut self,
        commit: &CommitFrames,
        at: RetentionTime,
        is_old: bool,
        (keeper, fault): (&Keeper, &Fault),
    ) -> io::Result<Stored> {
        self.open(fault)?;
        let size_max = self.size_max;
        let Some(open) = &mut self.open else {
            return Err(io::Error::other("no segment is open"));
        };
        if is_old && !open.is_empty() {
            open.leave(self.first_size, size_max, keeper);
        }
        open.make_way(commit.bytes(), size_max, keeper)?;
        if open.is_empty() {
            // It may be the next one, and what follows may fail.
            self.began = None;
        }
        let written = fault(Stage::Write).and_then(|()| commit.write_at(&open.file, open.end));
        written.inspect_err(|_| open.remove_rest(commit.bytes()))?;
        if self.flushes {
            fault(Stage::Flush)
                .and_then(|()| open.file.sync_data())
                .map_err(|error| flush_error(&error))?;
        } else if self.unflushed.is_empty() || open.is_empty() {
            self.unflushed.push(open.file.try_clone()?);
        }
        let stored = Stored {
            ordinal: open.ordinal,
            offset: open.end,
        };
        if open.is_empty() {
            self.began = Some(at);
        }
        open.end += commit.bytes();
        open.ready_bytes = open.ready_bytes.max(open.end);
        Ok(stored)
    }

    /// Lets an empty segment take the place of this one, as soon as one is ready: its commits are so
    /// old that none is to be added. Does nothing for one without commits.
    pub(super) fn replace(&mut self, keeper: &Keeper, fault: &Fault) -> io::Result<()> {
        if self.began.is_none() {
            return Ok(());
        }
        self.open(fault)?;
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        if open.ordered.is_none() {
            open.order_replacement(self.first_size, self.size_max, keeper);
        } else if let Some(made) = keeper.take(false) {
            let order = open.ordered.take();
            let size = order.map_or(self.first_size, |order| order.bytes);
            *open = OpenSegment::new(made?, SEGMENT_HEADER_BYTES, size);
            self.began = None;
        }
        Ok(())
    }
}

#[cfg(test)]
impl Active {
    /// What a write of so many bytes does that fails.
    pub(super) fn remove_rest_for_test(&mut self, bytes: u64) {
        self.open(&(std::sync::Arc::new(|_| Ok(())) as Fault))
            .unwrap();
        let open = self.open.as_mut().unwrap();
        open.ready_bytes = bytes;
        open.remove_rest(bytes);
    }
}

impl OpenSegment {
    fn new(ready: Ready, end: u64, size: u64) -> Self {
        Self {
            file: ready.file,
            ordinal: ready.ordinal,
            end,
            ready_bytes: ready.bytes,
            size,
            ordered: None,
        }
    }

    fn is_empty(&self) -> bool {
        self.end == SEGMENT_HEADER_BYTES
    }

    /// Asks for the segment that is needed after this one.
    fn order(&mut self, bytes: u64, is_replacement: bool, keeper: &Keeper) -> Order {
        let order = Order {
            ordinal: self.ordinal + 1,
            bytes,
            is_replacement,
        };
        self.ordered = Some(order);
        keeper.order(order);
        order
    }

    /// Asks for a segment that is as large as this one turned out to be needed, and has room to grow.
    fn order_replacement(&mut self, first_size: u64, size_max: u64, keeper: &Keeper) -> Order {
        let bytes = self.end.saturating_mul(2);
        self.order(bytes.clamp(first_size, size_max), true, keeper)
    }

    /// Goes on in the next segment at once. Where none can be made, it is better to go on in this one:
    /// its events stay on the disk for longer.
    fn leave(&mut self, first_size: u64, size_max: u64, keeper: &Keeper) {
        let order = self.ordered;
        let order = order.unwrap_or_else(|| self.order_replacement(first_size, size_max, keeper));
        if let Ok(ready) = self.demand(order, keeper) {
            *self = Self::new(ready, SEGMENT_HEADER_BYTES, order.bytes);
        }
    }

    /// Waits for the segment that was asked for. Where there is none, it can be asked for again.
    fn demand(&mut self, order: Order, keeper: &Keeper) -> io::Result<Ready> {
        keeper.demand(order).inspect_err(|_| self.ordered = None)
    }

    /// Lets the next segment take over, if this one is full, and has one ready in time.
    fn make_way(&mut self, bytes: u64, size_max: u64, keeper: &Keeper) -> io::Result<()> {
        let next_bytes = self.size.saturating_mul(2).min(size_max);
        let end = self.end.saturating_add(bytes);
        if end > self.size && !self.is_empty() {
            let is_overlong = end > self.size.saturating_mul(OVERLONG);
            let made = match (keeper.take(true), self.ordered) {
                (Some(Ok(ready)), _) => Some(ready),
                // Only where it cannot be done without: it may be possible by then.
                (_, Some(order)) if is_overlong => Some(self.demand(order, keeper)?),
                (_, None) if is_overlong => {
                    let order = self.order(next_bytes, false, keeper);
                    Some(self.demand(order, keeper)?)
                }
                (Some(Err(_)), _) => {
                    self.ordered = None;
                    None
                }
                (None, _) => None,
            };
            if let Some(ready) = made {
                let size = self.ordered.map_or(next_bytes, |order| order.bytes);
                *self = Self::new(ready, SEGMENT_HEADER_BYTES, size);
            }
        }
        if self.ordered.is_none() && self.end.saturating_add(bytes) > self.size / 2 {
            let next_bytes = self.size.saturating_mul(2).min(size_max);
            self.order(next_bytes, false, keeper);
        }
        Ok(())
    }

    /// Removes what a write of so many bytes that failed may have left behind the end: nobody was
    /// promised these events, so nothing is to keep them. Where that fails, a start does it.
    fn remove_rest(&mut self, bytes: u64) {
        let _ = self.file.set_len(self.ready_bytes);
        let to = self.end.saturating_add(bytes).min(self.ready_bytes);
        let length = usize::try_from(to.saturating_sub(self.end)).unwrap_or(0);
        let _ = self.file.write_all_at(&vec![0; length], self.end);
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
