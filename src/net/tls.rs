//! Owns TLS on a port: the handshake, its deadline, and who a client proved to be. The certificate
//! is replaced when its files change; connections that run keep the one they began with. Knows
//! nothing of what is spoken inside.
//!
//! | file | owns |
//! |---|---|
//! | `material` | certificates and keys: reading, judging, and what is wrong with them |
//! | `reload` | when the files are read again, and what is said about it |
//! | `identity` | the name in a client's certificate, and its end |
//! | `explain` | why a connection to a server failed, in words |

mod identity;
mod material;
mod reload;

use std::{
    io,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_rustls::{
    LazyConfigAcceptor,
    rustls::{self, server},
    server::TlsStream,
};

pub use prelude_bridge_client::tls::{SELF_SIGNED, Trouble, is_tls, trouble};

pub use self::{
    identity::{ClientCertificate, Identity, NameKind},
    material::{Error, Fault, Leaf, examine},
    reload::Watch,
};
use super::{
    Newcomer,
    handshakes::{self, Handshakes},
};
use crate::metrics::{Handshake, Metrics};

/// What is spoken on the subscribers' port: gRPC, and gRPC-Web, which browsers may send either way.
pub const HTTP2_AND_HTTP1: &[&[u8]] = &[b"h2", b"http/1.1"];
/// What is spoken on the webhook port.
pub const HTTP1: &[&[u8]] = &[b"http/1.1"];

/// How long a client that was refused gets to read why: some round trips.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// How a port does TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The certificate and those of its intermediate issuers, in that order, as PEM.
    pub certificate: PathBuf,
    /// Its private key as PEM: PKCS #8, PKCS #1 or SEC 1, not encrypted.
    pub key: PathBuf,
    /// The issuers of clients' certificates as PEM. Without it no client is asked for one.
    pub client_ca: Option<PathBuf>,
    /// Whether a client may come without one.
    pub client_certificates: ClientCertificates,
    /// What is spoken inside, the preferred first (RFC 7301).
    pub protocols: &'static [&'static [u8]],
    /// How long a client may take from its connection to the end of the handshake. Default 5 s:
    /// it is two round trips.
    pub handshake_timeout: Duration,
    /// How many handshakes there may be.
    pub handshakes: handshakes::Limits,
}

/// Whether clients must show a certificate, where there is somebody who issues them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Who has none is refused in the handshake.
    #[default]
    Required,
    /// Who has none is served, as nobody in particular. One that is shown must be valid.
    Optional,
}

/// Makes TLS connections out of TCP connections. Clones share the certificate.
#[derive(Clone, Debug)]
pub struct Acceptor {
    shared: Arc<Shared>,
}

struct Shared {
    /// The listener's name, for log lines and metrics.
    listener: &'static str,
    options: Options,
    /// What new connections are accepted with. Held for the time of a clone.
    current: RwLock<Arc<rustls::ServerConfig>>,
    handshakes: Handshakes,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Shared")
            .field("listener", &self.listener)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Acceptor {
    /// Reads the files. The [`Watch`] replaces the certificate when they change, as long as it is
    /// run.
    ///
    /// # Errors
    /// A file that is missing or is not what it should be, or a key of another certificate. A
    /// certificate that has expired is only warned of: clients say more about it than we could.
    pub fn open(
        listener: &'static str,
        options: Options,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, Watch), Error> {
        let loaded = material::load(&options).map_err(|fault| Error { listener, fault })?;
        let shared = Arc::new(Shared {
            listener,
            handshakes: Handshakes::new(options.handshakes),
            options,
            current: RwLock::new(Arc::clone(&loaded.config)),
            metrics,
        });
        let watch = Watch::new(Arc::clone(&shared), &loaded);
        Ok((Self { shared }, watch))
    }

    /// Shakes hands. `None` when the client did not, or not in time, or there are too many handshakes:
    /// that is counted, and said at debug only, as every stranger can cause it.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
        newcomer: &Newcomer,
    ) -> Option<(TlsStream<TcpStream>, Option<ClientCertificate>)> {
        let Shared {
            listener,
            options,
            metrics,
            ..
        } = &*self.shared;
        let deadline = Instant::now() + options.handshake_timeout;
        let shaken = timeout_at(
            deadline,
            self.shared.shake_hands(stream, newcomer, deadline),
        );
        let (failure, unread) = match shaken.await {
            Ok(Ok(stream)) => {
                let certificates = stream.get_ref().1.peer_certificates();
                let leaf = certificates.and_then(|chain| chain.first());
                let certificate = leaf.map(ClientCertificate::of);
                return Some((stream, certificate));
            }
            Ok(Err(failed)) => failed,
            Err(_) => (Handshake::Timeout, None),
        };
        metrics.handshake_failed(listener, failure);
        tracing::debug!(listener, peer = %newcomer.peer, ?failure, "no TLS");
        if let (Handshake::ClientCertificate, Some(stream)) = (failure, unread) {
            linger(stream).await;
        }
        None
    }
}

impl Shared {
    /// The handshake. What costs work begins when there is a turn for it: until then the client has
    /// only said what it would like.
    async fn shake_hands(
        &self,
        stream: TcpStream,
        newcomer: &Newcomer,
        deadline: Instant,
    ) -> Result<TlsStream<TcpStream>, (Handshake, Option<TcpStream>)> {
        let hello = LazyConfigAcceptor::new(server::Acceptor::default(), stream);
        let hello = hello.await.map_err(|error| (self.failed(&error), None))?;
        let now = Instant::now();
        // Half of the time is left for the rest.
        let turn_deadline = now + deadline.saturating_duration_since(now) / 2;
        let turn = self.handshakes.reserve(newcomer, now, turn_deadline);
        let turn = turn.ok_or((Handshake::RateLimited, None))?;
        if turn > now {
            self.metrics.handshake_delayed(self.listener);
            sleep_until(turn).await;
        }
        let handshake = hello.into_stream(self.current()).into_fallible();
        handshake
            .await
            .map_err(|(error, stream)| (self.failed(&error), Some(stream)))
    }

    fn failed(&self, error: &io::Error) -> Handshake {
        tracing::debug!(listener = self.listener, %error, "handshake failed");
        failure(error)
    }

    fn current(&self) -> Arc<rustls::ServerConfig> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current)
    }

    fn replace(&self, config: Arc<rustls::ServerConfig>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
    }
}

/// Lets a client read why it was refused. In TLS 1.3 it speaks before it knows, and closing while
/// there is something from it that nobody read would cut off what it was told (RFC 9112 section
/// 9.6 has the same of HTTP).
async fn linger(mut stream: TcpStream) {
    let mut unread = [0; 1024];
    let reading = async {
        stream.shutdown().await?;
        while stream.read(&mut unread).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    let _ = timeout_at(Instant::now() + LINGER_TIMEOUT, reading).await;
}

/// The word that a failed handshake is counted under.
fn failure(error: &io::Error) -> Handshake {
    let cause = error.get_ref().and_then(|error| error.downcast_ref());
    match cause {
        // The connection ended: the client gave up, or was no TLS client to begin with.
        None | Some(rustls::Error::AlertReceived(_)) => Handshake::Aborted,
        Some(rustls::Error::NoCertificatesPresented | rustls::Error::InvalidCertificate(_)) => {
            Handshake::ClientCertificate
        }
        Some(rustls::Error::InvalidMessage(_)) => Handshake::NotTls,
        // An old version, no cipher or protocol in common, or a client that breaks the rules.
        Some(_) => Handshake::Protocol,
    }
}

#[cfg(test)]
mod tests;
