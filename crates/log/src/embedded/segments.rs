//! Owns the list of segments: files of frames, one after another, the last of which is written to.
//! Of each it knows the ends, and some places in between (marks), so that any event is found by
//! reading little; and which epochs wrote it.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    frame::{Header, SEGMENT_HEADER_BYTES},
    frames::Frames,
};
use crate::{Damaged, Range};
use prelude_bridge_event::{Epoch, LogId, Sequence, UnixMicros};

/// Between two marks there is at most so much, and the frame that goes beyond. 256 KiB: read in
/// some fifty microseconds; and the marks of 10 GiB take 1 MB of memory.
const MARK_BYTES: u64 = 256 * 1024;
const NAME_PREFIX: &str = "events-";

/// The name of a segment's file. Longer numbers are taken for a person's in what the program says.
pub(super) fn path(directory: &Path, ordinal: u64) -> PathBuf {
    directory.join(format!("{NAME_PREFIX}{ordinal:05}"))
}

/// The segments that there are files of, in order.
pub(super) fn ordinals(directory: &Path) -> io::Result<Vec<u64>> {
    let mut ordinals = Vec::new();
    for entry in directory.read_dir()? {
        let name = entry?.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix(NAME_PREFIX));
        ordinals.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    ordinals.sort_unstable();
    Ok(ordinals)
}

/// A frame's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) sequence: Sequence,
    pub(super) at: UnixMicros,
    pub(super) offset: u64,
}

/// A segment with events in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) ordinal: u64,
    pub(super) first_sequence: Sequence,
    pub(super) last_sequence: Sequence,
    /// When the last of them was received.
    pub(super) last_at: UnixMicros,
    /// Where the last frame ends.
    pub(super) end: u64,
    pub(super) marks: Vec<Mark>,
    /// Each epoch that wrote in it, with its first event there.
    pub(super) epochs: Vec<(Sequence, Epoch)>,
}

impl Segment {
    /// A segment with one frame.
    pub(super) fn new(ordinal: u64, header: &Header, offset: u64) -> Self {
        let mut segment = Self {
            ordinal,
            first_sequence: header.first_sequence,
            last_sequence: header.last_sequence(),
            last_at: header.received_at,
            end: offset,
            marks: Vec::new(),
            epochs: Vec::new(),
        };
        segment.add(header, offset);
        segment
    }

    /// Takes note of one more frame behind the others. What is damaged between it and the one before
    /// ends with a mark, so that a reader finds the frame.
    pub(super) fn add(&mut self, header: &Header, offset: u64) {
        let last = self.marks.last();
        let continues = self.end == offset && self.last_sequence.plus(1) == header.first_sequence;
        self.end = offset;
        if last.is_none_or(|mark| !continues || self.end >= mark.offset + MARK_BYTES) {
            self.marks.push(Mark {
                sequence: header.first_sequence,
                at: header.received_at,
                offset: self.end,
            });
        }
        if self.epochs.last().map(|&(_, epoch)| epoch) != Some(header.epoch) {
            self.epochs.push((header.first_sequence, header.epoch));
        }
        self.last_sequence = header.last_sequence();
        self.last_at = header.received_at;
        self.end += header.frame_bytes();
    }

    /// Whether everything that is known of it can be true together.
    pub(super) fn is_plausible(&self) -> bool {
        let ascend = self
            .marks
            .is_sorted_by(|a, b| a.sequence < b.sequence && a.offset < b.offset && a.at <= b.at);
        let (Some(first), Some(last)) = (self.marks.first(), self.marks.last()) else {
            return false;
        };
        let epochs_ascend = self.epochs.is_sorted_by(|a, b| a.0 < b.0);
        let epochs_from = self.epochs.first().map(|&(first, _)| first);
        ascend
            && epochs_ascend
            && epochs_from == Some(self.first_sequence)
            && self
                .epochs
                .last()
                .is_some_and(|&(first, _)| first <= self.last_sequence)
            && first.sequence == self.first_sequence
            && first.offset >= SEGMENT_HEADER_BYTES
            && last.sequence <= self.last_sequence
            && last.at <= self.last_at
            && last.offset < self.end
    }

    /// The place of its first frame.
    pub(super) fn beginning(&self) -> Option<Place> {
        self.place(|_| false)
    }

    /// The place at the last mark for which this holds, or at the first.
    fn place(&self, is_before: impl Fn(&Mark) -> bool) -> Option<Place> {
        let index = self.marks.partition_point(is_before).saturating_sub(1);
        let mark = self.marks.get(index)?;
        Some(Place {
            ordinal: self.ordinal,
            offset: mark.offset,
            sequence: mark.sequence,
            end: self.end,
            through: self.last_sequence,
        })
    }
}

/// Where to begin reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) ordinal: u64,
    /// Here is a frame …
    pub(super) offset: u64,
    /// … that begins with this event.
    pub(super) sequence: Sequence,
    /// The frames of the segment go on to here …
    pub(super) end: u64,
    /// … and end with this event.
    pub(super) through: Sequence,
}

/// Where the events after a place are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// Here, or damaged in this segment.
    At(Place),
    /// In no segment that is there: in a file of this number, or a later one.
    Missing(Damaged, u64),
}

/// All segments with events in them, oldest first. Events between two of them are in a file that is
/// missing, or of which nothing can be read.
pub(super) struct Segments {
    directory: PathBuf,
    log: LogId,
    list: RwLock<VecDeque<Segment>>,
    /// Of frames, in all of them.
    bytes: AtomicU64,
    /// The first file behind those that were forgotten. What is in it may be missing or damaged, and it
    /// may be restored.
    next_file: AtomicU64,
}

impl Segments {
    pub(super) fn new(directory: &Path, log: LogId, list: VecDeque<Segment>) -> Self {
        Self {
            directory: directory.to_owned(),
            log,
            bytes: AtomicU64::new(list.iter().map(|segment| segment.end).sum()),
            list: RwLock::new(list),
            next_file: AtomicU64::new(1),
        }
    }

    /// Takes note that the log begins with this file.
    pub(super) fn begin_with(&mut self, ordinal: u64) {
        self.next_file = AtomicU64::new(ordinal);
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where to begin reading for what is after an event, in a log that ends with `head`.
    pub(super) fn place_after(&self, after: Sequence, head: Sequence) -> Position {
        let list = self.list();
        let index = list.partition_point(|segment| segment.last_sequence <= after);
        let (segment, next) = (list.get(index), after.plus(1));
        let missing_through = |last| {
            let events = Damaged { first: next, last };
            let before = index.checked_sub(1).and_then(|index| list.get(index));
            Position::Missing(events, before.map_or(1, |segment| segment.ordinal + 1))
        };
        match segment {
            Some(segment) if segment.first_sequence <= next => {
                let place = segment.place(|mark| mark.sequence <= next);
                place.map_or_else(|| missing_through(segment.last_sequence), Position::At)
            }
            Some(segment) => missing_through(segment.first_sequence.before()),
            None => missing_through(head.max(next)),
        }
    }

    /// Where to begin reading for the first event of this time or later, and the last event before the
    /// segment that it is in.
    pub(super) fn place_of_time(&self, at: UnixMicros) -> Option<(Place, Sequence)> {
        let list = self.list();
        let index = list.partition_point(|segment| segment.last_at < at);
        let before = index.checked_sub(1).and_then(|index| list.get(index));
        let before = before.map_or(Sequence::ZERO, |segment| segment.last_sequence);
        let place = list.get(index)?.place(|mark| mark.at < at)?;
        Some((place, before))
    }

    /// Opens a place to read from it.
    pub(super) fn open(&self, place: &Place, chunk_bytes: usize) -> io::Result<Frames> {
        let file = File::open(path(&self.directory, place.ordinal))?;
        Ok(Frames::new(file, self.log, place.offset, chunk_bytes))
    }

    /// Bytes of frames in all of them.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The oldest one, if it is before a segment.
    pub(super) fn oldest_before(&self, ordinal: u64) -> Option<(Sequence, UnixMicros)> {
        let list = self.list();
        let oldest = list.front().filter(|oldest| oldest.ordinal < ordinal);
        oldest.map(|segment| (segment.last_sequence, segment.last_at))
    }

    /// The last event of the oldest segments, before one, without which the others have no more bytes than
    /// this; `None` where they have no more anyway.
    pub(super) fn excess(&self, bytes_max: u64, ordinal: u64) -> Option<Sequence> {
        let mut bytes = self.bytes();
        let list = self.list();
        let older = list.iter().take_while(|segment| segment.ordinal < ordinal);
        let excess = older.take_while(|segment| {
            let is_excess = bytes > bytes_max;
            bytes = bytes.saturating_sub(segment.end);
            is_excess
        });
        excess.last().map(|segment| segment.last_sequence)
    }

    pub(super) fn get(&self, ordinal: u64) -> Option<Segment> {
        let list = self.list();
        let found = list.iter().find(|segment| segment.ordinal == ordinal);
        found.cloned()
    }

    /// Takes note of frames that were written into the last segment, or into a new one.
    pub(super) fn add<'a>(
        &self,
        ordinal: u64,
        offset: u64,
        mut headers: impl Iterator<Item = &'a Header>,
    ) {
        let mut list = self.list_mut();
        let mut at = offset;
        let is_new = list.back().is_none_or(|last| last.ordinal != ordinal);
        if is_new && let Some(first) = headers.next() {
            list.push_back(Segment::new(ordinal, first, offset));
            at += first.frame_bytes();
        }
        if let Some(last) = list.back_mut() {
            for header in headers {
                last.add(header, at);
                at += header.frame_bytes();
            }
            let added = last.end - offset + if is_new { offset } else { 0 };
            self.bytes.fetch_add(added, Ordering::Relaxed);
        }
    }

    /// The first segment with events from `next` on that is not written to any more, and where these
    /// begin in it.
    pub(super) fn sealed_at(&self, next: Sequence) -> Option<(Segment, Place)> {
        let list = self.list();
        let index = list.partition_point(|segment| segment.last_sequence < next);
        let segment = list.get(index).filter(|_| index + 1 < list.len())?;
        let place = segment.place(|mark| mark.sequence <= next)?;
        Some((segment.clone(), place))
    }

    /// The segments as they are now.
    pub(super) fn snapshot(&self) -> Vec<Segment> {
        self.list().iter().cloned().collect()
    }

    /// The ordinal of the newest segment. Copies nothing: every commit asks for it.
    pub(super) fn last_ordinal(&self) -> Option<u64> {
        self.list().back().map(|segment| segment.ordinal)
    }

    /// The newest segment.
    pub(super) fn last(&self) -> Option<Segment> {
        self.list().back().cloned()
    }

    /// The oldest file that belongs to a log with this range; `None` when everything was removed, and no
    /// segment is left.
    pub(super) fn first(&self, range: &Range) -> Option<u64> {
        match self.list().front() {
            Some(oldest) if oldest.first_sequence <= range.earliest => Some(oldest.ordinal),
            _ if range.earliest > range.head => None,
            // The first events are in none of the list.
            _ => Some(self.next_file.load(Ordering::Relaxed)),
        }
    }

    /// Takes those off the list in which everything is at or before an event, and which are before
    /// the segment that is written to. Returns them, each with its last event.
    pub(super) fn forget(&self, through: Sequence, active: u64) -> Vec<(u64, Sequence)> {
        let mut list = self.list_mut();
        let mut forgotten = Vec::new();
        while let Some(oldest) = list.front()
            && oldest.last_sequence <= through
            && oldest.ordinal < active
        {
            forgotten.push((oldest.ordinal, oldest.last_sequence));
            self.bytes.fetch_sub(oldest.end, Ordering::Relaxed);
            let next_file = oldest.ordinal.saturating_add(1);
            self.next_file.store(next_file, Ordering::Relaxed);
            list.pop_front();
        }
        forgotten
    }

    fn list(&self) -> RwLockReadGuard<'_, VecDeque<Segment>> {
        self.list.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn list_mut(&self) -> RwLockWriteGuard<'_, VecDeque<Segment>> {
        self.list.write().unwrap_or_else(PoisonError::into_inner)
    }
}
