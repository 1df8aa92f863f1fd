//! Owns the RPCs of `EventService`. They are written by hand because nobody here encodes the messages
//! of a subscription.

use std::{convert::Infallible, sync::Arc};

use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderValue, Request, Response, header};
use http_body::Frame;
use http_body_util::StreamBody;
use tonic::{
    Code, Status,
    body::Body,
    codec::{Codec as _, Streaming},
};
use tonic_prost::ProstCodec;

use super::{
    body::{Outlet, SessionBody},
    request,
    resources::{Refused, Resources},
    status::{Failure, trailers},
};
use crate::{
    credentials::{Grant, Kind, QuotaReached, Refusal},
    http2::{self, Caller},
    net::slots::Slot,
    proto::{GetRangeRequest, GetRangeResponse, LogRange},
    subscription::{self, CursorSession},
    wire,
};

/// How large a response gets, in bytes, that is sent as the body of gRPC-Web, and each piece of one with
/// a single event that is larger: the connection holds all of it until its client reads.
const WEB_RESPONSE_BYTES_MAX: usize = 16 * 1024;

/// Answers `Subscribe`.
pub(super) fn subscribe(
    resources: Arc<Resources>,
    request: Request<Body>,
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
    request: Request<Body>,
) -> Result<CursorSession, Failure> {
    let (mut parts, body) = request.into_parts();
    // The gate has put it there; without it, nobody is let in.
    let grant = parts.extensions.remove::<Grant>();
    let grant = grant.ok_or(Failure::Credential(Refusal::Missing))?;
    let plan = request::plan(message(resources, body).await?, &grant)?;
    let slot = slot(resources, caller, &grant)?;
    let permit = resources.subscriptions.permit(&grant, slot)?;
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
    let outlet = Outlet::new(session);
    let body = SessionBody::new(outlet.clone(), response_bytes_max);
    let mut response = answer(Body::new(body));
    response.extensions_mut().insert(outlet);
    response
}

/// Answers `GetRange`.
pub(super) fn get_range(
    resources: Arc<Resources>,
    request: Request<Body>,
) -> BoxFuture<'static, Response<Body>> {
    async move {
        match message(&resources, request.into_body()).await {
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
            Err(failure) => Status::from(&failure).into_http(),
        }
    }
    .boxed()
}

/// Reads the one message of a request.
async fn message<M>(resources: &Resources, body: Body) -> Result<M, Failure>
where
    M: prost::Message + Default + 'static,
{
    let decoder = ProstCodec::<M, M>::default().decoder();
    let request_bytes_max = resources.options.request_bytes_max;
    let mut messages = Streaming::new_request(decoder, body, None, Some(request_bytes_max));
    let waited = resources.options.header_timeout;
    match tokio::time::timeout(waited, messages.message()).await {
        Ok(Ok(Some(message))) => Ok(message),
        Ok(Ok(None)) => Err(Failure::Message {
            description: "it has no message".to_owned(),
        }),
        Ok(Err(status)) if status.code() == Code::DeadlineExceeded => {
            Err(Failure::MessageTimeout { waited })
        }
        // It did not come whole, for want of memory.
        Ok(Err(status)) if status.code() == Code::ResourceExhausted => {
            let bytes_max = resources.subscriptions.filters_bytes_max();
            let reached = QuotaReached::Filters { bytes_max };
            Err(Failure::Stream(subscription::Failure::Quota(reached)))
        }
        // Too large, or not protobuf. tonic would call some of that INTERNAL, but it is no bug.
        Ok(Err(status)) => Err(Failure::Message {
            description: status.message().to_owned(),
        }),
        Err(_) => Err(Failure::MessageTimeout { waited }),
    }
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
