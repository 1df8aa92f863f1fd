//! Owns the wiring: which parts the bridge has, and the order in which they start and stop.

mod check;
mod open;
mod options;
mod store;
mod verification;
mod watch;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin::{Admin, Readiness},
    config::{self, Config},
    credentials::{self, Credentials},
    decode, grpc,
    http2::{self, Caller},
    log::{self, Log},
    metrics::Metrics,
    net::{self, Connection, Listener, tls},
    permissions,
    receiver::Receiver,
    signature::{self, Keyring},
};

pub use self::{
    check::{Findings, check},
    store::StoreError,
};
pub(crate) use self::{
    open::inspect_permissions,
    store::{Missing, connect},
};

/// A running bridge.
pub struct Server {
    addresses: Addresses,
    drain_timeout: Duration,
    log: Arc<dyn Log>,
    keyrings: Vec<Keyring>,
    streams: grpc::Server,
    metrics: Arc<Metrics>,
    /// Cancelled first: the ports accept nothing new and finish what runs.
    draining: CancellationToken,
    /// Cancelled last: the admin port answers while the rest drains.
    stopping: CancellationToken,
    webhook: JoinHandle<net::Drained>,
    grpc: JoinHandle<net::Drained>,
    admin: JoinHandle<net::Drained>,
    credentials: Credentials,
    /// The tasks that replace certificates and verification tokens when their files change.
    watches: TaskTracker,
}

/// The addresses of a bridge, with the ports that the system chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// For Prelude's deliveries.
    pub webhook: SocketAddr,
    /// For subscribers.
    pub grpc: SocketAddr,
    /// For health and metrics.
    pub admin: SocketAddr,
}

/// Makes a running bridge read keys, credentials and certificates again.
#[derive(Clone)]
pub struct Reload {
    keyrings: Vec<Keyring>,
    credentials: Credentials,
}

impl Reload {
    /// Requests it and does not wait. Invalid files change nothing and are logged. Credentials,
    /// verification tokens and certificates are also read every second.
    pub fn now(&self) {
        self.keyrings.iter().for_each(Keyring::read_again);
        self.credentials.read_again();
    }
}

/// Why a bridge does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bridge cannot listen on an address.
    #[error(transparent)]
    Listen(#[from] net::Error),
    /// The credentials of subscribers cannot be used.
    #[error(transparent)]
    Credentials(#[from] credentials::Error),
    /// Other users can change files that the bridge trusts.
    #[error(transparent)]
    Permissions(#[from] permissions::Untrusted),
    /// Other machines could connect to the gRPC port, and no credential is configured.
    #[error(
        "the gRPC port would be open to everybody who reaches {address}, and no credential is \
         configured"
    )]
    Exposed {
        /// The address of the gRPC port.
        address: SocketAddr,
    },
    /// A certificate is not valid yet, or not any more. The bridge starts with it, and warns.
    #[error("TLS of the {listener} port: {complaint}: {}", path.display())]
    Certificate {
        /// The port.
        listener: &'static str,
        /// What is wrong with its dates.
        complaint: String,
        /// Its file.
        path: PathBuf,
    },
    /// A port cannot do TLS.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The store cannot be used.
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    /// A file that the bridge needs to connect to the store cannot be read.
    #[error("the file {} for the store cannot be read: {source}", path.display())]
    StoreFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The log cannot be opened.
    #[error(transparent)]
    Open(#[from] log::OpenError),
    /// The log cannot be followed.
    #[error("the log cannot be followed: {0}")]
    Follow(#[source] log::Gap),
    /// The system gives no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(#[from] getrandom::Error),
    /// The keys of an app or another source of events cannot be loaded.
    #[error("the keys of {of}: {source}")]
    Keys {
        /// Whose, such as `app 54e9ujn`.
        of: String,
        /// Why.
        source: signature::Error,
    },
    /// The gRPC services cannot be built.
    #[error(transparent)]
    Streams(#[from] grpc::Error),
    /// The log failed while the bridge ran.
    #[error("{0}")]
    Log(#[from] log::Error),
}

/// The ports, bound but not served yet.
struct Ports {
    addresses: Addresses,
    webhook: Listener,
    grpc: Listener,
    admin: Listener,
    /// Reload the certificates when their files change.
    certificates: Vec<tls::Watch>,
}

impl Ports {
    /// Binds all ports before anything else is opened, so that a second bridge on this machine reports
    /// that its address is in use.
    async fn bind(config: &Config, metrics: &Arc<Metrics>) -> Result<Self, Error> {
        let webhook = Listener::bind("webhook", "--webhook-listen", config.webhook_listen).await?;
        let grpc = Listener::bind("grpc", "--grpc-listen", config.grpc_listen).await?;
        let admin = Listener::bind("admin", "--admin-listen", config.admin_listen).await?;
        open::check_permissions(config)?;
        let (webhook_tls, webhook_watch) =
            open::tls_port("webhook", config.tls.of_webhook(), metrics)?;
        let (grpc_tls, grpc_watch) = open::tls_port("grpc", config.tls.of_grpc(), metrics)?;
        Ok(Self {
            addresses: Addresses {
                webhook: webhook.local_addr(),
                grpc: grpc.local_addr(),
                admin: admin.local_addr(),
            },
            webhook: webhook
                .with_tls(webhook_tls)
                .exempting(options::is_in(&config.trusted_proxies))
                .with_quiet(config.into()),
            grpc: grpc
                .with_tls(grpc_tls)
                .exempting(options::is_in(&config.grpc_proxies))
                .refusing_with(http2::refusal)
                .with_quiet(config.into()),
            admin: admin.with_quiet(config.into()),
            certificates: [webhook_watch, grpc_watch].into_iter().flatten().collect(),
        })
    }
}

impl Server {
    /// Starts every part, from the log outwards: a port opens only when the parts behind it work.
    ///
    /// # Errors
    /// Why the bridge cannot start. Nothing is left running then.
    pub async fn start(config: &Config) -> Result<Self, Error> {
        let metrics = Arc::new(Metrics::new());
        metrics.expect_types(decode::event_types());
        let ports = Ports::bind(config, &metrics).await?;
        let (log, bus) = open::log(config, &metrics).await?;
        // After the log, which checks the data directory that the keys are in.
        let credentials = Credentials::open(config.credentials_options()).await?;
        refuse_exposure(config, ports.addresses.grpc, &credentials)?;
        let keyrings = open::keyrings(config)?;
        let draining = CancellationToken::new();
        let stopping = CancellationToken::new();
        let streams = grpc::Server::new(
            config.into(),
            credentials.clone(),
            Arc::clone(&log),
            Arc::clone(&bus),
            Arc::clone(&metrics),
        )
        .await?;
        watch::everything(&metrics, &log, &bus, &streams, &keyrings, &credentials);

        let apps = options::apps(config, &keyrings);
        let verification_tokens = verification::Watch::new(config, &apps);
        let receiver = Receiver::new(config.into(), apps, Arc::clone(&log), Arc::clone(&metrics));
        let webhook = tokio::spawn(receiver.run(ports.webhook, draining.clone()));
        let server = streams.clone();
        let grpc = tokio::spawn(ports.grpc.run(
            options::of_grpc_listener(config),
            Arc::clone(&metrics),
            draining.clone(),
            move |connection: Connection, address| {
                let server = server.clone();
                let certificate = connection.certificate().cloned();
                let caller = Caller {
                    certificate,
                    standing: connection.standing().clone(),
                    ..Caller::from(address)
                };
                async move { server.serve(connection, caller).await }
            },
        ));
        let watches = TaskTracker::new();
        for watch in ports.certificates {
            watches.spawn(watch.run(draining.clone()));
        }
        watches.spawn(verification_tokens.run(draining.clone()));
        watches.close();
        let readiness = Readiness::new(Arc::clone(&log), &keyrings, draining.clone())
            .with_credentials(credentials.clone());
        let admin_limits = options::of_admin_listener(config);
        let admin_service = Admin::new(admin_limits, Arc::clone(&metrics), readiness);
        let admin = tokio::spawn(admin_service.run(ports.admin, stopping.clone()));
        Ok(Self {
            addresses: ports.addresses,
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
            credentials,
            watches,
        })
    }

    /// The addresses that it listens on.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Its metrics.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Its readiness, as `/readyz` reports it.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let log = Arc::clone(&self.log);
        Readiness::new(log, &self.keyrings, self.draining.clone())
            .with_credentials(self.credentials.clone())
    }

    /// The keys of each configured app.
    #[must_use]
    pub fn keyrings(&self) -> &[Keyring] {
        &self.keyrings
    }

    /// The handle with which an operator's signal makes it read its files again.
    #[must_use]
    pub fn reload(&self) -> Reload {
        Reload {
            keyrings: self.keyrings.clone(),
            credentials: self.credentials.clone(),
        }
    }

    /// Runs until `shutdown` resolves, then drains: not ready, no new connections, every request
    /// in flight answered, every stream ended with its cursor, the log closed.
    ///
    /// # Errors
    /// [`Error::Log`] if the log failed. The bridge drains then too, but a failed log cannot be closed in
    /// order.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let failed = tokio::select! {
            () = shutdown => None,
            error = failure(&*self.log) => Some(error),
        };
        self.draining.cancel();
        let drained = async {
            // Deliveries first, so that their events still reach the streams. A slow sender gets at most
            // half of the time, so that streams get their last responses.
            let patience = self.drain_timeout / 2;
            let deliveries = tokio::time::timeout(patience, &mut self.webhook).await;
            self.streams.drain().await;
            if deliveries.is_err() {
                let _ = self.webhook.await;
            }
            let _ = self.grpc.await;
            self.watches.wait().await;
            self.credentials.shutdown().await;
        };
        let deadline = options::connections_drain_timeout(self.drain_timeout);
        if tokio::time::timeout(deadline, drained).await.is_err() {
            let deadline = config::show_duration(deadline);
            tracing::warn!(%deadline, "not everything had ended in time");
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

/// Keeps other machines out by default: without credentials, the gRPC port must be on loopback unless
/// the operator allows anonymous subscribers.
fn refuse_exposure(
    config: &Config,
    address: SocketAddr,
    credentials: &Credentials,
) -> Result<(), Error> {
    let anonymous = config.allow_anonymous;
    if anonymous {
        tracing::warn!(
            %address,
            "everybody who reaches the gRPC port may read all events: allow_anonymous is set"
        );
    }
    if anonymous || credentials.is_configured() || address.ip().is_loopback() {
        return Ok(());
    }
    Err(Error::Exposed { address })
}

/// Resolves when the log will not accept events again.
async fn failure(log: &dyn Log) -> log::Error {
    let health = log.status().health_where(log::Health::is_final).await;
    health.refusal().unwrap_or(log::Error::Closed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{Sequence, testing as fixtures},
        log::{Block, Gap, memory},
    };

    #[tokio::test]
    async fn a_log_that_cannot_be_followed_ends_the_bridge_with_the_reason() {
        let log = memory::open(memory::Options::default()).unwrap();
        let gap = Gap::Missing {
            expected: Sequence(1),
            found: Sequence(7),
        };
        let follower = move |_: &Arc<Block>| Err(gap);
        log.follow(Sequence::ZERO, Arc::new(follower)).unwrap();
        let failure = tokio::spawn({
            let log = Arc::clone(&log);
            async move { failure(&*log).await }
        });
        log.suspend("it passes");
        log.resume();
        let refused = log.append(fixtures::numbered("app", 0..1)).await;
        let failed = log::Error::Failed(gap.to_string().into());
        assert_eq!(refused, Err(failed.clone()));
        assert_eq!(failure.await.unwrap(), failed);
    }
}
