//! What else the subscribers' port speaks: gRPC-Web for browsers, health, and reflection.

use prelude_bridge::proto::{
    GetRangeRequest, GetRangeResponse, StopPosition, SubscribeRequest, SubscribeResponse,
};
use prost::Message;
use tokio_stream::once;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::support::{
    Bridge, Request, item,
    stream::{after, history},
};

const SERVICE: &str = "prelude.bridge.v1.EventService";
const PAGE: &str = "http://localhost:3000";
const STRANGER: &str = "https://evil.example";

/// A message as gRPC frames it.
fn framed(message: &impl Message) -> Vec<u8> {
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.encoded_len()).unwrap().to_be_bytes());
    frame.extend(message.encode_to_vec());
    frame
}

/// The messages of a body, and its trailers.
pub(crate) fn unframed(mut body: &[u8]) -> (Vec<&[u8]>, String) {
    let (mut messages, mut trailers) = (Vec::new(), String::new());
    while let Some((head, rest)) = body.split_first_chunk::<5>() {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let (content, rest) = rest.split_at(length as usize);
        assert!(trailers.is_empty(), "trailers are the last frame");
        match head[0] {
            0 => messages.push(content),
            0x80 => trailers = String::from_utf8(content.to_vec()).unwrap(),
            other => unreachable!("a frame of kind {other:#x}"),
        }
        body = rest;
    }
    assert!(body.is_empty());
    (messages, trailers)
}

/// Calls a method as a browser's page does, over HTTP/1.1.
pub(crate) async fn call(
    bridge: &Bridge,
    method: &str,
    message: &impl Message,
    origin: &str,
) -> reqwest::Response {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://{}/{SERVICE}/{method}", bridge.addresses.grpc);
    let request = client
        .post(url)
        .header("content-type", "application/grpc-web+proto")
        .header("x-grpc-web", "1")
        .header("origin", origin)
        .body(framed(message));
    request.send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_calls_and_streams_over_http_1() {
    let bridge = Bridge::start().await;
    let items = [1, 2, 3].map(|n| item(&format!("evt_{n}"), "user.created", "usr_1"));
    bridge.append(&items).await;

    let answer = call(&bridge, "GetRange", &GetRangeRequest {}, PAGE).await;
    assert_eq!(
        (answer.status().as_u16(), answer.version()),
        (200, http::Version::HTTP_11)
    );
    assert_eq!(
        answer.headers()["content-type"],
        "application/grpc-web+proto"
    );
    assert_eq!(answer.headers()["access-control-allow-origin"], PAGE);
    let exposed = answer.headers()["access-control-expose-headers"]
        .to_str()
        .unwrap();
    assert!(exposed.contains("grpc-status"), "{exposed}");
    let body = answer.bytes().await.unwrap();
    let (messages, trailers) = unframed(&body);
    assert_eq!(messages.len(), 1);
    let range = GetRangeResponse::decode(messages[0]).unwrap();
    assert_eq!((range.head.unwrap().sequence, range.event_count), (3, 3));
    assert!(trailers.contains("grpc-status:0\r\n"), "{trailers}");

    let asked = SubscribeRequest {
        stop: Some(StopPosition {
            position: None,
            max_events: 2,
        }),
        ..history()
    };
    let answer = call(&bridge, "Subscribe", &asked, PAGE).await;
    assert_eq!(answer.status().as_u16(), 200);
    let body = answer.bytes().await.unwrap();
    let (messages, trailers) = unframed(&body);
    let responses: Vec<SubscribeResponse> = messages
        .into_iter()
        .map(|message| SubscribeResponse::decode(message).unwrap())
        .collect();
    let events = responses.iter().flat_map(|response| &response.events);
    let ids: Vec<&str> = events.map(|event| event.id.as_str()).collect();
    assert_eq!(ids, ["evt_1", "evt_2"]);
    assert!(trailers.contains("grpc-status:0\r\n"), "{trailers}");

    // A refusal is in the header, as there is no body.
    let answer = call(&bridge, "Subscribe", &after("nonsense"), PAGE).await;
    assert_eq!(answer.headers()["grpc-status"], "3");
    assert!(answer.headers().contains_key("grpc-status-details-bin"));
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_strangers_are_refused() {
    let bridge = Bridge::start().await;
    bridge
        .append(&[item("evt_1", "user.created", "usr_1")])
        .await;
    let preflight = |origin: &str| {
        Request::new("OPTIONS", &format!("/{SERVICE}/Subscribe"))
            .header("Origin", origin)
            .header("Access-Control-Request-Method", "POST")
            .header("Access-Control-Request-Headers", "content-type,x-grpc-web")
            .send(bridge.addresses.grpc)
    };
    let allowed = preflight(PAGE).await.unwrap();
    assert_eq!(allowed.status, 200);
    assert_eq!(allowed.header("access-control-allow-origin"), Some(PAGE));
    assert_eq!(allowed.header("access-control-allow-methods"), Some("POST"));
    let headers = allowed.header("access-control-allow-headers");
    assert_eq!(headers, Some("content-type,x-grpc-web"));

    let refused = preflight(STRANGER).await.unwrap();
    assert_eq!(
        (
            refused.status,
            refused.header("access-control-allow-origin")
        ),
        (403, None)
    );
    // A page that does not ask first gets nothing either.
    for origin in [STRANGER, "null", "http://localhost.evil.example:3000"] {
        let answer = call(&bridge, "GetRange", &GetRangeRequest {}, origin).await;
        assert_eq!(answer.status().as_u16(), 403);
        assert!(!answer.headers().contains_key("access-control-allow-origin"));
        assert!(answer.bytes().await.unwrap().is_empty());
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_served_and_changes_when_the_bridge_drains() {
    let mut bridge = Bridge::start().await;
    let mut client = HealthClient::new(bridge.channel().await);
    let asked = |service: &str| HealthCheckRequest {
        service: service.to_owned(),
    };
    for service in ["", SERVICE] {
        let answer = client.check(asked(service)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let unknown = client.check(asked("unknown")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    let mut watch = client.watch(asked(SERVICE)).await.unwrap().into_inner();
    let first = watch.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
    bridge.signal("TERM");
    let next = watch.message().await.unwrap().unwrap();
    assert_eq!(next.status(), ServingStatus::NotServing);
    drop((watch, client));
    assert!(bridge.ended().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_of_both_versions_lists_every_service() {
    let bridge = Bridge::start().await;
    let services = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        SERVICE,
    ];
    macro_rules! reflect {
        ($version:ident) => {{
            use tonic_reflection::pb::$version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest,
                server_reflection_response::MessageResponse,
            };
            let mut client = ServerReflectionClient::new(bridge.channel().await);
            let mut ask = async |message| {
                let request = ServerReflectionRequest {
                    host: String::new(),
                    message_request: Some(message),
                };
                let answers = client.server_reflection_info(once(request)).await;
                let answer = answers.unwrap().into_inner().message().await.unwrap();
                answer.unwrap().message_response.unwrap()
            };
            let listed = ask(MessageRequest::ListServices(String::new())).await;
            let MessageResponse::ListServicesResponse(listed) = listed else {
                unreachable!("{listed:?}");
            };
            let mut names: Vec<String> = listed
                .service
                .into_iter()
                .map(|service| service.name)
                .collect();
            names.sort();
            for service in services {
                assert!(
                    names.iter().any(|name| name == service),
                    "{service} in {names:?}"
                );
                let found = ask(MessageRequest::FileContainingSymbol(service.to_owned())).await;
                let MessageResponse::FileDescriptorResponse(found) = found else {
                    unreachable!("{service}: {found:?}");
                };
                let file = prost_types::FileDescriptorProto::decode(
                    found.file_descriptor_proto[0].as_slice(),
                );
                let name = service.rsplit('.').next();
                let described = file.unwrap().service;
                assert!(
                    described.iter().any(|one| one.name.as_deref() == name),
                    "{service}"
                );
            }
        }};
    }
    reflect!(v1);
    reflect!(v1alpha);
    bridge.finish().await;
}
