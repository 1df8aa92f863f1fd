//! Owns the opening of a log: the index, the ids, the segments, and what has to be put right before
//! anything is written. A damaged index is made anew from the segments; what is taken out of the log
//! is kept in the quarantine, and said.

use std::{path::Path, time::Duration};

use rusqlite::Connection;

use super::{
    checksum, clock_row,
    directory::{self, Directory},
    disk_error,
    ids::{self, Effort, Ids},
    keeper,
    open_error::{OpenError, database_error},
    quarantine, rebuild,
    recovery::{self, Found, Unindexed},
    schema::{self, Beginning, Notes},
    segments,
};
use crate::{
    clock::{Ages, Clock, LogClock, RetentionNow},
    group,
};
use prelude_bridge_event::{Epoch, LogId, Sequence};

/// So many ids that the index has not got are read before it gets them: 1 MiB. Usually there are
/// fewer, and the writer is given them.
const UNINDEXED_KEYS_MAX: usize = 65_536;

/// A log right after it was opened.
pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) ids: Ids,
    pub(super) log: LogId,
    /// All terms; the last one is that of this run.
    pub(super) terms: Vec<(Sequence, Epoch)>,
    pub(super) term: Epoch,
    pub(super) clock: LogClock,
    pub(super) ages: Ages,
    pub(super) found: Found,
}

/// Opens a log, makes a new one where there is none, and begins a new term.
pub(super) fn open(
    directory: &Directory,
    limits: ids::Limits,
    source: &Clock,
    age_max: Duration,
) -> Result<Opened, OpenError> {
    let attempt = || attempt(directory, limits, source, age_max);
    let opened = match attempt() {
        Err(OpenError::DamagedIndex { reason, .. }) => {
            rebuild::rebuild(directory, &reason)?;
            attempt()
        }
        // Its first bytes say so; the segments know better.
        Err(OpenError::NotALog { path })
            if path == directory.database() && rebuild::is_possible(directory.path())? =>
        {
            rebuild::rebuild(directory, "it is no database")?;
            attempt()
        }
        opened => opened,
    }?;
    put_right(directory.path(), &opened.found)?;
    Ok(opened)
}

fn attempt(
    directory: &Directory,
    limits: ids::Limits,
    source: &Clock,
    age_max: Duration,
) -> Result<Opened, OpenError> {
    let path = directory.database();
    let error = |source| database_error(path, source);
    if directory.is_marked_damaged() {
        let reason = "it was found to be damaged while the bridge ran".to_owned();
        let path = path.to_owned();
        return Err(OpenError::DamagedIndex { path, reason });
    }
    let beginning = Beginning::new(group::new_log_id()?);
    if schema::is_empty(path)? && rebuild::is_possible(directory.path())? {
        let reason = "there is none, though there are segments".to_owned();
        let path = path.to_owned();
        return Err(OpenError::DamagedIndex { path, reason });
    }
    let mut connection = schema::open_writer(directory, &beginning)?;
    let term = group::new_epoch()?;
    let facts = schema::facts(&connection).map_err(error)?;
    let (log, sealed_is_damaged) = (facts.log, facts.sealed_is_damaged);
    let sealed_through = facts.sealed.last().map(|segment| segment.ordinal);
    let mut ids = Ids::open(&connection, limits).map_err(error)?;
    let (mut clock, marks) = clock_row::load(&connection, source.clone()).map_err(error)?;
    let now = clock.now().retention;
    let found = recovery::look(directory.path(), facts, &mut |commit| {
        restore(&connection, &mut ids, &commit, &now).map_err(error)
    })?;
    clock.compare_with_newest_event(found.last_at);
    let mut ages = Ages::resume(age_max, &marks, found.range.head, now.time);
    ages.forget_before(found.range.earliest);
    if sealed_is_damaged {
        schema::forget_sealed(&connection, sealed_through).map_err(error)?;
    }
    let terms = schema::begin_term(&mut connection, found.range.head, term).map_err(error)?;
    // From now on a commit is durable without the index, which follows, and is flushed by the
    // keeper. What it loses in a crash, it gets again from the segments.
    connection
        .pragma_update(None, "synchronous", "NORMAL")
        .map_err(error)?;
    Ok(Opened {
        connection,
        ids,
        log,
        terms,
        term,
        clock,
        ages,
        found,
    })
}

/// Remembers the ids of a commit that the index has not got. It gets them at once when there are
/// many, so that memory is bounded however far it is behind.
fn restore(
    connection: &Connection,
    ids: &mut Ids,
    commit: &Unindexed,
    now: &RetentionNow,
) -> rusqlite::Result<()> {
    // Later than they came, so that none is forgotten too early.
    ids.restore(&commit.keys, now.time);
    if ids.unwritten() < UNINDEXED_KEYS_MAX {
        return Ok(());
    }
    let transaction = connection.unchecked_transaction()?;
    let notes = Notes {
        indexed_through: commit.last_sequence,
        ..Notes::default()
    };
    notes.write(&transaction)?;
    ids.write_behind(&transaction, now, Effort::Due)?;
    schema::seal(&transaction)?;
    transaction.commit()?;
    ids.written();
    // Nobody else does it yet, and it would grow by all the ids there are.
    keeper::carry_over(connection).map(drop)
}

/// Takes out of the log what is no part of it.
fn put_right(data_dir: &Path, found: &Found) -> Result<(), OpenError> {
    let failed = |source| OpenError::Directory {
        path: data_dir.to_owned(),
        source,
    };
    let after = found.range.head.0;
    if let Some(torn) = found.torn {
        let path = segments::path(data_dir, torn.ordinal);
        match quarantine::take_bytes(data_dir, &path, torn.from, torn.to) {
            Ok(kept) => tracing::warn!(
                path = %path.display(),
                from_byte = torn.from,
                to_byte = torn.to,
                after_event = after,
                kept = %kept.display(),
                "the last commit of the log is not whole, and was cut: the process ended while it \
                 was written, and nobody got an answer, or it was damaged since"
            ),
            Err(error) if disk_error::is_no_space(&error) => tracing::error!(
                path = %path.display(),
                from_byte = torn.from,
                to_byte = torn.to,
                after_event = after,
                %error,
                "the last commit of the log is not whole, and the disk has no room to keep what \
                 there is of it: the next commit is written over it"
            ),
            Err(error) => return Err(failed(error)),
        }
    }
    for &(ordinal, why) in &found.discarded {
        let path = segments::path(data_dir, ordinal);
        let bytes = path.metadata().map_or(0, |metadata| metadata.len());
        let kept = quarantine::take_file(data_dir, &path).map_err(failed)?;
        tracing::warn!(
            path = %path.display(),
            from_byte = 0,
            to_byte = bytes,
            after_event = after,
            why,
            kept = %kept.display(),
            "a file that holds no commit was taken out of the log"
        );
    }
    keeper::remove(data_dir, &found.given_up).map_err(failed)?;
    keeper::remove(data_dir, &found.unused).map_err(failed)
}

/// Leaves word for the next start when an error means that the index is damaged.
pub(super) fn mark_if_damaged(data_dir: &Path, error: &rusqlite::Error) {
    if !checksum::is_damage(error) {
        return;
    }
    match directory::mark_damaged(data_dir) {
        Ok(()) => tracing::error!(
            %error,
            "the index of the log is damaged: the next start makes it anew from the segments"
        ),
        Err(source) => tracing::error!(
            %error,
            %source,
            "the index of the log is damaged; move log.sqlite3 away, and the next start makes it \
             anew from the segments"
        ),
    }
}
