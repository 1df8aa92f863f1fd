//! Owns the two protocols that the RPCs are called by: gRPC, and gRPC-Web with the rules of browsers
//! around it.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header, request,
};
use http_body_util::Full;
use tokio::time::timeout;
use tonic::body::Body;
use tonic_web::GrpcWebLayer;
use tower::{Layer as _, ServiceExt as _};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer, ExposeHeaders};

use super::{
    body::Outlet,
    gate::Gate,
    held::Ending,
    protocol::{NoCall, Protocol, protocol},
    resources::Refused,
    status::{self, Failure},
};
use crate::{
    credentials::Grant,
    http2::{Answer, Caller, Kind, RequestHandler},
    net::{http1::Fault, slots::Standing},
    subscription,
};

/// How long a client may take to make room for the text that explains why its request is refused by HTTP.
const EXPLANATION_TIMEOUT: Duration = Duration::from_secs(1);

/// All RPCs, for connections. Cheap to clone.
#[derive(Clone)]
pub(super) struct Services {
    pub(super) gate: Gate,
    web_origins: Arc<[String]>,
}

impl RequestHandler for Services {
    type Body = Body;

    async fn answer<B>(&self, request: Request<B>) -> Answer<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>> + fmt::Display,
    {
        let fault = request.extensions().get::<Fault>().copied();
        let protocol = match fault {
            Some(fault) => Err(NoCall::Malformed(fault)),
            None => protocol(request.method(), request.version(), request.headers()),
        };
        let is_grpc = protocol == Ok(Protocol::Grpc);
        let mut response = if is_grpc {
            self.gate.clone().answer(request.map(Body::new)).await
        } else {
            self.web(request, protocol).await
        };
        let over = response.extensions_mut().remove::<Ending>();
        let grant = response.extensions_mut().remove::<Grant>();
        let outlet = response.extensions_mut().remove::<Outlet>();
        let session = outlet.filter(|_| is_grpc).and_then(|outlet| outlet.take());
        Answer {
            response,
            session,
            grant,
            over: over.and_then(|over| over.take()),
        }
    }

    fn trailers(&self, end: &Result<(), subscription::Failure>) -> HeaderMap {
        status::trailers(&status::ended(end))
    }

    fn drained(&self) -> subscription::Failure {
        self.gate.resources.subscriptions.drained(None)
    }
}

impl Services {
    /// Pages of these origins may call the RPCs behind the gate.
    pub(super) fn new(gate: Gate, web_origins: Vec<String>) -> Self {
        Self {
            gate,
            web_origins: web_origins.into(),
        }
    }

    /// Answers a gRPC-Web request, a browser's question whether it may send one, or what is no call.
    async fn web<B>(
        &self,
        mut request: Request<B>,
        protocol: Result<Protocol, NoCall>,
    ) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>> + fmt::Display,
    {
        // A page of a stranger's site must not read events through its visitor's browser. Asking
        // is left to the browser for nothing but plain requests, so the answer is given here.
        if let Some(origin) = request.headers().get(header::ORIGIN)
            && !self.allows(origin)
        {
            return self.refuse(&request, "origin", StatusCode::FORBIDDEN, String::new());
        }
        match protocol {
            Ok(Protocol::Web(content_type)) => {
                use_content_type(request.headers_mut(), content_type);
            }
            Ok(Protocol::Preflight | Protocol::Grpc) => {}
            Err(no_call) => {
                let (status, explanation) = no_call.answer();
                return self.refuse(&request, "protocol", status, explanation);
            }
        }
        let services = self.clone();
        let cors = CorsLayer::new()
            .allow_origin(AllowOrigin::predicate(
                move |origin: &HeaderValue, _: &request::Parts| services.allows(origin),
            ))
            .allow_methods([Method::POST])
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(ExposeHeaders::list([
                HeaderName::from_static("grpc-status"),
                HeaderName::from_static("grpc-message"),
                HeaderName::from_static("grpc-status-details-bin"),
                HeaderName::from_static("grpc-accept-encoding"),
            ]));
        let stack = cors.layer(GrpcWebLayer::new().layer(self.gate.clone()));
        let response = stack.oneshot(request).await;
        response.map_or_else(
            |_| refusal(StatusCode::INTERNAL_SERVER_ERROR, String::new()),
            |response| response.map(Body::new),
        )
    }

    /// Refuses a request by HTTP alone. The explanation is sent if there is room for it soon.
    fn refuse<B>(
        &self,
        request: &Request<B>,
        field: &'static str,
        status: StatusCode,
        explanation: String,
    ) -> Response<Body> {
        let resources = &self.gate.resources;
        let caller = request.extensions().get::<Caller>();
        let description = explanation.clone();
        let failure = Failure::Request { field, description };
        resources.refused(Refused::Call, caller, &failure);
        let slot = resources
            .calls
            .enter(Kind::Other, caller, Some(Standing::default()));
        let Ok(slot) = slot else {
            return refusal(status, String::new());
        };
        if request.method() == Method::HEAD {
            return refusal(status, String::new());
        }
        let mut response = refusal(status, explanation);
        let over = async move {
            let _ = timeout(EXPLANATION_TIMEOUT, slot.evicted()).await;
            HeaderMap::new()
        };
        let over = Ending::new(Box::pin(over));
        response.extensions_mut().insert(over);
        response
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        let Ok(origin) = origin.to_str() else {
            return false;
        };
        self.web_origins
            .iter()
            .any(|allowed| allowed == "*" || allowed == origin)
            || is_loopback(origin)
    }
}

/// Pages that the developer's own machine serves.
fn is_loopback(origin: &str) -> bool {
    let Some((_, host)) = origin.split_once("://") else {
        return false;
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    matches!(name, "localhost" | "127.0.0.1" | "[::1]")
}

/// Writes the content type as tonic-web knows it. Whoever accepts anything is answered in the same one.
fn use_content_type(headers: &mut HeaderMap, content_type: &'static str) {
    let content_type = HeaderValue::from_static(content_type);
    let accepts_another = headers.get(header::ACCEPT).is_some_and(|accepted| {
        let accepted = accepted.as_bytes();
        accepted.starts_with(b"application/grpc-web")
    });
    if !accepts_another {
        headers.insert(header::ACCEPT, content_type.clone());
    }
    headers.insert(header::CONTENT_TYPE, content_type);
}

fn refusal(status: StatusCode, explanation: String) -> Response<Body> {
    let has_text = !explanation.is_empty();
    let mut response = Response::new(Body::new(Full::new(Bytes::from(explanation))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, HeaderValue::from_static("POST, OPTIONS"));
    }
    if has_text {
        let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, content_type);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_of_this_machine_are_loopback() {
        for origin in [
            "http://localhost:5173",
            "http://127.0.0.1",
            "https://[::1]:8443",
        ] {
            assert!(is_loopback(origin), "{origin}");
        }
        for origin in [
            "http://localhost.example.com",
            "http://example.com:80",
            "null",
            "",
        ] {
            assert!(!is_loopback(origin), "{origin}");
        }
    }
}
