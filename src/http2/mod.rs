//! Owns the connections of subscribers: HTTP/2, and HTTP/1.1 for pages. How long they may stay, how
//! many frames a client may send, how responses reach it as its windows allow, and what may wait for
//! its socket. Knows no RPCs and no statuses: a `RequestHandler` answers requests, and says with which
//! trailers a stream ends.

mod calls;
mod connection;
mod frame_budget;
mod gather;
mod http1;
mod piece;
mod sending;
mod stream;
mod tenure;
mod unsent;

use std::{
    error::Error,
    fmt,
    io::Cursor,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body::Body;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::calls::{Calls, Kind, NoSlot};
#[cfg(fuzzing)]
pub(crate) use self::frame_budget::fuzzing;
pub use self::{calls::Limits as CallLimits, frame_budget::Limits as FrameLimits};
use self::{
    tenure::{Tenure, Timeouts},
    unsent::Budget,
};
use crate::{
    credentials::{CountedConnection, Credentials, Grant, Quota, QuotaReached},
    metrics::{Closure, ConnectionRefusal, Metrics},
    net::{fair::Fair, quiet::Quiet, slots::Standing, tap::Tapped, tls::ClientCertificate},
    subscription::{CursorSession, Failure, age},
};

/// How many times as many bytes of headers as a request may have are read before h2 refuses it by itself:
/// with the HTTP status 431, which gRPC's clients take for an error of no known kind.
pub(crate) const HEADER_LISTS_READ: u32 = 2;

/// How long a connection that is closed for what its client did may take to hear why.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// The share of the streams' maximum age that every connection reaches. With the fifth by which ages differ, it
/// is what the youngest stream reaches: a connection is told to go before any of its streams ends.
const CONNECTION_AGE_LEAST: f64 = 0.6;

/// How much is read of a client that speaks something else, in bytes.
const UNREAD_BYTES_MAX: u64 = 16 * 1024;

/// The limits of connections and of what is sent over them.
#[derive(Clone, Debug)]
pub struct Options {
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
    /// How much a request's headers may weigh, in bytes. Over HTTP/2, up to `HEADER_LISTS_READ` times as
    /// much is read, so that the handler can say so.
    pub header_bytes_max: u32,
    /// How large a request may be, in bytes: a filter with all the entries that are allowed fits.
    pub request_bytes_max: usize,
    /// How large a response gets, in bytes, unless a single event is larger.
    pub response_bytes_max: usize,
    /// How much memory the responses of a connection that wait for its socket may take, in bytes.
    pub unsent_bytes_max: usize,
    /// How much those of all connections may take.
    pub unsent_total_bytes_max: usize,
    /// How much of it those of one credential may take, unless it has a quota of its own.
    pub unsent_bytes_per_credential_max: usize,
    /// How many connections there may be.
    pub connections_max: usize,
    /// On how many of them one credential may be shown, unless it has a quota of its own.
    pub connections_per_credential_max: usize,
    /// How many frames a client may send.
    pub frames: FrameLimits,
    /// How long a client may take to begin speaking.
    pub header_timeout: Duration,
    /// How often a connection is asked whether it is alive.
    pub ping_interval: Duration,
    /// How long it has to answer.
    pub ping_timeout: Duration,
    /// How long a client may take nothing of a message before it counts as slow.
    pub slow_consumer_timeout: Duration,
    /// How long a stream may last; zero means for ever. A connection takes no new calls before the first of
    /// its streams reaches its age: whoever resumes on it would stay with this bridge.
    pub stream_age_max: Duration,
}

/// Answers the requests of connections, in the protocol that is spoken above HTTP.
pub(crate) trait RequestHandler: Send + Sync + 'static {
    /// The body of an answer.
    type Body: Body<Data = Bytes, Error: Error + Send + Sync + 'static> + Send + 'static;

    /// Answers a request. Its [`Caller`] is among its extensions.
    fn answer<B>(&self, request: Request<B>) -> impl Future<Output = Answer<Self::Body>> + Send
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>> + fmt::Display;

    /// The trailers that end a stream.
    fn trailers(&self, end: &Result<(), Failure>) -> HeaderMap;

    /// Why a body that never ends is ended when the server drains.
    fn drained(&self) -> Failure;
}

/// What a request is answered with.
pub(crate) struct Answer<B> {
    /// The head, and what is sent unless there is a session.
    pub(crate) response: Response<B>,
    /// What is sent in place of the body: HTTP/2 gives it the room that the client has.
    pub(crate) session: Option<Box<CursorSession>>,
    /// What admitted the caller: the body ends with it.
    pub(crate) grant: Option<Grant>,
    /// Resolves when the body has to end, also while it waits for room, with the trailers to end it with.
    pub(crate) over: Option<BoxFuture<'static, HeaderMap>>,
}

/// Serves the connections of subscribers.
pub(crate) struct Connections<H> {
    pub(crate) handler: H,
    options: Options,
    /// The memory of responses that wait for their sockets.
    unsent: Arc<Budget>,
    credentials: Credentials,
    /// Which closed connections are still said in the log.
    quiet: Arc<Quiet>,
    metrics: Arc<Metrics>,
    /// Cancelled when the server begins to drain.
    pub(crate) draining: CancellationToken,
    /// The streams, which outlive the connection's own task by a moment.
    pub(crate) streams: TaskTracker,
}

impl<H: RequestHandler> Connections<H> {
    /// None is open yet. All are told to go when `draining` is cancelled.
    pub(crate) fn new(
        handler: H,
        options: Options,
        credentials: Credentials,
        quiet: Arc<Quiet>,
        metrics: Arc<Metrics>,
        draining: CancellationToken,
    ) -> Self {
        Self {
            handler,
            unsent: Budget::new(unsent::Limits {
                total_bytes_max: options.unsent_total_bytes_max,
                credential_bytes_max: options.unsent_bytes_per_credential_max,
                connection_bytes_max: options.unsent_bytes_max,
                connections_max: options.connections_max,
            }),
            options,
            credentials,
            quiet,
            metrics,
            draining,
            streams: TaskTracker::new(),
        }
    }

    /// Serves one connection until it ends. Says what it was closed for, if it was.
    pub(crate) async fn serve<IO>(self: &Arc<Self>, io: IO, caller: Caller) -> Option<Closure>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (mut reader, writer) = tokio::io::split(Tapped::new(io, Fair));
        let mut start = [0; 2];
        match timeout(self.options.header_timeout, reader.read_exact(&mut start)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return None,
            Err(_) => return Some(Closure::Silent),
        }
        let reader = AsyncReadExt::chain(Cursor::new(start), reader);
        let mut io = tokio::io::join(reader, writer);
        let standing = caller.standing.clone();
        let closure = match &start {
            // "PRI" begins HTTP/2.
            b"PR" => self.serve_http2(io, caller).await,
            // "POST" and "OPTIONS" are all that gRPC-Web sends. Other methods are told so.
            b"PO" | b"OP" | b"GE" | b"HE" | b"PU" | b"DE" | b"PA" | b"TR" | b"CO" => {
                Box::pin(self.serve_http1(io, caller)).await
            }
            // A handshake of TLS (RFC 8446, 5.1). Its client says that the port does not speak TLS once it
            // gets an answer in something else.
            [0x16, 0x03] => Box::pin(self.serve_http1(io, caller)).await,
            // An answer in HTTP/1.1 would be noise to a client that speaks something else.
            _ => {
                let _ = io.shutdown().await;
                listen_to_the_end(&mut io).await;
                Some(Closure::Protocol)
            }
        };
        if closure == Some(Closure::NoCredential) && !standing.is_proven() {
            // Whatever its client showed earlier, it does not need its connections now.
            standing.discredit();
        }
        closure
    }

    /// How long a connection may stay.
    fn tenure(&self, caller: &Caller) -> Tenure {
        let timeouts = Timeouts {
            credential: self.options.credential_timeout,
            idle: self.options.idle_timeout,
            age: age(self.options.stream_age_max, CONNECTION_AGE_LEAST),
        };
        Tenure::new(
            timeouts,
            self.options.streams_per_connection_max as usize,
            caller.standing.clone(),
            self.credentials.clone(),
            Arc::clone(&self.metrics),
        )
    }
}

/// Reads what a client still says, for a moment and a few KiB: what is left unread would make the system reset
/// the connection.
async fn listen_to_the_end(io: impl AsyncRead + Unpin) {
    let mut said = io.take(UNREAD_BYTES_MAX);
    let mut nowhere = tokio::io::sink();
    let _ = timeout(FAREWELL_TIMEOUT, tokio::io::copy(&mut said, &mut nowhere)).await;
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
    /// The credentials that were shown on its connection.
    pub shown: Shown,
}

/// How many credentials of a connection are remembered: a gateway may show many on one, one after
/// the other.
const SHOWN_MAX: usize = 64;

/// The credentials that were shown on a connection, for as long as it lasts. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Shown(Arc<Mutex<Vec<CountedConnection>>>);

impl Shown {
    /// Counts the connection under the quota of a credential, once.
    ///
    /// # Errors
    /// The credential has as many connections as it may.
    pub(crate) fn count(&self, quota: &Arc<Quota>, default_max: usize) -> Result<(), QuotaReached> {
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.iter().any(|connection| connection.is_of(quota)) {
            return Ok(());
        }
        shown.push(quota.connect(default_max)?);
        if shown.len() > SHOWN_MAX {
            shown.remove(0);
        }
        Ok(())
    }
}

/// Those of the same connection.
impl PartialEq for Shown {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Shown {}

impl From<SocketAddr> for Caller {
    /// A caller without a certificate.
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            certificate: None,
            standing: Standing::default(),
            shown: Shown::default(),
        }
    }
}

/// What a plain connection is told that is refused: settings, with which a server has to
/// begin (RFC 9113, section 3.4), and a GOAWAY (section 6.8) with the reason in words, which most
/// clients put into their error.
#[must_use]
pub fn refusal(refusal: ConnectionRefusal) -> Vec<u8> {
    const EMPTY_SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const GOAWAY: u8 = 7;
    const NO_FLAGS: u8 = 0;
    const NO_STREAM: [u8; 4] = [0; 4];
    const ENHANCE_YOUR_CALM: [u8; 4] = [0, 0, 0, 0xb];
    let reason: &[u8] = match refusal {
        ConnectionRefusal::Full => b"the server has its maximum of connections; retry later",
        ConnectionRefusal::Source => b"connections from your address are not accepted",
        ConnectionRefusal::AddressFull => {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_speaks_something_else_is_heard_to_the_end() {
        let (mut client, server) = tokio::io::duplex(100);
        let speaking = tokio::spawn(async move {
            let spoken = client.write_all(&[b'x'; 2_000]).await;
            drop(client);
            spoken
        });
        // Two bytes have been read already.
        let said = AsyncReadExt::chain(Cursor::new([b'x'; 2]), server);
        listen_to_the_end(said).await;
        speaking.await.unwrap().unwrap();
        // But not for long, and not much.
        let (mut client, mut server) = tokio::io::duplex(1 << 20);
        client.write_all(&[b'x'; 20_000]).await.unwrap();
        listen_to_the_end(&mut server).await;
        drop(client);
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest.len() as u64, 20_000 - UNREAD_BYTES_MAX);
    }
}
