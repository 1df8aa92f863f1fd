//! Owns reading: a few connections of its own, which never wait for the writer nor it for them, and
//! the promise that what is damaged or missing is said and never skipped.

use std::{
    fs::File,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::Semaphore;

use super::schema::{self, Directory};
use crate::{
    event::{Sequence, UnixMicros},
    log::{Block, Range, ReadError},
};

/// Connections for reading, each used by one reader at a time.
pub(super) struct Readers {
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
    /// Last, so that it is closed after the connections.
    _database_file: Arc<File>,
}

impl Readers {
    pub(super) fn open(directory: &Directory, count: usize) -> rusqlite::Result<Arc<Self>> {
        let count = count.max(1);
        let idle = (0..count)
            .map(|_| schema::open_reader(directory.database()))
            .collect::<Result<_, _>>()?;
        Ok(Arc::new(Self {
            idle: Mutex::new(idle),
            permits: Arc::new(Semaphore::new(count)),
            _database_file: directory.database_file(),
        }))
    }

    /// Reads blocks as [`crate::log::Log::read`] says, none of them after the head of `range`: what
    /// is newer has not been passed to the tail yet.
    pub(super) async fn read(
        self: &Arc<Self>,
        range: Range,
        after: Sequence,
        bytes_max: usize,
    ) -> Result<Vec<Arc<Block>>, ReadError> {
        if !range.reaches(after) {
            let earliest = range.earliest;
            return Err(ReadError::Expired { earliest });
        }
        if after >= range.head {
            return Ok(Vec::new());
        }
        self.run(move |connection| read(connection, &range, after, bytes_max))
            .await
    }

    /// Finds a place by its time as [`crate::log::Log::seek`] says.
    pub(super) async fn seek(
        self: &Arc<Self>,
        range: Range,
        at: UnixMicros,
    ) -> Result<Sequence, ReadError> {
        // The ends are known, and are what most ask for.
        if range.head_at.is_none_or(|head_at| head_at < at) {
            return Ok(range.head);
        }
        if range
            .earliest_at
            .is_none_or(|earliest_at| earliest_at >= at)
        {
            return Ok(range.earliest.before());
        }
        self.run(move |connection| seek(connection, &range, at))
            .await
    }

    /// Runs a query on an idle connection, on a thread that may block.
    async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        query: impl FnOnce(&mut Connection) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|_| failed("no reader is left"))?;
        let readers = Arc::clone(self);
        let running = tokio::task::spawn_blocking(move || {
            let connection = readers.idle().pop();
            let mut connection = connection.ok_or_else(|| failed("no reader is left"))?;
            let answer = query(&mut connection);
            readers.idle().push(connection);
            drop(permit);
            answer
        });
        running
            .await
            .map_err(|_| failed("the reader was interrupted"))?
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "so that it can be given to map_err"
)]
fn failed(reason: impl ToString) -> ReadError {
    ReadError::Failed(reason.to_string().into())
}

fn read(
    connection: &mut Connection,
    range: &Range,
    after: Sequence,
    bytes_max: usize,
) -> Result<Vec<Arc<Block>>, ReadError> {
    // One snapshot for all statements: retention may go on meanwhile.
    let transaction = connection.transaction().map_err(failed)?;
    let rows = rows_to_read(&transaction, range, after, bytes_max).map_err(failed)?;
    let Some(&(_, first)) = rows.first() else {
        // Retention has removed everything up to the head that was asked for.
        let earliest = range.head.plus(1);
        return Err(ReadError::Expired { earliest });
    };
    if first > after.plus(1) {
        return Err(ReadError::Expired { earliest: first });
    }
    let mut blocks: Vec<Arc<Block>> = Vec::with_capacity(rows.len());
    let mut data = transaction
        .prepare_cached("SELECT data FROM blocks WHERE last_sequence = ?1")
        .map_err(failed)?;
    for (last, first) in rows {
        if let Some(before) = blocks.last()
            && before.last_sequence().plus(1) != first
        {
            let missing = before.last_sequence().plus(1);
            return Err(failed(format!(
                "events {missing} to {} are missing",
                first.before()
            )));
        }
        let bytes = data
            .query_row([last.0.cast_signed()], |row| {
                Ok(Bytes::copy_from_slice(row.get_ref(0)?.as_blob()?))
            })
            .map_err(failed)?;
        let block = Block::parse(bytes)
            .map_err(|damaged| failed(format!("events {first} to {last}: {damaged}")))?;
        if (block.first_sequence(), block.last_sequence()) != (first, last) {
            return Err(failed(format!(
                "events {first} to {last} are not in their place"
            )));
        }
        blocks.push(Arc::new(block));
    }
    Ok(blocks)
}

/// The last and the first event of each block that fits.
fn rows_to_read(
    connection: &Connection,
    range: &Range,
    after: Sequence,
    bytes_max: usize,
) -> rusqlite::Result<Vec<(Sequence, Sequence)>> {
    let mut statement = connection.prepare_cached(
        "SELECT last_sequence, first_sequence, length(data) FROM blocks \
         WHERE last_sequence > ?1 AND last_sequence <= ?2 ORDER BY last_sequence",
    )?;
    let mut found = statement.query(params![after.0.cast_signed(), range.head.0.cast_signed()])?;
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while let Some(row) = found.next()? {
        let last = Sequence(row.get::<_, i64>(0)?.cast_unsigned());
        let first = Sequence(row.get::<_, i64>(1)?.cast_unsigned());
        bytes += usize::try_from(row.get::<_, i64>(2)?).unwrap_or(usize::MAX);
        if !rows.is_empty() && bytes > bytes_max {
            break;
        }
        rows.push((last, first));
    }
    Ok(rows)
}

/// A search by halves over the sequence numbers: the times ascend with them, so they need no index
/// that each commit would have to write.
fn seek(connection: &mut Connection, range: &Range, at: UnixMicros) -> Result<Sequence, ReadError> {
    let transaction = connection.transaction().map_err(failed)?;
    let mut statement = transaction
        .prepare_cached(
            "SELECT last_sequence, first_sequence, received_at FROM blocks \
             WHERE last_sequence >= ?1 AND last_sequence <= ?2 ORDER BY last_sequence LIMIT 1",
        )
        .map_err(failed)?;
    // The place is in `low..=high`: after event `low` at the earliest, after the head at the latest.
    let (mut low, mut high) = (range.earliest.before(), range.head);
    while low < high {
        let middle = Sequence(low.0 + (high.0 - low.0) / 2);
        let block = statement
            .query_row(
                params![middle.plus(1).0.cast_signed(), range.head.0.cast_signed()],
                |row| {
                    let last = Sequence(row.get::<_, i64>(0)?.cast_unsigned());
                    let first = Sequence(row.get::<_, i64>(1)?.cast_unsigned());
                    Ok((last, first, UnixMicros(row.get(2)?)))
                },
            )
            .optional()
            .map_err(failed)?;
        match block {
            Some((_, first, received_at)) if received_at >= at => {
                if first.before() > middle {
                    // Retention has passed the middle meanwhile: this is the oldest block.
                    return Ok(first.before());
                }
                high = first.before();
            }
            Some((last, _, _)) => low = last,
            None => low = high,
        }
    }
    Ok(low)
}
