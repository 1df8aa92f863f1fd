//! Owns what a start finds out about the segments: where the log ends, and which keys the index has
//! not got yet. Changes nothing, so it serves an inspection too.
//!
//! Each commit is flushed before the next one is written. So behind the last whole commit there may
//! be pieces of one more, which nobody was promised, and these are passed over. A commit that is
//! not whole although another one was written after it, or although the index has it, was damaged
//! later: that is said, and nothing is cut.

use std::{collections::VecDeque, fs::File, io, path::Path};

use super::{
    frame::{self, ALIGNMENT, Frames, Header, Kind, SEGMENT_HEADER_BYTES},
    readers,
    schema::OpenError,
    segments::{self, Segment, Segments},
};
use crate::{
    event::{EventKey, LogId, Sequence, UnixMicros},
    log::Range,
};

/// Read at once.
const CHUNK_BYTES: usize = 1024 * 1024;
/// So far behind the end it is looked whether something was written there: a commit is shorter.
const LATER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What the index says.
pub(super) struct Facts {
    pub(super) log: LogId,
    /// The newest event that retention has removed, and its time.
    pub(super) trimmed: Sequence,
    pub(super) trimmed_at: UnixMicros,
    /// The index has the keys of the events up to this one.
    pub(super) indexed_through: Sequence,
    /// Those before this one were given up.
    pub(super) first_ordinal: u64,
    /// The segments that are not written to any more, oldest first.
    pub(super) sealed: Vec<Segment>,
}

/// What there is.
pub(super) struct Found {
    pub(super) segments: Segments,
    pub(super) range: Range,
    /// The time of the newest event that ever was.
    pub(super) last_at: UnixMicros,
    /// The segments that the index does not know to be sealed, of which the last one is not.
    pub(super) unsealed: Vec<u64>,
    /// Where to go on writing.
    pub(super) tip: Option<Tip>,
    /// Keys that the index has not got, with the times of their commits.
    pub(super) unindexed: Vec<(UnixMicros, Vec<EventKey>)>,
    /// Segments of the past, or of a future that did not come.
    pub(super) leftover: Vec<u64>,
}

/// The end of the last segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tip {
    pub(super) ordinal: u64,
    /// Where the last commit begins, …
    pub(super) commit: u64,
    /// … and where it ends.
    pub(super) end: u64,
}

/// Looks at the segments in a directory.
pub(super) fn look(directory: &Path, facts: Facts) -> Result<Found, OpenError> {
    let io_error = |source| OpenError::Directory {
        path: directory.to_owned(),
        source,
    };
    let ordinals = segments::ordinals(directory).map_err(io_error)?;
    check_sealed(directory, &facts)?;
    let last_sealed = facts.sealed.last().map(|segment| segment.ordinal);
    let mut scanner = Scanner {
        directory,
        log: facts.log,
        indexed_through: facts.indexed_through,
        next: facts.sealed.last().map(|last| last.last_sequence.plus(1)),
        last_commit: SEGMENT_HEADER_BYTES,
        unindexed: Vec::new(),
    };
    let mut list = VecDeque::from(facts.sealed);
    let (mut unsealed, mut leftover) = (Vec::new(), Vec::new());
    for &ordinal in &ordinals {
        if ordinal < facts.first_ordinal {
            leftover.push(ordinal);
        } else if last_sealed.is_none_or(|last| ordinal > last) {
            match scanner.scan(ordinal)? {
                Some(segment) => {
                    unsealed.push(ordinal);
                    list.push_back(segment);
                }
                None => leftover.push(ordinal),
            }
        }
    }
    let head = list.back().map(|last| (last.last_sequence, last.last_at));
    let (head, last_at) = head.unwrap_or((facts.trimmed, facts.trimmed_at));
    if head < facts.indexed_through {
        let last = ordinals.last().copied().unwrap_or(1);
        return Err(damaged(
            &segments::path(directory, last),
            format!("it ends with event {head}, not {}", facts.indexed_through),
        ));
    }
    let tip = list.back().map(|last| Tip {
        ordinal: last.ordinal,
        commit: scanner.last_commit,
        end: last.end,
    });
    let starts_at = list
        .front()
        .map(|first| (first.ordinal, first.first_sequence));
    if let Some((ordinal, first)) = starts_at
        && first > facts.trimmed.plus(1)
    {
        return Err(damaged(
            &segments::path(directory, ordinal),
            format!(
                "it begins with event {first}, not {}",
                facts.trimmed.plus(1)
            ),
        ));
    }
    let segments = Segments::new(directory, facts.log, list);
    let range = range(&segments, facts.trimmed, head, last_at)?;
    Ok(Found {
        segments,
        range,
        last_at: last_at.max(facts.trimmed_at),
        unsealed,
        tip,
        unindexed: scanner.unindexed,
        leftover,
    })
}

/// That the files of the segments that are known are there, and are theirs.
fn check_sealed(directory: &Path, facts: &Facts) -> Result<(), OpenError> {
    let mut next = None;
    for segment in &facts.sealed {
        let path = segments::path(directory, segment.ordinal);
        let Some(file) = open(&path)? else {
            let (first, last) = (segment.first_sequence, segment.last_sequence);
            return Err(damaged(
                &path,
                format!("events {first} to {last} are missing"),
            ));
        };
        identify(&file, &path, facts.log, segment.ordinal)?;
        let bytes = file.metadata().map_err(|error| unreadable(&path, error))?;
        // The bytes between two frames need not be there.
        if bytes.len().next_multiple_of(ALIGNMENT) < segment.end {
            return Err(damaged(&path, "it is cut short".to_owned()));
        }
        if let Some(next) = next.filter(|&next| next != segment.first_sequence) {
            let first = segment.first_sequence;
            let reason = format!("it begins with event {first}, not {next}");
            return Err(damaged(&path, reason));
        }
        next = Some(segment.last_sequence.plus(1));
    }
    Ok(())
}

/// The ends of the log, after a look at the blocks there. Those between them are checked when they
/// are read.
fn range(
    segments: &Segments,
    trimmed: Sequence,
    head: Sequence,
    head_at: UnixMicros,
) -> Result<Range, OpenError> {
    let mut range = Range {
        earliest: trimmed.plus(1),
        head,
        earliest_at: None,
        head_at: None,
    };
    if trimmed < head {
        range.head_at = Some(head_at);
        for after in [head.before(), trimmed] {
            let read = readers::read(segments, head, after, 0);
            let block = read.map(|blocks| blocks.first().map(|block| block.received_at()));
            range.earliest_at = block.map_err(|error| {
                let ordinal = segments.place_after(after).map_or(1, |place| place.ordinal);
                let path = segments::path(segments.directory(), ordinal);
                damaged(&path, error.to_string())
            })?;
        }
    }
    Ok(range)
}

/// Passes over the segments that may have been written to.
struct Scanner<'a> {
    directory: &'a Path,
    log: LogId,
    indexed_through: Sequence,
    /// The event that comes next; the first one tells.
    next: Option<Sequence>,
    /// Where in its segment the last commit begins.
    last_commit: u64,
    unindexed: Vec<(UnixMicros, Vec<EventKey>)>,
}

/// The frames of a commit, as far as they were found.
#[derive(Default)]
struct Commit {
    frames: Vec<Header>,
    keys: Vec<EventKey>,
}

impl Scanner<'_> {
    /// `None` if there is no commit in the segment.
    fn scan(&mut self, ordinal: u64) -> Result<Option<Segment>, OpenError> {
        let path = segments::path(self.directory, ordinal);
        let Some(file) = open(&path)? else {
            return Ok(None);
        };
        if identify(&file, &path, self.log, ordinal)? == Kind::Nothing {
            return Ok(None);
        }
        let mut frames = Frames::new(file, self.log, SEGMENT_HEADER_BYTES, CHUNK_BYTES);
        let mut segment: Option<Segment> = None;
        let scanned = self.scan_frames(&mut frames, |header, offset| match &mut segment {
            Some(segment) => segment.add(header),
            None => segment = Some(Segment::new(ordinal, header, offset)),
        });
        scanned.map_err(|error| unreadable(&path, error))?;
        // What the last event was, is known unless there never was one.
        let head = self.next.map_or(Sequence::ZERO, Sequence::before);
        let later = frames.find_later(head.plus(1), LATER_BYTES_MAX);
        let later = later.map_err(|error| unreadable(&path, error))?;
        // A new segment begins with the first event, whichever that is.
        if let Some(later) = later.filter(|_| self.next.is_some()) {
            let (lost, last) = (head.plus(1), later.first_sequence.before());
            return Err(damaged(
                &path,
                format!("events {lost} to {last} are damaged"),
            ));
        }
        Ok(segment)
    }

    /// Goes as far as there are whole commits, in order.
    fn scan_frames(
        &mut self,
        frames: &mut Frames,
        mut add: impl FnMut(&Header, u64),
    ) -> io::Result<()> {
        let mut commit = Commit::default();
        let mut commit_at = frames.offset();
        while let Some(header) = frames.header()? {
            let next = commit
                .frames
                .last()
                .map(|last| last.last_sequence().plus(1));
            let next = next.or(self.next).unwrap_or(header.first_sequence);
            let begins = commit.frames.is_empty() == (header.events_before == 0);
            if header.first_sequence != next || !begins {
                break;
            }
            // What the index has was whole once: if it is not now, whoever reads it is told.
            if header.last_sequence() > self.indexed_through {
                let body = frames.body(&header)?;
                let Some(body) = body.filter(|body| body.is_whole(&header)) else {
                    break;
                };
                commit.keys.extend(body.keys());
            }
            frames.skip(&header);
            commit.frames.push(header);
            if header.frames_after == 0 {
                let Commit {
                    frames: whole,
                    keys,
                } = std::mem::take(&mut commit);
                for header in &whole {
                    add(header, commit_at);
                }
                if !keys.is_empty() {
                    self.unindexed.push((header.received_at, keys));
                }
                self.next = Some(header.last_sequence().plus(1));
                self.last_commit = commit_at;
                commit_at = frames.offset();
            }
        }
        Ok(())
    }
}

fn open(path: &Path) -> Result<Option<File>, OpenError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, error)),
    }
}

fn identify(file: &File, path: &Path, log: LogId, ordinal: u64) -> Result<Kind, OpenError> {
    let kind = frame::identify(file, log, ordinal).map_err(|error| unreadable(path, error))?;
    match kind {
        Kind::Segment | Kind::Nothing => Ok(kind),
        Kind::Stranger => Err(damaged(path, "it is of another log".to_owned())),
        Kind::Other => Err(OpenError::NotALog {
            path: path.to_owned(),
        }),
    }
}

fn damaged(path: &Path, reason: String) -> OpenError {
    OpenError::Damaged {
        path: path.to_owned(),
        reason,
    }
}

fn unreadable(path: &Path, source: io::Error) -> OpenError {
    OpenError::Directory {
        path: path.to_owned(),
        source,
    }
}
