//! Owns the row of the index in which a log keeps its clocks and the ages of its events. What cannot
//! be read there is no reason not to open the log: then everything in it counts as new, and is kept
//! for longer than it has to be.

use rusqlite::{Connection, OptionalExtension as _};

use crate::clock::{Clock, LogClock, Mark, RetentionTime, Stored};

const TABLE: &str = "
    CREATE TABLE IF NOT EXISTS clock (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        state BLOB NOT NULL
    ) STRICT;
";

/// Takes up the clocks where they were left, with the marks of the events' ages.
pub(super) fn load(
    connection: &Connection,
    source: Clock,
) -> rusqlite::Result<(LogClock, Vec<Mark>)> {
    connection.execute_batch(TABLE)?;
    let bytes: Option<Vec<u8>> = connection
        .query_row("SELECT state FROM clock", [], |row| row.get(0))
        .optional()?;
    if let Some(bytes) = bytes {
        if let Some((stored, marks)) = Stored::decode(&bytes) {
            return Ok((LogClock::resume(source, &stored), marks));
        }
        tracing::warn!(
            "what the log knew of its events' ages is damaged: the age of all events is counted \
             from now on"
        );
    }
    Ok((LogClock::new(source, newest_id(connection)?), Vec::new()))
}

/// The newest time that an id has. Ids of a later time than the clock's would never be forgotten.
fn newest_id(connection: &Connection) -> rusqlite::Result<RetentionTime> {
    let newest: Option<i64> = connection.query_row(
        "SELECT max(at) FROM (SELECT max(at) AS at FROM id_log UNION ALL \
         SELECT max(newest_at) FROM id_runs)",
        [],
        |row| row.get(0),
    )?;
    Ok(RetentionTime(newest.unwrap_or(0)))
}

/// Keeps them. Part of a transaction.
pub(super) fn store(
    connection: &Connection,
    stored: &Stored,
    marks: impl Iterator<Item = Mark>,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO clock VALUES (1, ?1)")?
        .execute([stored.encode(marks)])?;
    Ok(())
}
