//! Owns the services that every gRPC port is expected to have, which tonic provides: health and
//! reflection. They tell of the services in the table of RPCs.

use std::sync::{Arc, OnceLock};

use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::BodyExt as _;
use tonic::{Status, body::Body, service::Routes};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::ServiceExt as _;

use super::{
    rpcs,
    status::{Failure, trailers},
};
use crate::proto;

/// The fields of a status (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).
const STATUS: &str = "grpc-status";
const MESSAGE: &str = "grpc-message";
const DETAILS: &str = "grpc-status-details-bin";

/// The services, and who tells of the health.
///
/// # Errors
/// When the compiled contract is not what reflection expects: a bug.
pub(super) async fn services() -> Result<(HealthReporter, Routes), tonic_reflection::server::Error>
{
    let (health, health_service) = tonic_health::server::health_reporter();
    for name in rpcs::own_services() {
        health
            .set_service_status(name, ServingStatus::Serving)
            .await;
    }
    let reflection = || {
        let builder = tonic_reflection::server::Builder::configure()
            .include_reflection_service(false)
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // Generic clients show the details of an error only if they can look them up.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(
                tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
            );
        rpcs::services()
            .into_iter()
            .fold(builder, |builder, name| builder.with_service_name(name))
    };
    let reflection_v1 = reflection().build_v1()?;
    let reflection_v1alpha = reflection().build_v1alpha()?;
    let routes = Routes::new(health_service)
        .add_service(reflection_v1)
        .add_service(reflection_v1alpha)
        .prepare();
    Ok((health, routes))
}

/// Tells those who watch the health that no new stream should come.
pub(super) async fn stop_serving(health: &HealthReporter) {
    for name in rpcs::own_services().into_iter().chain([""]) {
        health
            .set_service_status(name, ServingStatus::NotServing)
            .await;
    }
}

/// Lets the services answer a call. `failed` says why the body of the request failed, if it did: not all
/// of them say so.
pub(super) async fn answer(
    routes: Routes,
    request: Request<Body>,
    failed: Arc<OnceLock<Failure>>,
) -> Response<Body> {
    // The router itself cannot fail; its error type is only wider.
    let response = routes
        .oneshot(request)
        .await
        .unwrap_or_else(|error| Status::internal(error.to_string()).into_http());
    let (mut head, body) = response.into_parts();
    replace_status(&mut head.headers, failed.get());
    let body = body.map_frame(move |mut frame| {
        if let Some(trailers) = frame.trailers_mut() {
            replace_status(trailers, failed.get());
        }
        frame
    });
    Response::from_parts(head, Body::new(body))
}

/// Puts a text of ours in the place of a status's own, which repeats what was asked for: that may be
/// anything, and errors are written to logs. If the request failed, that is the status.
fn replace_status(headers: &mut HeaderMap, failed: Option<&Failure>) {
    if let Some(failure) = failed
        && headers.contains_key(STATUS)
    {
        headers.extend(trailers(&Status::from(failure)));
        return;
    }
    let code = headers.get(STATUS).map(|code| code.as_bytes());
    let text = match code {
        None | Some(b"0") => return,
        Some(b"3") => "the request is not valid",
        Some(b"5") => "there is no service, symbol or file of this name",
        Some(b"12") => "this server does not do that",
        Some(_) => "the call failed",
    };
    headers.remove(DETAILS);
    headers.insert(MESSAGE, HeaderValue::from_static(text));
}
