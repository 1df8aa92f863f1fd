//! Owns the warp routes: which handler serves a path and method, and the deadline of a request.

use std::{convert::Infallible, sync::Arc};

use bytes::Buf;
use http::{HeaderMap, Method};
use percent_encoding::percent_decode_str;
use tokio::time::Instant;
use tokio_stream::Stream;
use warp::{Filter, Rejection, reply::Response};

use super::{
    Shared, challenge,
    delivery::{self, Arrival},
    error::Error,
    pending::Pending,
    status::Outcome,
};
use crate::net::http1::Peer;

/// All routes of the webhook port. No request is rejected by warp: each gets an answer of ours.
pub(super) fn routes(
    shared: Arc<Shared>,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone {
    let for_nowhere = Arc::clone(&shared);
    let app = warp::path::param()
        .map(Some)
        .or(warp::any().map(|| None))
        .unify();
    warp::path("webhooks")
        .and(app)
        .and(warp::path::end())
        .and(warp::method())
        .and(warp::header::headers_cloned())
        .and(warp::query())
        .and(warp::ext::optional())
        .and(warp::body::stream())
        .then(move |app, method, headers, query, peer, body| {
            let shared = Arc::clone(&shared);
            async move {
                let request = Request {
                    app,
                    method,
                    headers,
                    query,
                };
                answer(&shared, request, peer, body).await
            }
        })
        .recover(move |_: Rejection| {
            let shared = Arc::clone(&for_nowhere);
            async move {
                let refused = Outcome::Refused(Error::PathUnknown);
                let pending = Pending::new(&shared, None, None, Instant::now());
                Ok::<_, Infallible>(pending.conclude(&refused))
            }
        })
        .unify()
}

struct Request {
    /// The part of the path after `webhooks`, as it was sent.
    app: Option<String>,
    method: Method,
    headers: HeaderMap,
    query: Vec<(String, String)>,
}

async fn answer<B: Buf>(
    shared: &Shared,
    request: Request,
    peer: Option<Peer>,
    body: impl Stream<Item = Result<B, warp::Error>> + Send,
) -> Response {
    let since = Instant::now();
    let decoded = match &request.app {
        Some(segment) => percent_decode_str(segment).decode_utf8().map(Some),
        None => Ok(None),
    };
    // What is not UTF-8 is no app id.
    let app = decoded.as_ref().map(Option::as_deref);
    let pending = Pending::new(shared, app.ok().flatten(), peer.as_ref(), since);
    let timeout = shared.options.request_timeout;
    let handled = match app {
        Ok(app) => {
            let handled = handle(shared, app, &request, &pending, since + timeout, body);
            tokio::time::timeout(timeout, handled).await
        }
        Err(_) => Ok(Err(Error::AppUnknown)),
    };
    let outcome = match handled {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => Outcome::Refused(error),
        Err(_) => Outcome::Refused(Error::TooSlow {
            seconds: timeout.as_secs(),
        }),
    };
    // Counted and logged before the next await: if the caller closes the connection, this future is
    // dropped there.
    let response = pending.conclude(&outcome);
    if let Outcome::Refused(Error::Forged { answer_at, .. }) = outcome {
        // After its memory and slots have been released.
        tokio::time::sleep_until(answer_at).await;
    }
    response
}

async fn handle<B: Buf>(
    shared: &Shared,
    app: Option<&str>,
    request: &Request,
    pending: &Pending<'_>,
    deadline: Instant,
    body: impl Stream<Item = Result<B, warp::Error>> + Send,
) -> Result<Outcome, Error> {
    let address = pending.address();
    shared.options.sources.admit(address, &request.headers)?;
    match request.method {
        Method::GET => {
            let answer = challenge::answer(shared, app, &request.query)?;
            // Whoever has the verification token is no stranger.
            if let Some(peer) = pending.peer {
                peer.standing.prove();
            }
            Ok(Outcome::Challenge(answer))
        }
        Method::POST => {
            let body = std::pin::pin!(body);
            let arrival = Arrival {
                pending,
                client: shared.options.sources.client(address, &request.headers),
                deadline,
            };
            let appended = delivery::take(shared, app, &request.headers, &arrival, body).await?;
            Ok(Outcome::Accepted(appended))
        }
        _ => Err(Error::MethodUnknown),
    }
}
