//! Owns the verification of a segment: each checksum and each sequence number of its frames. Changes
//! nothing.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use super::{
    frames::Frames,
    readers::{self, Located},
    segments::{self, Place, Segment},
    walk::{Step, Walk},
};
use prelude_bridge_event::{LogId, Sequence, UnixMicros};

/// What is wrong with a frame, or with the bytes where one should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// The events cannot be read.
    Events(Located),
    /// The keys of the events are damaged, the events are not: they tell the keys.
    Keys(Located),
    /// Bytes that mean nothing are not what they were.
    Padding(Located),
}

/// What was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Passed {
    pub(super) events: u64,
    pub(super) bytes: u64,
    /// Where the frame begins, with which event, and when that was received; `None` for damage.
    pub(super) frame: Option<(u64, Sequence, UnixMicros)>,
}

/// A segment that is being verified.
pub(super) struct Verification {
    path: PathBuf,
    frames: Frames,
    walk: Walk,
}

impl Verification {
    /// Verifies a segment from a place on, reading `chunk_bytes` at a time. `None` if its file is
    /// missing.
    pub(super) fn open(
        directory: &Path,
        log: LogId,
        place: &Place,
        chunk_bytes: usize,
    ) -> io::Result<Option<Self>> {
        let path = segments::path(directory, place.ordinal);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        Ok(Some(Self {
            path,
            frames: Frames::new(file, log, place.offset, chunk_bytes),
            walk: Walk::new(place),
        }))
    }

    /// Has what cannot be read count as damaged.
    pub(super) fn forgive(&mut self) {
        self.frames.forgive();
    }

    /// The event that comes next.
    pub(super) fn next(&self) -> Sequence {
        self.walk.next
    }

    /// Has the system read what comes next from the disk, not from its memory.
    pub(super) fn forget_cached(&self, bytes: u64) {
        self.frames.forget_cached(bytes);
    }

    /// Verifies the next frame. `None` at the end of the segment.
    pub(super) fn step(&mut self, found: &mut dyn FnMut(Finding)) -> io::Result<Option<Passed>> {
        let from = self.frames.offset();
        let step = self.walk.step(&mut self.frames)?;
        let at = self.frames.offset();
        let located = |events, bytes| Located {
            events,
            path: self.path.clone(),
            bytes: Some(bytes),
        };
        let header = match step {
            None => return Ok(None),
            Some(Step::Damaged(events, bytes)) => {
                found(Finding::Events(located(events, bytes)));
                return Ok(Some(Passed {
                    events: 0,
                    bytes: at.saturating_sub(from),
                    frame: None,
                }));
            }
            Some(Step::Frame(header)) => header,
        };
        let frames = &mut self.frames;
        let here = || located(header.event_range(), (at, at + header.frame_bytes()));
        let is_whole = readers::block(frames, &header)?.is_some();
        let keys = frames
            .body(&header)?
            .map(|body| body.has_whole_keys(&header));
        if !is_whole {
            found(Finding::Events(here()));
        } else if keys != Some(true) {
            found(Finding::Keys(here()));
        } else if !frames.is_padded(&header)? {
            found(Finding::Padding(here()));
        }
        self.walk.pass(frames, &header);
        Ok(Some(Passed {
            events: if is_whole {
                u64::from(header.events)
            } else {
                0
            },
            bytes: self.frames.offset().saturating_sub(from),
            frame: Some((at, header.first_sequence, header.received_at)),
        }))
    }
}

/// Whether the places that a segment's index names are those of frames, in their order.
pub(super) struct IndexCheck<'a> {
    segment: &'a Segment,
    seen: usize,
    is_right: bool,
}

impl<'a> IndexCheck<'a> {
    pub(super) fn new(segment: &'a Segment) -> Self {
        Self {
            segment,
            seen: 0,
            is_right: true,
        }
    }

    /// Compares the index with the next frame.
    pub(super) fn compare(&mut self, passed: &Passed) {
        let Some((offset, sequence, at)) = passed.frame else {
            return;
        };
        while let Some(mark) = self.segment.marks.get(self.seen)
            && mark.offset <= offset
        {
            let is_it = (mark.offset, mark.sequence, mark.at) == (offset, sequence, at);
            self.is_right &= is_it || mark.offset < offset;
            self.seen += 1;
        }
    }

    /// Whether every place was that of a frame, unless that is damaged.
    pub(super) fn is_right(&self) -> bool {
        self.is_right
    }
}
