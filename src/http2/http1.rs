//! Owns connections of pages, which speak HTTP/1.1 because browsers give them nothing else that
//! carries gRPC-Web.

use std::{convert::Infallible, pin::pin, sync::Arc};

use http::Request;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep},
};

use super::{Answer, Caller, Connections, FAREWELL_TIMEOUT, RequestHandler, UNREAD_BYTES_MAX};
use crate::{
    metrics::Closure,
    net::{
        framing::Framing,
        http1::{self, Exchange, Requests},
    },
};

/// How many fields a request's header may have: a browser sends some twenty.
const HEADERS_MAX: usize = 64;

impl<H: RequestHandler> Connections<H> {
    /// Serves one connection until it ends. Says what it was closed for, if it was.
    pub(super) async fn serve_http1<IO>(self: &Arc<Self>, io: IO, caller: Caller) -> Option<Closure>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let tenure = self.tenure(&caller);
        // Between requests the limit for headers is its limit.
        let _open = tenure.call();
        let limits = self.http1_limits();
        let exchange = Arc::new(Exchange::default());
        let mut told: Option<(Closure, Instant)> = None;
        let framing_bytes = limits
            .header_bytes_max
            .saturating_add(limits.framing_bytes_max);
        let framing = Framing::new(framing_bytes);
        // Nobody pings these, and hyper waits for ever for a client that does not read.
        let io = http1::with_write_timeout(io, limits.write_timeout);
        let standing = caller.standing.clone();
        let io = framing.reading(Requests::new(io, limits, standing, Arc::clone(&exchange)));
        let connections = Arc::clone(self);
        let exchanged = Arc::clone(&exchange);
        let service = hyper::service::service_fn(move |mut request: Request<_>| {
            request.extensions_mut().insert(caller.clone());
            exchanged.note_fault(&mut request);
            let request = request.map(|body| framing.paying(body));
            let (connections, exchanged) = (Arc::clone(&connections), Arc::clone(&exchanged));
            async move {
                let Answer { mut response, .. } = connections.handler.answer(request).await;
                exchanged.close_within_body(&mut response);
                Ok::<_, Infallible>(response)
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            // The reader has one.
            .header_read_timeout(None)
            .half_close(true)
            .max_headers(limits.headers_max)
            .max_buf_size(limits.header_bytes_max)
            .serve_connection(TokioIo::new(io), service);
        let mut connection = pin!(connection);
        let mut gone = pin!(async {
            exchange.closed.cancelled().await;
            // It may still read an answer; a stream would go on for as long as the socket takes it.
            sleep(FAREWELL_TIMEOUT).await;
        });
        let draining = self.draining.child_token();
        let mut going_away = false;
        loop {
            tokio::select! {
                ended = &mut connection => {
                    let told = told.filter(|_| ended.is_ok()).map(|(closure, _)| closure);
                    let closure = told.or_else(|| exchange.closure());
                    return closure.or_else(|| http1::closure(&ended.err()?));
                }
                () = &mut gone => return told.map(|(closure, _)| closure),
                closure = tenure.over(told.map(|(_, at)| at)) => {
                    if told.is_some() {
                        return Some(closure);
                    }
                    told = Some((closure, Instant::now()));
                    connection.as_mut().graceful_shutdown();
                }
                () = draining.cancelled(), if !going_away => {
                    going_away = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }

    /// What a connection of a page may take.
    fn http1_limits(&self) -> http1::Limits {
        let header_bytes_max = self.options.header_bytes_max as usize;
        http1::Limits {
            header_timeout: self.options.header_timeout,
            idle_timeout: self.options.header_timeout,
            write_timeout: self.options.slow_consumer_timeout,
            headers_max: HEADERS_MAX,
            header_bytes_max: header_bytes_max.max(http1::BUFFER_BYTES_MIN),
            // Beside the header, a message may have as much around it as it may have in it.
            framing_bytes_max: self.options.request_bytes_max,
            linger_bytes_max: UNREAD_BYTES_MAX as usize,
        }
    }
}
