//! Owns connections that speak HTTP/2, from their preface to their end. It is spoken with h2 directly,
//! because only there can a stream see how much room its client has (`sending.rs`).

use std::{future::poll_fn, pin::pin, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use h2::{Ping, PingPong, Reason, server::Builder};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Caller, Connections, FAREWELL_TIMEOUT, HEADER_LISTS_READ, Options, RequestHandler,
    frame_budget::{FrameBudget, ShortPieces},
    gather::{Flusher, Gather, Shelf, gather},
    piece::Piece,
    stream::Stream,
    tenure::Tenure,
};
use crate::{
    metrics::Closure,
    net::{quiet::Admitted, tap::Tapped},
};

/// What a client may send before it is read, on a stream and on a connection.
const REQUEST_WINDOW_BYTES: u32 = 65_535;

/// What happens to a connection besides requests.
enum Event {
    /// The client did not answer a ping.
    Unanswered,
    /// The client sent far more frames than it had reason to, or does not read while others need the
    /// memory that its responses take.
    Misused,
    /// The connection has to go.
    Over(Closure),
    /// The server begins to drain.
    Draining,
}

impl<H: RequestHandler> Connections<H> {
    /// Serves one connection until it ends. Says what it was closed for, if it was.
    pub(super) async fn serve_http2<IO>(self: &Arc<Self>, io: IO, caller: Caller) -> Option<Closure>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let options = &self.options;
        let misused = CancellationToken::new();
        let shelf = Shelf::default();
        let frames = FrameBudget::new(options.frames, misused.clone());
        let short_pieces = Arc::new(ShortPieces::new(&options.frames));
        let (io, flusher) = gather(Tapped::new(io, frames), shelf.clone());
        let mut connection = match self.handshake(io, &flusher, &caller).await {
            Ok(connection) => connection,
            Err(closure) => return closure,
        };
        let unsent = self.unsent.connect(misused.clone());
        let tenure = self.tenure(&caller);
        // A connection is woken for each response. What is rare is asked only when it was woken
        // itself.
        let mut events = FuturesUnordered::<BoxFuture<'_, Event>>::new();
        let unanswered = dead(connection.ping_pong(), options, &flusher);
        events.push(unanswered.map(|()| Event::Unanswered).boxed());
        events.push(misused.cancelled().map(|()| Event::Misused).boxed());
        events.push(tenure.over(None).map(Event::Over).boxed());
        events.push(self.draining.cancelled().map(|()| Event::Draining).boxed());
        let mut told: Option<(Closure, Instant)> = None;
        loop {
            let event = tokio::select! {
                biased;
                accepted = flushing(poll_fn(|context| connection.poll_accept(context)), &flusher) => match accepted {
                    Some(Ok((request, respond))) => {
                        let stream = Stream {
                            connections: Arc::clone(self),
                            caller: caller.clone(),
                            unsent: unsent.clone(),
                            short_pieces: Arc::clone(&short_pieces),
                            shelf: shelf.clone(),
                            _open: tenure.call(),
                        };
                        self.streams.spawn(stream.serve(request, respond));
                        continue;
                    }
                    Some(Err(error)) => {
                        tracing::debug!(peer = %caller.address, %error, "connection failed");
                        return closure(&error);
                    }
                    None => return told.map(|(closure, _)| closure),
                },
                Some(event) = events.next() => event,
            };
            match event {
                Event::Unanswered => {
                    self.say_unanswered(&caller);
                    return Some(Closure::Unanswered);
                }
                Event::Misused if unsent.is_squeezed() => {
                    self.say_squeezed(&caller);
                    return Some(Closure::Unread);
                }
                Event::Misused => {
                    self.end_flood(&mut connection, &flusher, &caller).await;
                    return Some(Closure::Flood);
                }
                Event::Over(Closure::Idle) if unsent.is_held() => {
                    // The answers to its calls are still on their way. Whoever does not take them answers no
                    // pings either.
                    events.push(over_later(&tenure, told, options.ping_interval).boxed());
                }
                Event::Over(closure) if told.is_some() => return Some(closure),
                Event::Over(closure) => {
                    told = Some((closure, Instant::now()));
                    connection.graceful_shutdown();
                    events.push(over_later(&tenure, told, Duration::ZERO).boxed());
                }
                Event::Draining => connection.graceful_shutdown(),
            }
        }
    }

    fn say_unanswered(&self, caller: &Caller) {
        if let Some(Admitted { unlogged }) = self.quiet.admit("unanswered") {
            let peer = caller.address;
            tracing::info!(%peer, unlogged, "connection closed: it answers no pings");
        }
    }

    fn say_squeezed(&self, caller: &Caller) {
        if let Some(Admitted { unlogged }) = self.quiet.admit("unread") {
            let peer = caller.address;
            tracing::warn!(
                %peer,
                unlogged,
                "connection closed: it does not read, and others need its memory"
            );
        }
    }

    /// Ends a connection and tells its client why, if that still listens.
    async fn end_flood<IO>(
        &self,
        connection: &mut h2::server::Connection<Gather<IO>, Piece>,
        flusher: &Flusher<IO>,
        caller: &Caller,
    ) where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        if let Some(Admitted { unlogged }) = self.quiet.admit("flood") {
            let peer = caller.address;
            tracing::warn!(%peer, unlogged, "connection closed: a flood of frames");
        }
        connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        let farewell = poll_fn(|context| connection.poll_closed(context));
        let farewell = Box::pin(flushing(farewell, flusher));
        let _ = timeout(FAREWELL_TIMEOUT, farewell).await;
    }

    /// Begins HTTP/2.
    ///
    /// # Errors
    /// Why the connection was closed instead, if the client is to blame.
    async fn handshake<IO>(
        &self,
        io: Gather<IO>,
        flusher: &Flusher<IO>,
        caller: &Caller,
    ) -> Result<h2::server::Connection<Gather<IO>, Piece>, Option<Closure>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = builder(&self.options).handshake(io);
        // What h2 says is gathered until it has said all for now, also while it shakes hands.
        let handshake = Box::pin(flushing(handshake, flusher));
        match timeout(self.options.header_timeout, handshake).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => {
                tracing::debug!(peer = %caller.address, %error, "no HTTP/2");
                Err(closure(&error))
            }
            Err(_) => {
                tracing::debug!(peer = %caller.address, "HTTP/2 preface timed out");
                Err(Some(Closure::Silent))
            }
        }
    }
}

fn builder(options: &Options) -> Builder {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(options.streams_per_connection_max)
        .max_header_list_size(options.header_bytes_max.saturating_mul(HEADER_LISTS_READ))
        // Requests are small: room for many of them would only be room for an attacker. It is as little
        // as the protocol begins with.
        .initial_window_size(REQUEST_WINDOW_BYTES)
        .initial_connection_window_size(REQUEST_WINDOW_BYTES)
        .max_send_buffer_size(2 * options.response_bytes_max)
        // Resets that the server answers with, and such that come before it looked (rapid
        // reset, CVE-2023-44487; RUSTSEC-2024-0003).
        .max_local_error_reset_streams(Some(options.local_error_resets_max))
        .max_pending_accept_reset_streams(options.pending_accept_resets_max);
    builder
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

/// Asks after a while whether the connection has to go.
async fn over_later(tenure: &Tenure, told: Option<(Closure, Instant)>, after: Duration) -> Event {
    sleep(after).await;
    Event::Over(tenure.over(told.map(|(_, at)| at)).await)
}

/// Resolves when the peer has not answered a ping in time. One that has a lot to read comes to the
/// ping late, but takes some of it meanwhile.
async fn dead<IO>(ping_pong: Option<PingPong>, options: &Options, flusher: &Flusher<IO>) {
    let Some(mut ping_pong) = ping_pong else {
        return std::future::pending().await;
    };
    loop {
        sleep(options.ping_interval).await;
        let mut pong = pin!(ping_pong.ping(Ping::opaque()));
        loop {
            // What it sends says nothing: who only sends frames would keep what it does not read.
            let resumed = flusher.resumed();
            match timeout(options.ping_timeout, &mut pong).await {
                Ok(Ok(_)) => break,
                // The connection itself says why it failed.
                Ok(Err(_)) => return std::future::pending().await,
                Err(_) if flusher.resumed() == resumed => return,
                Err(_) => {}
            }
        }
    }
}
