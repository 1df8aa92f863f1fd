//! Owns what the segments say of the log as a whole, for a start without a manifest: which log it is,
//! and where it begins. Where retention has removed every segment with events in it, the files of ids say
//! which number comes next.

use std::{fs::File, io, path::Path};

use super::{
    directory::IDS_DIRECTORY,
    footer,
    frame::{self, SEGMENT_HEADER_BYTES},
    frames::Frames,
    manifest::Manifest,
    segments,
};
use crate::ids;
use prelude_bridge_event::{LogId, Sequence};

/// Read at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// The manifest of a log that begins with its oldest file; `None` where no file tells of a log. The
/// first bytes of that file may be damaged: whatever it is, it is not before the log, which would have it
/// removed.
pub(super) fn manifest(data_dir: &Path) -> io::Result<Option<Manifest>> {
    let ordinals = segments::ordinals(data_dir)?;
    let open = |ordinal| File::open(segments::path(data_dir, ordinal));
    let mut log = None;
    for &ordinal in &ordinals {
        log = frame::log_of(&open(ordinal)?)?;
        if log.is_some() {
            break;
        }
    }
    let (Some(log), Some(&oldest)) = (log, ordinals.first()) else {
        return Ok(None);
    };
    for &ordinal in &ordinals {
        if let Some(first) = first_sequence(open(ordinal)?, log, ordinal)? {
            // Retention removes again what it had removed of this segment.
            return Ok(Some(Manifest::beginning(log, oldest, first.before())));
        }
    }
    let trimmed = ids::last_event(&data_dir.join(IDS_DIRECTORY))?;
    Ok(Some(Manifest::beginning(log, oldest, trimmed)))
}

/// The first event in a segment; `None` if there is none. When it cannot be read, the first of all,
/// so that the events before the next whole frame are missed.
fn first_sequence(file: File, log: LogId, ordinal: u64) -> io::Result<Option<Sequence>> {
    if let Some(segment) = footer::read(&file, log, ordinal)? {
        return Ok(Some(segment.first_sequence));
    }
    let mut frames = Frames::new(file, log, SEGMENT_HEADER_BYTES, CHUNK_BYTES);
    if let Some(header) = frames.header()? {
        return Ok(Some(header.first_sequence));
    }
    let found = frames.find(SEGMENT_HEADER_BYTES, u64::MAX, |_, _| true)?;
    Ok(found.map(|_| Sequence::ZERO.plus(1)))
}
