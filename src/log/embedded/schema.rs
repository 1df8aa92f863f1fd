//! Owns what is on the disk besides the segments: the data directory, its lock, the index (a SQLite
//! database) with its tables and their version, and what a log finds out about itself when it is
//! opened. Opening looks at the ends of the log only, so it takes the same time however large it is.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, ErrorCode, OpenFlags, params};

use super::{
    recovery::{self, Facts, Found},
    segments::Segment,
};
use crate::{
    event::{LogId, Sequence, Term, UnixMicros},
    log::group,
};

/// The database in the data directory.
pub(super) const DATABASE_FILE: &str = "log.sqlite3";
/// Locked while a process uses the directory.
pub(super) const LOCK_FILE: &str = "lock";
/// Marks a SQLite file as a log of this program: "PBLG".
const APPLICATION_ID: i64 = 0x5042_4c47;
/// The version of the tables that this release reads and writes.
const SCHEMA_VERSION: i64 = 3;
/// Pages of 8 KiB: what is written at once is a few times this.
pub(super) const PAGE_BYTES: u64 = 8192;
/// What the writer's page cache may take. The upper levels of the tables stay in it.
const WRITER_CACHE_KIB: i64 = 32 * 1024;
/// How long a connection waits for another one's short locks.
const BUSY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// `log` has one row. `trimmed_…` is the newest event that retention has removed, with its time;
/// segments before `first_segment` are given up with it. The keys of the events up to
/// `indexed_through` are in the tables of `ids`; those of newer events are read from the segments.
/// `segments` has those that are not written to any more.
/// The others belong to `ids`. A row of `id_log` has new keys, in the order in which they came;
/// those up to `ids_in_runs` are in a run as well. The pages and filters of a run have its id in the
/// upper half of their place.
pub(super) const TABLES: &str = "
    CREATE TABLE log (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        id INTEGER NOT NULL,
        trimmed_sequence INTEGER NOT NULL,
        trimmed_at INTEGER NOT NULL,
        first_segment INTEGER NOT NULL,
        indexed_through INTEGER NOT NULL,
        ids_in_runs INTEGER NOT NULL
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
        marks BLOB NOT NULL
    ) STRICT;
    CREATE TABLE id_log (
        place INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        keys BLOB NOT NULL
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
    CREATE TABLE id_pages (place INTEGER PRIMARY KEY, keys BLOB NOT NULL) STRICT;
    CREATE TABLE id_filters (place INTEGER PRIMARY KEY, words BLOB NOT NULL) STRICT;
";

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory or a file in it cannot be created, locked or flushed.
    #[error(
        "cannot use the data directory {}: {source}; make it a directory that this user may write \
         to, or choose another with --data-dir",
        path.display()
    )]
    Directory {
        /// What could not be used.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another process has the directory.
    #[error(
        "another prelude-bridge uses the data directory {}: stop it, or choose another with \
         --data-dir",
        path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The file is something else.
    #[error(
        "{} is not a log of prelude-bridge: choose another directory with --data-dir",
        path.display()
    )]
    NotALog {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a later release.
    #[error(
        "{} has version {found}, but this release reads version {known} at most: upgrade \
         prelude-bridge",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The version of this release.
        known: i64,
    },
    /// The file was written before the first release.
    #[error(
        "{} has version {found} of before the first release, and this release reads version \
         {known}: choose another directory with --data-dir, or remove this one if its events are \
         no longer needed",
        path.display()
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The version of this release.
        known: i64,
    },
    /// The log contradicts itself.
    #[error("{} is damaged: {reason}; restore it from a backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// SQLite could not read or write it.
    #[error("cannot open {}: {source}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// The system gives no random bytes for the log's identity.
    #[error("cannot make an identity for the log: {0}")]
    Random(#[from] getrandom::Error),
    /// The system gives no thread.
    #[error("cannot start the log's threads: {0}")]
    Thread(io::Error),
}

/// The data directory, which is ours as long as this lives.
pub(super) struct Directory {
    path: PathBuf,
    database: PathBuf,
    /// Unlocked when it is dropped, also by the system when the process is killed.
    _lock: File,
}

impl Directory {
    /// Creates the directory if need be, and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let error = |source| OpenError::Directory {
            path: path.to_owned(),
            source,
        };
        create_directory(path).map_err(error)?;
        let lock = open_private(&path.join(LOCK_FILE)).map_err(error)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let path = path.to_owned();
                return Err(OpenError::InUse { path });
            }
            Err(TryLockError::Error(source)) => return Err(error(source)),
        }
        let database = path.join(DATABASE_FILE);
        // SQLite gives its other files the permissions of this one. It is closed before SQLite opens
        // it: with a file, POSIX systems give up all locks that a process has on it.
        drop(open_private(&database).map_err(error)?);
        sync_directory(path).map_err(error)?;
        Ok(Self {
            path: path.to_owned(),
            database,
            _lock: lock,
        })
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The database file.
    pub(super) fn database(&self) -> &Path {
        &self.database
    }
}

fn create_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.is_dir();
    let missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)?;
    // A directory is durable when the one that it is in was flushed: so for each that is new.
    for directory in missing {
        match directory.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent)?,
            _ => sync_directory(Path::new("."))?,
        }
    }
    Ok(())
}

/// Opens a file for us alone, and creates it where there is none.
pub(super) fn open_private(path: &Path) -> io::Result<File> {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(path)?.sync_all()?;
    }
    Ok(())
}

/// What a log knows of itself right after it was opened.
pub(super) struct State {
    pub(super) log: LogId,
    /// All terms; the last one is that of this run.
    pub(super) terms: Vec<(Sequence, Term)>,
    pub(super) term: Term,
    pub(super) found: Found,
}

/// Opens the index for writing, creates what is missing, and begins a new term.
pub(super) fn open_writer(directory: &Directory) -> Result<(Connection, State), OpenError> {
    let path = directory.database();
    let error = |source| database_error(path, source);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(error)?;
    check_version(&connection, path)?;
    configure_writer(&connection).map_err(error)?;
    let new_log = group::new_log_id()?;
    let term = group::new_term()?;
    create_tables(&mut connection, new_log).map_err(error)?;
    let facts = facts(&connection).map_err(error)?;
    let log = facts.log;
    let found = recovery::look(directory.path(), facts)?;
    let terms = begin_term(&mut connection, found.range.head, term).map_err(error)?;
    // From now on a commit is durable without the index, which follows, and is flushed by the
    // keeper. What it loses in a crash, it gets again from the segments.
    connection
        .pragma_update(None, "synchronous", "NORMAL")
        .map_err(error)?;
    let state = State {
        log,
        terms,
        term,
        found,
    };
    Ok((connection, state))
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

pub(super) fn database_error(path: &Path, source: rusqlite::Error) -> OpenError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenError::NotALog { path },
        Some(ErrorCode::DatabaseCorrupt) => OpenError::Damaged {
            path,
            reason: source.to_string(),
        },
        _ => OpenError::Database { path, source },
    }
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

fn create_tables(connection: &mut Connection, new_log: LogId) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    let tables: i64 =
        transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 {
        transaction.execute_batch(TABLES)?;
        transaction.execute(
            "INSERT INTO log VALUES (1, ?1, 0, 0, 1, 0, 0)",
            [new_log.0.cast_signed()],
        )?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    }
    transaction.commit()
}

/// Reads what the index knows of the log.
pub(super) fn facts(connection: &Connection) -> rusqlite::Result<Facts> {
    let mut facts = connection.query_row(
        "SELECT id, trimmed_sequence, trimmed_at, first_segment, indexed_through FROM log",
        [],
        |row| {
            Ok(Facts {
                log: LogId(row.get::<_, i64>(0)?.cast_unsigned()),
                trimmed: Sequence(row.get::<_, i64>(1)?.cast_unsigned()),
                trimmed_at: UnixMicros(row.get(2)?),
                first_ordinal: row.get::<_, i64>(3)?.cast_unsigned(),
                indexed_through: Sequence(row.get::<_, i64>(4)?.cast_unsigned()),
                sealed: Vec::new(),
            })
        },
    )?;
    facts.sealed = connection
        .prepare(
            "SELECT ordinal, first_sequence, last_sequence, last_at, bytes, marks FROM segments \
             ORDER BY ordinal",
        )?
        .query_map([], |row| {
            let number = |index| row.get::<_, i64>(index).map(i64::cast_unsigned);
            let sequences = (Sequence(number(1)?), Sequence(number(2)?));
            let marks = row.get_ref(5)?.as_blob()?;
            let last_at = UnixMicros(row.get(3)?);
            Ok(Segment::stored(
                number(0)?,
                sequences,
                last_at,
                number(4)?,
                marks,
            ))
        })?
        .collect::<Result<_, _>>()?;
    Ok(facts)
}

/// Begins a term after the head, and returns all of them.
fn begin_term(
    connection: &mut Connection,
    head: Sequence,
    term: Term,
) -> rusqlite::Result<Vec<(Sequence, Term)>> {
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
    let terms = transaction
        .prepare("SELECT first_sequence, term FROM terms")?
        .query_map([], |row| {
            let first = Sequence(row.get::<_, i64>(0)?.cast_unsigned());
            Ok((first, Term(row.get(1)?)))
        })?
        .collect::<Result<_, _>>()?;
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
    /// Writes them. Part of a transaction.
    pub(super) fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached("UPDATE log SET indexed_through = ?1")?
            .execute([self.indexed_through.0.cast_signed()])?;
        for segment in &self.sealed {
            connection
                .prepare_cached("INSERT OR REPLACE INTO segments VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
                .execute(params![
                    segment.ordinal.cast_signed(),
                    segment.first_sequence.0.cast_signed(),
                    segment.last_sequence.0.cast_signed(),
                    segment.last_at.0,
                    segment.end.cast_signed(),
                    segment.marks_to_store(),
                ])?;
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
