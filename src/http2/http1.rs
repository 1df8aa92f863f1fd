//! Owns connections of pages, which speak HTTP/1.1 because browsers give them nothing else that
//! carries gRPC-Web.

use std::{convert::Infallible, pin::pin, sync::Arc};

use http::Request;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

use super::{Answer, Caller, Connections, RequestHandler};
use crate::{
    metrics::Closure,
    net::{framing::Framing, http1},
};

impl<H: RequestHandler> Connections<H> {
    /// Serves one connection until it ends. Says what it was closed for, if it was.
    pub(super) async fn serve_http1<IO>(self: &Arc<Self>, io: IO, caller: Caller) -> Option<Closure>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let tenure = self.tenure(&caller);
        // Between requests the limit for headers is its limit.
        let _open = tenure.call();
        let mut told: Option<(Closure, Instant)> = None;
        let buffer_bytes = self.options.header_bytes_max as usize;
        let buffer_bytes = buffer_bytes.max(http1::BUFFER_BYTES_MIN);
        // Beside the header, a message may have as much around it as it may have in it.
        let framing = Framing::new(buffer_bytes.saturating_add(self.options.request_bytes_max));
        let io = framing.reading(io);
        let connections = Arc::clone(self);
        let service = hyper::service::service_fn(move |mut request: Request<_>| {
            request.extensions_mut().insert(caller.clone());
            let request = request.map(|body| framing.paying(body));
            let connections = Arc::clone(&connections);
            async move {
                let Answer { response, .. } = connections.handler.answer(request).await;
                Ok::<_, Infallible>(response)
            }
        });
        // Nobody pings these, and hyper waits for ever for a client that does not read.
        let io = http1::with_write_timeout(io, self.options.slow_consumer_timeout);
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.options.header_timeout)
            .max_headers(64)
            .max_buf_size(buffer_bytes)
            .serve_connection(TokioIo::new(io), service);
        let mut connection = pin!(connection);
        let draining = self.draining.child_token();
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
                () = draining.cancelled(), if !going_away => {
                    going_away = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}
