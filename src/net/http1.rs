//! Owns how an HTTP/1.1 connection is served: hyper's state machine with the timers and limits that
//! warp's own server leaves unset. Knows nothing of routes.

use std::{
    convert::Infallible,
    error::Error as _,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
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

use super::{
    Connection,
    fair::Fair,
    framing::{Framing, Paying},
    slots::Standing,
    tap::Tapped,
};
use crate::metrics::Closure;

/// What a connection may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From a connection's beginning, or the last answer, to the end of a header. So it is also
    /// how long an idle connection is kept. A header is one packet.
    pub header_timeout: Duration,
    /// How long a client may refuse to take an answer. An answer is one packet, and
    /// only who sends requests without reading answers gets here.
    pub write_timeout: Duration,
    /// Headers of a request; a delivery has about ten. More are answered with 431.
    pub headers_max: usize,
    /// Bytes of a request's header, and of a body in flight between the socket and its reader.
    /// Less than 8 KiB counts as that.
    pub header_bytes_max: usize,
    /// Bytes of a request that are neither its header nor its body: the sizes of chunks and what
    /// belongs to them. Each byte of the body allows for eight more, so that
    /// chunks may be as small as they like.
    pub framing_bytes_max: usize,
}

/// hyper takes no smaller buffer.
pub const BUFFER_BYTES_MIN: usize = 8 * 1024;

/// Where a request came from: an extension of each request, as `warp::addr::remote` sees only
/// connections of warp's own server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The other end of the connection.
    pub address: SocketAddr,
    /// What the connection's client has proven, see [`Connection::standing`].
    pub standing: Standing,
}

/// Serves the requests of a connection until either side ends it. Once `shutdown` is cancelled,
/// the request in flight is answered and the connection closed.
///
/// What is not HTTP/1 is answered by hyper itself with a bare 400, 414 or 431: a caller who sends
/// that would not read JSON.
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
    let peer = Peer {
        address,
        standing: stream.standing().clone(),
    };
    let stream = framing.reading(Tapped::new(stream, Fair));
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let request = request.map(|body| framing.paying(body));
        service.clone().call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(limits.headers_max)
        .max_buf_size(buffer_bytes)
        .serve_connection(
            TokioIo::new(with_write_timeout(stream, limits.write_timeout)),
            service,
        );
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    let error = ended.err()?;
    // Nothing that a client does to its own connection is worth more than this.
    tracing::debug!(peer = %address, %error, "connection ended early");
    closure(&error)
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
