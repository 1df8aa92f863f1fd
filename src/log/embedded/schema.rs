//! Owns what is on the disk: the data directory, its lock, the database file, its tables and their
//! version, and what a log finds out about itself when it is opened. Opening looks at the ends of
//! the tables only, so it takes the same time however large the log is.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, params};

use crate::{
    event::{LogId, Sequence, Term, UnixMicros},
    log::{Block, Range, group},
};

/// The database in the data directory.
pub(super) const DATABASE_FILE: &str = "log.sqlite3";
/// Locked while a process uses the directory.
pub(super) const LOCK_FILE: &str = "lock";
/// Marks a SQLite file as a log of this program: "PBLG".
const APPLICATION_ID: i64 = 0x5042_4c47;
/// The version of the tables that this release reads and writes.
const SCHEMA_VERSION: i64 = 2;
/// Pages of 8 KiB: the commit of one event writes two of them, and that of a thousand a hundred.
/// With 4 KiB the latter takes longer, as each page is two system calls; with 16 KiB the former
/// writes more than it saves.
pub(super) const PAGE_BYTES: u64 = 8192;
/// What the writer's page cache may take. The upper levels of the tables stay in it.
const WRITER_CACHE_KIB: i64 = 32 * 1024;
/// How long a connection waits for another one's short locks.
const BUSY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// `blocks.data` is a [`Block`]; the other columns repeat what its header says.
/// `log` has one row. `trimmed_…` is the newest event that retention has removed, with its time.
/// The others belong to `ids`. A row of `id_log` has the new keys of a commit; those up to
/// `ids_in_runs` are in a run as well. The pages and filters of a run have its id in the upper half of
/// their place.
pub(super) const TABLES: &str = "
    CREATE TABLE log (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        id INTEGER NOT NULL,
        trimmed_sequence INTEGER NOT NULL,
        trimmed_at INTEGER NOT NULL,
        ids_in_runs INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE terms (
        first_sequence INTEGER PRIMARY KEY,
        term INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE blocks (
        last_sequence INTEGER PRIMARY KEY,
        first_sequence INTEGER NOT NULL,
        received_at INTEGER NOT NULL,
        data BLOB NOT NULL
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
    database: PathBuf,
    database_file: Arc<File>,
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
        // SQLite gives its other files the permissions of this one.
        let database_file = open_private(&database).map_err(error)?;
        sync_directory(path).map_err(error)?;
        Ok(Self {
            database,
            database_file: Arc::new(database_file),
            _lock: lock,
        })
    }

    /// The database file.
    pub(super) fn database(&self) -> &Path {
        &self.database
    }

    /// The same, open. Must not be closed while a connection is open: with it, POSIX systems give up
    /// all locks that this process has on the file, those of SQLite too.
    pub(super) fn database_file(&self) -> Arc<File> {
        Arc::clone(&self.database_file)
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
fn open_private(path: &Path) -> io::Result<File> {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn sync_directory(path: &Path) -> io::Result<()> {
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
    pub(super) range: Range,
    /// The time of the newest event that ever was.
    pub(super) last_at: UnixMicros,
}

/// Opens the database for writing, creates what is missing, and begins a new term.
pub(super) fn open_writer(
    directory: &Directory,
    wal_file_bytes_max: u64,
) -> Result<(Connection, State), OpenError> {
    let path = directory.database();
    let database_error = |source| database_error(path, source);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(database_error)?;
    check_version(&connection, path)?;
    configure_writer(&connection, wal_file_bytes_max).map_err(database_error)?;
    let new_log = group::new_log_id()?;
    let new_term = group::new_term()?;
    create_tables(&mut connection, new_log).map_err(database_error)?;
    let state = begin_term(&mut connection, new_term).map_err(database_error)?;
    check_ends(&connection, state.range)
        .map_err(database_error)?
        .map_err(|reason| OpenError::Damaged {
            path: path.to_owned(),
            reason,
        })?;
    Ok((connection, state))
}

/// Opens one more connection for checkpoints.
pub(super) fn open_checkpointer(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    // A checkpoint makes the database durable before the WAL is given up only if it flushes.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.busy_timeout(std::time::Duration::ZERO)?;
    Ok(connection)
}

/// Opens one more connection for reading.
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

fn configure_writer(connection: &Connection, wal_file_bytes_max: u64) -> rusqlite::Result<()> {
    let wal_file_bytes_max = i64::try_from(wal_file_bytes_max).unwrap_or(i64::MAX);
    connection.pragma_update(None, "page_size", PAGE_BYTES.cast_signed())?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    // Flush the WAL in every commit: this is the promise behind a 200.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    // A WAL that was overgrown is cut when it is begun anew, by a commit that has to wait for it.
    // Otherwise it is written over, which is faster than making a file longer.
    let limit = wal_file_bytes_max;
    connection.pragma_update_and_check(None, "journal_size_limit", limit, |_| Ok(()))?;
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
            "INSERT INTO log VALUES (1, ?1, 0, 0, 0)",
            [new_log.0.cast_signed()],
        )?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    }
    transaction.commit()
}

/// Reads the ends of the log, and begins a term after them.
fn begin_term(connection: &mut Connection, term: Term) -> rusqlite::Result<State> {
    let transaction = connection.transaction()?;
    let (log, trimmed, trimmed_at) = transaction.query_row(
        "SELECT id, trimmed_sequence, trimmed_at FROM log",
        [],
        |row| {
            Ok((
                LogId(row.get::<_, i64>(0)?.cast_unsigned()),
                Sequence(row.get::<_, i64>(1)?.cast_unsigned()),
                UnixMicros(row.get(2)?),
            ))
        },
    )?;
    let end = |sql| {
        transaction
            .query_row(sql, [], |row| {
                let sequence = Sequence(row.get::<_, i64>(0)?.cast_unsigned());
                Ok((sequence, UnixMicros(row.get(1)?)))
            })
            .optional()
    };
    let first = end("SELECT first_sequence, received_at FROM blocks ORDER BY last_sequence")?;
    let last = end("SELECT last_sequence, received_at FROM blocks ORDER BY last_sequence DESC")?;
    let head = last.map_or(trimmed, |(sequence, _)| sequence);
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
    Ok(State {
        log,
        terms,
        term,
        range: Range {
            earliest: trimmed.plus(1),
            head,
            earliest_at: first.map(|(_, at)| at),
            head_at: last.map(|(_, at)| at),
        },
        last_at: last.map_or(trimmed_at, |(_, at)| at),
    })
}

/// Checks that the first and the last block are what and where they should be. The blocks between
/// them are checked when they are read.
pub(super) fn check_ends(
    connection: &Connection,
    range: Range,
) -> rusqlite::Result<Result<(), String>> {
    for order in ["ASC", "DESC"] {
        let end = connection
            .query_row(
                &format!(
                    "SELECT first_sequence, last_sequence, data FROM blocks \
                     ORDER BY last_sequence {order} LIMIT 1"
                ),
                [],
                |row| {
                    let first = Sequence(row.get::<_, i64>(0)?.cast_unsigned());
                    let last = Sequence(row.get::<_, i64>(1)?.cast_unsigned());
                    Ok((first, last, row.get::<_, Vec<u8>>(2)?))
                },
            )
            .optional()?;
        let Some((first, last, data)) = end else {
            break;
        };
        match Block::parse(Bytes::from(data)) {
            Ok(block) if (block.first_sequence(), block.last_sequence()) == (first, last) => {}
            Ok(_) => {
                return Ok(Err(format!(
                    "events {first} to {last} are not in their place"
                )));
            }
            Err(damaged) => return Ok(Err(format!("events {first} to {last}: {damaged}"))),
        }
        if order == "ASC" && first != range.earliest {
            let Range { earliest, .. } = range;
            return Ok(Err(format!("it begins with event {first}, not {earliest}")));
        }
    }
    Ok(Ok(()))
}
