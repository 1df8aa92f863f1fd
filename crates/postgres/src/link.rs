//! Owns the connections to one primary: three to the same server process, of which one writes, one asks, and
//! one listens, reads, and finds out whether the server is alive. Knows nothing of what a table is made of,
//! and of how the primary is found.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::poll_immediate;
use prelude_bridge_log::sequencer::{Ends, Outage, Outcome, Position};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    Patience,
    fault::Fault,
    options::Options,
    server::Server,
    session::{Session, confirm},
    table::{self, Asking, DELETE_ROWS, Reading, Table, Writing},
};

/// How often the server is asked whether it is alive, what its settings are, and what the last position is,
/// which finds a commit whose announcement was lost.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// Sessions on one server.
pub(crate) struct Sessions {
    pub(crate) writer: Session,
    pub(crate) asker: Session,
    pub(crate) listener: Session,
    pub(crate) confirmed: watch::Sender<i64>,
}

/// The connections to a primary.
pub(crate) struct Link {
    name: Arc<str>,
    patience: Patience,
    pub(crate) host: String,
    table: Table,
    server: Server,
    writer: Arc<Session>,
    writing: Arc<Writing>,
    asker: Arc<Session>,
    asking: Arc<Asking>,
    listener: Arc<Session>,
    reading: Reading,
    /// Everything up to this position is confirmed.
    confirmed: watch::Sender<i64>,
    /// The last position that was seen; it may be unconfirmed.
    seen: watch::Sender<i64>,
    /// Everything up to this position was removed.
    removed: AtomicI64,
    ended: watch::Sender<Option<Fault>>,
}

impl Link {
    /// Makes sessions on one server ready for the statements.
    pub(crate) async fn new(
        name: Arc<str>,
        patience: Patience,
        host: String,
        table: Table,
        server: Server,
        sessions: Sessions,
    ) -> Result<Self, Fault> {
        let Sessions {
            writer,
            asker,
            listener,
            confirmed,
        } = sessions;
        let prepared = async {
            listener.client.batch_execute(&table.listen()).await?;
            tokio::try_join!(
                table.writing(&writer.client),
                table.asking(&asker.client),
                table.reading(&listener.client),
            )
        };
        let (writing, asking, reading) = within(patience.silence, prepared).await?;
        Ok(Link {
            name,
            patience,
            host,
            table,
            server,
            writer: Arc::new(writer),
            writing: Arc::new(writing),
            asker: Arc::new(asker),
            asking: Arc::new(asking),
            listener: Arc::new(listener),
            reading,
            confirmed,
            seen: watch::channel(0).0,
            removed: AtomicI64::new(0),
            ended: watch::channel(None).0,
        })
    }

    /// Stores a commit, confirms it, and announces it to the others.
    pub(crate) async fn append(&self, position: i64, commit: Bytes) -> Result<Outcome, Outage> {
        let writing = Arc::clone(&self.writing);
        let channel = self.table.channel().to_owned();
        let confirmed = self.confirmed.clone();
        let answer = self
            .writer
            .alone(self.patience.append, move |session| async move {
                let warnings = session.warnings();
                let client = &session.client;
                let rows = client
                    .execute(&writing.insert, &[&position, &&*commit])
                    .await?;
                if session.warnings() != warnings {
                    return Err(cancelled());
                }
                if rows == 0 {
                    return Ok(Outcome::Refused);
                }
                confirm(&confirmed, position);
                // Sent before the next statement, but not waited for: the others look by themselves too.
                let session = Arc::clone(&session);
                let mut announcing = Box::pin(async move {
                    let position = position.to_string();
                    session
                        .client
                        .execute(&writing.announce, &[&channel, &position])
                        .await
                });
                if poll_immediate(&mut announcing).await.is_none() {
                    tokio::spawn(announcing);
                }
                Ok(Outcome::Won)
            });
        answer.await.map_err(|fault| self.outage(fault))
    }

    /// The commit at a position, once it is confirmed.
    pub(crate) async fn get(&self, position: i64) -> Result<Option<Bytes>, Outage> {
        let asking = Arc::clone(&self.asking);
        let confirmed = self.confirmed.clone();
        let answer = self
            .asker
            .alone(self.patience.answer, move |session| async move {
                let found = session.client.query_opt(&asking.get, &[&position]).await?;
                let Some(row) = found else { return Ok(None) };
                let commit = Bytes::copy_from_slice(row.try_get(0)?);
                if *confirmed.borrow() < position {
                    ends(&session, &asking, &confirmed, position).await?;
                }
                Ok(Some(commit))
            });
        answer.await.map_err(|fault| self.outage(fault))
    }

    /// The ends of the sequence, all of it confirmed.
    pub(crate) async fn ends(&self) -> Result<Ends, Outage> {
        let (first, last) = self.confirm().await?;
        Ok(Ends {
            first: table::position(first),
            last: table::position(last),
        })
    }

    /// Confirms every commit that is visible now.
    pub(crate) async fn confirm(&self) -> Result<(i64, i64), Outage> {
        let asking = Arc::clone(&self.asking);
        let confirmed = self.confirmed.clone();
        let from = self.removed.load(Ordering::Relaxed);
        let answer = self
            .asker
            .alone(self.patience.answer, move |session| async move {
                ends(&session, &asking, &confirmed, from).await
            });
        answer.await.map_err(|fault| self.outage(fault))
    }

    /// Removes the commits before a position that are old enough, apart from the last one.
    pub(crate) async fn trim(&self, before: i64, age: Duration) -> Result<(), Outage> {
        loop {
            let asking = Arc::clone(&self.asking);
            let (from, age) = (self.removed.load(Ordering::Relaxed), age.as_secs_f64());
            let answer = self
                .asker
                .alone(self.patience.answer, move |session| async move {
                    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
                        [&before, &from, &age];
                    let rows = session.client.query(&asking.delete, &parameters).await?;
                    let positions: Result<Vec<i64>, _> =
                        rows.iter().map(|row| row.try_get(0)).collect();
                    Ok(positions?)
                });
            let removed = answer.await.map_err(|fault| self.outage(fault))?;
            if let Some(last) = removed.iter().max() {
                self.removed.fetch_max(*last, Ordering::Relaxed);
            }
            if (removed.len() as u64) < DELETE_ROWS {
                return Ok(());
            }
        }
    }

    /// The commits from a position to another, as many as are read at once.
    pub(crate) async fn read(&self, from: i64, to: i64) -> Result<Vec<(i64, Bytes)>, Outage> {
        let reading = async {
            let _turn = self.listener.turn.lock().await;
            let rows = self
                .listener
                .client
                .query(&self.reading.rows, &[&from, &to])
                .await?;
            let commits: Result<Vec<_>, tokio_postgres::Error> = rows
                .iter()
                .map(|row| Ok((row.try_get(0)?, Bytes::copy_from_slice(row.try_get(1)?))))
                .collect();
            Ok(commits?)
        };
        let read = within(self.patience.answer, reading).await;
        read.map_err(|fault| self.outage(fault))
    }

    /// Up to which position everything is confirmed.
    pub(crate) fn confirmed(&self) -> watch::Receiver<i64> {
        self.confirmed.subscribe()
    }

    /// The last position that was seen.
    pub(crate) fn seen(&self) -> watch::Receiver<i64> {
        self.seen.subscribe()
    }

    /// Returns when the connections are lost, with the reason.
    pub(crate) async fn ended(&self) -> Outage {
        let mut ended = self.ended.subscribe();
        match ended.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(fault)) => fault.outage(&self.name),
            _ => unwanted().outage(&self.name),
        }
    }

    /// Something about what the table contains, for callers.
    pub(crate) fn damaged(&self, problem: &str) -> Outage {
        Fault::Unusable(problem.to_owned()).outage(&self.name)
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        self.server.warnings()
    }

    /// A fault for callers: with the cause that is most likely when an answer is late, and with the reason
    /// why the connections were ended when that is why there is none.
    fn outage(&self, fault: Fault) -> Outage {
        let fault = match (&fault, &*self.ended.borrow()) {
            (Fault::Lost(_), Some(reason)) => reason.clone(),
            _ => self.server.explain(fault),
        };
        fault.outage(&self.name)
    }

    /// Ends the connections: every call that waits for an answer fails.
    pub(crate) fn end(&self, fault: Fault) {
        self.ended.send_replace(Some(fault));
        for session in [&self.writer, &self.asker, &self.listener] {
            session.close();
        }
    }

    /// Returns when one of the connections is lost, the server does not answer, or has become another one or
    /// one that is refused.
    pub(crate) async fn watch_over(&self, options: &Options) -> Fault {
        let mut server = self.server.clone();
        loop {
            tokio::select! {
                fault = self.writer.ended() => return fault,
                fault = self.asker.ended() => return fault,
                fault = self.listener.ended() => return fault,
                () = sleep(HEARTBEAT) => {}
            }
            match within(self.patience.silence, self.beat()).await {
                Err(fault) => return fault,
                Ok(now) => {
                    let checked = now.primary().and_then(|()| now.check());
                    if let Err(fault) = checked {
                        return fault;
                    }
                    if let Some(missing) = now.missing_standby(options) {
                        return Fault::Busy(missing);
                    }
                    if !now.is(&server) {
                        return Fault::Lost("another server answers".to_owned());
                    }
                    server = now;
                }
            }
        }
    }

    async fn beat(&self) -> Result<Server, Fault> {
        // A large commit on a slow network is no silence; reading it has a limit of its own.
        let Ok(_turn) = self.listener.turn.try_lock() else {
            return Ok(self.server.clone());
        };
        let client = &self.listener.client;
        let last = client
            .query_one(&self.reading.last, &[])
            .await?
            .try_get(0)?;
        self.seen
            .send_if_modified(|seen| std::mem::replace(seen, last) != last);
        Server::ask(client).await
    }
}

/// The first position, not before one that may be it, and the last; all of it is confirmed.
async fn ends(
    session: &Session,
    asking: &Asking,
    confirmed: &watch::Sender<i64>,
    from: i64,
) -> Result<(i64, i64), Fault> {
    let warnings = session.warnings();
    let row = session.client.query_one(&asking.ends, &[&from]).await?;
    if session.warnings() != warnings {
        return Err(cancelled());
    }
    let last = row.try_get::<_, Option<i64>>(1)?.unwrap_or(0);
    let first = row.try_get::<_, Option<i64>>(0)?.unwrap_or(last + 1);
    confirm(confirmed, last);
    Ok((first, last))
}

fn cancelled() -> Fault {
    Fault::Busy(
        "the server warned: the wait for the synchronous standby was cancelled, so the commit is \
         on one disk only"
            .to_owned(),
    )
}

/// The positions that a row can have begin with this.
pub(crate) const FIRST: Position = Position(1);

/// What the server has not answered in time counts as lost or late.
pub(crate) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    let answer = timeout(limit, work).await;
    answer.unwrap_or_else(|_| Err(Fault::late(limit)))
}

pub(crate) fn unwanted() -> Fault {
    Fault::Lost("the sequencer was closed".to_owned())
}
