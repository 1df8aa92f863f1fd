//! Owns the passing over the files of segments, in their order: what is in them, as far as it is whole,
//! and which events were whole once and are not any more. A sealed segment says by its footer what is
//! in it; in the others each frame is looked at. Changes nothing.

use std::{fs::File, io, path::Path};

use super::{
    directory::MANIFEST_FILE,
    footer,
    frame::{self, Header, Kind, SEGMENT_HEADER_BYTES, SEGMENT_VERSION},
    frames::Frames,
    manifest::{self, Manifest},
    open_error::OpenError,
    readers::Located,
    segments::{self, Mark, Segment},
    walk::{Step, Walk},
};
use crate::Damaged;
use prelude_bridge_event::{EventKey, Sequence};

/// Read at once.
pub(super) const CHUNK_BYTES: usize = 1024 * 1024;

/// Bytes that are no whole commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Torn {
    pub(super) ordinal: u64,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// Takes the keys of commits that the files of ids have not got, in their order, with the last event
/// whose key is among them, or was before it was damaged.
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
    /// Damage that was found within segments.
    pub(super) damage: Vec<Located>,
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

pub(super) const STRANGER: &str = "it is of another log, or of another place in this one";

/// Passes over the segments.
pub(super) struct Scanner<'a> {
    pub(super) directory: &'a Path,
    pub(super) manifest: &'a Manifest,
    pub(super) ids_through: Sequence,
    /// The event that comes next; the first one tells.
    pub(super) next: Option<Sequence>,
    /// Where in its segment the last commit begins.
    pub(super) last_commit: u64,
    /// What is behind it.
    pub(super) torn: Option<Torn>,
    pub(super) scanned: Scanned,
    pub(super) sink: Sink<'a>,
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
            scanned: Scanned::default(),
            sink,
        }
    }

    pub(super) fn scan_all(&mut self, ordinals: &[u64]) -> Result<(), OpenError> {
        for &ordinal in ordinals {
            if ordinal < self.manifest.first_ordinal {
                self.check_given_up(ordinal)?;
                self.scanned.given_up.push(ordinal);
                continue;
            }
            let scan = self.scan(ordinal)?;
            let scanned = &mut self.scanned;
            match scan {
                Scan::Sealed(segment) => scanned.segments.push(segment),
                Scan::Segment(segment) => {
                    scanned.unsealed.push(ordinal);
                    scanned.segments.push(segment);
                }
                Scan::Unused => scanned.unused.push(ordinal),
                Scan::Discarded(why) => scanned.discarded.push((ordinal, why)),
            }
        }
        Ok(())
    }

    fn scan(&mut self, ordinal: u64) -> Result<Scan, OpenError> {
        let path = segments::path(self.directory, ordinal);
        let Some(file) = open(&path)? else {
            return Ok(Scan::Unused);
        };
        let failed = |error| unreadable(&path, error);
        let log = self.manifest.log;
        let kind = frame::identify(&file, log, ordinal).map_err(failed)?;
        if let Kind::OtherVersion(version) = kind
            && (version > SEGMENT_VERSION || self.next.is_none())
        {
            manifest::check_version(&path, version, SEGMENT_VERSION)?;
        }
        if let Some(segment) = footer::read(&file, log, ordinal).map_err(failed)? {
            self.report_header(&path, kind);
            self.pass_sealed(&path, file, &segment)?;
            return Ok(Scan::Sealed(segment));
        }
        let mut frames = Frames::new(file, log, SEGMENT_HEADER_BYTES, CHUNK_BYTES);
        let (segment, torn) = self.scan_unsealed(&mut frames, ordinal, &path)?;
        if let Some(segment) = segment {
            self.report_header(&path, kind);
            self.torn = torn;
            return Ok(Scan::Segment(segment));
        }
        self.without_events(kind, &path, torn.is_some())
    }

    /// Looks at each frame of a segment. Returns what is in it, and which bytes behind that are no part
    /// of it.
    fn scan_unsealed(
        &mut self,
        frames: &mut Frames,
        ordinal: u64,
        path: &Path,
    ) -> Result<(Option<Segment>, Option<Torn>), OpenError> {
        let failed = |error| unreadable(path, error);
        let mut segment: Option<Segment> = None;
        loop {
            let tip = self.scan_frames(frames, path, |header, offset| {
                add(&mut segment, ordinal, header, offset);
            })?;
            // What the last event was, is known unless there never was one.
            let head = self.next.map_or(self.manifest.trimmed, Sequence::before);
            let next = head.plus(1);
            // What an interrupted commit has left behind is of this commit only, as nothing was written
            // after it. Whatever begins a commit behind the place where this one begins, or belongs to
            // a later one, was written when this one was whole.
            let is_later = |at, header: &Header| {
                let begins = header.events_before == 0 && at > tip;
                header.first_sequence > head && (begins || header.commit_first() > next)
            };
            frames.go_to(tip);
            let here = frames.header().map_err(failed)?;
            // No frame is within another.
            let here = here.filter(|header| header.first_sequence == next);
            let find_from = tip + here.map_or(0, |header| header.frame_bytes());
            let rest = frames.rest(tip, find_from, is_later).map_err(failed)?;
            let Some((at, later)) = rest.found else {
                // Bytes that were found to be damaged are not written over.
                if let Some(segment) = &mut segment {
                    segment.end = segment.end.max(tip);
                }
                let torn = rest.written.map(|(from, to)| Torn { ordinal, from, to });
                return Ok((segment, torn));
            };
            let through = later.commit_first().before();
            let is_first = segment.is_none();
            if is_first {
                self.fill_gap(through)?;
            }
            frames.go_to(tip);
            let mut damage = self.salvage(frames, ordinal, &mut segment, (through, at))?;
            // What is missing before the first byte of this file is in none.
            damage.retain(|found| !is_first || found.bytes.is_some_and(|(from, to)| from < to));
            self.scanned.damage.extend(damage);
            self.next = Some(later.commit_first());
            frames.go_to(at);
        }
    }

    /// What a file is in which no commit is whole.
    fn without_events(
        &self,
        kind: Kind,
        path: &Path,
        has_content: bool,
    ) -> Result<Scan, OpenError> {
        let is_first = self.next.is_none() && self.manifest.trimmed == Sequence::ZERO;
        // A log that was opened has an epoch.
        let is_new = self.manifest.epochs.is_empty();
        Ok(match kind {
            Kind::Segment | Kind::Nothing if !has_content => Scan::Unused,
            Kind::Segment => Scan::Discarded("its first commit is not whole"),
            Kind::Nothing => Scan::Discarded("it has no header, and no commit that is whole"),
            // In a log without events, it is more likely that somebody is mistaken about the directory.
            Kind::Stranger if is_first && self.is_of_another_log(path)? => {
                return Err(damaged(path, STRANGER.to_owned()));
            }
            Kind::Other if is_first && is_new => {
                let path = path.to_owned();
                return Err(OpenError::NotALog { path });
            }
            Kind::Stranger | Kind::OtherVersion(_) => Scan::Discarded(STRANGER),
            Kind::Other => Scan::Discarded("it is no segment"),
        })
    }

    /// Whether a file has events of the log that its header names. A file system may show a header
    /// that was left on the disk: there is none behind it then.
    fn is_of_another_log(&self, path: &Path) -> Result<bool, OpenError> {
        let failed = |error| unreadable(path, error);
        let Some(file) = open(path)? else {
            return Ok(false);
        };
        let log = frame::log_of(&file).map_err(failed)?;
        let Some(log) = log.filter(|&log| log != self.manifest.log) else {
            return Ok(false);
        };
        let mut frames = Frames::new(file, log, SEGMENT_HEADER_BYTES, CHUNK_BYTES);
        let found = frames.find(SEGMENT_HEADER_BYTES, u64::MAX, |_, _| true);
        Ok(found.map_err(failed)?.is_some())
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
                let mut at = commit_at;
                for header in &whole.frames {
                    add(header, at);
                    at += header.frame_bytes();
                }
                self.next = Some(header.last_sequence().plus(1));
                self.last_commit = commit_at;
                commit_at = frames.offset();
                // Also where they are damaged: nothing waits for them.
                if has_new_keys {
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
        if let Some(next) = self.next.filter(|&next| next > first) {
            let reason = format!("it begins with event {first}, not {next}");
            return Err(damaged(path, reason));
        }
        if self.next.is_some_and(|next| next < first) {
            self.fill_gap(first.before())?;
        }
        self.next = Some(last.plus(1));
        let is_new = |mark: &&Mark| mark.sequence > self.ids_through;
        let marks = segment.marks.iter();
        let from = marks.clone().take_while(|mark| !is_new(mark)).last();
        let from = from.or(segment.marks.first());
        let Some(from) = from.filter(|_| last > self.ids_through) else {
            return Ok(());
        };
        let mut frames = Frames::new(file, self.manifest.log, from.offset, CHUNK_BYTES);
        let mut walk = Walk {
            next: from.sequence,
            through: last,
            end: segment.end,
        };
        self.pass_keys(path, &mut frames, &mut walk)
    }

    /// Takes the new keys of the frames that are left.
    fn pass_keys(
        &mut self,
        path: &Path,
        frames: &mut Frames,
        walk: &mut Walk,
    ) -> Result<(), OpenError> {
        let failed = |error| unreadable(path, error);
        while let Some(step) = walk.step(frames).map_err(failed)? {
            let header = match step {
                Step::Damaged(events, bytes) => {
                    report_keys(path, events.first, events.last);
                    add_damage(&mut self.scanned.damage, path, events, bytes);
                    if events.last > self.ids_through {
                        (self.sink)(events.last, &[])?;
                    }
                    continue;
                }
                Step::Frame(header) => header,
            };
            let last = header.last_sequence();
            if last > self.ids_through {
                let body = frames.body(&header).map_err(failed)?;
                let keys = body.and_then(|body| body.keys(&header));
                if keys.is_none() {
                    report_keys(path, header.first_sequence, last);
                }
                (self.sink)(last, &keys.unwrap_or_default())?;
            }
            walk.pass(frames, &header);
        }
        Ok(())
    }

    /// Says so when a segment's header is damaged: its frames have checksums of their own. Whoever wants
    /// no keys only looks.
    fn report_header(&self, path: &Path, kind: Kind) {
        if kind == Kind::Segment || self.ids_through == Sequence(u64::MAX) {
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

    /// That retention has removed everything in a segment that the manifest says was given up.
    fn check_given_up(&self, ordinal: u64) -> Result<(), OpenError> {
        let path = segments::path(self.directory, ordinal);
        let Some(file) = open(&path)? else {
            return Ok(());
        };
        let mut frames = Frames::new(file, self.manifest.log, SEGMENT_HEADER_BYTES, CHUNK_BYTES);
        let stays = |_, header: &Header| header.last_sequence() > self.manifest.trimmed;
        let found = frames.find(SEGMENT_HEADER_BYTES, u64::MAX, stays);
        match found.map_err(|error| unreadable(&path, error))? {
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

/// Adds damage behind what was found before.
pub(super) fn add_damage(
    damage: &mut Vec<Located>,
    path: &Path,
    events: Damaged,
    bytes: (u64, u64),
) {
    match damage.last_mut() {
        Some(last) if last.path == path && last.events.last.plus(1) == events.first => {
            last.events.last = events.last;
            last.bytes = last.bytes.map(|(from, _)| (from, bytes.1));
        }
        _ => damage.push(Located {
            events,
            path: path.to_owned(),
            bytes: Some(bytes),
        }),
    }
}

/// Adds a frame to a segment, which begins with it if there is none yet.
pub(super) fn add(segment: &mut Option<Segment>, ordinal: u64, header: &Header, offset: u64) {
    match segment {
        Some(segment) => segment.add(header, offset),
        None => *segment = Some(Segment::new(ordinal, header, offset)),
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

pub(super) fn open(path: &Path) -> Result<Option<File>, OpenError> {
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
