//! Owns how an HTTP/1.1 connection is served: hyper's state machine behind a reader that enforces the rules
//! for messages, timers and limits (`requests`). Knows nothing of routes.

use std::{
    convert::Infallible,
    error::Error as _,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use http::{Request, Response};
use http_body::Body;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWrite;
use tokio_io_timeout::TimeoutWriter;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

pub use self::fault::Fault;
pub(crate) use self::{exchange::Exchange, requests::Requests};
use super::{
    Connection,
    fair::Fair,
    framing::{Framing, Paying},
    slots::Standing,
    tap::Tapped,
};
use crate::metrics::Closure;

mod chunks;
mod exchange;
mod fault;
mod head;
mod requests;

/// What a connection may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the first byte of a request to the end of its header, which is one packet; for the first
    /// request from the connection's beginning. A connection that is idle for so long may lose its slot to
    /// a new one.
    pub header_timeout: Duration,
    /// How long a connection is kept after an answer, until the next request begins.
    pub idle_timeout: Duration,
    /// How long a client may refuse to take an answer. An answer is one packet, and
    /// only who sends requests without reading answers gets here.
    pub write_timeout: Duration,
    /// Headers of a request; a delivery has about ten. More are answered with 431.
    pub headers_max: usize,
    /// Bytes of a request's header, and of a body in flight between the socket and its reader.
    pub header_bytes_max: usize,
    /// Bytes of a request that are neither its header nor its body: the sizes of chunks and what
    /// belongs to them. What its header leaves of `header_bytes_max` may be used for them too. Each byte of the body allows for eight more, so that
    /// chunks may be as small as they like.
    pub framing_bytes_max: usize,
    /// How many bytes are read of what a client still sends after the last answer, so that it gets the
    /// answer instead of a reset connection.
    pub linger_bytes_max: usize,
}

/// hyper takes no smaller buffer.
pub const BUFFER_BYTES_MIN: usize = 8 * 1024;

/// Where a request came from: an extension of each request, as `warp::addr::remote` sees only
/// connections of warp's own server.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The other end of the connection.
    pub address: SocketAddr,
    /// What the connection's client has proven, see [`Connection::standing`].
    pub standing: Standing,
    /// Cancelled when the client has closed its side of the connection. It may still read.
    pub closed: CancellationToken,
}

impl Peer {
    /// Waits for something that is worth nothing to a client that has closed its side. Returns whether
    /// it was waited for to the end.
    pub async fn wait_open(&self, something: impl Future<Output = ()>) -> bool {
        self.closed.run_until_cancelled(something).await.is_some()
    }
}

/// Serves the requests of a connection until either side ends it. Once `shutdown` is cancelled,
/// the request in flight is answered and the connection closed. A client that closes its side after a request
/// still gets its answer.
///
/// A request that breaks a rule of HTTP/1.1 reaches the service with its [`Fault`] as an extension, for the
/// service to answer; nothing else of it is real. It is the last one of its connection.
pub async fn serve<S, B>(
    stream: Connection,
    address: SocketAddr,
    limits: Limits,
    service: S,
    shutdown: CancellationToken,
) -> Option<Closure>
where
    S: Service<Request<Paying<Incoming>>, Response = Response<B>, Error = Infallible> + Clone,
    B: Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let buffer_bytes = limits.header_bytes_max.max(BUFFER_BYTES_MIN);
    let framing = Framing::new(limits.framing_bytes_max.saturating_add(buffer_bytes));
    let exchange = Arc::new(Exchange::default());
    let peer = Peer {
        address,
        standing: stream.standing().clone(),
        closed: exchange.closed.clone(),
    };
    let stream = with_write_timeout(Tapped::new(stream, Fair), limits.write_timeout);
    let stream = Requests::new(stream, limits, peer.standing.clone(), Arc::clone(&exchange));
    let stream = framing.reading(stream);
    let exchanged = Arc::clone(&exchange);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        exchanged.note_fault(&mut request);
        let request = request.map(|body| framing.paying(body));
        let answering = service.clone().call(request);
        let exchanged = Arc::clone(&exchanged);
        async move {
            let mut response = answering.await?;
            exchanged.close_within_body(&mut response);
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // The reader has one, which also knows idle connections.
        .header_read_timeout(None)
        .half_close(true)
        .max_headers(limits.headers_max)
        .max_buf_size(buffer_bytes)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = &ended {
        // Nothing that a client does to its own connection is worth more than this.
        tracing::debug!(peer = %address, %error, "connection ended early");
    }
    exchange.closure().or_else(|| closure(&ended.err()?))
}

/// Ends a connection whose peer takes nothing of what is written to it for so long. hyper itself would
/// wait for ever.
pub fn with_write_timeout<IO: AsyncWrite>(
    io: IO,
    timeout: Duration,
) -> Pin<Box<TimeoutWriter<IO>>> {
    let mut io = TimeoutWriter::new(io);
    io.set_timeout(Some(timeout));
    Box::pin(io)
}

/// What the client did; nothing if it only went away.
pub fn closure(error: &hyper::Error) -> Option<Closure> {
    let io = error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>());
    if io.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut) {
        Some(Closure::Unread)
    } else if error.is_timeout() {
        Some(Closure::Silent)
    } else {
        error.is_parse().then_some(Closure::Protocol)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_is_given_up() {
        let (_peer, stream) = duplex(4);
        let mut stream = with_write_timeout(stream, Duration::from_secs(8));
        stream.write_all(b"1234").await.unwrap();
        let error = stream.write_all(b"5").await.unwrap_err();
        // By this it is told from other failures, see `closure`.
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_slowly_has_the_whole_time_for_each_read() {
        let (mut peer, stream) = duplex(1);
        let mut stream = with_write_timeout(stream, Duration::from_secs(8));
        let writer = tokio::spawn(async move { stream.write_all(b"12345").await });
        let mut read = [0; 1];
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(7)).await;
            peer.read_exact(&mut read).await.unwrap();
        }
        writer.await.unwrap().unwrap();
    }
}
