//! Owns the index, a SQLite database: its tables, their version, and what it says of the log when that
//! is opened. Opening looks at the ends of the log only, so it takes the same time however large it is.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, params};

use super::{
    checksum,
    directory::Directory,
    ids::{self, PAGE_BYTES},
    open_error::{OpenError, database_error},
    segments::Segment,
};
use prelude_bridge_event::{Epoch, LogId, Sequence, UnixMicros};

/// Marks a SQLite file as a log of this program: "PBLG".
const APPLICATION_ID: i64 = 0x5042_4c47;
/// The version of the tables that this release reads and writes.
const SCHEMA_VERSION: i64 = 4;
/// What the writer's page cache may take. The upper levels of the tables stay in it.
const WRITER_CACHE_KIB: i64 = 32 * 1024;
/// How long a connection waits for another one's short locks.
const BUSY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// What the index says.
pub(super) struct Facts {
    pub(super) log: LogId,
    /// The newest event that retention has removed, and its time.
    pub(super) trimmed: Sequence,
    pub(super) trimmed_at: UnixMicros,
    /// The index has the keys of the events up to this one.
    pub(super) indexed_through: Sequence,
    /// Those before this one were given up.
    pub(super) first_ordinal: u64,
    /// The segments that are not written to any more, oldest first.
    pub(super) sealed: Vec<Segment>,
    /// There is something else about segments, which is damaged.
    pub(super) sealed_is_damaged: bool,
}

/// `log` has one row. `trimmed_…` is the newest event that retention has removed, with its time;
/// segments before `first_segment` are given up with it. The keys of the events up to
/// `indexed_through` are in the tables of `ids`; those of newer events are read from the segments.
/// `segments` has those that are not written to any more.
/// The others belong to `ids`. A row of `id_log` has new keys, in the order in which they came;
/// those up to `ids_in_runs` are in a run as well. The pages and filters of a run have its id in the
/// upper half of their place.
///
/// SQLite has no checksums of its own, so the rows have them. Those of `id_runs` and `terms`, which
/// are few, have one together, in the row of `log`, which also tells how far `id_log` goes: so a row
/// that is missing is noticed too. Of `id_pages`, each row of `id_filters` tells which there are, and
/// of `segments` the files do.
pub(super) const TABLES: &str = "
    CREATE TABLE log (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        id INTEGER NOT NULL,
        trimmed_sequence INTEGER NOT NULL,
        trimmed_at INTEGER NOT NULL,
        first_segment INTEGER NOT NULL,
        indexed_through INTEGER NOT NULL,
        ids_in_runs INTEGER NOT NULL,
        ids_last INTEGER NOT NULL DEFAULT 0,
        runs_checksum INTEGER NOT NULL DEFAULT 0,
        terms_checksum INTEGER NOT NULL DEFAULT 0,
        checksum INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE terms (
        first_sequence INTEGER PRIMARY KEY,
        term INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE segments (
        ordinal INTEGER PRIMARY KEY,
        first_sequence INTEGER NOT NULL,
        last_sequence INTEGER NOT NULL,
        last_at INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        marks BLOB NOT NULL,
        checksum INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE id_log (
        place INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        keys BLOB NOT NULL,
        checksum INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE id_runs (
        id INTEGER PRIMARY KEY,
        state INTEGER NOT NULL,
        level INTEGER NOT NULL,
        slice_bits INTEGER NOT NULL,
        keys INTEGER NOT NULL,
        oldest_at INTEGER NOT NULL,
        newest_at INTEGER NOT NULL,
        log_through INTEGER,
        merged_into INTEGER
    ) STRICT;
    CREATE TABLE id_pages (
        place INTEGER PRIMARY KEY,
        keys BLOB NOT NULL,
        checksum INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE id_filters (
        place INTEGER PRIMARY KEY,
        words BLOB NOT NULL,
        pages INTEGER NOT NULL,
        checksum INTEGER NOT NULL
    ) STRICT;
";

/// What a new index says.
pub(super) struct Beginning {
    pub(super) log: LogId,
    pub(super) trimmed: Sequence,
    pub(super) trimmed_at: UnixMicros,
    pub(super) first_ordinal: u64,
    pub(super) terms: Vec<(Sequence, Epoch)>,
}

impl Beginning {
    /// That of a log without events.
    pub(super) fn new(log: LogId) -> Self {
        Self {
            log,
            trimmed: Sequence::ZERO,
            trimmed_at: UnixMicros(0),
            first_ordinal: 1,
            terms: Vec::new(),
        }
    }
}

/// Whether the index has no content yet.
pub(super) fn is_empty(path: &Path) -> Result<bool, OpenError> {
    let error = |source| database_error(path, source);
    if path.metadata().is_ok_and(|metadata| metadata.len() == 0) {
        return Ok(true);
    }
    let connection = open_reader(path).map_err(error)?;
    let tables = "SELECT count(*) FROM sqlite_schema";
    let tables: i64 = connection
        .query_row(tables, [], |row| row.get(0))
        .map_err(error)?;
    Ok(tables == 0)
}

/// Opens the index for writing, and creates it where there is none.
pub(super) fn open_writer(
    directory: &Directory,
    beginning: &Beginning,
) -> Result<Connection, OpenError> {
    let path = directory.database();
    let error = |source| database_error(path, source);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(error)?;
    check_version(&connection, path)?;
    configure_writer(&connection).map_err(error)?;
    create_tables(&mut connection, beginning).map_err(error)?;
    Ok(connection)
}

/// Opens one more connection for checkpoints.
pub(super) fn open_keeper(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    // A checkpoint makes the database durable before the WAL is given up only if it flushes.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.busy_timeout(std::time::Duration::ZERO)?;
    Ok(connection)
}

/// Opens a connection for reading.
pub(super) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// Refuses what is not ours before anything is changed.
pub(super) fn check_version(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let number = |sql| {
        connection
            .query_row(sql, [], |row| row.get::<_, i64>(0))
            .map_err(|source| database_error(path, source))
    };
    if number("SELECT count(*) FROM sqlite_schema")? == 0 {
        return Ok(());
    }
    if number("PRAGMA application_id")? != APPLICATION_ID {
        let path = path.to_owned();
        return Err(OpenError::NotALog { path });
    }
    let found = number("PRAGMA user_version")?;
    if found > SCHEMA_VERSION {
        return Err(OpenError::Newer {
            path: path.to_owned(),
            found,
            known: SCHEMA_VERSION,
        });
    }
    if found < SCHEMA_VERSION {
        return Err(OpenError::Older {
            path: path.to_owned(),
            found,
            known: SCHEMA_VERSION,
        });
    }
    Ok(())
}

fn configure_writer(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "page_size", PAGE_BYTES.cast_signed())?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.busy_timeout(BUSY_TIMEOUT)
}

fn create_tables(connection: &mut Connection, beginning: &Beginning) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    let tables: i64 =
        transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 {
        transaction.execute_batch(TABLES)?;
        transaction.execute(
            "INSERT INTO log (one, id, trimmed_sequence, trimmed_at, first_segment, \
             indexed_through, ids_in_runs) VALUES (1, ?1, ?2, ?3, ?4, 0, 0)",
            [
                beginning.log.0.cast_signed(),
                beginning.trimmed.0.cast_signed(),
                beginning.trimmed_at.0,
                beginning.first_ordinal.cast_signed(),
            ],
        )?;
        for (first, term) in &beginning.terms {
            let first = first.0.cast_signed();
            transaction.execute("INSERT INTO terms VALUES (?1, ?2)", params![first, term.0])?;
        }
        seal_terms(&transaction)?;
        seal(&transaction)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    }
    transaction.commit()
}

/// The row of `log`, without its checksum.
struct LogRow([i64; 10]);

impl LogRow {
    fn read(connection: &Connection) -> rusqlite::Result<(Self, i64)> {
        connection.query_row(
            "SELECT one, id, trimmed_sequence, trimmed_at, first_segment, indexed_through, \
             ids_in_runs, ids_last, runs_checksum, terms_checksum, checksum FROM log",
            [],
            |row| {
                let mut numbers = [0; 10];
                for (column, number) in numbers.iter_mut().enumerate() {
                    *number = row.get(column)?;
                }
                Ok((Self(numbers), row.get(10)?))
            },
        )
    }

    fn checksum(&self) -> i64 {
        checksum::of_row("log", &self.0, &[])
    }
}

/// Gives the row of `log` its checksum, with what it tells of other tables. The last thing in each
/// transaction that changes it, `id_log` or `id_runs`.
pub(super) fn seal(connection: &Connection) -> rusqlite::Result<()> {
    let (ids_last, runs_checksum) = ids::summary(connection)?;
    connection
        .prepare_cached("UPDATE log SET ids_last = ?1, runs_checksum = ?2")?
        .execute([ids_last, runs_checksum])?;
    let (row, _) = LogRow::read(connection)?;
    connection
        .prepare_cached("UPDATE log SET checksum = ?1")?
        .execute([row.checksum()])?;
    Ok(())
}

/// Notes the checksum of the terms; [`seal`] has to follow.
fn seal_terms(connection: &Connection) -> rusqlite::Result<()> {
    let checksum = terms_checksum(&terms(connection)?);
    connection.execute("UPDATE log SET terms_checksum = ?1", [checksum])?;
    Ok(())
}

fn terms_checksum(terms: &[(Sequence, Epoch)]) -> i64 {
    let numbers = terms
        .iter()
        .flat_map(|(first, term)| [first.0.cast_signed(), i64::from(term.0)]);
    checksum::of_row("terms", &numbers.collect::<Vec<_>>(), &[])
}

/// Each term with the first event that it wrote or will write.
fn terms(connection: &Connection) -> rusqlite::Result<Vec<(Sequence, Epoch)>> {
    connection
        .prepare("SELECT first_sequence, term FROM terms ORDER BY first_sequence")?
        .query_map([], |row| {
            let first = Sequence(row.get::<_, i64>(0)?.cast_unsigned());
            Ok((first, Epoch(row.get(1)?)))
        })?
        .collect()
}

/// What the row of `log` says, if it fits its checksum.
pub(super) fn log_facts(connection: &Connection) -> rusqlite::Result<Facts> {
    let (row, found) = LogRow::read(connection)?;
    checksum::check(row.checksum() == found, || {
        "what it says of the log as a whole does not fit its checksum".to_owned()
    })?;
    let [_, id, trimmed, trimmed_at, first, indexed_through, ..] = row.0;
    Ok(Facts {
        log: LogId(id.cast_unsigned()),
        trimmed: Sequence(trimmed.cast_unsigned()),
        trimmed_at: UnixMicros(trimmed_at),
        first_ordinal: first.cast_unsigned(),
        indexed_through: Sequence(indexed_through.cast_unsigned()),
        sealed: Vec::new(),
        sealed_is_damaged: false,
    })
}

/// Reads what the index knows of the log, and checks it against its checksums. What it knows of the
/// segments is left out as soon as it is damaged: it is found in them again.
pub(super) fn facts(connection: &Connection) -> rusqlite::Result<Facts> {
    let mut facts = log_facts(connection)?;
    let (row, _) = LogRow::read(connection)?;
    let [.., in_runs, ids_last, runs, _] = row.0;
    let (found_last, found_runs) = ids::summary(connection)?;
    // Rows that are in runs as well may have been deleted.
    let fits = found_last == ids_last || ids_last <= in_runs && found_last <= in_runs;
    checksum::check(fits, || {
        format!("its newest ids end with row {found_last}, not {ids_last}")
    })?;
    checksum::check(found_runs == runs, || {
        "its list of the runs of ids does not fit its checksum".to_owned()
    })?;
    checked_terms(connection)?;
    (facts.sealed, facts.sealed_is_damaged) = sealed(connection)?;
    if facts.sealed_is_damaged {
        let after = facts.sealed.last().map_or(0, |segment| segment.ordinal);
        tracing::error!(
            after,
            "what the index says of the segments after this one is damaged, and is read from them \
             again"
        );
    }
    Ok(facts)
}

/// The terms, if they fit their checksum.
pub(super) fn checked_terms(connection: &Connection) -> rusqlite::Result<Vec<(Sequence, Epoch)>> {
    let (row, _) = LogRow::read(connection)?;
    let [.., expected] = row.0;
    let terms = terms(connection)?;
    checksum::check(terms_checksum(&terms) == expected, || {
        "its epochs do not fit their checksum".to_owned()
    })?;
    Ok(terms)
}

/// Removes what is said of the segments after one.
pub(super) fn forget_sealed(connection: &Connection, after: Option<u64>) -> rusqlite::Result<()> {
    let after = after.map_or(i64::MIN, u64::cast_signed);
    connection.execute("DELETE FROM segments WHERE ordinal > ?1", [after])?;
    Ok(())
}

/// The segments that are not written to any more, oldest first, up to the first damaged row, and
/// whether there is one.
pub(super) fn sealed(connection: &Connection) -> rusqlite::Result<(Vec<Segment>, bool)> {
    let mut statement = connection.prepare(
        "SELECT ordinal, first_sequence, last_sequence, last_at, bytes, marks, checksum \
         FROM segments ORDER BY ordinal",
    )?;
    let mut rows = statement.query([])?;
    let mut sealed: Vec<Segment> = Vec::new();
    while let Some(row) = rows.next()? {
        match segment(row).filter(|next| sealed.last().is_none_or(|last| last.precedes(next))) {
            Some(segment) => sealed.push(segment),
            None => return Ok((sealed, true)),
        }
    }
    Ok((sealed, false))
}

/// A row of `segments`; `None` if it is damaged.
fn segment(row: &rusqlite::Row<'_>) -> Option<Segment> {
    let number = |index| row.get::<_, i64>(index).ok();
    let numbers = [number(0)?, number(1)?, number(2)?, number(3)?, number(4)?];
    let marks = row.get_ref(5).ok()?.as_blob().ok()?;
    if number(6)? != checksum::of_row("segments", &numbers, marks) {
        return None;
    }
    let [ordinal, first, last, last_at, end] = numbers;
    let segment = Segment::stored(
        ordinal.cast_unsigned(),
        (
            Sequence(first.cast_unsigned()),
            Sequence(last.cast_unsigned()),
        ),
        UnixMicros(last_at),
        end.cast_unsigned(),
        marks,
    );
    segment.is_plausible().then_some(segment)
}

/// Begins a term after the head, and returns all of them.
pub(super) fn begin_term(
    connection: &mut Connection,
    head: Sequence,
    term: Epoch,
) -> rusqlite::Result<Vec<(Sequence, Epoch)>> {
    let transaction = connection.transaction()?;
    // A term that wrote nothing leaves no trace.
    transaction.execute(
        "DELETE FROM terms WHERE first_sequence > ?1",
        [head.0.cast_signed()],
    )?;
    transaction.execute(
        "INSERT INTO terms VALUES (?1, ?2)",
        params![head.plus(1).0.cast_signed(), term.0],
    )?;
    seal_terms(&transaction)?;
    seal(&transaction)?;
    let terms = terms(&transaction)?;
    transaction.commit()?;
    Ok(terms)
}

/// What the index takes note of, beside the ids.
#[derive(Default)]
pub(super) struct Notes {
    /// The keys of the events up to this one are in the index.
    pub(super) indexed_through: Sequence,
    /// What retention has removed, if that has changed: up to which event, its time, and which
    /// segment is the first now.
    pub(super) trimmed: Option<(Sequence, UnixMicros, u64)>,
    /// Segments that are not written to any more.
    pub(super) sealed: Vec<Segment>,
}

impl Notes {
    /// Writes them. Part of a transaction, in which [`seal`] has to follow.
    pub(super) fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached("UPDATE log SET indexed_through = ?1")?
            .execute([self.indexed_through.0.cast_signed()])?;
        for segment in &self.sealed {
            let numbers = [
                segment.ordinal.cast_signed(),
                segment.first_sequence.0.cast_signed(),
                segment.last_sequence.0.cast_signed(),
                segment.last_at.0,
                segment.end.cast_signed(),
            ];
            let marks = segment.marks_to_store();
            let checksum = checksum::of_row("segments", &numbers, &marks);
            let [ordinal, first, last, last_at, end] = numbers;
            connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO segments VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )?
                .execute(params![ordinal, first, last, last_at, end, marks, checksum])?;
        }
        if let Some((through, at, first_segment)) = self.trimmed {
            connection
                .prepare_cached(
                    "UPDATE log SET trimmed_sequence = ?1, trimmed_at = ?2, first_segment = ?3",
                )?
                .execute(params![
                    through.0.cast_signed(),
                    at.0,
                    first_segment.cast_signed()
                ])?;
            connection
                .prepare_cached("DELETE FROM segments WHERE ordinal < ?1")?
                .execute([first_segment.cast_signed()])?;
        }
        Ok(())
    }
}
