//! Owns how a damaged index is made anew from the segments: what can still be believed of the old
//! one, whether the segments hold everything that it spoke of, and the exchange of one for the other.
//! Until it is known that nothing would be lost, nothing is changed.

use std::{fs::File, io, path::Path};

use super::{
    directory::{self, DATABASE_FILE, Directory},
    frame::{self, Frames, SEGMENT_HEADER_BYTES},
    open_error::OpenError,
    quarantine,
    recovery::{self, Found},
    schema::{self, Beginning, Facts},
    segments::{self, Segment},
};
use prelude_bridge_event::{Epoch, LogId, Sequence, UnixMicros};

/// Read at once, to find the first frame.
const CHUNK_BYTES: usize = 4096;

/// What the damaged index says that fits its checksums.
#[derive(Default)]
struct Known {
    log: Option<Facts>,
    terms: Option<Vec<(Sequence, Epoch)>>,
    sealed: Vec<Segment>,
}

/// What the first bytes of the segments tell.
struct Survey {
    log: LogId,
    /// The first segment, and the event before its first one.
    first_ordinal: u64,
    before: Sequence,
}

/// Whether there are segments that an index could be made from.
pub(super) fn is_possible(data_dir: &Path) -> Result<bool, OpenError> {
    Ok(survey(data_dir)?.is_some())
}

/// Makes the index anew, as one that knows the log's beginning and none of its events: those it gets
/// when the log is opened, as after a crash. The old one is kept in the quarantine.
pub(super) fn rebuild(directory: &Directory, reason: &str) -> Result<(), OpenError> {
    let (data_dir, path) = (directory.path(), directory.database());
    let known = salvage(path);
    let Some(survey) = survey(data_dir)? else {
        return Err(OpenError::Damaged {
            path: path.to_owned(),
            reason: format!("{reason}, and there are no segments to make it anew from"),
        });
    };
    let facts = facts(&known, &survey);
    let mut beginning = Beginning {
        log: facts.log,
        trimmed: facts.trimmed,
        trimmed_at: facts.trimmed_at,
        first_ordinal: facts.first_ordinal,
        terms: Vec::new(),
    };
    let mut terms: Vec<(Sequence, Epoch)> = Vec::new();
    let found = recovery::look(data_dir, facts, &mut |commit| {
        for (first, term) in commit.terms {
            if terms.last().is_none_or(|&(_, last)| last != term) {
                terms.push((first, term));
            }
        }
        Ok(())
    })?;
    known.check(data_dir, &found)?;
    beginning.terms = known.terms.unwrap_or(terms);
    tracing::error!(
        path = %path.display(),
        reason,
        first_event = found.range.earliest.0,
        last_event = found.range.head.0,
        "the index of the log is damaged: it is made anew from the segments, which are whole; \
         repetitions of events that retention has removed are not recognised any more"
    );
    replace(directory, &beginning)
}

fn replace(directory: &Directory, beginning: &Beginning) -> Result<(), OpenError> {
    let data_dir = directory.path();
    let failed = |source| OpenError::Directory {
        path: data_dir.to_owned(),
        source,
    };
    // The write-ahead log first: without its database it is nothing.
    for suffix in ["-shm", "-wal", ""] {
        let path = data_dir.join(format!("{DATABASE_FILE}{suffix}"));
        if path.try_exists().map_err(failed)? {
            let kept = quarantine::take_file(data_dir, &path).map_err(failed)?;
            tracing::warn!(kept = %kept.display(), "the damaged index is kept");
        }
    }
    drop(directory::open_private(directory.database()).map_err(failed)?);
    directory::sync_directory(data_dir).map_err(failed)?;
    schema::open_writer(directory, beginning)?;
    directory.clear_damage_mark().map_err(failed)
}

/// Reads of the old index what can be believed. Whatever fails there is not known.
fn salvage(path: &Path) -> Known {
    let mut known = Known::default();
    let Ok(connection) = schema::open_reader(path) else {
        return known;
    };
    known.log = schema::log_facts(&connection).ok();
    known.terms = known
        .log
        .is_some()
        .then(|| schema::checked_terms(&connection).ok())
        .flatten();
    known.sealed = schema::sealed(&connection).map_or_else(|_| Vec::new(), |(sealed, _)| sealed);
    known
}

fn facts(known: &Known, survey: &Survey) -> Facts {
    let (log, trimmed, trimmed_at, first_ordinal) = match &known.log {
        Some(log) => (log.log, log.trimmed, log.trimmed_at, log.first_ordinal),
        // Retention removes again what it had removed of the first segment.
        None => (
            survey.log,
            survey.before,
            UnixMicros(0),
            survey.first_ordinal,
        ),
    };
    Facts {
        log,
        trimmed,
        trimmed_at,
        first_ordinal,
        indexed_through: Sequence::ZERO,
        sealed: Vec::new(),
        sealed_is_damaged: false,
    }
}

impl Known {
    /// That the segments hold everything that the index knew of.
    fn check(&self, data_dir: &Path, found: &Found) -> Result<(), OpenError> {
        let missing = |ordinal, first: Sequence, last: Sequence| OpenError::Damaged {
            path: segments::path(data_dir, ordinal),
            reason: format!("events {first} to {last} are missing, and the index is damaged"),
        };
        for segment in &self.sealed {
            let is_there = found.segments.get(segment.ordinal).is_some_and(|there| {
                (there.first_sequence, there.last_sequence)
                    == (segment.first_sequence, segment.last_sequence)
            });
            if !is_there {
                let (first, last) = (segment.first_sequence, segment.last_sequence);
                return Err(missing(segment.ordinal, first, last));
            }
        }
        let indexed = self
            .log
            .as_ref()
            .map_or(Sequence::ZERO, |log| log.indexed_through);
        let head = found.range.head;
        if head < indexed {
            let ordinal = found.tip.map_or(1, |tip| tip.ordinal);
            return Err(missing(ordinal, head.plus(1), indexed));
        }
        Ok(())
    }
}

/// Looks at the first bytes of all segments; `None` if there is none.
fn survey(data_dir: &Path) -> Result<Option<Survey>, OpenError> {
    let failed = |source| OpenError::Directory {
        path: data_dir.to_owned(),
        source,
    };
    let mut survey: Option<Survey> = None;
    let mut first = None;
    for ordinal in segments::ordinals(data_dir).map_err(failed)? {
        let opened = File::open(segments::path(data_dir, ordinal));
        let Some(log) = opened
            .and_then(|file| frame::log_of(&file))
            .map_err(failed)?
        else {
            continue;
        };
        let found = survey.get_or_insert(Survey {
            log,
            first_ordinal: ordinal,
            before: Sequence::ZERO,
        });
        if found.log == log && first.is_none() {
            first = first_sequence(data_dir, ordinal, log).map_err(failed)?;
            found.before = first.map_or(Sequence::ZERO, Sequence::before);
        }
    }
    Ok(survey)
}

fn first_sequence(data_dir: &Path, ordinal: u64, log: LogId) -> io::Result<Option<Sequence>> {
    let file = File::open(segments::path(data_dir, ordinal))?;
    let mut frames = Frames::new(file, log, SEGMENT_HEADER_BYTES, CHUNK_BYTES);
    Ok(frames.header()?.map(|header| header.first_sequence))
}
