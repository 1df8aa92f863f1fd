//! Owns the footer of a segment: what a start wants to know of a segment that is not written to any
//! more, so that it need not read all of it. It is appended to the file when the next segment has a
//! commit that is durable; so the last segment never has one, and the segment after one that has is
//! never missing unnoticed.
//!
//! A footer that is not whole is none: then the segment is scanned. All numbers little-endian:
//! ```text
//! content   log u64 · ordinal u64 · first sequence u64 · last sequence u64 · time of the last i64 (µs) ·
//!           end of the last frame u64 · marks u32 · epochs u32 ·
//!           marks: sequence u64 · time i64 · offset u64 · epochs: first sequence u64 · epoch u32
//! tail      bytes of the content u32 · crc32c of the content and its bytes u32 · "PBFOOT\0\x01"
//! ```

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
};

use bytes::{Buf as _, BufMut as _, TryGetError};

use super::{
    frame::ALIGNMENT,
    readable::read_at_most,
    segments::{self, Mark, Segment},
};
use prelude_bridge_event::{Epoch, LogId, Sequence, UnixMicros};

const MAGIC: [u8; 8] = *b"PBFOOT\0\x01";
const TAIL_BYTES: u64 = 16;
/// Longer ones were not written by this program: a segment has some hundred marks.
const CONTENT_BYTES_MAX: u64 = 1024 * 1024;

/// Appends the footer of a segment to its file, durably. What is behind the frames already (zeros, a
/// commit that failed, a footer that is not whole) stays. A segment that is gone needs none.
pub(super) fn append(directory: &Path, log: LogId, segment: &Segment) -> io::Result<()> {
    let path = segments::path(directory, segment.ordinal);
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let footer = encode(log, segment);
    let length = file.metadata()?.len();
    // One that is there already need not be durable: an earlier flush may have failed.
    let is_there = read(&file, log, segment.ordinal)?.as_ref() == Some(segment);
    let from = if is_there {
        length.saturating_sub(footer.len() as u64)
    } else {
        length.max(segment.end).next_multiple_of(ALIGNMENT)
    };
    file.write_all_at(&footer, from)?;
    file.sync_all()
}

/// Reads the footer at the end of a file; `None` if it has no whole one for this segment.
pub(super) fn read(file: &File, log: LogId, ordinal: u64) -> io::Result<Option<Segment>> {
    let Some(tail_at) = file.metadata()?.len().checked_sub(TAIL_BYTES) else {
        return Ok(None);
    };
    let mut tail = [0; TAIL_BYTES as usize];
    let read = read_at_most(file, &mut tail, tail_at)?;
    let mut rest = &tail[..];
    let (length, checksum) = (rest.get_u32_le(), rest.get_u32_le());
    let content_at = tail_at.checked_sub(u64::from(length));
    let Some(content_at) = content_at.filter(|_| u64::from(length) <= CONTENT_BYTES_MAX) else {
        return Ok(None);
    };
    if read < tail.len() || rest != MAGIC {
        return Ok(None);
    }
    let mut content = vec![0; length as usize];
    let read = read_at_most(file, &mut content, content_at)?;
    if read < content.len() || checksum_of(&content, length) != checksum {
        return Ok(None);
    }
    let decoded = decode(&content).ok();
    let decoded = decoded.filter(|(of, segment)| *of == log && segment.ordinal == ordinal);
    let segment = decoded.map(|(_, segment)| segment);
    Ok(segment.filter(|segment| segment.is_plausible() && segment.end <= content_at))
}

fn checksum_of(content: &[u8], length: u32) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(content), &length.to_le_bytes())
}

fn encode(log: LogId, segment: &Segment) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_u64_le(log.0);
    bytes.put_u64_le(segment.ordinal);
    bytes.put_u64_le(segment.first_sequence.0);
    bytes.put_u64_le(segment.last_sequence.0);
    bytes.put_i64_le(segment.last_at.0);
    bytes.put_u64_le(segment.end);
    bytes.put_u32_le(count(segment.marks.len()));
    bytes.put_u32_le(count(segment.epochs.len()));
    for mark in &segment.marks {
        bytes.put_u64_le(mark.sequence.0);
        bytes.put_i64_le(mark.at.0);
        bytes.put_u64_le(mark.offset);
    }
    for (first, epoch) in &segment.epochs {
        bytes.put_u64_le(first.0);
        bytes.put_u32_le(epoch.0);
    }
    let length = count(bytes.len());
    let checksum = checksum_of(&bytes, length);
    bytes.put_u32_le(length);
    bytes.put_u32_le(checksum);
    bytes.put_slice(&MAGIC);
    bytes
}

/// What is longer than it may be is not read again.
fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn decode(mut content: &[u8]) -> Result<(LogId, Segment), TryGetError> {
    let content = &mut content;
    let log = LogId(content.try_get_u64_le()?);
    let mut segment = Segment {
        ordinal: content.try_get_u64_le()?,
        first_sequence: Sequence(content.try_get_u64_le()?),
        last_sequence: Sequence(content.try_get_u64_le()?),
        last_at: UnixMicros(content.try_get_i64_le()?),
        end: content.try_get_u64_le()?,
        marks: Vec::new(),
        epochs: Vec::new(),
    };
    let (marks, epochs) = (content.try_get_u32_le()?, content.try_get_u32_le()?);
    for _ in 0..marks {
        segment.marks.push(Mark {
            sequence: Sequence(content.try_get_u64_le()?),
            at: UnixMicros(content.try_get_i64_le()?),
            offset: content.try_get_u64_le()?,
        });
    }
    for _ in 0..epochs {
        let first = Sequence(content.try_get_u64_le()?);
        segment
            .epochs
            .push((first, Epoch(content.try_get_u32_le()?)));
    }
    Ok((log, segment))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: LogId = LogId(7);

    fn segment() -> Segment {
        let mark = |sequence, offset| Mark {
            sequence: Sequence(sequence),
            at: UnixMicros(100),
            offset,
        };
        Segment {
            ordinal: 3,
            first_sequence: Sequence(11),
            last_sequence: Sequence(30),
            last_at: UnixMicros(200),
            end: 640,
            marks: vec![mark(11, 32), mark(20, 400)],
            epochs: vec![(Sequence(11), Epoch(5)), (Sequence(25), Epoch(9))],
        }
    }

    #[test]
    fn a_footer_is_found_whatever_is_between_it_and_the_frames() {
        for length in [640, 641, 1_000, 70_003] {
            let dir = tempfile::tempdir().unwrap();
            let path = segments::path(dir.path(), 3);
            std::fs::write(&path, vec![7; length]).unwrap();
            append(dir.path(), LOG, &segment()).unwrap();
            let file = File::open(&path).unwrap();
            assert_eq!(read(&file, LOG, 3).unwrap(), Some(segment()));
            assert_eq!(read(&file, LOG, 4).unwrap(), None, "another segment's");
            assert_eq!(read(&file, LogId(8), 3).unwrap(), None, "another log's");
            let bytes = std::fs::read(&path).unwrap();
            assert!(bytes.starts_with(&vec![7; length]));
            append(dir.path(), LOG, &segment()).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), bytes, "once");
        }
        let dir = tempfile::tempdir().unwrap();
        append(dir.path(), LOG, &segment()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_footer_with_a_changed_byte_or_without_its_end_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = segments::path(dir.path(), 3);
        std::fs::write(&path, vec![0; 640]).unwrap();
        append(dir.path(), LOG, &segment()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let read_from = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read(&File::open(&path).unwrap(), LOG, 3).unwrap()
        };
        for index in 640..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[index] ^= 1 << bit;
                assert_eq!(read_from(&bytes), None, "byte {index}");
            }
            assert_eq!(read_from(&whole[..index]), None, "cut at {index}");
        }
        assert_eq!(read_from(&[]), None);
        assert_eq!(read_from(&whole), Some(segment()));
    }
}
