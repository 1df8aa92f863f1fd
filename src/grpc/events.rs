//! Owns the RPCs of `EventService`. They are written by hand because nobody here encodes the messages
//! of a subscription.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderValue, Request, Response, header};
use http_body::Frame;
use http_body_util::StreamBody;
use tonic::{Status, body::Body};

use super::{
    body::{Outlet, SessionBody},
    held::{Deadline, Ending},
    request,
    resources::{Refused, Resources},
    status::{self, Failure, trailers},
};
use crate::{
    credentials::{Grant, Kind, Refusal},
    http2::{self, Caller},
    net::slots::Slot,
    proto::{GetRangeRequest, GetRangeResponse, LogRange},
    subscription::CursorSession,
    wire,
};

/// How large a response gets, in bytes, that is sent as the body of gRPC-Web, and each piece of one with
/// a single event that is larger: the connection holds all of it until its client reads.
const WEB_RESPONSE_BYTES_MAX: usize = 16 * 1024;

/// Answers `Subscribe`.
pub(super) fn subscribe(
    resources: Arc<Resources>,
    request: Request<Bytes>,
) -> BoxFuture<'static, Response<Body>> {
    async move {
        let caller = request.extensions().get::<Caller>().cloned();
        match open(&resources, caller.as_ref(), request).await {
            Ok(session) => stream(
                session,
                resources
                    .options
                    .response_bytes_max
                    .min(WEB_RESPONSE_BYTES_MAX),
            ),
            Err(failure) => {
                resources.refused(Refused::Subscription, caller.as_ref(), &failure);
                Status::from(&failure).into_http()
            }
        }
    }
    .boxed()
}

async fn open(
    resources: &Resources,
    caller: Option<&Caller>,
    request: Request<Bytes>,
) -> Result<CursorSession, Failure> {
    let (mut parts, message) = request.into_parts();
    // The gate has put it there; without it, nobody is let in.
    let grant = parts.extensions.remove::<Grant>();
    let grant = grant.ok_or(Failure::Credential(Refusal::Missing))?;
    let plan = request::plan(decode(message)?, &grant)?;
    let slot = slot(resources, caller, &grant)?;
    let deadline = parts.extensions.get::<Deadline>();
    let deadline = deadline.and_then(|&Deadline(deadline)| deadline);
    let permit = resources.subscriptions.permit(&grant, slot, deadline)?;
    let peer = caller.map(|caller| caller.address);
    let session = resources
        .subscriptions
        .open(plan, permit, peer, grant.name())
        .await?;
    Ok(session)
}

/// A subscriber without a credential takes a slot of its address; others have a quota.
fn slot(
    resources: &Resources,
    caller: Option<&Caller>,
    grant: &Grant,
) -> Result<Option<Slot>, Failure> {
    match grant.kind() {
        Kind::Anonymous => {
            let slot = resources.calls.enter(http2::Kind::Anonymous, caller, None);
            slot.map(Some).map_err(Failure::NoSlot)
        }
        Kind::Token | Kind::Certificate | Kind::Jwt => Ok(None),
    }
}

fn stream(session: CursorSession, response_bytes_max: usize) -> Response<Body> {
    let ending = session.overdue().map(|overdue| {
        let trailers = overdue.map(|failure| trailers(&status::ended(&Err(failure))));
        Ending::new(trailers.boxed())
    });
    let outlet = Outlet::new(session);
    let body = SessionBody::new(outlet.clone(), response_bytes_max);
    let mut response = answer(Body::new(body));
    response.extensions_mut().insert(outlet);
    if let Some(ending) = ending {
        response.extensions_mut().insert(ending);
    }
    response
}

/// Answers `GetRange`.
pub(super) fn get_range(
    resources: Arc<Resources>,
    request: Request<Bytes>,
) -> BoxFuture<'static, Response<Body>> {
    async move {
        let caller = request.extensions().get::<Caller>().cloned();
        match decode(request.into_body()) {
            Ok(GetRangeRequest {}) => {
                let LogRange {
                    earliest,
                    head,
                    event_count,
                } = resources.subscriptions.log_range();
                unary(&GetRangeResponse {
                    earliest,
                    head,
                    event_count,
                })
            }
            Err(failure) => {
                let caller = caller.as_ref();
                resources.refused(Refused::Call, caller, &failure);
                Status::from(&failure).into_http()
            }
        }
    }
    .boxed()
}

fn decode<M: prost::Message + Default>(message: Bytes) -> Result<M, Failure> {
    M::decode(message).map_err(|error| Failure::Message {
        description: error.to_string(),
    })
}

/// The answer to a call with one response.
fn unary(message: &impl prost::Message) -> Response<Body> {
    let frames = [
        Frame::data(wire::grpc_message(message)),
        Frame::trailers(trailers(&Status::ok(""))),
    ];
    let frames = tokio_stream::iter(frames.map(Ok::<_, Infallible>));
    answer(Body::new(StreamBody::new(frames)))
}

fn answer(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let content_type = HeaderValue::from_static("application/grpc");
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}
