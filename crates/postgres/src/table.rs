//! Owns the table: how it is created, what it has to be, and every statement on it. Knows nothing of
//! connections and of when the statements run.

use prelude_bridge_log::sequencer::Position;
use tokio_postgres::{Client, Row, Statement, types::Type};

use crate::{fault::Fault, options::Options};

/// The comment of the table, by which a table of another version, or of something else, is recognised.
const COMMENT: &str = "prelude-bridge log, version 1";

const COLUMNS: &str = "at timestamp with time zone, commit bytea, position bigint";

/// How many bytes are read at once, and how many rows at most. The row that reaches this is read whole.
const READ_BYTES: usize = 4 << 20;
const READ_ROWS: usize = 1024;

/// How many rows are deleted in one transaction.
pub(crate) const DELETE_ROWS: u64 = 64;

/// A transaction whose commit waits for the standby, where there is one, and with it for every transaction
/// that was visible before.
const CONFIRM: &str = "(SELECT pg_logical_emit_message(true, 'prelude-bridge', '')::text \
    WHERE current_setting('synchronous_standby_names') <> '')";

/// A position as the table has it.
pub(crate) fn number(position: Position) -> i64 {
    i64::try_from(position.0).unwrap_or(i64::MAX)
}

/// A position that the table has.
pub(crate) fn position(number: i64) -> Position {
    Position(u64::try_from(number).unwrap_or_default())
}

/// The names of the table and of its channel.
pub(crate) struct Table {
    quoted: String,
    name: String,
}

/// The statements of the session that writes.
pub(crate) struct Writing {
    /// Of position and commit; one row when it was stored.
    pub(crate) insert: Statement,
    /// Of channel and position.
    pub(crate) announce: Statement,
}

/// The statements of the session that asks.
pub(crate) struct Asking {
    /// The commit at a position.
    pub(crate) get: Statement,
    /// The first position from one on that may be it, and the last; confirms all of them.
    pub(crate) ends: Statement,
    /// Of a position behind the one that is kept, a position that may be the first, and an age in seconds:
    /// the positions of the rows that were deleted.
    pub(crate) delete: Statement,
}

/// The statements of the session that reads.
pub(crate) struct Reading {
    /// The rows from a position to another, as many as are read at once.
    pub(crate) rows: Statement,
    /// The last position.
    pub(crate) last: Statement,
}

impl Table {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            quoted: options.quoted_table(),
            name: options.table.clone(),
        }
    }

    /// What `NOTIFY` and `LISTEN` call it.
    pub(crate) fn channel(&self) -> &str {
        &self.name
    }

    pub(crate) fn listen(&self) -> String {
        format!("LISTEN \"{}\"", self.name)
    }

    pub(crate) async fn writing(&self, client: &Client) -> Result<Writing, Fault> {
        let table = &self.quoted;
        // The condition sees only what is committed, so never a row whose predecessor is not. Whoever
        // inserts the same position at the same time is waited for.
        let insert = format!(
            "INSERT INTO {table} (position, commit) SELECT $1, $2 \
             WHERE $1 = 1 + coalesce((SELECT max(position) FROM {table}), 0) \
             ON CONFLICT (position) DO NOTHING"
        );
        Ok(Writing {
            insert: client
                .prepare_typed(&insert, &[Type::INT8, Type::BYTEA])
                .await?,
            announce: client
                .prepare_typed("SELECT pg_notify($1, $2)", &[Type::TEXT, Type::TEXT])
                .await?,
        })
    }

    pub(crate) async fn asking(&self, client: &Client) -> Result<Asking, Fault> {
        let table = &self.quoted;
        let get = format!("SELECT commit FROM {table} WHERE position = $1");
        let ends = format!(
            "SELECT (SELECT min(position) FROM {table} WHERE position >= $1), \
             (SELECT max(position) FROM {table}), {CONFIRM}"
        );
        // Whether the rows are gone for good does not matter, so no flush is waited for. Rows are locked and
        // deleted in their order, and never while others delete the ones before: no hole is ever visible.
        let delete = format!(
            "DELETE FROM {table} WHERE position IN (SELECT position FROM \
             (SELECT position, at FROM {table} WHERE position >= $2 AND position < \
             least($1, (SELECT max(position) FROM {table})) ORDER BY position LIMIT {DELETE_ROWS}) \
             AS oldest, (SELECT set_config('synchronous_commit', 'off', true)) AS unsynchronised \
             WHERE at <= now() - make_interval(secs => $3)) RETURNING position"
        );
        Ok(Asking {
            get: client.prepare_typed(&get, &[Type::INT8]).await?,
            ends: client.prepare_typed(&ends, &[Type::INT8]).await?,
            delete: client
                .prepare_typed(&delete, &[Type::INT8, Type::INT8, Type::FLOAT8])
                .await?,
        })
    }

    pub(crate) async fn reading(&self, client: &Client) -> Result<Reading, Fault> {
        let table = &self.quoted;
        // The size of a commit is known without reading it.
        let rows = format!(
            "SELECT position, commit FROM (SELECT position, commit, \
             sum(octet_length(commit)) OVER (ORDER BY position) - octet_length(commit) AS before \
             FROM (SELECT position, commit FROM {table} WHERE position BETWEEN $1 AND $2 \
             ORDER BY position LIMIT {READ_ROWS}) AS next) AS sized \
             WHERE before < {READ_BYTES} ORDER BY position"
        );
        let last = format!("SELECT coalesce(max(position), 0) FROM {table}");
        Ok(Reading {
            rows: client
                .prepare_typed(&rows, &[Type::INT8, Type::INT8])
                .await?,
            last: client.prepare(&last).await?,
        })
    }

    /// Checks the table, and before that creates it if it is missing and may be: at the first time only.
    pub(crate) async fn open(
        &self,
        client: &Client,
        user: &str,
        is_first: bool,
        create: bool,
    ) -> Result<(), Fault> {
        if self.check(client, user).await? {
            return Ok(());
        }
        if is_first && !create {
            let problem = format!(
                "there is no table {}: check its name and the database",
                self.name
            );
            return Err(Fault::Unusable(problem));
        }
        if !is_first {
            let problem = format!(
                "the table {} is gone: restore it from a backup, or start the bridge anew for a new log",
                self.name
            );
            return Err(Fault::Unusable(problem));
        }
        self.create(client, user).await?;
        self.check(client, user).await.map(|_| ())
    }

    /// Whether there is one. Refuses another than ours.
    async fn check(&self, client: &Client, user: &str) -> Result<bool, Fault> {
        let question = "SELECT relkind = 'r' AND relpersistence = 'p', obj_description(oid, 'pg_class'), \
            (SELECT string_agg(attname || ' ' || format_type(atttypid, NULL), ', ' ORDER BY attname) \
             FROM pg_attribute WHERE attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped), \
            (SELECT string_agg(privilege, ', ') FROM unnest(ARRAY['SELECT', 'INSERT', 'DELETE']) \
             AS privilege WHERE NOT has_table_privilege(oid, privilege)), \
            EXISTS (SELECT FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0] \
             WHERE indrelid = pg_class.oid AND attname = 'position' AND indnkeyatts = 1 \
             AND indisunique AND indisvalid AND indimmediate AND indpred IS NULL) \
            FROM pg_class WHERE oid = to_regclass($1)";
        let row = client.query_opt(question, &[&self.quoted]).await?;
        let Some(row) = row else { return Ok(false) };
        let name = &self.name;
        let problem = self.problem(&row, user).map_err(Fault::from)?;
        problem.map_or(Ok(true), |problem| {
            Err(Fault::Unusable(format!("the table {name} {problem}")))
        })
    }

    fn problem(&self, row: &Row, user: &str) -> Result<Option<String>, tokio_postgres::Error> {
        let name = &self.name;
        let durable: bool = row.try_get(0)?;
        let comment: Option<&str> = row.try_get(1)?;
        let columns: Option<&str> = row.try_get(2)?;
        let missing: Option<&str> = row.try_get(3)?;
        let has_key: bool = row.try_get(4)?;
        Ok(if comment != Some(COMMENT) {
            let comment = comment.unwrap_or_default();
            Some(format!(
                "has the comment {comment:?}, and not {COMMENT:?}: it is another version's or \
                 something else's, so name another table, or run the version that it belongs to"
            ))
        } else if !durable {
            Some(format!(
                "is not an ordinary logged table, and a crash would empty it: ALTER TABLE {name} SET LOGGED"
            ))
        } else if columns != Some(COLUMNS) {
            Some(format!(
                "has the columns {:?}, and not {COLUMNS:?}: restore it from a backup",
                columns.unwrap_or_default()
            ))
        } else if !has_key {
            Some(format!(
                "has no primary key: ALTER TABLE {name} ADD PRIMARY KEY (position)"
            ))
        } else {
            missing.map(|missing| {
                format!("may not be used by the role {user}: GRANT {missing} ON {name} TO {user}")
            })
        })
    }

    /// Creates it, at most once when several bridges start at the same time.
    async fn create(&self, client: &Client, user: &str) -> Result<(), Fault> {
        let created = client.batch_execute(&creation(&self.quoted)).await;
        created.map_err(|error| match Fault::from(error) {
            Fault::Unusable(why) => Fault::Unusable(format!(
                "the table {} is missing, and the role {user} cannot create it: {why}; create it \
                 as its owner by the statements in docs/postgresql.md",
                self.name
            )),
            fault => fault,
        })
    }
}

/// Compression would cost time and gain little: commits may be compressed already. Vacuum comes after a
/// fiftieth of the rows was deleted, not after a fifth, so that the table stays close to its contents.
fn creation(table: &str) -> String {
    format!(
        "BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('{COMMENT}', 0)); \
         CREATE TABLE IF NOT EXISTS {table} (\
         position bigint PRIMARY KEY CHECK (position > 0), \
         at timestamptz NOT NULL DEFAULT now(), \
         commit bytea NOT NULL) \
         WITH (autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_scale_factor = 0.02); \
         ALTER TABLE {table} ALTER COLUMN commit SET STORAGE EXTERNAL; \
         COMMENT ON TABLE {table} IS '{COMMENT}'; COMMIT"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_the_statements_that_create_the_table() {
        let page = include_str!("../../../docs/postgresql.md");
        let flat = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let page = flat(page);
        let statements = creation("prelude_bridge");
        for statement in statements
            .split("; ")
            .filter(|it| !it.starts_with("SELECT"))
        {
            if !matches!(statement, "BEGIN" | "COMMIT") {
                assert!(page.contains(&flat(statement)), "{statement}");
            }
        }
    }

    #[test]
    fn positions_beyond_what_a_row_can_have_are_no_other_positions() {
        assert_eq!(number(Position(7)), 7);
        assert_eq!(number(Position(u64::MAX)), i64::MAX);
        assert_eq!(position(-1), Position(0));
        assert_eq!(position(9), Position(9));
    }
}
