//! Owns the table of services on the subscribers' port: events, health, reflection, and gRPC-Web
//! around them all.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header, request};
use tonic::{body::Body, server::NamedService as _, service::Routes};
use tonic_health::server::HealthReporter;
use tonic_web::GrpcWebLayer;
use tower::{Layer as _, ServiceExt as _};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer, ExposeHeaders};

use super::{access::Gate, service::EventService, shared::Shared};
use crate::proto;

/// All services. Cheap to clone.
#[derive(Clone)]
pub(super) struct Services {
    gate: Gate,
    health: HealthReporter,
    web_origins: Arc<[String]>,
}

impl Services {
    pub(super) async fn new(shared: &Arc<Shared>) -> Result<Self, tonic_reflection::server::Error> {
        let (health, health_service) = tonic_health::server::health_reporter();
        let name = EventService::NAME;
        health
            .set_service_status(name, tonic_health::ServingStatus::Serving)
            .await;
        // Left to itself, each version of reflection would list itself only.
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .include_reflection_service(false)
                .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // Generic clients show the details of an error only if they can look them up.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(
                    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
                )
        };
        // tonic's own limit is 4 MiB, which is waited for as long as a client likes.
        let bytes_max = shared.options.request_bytes_max;
        let reflection_v1 = reflection().build_v1()?;
        let reflection_v1alpha = reflection().build_v1alpha()?;
        let routes = Routes::new(EventService(Arc::clone(shared)))
            .add_service(health_service.max_decoding_message_size(bytes_max))
            .add_service(reflection_v1.max_decoding_message_size(bytes_max))
            .add_service(reflection_v1alpha.max_decoding_message_size(bytes_max))
            .prepare();
        let web_origins = shared.options.web_origins.as_slice().into();
        let gate = Gate {
            shared: Arc::clone(shared),
            routes,
        };
        Ok(Self {
            gate,
            health,
            web_origins,
        })
    }

    /// Tells the health service's watchers that no new stream should come.
    pub(super) async fn drain(&self) {
        for name in ["", EventService::NAME] {
            self.health
                .set_service_status(name, tonic_health::ServingStatus::NotServing)
                .await;
        }
    }

    /// What all of them have in common.
    pub(super) fn shared(&self) -> &Shared {
        &self.gate.shared
    }

    /// Answers a gRPC request.
    pub(super) async fn grpc(&self, request: Request<Body>) -> Result<Response<Body>, Infallible> {
        self.gate.clone().oneshot(request).await
    }

    /// Answers a gRPC-Web request, or a browser's question whether it may send one.
    pub(super) async fn web<B>(&self, request: Request<B>) -> Result<Response<Body>, Infallible>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + std::fmt::Display,
    {
        // A page of a stranger's site must not read events through its visitor's browser. Asking
        // is left to the browser for nothing but plain requests, so the answer is given here.
        if let Some(origin) = request.headers().get(header::ORIGIN)
            && !self.allows(origin)
        {
            return Ok(refusal(StatusCode::FORBIDDEN));
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
        Ok(response.map_or_else(
            |_| refusal(StatusCode::INTERNAL_SERVER_ERROR),
            |response| response.map(Body::new),
        ))
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
}
