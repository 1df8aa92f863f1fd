//! Owns the RPCs of the subscribers' port: which there are and who may call them, what their requests
//! mean, and which status answers a failure. Knows nothing of how events came in.

mod body;
mod events;
mod gate;
mod held;
mod messages;
mod protocol;
mod request;
mod resources;
mod rpcs;
mod services;
mod standard;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tonic_health::server::HealthReporter;

use self::{gate::Gate, resources::Resources, services::Services};
use crate::{
    bus::Bus,
    credentials::Credentials,
    http2::{self, Caller, Calls, Connections},
    log::Log,
    metrics::{Closure, Metrics},
    net::quiet::{self, Quiet},
    subscription::{self, Snapshot, Subscriptions},
};

/// The largest message that is no subscription's, in bytes: to health and reflection, which names a service or
/// a symbol, and to `GetRange`, which has nothing in it.
const STANDARD_REQUEST_BYTES_MAX: usize = 4096;

/// The limits of the subscribers' port.
#[derive(Clone, Debug)]
pub struct Options {
    /// Those of subscriptions.
    pub subscriptions: subscription::Options,
    /// Those of connections.
    pub connections: http2::Options,
    /// How many calls may be in progress.
    pub calls: http2::CallLimits,
    /// Sites whose pages may subscribe by gRPC-Web, as origins (`https://example.com`), or `*`.
    /// Pages that this machine serves to itself always may.
    pub web_origins: Vec<String>,
    /// How many lines the refusals may fill the log with.
    pub quiet: quiet::Limits,
}

/// The gRPC server, without its listener.
#[derive(Clone)]
pub struct Server {
    subscriptions: Arc<Subscriptions>,
    connections: Arc<Connections<Services>>,
    health: HealthReporter,
}

/// The services could not be put together.
#[derive(Debug, thiserror::Error)]
#[error("the reflection service does not accept the contract: {0}")]
pub struct Error(#[from] tonic_reflection::server::Error);

impl Server {
    /// Puts the services together over a log and the bus that follows it.
    ///
    /// # Errors
    /// When the compiled contract is not what reflection expects: a bug.
    pub async fn new(
        options: Options,
        credentials: Credentials,
        log: Arc<dyn Log>,
        bus: Arc<Bus>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Error> {
        let Options {
            subscriptions,
            connections: options,
            calls,
            web_origins,
            quiet,
        } = options;
        let draining = CancellationToken::new();
        let quiet = Arc::new(Quiet::new(quiet));
        let subscriptions = Subscriptions::new(
            subscriptions,
            log,
            bus,
            Arc::clone(&metrics),
            draining.clone(),
        );
        tokio::spawn(subscriptions.watch_cut_offs());
        let (health, standard) = standard::services().await?;
        let resources = Resources {
            subscriptions: Arc::clone(&subscriptions),
            credentials: credentials.clone(),
            calls: Calls::new(calls),
            options: options.clone(),
            quiet: Arc::clone(&quiet),
            metrics: Arc::clone(&metrics),
        };
        let gate = Gate::new(Arc::new(resources), standard);
        let services = Services::new(gate, web_origins);
        let connections =
            Connections::new(services, options, credentials, quiet, metrics, draining);
        Ok(Self {
            subscriptions,
            connections: Arc::new(connections),
            health,
        })
    }

    /// Serves one connection until it ends. Says what it was closed for, if it was.
    pub async fn serve<IO>(&self, io: IO, caller: Caller) -> Option<Closure>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.connections.serve(io, caller).await
    }

    /// Tells every stream to end with its cursor, and resolves when all have. New ones are
    /// answered the same way.
    pub async fn drain(&self) {
        standard::stop_serving(&self.health).await;
        self.connections.draining.cancel();
        self.connections.streams.close();
        self.connections.streams.wait().await;
    }

    /// What can be seen of all streams now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.subscriptions.snapshot()
    }

    /// The same for whoever outlives the streams and must not keep them alive.
    pub fn watch(&self) -> impl Fn() -> Snapshot + Send + Sync + 'static {
        let subscriptions = Arc::downgrade(&self.subscriptions);
        move || {
            let subscriptions = subscriptions.upgrade();
            subscriptions.map_or_else(Snapshot::default, |subscriptions| subscriptions.snapshot())
        }
    }
}
