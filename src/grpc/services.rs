//! Owns the two protocols that the RPCs are called by: gRPC, and gRPC-Web with the rules of browsers
//! around it.

use std::{error::Error, fmt, sync::Arc};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version, header, request,
};
use tonic::body::Body;
use tonic_web::GrpcWebLayer;
use tower::{Layer as _, ServiceExt as _};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer, ExposeHeaders};

use super::{body::Outlet, gate::Gate, status};
use crate::{
    credentials::Grant,
    http2::{Answer, RequestHandler},
    subscription::Failure,
};

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
        // HTTP/1.1 can carry no gRPC, whatever it says of itself.
        let is_grpc = request.version() == Version::HTTP_2 && is_grpc(request.headers());
        let mut response = if is_grpc {
            self.gate.clone().answer(request.map(Body::new)).await
        } else {
            self.web(request).await
        };
        let grant = response.extensions_mut().remove::<Grant>();
        let outlet = response.extensions_mut().remove::<Outlet>();
        let session = outlet.filter(|_| is_grpc).and_then(|outlet| outlet.take());
        Answer {
            response,
            session,
            grant,
        }
    }

    fn trailers(&self, end: &Result<(), Failure>) -> HeaderMap {
        status::trailers(&status::ended(end))
    }

    fn drained(&self) -> Failure {
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

    /// Answers a gRPC-Web request, or a browser's question whether it may send one.
    async fn web<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>> + fmt::Display,
    {
        // A page of a stranger's site must not read events through its visitor's browser. Asking
        // is left to the browser for nothing but plain requests, so the answer is given here.
        if let Some(origin) = request.headers().get(header::ORIGIN)
            && !self.allows(origin)
        {
            return refusal(StatusCode::FORBIDDEN);
        }
        let services = self.clone();
        let cors = CorsLayer::new()
            .allow_origin(AllowOrigin::predicate(
                move |origin: &HeaderValue, _: &request::Parts| services.allows(origin),
            ))
            .allow_methods([http::Method::POST])
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(ExposeHeaders::list([
                HeaderName::from_static("grpc-status"),
                HeaderName::from_static("grpc-message"),
                HeaderName::from_static("grpc-status-details-bin"),
            ]));
        let stack = cors.layer(GrpcWebLayer::new().layer(self.gate.clone()));
        let response = stack.oneshot(request).await;
        response.map_or_else(
            |_| refusal(StatusCode::INTERNAL_SERVER_ERROR),
            |response| response.map(Body::new),
        )
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

/// gRPC itself, not gRPC-Web, which also begins like this.
fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .map_or(&[][..], |value| value.as_bytes());
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| !rest.starts_with(b"-web"))
}

fn refusal(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
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

    #[test]
    fn grpc_is_told_from_grpc_web() {
        let is = |text| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(text));
            is_grpc(&headers)
        };
        assert!(is("application/grpc") && is("application/grpc+proto"));
        assert!(!is("application/grpc-web+proto") && !is("application/grpc-web-text"));
        assert!(!is("text/html") && !is_grpc(&HeaderMap::new()));
    }
}
