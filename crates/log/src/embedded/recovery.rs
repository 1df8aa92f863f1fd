//! Owns what a start finds out about the segments: where the log ends, and which keys the index has
//! not got yet. Changes nothing, so it serves an inspection too.
//!
//! Each commit is flushed before the next one is written. So behind the last whole commit there may
//! be pieces of one more, which nobody was promised, and these are to be cut. A commit that is not
//! whole although another one was written after it, or although the index has it, was damaged later:
//! that is said, and nothing is cut. Before anything counts as torn, the whole rest of its segment is
//! looked through.

use std::{collections::VecDeque, fs::File, io, path::Path};

use super::{
    directory::DATABASE_FILE,
    frame::{self, ALIGNMENT, Frames, Header, Kind, SEGMENT_HEADER_BYTES},
    open_error::OpenError,
    readers,
    schema::Facts,
    segments::{self, Segment, Segments},
};
use crate::{Block, Range};
use prelude_bridge_event::{Epoch, EventKey, LogId, Sequence, UnixMicros};

/// Read at once.
const CHUNK_BYTES: usize = 1024 * 1024;

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
    /// The first segment that there never was.
    pub(super) next_ordinal: u64,
    /// Pieces of a commit behind the last whole one.
    pub(super) torn: Option<Torn>,
    /// Segments that retention has given up, as the index says and as they say themselves.
    pub(super) given_up: Vec<u64>,
    /// Segments that were made ready, and hold nothing.
    pub(super) unused: Vec<u64>,
    /// Files without a commit that are not empty, and why they are no part of the log.
    pub(super) discarded: Vec<(u64, &'static str)>,
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

/// Bytes that are no whole commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Torn {
    pub(super) ordinal: u64,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// A whole commit that the index has not got.
pub(super) struct Unindexed {
    /// Which terms wrote it, each with its first event.
    pub(super) terms: Vec<(Sequence, Epoch)>,
    pub(super) last_sequence: Sequence,
    pub(super) keys: Vec<EventKey>,
}

/// Takes the commits that the index has not got, in their order.
pub(super) type Sink<'a> = &'a mut dyn FnMut(Unindexed) -> Result<(), OpenError>;

/// Looks at the segments in a directory.
pub(super) fn look(directory: &Path, facts: Facts, sink: Sink<'_>) -> Result<Found, OpenError> {
    let ordinals = segments::ordinals(directory).map_err(|error| unreadable(directory, error))?;
    check_sealed(directory, &facts)?;
    let mut scanner = Scanner {
        directory,
        log: facts.log,
        indexed_through: facts.indexed_through,
        trimmed: facts.trimmed,
        next: facts.sealed.last().map(|last| last.last_sequence.plus(1)),
        last_commit: SEGMENT_HEADER_BYTES,
        torn: None,
        sink,
    };
    let scanned = scanner.scan_all(&ordinals, &facts)?;
    let (last_commit, torn) = (scanner.last_commit, scanner.torn);
    let next_ordinal = ordinals.last().map_or(1, |last| last.saturating_add(1));
    let next_ordinal = next_ordinal.max(facts.first_ordinal);
    let mut list = VecDeque::from(facts.sealed);
    list.extend(scanned.segments);
    let head = list.back().map(|last| (last.last_sequence, last.last_at));
    let (head, last_at) = head.unwrap_or((facts.trimmed, facts.trimmed_at));
    let known = facts.indexed_through.max(facts.trimmed);
    if head < known {
        let (ordinal, why) = match scanned.discarded.last() {
            Some(&(ordinal, why)) => (ordinal, format!("{why}, and ")),
            None => (ordinals.last().copied().unwrap_or(1), String::new()),
        };
        let reason = format!("{why}the log ends with event {head}, not {known}");
        return Err(damaged(&segments::path(directory, ordinal), reason));
    }
    let tip = list.back().map(|last| Tip {
        ordinal: last.ordinal,
        commit: last_commit,
        end: last.end,
    });
    check_beginning(directory, list.front(), facts.trimmed)?;
    let segments = Segments::new(directory, facts.log, list);
    let range = range(&segments, facts.trimmed, head, last_at)?;
    Ok(Found {
        segments,
        range,
        last_at: last_at.max(facts.trimmed_at),
        unsealed: scanned.unsealed,
        tip,
        next_ordinal,
        torn: torn.filter(|torn| tip.is_some_and(|tip| tip.ordinal == torn.ordinal)),
        given_up: scanned.given_up,
        unused: scanned.unused,
        discarded: scanned.discarded,
    })
}

/// That nothing is missing between what was removed and the first event.
fn check_beginning(
    directory: &Path,
    first: Option<&Segment>,
    trimmed: Sequence,
) -> Result<(), OpenError> {
    let Some(first) = first.filter(|first| first.first_sequence > trimmed.plus(1)) else {
        return Ok(());
    };
    let path = segments::path(directory, first.ordinal);
    let (begins, wanted) = (first.first_sequence, trimmed.plus(1));
    Err(damaged(
        &path,
        format!("it begins with event {begins}, not {wanted}"),
    ))
}

/// That the files of the segments that are known are there, and are theirs.
fn check_sealed(directory: &Path, facts: &Facts) -> Result<(), OpenError> {
    for segment in &facts.sealed {
        let path = segments::path(directory, segment.ordinal);
        let Some(file) = open(&path)? else {
            let (first, last) = (segment.first_sequence, segment.last_sequence);
            return Err(damaged(
                &path,
                format!("events {first} to {last} are missing"),
            ));
        };
        let kind = frame::identify(&file, facts.log, segment.ordinal);
        match kind.map_err(|error| unreadable(&path, error))? {
            Kind::Segment => {}
            Kind::Stranger => return Err(damaged(&path, STRANGER.to_owned())),
            // Its frames have checksums of their own: whoever reads one that is damaged is told.
            Kind::Nothing | Kind::Other => report_header(&path),
        }
        let bytes = file.metadata().map_err(|error| unreadable(&path, error))?;
        // The bytes between two frames need not be there.
        if bytes.len().next_multiple_of(ALIGNMENT) < segment.end {
            return Err(damaged(&path, "it is cut short".to_owned()));
        }
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

/// What the files that are not known to be sealed turn out to be.
#[derive(Default)]
struct Scanned {
    segments: Vec<Segment>,
    /// Their numbers.
    unsealed: Vec<u64>,
    given_up: Vec<u64>,
    unused: Vec<u64>,
    discarded: Vec<(u64, &'static str)>,
}

/// What a file turns out to be.
enum Scan {
    Segment(Segment),
    /// It was made ready, and holds nothing but zeros.
    Unused,
    /// It holds something, but no commit.
    Discarded(&'static str),
}

const STRANGER: &str = "it is of another log, or of another place in this one";

/// Passes over the segments that may have been written to.
struct Scanner<'a> {
    directory: &'a Path,
    log: LogId,
    indexed_through: Sequence,
    trimmed: Sequence,
    /// The event that comes next; the first one tells.
    next: Option<Sequence>,
    /// Where in its segment the last commit begins.
    last_commit: u64,
    /// What is behind it.
    torn: Option<Torn>,
    sink: Sink<'a>,
}

/// The frames of a commit, as far as they were found.
#[derive(Default)]
struct Commit {
    frames: Vec<Header>,
    keys: Vec<EventKey>,
    terms: Vec<(Sequence, Epoch)>,
}

impl Scanner<'_> {
    fn scan_all(&mut self, ordinals: &[u64], facts: &Facts) -> Result<Scanned, OpenError> {
        let mut scanned = Scanned::default();
        let last_sealed = facts.sealed.last().map(|segment| segment.ordinal);
        let is_listed = |ordinal| facts.sealed.iter().any(|it| it.ordinal == ordinal);
        for &ordinal in ordinals {
            if ordinal < facts.first_ordinal {
                self.check_given_up(ordinal)?;
                scanned.given_up.push(ordinal);
            } else if last_sealed.is_none_or(|last| ordinal > last) {
                match self.scan(ordinal)? {
                    Scan::Segment(segment) => {
                        scanned.unsealed.push(ordinal);
                        scanned.segments.push(segment);
                    }
                    Scan::Unused => scanned.unused.push(ordinal),
                    Scan::Discarded(why) => scanned.discarded.push((ordinal, why)),
                }
            } else if !is_listed(ordinal) {
                let reason = "it lists later segments and not this one";
                return Err(self.contradiction(ordinal, reason));
            }
        }
        Ok(scanned)
    }

    fn scan(&mut self, ordinal: u64) -> Result<Scan, OpenError> {
        let path = segments::path(self.directory, ordinal);
        let Some(file) = open(&path)? else {
            return Ok(Scan::Unused);
        };
        let failed = |error| unreadable(&path, error);
        let kind = frame::identify(&file, self.log, ordinal).map_err(failed)?;
        let mut frames = Frames::new(file, self.log, SEGMENT_HEADER_BYTES, CHUNK_BYTES);
        let mut segment: Option<Segment> = None;
        let mut tip = frames.offset();
        // A header that belongs to another file is no damage: nothing in it is ours.
        if kind != Kind::Stranger {
            tip = self.scan_frames(&mut frames, &path, |header, offset| match &mut segment {
                Some(segment) => segment.add(header),
                None => segment = Some(Segment::new(ordinal, header, offset)),
            })?;
        }
        // What the last event was, is known unless there never was one.
        let head = self.next.map_or(self.trimmed, Sequence::before);
        let next = head.plus(1);
        // What an interrupted commit has left behind is of this commit only, as nothing was written
        // after it. Whatever begins a commit behind the place where this one begins, or belongs to a
        // later one, was written when this one was whole.
        let is_later = |at, header: &Header| {
            let is_behind = at > tip || kind == Kind::Stranger;
            let begins = header.events_before == 0 && is_behind;
            header.first_sequence > head && (begins || header.commit_first() > next)
        };
        let rest = frames.rest(tip, is_later).map_err(failed)?;
        if let Some((at, later)) = rest.found {
            return Err(self.lost(ordinal, kind, (tip, at), &later));
        }
        if let Some(segment) = segment {
            if matches!(kind, Kind::Nothing | Kind::Other) {
                report_header(&path);
            }
            self.torn = rest.written.map(|(from, to)| Torn { ordinal, from, to });
            return Ok(Scan::Segment(segment));
        }
        Ok(match kind {
            Kind::Segment | Kind::Nothing if rest.written.is_none() => Scan::Unused,
            Kind::Segment => Scan::Discarded("its first commit is not whole"),
            Kind::Nothing => Scan::Discarded("it has no header, and no commit that is whole"),
            // In a log without events, it is more likely that somebody is mistaken about the directory.
            Kind::Stranger if head == Sequence::ZERO => {
                return Err(damaged(&path, STRANGER.to_owned()));
            }
            Kind::Other if head == Sequence::ZERO => return Err(OpenError::NotALog { path }),
            Kind::Stranger => Scan::Discarded(STRANGER),
            Kind::Other => Scan::Discarded("it is no segment"),
        })
    }

    /// Goes as far as there are whole commits, in order. Returns where the last one ends.
    fn scan_frames(
        &mut self,
        frames: &mut Frames,
        path: &Path,
        mut add: impl FnMut(&Header, u64),
    ) -> Result<u64, OpenError> {
        let failed = |error| unreadable(path, error);
        let mut commit = Commit::default();
        let mut commit_at = frames.offset();
        while let Some(header) = frames.header().map_err(failed)? {
            if !self.continues(&commit, &header) {
                break;
            }
            // What the index has was whole once: if it is not now, whoever reads it is told.
            if header.last_sequence() > self.indexed_through {
                let body = frames.body(&header).map_err(failed)?;
                let Some(body) = body.filter(|body| body.is_whole(&header)) else {
                    break;
                };
                commit.keys.extend(body.keys());
                let term = Block::carried_epoch(body.block);
                commit.terms.push((header.first_sequence, term));
            }
            frames.skip(&header);
            commit.frames.push(header);
            if header.frames_after == 0 {
                let whole = std::mem::take(&mut commit);
                whole
                    .frames
                    .iter()
                    .for_each(|header| add(header, commit_at));
                self.next = Some(header.last_sequence().plus(1));
                self.last_commit = commit_at;
                commit_at = frames.offset();
                if !whole.keys.is_empty() {
                    (self.sink)(Unindexed {
                        terms: whole.terms,
                        last_sequence: header.last_sequence(),
                        keys: whole.keys,
                    })?;
                }
            }
        }
        Ok(commit_at)
    }

    /// Whether a frame is the next one.
    fn continues(&self, commit: &Commit, header: &Header) -> bool {
        match commit.frames.last() {
            Some(last) => {
                header.first_sequence == last.last_sequence().plus(1)
                    && header.is_of_commit_of(last)
            }
            None => {
                let next = self.next.unwrap_or(header.first_sequence);
                header.first_sequence == next && header.events_before == 0
            }
        }
    }

    /// There are commits behind one that is not whole.
    fn lost(&self, ordinal: u64, kind: Kind, (from, to): (u64, u64), later: &Header) -> OpenError {
        let path = segments::path(self.directory, ordinal);
        if kind == Kind::Stranger {
            return damaged(&path, STRANGER.to_owned());
        }
        let first = self.next.unwrap_or(self.trimmed.plus(1));
        let last = later.commit_first().before();
        let reason = if from == to {
            format!("events {first} to {last} are missing before it")
        } else if last >= first {
            format!("events {first} to {last} are damaged: bytes {from} to {to} of it")
        } else {
            let next = last.plus(1);
            format!("what is before event {next} is damaged: bytes {from} to {to} of it")
        };
        damaged(&path, reason)
    }

    /// That retention has removed everything in a segment that the index says was given up.
    fn check_given_up(&self, ordinal: u64) -> Result<(), OpenError> {
        let path = segments::path(self.directory, ordinal);
        let Some(file) = open(&path)? else {
            return Ok(());
        };
        let mut frames = Frames::new(file, self.log, SEGMENT_HEADER_BYTES, CHUNK_BYTES);
        let stays = |_, header: &Header| header.last_sequence() > self.trimmed;
        let rest = frames.rest(SEGMENT_HEADER_BYTES, stays);
        match rest.map_err(|error| unreadable(&path, error))?.found {
            None => Ok(()),
            Some((_, header)) => {
                let (event, trimmed) = (header.last_sequence(), self.trimmed);
                let reason = format!(
                    "it says that this segment was given up and events up to {trimmed} were removed, \
                     but the segment has event {event}"
                );
                Err(self.contradiction(ordinal, &reason))
            }
        }
    }

    /// The index and a segment say different things.
    fn contradiction(&self, ordinal: u64, reason: &str) -> OpenError {
        let segment = segments::path(self.directory, ordinal);
        OpenError::DamagedIndex {
            path: self.directory.join(DATABASE_FILE),
            reason: format!("of {}, {reason}", segment.display()),
        }
    }
}

fn report_header(path: &Path) {
    tracing::error!(
        path = %path.display(),
        bytes = SEGMENT_HEADER_BYTES,
        "the first bytes of a segment are damaged; its events are read without them"
    );
}

fn open(path: &Path) -> Result<Option<File>, OpenError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, error)),
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
