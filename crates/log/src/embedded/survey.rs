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

/// The manifest of a log that begins with its oldest segment; `None` where there is no segment.
pub(super) fn manifest(data_dir: &Path) -> io::Result<Option<Manifest>> {
    let mut found: Option<Manifest> = None;
    let mut has_events = false;
    for ordinal in segments::ordinals(data_dir)? {
        let path = segments::path(data_dir, ordinal);
        let Some(log) = frame::log_of(&File::open(&path)?)? else {
            continue;
        };
        let manifest = found.get_or_insert(Manifest::beginning(log, ordinal, Sequence::ZERO));
        if manifest.log == log
            && let Some(first) = first_sequence(File::open(&path)?, log, ordinal)?
        {
            // Retention removes again what it had removed of this segment.
            manifest.trimmed = first.before();
            has_events = true;
            break;
        }
    }
    if let Some(manifest) = found.as_mut().filter(|_| !has_events) {
        manifest.trimmed = ids::last_event(&data_dir.join(IDS_DIRECTORY))?;
    }
    Ok(found)
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
