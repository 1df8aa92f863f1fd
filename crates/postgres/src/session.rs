//! Owns one connection to one server: its life, what the server says without being asked, and that only one
//! statement is under way where that matters. Knows nothing of what the statements do.
//!
//! No statement is ever cancelled, and no connection closed because a statement takes long: a transaction
//! that waits for a standby would be committed locally, or its process would stay behind on the server, one
//! more with each attempt. Whether the server is alive is for another connection to find out.

use std::{
    future::{Future, poll_fn},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Mutex, watch},
    task::{AbortHandle, JoinHandle},
    time::{Instant, timeout_at},
};
use tokio_postgres::{
    AsyncMessage, Client, Config, Connection, NoTls,
    config::{ChannelBinding, SslMode, TargetSessionAttrs},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{
    fault::{Fault, words},
    options::Options,
};

/// How long a connection may take, with TLS and the password.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(4);

/// How long what was sent may stay unacknowledged by the other machine.
const ACKNOWLEDGE_TIME_MAX: Duration = Duration::from_secs(8);

/// Silence after which the other machine is asked whether it is there, and how often.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(3);
const KEEPALIVE_TIMES: u32 = 2;

/// How sessions are made.
pub(crate) struct Connector {
    options: Options,
    tls: Option<MakeRustlsConnect>,
}

/// An open connection.
pub(crate) struct Session {
    pub(crate) client: Client,
    /// Held as long as a statement is under way, where that matters.
    pub(crate) turn: Arc<Mutex<()>>,
    warnings: Arc<AtomicU64>,
    ended: watch::Receiver<Option<Fault>>,
    driver: AbortHandle,
}

impl Connector {
    pub(crate) fn new(options: Options, tls: Option<MakeRustlsConnect>) -> Self {
        Self { options, tls }
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// Connects. Positions that others announce go to `announced`, when the session listens.
    pub(crate) async fn connect(
        &self,
        host: &str,
        port: u16,
        announced: &watch::Sender<i64>,
    ) -> Result<Session, Fault> {
        let config = self.config(host, port)?;
        let until = Instant::now() + CONNECT_TIME_MAX;
        let session = timeout_at(until, async {
            Ok(match &self.tls {
                None => {
                    let (client, connection) = config.connect(NoTls).await?;
                    Session::drive(client, connection, announced.clone())
                }
                Some(tls) => {
                    let (client, connection) = config.connect(tls.clone()).await?;
                    Session::drive(client, connection, announced.clone())
                }
            })
        });
        session
            .await
            .unwrap_or_else(|_| Err(Fault::late(CONNECT_TIME_MAX)))
    }

    fn config(&self, host: &str, port: u16) -> Result<Config, Fault> {
        let mut config = Config::new();
        config
            .host(host)
            .port(port)
            .user(&self.options.user)
            .dbname(&self.options.database)
            .application_name("prelude-bridge")
            .ssl_mode(match self.tls {
                None => SslMode::Disable,
                Some(_) => SslMode::Require,
            })
            .channel_binding(ChannelBinding::Prefer)
            .target_session_attrs(TargetSessionAttrs::Any)
            .connect_timeout(CONNECT_TIME_MAX)
            .tcp_user_timeout(ACKNOWLEDGE_TIME_MAX)
            .keepalives_idle(KEEPALIVE_AFTER)
            .keepalives_interval(KEEPALIVE_AFTER)
            .keepalives_retries(KEEPALIVE_TIMES);
        if let Some(password) = &self.options.password {
            config.password(password.read().map_err(Fault::Login)?);
        }
        Ok(config)
    }
}

impl Session {
    fn drive<S, T>(
        client: Client,
        connection: Connection<S, T>,
        announced: watch::Sender<i64>,
    ) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let warnings = Arc::new(AtomicU64::new(0));
        let (end, ended) = watch::channel(None);
        let driving = drive(connection, Arc::clone(&warnings), announced, end);
        Self {
            client,
            turn: Arc::default(),
            warnings,
            ended,
            driver: tokio::spawn(driving).abort_handle(),
        }
    }

    /// Runs statements with nobody else's before or between them. When they have not ended in time, they go
    /// on, and whoever comes next waits for them.
    pub(crate) async fn alone<T, F>(
        self: &Arc<Self>,
        limit: Duration,
        work: impl FnOnce(Arc<Self>) -> F + Send + 'static,
    ) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Fault>> + Send + 'static,
    {
        let until = Instant::now() + limit;
        let turn = timeout_at(until, Arc::clone(&self.turn).lock_owned()).await;
        let turn = turn.map_err(|_| Fault::late(limit))?;
        let session = Arc::clone(self);
        let task: JoinHandle<_> = tokio::spawn(async move {
            let done = work(session).await;
            drop(turn);
            done
        });
        match timeout_at(until, task).await {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => Err(Fault::Busy(error.to_string())),
            Err(_) => Err(Fault::late(limit)),
        }
    }

    /// How many warnings the server has sent: counted before the answer that follows a warning is given.
    pub(crate) fn warnings(&self) -> u64 {
        self.warnings.load(Ordering::Acquire)
    }

    /// Returns when the connection has ended, with the reason.
    pub(crate) async fn ended(&self) -> Fault {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(fault)) => fault.clone(),
            _ => closed(),
        }
    }

    /// Closes it: every statement under way fails.
    pub(crate) fn close(&self) {
        self.driver.abort();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close();
    }
}

fn closed() -> Fault {
    Fault::Lost("the connection was closed".to_owned())
}

async fn drive<S, T>(
    mut connection: Connection<S, T>,
    warnings: Arc<AtomicU64>,
    announced: watch::Sender<i64>,
    end: watch::Sender<Option<Fault>>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let fault = loop {
        match poll_fn(|context| connection.poll_message(context)).await {
            // A session asks for no messages below a warning.
            Some(Ok(AsyncMessage::Notice(notice))) => {
                tracing::debug!(code = notice.code().code(), "PostgreSQL warns");
                warnings.fetch_add(1, Ordering::Release);
            }
            Some(Ok(AsyncMessage::Notification(notification))) => {
                if let Ok(position) = notification.payload().parse() {
                    confirm(&announced, position);
                }
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => break Fault::Lost(words(&error)),
            None => break closed(),
        }
    };
    end.send_replace(Some(fault));
}

/// Notes that everything up to a position is confirmed.
pub(crate) fn confirm(confirmed: &watch::Sender<i64>, position: i64) {
    confirmed.send_if_modified(|last| {
        let more = position > *last;
        if more {
            *last = position;
        }
        more
    });
}
