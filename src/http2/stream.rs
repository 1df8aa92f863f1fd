//! Owns one request on an HTTP/2 connection, from its head to the end of its response.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{Request, Response};
use http_body::{Body, Frame};

use super::{
    Answer, Caller, Connections, RequestHandler,
    frame_budget::ShortPieces,
    gather::Shelf,
    piece::Piece,
    sending::{Gone, Sender},
    tenure::OpenCall,
    unsent::Unsent,
};
use crate::credentials::Grant;

/// A request and where its response goes.
pub(super) struct Stream<H> {
    pub(super) connections: Arc<Connections<H>>,
    pub(super) caller: Caller,
    pub(super) unsent: Unsent,
    pub(super) short_pieces: Arc<ShortPieces>,
    pub(super) shelf: Shelf,
    pub(super) _open: OpenCall,
}

impl<H: RequestHandler> Stream<H> {
    /// Lets the handler answer, and sends what it says.
    pub(super) async fn serve(
        self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Piece>,
    ) {
        let mut request = request.map(RequestBody);
        request.extensions_mut().insert(self.caller);
        let answer = tokio::select! {
            // In a place of its own, which is given back before the response is sent: streams are
            // many and live long.
            answer = Box::pin(self.connections.handler.answer(request)) => answer,
            _ = poll_fn(|context| respond.poll_reset(context)) => return,
        };
        let Answer {
            response,
            session,
            grant,
            over,
        } = answer;
        let unsent = self
            .unsent
            .under(grant.as_ref().and_then(Grant::quota).cloned());
        let (head, body) = response.into_parts();
        let ends = session.is_none() && body.is_end_stream();
        let Ok(mut send) = respond.send_response(Response::from_parts(head, ()), ends) else {
            return;
        };
        let mut sender = Sender {
            handler: &self.connections.handler,
            options: &self.connections.options,
            draining: &self.connections.draining,
            unsent: &unsent,
            short_pieces: &self.short_pieces,
            shelf: &self.shelf,
            send: &mut send,
        };
        let sent = match session {
            Some(mut session) => sender.session(&mut session).await,
            None if ends => Ok(()),
            None => Box::pin(sender.body(body, grant, over)).await,
        };
        // A gone stream needs no farewell.
        let _: Result<(), Gone> = sent;
    }
}

/// The body of a request on an HTTP/2 connection.
struct RequestBody(RecvStream);

impl Body for RequestBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match ready!(self.0.poll_data(context)) {
            Some(Ok(bytes)) => {
                // What was read makes room for more.
                self.0.flow_control().release_capacity(bytes.len())?;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => match ready!(self.0.poll_trailers(context)) {
                Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Ok(None) => Poll::Ready(None),
                Err(error) => Poll::Ready(Some(Err(error))),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}
