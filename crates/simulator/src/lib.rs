//! A local simulator of Prelude: app hosts with key sets, the management API, the activation challenge,
//! and signed deliveries with retries, on loopback sockets. It plays Prelude Auth, Verify and Notify. It
//! does what Prelude documents, and has a switch for every plausible form of what Prelude does not
//! document.
//!
//! It shares no code with the bridge, so that the same mistake cannot be in both.
//!
//! ```text
//! events   -> batch    -> delivery (keys, schedule) -> POST to the receiver
//! webhooks -> activation (challenge)                -> GET  to the receiver
//! host     <- JWKS and management API               <- requests from the receiver's side
//! ledger   what was sent, how often, and what was acknowledged
//! ```
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use prelude_bridge_simulator::{Options, Simulator, events::EventType};
//!
//! let simulator = Simulator::start(Options::default()).await?;
//! let url = "http://127.0.0.1:8080/webhooks/54e9ujn";
//! let webhook = simulator.connect("54e9ujn", url, "token", &EventType::AUTH).await?;
//! let batch = simulator.batch("54e9ujn", 10, &[])?;
//! let outcome = simulator.deliver(&webhook, batch).await?;
//! # Ok(()) }
//! ```

use std::{net::SocketAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio_util::sync::DropGuard;

pub mod activation;
pub mod batch;
pub mod delivery;
mod error;
pub mod event_type;
pub mod events;
mod host;
pub mod keys;
pub mod ledger;
mod management;
pub mod options;
pub mod random;
pub mod scenario;
pub mod schedule;
mod signing;
mod state;
pub mod traffic;
pub mod webhooks;

pub use self::{
    batch::Batch,
    delivery::{Answer, Ticket},
    error::Error,
    event_type::{EventType, SourceKind},
    events::Event,
    keys::SigningKey,
    ledger::{Ledger, Outcome},
    options::{ApiStyle, AppOptions, Faults, Options, WireStyle},
    schedule::RetrySchedule,
};
use self::{
    delivery::AttemptFailure,
    state::{App, Simulation, lock},
    webhooks::{Draft, Registry},
};

/// The most events one batch of the generator holds: about half the bridge's body limit.
pub const BATCH_EVENTS_MAX: usize = 1_000;

/// How long a stop waits for connections and requests to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What [`Simulator::emit`] sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Emitted {
    /// Events that were sent to at least one webhook.
    pub events: usize,
    /// Requests: a batch for each webhook that has chosen an event of it, or one for each event.
    pub batches: usize,
}

/// A running simulator. Cheap to clone; dropping the last clone ends everything that it runs.
#[derive(Clone)]
pub struct Simulator {
    simulation: Arc<Simulation>,
    address: SocketAddr,
    _stop: Arc<DropGuard>,
}

impl std::fmt::Debug for Simulator {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Simulator")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Simulator {
    /// Makes the keys that are missing, binds, and serves. Each key takes tenths of a second.
    ///
    /// # Errors
    /// [`Error::Options`], [`Error::Listen`], [`Error::Key`], [`Error::Client`], [`Error::Seed`].
    pub async fn start(options: Options) -> Result<Self, Error> {
        options.check()?;
        let address = options.listen;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| Error::Listen { address, source })?;
        let address = listener
            .local_addr()
            .map_err(|source| Error::Listen { address, source })?;
        let seed = match options.seed {
            Some(seed) => seed,
            None => getrandom::u64().map_err(Error::Seed)?,
        };
        let client = client(&options)?;
        let simulation =
            tokio::task::spawn_blocking(move || Simulation::new(options, seed, client))
                .await
                .map_err(|_| Error::Stopped)??;
        let simulation = Arc::new(simulation);
        simulation
            .tasks
            .spawn(host::serve(listener, Arc::clone(&simulation)));
        let stop = Arc::new(simulation.stopped.clone().drop_guard());
        Ok(Self {
            simulation,
            address,
            _stop: stop,
        })
    }

    /// The address on which it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The base of the management API, for `--api-url`.
    #[must_use]
    pub fn api_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The management key, which the management API takes as a bearer token.
    #[must_use]
    pub fn management_token(&self) -> &str {
        &self.simulation.options.management_token
    }

    /// What an app or source is.
    ///
    /// # Errors
    /// [`Error::UnknownApp`].
    pub fn kind(&self, app_id: &str) -> Result<SourceKind, Error> {
        Ok(self.app(app_id)?.kind)
    }

    /// The ids of its apps and sources.
    pub fn app_ids(&self) -> impl Iterator<Item = &str> {
        self.simulation.apps.keys().map(String::as_str)
    }

    /// The seed its events and faults follow.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.simulation.seed
    }

    /// Changes how deliveries look from now on.
    pub fn set_wire(&self, wire: WireStyle) {
        *lock(&self.simulation.wire) = wire;
    }

    /// How deliveries look now.
    #[must_use]
    pub fn wire(&self) -> WireStyle {
        *lock(&self.simulation.wire)
    }

    /// Changes what goes wrong from now on.
    ///
    /// # Errors
    /// [`Error::Options`] if a share is no probability.
    pub fn set_faults(&self, faults: Faults) -> Result<(), Error> {
        faults.check()?;
        *lock(&self.simulation.faults) = faults;
        Ok(())
    }

    /// The faults in force.
    #[must_use]
    pub fn faults(&self) -> Faults {
        *lock(&self.simulation.faults)
    }

    /// Registers a webhook and activates it, as a user does in two calls. Returns its id. A source of
    /// Verify or Notify sends to any URL without asking, so it only notes this one.
    ///
    /// # Errors
    /// [`Error::Activation`] if the receiver does not meet the challenge (nothing is registered
    /// then); [`Error::UnknownApp`], [`Error::Webhook`].
    pub async fn connect(
        &self,
        app_id: &str,
        url: &str,
        verification_token: &str,
        events: &[EventType],
    ) -> Result<String, Error> {
        if self.kind(app_id)? != SourceKind::Auth {
            let add = |registry: &mut Registry| registry.add_callback(app_id, url, events);
            return Ok(self.simulation.change_webhooks(add)?.id);
        }
        let draft = Draft {
            url: Some(url.to_owned()),
            verification_token: Some(verification_token.to_owned()),
            events: Some(events.to_vec()),
        };
        let id = self
            .simulation
            .change_webhooks(|registry| registry.create(app_id, draft))?
            .id;
        match management::activate(&self.simulation, app_id, &id).await {
            Ok(_) => Ok(id),
            Err(error) => {
                self.simulation
                    .change_webhooks(|registry| registry.delete(app_id, &id))?;
                Err(match error {
                    management::Error::Activation(failure) => Error::Activation(failure),
                    management::Error::Webhook(error) => Error::Webhook(error),
                    _ => Error::UnknownWebhook(id),
                })
            }
        }
    }

    /// Waits until some app has an active webhook. False if the simulator stops before.
    pub async fn wait_for_webhook(&self) -> bool {
        let mut active = self.simulation.active.subscribe();
        tokio::select! {
            changed = active.wait_for(|count| *count > 0) => changed.is_ok(),
            () = self.simulation.stopped.cancelled() => false,
        }
    }

    /// The next events of an app, of these types (of all of its kind if none is given).
    ///
    /// # Errors
    /// [`Error::UnknownApp`], [`Error::BatchSize`].
    pub fn events(
        &self,
        app_id: &str,
        count: usize,
        types: &[EventType],
    ) -> Result<Vec<Event>, Error> {
        if count > BATCH_EVENTS_MAX {
            return Err(Error::BatchSize(count));
        }
        let app = self.app(app_id)?;
        let types = if types.is_empty() {
            app.kind.event_types()
        } else {
            types
        };
        let (ids, late) = (self.wire().item.ids, self.faults().late);
        let mut generator = lock(&app.generator);
        Ok((0..count)
            .map(|_| generator.next(Timestamp::now(), types, ids, late))
            .collect())
    }

    /// The next events of an app as one body.
    ///
    /// # Errors
    /// Those of [`Simulator::events`]; [`Error::NotOneEvent`] for a source that sends single events.
    pub fn batch(&self, app_id: &str, count: usize, types: &[EventType]) -> Result<Batch, Error> {
        let events = self.events(app_id, count, types)?;
        let mut bodies = self.encode(app_id, &events)?;
        match (bodies.pop(), bodies.is_empty()) {
            (Some(body), true) => Ok(body),
            _ => Err(Error::NotOneEvent(count)),
        }
    }

    /// These events as an app or source of this kind sends them: in one batch, or each by itself.
    ///
    /// # Errors
    /// [`Error::UnknownApp`], [`Error::Json`].
    pub fn encode(&self, app_id: &str, events: &[Event]) -> Result<Vec<Batch>, Error> {
        let style = self.wire().item;
        if self.kind(app_id)?.sends_batches() {
            return Ok(vec![Batch::encode(app_id, events, style)?]);
        }
        let each = events.iter();
        let bodies = each.map(|event| Batch::encode_single(app_id, event, style));
        Ok(bodies.collect::<Result<_, _>>()?)
    }

    /// One POST to any URL, signed by the batch's app, without retries and without an entry in
    /// the ledger.
    ///
    /// # Errors
    /// [`Error::NoAnswer`] says what happened instead of an answer; [`Error::UnknownApp`].
    pub async fn post(&self, url: &str, batch: &Batch) -> Result<Answer, Error> {
        delivery::post(&self.simulation, url, batch)
            .await
            .map_err(|failure| match failure {
                AttemptFailure::Http(result) => Error::NoAnswer(result),
                AttemptFailure::Own(error) => error,
            })
    }

    /// Puts a batch on its way to a webhook, with retries, and returns at once (or as soon as
    /// there is room for one more).
    ///
    /// # Errors
    /// [`Error::UnknownWebhook`], [`Error::UnknownApp`], [`Error::Stopped`].
    pub async fn send(&self, webhook_id: &str, batch: Batch) -> Result<Ticket, Error> {
        delivery::start(&self.simulation, webhook_id, batch).await
    }

    /// Puts a batch on its way and waits for how it ends.
    ///
    /// # Errors
    /// Those of [`Simulator::send`].
    pub async fn deliver(&self, webhook_id: &str, batch: Batch) -> Result<Outcome, Error> {
        Ok(self.send(webhook_id, batch).await?.outcome().await)
    }

    /// Sends the next events of an app to every active webhook of the app that wants them.
    ///
    /// # Errors
    /// Those of [`Simulator::events`] and [`Simulator::send`].
    pub async fn emit(
        &self,
        app_id: &str,
        count: usize,
        types: &[EventType],
    ) -> Result<Emitted, Error> {
        let events = self.events(app_id, count, types)?;
        self.emit_events(app_id, &events).await
    }

    /// Sends these events to every active webhook of the app that wants them.
    ///
    /// # Errors
    /// Those of [`Simulator::send`].
    pub async fn emit_events(&self, app_id: &str, events: &[Event]) -> Result<Emitted, Error> {
        let targets: Vec<(String, Vec<EventType>)> = {
            let registry = lock(&self.simulation.registry);
            let active = registry.of_app(app_id).filter(|webhook| webhook.active);
            active
                .map(|webhook| (webhook.id.clone(), webhook.events.clone()))
                .collect()
        };
        let mut emitted = Emitted::default();
        let mut wanted = vec![false; events.len()];
        for (webhook_id, types) in targets {
            let mut chosen = Vec::new();
            for (event, wanted) in events.iter().zip(&mut wanted) {
                if types
                    .iter()
                    .any(|chosen| chosen.as_str() == event.event_type)
                {
                    *wanted = true;
                    chosen.push(event.clone());
                }
            }
            if chosen.is_empty() {
                continue;
            }
            for body in self.encode(app_id, &chosen)? {
                self.send(&webhook_id, body).await?;
                emitted.batches += 1;
            }
        }
        emitted.events = wanted.iter().filter(|wanted| **wanted).count();
        Ok(emitted)
    }

    /// How many batches are on their way, those waiting for a retry included.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        *self.simulation.outstanding.borrow()
    }

    /// Waits until no batch is on its way. False if some still are after this time.
    pub async fn settle(&self, timeout: Duration) -> bool {
        let mut outstanding = self.simulation.outstanding.subscribe();
        let settled = outstanding.wait_for(|count| *count == 0);
        matches!(tokio::time::timeout(timeout, settled).await, Ok(Ok(_)))
    }

    /// A copy of the ledger. Copying takes time: do not call this in a loop.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        lock(&self.simulation.ledger).clone()
    }

    /// The sums of the ledger. Cheap.
    #[must_use]
    pub fn totals(&self) -> ledger::Totals {
        lock(&self.simulation.ledger).totals()
    }

    /// Ends everything it runs: batches on their way are abandoned, connections closed. The
    /// ledger can still be read.
    pub async fn stop(&self) {
        self.simulation.stopped.cancel();
        self.simulation.tasks.close();
        // What is not over by then are connections whose client does not read.
        let _ = tokio::time::timeout(STOP_TIMEOUT, self.simulation.tasks.wait()).await;
    }

    fn app(&self, app_id: &str) -> Result<&App, Error> {
        self.simulation
            .apps
            .get(app_id)
            .ok_or_else(|| Error::UnknownApp(app_id.to_owned()))
    }
}

/// A client that behaves like a sender out on the internet: no proxy of this machine, no redirects
/// followed.
fn client(options: &Options) -> Result<reqwest::Client, Error> {
    reqwest::Client::builder()
        .user_agent(concat!("prelude-simulator/", env!("CARGO_PKG_VERSION")))
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(options.answer_timeout)
        .tls_certs_merge(options.issuers.iter().cloned())
        .pool_max_idle_per_host(options.requests_max)
        .build()
        .map_err(Error::Client)
}
