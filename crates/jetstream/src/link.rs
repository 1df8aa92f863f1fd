//! Owns a connection to NATS: requests that end in time, what the server forbids, and reconnecting. The
//! client library connects again by itself, and notices within three seconds that a server does not answer
//! pings. It would stay with a server that answers pings and nothing else: after two time-outs in a row
//! the link leaves it.

use std::{
    future::pending,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{
    Auth, AuthError, Client, ConnectErrorKind, ConnectOptions, Event, HeaderMap, Message, Request,
    RequestErrorKind, ServerAddr, ServerError, Statistics, Subscriber, connection::State,
};
use bytes::Bytes;
use prelude_bridge_log::sequencer::Outage;
use serde::de::DeserializeOwned;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_rustls::rustls::{
    self,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::{
    api::{ApiError, Response, code},
    error::OpenError,
    options::{Login, Options, Tls, place},
};

/// How long an opening link looks for a server that answers.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// How long one server may take for a connection with TLS and login.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(3);
/// A server is left after three pings without an answer.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// How long a request waits for a connection, so that who tries again does not spin.
const CONNECTION_WAIT: Duration = Duration::from_secs(1);
/// How long a request that is refused at once takes at least, for the same reason: after an election
/// there may be nobody who answers for a moment.
const REFUSAL_PAUSE: Duration = Duration::from_millis(100);
/// After so many time-outs in a row another server is tried.
const TIME_OUTS_MAX: u32 = 2;
/// A subscription may have so many messages that were not taken: more than two pulls ask for.
const SUBSCRIPTION_MESSAGES_MAX: usize = 32_768;

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There is no connection, or it was lost.
    Disconnected,
    /// Nobody listens to the subject.
    NoResponders,
    /// Has what the server forbade meanwhile, which is why there is no answer.
    TimedOut(Option<String>),
    /// Larger than the server takes.
    TooLarge,
}

/// A connection.
pub(crate) struct Link {
    client: Client,
    shared: Arc<Shared>,
    /// In a row.
    time_outs: AtomicU32,
    /// For messages: what is connected to.
    whole: Arc<str>,
}

/// What the library tells the link.
struct Shared {
    statistics: OnceLock<Arc<Statistics>>,
    /// How many of its connections are counted.
    counted: AtomicU64,
    /// Of both links.
    connections: watch::Sender<u64>,
    status: watch::Sender<Status>,
    /// The last operation that the server forbade.
    forbidden: Mutex<Option<String>>,
}

#[derive(Clone, Copy)]
struct Status {
    connected: bool,
    /// How many connections were lost.
    lost: u64,
}

impl Link {
    /// Connects within [`CONNECT_TIME_MAX`].
    pub(crate) async fn connect(
        options: &Options,
        whole: Arc<str>,
        connections: watch::Sender<u64>,
    ) -> Result<Self, OpenError> {
        let shared = Arc::new(Shared {
            statistics: OnceLock::new(),
            counted: AtomicU64::new(0),
            connections,
            status: watch::Sender::new(Status {
                connected: true,
                lost: 0,
            }),
            forbidden: Mutex::default(),
        });
        let client = connect(options, &shared).await?;
        // Only now: a failed attempt has counters of its own.
        let _ = shared.statistics.set(client.statistics());
        shared.count_connections();
        Ok(Self {
            client,
            shared,
            time_outs: AtomicU32::new(0),
            whole,
        })
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// How many connections were lost: what follows must not go on over another one.
    pub(crate) fn lost(&self) -> u64 {
        self.shared.status.borrow().lost
    }

    /// Ends when the connection that was there at `lost` is not there any more.
    pub(crate) async fn until_lost(&self, lost: u64) {
        let mut status = self.shared.status.subscribe();
        if status.wait_for(|now| now.lost != lost).await.is_err() {
            pending::<()>().await;
        }
    }

    /// Counts new connections. To be called before anything is made of an answer.
    pub(crate) fn count_connections(&self) {
        self.shared.count_connections();
    }

    /// Asks, and waits for the answer.
    pub(crate) async fn request(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        payload: Bytes,
        time_max: Duration,
    ) -> Result<Message, Failure> {
        let begin = Instant::now();
        let result = self.request_once(subject, headers, payload, time_max).await;
        self.count_connections();
        match &result {
            Ok(_) => self.time_outs.store(0, Ordering::Relaxed),
            Err(Failure::TimedOut(_)) => self.leave_after_time_outs().await,
            Err(Failure::NoResponders) => self.time_outs.store(0, Ordering::Relaxed),
            Err(Failure::Disconnected | Failure::TooLarge) => {}
        }
        if result.is_err() {
            sleep(REFUSAL_PAUSE.saturating_sub(begin.elapsed())).await;
        }
        result
    }

    async fn request_once(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        payload: Bytes,
        time_max: Duration,
    ) -> Result<Message, Failure> {
        let lost = self.connection().await?;
        self.forbidden().take();
        let mut request = Request::new().payload(payload).timeout(Some(time_max));
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
        let answer = tokio::select! {
            biased;
            answer = self.client.send_request(subject.to_owned(), request) => answer,
            () = self.until_lost(lost) => return Err(Failure::Disconnected),
        };
        answer.map_err(|error| match error.kind() {
            RequestErrorKind::TimedOut => Failure::TimedOut(self.forbidden().take()),
            RequestErrorKind::NoResponders => Failure::NoResponders,
            RequestErrorKind::MaxPayloadExceeded => Failure::TooLarge,
            RequestErrorKind::InvalidSubject | RequestErrorKind::Other => Failure::Disconnected,
        })
    }

    /// Waits for a connection; without one the library would queue what it is given. How many were lost
    /// tells it from a later one.
    pub(crate) async fn connection(&self) -> Result<u64, Failure> {
        let mut status = self.shared.status.subscribe();
        if let Ok(Ok(now)) = timeout(CONNECTION_WAIT, status.wait_for(|now| now.connected)).await {
            return Ok(now.lost);
        }
        // The library drops events when there are too many.
        if self.client.connection_state() != State::Connected {
            return Err(Failure::Disconnected);
        }
        self.shared
            .status
            .send_modify(|status| status.connected = true);
        Ok(self.lost())
    }

    async fn leave_after_time_outs(&self) {
        if self.time_outs.fetch_add(1, Ordering::Relaxed) + 1 < TIME_OUTS_MAX {
            return;
        }
        self.time_outs.store(0, Ordering::Relaxed);
        if self.client.connection_state() == State::Connected {
            tracing::debug!("{} does not answer: another server is tried", self.whole);
            // The queue of a stuck connection may be full.
            let _ = timeout(REFUSAL_PAUSE, self.client.force_reconnect()).await;
        }
    }

    /// Asks JetStream's API.
    pub(crate) async fn api<T: DeserializeOwned>(
        &self,
        subject: &str,
        payload: Bytes,
        time_max: Duration,
    ) -> Result<Result<T, ApiError>, Failure> {
        let message = self.request(subject, None, payload, time_max).await?;
        Ok(match serde_json::from_slice(&message.payload) {
            Ok(Response::Answer(answer)) => Ok(answer),
            Ok(Response::Error { error }) => Err(error),
            Err(_) => Err(ApiError {
                err_code: 0,
                description: format!("an answer to {subject} that is not understood"),
            }),
        })
    }

    /// Subscribes, and notices when the server forbids it only by [`forbidden`](Self::forbidden).
    pub(crate) async fn subscribe(&self, subject: String) -> Result<Subscriber, Failure> {
        self.forbidden().take();
        match timeout(CONNECTION_WAIT, self.client.subscribe(subject)).await {
            Ok(Ok(subscriber)) => Ok(subscriber),
            Ok(Err(_)) | Err(_) => Err(Failure::Disconnected),
        }
    }

    /// What the server forbade since the last request.
    pub(crate) fn forbidden(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.shared
            .forbidden
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What a failure is to who uses the sequencer.
    pub(crate) fn outage(&self, failure: Failure, what: &str) -> Outage {
        let whole = &self.whole;
        Outage::Unavailable(match failure {
            Failure::Disconnected => return Outage::Disconnected(Arc::clone(whole)),
            Failure::NoResponders => format!("{whole} has nobody who takes {what}").into(),
            Failure::TimedOut(None) => format!("{whole} did not answer {what} in time").into(),
            Failure::TimedOut(Some(forbidden)) => {
                format!("{whole} did not answer {what}: {forbidden}").into()
            }
            Failure::TooLarge => {
                format!("{whole} takes less bytes than {what} has: raise max_payload").into()
            }
        })
    }

    /// What an error of the API is to who uses the sequencer.
    pub(crate) fn api_outage(&self, error: &ApiError, what: &str) -> Outage {
        let ApiError {
            err_code,
            description,
        } = error;
        let whole = &self.whole;
        match *err_code {
            code::SEALED => Outage::Unusable(
                format!("{whole} is sealed, which cannot be undone: create another one").into(),
            ),
            _ => Outage::Unavailable(
                format!("{whole} does not answer {what}: {description} (error {err_code})").into(),
            ),
        }
    }
}

impl Shared {
    fn count_connections(&self) {
        let Some(statistics) = self.statistics.get() else {
            return;
        };
        let now = statistics.connects.load(Ordering::Relaxed);
        let before = self.counted.fetch_max(now, Ordering::Relaxed);
        if now > before {
            self.connections.send_modify(|count| *count += now - before);
        }
    }

    fn take_event(&self, event: Event) {
        match event {
            Event::Connected => {
                self.status.send_modify(|status| status.connected = true);
                self.count_connections();
            }
            Event::Disconnected | Event::Closed => self.status.send_modify(|status| {
                *status = Status {
                    connected: false,
                    lost: status.lost + 1,
                };
            }),
            Event::ServerError(ServerError::Other(said)) => {
                if said.to_ascii_lowercase().contains("permissions violation") {
                    let mut forbidden = self
                        .forbidden
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    *forbidden = Some(said);
                }
            }
            Event::LameDuckMode
            | Event::Draining
            | Event::SlowConsumer(_)
            | Event::ServerError(_)
            | Event::ClientError(_) => {}
        }
    }
}

/// Tries all servers until one answers, or the time is over.
async fn connect(options: &Options, shared: &Arc<Shared>) -> Result<Client, OpenError> {
    let servers: Vec<_> = options.servers.iter().map(|url| place(url)).collect();
    let servers = servers.join(", ");
    let addresses: Result<Vec<ServerAddr>, _> =
        options.servers.iter().map(|url| url.parse()).collect();
    let addresses =
        addresses.map_err(|error| OpenError::Options(format!("the servers of NATS: {error}")))?;
    let end = Instant::now() + CONNECT_TIME_MAX;
    loop {
        let configured = connect_options(options, shared).await?;
        let attempt = timeout_at(end, configured.connect(&addresses[..])).await;
        let reason = match attempt {
            Ok(Ok(client)) => return Ok(client),
            Ok(Err(error)) => match error.kind() {
                ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                    return Err(OpenError::Login { servers });
                }
                // As "User Authentication Expired".
                _ if is_of_login(&error.to_string()) => {
                    return Err(OpenError::Login { servers });
                }
                _ => error.to_string(),
            },
            Err(_) => "no answer in time".to_owned(),
        };
        if Instant::now() + REFUSAL_PAUSE >= end {
            return Err(OpenError::Connect { servers, reason });
        }
        sleep(REFUSAL_PAUSE).await;
    }
}

fn is_of_login(said: &str) -> bool {
    let said = said.to_ascii_lowercase();
    ["authentication", "authorization"]
        .iter()
        .any(|word| said.contains(word))
}

async fn connect_options(
    options: &Options,
    shared: &Arc<Shared>,
) -> Result<ConnectOptions, OpenError> {
    let events = Arc::clone(shared);
    let mut configured = with_secret(&options.login)
        .name("prelude-bridge")
        .connection_timeout(HANDSHAKE_TIME_MAX)
        .ping_interval(PING_INTERVAL)
        .subscription_capacity(SUBSCRIPTION_MESSAGES_MAX)
        .reconnect_delay_callback(reconnect_delay)
        .event_callback(move |event| {
            events.take_event(event);
            std::future::ready(())
        });
    configured = match &options.login {
        Login::None | Login::Token(_) | Login::Password { .. } => configured,
        Login::CredentialsFile(path) => {
            let unusable = |reason: &str| OpenError::File {
                path: path.clone(),
                reason: reason.to_owned(),
            };
            let content = tokio::fs::read_to_string(path)
                .await
                .map_err(|error| unusable(&format!("the credentials cannot be read: {error}")))?;
            let seed = content
                .lines()
                .map(str::trim)
                .find(|line| line.starts_with("SU"));
            match seed {
                Some(seed) if !content.contains("JWT") => configured.nkey(seed.to_owned()),
                _ => configured.credentials(&content).map_err(|_| {
                    unusable("no credentials of NATS: a .creds file, or a file with the seed of a user's NKey, is needed")
                })?,
            }
        }
    };
    // The library takes the default, and there is none where several are built in. It may be set already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let is_tls = options.servers.iter().any(|url| url.starts_with("tls://"));
    if options.tls.is_some() || is_tls {
        configured = configured.require_tls(true);
    }
    match &options.tls {
        Some(tls) => with_tls(configured, tls).await,
        None => Ok(configured),
    }
}

/// Has the library ask for a token or a password at each connection, so that it can be changed.
fn with_secret(login: &Login) -> ConnectOptions {
    let (user, secret) = match login {
        Login::None | Login::CredentialsFile(_) => return ConnectOptions::new(),
        Login::Token(token) => (None, token.clone()),
        Login::Password { user, password } => (Some(user.clone()), password.clone()),
    };
    ConnectOptions::with_auth_callback(move |_| {
        let (user, secret) = (user.clone(), secret.read());
        async move {
            let secret = secret.map_err(AuthError::new)?;
            let mut auth = Auth::new();
            match user {
                Some(user) => (auth.username, auth.password) = (Some(user), Some(secret)),
                None => auth.token = Some(secret),
            }
            Ok(auth)
        }
    })
}

/// The library reads the files at each connection, so that they can be renewed. What it says of a bad one
/// tells nobody which.
async fn with_tls(mut configured: ConnectOptions, tls: &Tls) -> Result<ConnectOptions, OpenError> {
    let unusable = |path: &std::path::Path, reason: String| OpenError::File {
        path: path.to_owned(),
        reason,
    };
    let certificates = async |path: &std::path::Path| {
        let pem = tokio::fs::read(path)
            .await
            .map_err(|error| unusable(path, format!("the certificates cannot be read: {error}")))?;
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        match all {
            Ok(all) if !all.is_empty() => Ok(()),
            Ok(_) => Err(unusable(
                path,
                "there is no certificate (PEM) in it".to_owned(),
            )),
            Err(error) => Err(unusable(path, format!("no certificate (PEM): {error}"))),
        }
    };
    if let Some(authority) = &tls.authority {
        certificates(authority).await?;
        configured = configured.add_root_certificates(authority.clone());
    }
    if let Some((certificate, key)) = &tls.certificate {
        certificates(certificate).await?;
        let pem = tokio::fs::read(key)
            .await
            .map_err(|error| unusable(key, format!("the private key cannot be read: {error}")))?;
        PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|_| unusable(key, "there is no private key (PEM) in it".to_owned()))?;
        configured = configured.add_client_certificate(certificate.clone(), key.clone());
    }
    Ok(configured)
}

/// The first attempt is made at once; then more slowly, so that a cluster that starts is not flooded.
fn reconnect_delay(attempts: usize) -> Duration {
    let steps = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
    Duration::from_millis(50)
        .saturating_mul(steps)
        .min(Duration::from_secs(1))
}
