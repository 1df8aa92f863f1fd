//! Owns the wiring: which parts there are, in which order they start, and in which order they
//! stop. What the parts do is theirs.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    admin::Admin,
    bus::{self, Bus},
    config::{self, Config, Store},
    event::{Sequence, UnixMicros},
    log::{self, Log, embedded, memory},
    metrics::{self, Metrics},
    net::{self, Listener, http1},
    receiver::{self, Receiver, VerificationToken, source::Sources},
    signature::{self, KeySource, Keyring},
    stream::{self, Streams},
};

/// How often the log is asked whether it still takes events. A log that failed refuses them by
/// itself; this is only how soon the process ends so that a supervisor can start it anew.
const HEALTH_INTERVAL: Duration = Duration::from_millis(250);

/// Where key sets outlive a restart, below the data directory.
const KEY_CACHE_DIRECTORY: &str = "keys";

/// A running bridge.
pub struct Server {
    addresses: Addresses,
    drain_timeout: Duration,
    log: Arc<dyn Log>,
    keyrings: Vec<Keyring>,
    streams: Streams,
    metrics: Arc<Metrics>,
    /// Cancelled first: nothing new is taken, and what runs is brought to an end.
    draining: CancellationToken,
    /// Cancelled last: the admin port answers while the rest drains.
    stopping: CancellationToken,
    webhook: JoinHandle<net::Drained>,
    grpc: JoinHandle<net::Drained>,
    admin: JoinHandle<net::Drained>,
}

/// Where a bridge listens, with the ports that the system chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Prelude's deliveries.
    pub webhook: SocketAddr,
    /// Subscribers.
    pub grpc: SocketAddr,
    /// Health and metrics.
    pub admin: SocketAddr,
}

/// Why a bridge does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] net::Error),
    /// The log cannot be opened.
    #[error(transparent)]
    Open(#[from] embedded::OpenError),
    /// The system gives no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(#[from] getrandom::Error),
    /// The keys of an app cannot be had.
    #[error("the keys of app {app_id}: {source}")]
    Keys {
        /// The app.
        app_id: String,
        /// Why.
        source: signature::Error,
    },
    /// The gRPC services cannot be put together.
    #[error(transparent)]
    Streams(#[from] stream::Error),
    /// The log failed while the bridge ran.
    #[error("{0}")]
    Log(#[from] log::Error),
}

impl Server {
    /// Starts every part, from the log outwards: a port is open only when what is behind it works.
    ///
    /// # Errors
    /// What keeps it from running; nothing is left behind then.
    pub async fn start(config: &Config) -> Result<Self, Error> {
        // All ports before anything else: a second bridge on this machine should say that its
        // address is taken.
        let webhook = Listener::bind("webhook", "--webhook-listen", config.webhook_listen).await?;
        let grpc = Listener::bind("grpc", "--grpc-listen", config.grpc_listen).await?;
        let admin = Listener::bind("admin", "--admin-listen", config.admin_listen).await?;
        let addresses = Addresses {
            webhook: webhook.local_addr(),
            grpc: grpc.local_addr(),
            admin: admin.local_addr(),
        };
        let metrics = Arc::new(Metrics::new());
        let (log, bus) = open_log(config, &metrics)?;
        let keyrings = open_keyrings(config)?;
        let draining = CancellationToken::new();
        let stopping = CancellationToken::new();
        let streams = Streams::new(
            stream_options(config),
            Arc::clone(&log),
            Arc::clone(&bus),
            Arc::clone(&metrics),
        )
        .await?;
        watch(&metrics, &log, &bus, &streams, &keyrings);

        let receiver = Receiver::new(
            receiver_options(config),
            apps(config, &keyrings),
            Arc::clone(&log),
            Arc::clone(&metrics),
        );
        let webhook = tokio::spawn(receiver.run(webhook, draining.clone()));
        let server = streams.clone();
        let grpc = tokio::spawn(grpc.run(
            net::Limits {
                connections_max: config.grpc_limits.connections_max,
                // Subscribers are the operator's own, and often behind one proxy's address.
                connections_per_address_max: config.grpc_limits.connections_max,
                drain_timeout: connections_drain_timeout(config.drain_timeout),
            },
            Arc::clone(&metrics),
            draining.clone(),
            move |connection, peer| {
                let server = server.clone();
                async move { server.serve(connection, peer.into()).await }
            },
        ));
        let admin_service = Admin::new(
            Arc::clone(&metrics),
            Arc::clone(&log),
            keyrings.clone(),
            draining.clone(),
        );
        let admin = tokio::spawn(admin_service.run(admin, stopping.clone()));
        Ok(Self {
            addresses,
            drain_timeout: config.drain_timeout,
            log,
            keyrings,
            streams,
            metrics,
            draining,
            stopping,
            webhook,
            grpc,
            admin,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// What it counts.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The keys of each configured app.
    #[must_use]
    pub fn keyrings(&self) -> &[Keyring] {
        &self.keyrings
    }

    /// Runs until `shutdown` resolves, then drains: not ready, no new connections, every request
    /// in flight answered, every stream ended with its cursor, the log closed.
    ///
    /// # Errors
    /// [`Error::Log`] when the log failed meanwhile. It drains then too, but a failed log cannot
    /// be closed in order.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let failed = tokio::select! {
            () = shutdown => None,
            error = failure(&*self.log) => Some(error),
        };
        self.draining.cancel();
        let drained = async {
            // Deliveries first: their events can still reach the streams. But a sender that dawdles
            // takes no more than half of the time, or no stream would get its last words.
            let patience = self.drain_timeout / 2;
            let deliveries = tokio::time::timeout(patience, &mut self.webhook).await;
            self.streams.drain().await;
            if deliveries.is_err() {
                let _ = self.webhook.await;
            }
            let _ = self.grpc.await;
        };
        let deadline = connections_drain_timeout(self.drain_timeout);
        if tokio::time::timeout(deadline, drained).await.is_err() {
            tracing::warn!(?deadline, "not everything had ended in time");
        }
        for keyring in &self.keyrings {
            keyring.shutdown().await;
        }
        self.log.close().await;
        self.stopping.cancel();
        self.admin.abort();
        failed.map_or(Ok(()), |error| Err(error.into()))
    }
}

/// What connections get of the drain timeout: the last tenth is for closing the log.
fn connections_drain_timeout(drain_timeout: Duration) -> Duration {
    drain_timeout.mul_f32(0.9)
}

/// Resolves when the log will not take events again.
async fn failure(log: &dyn Log) -> log::Error {
    let mut interval = tokio::time::interval(HEALTH_INTERVAL);
    loop {
        interval.tick().await;
        match log.health() {
            Err(error @ (log::Error::Failed(_) | log::Error::Closed)) => return error,
            // A full disk or queue passes.
            Err(log::Error::NoSpace | log::Error::Overloaded) | Ok(()) => {}
        }
    }
}

fn open_log(config: &Config, metrics: &Arc<Metrics>) -> Result<(Arc<dyn Log>, Arc<Bus>), Error> {
    let options = bus::Options {
        window_bytes_max: config.bus_limits.window_bytes_max.as_usize(),
    };
    // The bus begins at the head of the log, which is known only once the log is open, and the log
    // publishes to the bus from then on. Nothing is appended in between.
    let bus = Bus::new(options, Sequence::ZERO);
    let tail = Arc::clone(&bus);
    let tail: log::Tail = Box::new(move |block| tail.publish(&block));
    let log: Arc<dyn Log> = match config.store {
        Store::Memory => {
            let options = memory::Options {
                retention_age: config.retention.age_max,
                ..memory::Options::default()
            };
            memory::open(options, tail)?
        }
        Store::Embedded => {
            let commits = Arc::clone(metrics);
            let options = embedded::Options {
                retention_age: config.retention.age_max,
                retention_bytes: config.retention.bytes_max.0,
                ids_age: config.retention.id_age_min,
                queue_batches_max: config.log_limits.queue_batches_max,
                queue_bytes_max: config.log_limits.queue_bytes_max.as_usize(),
                on_commit: Some(Arc::new(move |commit: embedded::Commit| {
                    let events = usize::try_from(commit.events).unwrap_or(usize::MAX);
                    let bytes = usize::try_from(commit.bytes).unwrap_or(usize::MAX);
                    commits.committed(events, bytes, commit.duration);
                })),
                ..embedded::Options::default()
            };
            embedded::open(&config.data_dir, options, tail)?
        }
    };
    bus.begin_at(log.range().head);
    Ok((log, bus))
}

fn open_keyrings(config: &Config) -> Result<Vec<Keyring>, Error> {
    // A trial in memory leaves nothing behind.
    let cache = match config.store {
        Store::Embedded => Some(config.data_dir.join(KEY_CACHE_DIRECTORY)),
        Store::Memory => None,
    };
    let open = |app: &config::App| open_keyring(app, cache.as_deref());
    config.apps.iter().map(open).collect()
}

fn open_keyring(app: &config::App, cache: Option<&Path>) -> Result<Keyring, Error> {
    let source = match &app.keys {
        config::KeySource::JwksUrl(url) => KeySource::url(url),
        config::KeySource::JwksFile(path) => Ok(KeySource::JwksFile(path.clone())),
        config::KeySource::PemFile(path) => Ok(KeySource::PemFile(path.clone())),
    };
    source
        .and_then(|source| Keyring::open(&app.id, source, signature::Options::default(), cache))
        .map_err(|source| Error::Keys {
            app_id: app.id.clone(),
            source,
        })
}

fn apps(config: &Config, keyrings: &[Keyring]) -> Vec<receiver::App> {
    let pairs = config.apps.iter().zip(keyrings);
    pairs
        .map(|(app, keyring)| receiver::App {
            id: app.id.as_str().into(),
            verification_token: VerificationToken::new(app.verification_token.expose()),
            keyring: keyring.clone(),
        })
        .collect()
}

fn receiver_options(config: &Config) -> receiver::Options {
    let limits = config.webhook_limits;
    receiver::Options {
        sources: Sources {
            allowed: config.allowed_sources.networks().into(),
            proxies: config.trusted_proxies.clone().into(),
        },
        body_bytes_max: limits.body_bytes_max.as_usize(),
        request_timeout: limits.request_timeout,
        connection: http1::Limits {
            header_timeout: limits.header_timeout,
            ..http1::Limits::default()
        },
        listener: net::Limits {
            connections_max: limits.connections_max,
            connections_per_address_max: limits.connections_per_address_max,
            drain_timeout: connections_drain_timeout(config.drain_timeout),
        },
        ..receiver::Options::default()
    }
}

fn stream_options(config: &Config) -> stream::Options {
    let limits = config.grpc_limits;
    let streams_max = limits.streams_per_connection_max;
    stream::Options {
        streams_max: limits.streams_max,
        streams_per_connection_max: u32::try_from(streams_max).unwrap_or(u32::MAX),
        header_bytes_max: u32::try_from(limits.header_bytes_max.0).unwrap_or(u32::MAX),
        request_bytes_max: limits.request_bytes_max.as_usize(),
        response_bytes_max: limits.response_bytes_max.as_usize(),
        ping_interval: limits.ping_interval,
        ping_timeout: limits.ping_timeout,
        slow_consumer_timeout: limits.slow_consumer_timeout,
        web_origins: config
            .web_origins
            .iter()
            .map(|origin| origin.0.clone())
            .collect(),
        ..stream::Options::default()
    }
}

/// Lets a scrape see what is not counted but simply there.
fn watch(
    metrics: &Metrics,
    log: &Arc<dyn Log>,
    bus: &Arc<Bus>,
    streams: &Streams,
    keyrings: &[Keyring],
) {
    let watched = Arc::downgrade(log);
    metrics.watch_log(move || {
        watched.upgrade().map_or_else(metrics::Log::default, |log| {
            let (range, usage) = (log.range(), log.usage());
            metrics::Log {
                stored_bytes: usage.stored_bytes,
                queued_batches: usage.queued_batches,
                head_sequence: range.head.0,
                earliest_sequence: range.earliest.0,
            }
        })
    });
    let watched = Arc::downgrade(bus);
    metrics.watch_bus(move || {
        watched
            .upgrade()
            .map_or_else(metrics::Bus::default, |bus| metrics::Bus {
                window_bytes: bus.window_bytes() as u64,
                window_blocks: bus.window_blocks(),
            })
    });
    let (watched, window) = (streams.watch(), Arc::downgrade(bus));
    metrics.watch_streams(move || {
        let snapshot = watched();
        let bus = window.upgrade();
        let waiting_since = snapshot
            .slowest
            .and_then(|place| bus?.received_after(place));
        let lag = waiting_since.map_or(0, |since| UnixMicros::now().0.saturating_sub(since.0));
        metrics::Streams {
            subscribers: snapshot.open,
            lag_events_max: snapshot.lag_events_max,
            lag_max: Duration::from_micros(u64::try_from(lag).unwrap_or(0)),
        }
    });
    let watched = keyrings.to_vec();
    metrics.watch_keys(move || watched.iter().map(keys).collect());
}

fn keys(keyring: &Keyring) -> metrics::Keys {
    let status = keyring.status();
    metrics::Keys {
        app_id: keyring.app_id().into(),
        usable: status.keys.len(),
        age: status.fetched_at.and_then(|at| at.elapsed().ok()),
    }
}
