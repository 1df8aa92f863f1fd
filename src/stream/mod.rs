//! Owns the way out: gRPC subscriptions to the log and the bus. Knows nothing of how events came
//! in.

mod access;
mod body;
mod calls;
mod connection;
mod frame_budget;
mod gather;
mod held;
mod notice;
mod pace;
mod registry;
mod request;
mod response;
mod rest;
mod sending;
mod service;
mod services;
mod session;
mod shared;
mod status;
mod tenure;
#[cfg(test)]
mod tests;
mod unsent;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{connection::Connections, services::Services, shared::Shared};
pub use self::{frame_budget::Limits as FrameLimits, registry::Snapshot, status::DOMAIN};
use crate::{
    bus::Bus,
    credentials::Credentials,
    log::Log,
    metrics::{Closure, Metrics},
    net::{
        network::Network,
        quiet,
        slots::{Full, Standing},
        tls::ClientCertificate,
    },
};

/// The limits of the subscribers' port.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many streams may be open in all.
    pub streams_max: usize,
    /// How many of them may be of callers of one address who show no credential.
    pub streams_per_address_max: usize,
    /// How many calls may be in progress that are neither subscriptions nor about the health.
    pub calls_max: usize,
    /// How many of them may be of one address.
    pub calls_per_address_max: usize,
    /// How many checks of the health may be in progress. There always is room for another: the
    /// oldest that never sent its message goes.
    pub checks_max: usize,
    /// How many watches on the health may be open, which anybody may begin.
    pub watches_max: usize,
    /// How many of them may be of one address.
    pub watches_per_address_max: usize,
    /// Addresses that many clients share, for which there is no share.
    pub proxies: Vec<Network>,
    /// How long a connection may take to show a credential, where there are credentials.
    pub credential_timeout: Duration,
    /// How long a connection may stay on which nothing is called.
    pub idle_timeout: Duration,
    /// How many streams of a connection the server may have to reset because of the client.
    pub local_error_resets_max: usize,
    /// How many streams a client may reset before the server has looked at them.
    pub pending_accept_resets_max: usize,
    /// How many streams one connection may have: what load balancers and clients expect.
    pub streams_per_connection_max: u32,
    /// How much a request's headers may weigh, in bytes.
    pub header_bytes_max: u32,
    /// How large a request may be, in bytes: a filter with all the entries that are allowed fits.
    pub request_bytes_max: usize,
    /// How large a response gets, in bytes, unless a single event is larger.
    pub response_bytes_max: usize,
    /// How much of a connection's responses may wait for its socket, in bytes.
    pub unsent_bytes_max: usize,
    /// How many frames a client may send.
    pub frames: FrameLimits,
    /// How long a client may take to begin speaking.
    pub header_timeout: Duration,
    /// How often a connection is asked whether it is alive.
    pub ping_interval: Duration,
    /// How long it has to answer.
    pub ping_timeout: Duration,
    /// How long a client may take for a message, or for 1 KiB of it, before it counts as slow.
    pub slow_consumer_timeout: Duration,
    /// Over how long the reconnections of all clients are spread when the server drains.
    pub drain_retry_spread: Duration,
    /// Sites whose pages may subscribe by gRPC-Web, as origins (`https://example.com`), or `*`.
    /// Pages that this machine serves to itself always may.
    pub web_origins: Vec<String>,
    /// How many lines the refusals may fill the log with.
    pub quiet: quiet::Limits,
}

impl Options {
    /// How long a client should wait before it comes back: another time for each.
    fn drain_retry_after(&self) -> Duration {
        shared::spread(self.drain_retry_spread)
    }
}

/// Who is on the other side of a connection, as far as the connection shows it. It is an extension
/// of each of its requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Where it calls from; for the operator's log only, as there may be a proxy between.
    pub address: SocketAddr,
    /// What its certificate says, where it showed one.
    pub certificate: Option<ClientCertificate>,
    /// Whether its connection keeps its place when there is no room for a new one.
    pub standing: Standing,
}

impl From<SocketAddr> for Caller {
    /// A caller without a certificate.
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            certificate: None,
            standing: Standing::default(),
        }
    }
}

/// What a plain connection is told for which there is no room: settings, with which a server has to
/// begin (RFC 9113, section 3.4), and a GOAWAY (section 6.8) with the reason in words, which most
/// clients put into their error.
#[must_use]
pub fn refusal(full: Full) -> Vec<u8> {
    const EMPTY_SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const GOAWAY: u8 = 7;
    const NO_FLAGS: u8 = 0;
    const NO_STREAM: [u8; 4] = [0; 4];
    const ENHANCE_YOUR_CALM: [u8; 4] = [0, 0, 0, 0xb];
    let reason: &[u8] = match full {
        Full::Total => b"the server has its maximum of connections; retry later",
        Full::Address => {
            b"your address has its maximum of connections; close some, or ask the operator to raise \
              limits.grpc.connections_per_address_max or to name a shared proxy in grpc_proxies"
        }
    };
    let length = NO_STREAM.len() + ENHANCE_YOUR_CALM.len() + reason.len();
    let [_, length @ ..] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [
        &EMPTY_SETTINGS[..],
        &length,
        &[GOAWAY, NO_FLAGS],
        // The connection as a whole, and that no stream was looked at.
        &NO_STREAM,
        &NO_STREAM,
        &ENHANCE_YOUR_CALM,
        reason,
    ]
    .concat()
}

/// The gRPC server, without its listener.
#[derive(Clone)]
pub struct Streams {
    shared: Arc<Shared>,
    connections: Connections,
}

/// The services could not be put together.
#[derive(Debug, thiserror::Error)]
#[error("the reflection service does not accept the contract: {0}")]
pub struct Error(#[from] tonic_reflection::server::Error);

impl Streams {
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
        let draining = CancellationToken::new();
        let shared = Shared::new(
            options.clone(),
            credentials,
            log,
            bus,
            metrics,
            draining.clone(),
        );
        let services = Services::new(&shared).await?;
        let streams = TaskTracker::new();
        let connections = Connections {
            services,
            options,
            draining,
            streams,
        };
        Ok(Self {
            shared,
            connections,
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
        self.connections.services.drain().await;
        self.connections.draining.cancel();
        self.connections.streams.close();
        self.connections.streams.wait().await;
    }

    /// What can be seen of all streams now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.shared.registry.snapshot(self.shared.bus.head())
    }

    /// The same for whoever outlives the streams and must not keep them alive.
    pub fn watch(&self) -> impl Fn() -> Snapshot + Send + Sync + 'static {
        let shared = Arc::downgrade(&self.shared);
        move || {
            let shared = shared.upgrade();
            shared.map_or_else(Snapshot::default, |shared| {
                shared.registry.snapshot(shared.bus.head())
            })
        }
    }
}
