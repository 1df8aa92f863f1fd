//! Owns the decision which blocks are too old or too many, and removes them a few at a time, so that
//! no append waits long. The file does not shrink: new blocks fill the pages of the removed ones.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, params};

use super::schema::PAGE_BYTES;
use crate::{
    event::{Sequence, UnixMicros},
    log::Range,
};

/// A step removes at most so many blocks …
pub(super) const STEP_BLOCKS_MAX: usize = 64;
/// … and, unless the first is larger, at most so many bytes, or twice of what was added since the
/// last step where that is more: removing keeps up with adding.
pub(super) const STEP_BYTES_MAX: u64 = 1024 * 1024;

/// Once begun, removing goes on until there is some room: this part of the limit. So it comes in
/// bursts, and most commits have no step behind them.
const SLACK_DIVISOR: u64 = 64;

pub(super) struct Retention {
    age_micros: i64,
    bytes_max: u64,
    /// What the log occupies, without free pages.
    used_bytes: u64,
    added_bytes: u64,
    removing: bool,
}

/// What a step did.
pub(super) struct Removed {
    pub(super) blocks: usize,
    /// The oldest event that is left, and its time; `None` when nothing is left.
    pub(super) first: Option<(Sequence, UnixMicros)>,
    /// The newest event that was removed.
    pub(super) through: Sequence,
}

impl Retention {
    pub(super) fn new(age: Duration, bytes_max: u64) -> Self {
        Self {
            age_micros: i64::try_from(age.as_micros()).unwrap_or(i64::MAX),
            bytes_max,
            used_bytes: 0,
            added_bytes: 0,
            removing: false,
        }
    }

    /// Takes note of what the log occupies; returns the size of the file, free pages included.
    pub(super) fn measure(&mut self, connection: &Connection) -> rusqlite::Result<u64> {
        let number = |sql| {
            connection
                .prepare_cached(sql)?
                .query_row([], |row| row.get::<_, i64>(0))
                .map(|pages| u64::try_from(pages).unwrap_or(0))
        };
        let pages = number("PRAGMA page_count")?;
        let free = number("PRAGMA freelist_count")?;
        self.used_bytes = pages.saturating_sub(free) * PAGE_BYTES;
        Ok(pages * PAGE_BYTES)
    }

    /// Takes note of what a commit added.
    pub(super) fn added(&mut self, bytes: u64) {
        self.added_bytes += bytes;
    }

    /// Whether there is something to remove.
    pub(super) fn is_due(&mut self, range: &Range, now: UnixMicros) -> bool {
        let slack = if self.removing {
            0
        } else {
            self.age_micros / 64
        };
        let too_old = range.earliest_at.is_some_and(|earliest_at| {
            now.0.saturating_sub(earliest_at.0) > self.age_micros.saturating_add(slack)
        });
        self.removing = too_old || self.is_too_large(range);
        self.removing
    }

    fn is_too_large(&self, range: &Range) -> bool {
        let slack = if self.removing {
            self.bytes_max / SLACK_DIVISOR
        } else {
            0
        };
        // The newest block stays, whatever its size: `head_at` is its time.
        range.event_count() > 1 && self.used_bytes > self.bytes_max - slack
    }

    /// Removes the oldest blocks, as many as are due and one step may. Part of a transaction.
    pub(super) fn step(
        &mut self,
        connection: &Connection,
        range: &Range,
        now: UnixMicros,
    ) -> rusqlite::Result<Option<Removed>> {
        let bytes_max = STEP_BYTES_MAX.max(2 * self.added_bytes);
        let oldest = UnixMicros(now.0.saturating_sub(self.age_micros));
        let too_large = self.is_too_large(range);
        let (mut blocks, mut bytes, mut last) = (0, 0, None);
        let mut statement = connection.prepare_cached(
            "SELECT last_sequence, received_at, length(data) FROM blocks \
             ORDER BY last_sequence LIMIT ?1",
        )?;
        let mut rows = statement.query([i64::try_from(STEP_BLOCKS_MAX).unwrap_or(i64::MAX)])?;
        while let Some(row) = rows.next()? {
            let sequence = Sequence(row.get::<_, i64>(0)?.cast_unsigned());
            let received_at = UnixMicros(row.get(1)?);
            bytes += row.get::<_, i64>(2)?.cast_unsigned();
            let too_old = received_at < oldest;
            let due = too_old || (too_large && sequence < range.head);
            if !due || (blocks > 0 && bytes > bytes_max) {
                break;
            }
            blocks += 1;
            last = Some((sequence, received_at));
        }
        let Some((through, through_at)) = last else {
            self.removing = false;
            return Ok(None);
        };
        drop(rows);
        self.added_bytes = 0;
        remove(connection, through, through_at)?;
        let first = connection
            .prepare_cached(
                "SELECT first_sequence, received_at FROM blocks ORDER BY last_sequence LIMIT 1",
            )?
            .query_row([], |row| {
                let sequence = Sequence(row.get::<_, i64>(0)?.cast_unsigned());
                Ok((sequence, UnixMicros(row.get(1)?)))
            })
            .optional()?;
        Ok(Some(Removed {
            blocks,
            first,
            through,
        }))
    }
}

fn remove(
    connection: &Connection,
    through: Sequence,
    through_at: UnixMicros,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached("DELETE FROM blocks WHERE last_sequence <= ?1")?
        .execute([through.0.cast_signed()])?;
    connection
        .prepare_cached("UPDATE log SET trimmed_sequence = ?1, trimmed_at = ?2")?
        .execute(params![through.0.cast_signed(), through_at.0])?;
    Ok(())
}
