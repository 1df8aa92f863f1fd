//! Owns the bytes of one commit: its frames, each with the keys of its events and a block. They are
//! the same wherever the commit is stored, so that one that another bridge wrote can be taken too.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use std::{
    fs::File,
    io::{self, IoSlice, Seek as _, SeekFrom, Write as _},
    sync::Arc,
    time::Duration,
};

use super::frame::{Body, HEADER_BYTES, Header, Link, Part};
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
        (number, link): (u64, Link),
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
                link,
            };
            let header = Header::new(log, &block, &key_rows, part);
            events_before += header.events;
            let mut front = Vec::with_capacity(HEADER_BYTES + key_rows.len());
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

    /// Reads what [`to_bytes`](Self::to_bytes) wrote, without copying the blocks. Says what is wrong with
    /// anything else.
    pub(super) fn parse(bytes: &Bytes) -> Result<Self, &'static str> {
        let mut commit = Self {
            frames: Vec::new(),
            keys: Vec::new(),
        };
        let mut at = 0;
        while at < bytes.len() {
            let frame = commit.parse_frame(bytes, at)?;
            at = usize::try_from(frame.header.frame_bytes())
                .ok()
                .and_then(|bytes| at.checked_add(bytes))
                .ok_or("a frame is too large")?;
            commit.frames.push(frame);
        }
        match commit.frames.last() {
            Some(last) if last.header.frames_after == 0 && at == bytes.len() => Ok(commit),
            _ => Err("frames are missing"),
        }
    }

    /// Reads the frame that begins at a byte, and takes the keys of its events.
    fn parse_frame(&mut self, bytes: &Bytes, at: usize) -> Result<Frame, &'static str> {
        let rest = bytes.get(at..).unwrap_or_default();
        let header = Header::parse_any(rest).ok_or("a header is damaged")?;
        let is_next = match self.frames.last() {
            None => header.events_before == 0,
            Some(Frame { header: last, .. }) => {
                header.is_of_commit_of(last)
                    && header.log == last.log
                    && header.first_sequence == last.last_sequence().plus(1)
            }
        };
        if !is_next || header.events == 0 {
            return Err("a frame does not follow the one before it");
        }
        let block_at = HEADER_BYTES + header.keys_bytes();
        let end = block_at + header.block_bytes();
        let (Some(front), Some(block)) = (rest.get(..block_at), rest.get(block_at..end)) else {
            return Err("it ends within a frame");
        };
        let keys = front.get(HEADER_BYTES..).unwrap_or_default();
        let body = Body { keys, block };
        if !body.is_whole(&header) {
            return Err("a checksum is wrong");
        }
        let parsed = Block::parse(bytes.slice(at + block_at..at + end));
        let block = Arc::new(parsed.map_err(|_| "a block is damaged")?);
        let fits = block.log() == header.log
            && block.epoch() == header.epoch
            && block.received_at() == header.received_at
            && block.first_sequence() == header.first_sequence
            && block.last_sequence() == header.last_sequence();
        if !fits {
            return Err("a block is not the one that its frame describes");
        }
        self.keys.extend(body.keys(&header).unwrap_or_default());
        Ok(Frame {
            header,
            front: front.to_vec(),
            block,
        })
    }

    /// The commit in one piece, as a segment has it.
    pub(super) fn to_bytes(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(usize::try_from(self.bytes()).unwrap_or(0));
        for slice in self.slices() {
            bytes.extend_from_slice(&slice);
        }
        bytes.into()
    }

    /// A digest of the commit and, by its link, of all commits before it.
    pub(super) fn digest(&self) -> u64 {
        let mut digest = Sha256::new();
        // They have checksums of the rest.
        for frame in &self.frames {
            digest.update(frame.front.get(..HEADER_BYTES).unwrap_or_default());
        }
        let digest = digest.finalize();
        let first = digest.first_chunk().copied().unwrap_or_default();
        u64::from_le_bytes(first)
    }

    /// What the metrics are told of it.
    pub(super) fn report(&self, batches: usize, duration: Duration) -> CommitReport {
        let bytes = self.blocks().map(|block| block.as_bytes().len() as u64);
        CommitReport {
            batches,
            events: self.keys.len() as u64,
            bytes: bytes.sum(),
            duration,
        }
    }

    /// The header of its first frame.
    pub(super) fn first(&self) -> Option<&Header> {
        self.headers().next()
    }

    /// The header of its last frame.
    pub(super) fn last(&self) -> Option<&Header> {
        self.frames.last().map(|frame| &frame.header)
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
        let mut slices = self.slices();
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

    fn slices(&self) -> Vec<IoSlice<'_>> {
        let mut slices = Vec::with_capacity(self.frames.len() * 3);
        for frame in &self.frames {
            let bytes = frame.front.len() + frame.block.as_bytes().len();
            let padding = bytes.next_multiple_of(ZEROS.len()) - bytes;
            slices.push(IoSlice::new(&frame.front));
            slices.push(IoSlice::new(frame.block.as_bytes()));
            slices.push(IoSlice::new(ZEROS.get(..padding).unwrap_or_default()));
        }
        slices
    }
}
