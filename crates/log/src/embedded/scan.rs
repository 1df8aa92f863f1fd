//! Owns the passing over the files of segments, in their order: what is in them, as far as it is whole,
//! and whether anything that was whole once is not there. A sealed segment says by its footer what is
//! in it; in the others each frame is looked at. Changes nothing.

use std::{fs::File, io, path::Path};

use super::{
    directory::MANIFEST_FILE,
    footer,
    frame::{self, Frames, Header, Kind, SEGMENT_HEADER_BYTES, SEGMENT_VERSION},
    manifest::{self, Manifest},
    open_error::OpenError,
    segments::{self, Segment},
};
use prelude_bridge_event::{EventKey, Sequence};

/// Read at once.
const CHUNK_BYTES: usize = 1024 * 1024;

/// Bytes that are no whole commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Torn {
    pub(super) ordinal: u64,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// Takes the keys of commits that the files of ids have not got, in their order, with the last event
/// whose key is among them.
pub(super) type Sink<'a> = &'a mut dyn FnMut(Sequence, &[EventKey]) -> Result<(), OpenError>;

/// What the files turn out to be.
#[derive(Default)]
pub(super) struct Scanned {
    pub(super) segments: Vec<Segment>,
    /// The numbers of those without a footer.
    pub(super) unsealed: Vec<u64>,
    pub(super) given_up: Vec<u64>,
    pub(super) unused: Vec<u64>,
    pub(super) discarded: Vec<(u64, &'static str)>,
}

/// What a file turns out to be.
enum Scan {
    /// It has a footer.
    Sealed(Segment),
    Segment(Segment),
    /// It was made ready, and holds nothing but zeros.
    Unused,
    /// It holds something, but no commit.
    Discarded(&'static str),
}

const STRANGER: &str = "it is of another log, or of another place in this one";

/// Passes over the segments.
pub(super) struct Scanner<'a> {
    directory: &'a Path,
    manifest: &'a Manifest,
    ids_through: Sequence,
    /// The event that comes next; the first one tells.
    next: Option<Sequence>,
    /// Where in its segment the last commit begins.
    pub(super) last_commit: u64,
    /// What is behind it.
    pub(super) torn: Option<Torn>,
    sink: Sink<'a>,
}

/// The frames of a commit, as far as they were found.
#[derive(Default)]
struct Commit {
    frames: Vec<Header>,
    keys: Vec<EventKey>,
}

impl<'a> Scanner<'a> {
    /// Keys of events after `ids_through` go to the sink; none where that is `None`.
    pub(super) fn new(
        directory: &'a Path,
        manifest: &'a Manifest,
        ids_through: Option<Sequence>,
        sink: Sink<'a>,
    ) -> Self {
        Self {
            directory,
            manifest,
            ids_through: ids_through.unwrap_or(Sequence(u64::MAX)),
            next: None,
            last_commit: SEGMENT_HEADER_BYTES,
            torn: None,
            sink,
        }
    }

    pub(super) fn scan_all(&mut self, ordinals: &[u64]) -> Result<Scanned, OpenError> {
        let mut scanned = Scanned::default();
        for &ordinal in ordinals {
            if ordinal < self.manifest.first_ordinal {
                self.check_given_up(ordinal)?;
                scanned.given_up.push(ordinal);
                continue;
            }
            match self.scan(ordinal)? {
                Scan::Sealed(segment) => scanned.segments.push(segment),
                Scan::Segment(segment) => {
                    scanned.unsealed.push(ordinal);
                    scanned.segments.push(segment);
                }
                Scan::Unused => scanned.unused.push(ordinal),
                Scan::Discarded(why) => scanned.discarded.push((ordinal, why)),
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
        let log = self.manifest.log;
        let kind = frame::identify(&file, log, ordinal).map_err(failed)?;
        if let Kind::OtherVersion(version) = kind {
            manifest::check_version(&path, version, SEGMENT_VERSION)?;
        }
        if kind != Kind::Stranger
            && let Some(segment) = footer::read(&file, log, ordinal).map_err(failed)?
        {
            self.report_header(&path, kind);
            self.pass_sealed(&path, file, &segment)?;
            return Ok(Scan::Sealed(segment));
        }
        let mut frames = Frames::new(file, log, SEGMENT_HEADER_BYTES, CHUNK_BYTES);
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
        let head = self.next.map_or(self.manifest.trimmed, Sequence::before);
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
            self.report_header(&path, kind);
            self.torn = rest.written.map(|(from, to)| Torn { ordinal, from, to });
            return Ok(Scan::Segment(segment));
        }
        Ok(match kind {
            Kind::Segment | Kind::Nothing if rest.written.is_none() => Scan::Unused,
            Kind::Segment | Kind::OtherVersion(_) => {
                Scan::Discarded("its first commit is not whole")
            }
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
            let is_confirmed = header.last_sequence() <= self.manifest.confirmed;
            let has_new_keys = header.last_sequence() > self.ids_through;
            if !is_confirmed || has_new_keys {
                let Some(body) = frames.body(&header).map_err(failed)? else {
                    break;
                };
                // What is confirmed was whole once: if it is not now, whoever reads it is told.
                if !is_confirmed && !body.is_whole(&header) {
                    break;
                }
                match body.keys(&header) {
                    Some(keys) => commit
                        .keys
                        .extend(keys.into_iter().filter(|_| has_new_keys)),
                    None => report_keys(path, header.first_sequence, header.last_sequence()),
                }
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
                    (self.sink)(header.last_sequence(), &whole.keys)?;
                }
            }
        }
        Ok(commit_at)
    }

    /// Takes a segment that has a footer, and the keys in it that are new. What is damaged in it is said
    /// to whoever reads it.
    fn pass_sealed(&mut self, path: &Path, file: File, segment: &Segment) -> Result<(), OpenError> {
        let (first, last) = (segment.first_sequence, segment.last_sequence);
        if let Some(next) = self.next.filter(|&next| next != first) {
            let reason = if next < first {
                format!("events {next} to {} are missing before it", first.before())
            } else {
                format!("it begins with event {first}, not {next}")
            };
            return Err(damaged(path, reason));
        }
        self.next = Some(last.plus(1));
        if last <= self.ids_through {
            return Ok(());
        }
        let mut frames = Frames::new(file, self.manifest.log, SEGMENT_HEADER_BYTES, CHUNK_BYTES);
        let ends = segment.marks.iter().skip(1);
        let ends = ends.map(|mark| (mark.sequence.before(), mark.offset));
        let ends = ends.chain([(last, segment.end)]);
        for (mark, (through, end)) in segment.marks.iter().zip(ends) {
            if through <= self.ids_through {
                continue;
            }
            frames.go_to(mark.offset);
            if let Some(damaged) = self.pass_keys(path, &mut frames, mark.sequence, end)? {
                report_keys(path, damaged, through);
            }
        }
        Ok(())
    }

    /// Takes the new keys of the frames up to a place; returns the first event whose frame is damaged.
    fn pass_keys(
        &mut self,
        path: &Path,
        frames: &mut Frames,
        first: Sequence,
        end: u64,
    ) -> Result<Option<Sequence>, OpenError> {
        let failed = |error| unreadable(path, error);
        let mut expected = first;
        while frames.offset() < end {
            let header = frames.header().map_err(failed)?;
            let Some(header) = header.filter(|header| header.first_sequence == expected) else {
                return Ok(Some(expected));
            };
            let last = header.last_sequence();
            if last > self.ids_through {
                let body = frames.body(&header).map_err(failed)?;
                let Some(keys) = body.and_then(|body| body.keys(&header)) else {
                    return Ok(Some(expected));
                };
                (self.sink)(last, &keys)?;
            }
            frames.skip(&header);
            expected = last.plus(1);
        }
        Ok(None)
    }

    /// Says so when a segment's header is damaged: its frames have checksums of their own. Whoever wants
    /// no keys only looks.
    fn report_header(&self, path: &Path, kind: Kind) {
        if !matches!(kind, Kind::Nothing | Kind::Other) || self.ids_through == Sequence(u64::MAX) {
            return;
        }
        tracing::error!(
            path = %path.display(),
            bytes = SEGMENT_HEADER_BYTES,
            "the first bytes of a segment are damaged; its events are read without them"
        );
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
        let first = self.next.unwrap_or(self.manifest.trimmed.plus(1));
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

    /// That retention has removed everything in a segment that the manifest says was given up.
    fn check_given_up(&self, ordinal: u64) -> Result<(), OpenError> {
        let path = segments::path(self.directory, ordinal);
        let Some(file) = open(&path)? else {
            return Ok(());
        };
        let mut frames = Frames::new(file, self.manifest.log, SEGMENT_HEADER_BYTES, CHUNK_BYTES);
        let stays = |_, header: &Header| header.last_sequence() > self.manifest.trimmed;
        let rest = frames.rest(SEGMENT_HEADER_BYTES, stays);
        match rest.map_err(|error| unreadable(&path, error))?.found {
            None => Ok(()),
            Some((_, header)) => {
                let (event, trimmed) = (header.last_sequence(), self.manifest.trimmed);
                let reason = format!(
                    "it says that {} was given up and events up to {trimmed} were removed, but the \
                     segment has event {event}",
                    path.display()
                );
                Err(OpenError::DamagedManifest {
                    path: self.directory.join(MANIFEST_FILE),
                    reason,
                })
            }
        }
    }
}

fn report_keys(path: &Path, first: Sequence, last: Sequence) {
    tracing::error!(
        path = %path.display(),
        first_event = first.0,
        last_event = last.0,
        "the keys of these events are damaged: repetitions of them are not recognised any more"
    );
}

fn open(path: &Path) -> Result<Option<File>, OpenError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, error)),
    }
}

pub(super) fn damaged(path: &Path, reason: String) -> OpenError {
    OpenError::Damaged {
        path: path.to_owned(),
        reason,
    }
}

pub(super) fn unreadable(path: &Path, source: io::Error) -> OpenError {
    OpenError::Directory {
        path: path.to_owned(),
        source,
    }
}
