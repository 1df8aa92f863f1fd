//! Owns what a start finds out about the segments: where the log ends, and which keys the files of
//! ids have not got yet. Changes nothing, so it serves an inspection too.
//!
//! A sealed segment says by its footer what is in it. The others are scanned. Each commit is flushed
//! before the next one is written. So behind the last whole commit there may be pieces of one more,
//! which nobody was promised, and these are to be cut. A commit that is not whole although another one
//! was written after it, or although the manifest confirms it, was damaged later: that is said, and
//! nothing is cut. Before anything counts as torn, the whole rest of its segment is looked through.

use std::{collections::VecDeque, path::Path};

use super::{
    manifest::Manifest,
    open_error::OpenError,
    readers,
    scan::{Scanner, Sink, Torn, damaged, unreadable},
    segments::{self, Segment, Segments},
};
use crate::Range;
use prelude_bridge_event::{Epoch, Sequence, UnixMicros};

/// What there is.
pub(super) struct Found {
    pub(super) segments: Segments,
    pub(super) range: Range,
    /// The time of the newest event that ever was.
    pub(super) last_at: UnixMicros,
    /// Each epoch that wrote in the segments, with its first event there.
    pub(super) epochs: Vec<(Sequence, Epoch)>,
    /// The segments before the last one that have no footer.
    pub(super) unsealed: Vec<Segment>,
    /// Where to go on writing.
    pub(super) tip: Option<Tip>,
    /// The first segment that there never was.
    pub(super) next_ordinal: u64,
    /// Pieces of a commit behind the last whole one.
    pub(super) torn: Option<Torn>,
    /// Segments that retention has given up, as the manifest says and as they say themselves.
    pub(super) given_up: Vec<u64>,
    /// Segments that were made ready, and hold nothing.
    pub(super) unused: Vec<u64>,
    /// Files without a commit that are not empty, and why they are no part of the log.
    pub(super) discarded: Vec<(u64, &'static str)>,
}

/// The end of the last segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tip {
    pub(super) ordinal: u64,
    /// Where the last commit begins, …
    pub(super) commit: u64,
    /// … and where it ends.
    pub(super) end: u64,
}

/// Looks at the segments of a log. The files of ids have the keys of the events up to `ids_through`;
/// `None` when no keys are wanted.
///
/// # Errors
/// [`OpenError::DamagedManifest`] when the segments contradict the manifest, before anything was
/// passed to the sink.
pub(super) fn look(
    directory: &Path,
    manifest: &Manifest,
    ids_through: Option<Sequence>,
    sink: Sink<'_>,
) -> Result<Found, OpenError> {
    let ordinals = segments::ordinals(directory).map_err(|error| unreadable(directory, error))?;
    let mut scanner = Scanner::new(directory, manifest, ids_through, sink);
    let scanned = scanner.scan_all(&ordinals)?;
    let (last_commit, torn) = (scanner.last_commit, scanner.torn);
    let next_ordinal = ordinals.last().map_or(1, |last| last.saturating_add(1));
    let next_ordinal = next_ordinal.max(manifest.first_ordinal);
    let list = VecDeque::from(scanned.segments);
    let (first, last) = (list.front(), list.back());
    // Retention may have removed every segment with events in it.
    let head = last.map_or(manifest.trimmed, |last| last.last_sequence);
    let last_at = last.map_or(manifest.last_at, |last| last.last_at);
    let known = manifest.confirmed.max(manifest.trimmed);
    let known = known.max(ids_through.unwrap_or(Sequence::ZERO));
    if head < known {
        let (ordinal, why) = match scanned.discarded.last() {
            Some(&(ordinal, why)) => (ordinal, format!("{why}, and ")),
            None => (ordinals.last().copied().unwrap_or(1), String::new()),
        };
        let reason = format!("{why}the log ends with event {head}, not {known}");
        return Err(damaged(&segments::path(directory, ordinal), reason));
    }
    check_end(directory, last, scanned.unsealed.last())?;
    check_beginning(directory, first, manifest.trimmed)?;
    let tip = last.map(|last| Tip {
        ordinal: last.ordinal,
        commit: last_commit,
        end: last.end,
    });
    let mut epochs: Vec<(Sequence, Epoch)> = Vec::new();
    for &(first, epoch) in list.iter().flat_map(|segment| &segment.epochs) {
        if epochs.last().is_none_or(|&(_, last)| last != epoch) {
            epochs.push((first, epoch));
        }
    }
    let is_unsealed = |segment: &&Segment| scanned.unsealed.contains(&segment.ordinal);
    let before_last = list.len().saturating_sub(1);
    let unsealed = list.iter().take(before_last).filter(is_unsealed);
    let unsealed = unsealed.cloned().collect();
    let segments = Segments::new(directory, manifest.log, list);
    let range = range(&segments, manifest.trimmed, head, last_at)?;
    Ok(Found {
        segments,
        range,
        last_at,
        epochs,
        unsealed,
        tip,
        next_ordinal,
        torn: torn.filter(|torn| tip.is_some_and(|tip| tip.ordinal == torn.ordinal)),
        given_up: scanned.given_up,
        unused: scanned.unused,
        discarded: scanned.discarded,
    })
}

/// That the last segment is one that was written to last: it has no footer.
fn check_end(
    directory: &Path,
    last: Option<&Segment>,
    last_unsealed: Option<&u64>,
) -> Result<(), OpenError> {
    let sealed = last.filter(|last| last_unsealed != Some(&last.ordinal));
    let Some(last) = sealed else {
        return Ok(());
    };
    let (path, next) = (
        segments::path(directory, last.ordinal),
        last.last_sequence.plus(1),
    );
    let reason =
        format!("event {next} and what follows are missing: another segment came after it");
    Err(damaged(&path, reason))
}

/// That nothing is missing between what was removed and the first event.
fn check_beginning(
    directory: &Path,
    first: Option<&Segment>,
    trimmed: Sequence,
) -> Result<(), OpenError> {
    let Some(first) = first.filter(|first| first.first_sequence > trimmed.plus(1)) else {
        return Ok(());
    };
    let path = segments::path(directory, first.ordinal);
    let (begins, wanted) = (first.first_sequence, trimmed.plus(1));
    Err(damaged(
        &path,
        format!("it begins with event {begins}, not {wanted}"),
    ))
}

/// The ends of the log, after a look at the blocks there. Those between them are checked when they
/// are read.
fn range(
    segments: &Segments,
    trimmed: Sequence,
    head: Sequence,
    head_at: UnixMicros,
) -> Result<Range, OpenError> {
    let mut range = Range {
        earliest: trimmed.plus(1),
        head,
        earliest_at: None,
        head_at: None,
    };
    if trimmed < head {
        range.head_at = Some(head_at);
        for after in [head.before(), trimmed] {
            let read = readers::read(segments, head, after, 0);
            let block = read.map(|blocks| blocks.first().map(|block| block.received_at()));
            range.earliest_at = block.map_err(|error| {
                let ordinal = segments.place_after(after).map_or(1, |place| place.ordinal);
                let path = segments::path(segments.directory(), ordinal);
                damaged(&path, error.to_string())
            })?;
        }
    }
    Ok(range)
}
