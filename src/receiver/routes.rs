//! Owns the warp routes: which handler serves a path and method, and the deadline of a request.

use std::{convert::Infallible, sync::Arc};

use bytes::Buf;
use http::{HeaderMap, Method};
use percent_encoding::{PercentDecode, percent_decode_str};
use tokio::time::Instant;
use tokio_stream::Stream;
use warp::{Filter, Rejection, filters::path::FullPath, reply::Response};

use super::{
    Shared, challenge,
    delivery::{self, Arrival},
    error::Error,
    pending::Pending,
    status::Outcome,
};
use crate::net::http1::{Fault, Peer};

/// All routes of the webhook port. No request is rejected by warp: each gets an answer of ours.
pub(super) fn routes(
    shared: Arc<Shared>,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone {
    let for_rejected = Arc::clone(&shared);
    warp::path::full()
        .and(warp::method())
        .and(warp::header::headers_cloned())
        .and(warp::query())
        .and(warp::ext::optional())
        .and(warp::ext::optional())
        .and(warp::body::stream())
        .then(move |path, method, headers, query, peer, fault, body| {
            let shared = Arc::clone(&shared);
            async move {
                let request = Request {
                    path,
                    method,
                    headers,
                    query,
                    fault,
                };
                answer(&shared, request, peer, body).await
            }
        })
        .recover(move |_: Rejection| {
            let shared = Arc::clone(&for_rejected);
            async move {
                let refused = Outcome::Refused(Error::PathUnknown);
                let pending = Pending::new(&shared, None, None, Instant::now());
                Ok::<_, Infallible>(pending.conclude(&refused))
            }
        })
        .unify()
}

struct Request {
    path: FullPath,
    method: Method,
    headers: HeaderMap,
    query: Vec<(String, String)>,
    /// Why it is not a request that can be handled.
    fault: Option<Fault>,
}

impl Request {
    /// The app that the path names, if it names one. An encoded character is the same as the character
    /// itself (RFC 9110 section 4.2.3), also in the part that is not the app's.
    fn app(&self) -> Result<Option<String>, Error> {
        if let Some(fault) = self.fault {
            return Err(Error::Malformed(fault));
        }
        let path = self.path.as_str();
        // The whole server: only OPTIONS can ask for that.
        if path == "*" {
            return Ok(None);
        }
        let mut segments = path.split('/').map(percent_decode_str);
        let known = ["", "webhooks"].map(str::as_bytes);
        for known in known {
            let segment = segments.next().ok_or(Error::PathUnknown)?;
            if !segment.eq(known.iter().copied()) {
                return Err(Error::PathUnknown);
            }
        }
        match (segments.next(), segments.next(), segments.next()) {
            (None, ..) => Ok(None),
            (Some(last), None, _) if last.clone().next().is_none() => Ok(None),
            (Some(app), None, _) => app_id(app),
            (Some(app), Some(last), None) if last.clone().next().is_none() => app_id(app),
            _ => Err(Error::PathUnknown),
        }
    }
}

/// What is not UTF-8 is no app id.
fn app_id(segment: PercentDecode<'_>) -> Result<Option<String>, Error> {
    let id = segment.decode_utf8().map_err(|_| Error::AppUnknown)?;
    if id.is_empty() {
        return Err(Error::PathUnknown);
    }
    Ok(Some(id.into_owned()))
}

async fn answer<B: Buf>(
    shared: &Shared,
    request: Request,
    peer: Option<Peer>,
    body: impl Stream<Item = Result<B, warp::Error>> + Send,
) -> Response {
    let since = Instant::now();
    let app = request.app();
    let named = app.as_ref().ok().and_then(Option::as_deref);
    let pending = Pending::new(shared, named, peer.as_ref(), since);
    let timeout = shared.options.request_timeout;
    let handled = match &app {
        Ok(app) => {
            let app = app.as_deref();
            let handled = handle(shared, app, &request, &pending, since + timeout, body);
            tokio::time::timeout(timeout, handled).await.ok()
        }
        Err(_) => None,
    };
    let outcome = match (handled, app) {
        (Some(Ok(outcome)), _) => outcome,
        (Some(Err(error)), _) | (None, Err(error)) => Outcome::Refused(error),
        (None, Ok(_)) => Outcome::Refused(Error::TooSlow {
            seconds: timeout.as_secs(),
        }),
    };
    // Counted and logged before the next await: if the caller closes the connection, this future is
    // dropped there.
    let response = pending.conclude(&outcome);
    if let Outcome::Refused(Error::Forged { answer_at, .. }) = outcome {
        // After its memory and slots have been released.
        let turn = tokio::time::sleep_until(answer_at);
        match &peer {
            Some(peer) => {
                peer.wait_open(turn).await;
            }
            None => turn.await,
        }
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
        // hyper leaves the body of an answer to HEAD out.
        Method::GET | Method::HEAD => {
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
        Method::OPTIONS => Ok(Outcome::Options {
            has_challenge: challenge::is_expected(shared, app),
        }),
        Method::PUT | Method::PATCH | Method::DELETE | Method::TRACE | Method::CONNECT => {
            Err(Error::MethodNotAllowed {
                has_challenge: challenge::is_expected(shared, app),
            })
        }
        _ => Err(Error::MethodUnknown),
    }
}
