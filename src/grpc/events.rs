//! Owns the RPCs of `EventService`: a tower service in tonic's router, written by hand because a
//! subscription's messages are not encoded by anybody here.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, header};
use http_body::Frame;
use http_body_util::StreamBody;
use tonic::{
    Code, Status,
    body::Body,
    codec::{Codec as _, Streaming},
    server::NamedService,
};
use tonic_prost::ProstCodec;
use tower_service::Service;

use super::{
    Caller,
    access::Permit,
    body::{Outlet, SessionBody},
    notice,
    request::Plan,
    session::Session,
    shared::{Refused, Shared},
    status::{Failure, trailers},
};
use crate::{
    credentials::{Grant, Refusal},
    proto::{GetRangeRequest, GetRangeResponse, LogRange},
    wire,
};

const SUBSCRIBE: &str = "/prelude.bridge.v1.EventService/Subscribe";
const GET_RANGE: &str = "/prelude.bridge.v1.EventService/GetRange";

/// `prelude.bridge.v1.EventService`.
#[derive(Clone)]
pub(super) struct EventService(pub(super) Arc<Shared>);

impl NamedService for EventService {
    const NAME: &'static str = "prelude.bridge.v1.EventService";
}

/// A request's extension: where it came from, for the operator's log.
#[derive(Clone)]
pub(super) struct Peer(pub(super) Arc<str>);

impl Service<Request<Body>> for EventService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            Ok(match request.uri().path() {
                SUBSCRIBE => match subscribe(shared, request).await {
                    Ok(session) => stream(session),
                    Err(status) => status.into_http(),
                },
                GET_RANGE => match get_range(&shared, request).await {
                    Ok(range) => unary(&range),
                    Err(failure) => Status::from(&failure).into_http(),
                },
                _ => Status::from(&Failure::Rpc).into_http(),
            })
        })
    }
}

async fn subscribe(shared: Arc<Shared>, request: Request<Body>) -> Result<Session, Status> {
    let (parts, body) = request.into_parts();
    let peer = parts
        .extensions
        .get::<Peer>()
        .map_or("unknown", |Peer(peer)| peer);
    let opened = async {
        // The gate has put it there; without it, nobody is let in.
        let grant = parts.extensions.get::<Grant>();
        let grant = grant.ok_or(Failure::Credential(Refusal::Missing))?;
        let plan = Plan::new(message(&shared, body).await?, grant)?;
        let caller = parts.extensions.get::<Caller>();
        let permit = Permit::new(&shared, caller, grant)?;
        let registration = shared.registry.admit(&plan, peer, grant.name())?;
        Session::open(Arc::clone(&shared), plan, permit, registration).await
    };
    opened.await.map_err(|failure| {
        shared.refused(Refused::Subscription, Some(peer), &failure);
        Status::from(&failure)
    })
}

async fn get_range(shared: &Shared, request: Request<Body>) -> Result<GetRangeResponse, Failure> {
    let GetRangeRequest {} = message(shared, request.into_body()).await?;
    let LogRange {
        earliest,
        head,
        event_count,
    } = notice::log_range(shared, &shared.range());
    Ok(GetRangeResponse {
        earliest,
        head,
        event_count,
    })
}

/// Reads the one message of a request.
async fn message<M>(shared: &Shared, body: Body) -> Result<M, Failure>
where
    M: prost::Message + Default + 'static,
{
    let decoder = ProstCodec::<M, M>::default().decoder();
    let request_bytes_max = shared.options.request_bytes_max;
    let mut messages = Streaming::new_request(decoder, body, None, Some(request_bytes_max));
    let waited = shared.options.header_timeout;
    match tokio::time::timeout(waited, messages.message()).await {
        Ok(Ok(Some(message))) => Ok(message),
        Ok(Ok(None)) => Err(Failure::Message {
            description: "it has no message".to_owned(),
        }),
        Ok(Err(status)) if status.code() == Code::DeadlineExceeded => {
            Err(Failure::MessageTimeout { waited })
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

fn stream(session: Session) -> Response<Body> {
    let outlet = Outlet::new(session);
    let mut response = answer(Body::new(SessionBody::new(outlet.clone())));
    response.extensions_mut().insert(outlet);
    response
}
