//! Owns the RPCs of `EventService`: a tower service in tonic's router, written by hand because a
//! subscription's messages are not encoded by anybody here.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, header};
use tonic::{
    Status,
    body::Body,
    codec::{Codec as _, Streaming},
    server::{Grpc, NamedService, UnaryService},
};
use tonic_prost::ProstCodec;
use tower_service::Service;

use super::{
    body::SessionBody, notice, request::Plan, session::Session, shared::Shared, status::Failure,
};
use crate::proto::{GetRangeRequest, GetRangeResponse, SubscribeRequest, SubscribeResponse};

const SUBSCRIBE: &str = "/prelude.bridge.v1.EventService/Subscribe";
const GET_RANGE: &str = "/prelude.bridge.v1.EventService/GetRange";

/// `prelude.bridge.v1.EventService`.
#[derive(Clone)]
pub(super) struct EventService(pub(super) Arc<Shared>);

impl NamedService for EventService {
    const NAME: &'static str = "prelude.bridge.v1.EventService";
}

/// A response's extension: the session behind its body, for a connection that can send responses
/// as they are. Who does not take it reads the body, which is the same stream as plain bytes.
#[derive(Clone)]
pub(super) struct Outlet(pub(super) Arc<Mutex<Option<Session>>>);

impl Outlet {
    pub(super) fn take(&self) -> Option<Session> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
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
                GET_RANGE => {
                    let codec = ProstCodec::<GetRangeResponse, GetRangeRequest>::default();
                    let request_bytes_max = shared.options.request_bytes_max;
                    Grpc::new(codec)
                        .apply_max_message_size_config(Some(request_bytes_max), None)
                        .unary(GetRange(shared), request)
                        .await
                }
                path => {
                    let path = path.to_owned();
                    Status::from(&Failure::Rpc { path }).into_http()
                }
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
        let plan = Plan::new(message(&shared, body).await?)?;
        let registration = shared.registry.admit(&plan, peer)?;
        Session::open(Arc::clone(&shared), plan, registration).await
    };
    opened.await.map_err(|failure| {
        tracing::info!(peer, reason = failure.reason(), "subscription refused");
        shared.registry.refused(failure.reason());
        Status::from(&failure)
    })
}

/// Reads the one message of a request.
async fn message(shared: &Shared, body: Body) -> Result<SubscribeRequest, Failure> {
    let decoder = ProstCodec::<SubscribeResponse, SubscribeRequest>::default().decoder();
    let request_bytes_max = shared.options.request_bytes_max;
    let mut messages = Streaming::new_request(decoder, body, None, Some(request_bytes_max));
    let waited = shared.options.header_timeout;
    match tokio::time::timeout(waited, messages.message()).await {
        Ok(Ok(Some(request))) => Ok(request),
        Ok(Ok(None)) => Err(Failure::Message {
            description: "it has no message".to_owned(),
        }),
        // Too large, or not protobuf. tonic would call some of that INTERNAL, but it is no bug.
        Ok(Err(status)) => Err(Failure::Message {
            description: status.message().to_owned(),
        }),
        Err(_) => Err(Failure::MessageTimeout { waited }),
    }
}

fn stream(session: Session) -> Response<Body> {
    let outlet = Outlet(Arc::new(Mutex::new(Some(session))));
    let mut response = Response::new(Body::new(SessionBody::new(outlet.clone())));
    let content_type = HeaderValue::from_static("application/grpc");
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response.extensions_mut().insert(outlet);
    response
}

struct GetRange(Arc<Shared>);

impl UnaryService<GetRangeRequest> for GetRange {
    type Response = GetRangeResponse;
    type Future = std::future::Ready<Result<tonic::Response<GetRangeResponse>, Status>>;

    fn call(&mut self, _: tonic::Request<GetRangeRequest>) -> Self::Future {
        let range = notice::log_range(&self.0, &self.0.range());
        std::future::ready(Ok(tonic::Response::new(GetRangeResponse {
            range: Some(range),
        })))
    }
}
