//! Owns what a start finds out about the segments: where the log ends, and which keys the files of
//! ids have not got yet. Changes nothing, so it serves an inspection too.
//!
//! A sealed segment says by its footer what is in it. The others are scanned. Each commit is flushed
//! before the next one is written. So behind the last whole commit there may be pieces of one more,
//! which nobody was promised, and these are to be cut. A commit that is not whole although another one
//! was written after it, or although the manifest confirms it, was damaged later: nothing of it is cut,
//! its events keep their numbers, and they are said to be damaged. So are events whose file is missing.
//! Before anything counts as torn, the whole rest of its segment is looked through. A log is refused
//! only where nothing of it is left, or where its parts contradict each other.

use std::{collections::VecDeque, io, path::Path};

use super::{
    directory::MANIFEST_FILE,
    manifest::Manifest,
    open_error::OpenError,
    readers::{self, Fault, Located},
    scan::{STRANGER, Scanned, Scanner, Sink, Torn, damaged, unreadable},
    segments::{self, Segment, Segments},
};
use crate::{Damaged, Range};
use prelude_bridge_event::{Epoch, Sequence, UnixMicros};

/// Behind a segment after which others are missing, the names of so many files stay free.
const MISSING_FILES_MAX: u64 = 100;

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
    /// Events that are damaged or missing, as far as they were come across.
    pub(super) damage: Vec<Located>,
}

/// A manifest that knows of more events behind the segments than this is wrong itself: a trillion.
const MISSING_EVENTS_MAX: u64 = 1 << 40;

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
    scanner.scan_all(&ordinals)?;
    let ids_through = ids_through.unwrap_or(Sequence::ZERO);
    // A later commit may have shown of the last ones that they were durable.
    let passed = scanner.next.map_or(Sequence::ZERO, Sequence::before);
    let known = known_end(directory, manifest, ids_through, &scanner.scanned)?.max(passed);
    check_something_is_left(directory, manifest, known, &ordinals, &scanner.scanned)?;
    scanner.fill_gap(known)?;
    let (last_commit, torn) = (scanner.last_commit, scanner.torn);
    let mut scanned = std::mem::take(&mut scanner.scanned);
    let next_ordinal = ordinals.last().map_or(1, |last| last.saturating_add(1));
    let next_ordinal = next_ordinal.max(manifest.first_ordinal);
    let unsealed = std::mem::take(&mut scanned.unsealed);
    // No new file takes the name of one that is missing, and may be restored.
    let sealed = scanned.segments.last();
    let sealed = sealed.filter(|last| !unsealed.contains(&last.ordinal));
    let next_ordinal =
        next_ordinal.max(sealed.map_or(0, |last| last.ordinal.saturating_add(MISSING_FILES_MAX)));
    let last = scanned.segments.last();
    let last = last.filter(|last| unsealed.contains(&last.ordinal));
    let is_of_last = |ordinal| last.is_some_and(|last| last.ordinal == ordinal);
    // What is left of events that were durable is not cut.
    let ends_whole = last.is_some_and(|last| last.last_sequence == known);
    let torn = torn.filter(|torn| ends_whole && is_of_last(torn.ordinal));
    // A damaged file is not written to any more, so that it can be restored from a backup.
    let is_damaged = |last: &&Segment| {
        let path = segments::path(directory, last.ordinal);
        scanned.damage.iter().any(|located| located.path == path)
    };
    let tip = last.filter(|last| ends_whole && !is_damaged(last));
    let tip = tip.map(|last| Tip {
        ordinal: last.ordinal,
        commit: last_commit,
        end: last.end,
    });
    let gaps = Gaps::new(directory, manifest, known, &scanned.segments, &unsealed);
    scanned
        .discarded
        .retain(|&(ordinal, _)| !gaps.has_file(ordinal));
    let mut damage = scanned.damage;
    damage.extend(gaps.located);
    damage.retain(|found| found.events.last > manifest.trimmed);
    let list = VecDeque::from(scanned.segments);
    let last = list.back();
    // Retention may have removed every segment with events in it.
    let head = last.map_or(known, |last| last.last_sequence.max(known));
    let last_at = last.map_or(UnixMicros(0), |last| last.last_at);
    let last_at = last_at.max(manifest.last_at);
    let epochs = epochs(&list);
    let before_last = list.len().saturating_sub(1);
    let is_unsealed = |segment: &&Segment| unsealed.contains(&segment.ordinal);
    let unsealed = list.iter().take(before_last).filter(is_unsealed);
    let unsealed = unsealed.cloned().collect();
    let mut segments = Segments::new(directory, manifest.log, list);
    segments.begin_with(manifest.first_ordinal);
    let range = range(&segments, manifest.trimmed, head, last_at, &mut damage)
        .map_err(|error| unreadable(directory, error))?;
    let damage = merge(damage);
    Ok(Found {
        segments,
        range,
        last_at,
        epochs,
        unsealed,
        tip,
        next_ordinal,
        torn,
        given_up: scanned.given_up,
        unused: scanned.unused,
        discarded: scanned.discarded,
        damage,
    })
}

/// The newest event that is known to have been durable, whether it is there or not.
fn known_end(
    directory: &Path,
    manifest: &Manifest,
    ids_through: Sequence,
    scanned: &Scanned,
) -> Result<Sequence, OpenError> {
    let Manifest {
        trimmed, confirmed, ..
    } = *manifest;
    let last = scanned.segments.last();
    // Retention may have removed every segment with events in it.
    let head = last.map_or(trimmed, |last| last.last_sequence);
    let contradicts = |reason| {
        Err(OpenError::DamagedManifest {
            path: directory.join(MANIFEST_FILE),
            reason,
        })
    };
    if trimmed > head.max(confirmed) {
        let ends = head.max(confirmed);
        return contradicts(format!(
            "it says that events up to {trimmed} were removed, but the log ends with event {ends}"
        ));
    }
    if confirmed.0.saturating_sub(head.0) > MISSING_EVENTS_MAX {
        return contradicts(format!(
            "it says that the log ends with event {confirmed}, but the segments end with event {head}"
        ));
    }
    // A segment has a footer when another one has a commit that is durable.
    let sealed = last.filter(|last| !scanned.unsealed.contains(&last.ordinal));
    let missing = sealed.map_or(Sequence::ZERO, |last| last.last_sequence.plus(1));
    Ok(head.max(confirmed).max(ids_through).max(missing))
}

/// That a log which had events has not lost all of its files: then the directory is more likely not
/// what it should be.
fn check_something_is_left(
    directory: &Path,
    manifest: &Manifest,
    known: Sequence,
    ordinals: &[u64],
    scanned: &Scanned,
) -> Result<(), OpenError> {
    if !scanned.segments.is_empty() || known <= manifest.trimmed {
        return Ok(());
    }
    let is_kept =
        |ordinal: &&u64| **ordinal >= manifest.first_ordinal && !scanned.unused.contains(ordinal);
    let Some(&ordinal) = ordinals.iter().find(is_kept) else {
        let path = segments::path(directory, manifest.first_ordinal);
        let reason = format!("all segments are missing of a log that ends with event {known}");
        return Err(damaged(&path, reason));
    };
    let others = scanned.discarded.iter().all(|&(_, why)| why == STRANGER);
    if others && !scanned.discarded.is_empty() {
        return Err(damaged(
            &segments::path(directory, ordinal),
            STRANGER.to_owned(),
        ));
    }
    Ok(())
}

/// Events that are in no segment.
struct Gaps {
    located: Vec<Located>,
    /// Between which files they are missing.
    files: Vec<(u64, u64)>,
}

impl Gaps {
    fn new(
        directory: &Path,
        manifest: &Manifest,
        known: Sequence,
        list: &[Segment],
        unsealed: &[u64],
    ) -> Self {
        let mut gaps = Self {
            located: Vec::new(),
            files: Vec::new(),
        };
        let (mut next, mut before) = (manifest.trimmed.plus(1), None);
        let ends = list.iter().map(|segment| {
            (
                segment.first_sequence,
                segment.last_sequence,
                segment.ordinal,
            )
        });
        for (first, last, ordinal) in ends.chain([(known.plus(1), known, u64::MAX)]) {
            if first > next {
                let first_file = manifest.first_ordinal.min(ordinal.saturating_sub(1).max(1));
                let file = before.map_or(first_file, |before: u64| {
                    let following = before + 1;
                    // Where no file is missing, what is missing was at the end of this one.
                    let is_there = segments::path(directory, following).exists();
                    let is_there = is_there || !unsealed.contains(&before);
                    let is_between = following < ordinal && (ordinal < u64::MAX || is_there);
                    if is_between { following } else { before }
                });
                gaps.located.push(Located {
                    events: Damaged {
                        first: next,
                        last: first.before(),
                    },
                    path: segments::path(directory, file),
                    bytes: None,
                });
                gaps.files.push((before.unwrap_or(0), ordinal));
            }
            next = next.max(last.plus(1));
            before = Some(ordinal);
        }
        gaps
    }

    /// Whether a file is where events are missing: what is left of them may be in it.
    fn has_file(&self, ordinal: u64) -> bool {
        let mut files = self.files.iter();
        files.any(|&(before, after)| before < ordinal && ordinal < after)
    }
}

/// Each epoch that wrote in the segments, with its first event there.
fn epochs(list: &VecDeque<Segment>) -> Vec<(Sequence, Epoch)> {
    let mut epochs: Vec<(Sequence, Epoch)> = Vec::new();
    for &(first, epoch) in list.iter().flat_map(|segment| &segment.epochs) {
        if epochs.last().is_none_or(|&(_, last)| last != epoch) {
            epochs.push((first, epoch));
        }
    }
    epochs
}

/// The ends of the log, after a look at the blocks there. Those between them are checked when they
/// are read.
fn range(
    segments: &Segments,
    trimmed: Sequence,
    head: Sequence,
    head_at: UnixMicros,
    damage: &mut Vec<Located>,
) -> io::Result<Range> {
    let mut range = Range {
        earliest: trimmed.plus(1),
        head,
        earliest_at: None,
        head_at: None,
    };
    if trimmed < head && head_at > UnixMicros(0) {
        range.head_at = Some(head_at);
        range.earliest_at = first_time(segments, trimmed, head, damage)?.or(range.head_at);
        if let Err(fault) = readers::read(segments, head, head.before(), 0) {
            note(fault, damage)?;
        }
    }
    Ok(range)
}

/// When the first event after a place was received that can be read.
fn first_time(
    segments: &Segments,
    mut after: Sequence,
    head: Sequence,
    damage: &mut Vec<Located>,
) -> io::Result<Option<UnixMicros>> {
    while after < head {
        match readers::read(segments, head, after, 0) {
            Ok(blocks) => return Ok(blocks.first().map(|block| block.received_at())),
            Err(fault) => after = note(fault, damage)?.max(after.plus(1)),
        }
    }
    Ok(None)
}

/// Each damaged event once, in order.
fn merge(mut damage: Vec<Located>) -> Vec<Located> {
    damage.sort_by_key(|found| found.events.first);
    let mut merged: Vec<Located> = Vec::new();
    for found in damage {
        match merged.last_mut() {
            Some(last) if found.events.first <= last.events.last => {
                last.events.last = last.events.last.max(found.events.last);
            }
            _ => merged.push(found),
        }
    }
    merged
}

/// Takes note of damage, and returns its last event.
fn note(fault: Fault, damage: &mut Vec<Located>) -> io::Result<Sequence> {
    match fault {
        Fault::Io(error) => Err(error),
        Fault::Damaged(located) => {
            let last = located.events.last;
            damage.push(located);
            Ok(last)
        }
    }
}
