//! Owns the connections of subscribers: HTTP/2 for gRPC, HTTP/1.1 for gRPC-Web. HTTP/2 is spoken
//! with h2 directly, because only there can a stream see how much room its client has
//! (`sending.rs`).

use std::{future::poll_fn, io::Cursor, pin::pin, time::Duration};

use h2::{Ping, PingPong, Reason, server::SendResponse};
use http::{HeaderMap, Request, header};
use http_body::Body as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::body::Body;

use super::{
    Caller, Options,
    body::{Outlet, Patient, RequestBody},
    frame_budget::FrameBudget,
    gather::{Flusher, Shelf, gather},
    response::Response,
    sending::{Gone, Sender},
    service::Peer,
    services::Services,
    tenure::{OpenCall, Tenure},
    unsent::Unsent,
};
use crate::{
    credentials::Grant,
    metrics::Closure,
    net::{
        fair::Fair, framing::Framing, http1, quiet::Admitted, tap::Tapped,
        write_deadline::WriteDeadline,
    },
};

/// How long a connection that is closed for a flood may take to hear why.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves the connections of subscribers.
#[derive(Clone)]
pub(super) struct Connections {
    pub(super) services: Services,
    pub(super) options: Options,
    pub(super) draining: CancellationToken,
    /// The streams, which outlive the connection's own task by a moment.
    pub(super) streams: TaskTracker,
}

impl Connections {
    /// Serves one connection until it ends. Says what it was closed for, if it was.
    pub(super) async fn serve<IO>(&self, io: IO, caller: Caller) -> Option<Closure>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let origin = Origin::of(caller);
        let (mut reader, writer) = tokio::io::split(Tapped::new(io, Fair));
        // "PRI" begins HTTP/2, and "POST" and "OPTIONS" are all that gRPC-Web sends.
        let mut start = [0; 2];
        match timeout(self.options.header_timeout, reader.read_exact(&mut start)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return None,
            Err(_) => return Some(Closure::Silent),
        }
        let reader = AsyncReadExt::chain(Cursor::new(start), reader);
        let io = tokio::io::join(reader, writer);
        if start == *b"PR" {
            self.serve_http2(io, origin).await
        } else {
            Box::pin(self.serve_http1(io, origin)).await
        }
    }

    async fn serve_http2<IO>(&self, io: IO, origin: Origin) -> Option<Closure>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let options = &self.options;
        let mut builder = h2::server::Builder::new();
        builder
            .max_concurrent_streams(options.streams_per_connection_max)
            .max_header_list_size(options.header_bytes_max)
            // Requests are small: room for many of them would only be room for an attacker.
            .initial_window_size(64 * 1024)
            .initial_connection_window_size(256 * 1024)
            .max_send_buffer_size(2 * options.response_bytes_max)
            // Resets that the server answers with, and such that come before it looked (rapid
            // reset, CVE-2023-44487; RUSTSEC-2024-0003).
            .max_local_error_reset_streams(Some(options.local_error_resets_max))
            .max_pending_accept_reset_streams(options.pending_accept_resets_max);
        let flooded = CancellationToken::new();
        let shelf = Shelf::default();
        let frames = FrameBudget::new(options.frames, flooded.clone());
        let (io, flusher) = gather(Tapped::new(io, frames), shelf.clone());
        let handshake = builder.handshake::<_, Response>(io);
        // What h2 says is gathered until it has said all for now, also while it shakes hands.
        let handshake = Box::pin(flushing(handshake, &flusher));
        let mut connection = match timeout(options.header_timeout, handshake).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                tracing::debug!(peer = %origin.peer.0, %error, "no HTTP/2");
                return closure(&error);
            }
            Err(_) => {
                tracing::debug!(peer = %origin.peer.0, "HTTP/2 preface timed out");
                return Some(Closure::Silent);
            }
        };
        let unsent = Unsent::new(options.unsent_bytes_max);
        let tenure = self.tenure(&origin);
        let mut told: Option<(Closure, Instant)> = None;
        let mut dead = pin!(dead(connection.ping_pong(), options));
        let mut going_away = false;
        loop {
            tokio::select! {
                accepted = flushing(poll_fn(|context| connection.poll_accept(context)), &flusher) => match accepted {
                    Some(Ok((request, respond))) => {
                        let stream = Stream {
                            connections: self.clone(),
                            origin: origin.clone(),
                            unsent: unsent.clone(),
                            shelf: shelf.clone(),
                            _open: tenure.call(),
                        };
                        self.streams.spawn(stream.serve(request, respond));
                    }
                    Some(Err(error)) => {
                        tracing::debug!(peer = %origin.peer.0, %error, "connection failed");
                        return closure(&error);
                    }
                    None => return told.map(|(closure, _)| closure),
                },
                () = &mut dead => {
                    if let Some(Admitted { unlogged }) = self.services.shared().quiet.admit("unanswered") {
                        tracing::info!(peer = %origin.peer.0, unlogged, "connection closed: it answers no pings");
                    }
                    return Some(Closure::Unanswered);
                }
                () = flooded.cancelled() => {
                    if let Some(Admitted { unlogged }) = self.services.shared().quiet.admit("flood") {
                        tracing::warn!(peer = %origin.peer.0, unlogged, "connection closed: a flood of frames");
                    }
                    connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                    let farewell = poll_fn(|context| connection.poll_closed(context));
                    let farewell = Box::pin(flushing(farewell, &flusher));
                    let _ = timeout(FAREWELL_TIMEOUT, farewell).await;
                    return Some(Closure::Flood);
                }
                closure = tenure.over(told.map(|(_, at)| at)) => {
                    if told.is_some() {
                        return Some(closure);
                    }
                    told = Some((closure, Instant::now()));
                    connection.graceful_shutdown();
                }
                () = self.draining.cancelled(), if !going_away => {
                    going_away = true;
                    connection.graceful_shutdown();
                }
            }
        }
    }

    /// How long a connection may stay.
    fn tenure(&self, origin: &Origin) -> Tenure {
        let shared = self.services.shared();
        Tenure::new(
            shared.timeouts(),
            origin.caller.standing.clone(),
            shared.credentials.clone(),
        )
    }

    /// How long the messages of a request may take to come. Reflection takes one after the other
    /// while a client looks around, which can go on for a while; its clients open a new stream when
    /// one ends.
    fn patience(&self, path: &str) -> Duration {
        if path.starts_with("/grpc.reflection.") {
            self.options.slow_consumer_timeout
        } else {
            self.options.header_timeout
        }
    }

    async fn serve_http1<IO>(&self, io: IO, origin: Origin) -> Option<Closure>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let services = self.services.clone();
        let tenure = self.tenure(&origin);
        // Between requests the limit for headers is its limit.
        let _open = tenure.call();
        let mut told: Option<(Closure, Instant)> = None;
        let patience = self.options.header_timeout;
        let buffer_bytes = self.options.header_bytes_max as usize;
        let buffer_bytes = buffer_bytes.max(http1::BUFFER_BYTES_MIN);
        // Beside the header, a message may have as much around it as it may have in it.
        let framing = Framing::new(buffer_bytes.saturating_add(self.options.request_bytes_max));
        let io = framing.reading(io);
        let service = hyper::service::service_fn(move |mut request: Request<_>| {
            origin.mark(&mut request);
            let services = services.clone();
            let request = request.map(|body| Patient::new(framing.paying(body), patience));
            async move { services.web(request).await }
        });
        // Nobody pings these, and hyper waits for ever for a client that does not read.
        let io = WriteDeadline::new(io, self.options.slow_consumer_timeout);
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.options.header_timeout)
            .max_headers(64)
            .max_buf_size(buffer_bytes)
            .serve_connection(TokioIo::new(io), service);
        let mut connection = pin!(connection);
        let mut going_away = false;
        loop {
            tokio::select! {
                ended = &mut connection => return match (ended, told) {
                    (Err(error), _) => http1::closure(&error),
                    (Ok(()), told) => told.map(|(closure, _)| closure),
                },
                closure = tenure.over(told.map(|(_, at)| at)) => {
                    if told.is_some() {
                        return Some(closure);
                    }
                    told = Some((closure, Instant::now()));
                    connection.as_mut().graceful_shutdown();
                }
                () = self.draining.cancelled(), if !going_away => {
                    going_away = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// What the client did; nothing if it only went away.
fn closure(error: &h2::Error) -> Option<Closure> {
    let is_ours = error.is_go_away() && error.is_library();
    match error.reason() {
        Some(Reason::ENHANCE_YOUR_CALM) if is_ours => Some(Closure::Flood),
        Some(_) if is_ours => Some(Closure::Protocol),
        _ => None,
    }
}

/// Polls what makes h2 write, and writes what it has gathered after each poll.
async fn flushing<IO: AsyncWrite + Unpin, T>(
    speaking: impl Future<Output = T>,
    flusher: &Flusher<IO>,
) -> T {
    let mut speaking = pin!(speaking);
    poll_fn(|context| {
        let spoken = speaking.as_mut().poll(context);
        // A socket that takes no more wakes this task when it does; one that failed says so to h2
        // at its next read or write.
        let _ = flusher.poll_flush(context);
        spoken
    })
    .await
}

/// Where the requests of a connection come from.
#[derive(Clone)]
struct Origin {
    /// The address as text, made once a connection.
    peer: Peer,
    caller: Caller,
}

impl Origin {
    fn of(caller: Caller) -> Self {
        let peer = Peer(caller.address.to_string().into());
        Self { peer, caller }
    }

    /// Lets the services see it.
    fn mark<B>(&self, request: &mut Request<B>) {
        let extensions = request.extensions_mut();
        extensions.insert(self.peer.clone());
        extensions.insert(self.caller.clone());
    }
}

/// Resolves when the peer has not answered a ping in time.
async fn dead(ping_pong: Option<PingPong>, options: &Options) {
    let Some(mut ping_pong) = ping_pong else {
        return std::future::pending().await;
    };
    loop {
        sleep(options.ping_interval).await;
        match timeout(options.ping_timeout, ping_pong.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection itself says why it failed.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}

/// One request on an HTTP/2 connection and its response.
struct Stream {
    connections: Connections,
    origin: Origin,
    unsent: Unsent,
    shelf: Shelf,
    _open: OpenCall,
}

impl Stream {
    async fn serve(self, request: Request<h2::RecvStream>, mut respond: SendResponse<Response>) {
        let (parts, body) = request.into_parts();
        let patience = self.connections.patience(parts.uri.path());
        let body = Patient::new(RequestBody(body), patience);
        let mut request = Request::from_parts(parts, Body::new(body));
        self.origin.mark(&mut request);
        let grpc = is_grpc(request.headers());
        let services = self.connections.services.clone();
        let answer = async {
            if grpc {
                services.grpc(request).await
            } else {
                services.web(request).await
            }
        };
        let response = tokio::select! {
            // In a place of its own, which is given back before the response is sent: streams are
            // many and live long.
            Ok(response) = Box::pin(answer) => response,
            _ = poll_fn(|context| respond.poll_reset(context)) => return,
        };
        let (mut head, body) = response.into_parts();
        let grant = head.extensions.remove::<Grant>();
        let session = head.extensions.remove::<Outlet>().filter(|_| grpc);
        let session = session.and_then(|outlet| outlet.take());
        let ends = session.is_none() && body.is_end_stream();
        let head = http::Response::from_parts(head, ());
        let Ok(mut send) = respond.send_response(head, ends) else {
            return;
        };
        let mut sender = Sender {
            options: &self.connections.options,
            draining: &self.connections.draining,
            unsent: &self.unsent,
            shelf: &self.shelf,
            send: &mut send,
        };
        let sent = match session {
            Some(session) => sender.session(session).await,
            None if ends => Ok(()),
            None => Box::pin(sender.body(body, grant)).await,
        };
        // A gone stream needs no farewell.
        let _: Result<(), Gone> = sent;
    }
}

/// gRPC itself, not gRPC-Web, which also begins like this.
fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .map_or(&[][..], |value| value.as_bytes());
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| !rest.starts_with(b"-web"))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn grpc_is_told_from_grpc_web() {
        let is = |text| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(text));
            is_grpc(&headers)
        };
        assert!(is("application/grpc") && is("application/grpc+proto"));
        assert!(!is("application/grpc-web+proto") && !is("application/grpc-web-text"));
        assert!(!is("text/html") && !is_grpc(&HeaderMap::new()));
    }
}
