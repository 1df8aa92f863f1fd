//! Owns the connections to one primary, and finding it again when they are lost: three to the same server
//! process, of which one writes, one asks, and one listens, reads, and finds out whether the server is
//! alive. Knows nothing of what a table is made of.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, future::poll_immediate, stream::FuturesUnordered};
use prelude_bridge_log::sequencer::{Ends, Outage, Outcome, Position};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{
    OpenError, Patience,
    fault::Fault,
    options::{Options, TlsMode, address},
    server::{self, Server},
    session::{Connector, Session, confirm},
    table::{self, Asking, DELETE_ROWS, Reading, Table, Writing},
    tls,
};

/// How often the server is asked whether it is alive, what its settings are, and what the last position is,
/// which finds a commit whose announcement was lost.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// How long hosts are waited for that have not answered when one was found to be a primary.
const OTHERS_TIME_MAX: Duration = Duration::from_millis(500);

/// How long a call waits for a connection that is being made.
const LINK_TIME_MAX: Duration = Duration::from_secs(3);

/// Between two attempts to connect: the first, and the most.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The connections to a primary.
pub(crate) struct Link {
    name: Arc<str>,
    patience: Patience,
    host: String,
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

/// What a call finds: connections, or why there are none.
type State = Result<Arc<Link>, Fault>;

/// The connections to whichever server is the primary now.
pub(crate) struct Links {
    name: Arc<str>,
    ids_age: Duration,
    patience: Patience,
    state: watch::Receiver<State>,
    connections: watch::Receiver<u64>,
}

impl Links {
    /// Connects once, and keeps connections until it is dropped.
    pub(crate) async fn open(
        options: Options,
        patience: Patience,
    ) -> Result<(Self, Vec<String>), OpenError> {
        options.check().map_err(OpenError::Options)?;
        let tls = match &options.tls {
            TlsMode::Off => None,
            TlsMode::Required {
                authority,
                certificate,
            } => {
                let configuration = tls::configuration(authority.as_deref(), certificate.as_ref());
                Some(MakeRustlsConnect::new(
                    configuration.map_err(OpenError::Options)?,
                ))
            }
        };
        let name: Arc<str> = options.name().into();
        let ids_age = options.ids_age;
        let mut finder = Finder {
            name: Arc::clone(&name),
            patience,
            connector: Connector::new(options, tls),
            timeline: String::new(),
            table_known: false,
        };
        let link = finder
            .find()
            .await
            .map_err(|fault| fault.open_error(&name))?;
        let warnings = link.warnings(finder.connector.options());
        let (connected, connections) = watch::channel(1);
        let (sender, state) = watch::channel(Ok(link));
        tokio::spawn(keep(finder, sender, connected));
        let links = Self {
            name,
            ids_age,
            patience,
            state,
            connections,
        };
        Ok((links, warnings))
    }

    /// The connections; waits a little for those that are being made.
    pub(crate) async fn current(&self) -> Result<Arc<Link>, Outage> {
        let mut state = self.state.clone();
        let found = timeout(LINK_TIME_MAX, state.wait_for(Result::is_ok)).await;
        if let Ok(Ok(state)) = found
            && let Ok(link) = &*state
        {
            return Ok(Arc::clone(link));
        }
        match &*self.state.borrow() {
            Ok(link) => Ok(Arc::clone(link)),
            Err(fault) => Err(fault.outage(&self.name)),
        }
    }

    pub(crate) fn connections(&self) -> watch::Receiver<u64> {
        self.connections.clone()
    }

    pub(crate) fn patience(&self) -> Patience {
        self.patience
    }

    pub(crate) fn ids_age(&self) -> Duration {
        self.ids_age
    }

    pub(crate) fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }
}

/// Makes the connections again whenever they are lost, as long as anybody wants them.
async fn keep(mut finder: Finder, state: watch::Sender<State>, connected: watch::Sender<u64>) {
    let mut pause = PAUSE_FIRST;
    loop {
        let current = state.borrow().clone();
        let fault = match current {
            Ok(link) => {
                pause = PAUSE_FIRST;
                let fault = tokio::select! {
                    fault = link.watch_over(finder.connector.options()) => fault,
                    () = state.closed() => return link.end(unwanted()),
                };
                tracing::warn!(name = %finder.name, host = link.host, ?fault, "PostgreSQL: connections lost");
                link.end(fault.clone());
                fault
            }
            Err(fault) => fault,
        };
        let _ = state.send_replace(Err(fault));
        tokio::select! {
            () = sleep(pause) => {}
            () = state.closed() => return,
        }
        pause = (pause * 2).min(PAUSE_MAX);
        let found = tokio::select! {
            found = finder.find() => found,
            () = state.closed() => return,
        };
        match found {
            Ok(link) => {
                for warning in link.warnings(finder.connector.options()) {
                    tracing::warn!(name = %finder.name, host = link.host, "PostgreSQL: {warning}");
                }
                tracing::info!(name = %finder.name, host = link.host, "PostgreSQL: connected");
                connected.send_modify(|count| *count += 1);
                let _ = state.send_replace(Ok(link));
            }
            Err(fault) => {
                let _ = state.send_replace(Err(fault));
            }
        }
    }
}

fn unwanted() -> Fault {
    Fault::Lost("the sequencer was closed".to_owned())
}

/// Finds the primary.
struct Finder {
    name: Arc<str>,
    patience: Patience,
    connector: Connector,
    /// The last history that was seen. A primary of an earlier one was left behind by a failover.
    timeline: String,
    /// Whether the table was there before: it is not created a second time.
    table_known: bool,
}

/// A primary, with the first session on it.
struct Candidate {
    host: String,
    port: u16,
    session: Session,
    server: Server,
    confirmed: watch::Sender<i64>,
}

impl Finder {
    async fn find(&mut self) -> Result<Arc<Link>, Fault> {
        let candidate = self.candidate().await?;
        let options = self.connector.options();
        let host = address(&candidate.host, candidate.port);
        candidate.server.check(options)?;
        let table = Table::new(options);
        let client = &candidate.session.client;
        let opening = table.open(client, &options.user, !self.table_known);
        within(self.patience.answer, opening)
            .await
            .map_err(|fault| candidate.server.explain(fault))?;
        let timeline = candidate.server.timeline().to_owned();
        let link = self.link(candidate, host, table).await?;
        self.table_known = true;
        self.timeline = timeline;
        Ok(Arc::new(link))
    }

    /// Asks all hosts at once, because some may not answer.
    async fn candidate(&self) -> Result<Candidate, Fault> {
        let hosts = &self.connector.options().hosts;
        let mut attempts: FuturesUnordered<_> = hosts
            .iter()
            .map(|(host, port)| self.attempt(host, *port))
            .collect();
        let (mut best, mut faults): (Option<Candidate>, Vec<(String, Fault)>) = (None, Vec::new());
        let mut until = None;
        loop {
            let next = match until {
                None => attempts.next().await,
                Some(until) => timeout_at(until, attempts.next()).await.unwrap_or_default(),
            };
            match next {
                None => break,
                Some(Err(fault)) => faults.push(fault),
                Some(Ok(candidate)) => {
                    until.get_or_insert_with(|| Instant::now() + OTHERS_TIME_MAX);
                    let timeline = best.as_ref().map(|best| best.server.timeline());
                    if timeline < Some(candidate.server.timeline()) {
                        best = Some(candidate);
                    }
                }
            }
        }
        best.ok_or_else(|| together(faults))
    }

    async fn attempt(&self, host: &str, port: u16) -> Result<Candidate, (String, Fault)> {
        let attempt = async {
            let confirmed = watch::channel(0).0;
            let session = self.connector.connect(host, port, &confirmed).await?;
            let server = self.ask(&session).await?;
            server.primary()?;
            if server.timeline() < &*self.timeline {
                return Err(Fault::Lost(
                    "is a primary that was left behind by a failover".to_owned(),
                ));
            }
            Ok(Candidate {
                host: host.to_owned(),
                port,
                session,
                server,
                confirmed,
            })
        };
        attempt.await.map_err(|fault| (address(host, port), fault))
    }

    /// Makes a session ready, and asks its server what it is.
    async fn ask(&self, session: &Session) -> Result<Server, Fault> {
        within(self.patience.silence, async {
            server::prepare(&session.client).await?;
            Server::ask(&session.client).await
        })
        .await
    }

    async fn link(&self, candidate: Candidate, host: String, table: Table) -> Result<Link, Fault> {
        let Candidate {
            host: connect_to,
            port,
            session: listener,
            server,
            confirmed,
        } = candidate;
        let other = || async {
            let session = self
                .connector
                .connect(&connect_to, port, &confirmed)
                .await?;
            if self.ask(&session).await?.is(&server) {
                Ok(session)
            } else {
                let problem = format!("different servers answer at {host}");
                Err(Fault::Lost(problem))
            }
        };
        let (writer, asker) = tokio::try_join!(other(), other())?;
        let prepared = async {
            listener.client.batch_execute(&table.listen()).await?;
            tokio::try_join!(
                table.writing(&writer.client),
                table.asking(&asker.client),
                table.reading(&listener.client),
            )
        };
        let (writing, asking, reading) = within(self.patience.silence, prepared).await?;
        Ok(Link {
            name: Arc::clone(&self.name),
            patience: self.patience,
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
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    let answer = timeout(limit, work).await;
    answer.unwrap_or_else(|_| Err(Fault::late(limit)))
}

/// Why none of the hosts can be used. It may pass by itself if it may for one of them.
fn together(mut faults: Vec<(String, Fault)>) -> Fault {
    faults.sort_by(|(one, _), (other, _)| one.cmp(other));
    let said: Vec<_> = faults
        .iter()
        .map(|(host, fault)| match fault {
            Fault::Lost(why) | Fault::Busy(why) | Fault::Full(why) | Fault::Unusable(why) => {
                format!("{host}: {why}")
            }
        })
        .collect();
    let said = format!("no primary: {}", said.join("; "));
    let permanent = |(_, fault): &(String, Fault)| matches!(fault, Fault::Unusable(_));
    if !faults.is_empty() && faults.iter().all(permanent) {
        Fault::Unusable(said)
    } else {
        Fault::Lost(said)
    }
}

impl Link {
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

    fn warnings(&self, options: &Options) -> Vec<String> {
        // The host without its port, which has no colon unless it is an address.
        let host = options
            .hosts
            .iter()
            .find(|(host, port)| address(host, *port) == self.host);
        self.server
            .warnings(host.map_or(&self.host, |(host, _)| host), options)
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
    fn end(&self, fault: Fault) {
        self.ended.send_replace(Some(fault));
        for session in [&self.writer, &self.asker, &self.listener] {
            session.close();
        }
    }

    /// Returns when one of the connections is lost, the server does not answer, or has become another one or
    /// one that is refused.
    async fn watch_over(&self, options: &Options) -> Fault {
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
                    let checked = now.primary().and_then(|()| now.check(options));
                    if let Err(fault) = checked {
                        return fault;
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
