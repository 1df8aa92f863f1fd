//! Owns what a server's settings promise: what is refused, and what is a warning. Knows nothing of the table.

use tokio_postgres::{Client, Row};

use crate::{fault::Fault, options::Options};

/// The oldest version that has everything that is used here, as server_version_num.
const VERSION_MIN: i32 = 130_000;

/// For every session. A statement gets less time than its caller waits for it, a lock less than a statement;
/// committing, and with it waiting for a standby, has no limit on the server. Plans are kept as long as the
/// session, and one of a table without rows would read the whole table later.
const SESSION: &str = "SET client_min_messages = warning; \
    SET statement_timeout = '8s'; SET lock_timeout = '5s'; \
    SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = off; \
    SET default_transaction_deferrable = off; SET row_security = off; \
    SET idle_in_transaction_session_timeout = '30s'; SET enable_seqscan = off; \
    SELECT set_config(name, '0', false) FROM pg_settings \
        WHERE name IN ('idle_session_timeout', 'transaction_timeout'); \
    SELECT set_config(name, 'on', false) FROM pg_settings \
        WHERE name = 'synchronous_commit' AND setting <> 'remote_apply'";

const QUESTION: &str = "SELECT current_setting('server_version_num')::int, \
    current_setting('fsync'), current_setting('full_page_writes'), \
    current_setting('synchronous_commit'), current_setting('synchronous_standby_names'), \
    current_setting('data_sync_retry'), pg_is_in_recovery(), \
    current_setting('transaction_read_only'), pg_postmaster_start_time()::text, \
    CASE WHEN pg_is_in_recovery() THEN '' ELSE pg_walfile_name(pg_current_wal_lsn()) END, \
    (current_setting('log_statement') IN ('mod', 'all') \
        OR current_setting('log_min_duration_statement') <> '-1' \
        OR current_setting('log_min_duration_sample') <> '-1') \
        AND current_setting('log_parameter_max_length') <> '0', \
    (SELECT count(*) FROM pg_stat_replication)";

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    version: i32,
    fsync: bool,
    full_page_writes: bool,
    synchronous_commit: String,
    /// `synchronous_standby_names`.
    standby_names: String,
    data_sync_retry: bool,
    in_recovery: bool,
    read_only: bool,
    /// When it was started: two connections with the same are to the same process.
    started: String,
    /// Which of the histories that promotions begin, in hexadecimal digits of a fixed number.
    timeline: String,
    logs_parameters: bool,
    /// Connections of standbys and of backups.
    replicas: i64,
}

/// Makes a session what the statements rely on.
pub(crate) async fn prepare(client: &Client) -> Result<(), Fault> {
    Ok(client.batch_execute(SESSION).await?)
}

impl Server {
    /// Asks it.
    pub(crate) async fn ask(client: &Client) -> Result<Self, Fault> {
        Ok(Self::read(&client.query_one(QUESTION, &[]).await?)?)
    }

    fn read(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let on = |column| Ok::<_, tokio_postgres::Error>(row.try_get::<_, &str>(column)? == "on");
        let text = |column| row.try_get::<_, String>(column);
        Ok(Self {
            version: row.try_get(0)?,
            fsync: on(1)?,
            full_page_writes: on(2)?,
            synchronous_commit: text(3)?,
            standby_names: text(4)?,
            data_sync_retry: on(5)?,
            in_recovery: row.try_get(6)?,
            read_only: on(7)?,
            started: text(8)?,
            timeline: text(9)?.chars().take(8).collect(),
            logs_parameters: row.try_get(10)?,
            replicas: row.try_get(11)?,
        })
    }

    pub(crate) fn timeline(&self) -> &str {
        &self.timeline
    }

    /// Whether both are the same process, in the same history.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.started == other.started && self.timeline == other.timeline
    }

    /// Whether commits wait for a standby, if so for which.
    pub(crate) fn standbys(&self) -> Option<&str> {
        (!self.standby_names.is_empty()).then_some(&*self.standby_names)
    }

    /// Adds the cause that is most likely to an answer that is late.
    pub(crate) fn explain(&self, fault: Fault) -> Fault {
        match (fault, self.standbys()) {
            (Fault::Busy(why), Some(standbys)) => Fault::Busy(format!(
                "{why}; commits wait for a synchronous standby: synchronous_standby_names = \
                 {standbys:?}, and pg_stat_replication lists those that are connected"
            )),
            (fault, _) => fault,
        }
    }

    /// Refuses a server that is no primary: another host may be it.
    pub(crate) fn primary(&self) -> Result<(), Fault> {
        if self.in_recovery {
            Err(Fault::Lost("is a standby".to_owned()))
        } else if self.read_only {
            Err(Fault::Lost(
                "takes no writes (transaction_read_only)".to_owned(),
            ))
        } else {
            Ok(())
        }
    }

    /// Refuses what breaks a promise.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        let problem = if self.version < VERSION_MIN {
            format!(
                "version {} is too old: {} is needed",
                self.version / 10_000,
                VERSION_MIN / 10_000
            )
        } else if !self.fsync {
            "fsync is off, so a crash of the machine destroys the database: ALTER SYSTEM SET fsync \
             = on, then SELECT pg_reload_conf()"
                .to_owned()
        } else if !self.full_page_writes {
            "full_page_writes is off, so a crash of the machine leaves torn pages: ALTER SYSTEM SET \
             full_page_writes = on, then SELECT pg_reload_conf()"
                .to_owned()
        } else if !matches!(&*self.synchronous_commit, "on" | "remote_apply") {
            format!(
                "synchronous_commit stays {} although the session sets it to on: ask whoever runs \
                 the server or the pooler between for sessions of their own",
                self.synchronous_commit
            )
        } else {
            return Ok(());
        };
        Err(Fault::Unusable(problem))
    }

    /// What to do where a synchronous standby is required and there is none. A failover can leave a primary
    /// without one for a while, so it passes for those that are running.
    pub(crate) fn missing_standby(&self, options: &Options) -> Option<String> {
        (options.require_standby && self.standbys().is_none()).then(|| {
            "there is no synchronous standby, and one is required: ALTER SYSTEM SET \
             synchronous_standby_names = 'ANY 1 (*)', then SELECT pg_reload_conf()"
                .to_owned()
        })
    }

    /// What may be a mistake.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        match self.standbys() {
            None => warnings.push(
                "synchronous_standby_names is empty: whoever loses this server's disk loses events \
                 that were acknowledged"
                    .to_owned(),
            ),
            Some(names) if self.replicas == 0 => warnings.push(format!(
                "no standby is connected, and commits wait for one (synchronous_standby_names = \
                 {names:?}): nothing is acknowledged until it is there"
            )),
            Some(_) => {}
        }
        if self.data_sync_retry {
            warnings.push(
                "data_sync_retry is on: after a write that failed, the server may take lost pages \
                 for stored ones"
                    .to_owned(),
            );
        }
        if self.logs_parameters {
            warnings.push(
                "the server writes the parameters of statements into its log, and with them \
                 events: ALTER ROLE … SET log_parameter_max_length = 0"
                    .to_owned(),
            );
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::local;

    fn good() -> Server {
        Server {
            version: 150_018,
            fsync: true,
            full_page_writes: true,
            synchronous_commit: "on".to_owned(),
            standby_names: "ANY 1 (*)".to_owned(),
            data_sync_retry: false,
            in_recovery: false,
            read_only: false,
            started: "now".to_owned(),
            timeline: "00000001".to_owned(),
            logs_parameters: false,
            replicas: 1,
        }
    }

    fn options(require_standby: bool) -> Options {
        Options {
            require_standby,
            ..local(1)
        }
    }

    fn refusal(server: &Server) -> String {
        match server.check() {
            Err(Fault::Unusable(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_server_that_breaks_a_promise_is_refused_with_the_remedy() {
        assert_eq!(good().check(), Ok(()));
        let mut server = good();
        server.synchronous_commit = "remote_apply".to_owned();
        assert_eq!(server.check(), Ok(()));
        type Change = fn(&mut Server);
        let cases: [(Change, &str); 5] = [
            (
                |server| server.version = 129_999,
                "version 12 is too old: 13",
            ),
            (|server| server.fsync = false, "SET fsync = on"),
            (
                |server| server.full_page_writes = false,
                "SET full_page_writes = on",
            ),
            (
                |server| server.synchronous_commit = "local".into(),
                "stays local",
            ),
            (
                |server| server.synchronous_commit = "remote_write".into(),
                "stays remote_write",
            ),
        ];
        for (change, words) in cases {
            let mut server = good();
            change(&mut server);
            let said = refusal(&server);
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn a_server_without_a_standby_is_a_warning_where_none_is_required() {
        let mut server = good();
        assert_eq!(server.warnings(), [""; 0]);
        server.standby_names.clear();
        assert_eq!(server.check(), Ok(()));
        assert_eq!(server.missing_standby(&options(false)), None);
        let missing = server.missing_standby(&options(true)).unwrap();
        assert!(
            missing.contains("SET synchronous_standby_names"),
            "{missing}"
        );
        let said = server.warnings();
        assert!(
            said.len() == 1 && said[0].contains("loses events"),
            "{said:?}"
        );
        server.standby_names = "one".to_owned();
        server.replicas = 0;
        let said = server.warnings();
        assert!(
            said.len() == 1 && said[0].contains("until it is there"),
            "{said:?}"
        );
    }

    #[test]
    fn a_standby_is_no_primary_and_neither_is_who_takes_no_writes() {
        let mut server = good();
        assert_eq!(server.primary(), Ok(()));
        server.read_only = true;
        assert!(matches!(server.primary(), Err(Fault::Lost(_))));
        server.in_recovery = true;
        assert_eq!(
            server.primary(),
            Err(Fault::Lost("is a standby".to_owned()))
        );
    }
}
