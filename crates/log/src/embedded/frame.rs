//! Owns the bytes of a segment file: a header, and after it frames, each a block with the keys of
//! its events. A frame says where it belongs, so that what is left of another one is never taken
//! for it. Behind the last frame a sealed segment has a `footer`. Knows nothing of which segments
//! there are, and does not read them (`frames`).
//!
//! All numbers little-endian:
//! ```text
//! segment   magic "PBSEG\0\0" · version u8 · log u64 · ordinal u64 · crc32c of these u32 · zero u32
//! frame     magic "PBF5" · crc32c of the rest of this header u32 · log u64 · first sequence u64 ·
//!           received_at i64 (µs) · events u32 · block bytes u32 · crc32c of the keys u32 ·
//!           crc32c of the block u32 · frames of its commit after it u32 ·
//!           events of its commit before it u32 · number of its commit u64 · epoch u32 ·
//!           epoch of the event before its commit u32 · writer u32 · zero u32 ·
//!           digest of the commit before its own u64
//!           keys of its events, 16 bytes each · block · zeros up to a multiple of 8
//! ```
//! The last three are of use where several bridges write one log, and 0 elsewhere (`replica`).
//!
//! Frames of one commit have its number, which no other commit has: pieces of two commits that were
//! interrupted at the same place are never taken for one.

use std::{fs::File, io};

use bytes::{Buf, Bytes};

use super::readable::read_at_most;
use crate::{Block, block::Damaged};
use prelude_bridge_event::{Epoch, EventKey, LogId, Sequence, UnixMicros};

const SEGMENT_MAGIC: [u8; 7] = *b"PBSEG\0\0";
/// The version of segments that this release reads and writes. Before the first release there were
/// four more.
pub(super) const SEGMENT_VERSION: u8 = 5;
/// The log's id follows the magic and the version.
const SEGMENT_LOG_AT: usize = SEGMENT_MAGIC.len() + 1;
/// Where the first frame is.
pub(super) const SEGMENT_HEADER_BYTES: u64 = 32;
const SEGMENT_CHECKED_BYTES: usize = 24;

pub(super) const FRAME_MAGIC: [u8; 4] = *b"PBF5";
pub(super) const HEADER_BYTES: usize = 88;
pub(super) const CHECKED_FROM: usize = 8;
const KEY_BYTES: usize = size_of::<EventKey>();
/// Each frame begins at a multiple of this.
pub(super) const ALIGNMENT: u64 = 8;

/// The first bytes of a segment.
pub(super) fn segment_header(log: LogId, ordinal: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SEGMENT_HEADER_BYTES as usize);
    bytes.extend_from_slice(&SEGMENT_MAGIC);
    bytes.push(SEGMENT_VERSION);
    bytes.extend_from_slice(&log.0.to_le_bytes());
    bytes.extend_from_slice(&ordinal.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.resize(SEGMENT_HEADER_BYTES as usize, 0);
    bytes
}

/// What a file turns out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The segment that was looked for.
    Segment,
    /// A file that was to become one: it has no content.
    Nothing,
    /// Of another log, or of another place in this one.
    Stranger,
    /// A segment as another release writes them.
    OtherVersion(u8),
    /// No segment at all.
    Other,
}

/// Looks at the first bytes of a file.
pub(super) fn identify(file: &File, log: LogId, ordinal: u64) -> io::Result<Kind> {
    let mut bytes = [0; SEGMENT_HEADER_BYTES as usize];
    let found = read_at_most(file, &mut bytes, 0)?;
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok(Kind::Nothing);
    }
    let mut rest = &bytes[..];
    let checksum = bytes.get(..SEGMENT_CHECKED_BYTES).map(crc32c::crc32c);
    let (checked, mut after) = rest.split_at(SEGMENT_CHECKED_BYTES);
    let is_whole = found == bytes.len() && checksum == Some(after.get_u32_le());
    if !is_whole || !checked.starts_with(&SEGMENT_MAGIC) {
        return Ok(Kind::Other);
    }
    rest.advance(SEGMENT_MAGIC.len());
    let version = rest.get_u8();
    if version != SEGMENT_VERSION {
        return Ok(Kind::OtherVersion(version));
    }
    let is_ours = rest.get_u64_le() == log.0 && rest.get_u64_le() == ordinal;
    Ok(if is_ours {
        Kind::Segment
    } else {
        Kind::Stranger
    })
}

/// The log that a file is a segment of, as its header or its first frame says.
pub(super) fn log_of(file: &File) -> io::Result<Option<LogId>> {
    let mut bytes = [0; SEGMENT_HEADER_BYTES as usize + HEADER_BYTES];
    read_at_most(file, &mut bytes, 0)?;
    let (header, frame) = bytes.split_at(SEGMENT_HEADER_BYTES as usize);
    let mut log = header.get(SEGMENT_LOG_AT..).unwrap_or_default();
    let log = LogId(log.try_get_u64_le().unwrap_or(0));
    let mut ordinal = header.get(SEGMENT_LOG_AT + 8..).unwrap_or_default();
    let ordinal = ordinal.try_get_u64_le().unwrap_or(0);
    if matches!(
        identify(file, log, ordinal)?,
        Kind::Segment | Kind::OtherVersion(_)
    ) {
        return Ok(Some(log));
    }
    let mut log = frame.get(CHECKED_FROM..).unwrap_or_default();
    let log = LogId(log.try_get_u64_le().unwrap_or(0));
    Ok(Header::parse(frame, log).map(|_| log))
}

/// What a frame says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) log: LogId,
    pub(super) first_sequence: Sequence,
    pub(super) received_at: UnixMicros,
    /// How many events, at least one.
    pub(super) events: u32,
    block_bytes: u32,
    keys_checksum: u32,
    block_checksum: u32,
    /// How many frames of the same commit follow.
    pub(super) frames_after: u32,
    /// How many events of the same commit come before.
    pub(super) events_before: u32,
    /// The number of its commit: its position in the sequence, where several bridges write the log.
    pub(super) commit: u64,
    /// Which one wrote it.
    pub(super) epoch: Epoch,
    /// What its commit follows.
    pub(super) link: Link,
}

/// Which part of its commit a frame is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// A number that no other commit has.
    pub(super) commit: u64,
    pub(super) frames_after: u32,
    pub(super) events_before: u32,
    pub(super) link: Link,
}

/// What a commit follows, in a log that several bridges write. By it a commit of another history of the
/// log is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// The epoch of the last event before the commit; 0 where there is none.
    pub(super) epoch_before: Epoch,
    /// The digest of the commit before, which covers all commits before that.
    pub(super) digest_before: u64,
    /// The bridge that wrote the commit.
    pub(super) writer: u32,
}

impl Link {
    /// That of a log with one writer.
    pub(super) const NONE: Self = Self {
        epoch_before: Epoch(0),
        digest_before: 0,
        writer: 0,
    };
}

impl Header {
    /// The header of a block's frame.
    pub(super) fn new(log: LogId, block: &Block, keys: &[u8], part: Part) -> Self {
        Self {
            log,
            first_sequence: block.first_sequence(),
            received_at: block.received_at(),
            events: saturated(block.entries().len()),
            block_bytes: saturated(block.as_bytes().len()),
            keys_checksum: crc32c::crc32c(keys),
            block_checksum: Block::carried_checksum(block.as_bytes()),
            frames_after: part.frames_after,
            events_before: part.events_before,
            commit: part.commit,
            epoch: block.epoch(),
            link: part.link,
        }
    }

    /// The header of a mark: a commit without events, after which `first_sequence` comes.
    pub(super) fn of_mark(
        log: LogId,
        (first_sequence, received_at): (Sequence, UnixMicros),
        (commit, epoch): (u64, Epoch),
        link: Link,
    ) -> Self {
        Self {
            log,
            first_sequence,
            received_at,
            events: 0,
            block_bytes: 0,
            keys_checksum: 0,
            block_checksum: 0,
            frames_after: 0,
            events_before: 0,
            commit,
            epoch,
            link,
        }
    }

    pub(super) fn put(&self, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.extend_from_slice(&FRAME_MAGIC);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.log.0.to_le_bytes());
        bytes.extend_from_slice(&self.first_sequence.0.to_le_bytes());
        bytes.extend_from_slice(&self.received_at.0.to_le_bytes());
        for number in [
            self.events,
            self.block_bytes,
            self.keys_checksum,
            self.block_checksum,
            self.frames_after,
            self.events_before,
        ] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.commit.to_le_bytes());
        let Link {
            epoch_before,
            digest_before,
            writer,
        } = self.link;
        for number in [self.epoch.0, epoch_before.0, writer, 0] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&digest_before.to_le_bytes());
        let checksum = crc32c::crc32c(bytes.get(start + CHECKED_FROM..).unwrap_or_default());
        if let Some(place) = bytes.get_mut(start + 4..start + CHECKED_FROM) {
            place.copy_from_slice(&checksum.to_le_bytes());
        }
    }

    /// Reads the header of a frame with events; `None` if there is none of this log.
    pub(super) fn parse(bytes: &[u8], log: LogId) -> Option<Self> {
        Self::parse_any(bytes).filter(|header| header.log == log && header.events > 0)
    }

    /// Reads a header of any log; `None` if there is none.
    pub(super) fn parse_any(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.get(..HEADER_BYTES)?;
        if !rest.starts_with(&FRAME_MAGIC) {
            return None;
        }
        rest.advance(FRAME_MAGIC.len());
        if rest.get_u32_le() != crc32c::crc32c(rest) {
            return None;
        }
        let header = Self {
            log: LogId(rest.get_u64_le()),
            first_sequence: Sequence(rest.get_u64_le()),
            received_at: UnixMicros(rest.get_i64_le()),
            events: rest.get_u32_le(),
            block_bytes: rest.get_u32_le(),
            keys_checksum: rest.get_u32_le(),
            block_checksum: rest.get_u32_le(),
            frames_after: rest.get_u32_le(),
            events_before: rest.get_u32_le(),
            commit: rest.get_u64_le(),
            epoch: Epoch(rest.get_u32_le()),
            link: Link {
                epoch_before: Epoch(rest.get_u32_le()),
                writer: rest.get_u32_le(),
                digest_before: {
                    rest.advance(4);
                    rest.get_u64_le()
                },
            },
        };
        Some(header)
    }

    pub(super) fn last_sequence(&self) -> Sequence {
        self.first_sequence.plus(u64::from(self.events)).before()
    }

    /// Its events, as a range.
    pub(super) fn event_range(&self) -> crate::Damaged {
        crate::Damaged {
            first: self.first_sequence,
            last: self.last_sequence(),
        }
    }

    /// The first event of the commit that the frame is a part of.
    pub(super) fn commit_first(&self) -> Sequence {
        Sequence((self.first_sequence.0).saturating_sub(u64::from(self.events_before)))
    }

    /// Whether this frame belongs to the same commit as the one before it.
    pub(super) fn is_of_commit_of(&self, before: &Self) -> bool {
        self.commit == before.commit
            && before.events_before.checked_add(before.events) == Some(self.events_before)
            && before.frames_after.checked_sub(1) == Some(self.frames_after)
    }

    pub(super) fn block_bytes(&self) -> usize {
        self.block_bytes as usize
    }

    pub(super) fn keys_bytes(&self) -> usize {
        self.events as usize * KEY_BYTES
    }

    /// From the beginning of this frame to that of the next.
    pub(super) fn frame_bytes(&self) -> u64 {
        let bytes = HEADER_BYTES + self.keys_bytes() + self.block_bytes();
        (bytes as u64).next_multiple_of(ALIGNMENT)
    }
}

/// A block is closed long before 4 GiB.
fn saturated(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// What follows a header.
pub(super) struct Body<'a> {
    pub(super) keys: &'a [u8],
    pub(super) block: &'a [u8],
}

impl Body<'_> {
    /// Whether these are the bytes that were written.
    pub(super) fn is_whole(&self, header: &Header) -> bool {
        self.has_whole_keys(header) && self.has_whole_block(header)
    }

    /// Whether this is the block that was written, whatever became of the keys.
    pub(super) fn has_whole_block(&self, header: &Header) -> bool {
        Block::carried_checksum(self.block) == header.block_checksum && Block::is_whole(self.block)
    }

    pub(super) fn has_whole_keys(&self, header: &Header) -> bool {
        crc32c::crc32c(self.keys) == header.keys_checksum
    }

    /// The keys of the events, of the block where they are damaged themselves; `None` where both are.
    pub(super) fn keys(&self, header: &Header) -> Option<Vec<EventKey>> {
        if self.has_whole_keys(header) {
            let (keys, _) = self.keys.as_chunks::<KEY_BYTES>();
            return Some(keys.iter().map(|&key| EventKey(key)).collect());
        }
        let block = self
            .has_whole_block(header)
            .then(|| self.to_block().ok())??;
        Some(block.keys().collect())
    }

    /// The block, in memory of its own.
    pub(super) fn to_block(&self) -> Result<Block, Damaged> {
        Block::parse(Bytes::copy_from_slice(self.block))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::embedded::frames::{Frames, Rest};
    use crate::fixtures;

    const LOG: LogId = LogId(7);

    fn frame(first: u64, events_before: u32) -> (Header, Vec<u8>) {
        let block = fixtures::block(Sequence(first), 3);
        let keys = [first as u8; 3 * KEY_BYTES];
        let part = Part {
            commit: 77,
            frames_after: 0,
            events_before,
            link: Link::NONE,
        };
        let header = Header::new(LOG, &block, &keys, part);
        let mut bytes = Vec::new();
        header.put(&mut bytes);
        bytes.extend_from_slice(&keys);
        bytes.extend_from_slice(block.as_bytes());
        bytes.resize(header.frame_bytes() as usize, 0xff);
        (header, bytes)
    }

    fn file_of(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    #[test]
    fn frames_are_read_as_they_were_written_whatever_the_chunks() {
        let written = [frame(1, 0), frame(4, 0), frame(7, 3)];
        let bytes = written.each_ref().map(|(_, bytes)| bytes.clone()).concat();
        for chunk_bytes in [1, 60, 300, 100_000] {
            let mut frames = Frames::new(file_of(&bytes), LOG, 0, chunk_bytes);
            for (header, _) in &written {
                assert_eq!(frames.header().unwrap().as_ref(), Some(header));
                let body = frames.body(header).unwrap().unwrap();
                assert!(body.is_whole(header));
                assert_eq!(body.keys(header).unwrap().len(), 3);
                let block = body.to_block().unwrap();
                assert_eq!(block.last_sequence(), header.last_sequence());
                frames.skip(header);
            }
            assert_eq!(frames.header().unwrap(), None);
        }
    }

    #[test]
    fn a_header_of_more_than_the_file_has_takes_no_memory() {
        let (mut header, _) = frame(1, 0);
        (header.events, header.block_bytes) = (u32::MAX, u32::MAX);
        let mut bytes = Vec::new();
        header.put(&mut bytes);
        let mut frames = Frames::new(file_of(&bytes), LOG, 0, 300);
        assert_eq!(frames.header().unwrap(), Some(header));
        assert!(frames.body(&header).unwrap().is_none());
        assert!(frames.buffer_bytes() <= 300);
    }

    #[test]
    fn no_changed_byte_goes_unnoticed() {
        let (header, bytes) = frame(1, 0);
        for index in 0..HEADER_BYTES + header.keys_bytes() + header.block_bytes() {
            let mut bytes = bytes.clone();
            bytes[index] ^= 0x10;
            let mut frames = Frames::new(file_of(&bytes), LOG, 0, 4_096);
            let found = frames.header().unwrap();
            let is_whole = found.is_some_and(|header| {
                let body = frames.body(&header).unwrap();
                body.is_some_and(|body| body.is_whole(&header))
            });
            assert!(!is_whole, "byte {index}");
        }
        let cut = &bytes[..bytes.len() - 20];
        let mut frames = Frames::new(file_of(cut), LOG, 0, 4_096);
        assert!(frames.body(&header).unwrap().is_none());
        let mut other = Frames::new(file_of(&bytes), LogId(8), 0, 4_096);
        assert_eq!(other.header().unwrap(), None, "of another log");
    }

    #[test]
    fn what_was_written_after_a_place_is_found_however_far_away() {
        let (later, frame_bytes) = frame(10, 0);
        for at in [8, 65_400, 65_472, 65_480, 65_528, 300_000] {
            let mut bytes = vec![0; 400_000];
            bytes[at..at + frame_bytes.len()].copy_from_slice(&frame_bytes);
            for chunk_bytes in [1, 200, 65_536, 1 << 20] {
                let mut frames = Frames::new(file_of(&bytes), LOG, 0, chunk_bytes);
                let mut find = |after| {
                    let wanted = |_, header: &Header| header.first_sequence > Sequence(after);
                    frames.rest(0, 0, wanted).unwrap()
                };
                let found = Some((at as u64, later));
                assert_eq!(find(9).found, found, "at {at}, chunks of {chunk_bytes}");
                let rest = find(10);
                assert_eq!(rest.found, None);
                let (from, to) = rest.written.unwrap();
                assert_eq!(from, at as u64);
                assert_eq!(to, (at + frame_bytes.len()) as u64);
                let behind = frames.rest(0, at as u64 + 8, |_, _| true).unwrap();
                assert_eq!(behind.found, None, "not before the place");
                let mut find = |to| frames.find(0, to, |_, _| true).unwrap();
                assert_eq!(find(at as u64 + HEADER_BYTES as u64), found);
                assert_eq!(find(at as u64), None, "not behind the place");
            }
        }
        let mut frames = Frames::new(file_of(&[0; 5_003]), LOG, 0, 4_096);
        assert_eq!(frames.rest(0, 0, |_, _| true).unwrap(), Rest::default());
        let mut frames = Frames::new(file_of(&[0, 0, 0, 7, 1]), LOG, 0, 4_096);
        assert_eq!(
            frames.rest(0, 0, |_, _| true).unwrap().written,
            Some((0, 5))
        );
    }

    #[test]
    fn a_segment_is_told_from_other_files() {
        let kind = |bytes: &[u8]| identify(&file_of(bytes), LOG, 3).unwrap();
        assert_eq!(kind(&segment_header(LOG, 3)), Kind::Segment);
        assert_eq!(kind(&segment_header(LOG, 4)), Kind::Stranger);
        assert_eq!(kind(&segment_header(LogId(8), 3)), Kind::Stranger);
        let mut older = segment_header(LOG, 3);
        older[7] = 4;
        let checksum = crc32c::crc32c(&older[..24]);
        older[24..28].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(kind(&older), Kind::OtherVersion(4));
        assert_eq!(kind(b""), Kind::Nothing);
        assert_eq!(kind(&[0; 100]), Kind::Nothing);
        assert_eq!(kind(b"Dear diary"), Kind::Other);
    }
}
