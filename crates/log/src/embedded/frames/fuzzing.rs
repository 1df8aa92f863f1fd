//! What is true of all bytes of a segment, for the fuzz targets.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a broken promise has to be seen"
)]

use std::os::unix::fs::FileExt as _;

use super::*;
use crate::embedded::frame::CHECKED_FROM;

/// Frames are read the same whatever the chunks, and what is read is what is written. Where a header
/// could begin, it gets the log and its right checksum. `file` is empty.
pub fn frame(data: &[u8], file: &File) {
    let mut bytes = data.to_vec();
    let log = LogId(0);
    for start in (0..bytes.len()).step_by(ALIGNMENT as usize) {
        let Some(header) = bytes.get_mut(start..start + HEADER_BYTES) else {
            break;
        };
        if header.starts_with(&FRAME_MAGIC) {
            header[CHECKED_FROM..16].copy_from_slice(&log.0.to_le_bytes());
            let checksum = crc32c::crc32c(&header[CHECKED_FROM..]);
            header[4..CHECKED_FROM].copy_from_slice(&checksum.to_le_bytes());
        }
    }
    file.write_all_at(&bytes, 0).unwrap();
    let read = |chunk_bytes| {
        let mut frames = Frames::new(file.try_clone().unwrap(), log, 0, chunk_bytes);
        let mut found = Vec::new();
        while let Some(header) = frames.header().unwrap() {
            let mut written = Vec::new();
            header.put(&mut written);
            assert_eq!(Header::parse(&written, log), Some(header));
            header.last_sequence();
            header.commit_first();
            let body = frames.body(&header).unwrap();
            let Some(body) = body else { break };
            let keys = body.keys(&header).map(|keys| keys.len());
            found.push((
                header,
                body.is_whole(&header),
                keys,
                body.to_block().is_ok(),
            ));
            frames.skip(&header);
        }
        let offset = frames.offset();
        let rest = frames.rest(offset, offset, |_, _| true).unwrap();
        (found, offset, rest.found)
    };
    assert_eq!(read(64), read(1 << 20));
}
