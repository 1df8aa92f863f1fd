//! What strangers and clients write must not come out anywhere else: each input of each port gets
//! canaries, and they are looked for in every log line at the lowest level, in the metrics, and in
//! everything that is answered. The tables below list the inputs.

use std::time::Duration;

use prelude_bridge::proto::{
    Filter, StartPosition, StopPosition, SubscribeRequest,
    event_service_client::EventServiceClient, start_position::Position as Start,
    stop_position::Position as Stop,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{
    Request, Status,
    metadata::{AsciiMetadataValue, MetadataMap, MetadataValue},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ExtensionRequest, ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest,
};

use crate::support::{APP, Bridge, EMAIL, PHONE, SOON, Setup, TOKEN, batch, sign};

/// Part of everything that is sent here.
const CANARY: &str = "cnry7f3a";

/// What would steer a terminal, forge a line or turn text around: an escape sequence in both its
/// forms, line ends, NUL, and the characters that change the direction of writing.
const ESCAPES: &str = "\u{1b}[31m\u{9b}31m\r\nforged\0\u{202e}\u{2066}\u{7f}";

/// A person, as a stranger could write about them.
fn canary() -> String {
    format!("{CANARY} {PHONE} {EMAIL}")
}

/// The same with everything that would steer a terminal.
fn hostile() -> String {
    format!("{}{ESCAPES}", canary())
}

fn percent_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

/// A string of JSON.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}

/// One thing that somebody writes to a port, byte for byte.
struct Input {
    name: &'static str,
    bytes: Vec<u8>,
}

fn input(name: &'static str, bytes: impl Into<Vec<u8>>) -> Input {
    let bytes = bytes.into();
    Input { name, bytes }
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: bridge\r\nConnection: close\r\n\r\n")
}

fn with_header(line: &[u8]) -> Vec<u8> {
    let start = format!("GET /webhooks/{APP} HTTP/1.1\r\nHost: bridge\r\nConnection: close\r\n");
    [start.as_bytes(), line, b"\r\n\r\n"].concat()
}

fn post(signature: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /webhooks/{APP} HTTP/1.1\r\nHost: bridge\r\nConnection: close\r\n\
         Content-Type: application/json\r\nX-Webhook-Signature: {signature}\r\n{headers}\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn signed(body: &str) -> Vec<u8> {
    post(&sign(body.as_bytes()), "", body.as_bytes())
}

/// Everywhere that a request to the webhook port has room for words.
fn webhook_inputs() -> Vec<Input> {
    let encoded = percent_encoded(&hostile());
    let person = canary();
    let mut inputs = vec![
        input("path", get(&format!("/{encoded}/{CANARY}"))),
        input("app in the path", get(&format!("/webhooks/{encoded}"))),
        input(
            "raw path",
            format!("GET /webhooks/{CANARY}\u{9b} HTTP/1.1\r\nHost: b\r\n\r\n"),
        ),
        input("method", get("/webhooks").replace("GET", CANARY)),
        input("version", get("/webhooks").replace("1.1", CANARY)),
        input(
            "target of a proxy",
            get(&format!("http://{CANARY}:{CANARY}@{CANARY}/")),
        ),
        input("host", get("/webhooks").replace("bridge", CANARY)),
        input("no HTTP at all", hostile()),
        input(
            "a header's name",
            with_header(format!("{CANARY}: 1").as_bytes()),
        ),
        input(
            "a header's broken name",
            with_header(format!("{CANARY} {ESCAPES}: 1").as_bytes()),
        ),
    ];
    let good = format!("event=activate&app_id={APP}&verification_token={TOKEN}&challenge=7");
    for name in ["event", "app_id", "verification_token", "challenge", CANARY] {
        let others = good.split('&').filter(|pair| !pair.starts_with(name));
        let query = others.collect::<Vec<_>>().join("&");
        let target = format!("/webhooks/{APP}?{query}&{name}={encoded}");
        inputs.push(input("a parameter of the challenge", get(&target)));
    }
    for name in [
        "X-Webhook-Signature",
        "X-Webhook-Signature-Key-Id",
        "Authorization",
        "Content-Type",
        "Content-Encoding",
        "Content-Length",
        "Transfer-Encoding",
        "Expect",
        "Cookie",
        "Forwarded",
        "X-Forwarded-For",
        "Traceparent",
        "User-Agent",
        "X-Anything",
    ] {
        for value in [
            person.as_bytes(),
            &[person.as_bytes(), b"\x9b31m\xe2\x80\xae"].concat(),
        ] {
            let line = [name.as_bytes(), b": ", value].concat();
            inputs.push(input("a header", with_header(&line)));
            let as_delivery = String::from_utf8_lossy(&line).into_owned() + "\r\n";
            let delivery = post(&sign(b"{}"), &as_delivery, b"{}");
            inputs.push(input("a header of a delivery", delivery));
        }
    }
    inputs.extend(webhook_bodies());
    inputs
}

/// Everything that a body can be, signed and not.
fn webhook_bodies() -> Vec<Input> {
    let person = hostile();
    let words = quoted(&person);
    let item = |id: &str, event_type: &str| {
        format!(
            r#"{{"id":{id},"type":{event_type},"payload":{{"user_id":{words},"phone":{words},{words}:[{words}]}},"created_at":{words},"correlation_id":{words},{words}:{words}}}"#
        )
    };
    let real = batch(APP, &[item(&quoted("evt_1"), &quoted("user.created"))]);
    let mut inputs = vec![
        input("a forged batch", post(&sign(b"{}"), "", real.as_bytes())),
        input("an unsigned body", post("", "", person.as_bytes())),
        input("a signature of words", post(&canary(), "", real.as_bytes())),
        input("a body under an encoding", {
            post(
                &sign(real.as_bytes()),
                &format!("Content-Encoding: {CANARY}\r\n"),
                real.as_bytes(),
            )
        }),
        input("a chunk's extension", {
            let head = post(&sign(b"{}"), "Transfer-Encoding: chunked\r\n", b"");
            let head = String::from_utf8(head)
                .unwrap()
                .replace("Content-Length: 0\r\n", "");
            format!("{head}2;{CANARY}={CANARY}\r\n{{}}\r\n0\r\n{CANARY}: {CANARY}\r\n\r\n")
        }),
        input("a broken chunk", {
            let head = post(&sign(b"{}"), "Transfer-Encoding: chunked\r\n", b"");
            let head = String::from_utf8(head)
                .unwrap()
                .replace("Content-Length: 0\r\n", "");
            format!("{head}{CANARY}\r\n")
        }),
    ];
    for (name, body) in [
        ("a batch", real),
        (
            "an id",
            batch(APP, &[item(&words, &quoted("user.created"))]),
        ),
        ("a type", batch(APP, &[item(&quoted("evt_2"), &words)])),
        (
            "an item that is none",
            batch(APP, std::slice::from_ref(&words)),
        ),
        (
            "another app",
            format!(r#"{{"app_id":{words},"events":[]}}"#),
        ),
        (
            "no events",
            format!(r#"{{"app_id":"{APP}","events":{words}}}"#),
        ),
        ("no object", words.clone()),
        ("no JSON", person.clone()),
        (
            "half a batch",
            format!(r#"{{"app_id":"{APP}","events":[{{"id":{words}"#),
        ),
    ] {
        inputs.push(input(name, signed(&body)));
    }
    inputs
}

fn admin_inputs() -> Vec<Input> {
    let encoded = percent_encoded(&hostile());
    vec![
        input("page", get(&format!("/{encoded}"))),
        input("query", get(&format!("/metrics?{encoded}={encoded}"))),
        input("method", get("/healthz").replace("GET", CANARY)),
        input(
            "accept",
            get("/metrics").replace("Host", &format!("Accept: {}\r\nHost", canary())),
        ),
        input("no HTTP at all", hostile()),
    ]
}

/// What browsers send, and others in their name.
fn web_inputs() -> Vec<Input> {
    let encoded = percent_encoded(&hostile());
    let call = |path: &str, headers: &str, body: &[u8]| {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: bridge\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    };
    let web = "Content-Type: application/grpc-web+proto\r\n";
    let subscribe = "/prelude.bridge.v1.EventService/Subscribe";
    let message = [&[0, 0, 0, 0, 8][..], CANARY.as_bytes()].concat();
    vec![
        input(
            "an unknown service",
            call(&format!("/{encoded}/{CANARY}"), web, &[0; 5]),
        ),
        input("an unknown RPC", {
            call(
                &format!("/prelude.bridge.v1.EventService/{encoded}"),
                web,
                &[0; 5],
            )
        }),
        input("a message that is none", call(subscribe, web, &message)),
        input("no message", call(subscribe, web, CANARY.as_bytes())),
        input("base64 that is none", {
            call(
                subscribe,
                "Content-Type: application/grpc-web-text\r\n",
                hostile().as_bytes(),
            )
        }),
        input("a content type", {
            call(
                subscribe,
                &format!("Content-Type: application/grpc-web+{CANARY}\r\n"),
                &[0; 5],
            )
        }),
        input(
            "an origin",
            call(
                subscribe,
                &format!("{web}Origin: https://{CANARY}\r\n"),
                &[0; 5],
            ),
        ),
        input("a credential", {
            call(
                subscribe,
                &format!("{web}Authorization: Bearer {CANARY}\r\n"),
                &message,
            )
        }),
        input(
            "an encoding",
            call(
                subscribe,
                &format!("{web}Grpc-Encoding: {CANARY}\r\n"),
                &message,
            ),
        ),
        input("an encoding of another service", {
            let path = "/grpc.health.v1.Health/Check";
            call(
                path,
                &format!("{web}Grpc-Encoding: {CANARY}\r\n"),
                &[&[1, 0, 0, 0, 8][..], CANARY.as_bytes()].concat(),
            )
        }),
        input(
            "a deadline",
            call(
                subscribe,
                &format!("{web}Grpc-Timeout: {CANARY}\r\n"),
                &message,
            ),
        ),
        input("no HTTP at all", hostile()),
    ]
}

/// Writes it, and returns whatever comes back, with what is encoded in it made readable.
async fn answer(address: std::net::SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut answer = Vec::new();
    let exchange = async {
        // The server ends it, if need be at its deadline. It may do so before all is sent.
        let (mut reader, mut writer) = stream.split();
        let _ = tokio::join!(writer.write_all(bytes), reader.read_to_end(&mut answer));
    };
    tokio::time::timeout(SOON, exchange).await.unwrap();
    let text = String::from_utf8_lossy(&answer);
    percent_encoding::percent_decode_str(&text)
        .decode_utf8_lossy()
        .into_owned()
}

#[track_caller]
fn assert_clean(where_from: &str, text: &str) {
    for canary in [CANARY, PHONE, &PHONE[1..], EMAIL, TOKEN] {
        assert!(
            !text.contains(canary),
            "{where_from}: {canary:?} in {text:?}"
        );
    }
}

fn assert_status_clean(name: &str, status: &Status) {
    let details = String::from_utf8_lossy(status.details());
    assert_clean(
        name,
        &format!("{} {details} {:?}", status.message(), status.metadata()),
    );
}

/// Metadata that every call may carry.
fn metadata() -> MetadataMap {
    let mut metadata = MetadataMap::new();
    let text = || AsciiMetadataValue::try_from(format!("Bearer {CANARY}{}", &PHONE[1..])).unwrap();
    metadata.insert("authorization", text());
    metadata.insert("cookie", text());
    metadata.insert("x-request-id", text());
    metadata.insert("x-forwarded-for", text());
    metadata.insert("traceparent", text());
    let binary = MetadataValue::from_bytes(hostile().as_bytes());
    metadata.insert_bin("x-canary-bin", binary);
    metadata
}

fn call<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    *request.metadata_mut() = metadata();
    request
}

/// Every field of a subscription.
fn subscriptions() -> Vec<(&'static str, SubscribeRequest)> {
    let filter = |text: &str| Filter {
        types: vec![text.to_owned()],
        exclude_types: vec![text.to_owned()],
        app_ids: vec![text.to_owned()],
        user_ids: vec![text.to_owned()],
    };
    let filtered = |filter| SubscribeRequest {
        filter: Some(filter),
        ..SubscribeRequest::default()
    };
    vec![
        ("a filter with faults", filtered(filter(&hostile()))),
        (
            "a filter of empty segments",
            filtered(filter(&format!("{CANARY}..{CANARY}"))),
        ),
        (
            "a filter that is too long",
            filtered(filter(&CANARY.repeat(100))),
        ),
        ("a filter without faults", {
            let filter = Filter {
                types: vec![format!("{CANARY}.*")],
                user_ids: vec![hostile(), PHONE.to_owned()],
                app_ids: vec![CANARY.to_owned()],
                exclude_types: vec![format!("user.{CANARY}")],
            };
            filtered(filter)
        }),
        (
            "a cursor to start from",
            SubscribeRequest {
                start: Some(StartPosition {
                    position: Some(Start::AfterCursor(hostile())),
                }),
                ..SubscribeRequest::default()
            },
        ),
        (
            "a cursor to stop at",
            SubscribeRequest {
                stop: Some(StopPosition {
                    position: Some(Stop::AtCursor(hostile())),
                    max_events: 0,
                }),
                ..SubscribeRequest::default()
            },
        ),
        (
            "a client's name that is none",
            SubscribeRequest {
                client_name: hostile(),
                ..SubscribeRequest::default()
            },
        ),
        (
            "a client's name that could be a person",
            SubscribeRequest {
                client_name: canary(),
                ..SubscribeRequest::default()
            },
        ),
        (
            "a client's name that is too long",
            SubscribeRequest {
                client_name: CANARY.repeat(20),
                ..SubscribeRequest::default()
            },
        ),
    ]
}

/// What is asked of the gRPC port by gRPC itself.
async fn ask_by_grpc(bridge: &Bridge) {
    let channel = bridge.channel().await;
    for (name, request) in subscriptions() {
        let mut client = EventServiceClient::new(channel.clone());
        match client.subscribe(call(request)).await {
            Err(status) => assert_status_clean(name, &status),
            // `Started` repeats the filter to whoever asked: that is no leak.
            Ok(stream) => drop(tokio::time::timeout(SOON, stream.into_inner().message()).await),
        }
    }
    let mut health = HealthClient::new(channel.clone());
    let service = hostile();
    let status = health
        .check(call(HealthCheckRequest {
            service: service.clone(),
        }))
        .await;
    assert_status_clean("health", &status.unwrap_err());
    match health.watch(call(HealthCheckRequest { service })).await {
        Err(status) => assert_status_clean("health watch", &status),
        Ok(stream) => drop(stream),
    }
    let mut reflection = ServerReflectionClient::new(channel.clone());
    for request in [
        MessageRequest::FileByFilename(hostile()),
        MessageRequest::FileContainingSymbol(hostile()),
        MessageRequest::FileContainingExtension(ExtensionRequest {
            containing_type: hostile(),
            extension_number: 7,
        }),
        MessageRequest::AllExtensionNumbersOfType(hostile()),
    ] {
        let request = ServerReflectionRequest {
            host: hostile(),
            message_request: Some(request),
        };
        let asked = reflection.server_reflection_info(call(tokio_stream::iter([request])));
        let answered = match asked.await {
            Err(status) => Err(status),
            Ok(answer) => answer.into_inner().message().await,
        };
        if let Err(status) = answered {
            assert_status_clean("reflection", &status);
        }
    }
}

async fn nothing_that_is_written_comes_out(log_format: &str) {
    let setup = Setup::default()
        .with("log_level", "trace")
        .with("log_format", log_format)
        .with("limits.webhook.header_timeout", "500ms")
        .with("limits.webhook.request_timeout", "1s")
        .with("limits.grpc.header_timeout", "500ms")
        .with("trusted_proxies", "127.0.0.1/32");
    let mut bridge = setup.start().await;
    let addresses = bridge.addresses;
    for (port, address, inputs) in [
        ("webhook", addresses.webhook, webhook_inputs()),
        ("admin", addresses.admin, admin_inputs()),
        ("gRPC-Web", addresses.grpc, web_inputs()),
    ] {
        for Input { name, bytes } in inputs {
            let answer = answer(address, &bytes).await;
            assert_clean(&format!("{port}: {name}"), &answer);
        }
    }
    ask_by_grpc(&bridge).await;
    let named = SubscribeRequest {
        client_name: "billing (eu-west-1)".to_owned(),
        ..SubscribeRequest::default()
    };
    let stream = bridge.client().await.subscribe(named).await.unwrap();
    for page in ["/metrics", "/healthz", "/readyz"] {
        assert_clean(page, &bridge.admin(page).await.text());
    }
    drop(stream);
    assert!(bridge.terminate().await.success());
    let log = bridge.stderr();
    // It did hear all of that, and at the lowest level.
    for heard in ["request refused", "batch accepted", "billing (eu-west-1)"] {
        assert!(log.contains(heard), "no {heard:?} in {log}");
    }
    for line in log.lines() {
        assert_clean("log", line);
        let steers = |character: char| {
            let turns = matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            character.is_control() || turns
        };
        assert!(!line.contains(steers), "{line:?}");
    }
    assert!(!log.contains("panicked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_written_to_a_port_comes_out_of_it_or_into_a_text_log() {
    nothing_that_is_written_comes_out("text").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_written_to_a_port_comes_out_of_it_or_into_a_json_log() {
    nothing_that_is_written_comes_out("json").await;
}

/// The one text of a client that is for the log. It is there if it reads like a name; what does not is
/// taken, as the contract says, and withheld.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_reads_like_a_name_is_logged_as_a_clients_name() {
    let bridge = Setup::default().with("log_level", "trace").start().await;
    let token = "pb_wJ8Zk2yqQf3bT0vNn1xR7LhUeC4aSdGmPiOkYtXrE01";
    let withheld = [
        PHONE.to_owned(),
        PHONE[1..].to_owned(),
        "(202) 555-0142".to_owned(),
        EMAIL.to_owned(),
        format!("billing of {EMAIL}"),
        token.to_owned(),
        token[3..].to_owned(),
        "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl".to_owned(),
        "550e8400-e29b-41d4-a716-446655440aaa".to_owned(),
    ];
    let named = |name: &str| SubscribeRequest {
        client_name: name.to_owned(),
        ..SubscribeRequest::default()
    };
    let mut streams = Vec::new();
    for name in withheld
        .iter()
        .map(String::as_str)
        .chain(["billing (eu-west-1)"])
    {
        let stream = bridge.client().await.subscribe(named(name)).await;
        streams.push(stream.unwrap());
    }
    let log = bridge.stderr();
    for name in &withheld {
        assert!(!log.contains(name), "{name} in {log}");
    }
    let lines = |said: &str| log.lines().filter(|line| line.contains(said)).count();
    assert_eq!(lines(r#""client":"(withheld)""#), withheld.len(), "{log}");
    assert_eq!(lines(r#""client":"billing (eu-west-1)""#), 1, "{log}");
    drop(streams);
    bridge.finish().await;
}

/// Nothing that steers a terminal or turns text around is taken for a name, and whatever is in one, it
/// is not what a line is made of.
#[tokio::test(flavor = "multi_thread")]
async fn a_clients_name_forges_no_line() {
    for log_format in ["text", "json"] {
        let bridge = Setup::default()
            .with("log_format", log_format)
            .start()
            .await;
        let named = |name: &str| SubscribeRequest {
            client_name: name.to_owned(),
            ..SubscribeRequest::default()
        };
        for character in ESCAPES
            .chars()
            .filter(|character| !character.is_alphanumeric())
        {
            let asked = bridge
                .client()
                .await
                .subscribe(named(&format!("a{character}b")))
                .await;
            let is_plain = matches!(character, '[');
            assert_eq!(asked.is_ok(), is_plain, "{character:?}");
        }
        let name = r#"x" level="ERROR" message="forged"#;
        let stream = bridge.client().await.subscribe(named(name)).await.unwrap();
        drop(stream);
        let logged = async {
            while !bridge.stderr().contains("(withheld)") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(SOON, logged).await.unwrap();
        assert!(!bridge.stderr().contains("forged"), "{}", bridge.stderr());
        bridge.finish().await;
    }
}
