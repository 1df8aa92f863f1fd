//! Owns finding the primary, at the start and whenever its connections are lost. Knows nothing of what is done
//! over them.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use prelude_bridge_log::sequencer::Outage;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{
    OpenError, Patience,
    fault::Fault,
    link::{Link, Sessions, unwanted, within},
    options::{Options, TlsMode, address},
    server::{self, Server},
    session::{Connector, Session},
    table::Table,
    tls,
};

/// How long hosts are waited for that have not answered when one was found to be a primary.
const OTHERS_TIME_MAX: Duration = Duration::from_millis(500);

/// How long a call waits for a connection that is being made.
const LINK_TIME_MAX: Duration = Duration::from_secs(3);

/// Between two attempts to connect: the first, and the most.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

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
            is_first: true,
        };
        let link = finder
            .find()
            .await
            .map_err(|fault| fault.open_error(&name))?;
        let warnings = link.warnings();
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
                for warning in link.warnings() {
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

/// Finds the primary.
struct Finder {
    name: Arc<str>,
    patience: Patience,
    connector: Connector,
    /// The last history that was seen. A primary of an earlier one was left behind by a failover.
    timeline: String,
    /// Whether no primary was used before. The table is created only then, and what passes by itself, but only
    /// when somebody does something about it, is refused.
    is_first: bool,
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
        candidate.server.check()?;
        if let Some(missing) = candidate.server.missing_standby(options) {
            return Err(if self.is_first {
                Fault::Unusable(missing)
            } else {
                Fault::Busy(missing)
            });
        }
        let table = Table::new(options);
        let client = &candidate.session.client;
        let opening = table.open(client, &options.user, self.is_first, options.create);
        within(self.patience.answer, opening)
            .await
            .map_err(|fault| candidate.server.explain(fault))?;
        let timeline = candidate.server.timeline().to_owned();
        let link = self.link(candidate, host, table).await?;
        self.is_first = false;
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
        let sessions = Sessions {
            writer,
            asker,
            listener,
            confirmed,
        };
        Link::new(
            Arc::clone(&self.name),
            self.patience,
            host,
            table,
            server,
            sessions,
        )
        .await
    }
}

/// Why none of the hosts can be used. It may pass by itself if it may for one of them.
fn together(mut faults: Vec<(String, Fault)>) -> Fault {
    faults.sort_by(|(one, _), (other, _)| one.cmp(other));
    let said: Vec<_> = faults
        .iter()
        .map(|(host, fault)| match fault {
            Fault::Lost(why)
            | Fault::Busy(why)
            | Fault::Full(why)
            | Fault::Login(why)
            | Fault::Unusable(why) => format!("{host}: {why}"),
        })
        .collect();
    let said = format!("no primary: {}", said.join("; "));
    let is_login = |(_, fault): &(String, Fault)| matches!(fault, Fault::Login(_));
    let is_permanent = |(_, fault): &(String, Fault)| matches!(fault, Fault::Unusable(_));
    if faults.is_empty() || !faults.iter().all(|it| is_login(it) || is_permanent(it)) {
        Fault::Lost(said)
    } else if faults.iter().any(is_login) {
        Fault::Login(said)
    } else {
        Fault::Unusable(said)
    }
}
