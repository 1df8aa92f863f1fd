//! Owns the wiring: which parts there are, in which order they start, and in which order they
//! stop. What the parts do is theirs.

mod check;
mod open;
mod options;
mod watch;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin::{Admin, Readiness},
    config::{self, Config},
    credentials::{self, Credentials},
    grpc,
    http2::{self, Caller},
    log::{self, Log},
    metrics::Metrics,
    net::{self, Connection, Listener, tls},
    permissions,
    receiver::Receiver,
    signature::{self, Keyring},
};

pub use self::check::{Findings, check};
pub(crate) use self::open::inspect_permissions;

/// A running bridge.
pub struct Server {
    addresses: Addresses,
    drain_timeout: Duration,
    log: Arc<dyn Log>,
    keyrings: Vec<Keyring>,
    streams: grpc::Server,
    metrics: Arc<Metrics>,
    /// Cancelled first: nothing new is taken, and what runs is brought to an end.
    draining: CancellationToken,
    /// Cancelled last: the admin port answers while the rest drains.
    stopping: CancellationToken,
    webhook: JoinHandle<net::Drained>,
    grpc: JoinHandle<net::Drained>,
    admin: JoinHandle<net::Drained>,
    credentials: Credentials,
    /// What replaces certificates when their files change.
    certificates: TaskTracker,
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

/// Has what a bridge can take over while it runs read again at once.
#[derive(Clone)]
pub struct Reload {
    keyrings: Vec<Keyring>,
    credentials: Credentials,
}

impl Reload {
    /// Asks for it, and waits for nothing. What cannot be used changes nothing; the log says so.
    /// Credentials and certificates are read every second anyway.
    pub fn now(&self) {
        self.keyrings.iter().for_each(Keyring::read_again);
        self.credentials.read_again();
    }
}

/// Why a bridge does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] net::Error),
    /// The credentials of subscribers cannot be used.
    #[error(transparent)]
    Credentials(#[from] credentials::Error),
    /// Others can change what the bridge trusts.
    #[error(transparent)]
    Permissions(#[from] permissions::Untrusted),
    /// Others than this machine could subscribe, and nothing says who may.
    #[error(
        "the gRPC port would be open to everybody who reaches {address}, and no credential is \
         configured"
    )]
    Exposed {
        /// Where it would listen.
        address: SocketAddr,
    },
    /// A certificate whose time has not come or is over. A bridge starts with it, and warns.
    #[error("TLS of the {listener} port: {complaint}: {}", path.display())]
    Certificate {
        /// Which port.
        listener: &'static str,
        /// What is wrong with its dates.
        complaint: String,
        /// Its file.
        path: PathBuf,
    },
    /// A port cannot do TLS.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The log cannot be opened.
    #[error(transparent)]
    Open(#[from] log::OpenError),
    /// The log cannot be followed.
    #[error("the log cannot be followed: {0}")]
    Follow(#[source] log::Gap),
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
    /// Binds all ports before anything else is opened: a second bridge on this machine should say that
    /// its address is taken.
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
            webhook: open::secured(webhook, webhook_tls, config)
                .exempting(options::is_in(&config.trusted_proxies))
                .with_quiet(config.into()),
            grpc: grpc
                .with_tls(grpc_tls)
                .exempting(options::is_in(&config.grpc_proxies))
                .evicting()
                .refusing_with(http2::refusal)
                .with_quiet(config.into()),
            admin,
            certificates: [webhook_watch, grpc_watch].into_iter().flatten().collect(),
        })
    }
}

impl Server {
    /// Starts every part, from the log outwards: a port is open only when what is behind it works.
    ///
    /// # Errors
    /// What keeps it from running; nothing is left behind then.
    pub async fn start(config: &Config) -> Result<Self, Error> {
        let metrics = Arc::new(Metrics::new());
        let ports = Ports::bind(config, &metrics).await?;
        let (log, bus) = open::log(config, &metrics)?;
        // After the log, which judges the data directory that they are in.
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
        watch::everything(&metrics, &log, &bus, &streams, &keyrings);

        let receiver = Receiver::new(
            config.into(),
            options::apps(config, &keyrings),
            Arc::clone(&log),
            Arc::clone(&metrics),
        );
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
        let certificates = TaskTracker::new();
        for watch in ports.certificates {
            certificates.spawn(watch.run(draining.clone()));
        }
        certificates.close();
        let readiness = Readiness::new(Arc::clone(&log), &keyrings, draining.clone())
            .with_credentials(credentials.clone());
        let admin_service = Admin::new(Arc::clone(&metrics), readiness);
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
            certificates,
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

    /// What `/readyz` says.
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

    /// For an operator who says that keys have changed.
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
            self.certificates.wait().await;
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

/// Sees to it that nobody reads events by mistake: without credentials only this machine connects,
/// unless the operator says that everybody may.
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

/// Resolves when the log will not take events again.
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
