//! Owns the bytes of one commit: its frames, each with the keys of its events and a block. They are
//! the same wherever the commit is stored, so that one that another bridge wrote can be taken too.

use std::{
    fs::File,
    io::{self, IoSlice, Seek as _, SeekFrom, Write as _},
    sync::Arc,
    time::Duration,
};

use super::frame::{Header, Part};
use crate::{Block, ids};
use prelude_bridge_event::{EventKey, LogId, Sequence};

const ZEROS: [u8; 8] = [0; 8];

/// Told of each commit that added events.
pub type OnCommit = Arc<dyn Fn(CommitReport) + Send + Sync>;

/// A commit that added events, for metrics.
#[derive(Clone, Copy, Debug)]
pub struct CommitReport {
    /// Batches that were committed together.
    pub batches: usize,
    /// Events that were new.
    pub events: u64,
    /// What their blocks have, in bytes.
    pub bytes: u64,
    /// How long it took, from taking the batches to durability.
    pub duration: Duration,
}

/// Keys as the files of ids have them.
pub(super) fn numbers(keys: &[EventKey]) -> Vec<ids::Key> {
    let keys = keys.iter();
    keys.map(|key| ids::Key::from_be_bytes(key.0)).collect()
}

/// The key of a number of them.
pub(super) fn from_number(key: Option<ids::Key>) -> Option<EventKey> {
    key.map(|key| EventKey(key.to_be_bytes()))
}

/// The frames of a commit.
pub(super) struct CommitFrames {
    frames: Vec<Frame>,
    keys: Vec<EventKey>,
}

struct Frame {
    header: Header,
    /// The header and the keys, as they are written.
    front: Vec<u8>,
    block: Arc<Block>,
}

impl CommitFrames {
    /// Lays out blocks with the keys of their events, as the commit of this number.
    pub(super) fn new(
        log: LogId,
        number: u64,
        blocks: Vec<Arc<Block>>,
        keys: Vec<EventKey>,
    ) -> Self {
        let (mut rest, mut events_before) = (&keys[..], 0);
        let mut frames = Vec::with_capacity(blocks.len());
        for (frames_after, block) in (0..blocks.len()).rev().zip(blocks) {
            let events = block.entries().len();
            let (of_block, others) = rest.split_at_checked(events).unwrap_or((rest, &[]));
            rest = others;
            let key_rows: Vec<u8> = of_block.iter().flat_map(|key| key.0).collect();
            let part = Part {
                commit: number,
                frames_after: u32::try_from(frames_after).unwrap_or(u32::MAX),
                events_before,
            };
            let header = Header::new(log, &block, &key_rows, part);
            events_before += header.events;
            let mut front = Vec::with_capacity(super::frame::HEADER_BYTES + key_rows.len());
            header.put(&mut front);
            front.extend_from_slice(&key_rows);
            frames.push(Frame {
                header,
                front,
                block,
            });
        }
        Self { frames, keys }
    }

    /// Whether there is nothing to commit.
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes in a segment.
    pub(super) fn bytes(&self) -> u64 {
        self.headers().map(Header::frame_bytes).sum()
    }

    pub(super) fn headers(&self) -> impl Iterator<Item = &Header> {
        self.frames.iter().map(|frame| &frame.header)
    }

    pub(super) fn blocks(&self) -> impl Iterator<Item = &Arc<Block>> {
        self.frames.iter().map(|frame| &frame.block)
    }

    /// The keys of its events, in their order.
    pub(super) fn keys(&self) -> &[EventKey] {
        &self.keys
    }

    /// Its last event.
    pub(super) fn last_sequence(&self) -> Sequence {
        let last = self.frames.last();
        last.map_or(Sequence::ZERO, |frame| frame.header.last_sequence())
    }

    /// Writes the frames to a place in a file, in one call unless the system takes less at once.
    pub(super) fn write_at(&self, mut file: &File, offset: u64) -> io::Result<()> {
        let mut slices = Vec::with_capacity(self.frames.len() * 3);
        for frame in &self.frames {
            let bytes = frame.front.len() + frame.block.as_bytes().len();
            let padding = bytes.next_multiple_of(ZEROS.len()) - bytes;
            slices.push(IoSlice::new(&frame.front));
            slices.push(IoSlice::new(frame.block.as_bytes()));
            slices.push(IoSlice::new(ZEROS.get(..padding).unwrap_or_default()));
        }
        file.seek(SeekFrom::Start(offset))?;
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            match file.write_vectored(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut rest, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
