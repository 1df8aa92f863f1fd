//! Owns the webhook port: which checks a request passes before its events are accepted, in which order,
//! and within which limits. A delivery takes these steps, and each step has its refusals (`status` is
//! the only table of answers):
//!
//! ```text
//! routes     path, source address, method, challenge    404 403 405
//! delivery   content type and encoding, length          415 411 413
//! body       read under a limit, a budget, a deadline    413 429 503
//! delivery   signature header, signature                401 503
//!            decode                                     422
//! age        how old the batch is                       422 503
//! delivery   append, and wait until it is durable       503
//! ```
//!
//! It knows only the log's trait, and nothing of subscribers.

mod age;
mod body;
mod budget;
mod challenge;
mod delivery;
mod error;
pub mod forgeries;
mod forwarded;
mod misdirected;
mod pending;
mod refusals;
mod routes;
pub mod source;
mod status;
mod verification;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub(crate) use self::body::discarded_bytes_max;
pub use self::{
    age::AgeLimit,
    verification::{VerificationToken, VerificationTokens},
};
use self::{budget::Budget, forgeries::Forgeries, source::Sources};
pub use crate::decode::Product;
use crate::{
    decode,
    event::{Batch, Sequence},
    log::Log,
    metrics::Metrics,
    net::{
        self, http1,
        quiet::{self, Quiet},
    },
    signature::Keyring,
};

/// The limits of the webhook port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Which addresses may send requests. By default all: signatures decide.
    pub sources: Sources,
    /// Bytes of one body, counted while reading.
    pub body_bytes_max: usize,
    /// Bytes of all bodies that are being read or processed. A body counts from
    /// its first bytes to its answer, by what has arrived and not by what was announced.
    pub bodies_bytes_max: usize,
    /// Of these, bytes of the bodies of one IPv4 address or one IPv6 /64, by whoever a trusted proxy
    /// names; a proxy that names nobody has all.
    /// Never less than one body.
    pub bodies_bytes_per_address_max: usize,
    /// Deliveries that are being verified at once; others wait their turn. One
    /// attempt takes a thread for tens of microseconds, so this bounds how long a genuine delivery
    /// waits behind a flood of forged ones. One that waits for newer keys does not
    /// count meanwhile.
    pub verifications_max: usize,
    /// The rate limit on forged deliveries; those beyond it wait.
    pub forgeries: forgeries::Limits,
    /// How old a batch may be.
    pub age: AgeLimit,
    /// From the end of the header to the end of the body.
    pub body_timeout: Duration,
    /// Everything from the end of the header to the answer: below the sender's 10 s, which must not run
    /// out on an answer that is on its way.
    pub request_timeout: Duration,
    /// Limits of one connection.
    pub connection: http1::Limits,
    /// Limits of all connections.
    pub listener: net::Limits,
    /// The rate limit on log lines about refusals.
    pub quiet: quiet::Limits,
}

/// An app whose deliveries are accepted, or another source of events, whose id its events have as
/// `app_id`.
#[derive(Clone, Debug)]
pub struct App {
    /// Its id, as the sender writes it.
    pub id: Arc<str>,
    /// What its deliveries are.
    pub deliveries: Deliveries,
    /// The keys that verify its deliveries.
    pub keyring: Keyring,
}

/// The form of deliveries.
#[derive(Clone, Debug)]
pub enum Deliveries {
    /// Batches, after an activation challenge that must have one of these tokens.
    Batches(VerificationTokens),
    /// One event each, without a challenge.
    SingleEvents(Product),
}

/// The service behind the webhook port.
#[derive(Clone)]
pub struct Receiver {
    shared: Arc<Shared>,
}

/// What all requests share.
struct Shared {
    options: Options,
    apps: HashMap<Arc<str>, App>,
    /// The apps of which nothing was appended yet, if the log was empty at the start.
    new_apps: Mutex<HashSet<Arc<str>>>,
    /// Of which event types which issue of payloads was logged.
    payload_issues: Mutex<HashSet<(Arc<str>, &'static str)>>,
    log: Arc<dyn Log>,
    metrics: Arc<Metrics>,
    bodies: Arc<Budget>,
    verifications: Semaphore,
    forgeries: Forgeries,
    misdirected: misdirected::Attempts,
    quiet: Quiet,
}

impl Shared {
    /// Whether the events that were just appended are the first of an app that is new to the log.
    fn is_first_of(&self, app: &App) -> bool {
        let mut new_apps = self.new_apps.lock().unwrap_or_else(PoisonError::into_inner);
        new_apps.remove(&app.id)
    }

    /// Counts the events of a verified batch, and says once for each type and issue that a payload
    /// lacks its message. Only known types have issues, so there are few lines.
    fn note_events(&self, app: &App, batch: &Batch) {
        for draft in &batch.drafts {
            let event_type = &draft.event_type;
            self.metrics.event_received(event_type);
            let Some((issue, member)) = decode::payload_issue(batch, draft) else {
                continue;
            };
            let issue = decode::issue_name(issue);
            self.metrics.payload_issue(event_type, issue);
            let mut logged = self
                .payload_issues
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if logged.insert((Arc::clone(event_type), issue)) {
                tracing::warn!(
                    app = &*app.id,
                    r#type = &**event_type,
                    issue,
                    member,
                    "a payload has no message, or one that is not exact; the event's JSON is complete"
                );
            }
        }
    }
}

impl Receiver {
    /// A receiver of the deliveries of `apps`, which it appends to `log`.
    #[must_use]
    pub fn new(options: Options, apps: Vec<App>, log: Arc<dyn Log>, metrics: Arc<Metrics>) -> Self {
        for app in &apps {
            age::register(&metrics, app);
        }
        let is_empty = log.range().head == Sequence::ZERO;
        let new_apps = apps.iter().filter(|_| is_empty);
        let new_apps = new_apps.map(|app| Arc::clone(&app.id)).collect();
        let apps = apps
            .into_iter()
            .map(|app| (Arc::clone(&app.id), app))
            .collect();
        Self {
            shared: Arc::new(Shared {
                apps,
                new_apps: Mutex::new(new_apps),
                payload_issues: Mutex::default(),
                log,
                metrics,
                bodies: Arc::new(Budget::new(budget::Limits {
                    bytes_max: options.bodies_bytes_max,
                    bytes_per_client_max: options.bodies_bytes_per_address_max,
                    body_bytes_max: options.body_bytes_max,
                })),
                quiet: Quiet::new(options.quiet),
                verifications: Semaphore::new(options.verifications_max),
                forgeries: Forgeries::new(options.forgeries),
                misdirected: misdirected::Attempts::new(),
                options,
            }),
        }
    }

    /// Serves the port until `shutdown` is cancelled; requests in flight are finished within the
    /// drain timeout. Dropping the future ends everything at once, except appends that the log
    /// has taken.
    pub async fn run(self, listener: net::Listener, shutdown: CancellationToken) -> net::Drained {
        let Options {
            connection,
            listener: limits,
            ..
        } = self.shared.options;
        let sources = self.shared.options.sources.clone();
        let listener = listener
            .only_from(move |address| sources.may_connect(address))
            .refusing_with(status::refusal);
        let metrics = Arc::clone(&self.shared.metrics);
        let service = warp::service(routes::routes(self.shared));
        let draining = shutdown.clone();
        listener
            .run(limits, metrics, shutdown, move |stream, peer| {
                http1::serve(stream, peer, connection, service.clone(), draining.clone())
            })
            .await
    }
}

#[cfg(fuzzing)]
impl Receiver {
    /// Serves one connection, whatever comes on it.
    pub async fn serve(&self, stream: tokio::net::TcpStream, peer: std::net::SocketAddr) {
        let service = warp::service(routes::routes(Arc::clone(&self.shared)));
        let limits = self.shared.options.connection;
        let shutdown = CancellationToken::new();
        http1::serve(stream.into(), peer, limits, service, shutdown).await;
    }
}

#[cfg(fuzzing)]
pub(crate) use forwarded::addresses;

#[cfg(test)]
mod tests;
