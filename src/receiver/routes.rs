//! Owns the warp routes: which handler serves a path and method, the deadline of a request, and the
//! counting and logging of outcomes.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

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
                Ok::<_, Infallible>(conclude(&shared, &refused, None, None, Instant::now()))
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
    let peer = peer.map(|Peer(address)| address);
    let timeout = shared.options.request_timeout;
    // What is not UTF-8 is no app id.
    let handled = match &decoded {
        Ok(app) => {
            tokio::time::timeout(
                timeout,
                handle(
                    shared,
                    app.as_deref(),
                    &request,
                    peer,
                    since + timeout,
                    body,
                ),
            )
            .await
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
    let app = decoded.ok().flatten();
    // Counted and logged before the next await: if the caller closes the connection, this future is
    // dropped there.
    let response = conclude(shared, &outcome, app.as_deref(), peer, since);
    if let Outcome::Refused(Error::Forged { answer_at }) = outcome {
        // After its memory and slots have been released.
        tokio::time::sleep_until(answer_at).await;
    }
    response
}

async fn handle<B: Buf>(
    shared: &Shared,
    app: Option<&str>,
    request: &Request,
    peer: Option<SocketAddr>,
    deadline: Instant,
    body: impl Stream<Item = Result<B, warp::Error>> + Send,
) -> Result<Outcome, Error> {
    shared.options.sources.admit(peer, &request.headers)?;
    match request.method {
        Method::GET => challenge::answer(shared, app, &request.query).map(Outcome::Challenge),
        Method::POST => {
            let body = std::pin::pin!(body);
            let arrival = Arrival {
                peer,
                client: shared.options.sources.client(peer, &request.headers),
                deadline,
            };
            let appended = delivery::take(shared, app, &request.headers, &arrival, body).await?;
            Ok(Outcome::Accepted(appended))
        }
        _ => Err(Error::MethodUnknown),
    }
}

/// Counts and logs an outcome, and makes the answer.
fn conclude(
    shared: &Shared,
    outcome: &Outcome,
    app: Option<&str>,
    peer: Option<SocketAddr>,
    since: Instant,
) -> Response {
    let answer = outcome.answer();
    let status = answer.response.status().as_u16();
    shared.metrics.request(answer.code, status, since.elapsed());
    // Only a configured id: text of strangers is not logged.
    let app = app.and_then(|app| shared.apps.get(app)).map(|app| &*app.id);
    let shown_peer = peer.map(tracing::field::display);
    match outcome {
        Outcome::Challenge(_) => {
            tracing::info!(app, peer = shown_peer, "activation challenge answered");
        }
        Outcome::Accepted(appended) => tracing::debug!(
            app,
            peer = shown_peer,
            accepted = appended.accepted,
            duplicates = appended.duplicates,
            "batch accepted"
        ),
        Outcome::Refused(error) => shared.note_refusal(error, answer.code, app, peer),
    }
    answer.response
}
