//! Owns what a start takes of events that were durable and of which a part is damaged: each frame that
//! is whole, and where the others should be.

use super::{
    frame::SEGMENT_HEADER_BYTES,
    frames::Frames,
    open_error::OpenError,
    readers::Located,
    scan::{CHUNK_BYTES, Scanner, add, add_damage, open, unreadable},
    segments::{self, Segment},
    walk::{Step, Walk},
};
use prelude_bridge_event::Sequence;

impl Scanner<'_> {
    /// Takes what is whole of the events up to `through` from the files that were passed over: these
    /// events are missing, and were durable once.
    pub(super) fn fill_gap(&mut self, through: Sequence) -> Result<(), OpenError> {
        let last = self.scanned.segments.last();
        let last = last.map_or(0, |segment| segment.ordinal);
        let files = self.scanned.discarded.iter().map(|&(ordinal, _)| ordinal);
        let files = files.filter(|&ordinal| ordinal > last);
        let files: Vec<u64> = std::iter::once(last).chain(files).collect();
        for ordinal in files {
            let is_last = ordinal == last;
            if is_last && !self.scanned.unsealed.contains(&ordinal) {
                continue;
            }
            let path = segments::path(self.directory, ordinal);
            let Some(file) = open(&path)? else {
                continue;
            };
            let mut segment = if is_last {
                self.scanned.segments.pop()
            } else {
                None
            };
            let from = segment
                .as_ref()
                .map_or(SEGMENT_HEADER_BYTES, |last| last.end);
            let mut frames = Frames::new(file, self.manifest.log, from, CHUNK_BYTES);
            let end = frames.file_bytes();
            let end = end.map_err(|error| unreadable(&path, error))?;
            let damage = self.salvage(&mut frames, ordinal, &mut segment, (through, end))?;
            let Some(segment) = segment else {
                continue;
            };
            // What is missing before and behind the segment may be in another file.
            let is_within = |found: &Located| {
                found.events.last < segment.last_sequence
                    && found.events.first > segment.first_sequence
            };
            self.scanned
                .damage
                .extend(damage.into_iter().filter(is_within));
            self.scanned.segments.push(segment);
            if !is_last {
                self.scanned.unsealed.push(ordinal);
                self.scanned
                    .discarded
                    .retain(|&(other, _)| other != ordinal);
            }
        }
        Ok(())
    }

    /// Takes the frames that are whole of events up to `through`, which were durable once: from where
    /// `frames` is to `end`. Returns where the others should be.
    pub(super) fn salvage(
        &mut self,
        frames: &mut Frames,
        ordinal: u64,
        segment: &mut Option<Segment>,
        (through, end): (Sequence, u64),
    ) -> Result<Vec<Located>, OpenError> {
        let path = segments::path(self.directory, ordinal);
        let failed = |error| unreadable(&path, error);
        let next = self.next.unwrap_or(Sequence::ZERO.plus(1));
        let mut walk = Walk { next, through, end };
        let mut damage = Vec::new();
        while let Some(step) = walk.step(frames).map_err(failed)? {
            let at = frames.offset();
            let header = match step {
                Step::Damaged(events, bytes) => {
                    add_damage(&mut damage, &path, events, bytes);
                    continue;
                }
                Step::Frame(header) => header,
            };
            let body = frames.body(&header).map_err(failed)?;
            let keys = body.as_ref().and_then(|body| body.keys(&header));
            let is_whole = body.is_some_and(|body| body.has_whole_block(&header));
            if let Some(keys) = keys.filter(|_| header.last_sequence() > self.ids_through) {
                (self.sink)(header.last_sequence(), &keys)?;
            }
            walk.pass(frames, &header);
            if is_whole {
                add(segment, ordinal, &header, at);
                self.last_commit = at;
                self.next = Some(walk.next);
            } else {
                let bytes = (at, frames.offset());
                add_damage(&mut damage, &path, header.event_range(), bytes);
            }
        }
        Ok(damage)
    }
}
