//! gRPC by the letter of its specification (PROTOCOL-HTTP2.md, compression.md, statuscodes.md), call by
//! call, with requests that client libraries are too polite to send: content types, encodings,
//! deadlines, the size of messages and of metadata, how many messages there are, and the shape of
//! answers.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use base64::Engine as _;
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::HeaderMap;
use prelude_bridge::{
    event::{ID_BYTES_MAX, TYPE_BYTES_MAX},
    filter,
    proto::{
        Filter, GetRangeRequest, GetRangeResponse, SubscribeRequest, SubscribeResponse,
        event_service_client::EventServiceClient, start_position::Position,
    },
};
use prelude_bridge_load::frames::grpc_message;
use prost::Message as _;
use tonic::{Code, Status};

use crate::{
    abuse::frames::{
        DATA, END_HEADERS, END_STREAM, GET_RANGE, HEADERS, Http2, INITIAL_WINDOW_SIZE, RST_STREAM,
        SUBSCRIBE, call, call_block, frame, literal, reset, whole_call,
    },
    support::{
        Bridge, SOON, Setup, item,
        stream::{Earliest, Received, after, from, history, reason, until_head},
    },
};

const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// A request as it is sent.
#[derive(Clone)]
struct Request {
    method: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Whether it ends after its body.
    ends: bool,
}

impl Request {
    /// A call with an empty message.
    fn new(path: &'static str) -> Self {
        Self {
            method: "POST",
            path,
            headers: vec![
                ("te", "trailers".to_owned()),
                ("content-type", "application/grpc".to_owned()),
            ],
            body: vec![0; 5],
            ends: true,
        }
    }

    /// With this header in the place of one that there may be.
    fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.into()));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self
    }

    fn body(mut self, body: Vec<u8>) -> Self {
        self.body = body;
        self
    }

    fn gzip(self, message: &[u8]) -> Self {
        self.header("grpc-encoding", "gzip")
            .body(prefixed(1, &zipped(message)))
    }

    async fn send(self, bridge: &Bridge) -> Answer {
        let late = tokio::time::timeout(SOON, self.exchange(bridge)).await;
        late.unwrap()
    }

    async fn exchange(self, bridge: &Bridge) -> Answer {
        let socket = tokio::net::TcpStream::connect(bridge.addresses.grpc);
        let (client, connection) = h2::client::handshake(socket.await.unwrap()).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut request = http::Request::builder()
            .method(self.method)
            .uri(format!("http://bridge{}", self.path));
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        let mut client = client.ready().await.unwrap();
        let (response, mut send) = client
            .send_request(request.body(()).unwrap(), false)
            .unwrap();
        // The answer may come first.
        let _ = send.send_data(self.body.into(), self.ends);
        let (head, mut body) = response.await.unwrap().into_parts();
        let mut answer = Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body: Vec::new(),
            trailers: None,
        };
        while let Some(bytes) = body.data().await {
            let bytes = bytes.unwrap();
            body.flow_control().release_capacity(bytes.len()).unwrap();
            answer.body.extend(bytes);
        }
        answer.trailers = body.trailers().await.unwrap_or_default();
        connection.abort();
        answer
    }
}

/// What came back.
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

impl Answer {
    fn grpc_status(&self) -> Status {
        let headers = self.trailers.as_ref().unwrap_or(&self.headers);
        Status::from_header_map(headers).unwrap_or_else(|| unreachable!("{}", self.status))
    }

    #[track_caller]
    fn assert_ok(&self, message_is_there: bool) {
        assert_eq!(self.status, 200);
        assert_eq!(self.grpc_status().code(), Code::Ok, "{:?}", self.headers);
        assert_eq!(!self.body.is_empty(), message_is_there);
    }

    #[track_caller]
    fn assert_refused(&self, code: Code, expected: &str) -> Status {
        let status = self.grpc_status();
        let found = (status.code(), reason(&status).0);
        assert_eq!(found, (code, expected.to_owned()), "{status:?}");
        assert_eq!((self.status, self.body.as_slice()), (200, &b""[..]));
        status
    }
}

fn prefixed(flag: u8, message: &[u8]) -> Vec<u8> {
    let mut bytes = grpc_message(message);
    bytes[0] = flag;
    bytes
}

fn zipped(message: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(message).unwrap();
    encoder.finish().unwrap()
}

/// Everything that is there and that comes.
fn live() -> SubscribeRequest {
    from(Position::Earliest(Earliest {}))
}

/// Asks until it is so.
async fn until(is_so: impl AsyncFn() -> bool) {
    let asking = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, asking).await.unwrap();
}

/// The largest filter of the contract in each of its fields, in a request that ends at the head.
fn largest() -> SubscribeRequest {
    let entries = |letter: &str, bytes: usize| -> Vec<String> {
        let rest = letter.repeat(bytes - 4);
        let entries = 0..filter::ENTRIES_MAX;
        entries.map(|at| format!("={at:03}{rest}")).collect()
    };
    SubscribeRequest {
        filter: Some(Filter {
            types: entries("t", TYPE_BYTES_MAX + 1),
            exclude_types: entries("e", TYPE_BYTES_MAX + 1),
            app_ids: entries("a", filter::ENTRY_BYTES_MAX),
            user_ids: entries("u", ID_BYTES_MAX),
        }),
        client_name: "n".repeat(128),
        ..history()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_gzip_are_read_by_every_rpc() {
    let bridge = Bridge::start().await;
    bridge
        .append(&[item("evt_1", "user.created", "usr_1")])
        .await;
    let subscription = history().encode_to_vec();
    // List all services: field 7 of the request, a text.
    let list = [0x3a, 0];
    for (path, message) in [
        (GET_RANGE, &b""[..]),
        (SUBSCRIBE, &subscription),
        (CHECK, b""),
        (REFLECTION, &list),
    ] {
        let answer = Request::new(path).gzip(message).send(&bridge).await;
        answer.assert_ok(true);
        assert_eq!(answer.body[0], 0, "responses are not compressed");
        // The encoding is for messages that say so, and may name none.
        for encoding in ["gzip", "identity"] {
            let request = Request::new(path).header("grpc-encoding", encoding);
            let answer = request.body(prefixed(0, message)).send(&bridge).await;
            answer.assert_ok(true);
        }
        for encoding in ["deflate", "snappy", "zstd", "GZIP"] {
            let request = Request::new(path).header("grpc-encoding", encoding);
            let answer = request.body(prefixed(1, message)).send(&bridge).await;
            let status = answer.assert_refused(Code::Unimplemented, "ENCODING_UNSUPPORTED");
            assert_eq!(answer.headers["grpc-accept-encoding"], "identity,gzip");
            assert!(status.message().contains("gzip"), "{}", status.message());
        }
        for (encoding, flag, bytes) in [
            ("identity", 1, zipped(message)),
            ("gzip", 1, b"no gzip".to_vec()),
            ("gzip", 1, zipped(message)[..12].to_vec()),
            ("gzip", 2, zipped(message)),
        ] {
            let request = Request::new(path).header("grpc-encoding", encoding);
            let answer = request.body(prefixed(flag, &bytes)).send(&bridge).await;
            let status = answer.grpc_status();
            let found = (status.code(), reason(&status).0);
            let expected = (Code::Internal, "COMPRESSION_INVALID".to_owned());
            assert_eq!(found, expected, "{path} {encoding} {flag}");
        }
        let unsaid = Request::new(path).body(prefixed(1, &zipped(message)));
        let status = unsaid.send(&bridge).await.grpc_status();
        assert_eq!(status.code(), Code::Internal, "{path}");
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_filter_passes_in_every_form_and_one_entry_more_is_named() {
    // Also where the limits are as low as they may be.
    for setup in [
        Setup::default(),
        Setup::default()
            .with("limits.grpc.request_bytes_max", "456KiB")
            .with("limits.grpc.filters_bytes_max", "2MiB"),
    ] {
        let bridge = setup.start().await;
        let message = largest().encode_to_vec();
        assert!(message.len() > 4 * 256 * 256);
        let plain = Request::new(SUBSCRIBE).body(grpc_message(&message));
        plain.send(&bridge).await.assert_ok(true);
        let gzip = Request::new(SUBSCRIBE).gzip(&message);
        gzip.send(&bridge).await.assert_ok(true);

        let url = format!("http://{}{SUBSCRIBE}", bridge.addresses.grpc);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let framed = grpc_message(&message);
        let text = base64::engine::general_purpose::STANDARD.encode(&framed);
        for (content_type, body) in [
            ("application/grpc-web+proto", framed),
            ("application/grpc-web-text", text.into_bytes()),
        ] {
            let request = client.post(&url).header("content-type", content_type);
            let answer = request.body(body).send().await.unwrap();
            assert_eq!(answer.status().as_u16(), 200);
            let is_text = content_type.contains("text");
            let kind = answer.headers()["content-type"].to_str().unwrap();
            assert_eq!(kind.contains("text"), is_text, "{kind}");
            let mut body = answer.bytes().await.unwrap().to_vec();
            if is_text {
                // Every part is padded by itself.
                let text = String::from_utf8(body).unwrap();
                let parts = text.split_inclusive("=").filter(|part| *part != "=");
                let decode = |part: &str| {
                    let part = part.trim_end_matches('=');
                    base64::engine::general_purpose::STANDARD_NO_PAD
                        .decode(part)
                        .unwrap()
                };
                body = parts.flat_map(decode).collect();
            }
            let end = String::from_utf8_lossy(&body).into_owned();
            assert!(end.contains("grpc-status:0"), "{content_type}: {end}");
        }

        let mut more = largest();
        let filter = more.filter.as_mut().unwrap();
        filter.user_ids.push("one more".to_owned());
        let refused = Request::new(SUBSCRIBE).body(grpc_message(&more.encode_to_vec()));
        let refused = refused.send(&bridge).await;
        let status = refused.assert_refused(Code::InvalidArgument, "FILTER_INVALID");
        assert!(status.message().contains("user_ids"));
        bridge.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_above_the_limit_is_refused_before_it_takes_memory() {
    let bridge = Bridge::start().await;
    // A filter that is known to be wrong only when it is read.
    let exact = |bytes: usize| {
        let mut request = SubscribeRequest {
            client_name: "x".repeat(bytes - 4),
            ..SubscribeRequest::default()
        };
        while request.encoded_len() > bytes {
            request.client_name.pop();
        }
        assert_eq!(request.encoded_len(), bytes);
        request.encode_to_vec()
    };
    let limit = 512 * 1024;
    for gzip in [false, true] {
        let send = async |message: &[u8]| {
            let request = Request::new(SUBSCRIBE);
            let request = if gzip {
                request.gzip(message)
            } else {
                request.body(grpc_message(message))
            };
            request.send(&bridge).await
        };
        let fits = send(&exact(limit)).await;
        fits.assert_refused(Code::InvalidArgument, "REQUEST_INVALID");
        let more = send(&exact(limit + 1)).await;
        more.assert_refused(Code::ResourceExhausted, "REQUEST_TOO_LARGE");
    }
    let bomb = zipped(&vec![0; 100 << 20]);
    assert!(bomb.len() < limit);
    let nested = zipped(&bomb);
    for (path, bomb) in [
        (SUBSCRIBE, bomb.repeat(3)),
        (GET_RANGE, bomb.clone()),
        (GET_RANGE, zipped(&[0; 4097])),
        (CHECK, zipped(&[0; 4097])),
        (WATCH, zipped(&vec![0; 3 << 20])),
    ] {
        let request = Request::new(path).header("grpc-encoding", "gzip");
        let answer = request.body(prefixed(1, &bomb)).send(&bridge).await;
        answer.assert_refused(Code::ResourceExhausted, "REQUEST_TOO_LARGE");
    }
    // It is opened once only.
    let request = Request::new(SUBSCRIBE).header("grpc-encoding", "gzip");
    let answer = request.body(prefixed(1, &nested)).send(&bridge).await;
    answer.assert_refused(Code::InvalidArgument, "REQUEST_INVALID");
    let mut web = Request::new(SUBSCRIBE).header("grpc-encoding", "gzip");
    web = web.header("content-type", "application/grpc-web");
    let answer = web.body(prefixed(1, &bomb)).send(&bridge).await;
    let status = answer.grpc_status();
    assert_eq!(status.code(), Code::ResourceExhausted);
    // Only the length has come: what it announces is not waited for.
    let mut announced = Request::new(SUBSCRIBE).body(vec![0, 0xff, 0xff, 0xff, 0xff]);
    announced.ends = false;
    let answer = announced.send(&bridge).await;
    answer.assert_refused(Code::ResourceExhausted, "REQUEST_TOO_LARGE");
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_ends_at_its_deadline() {
    let bridge = Bridge::start().await;
    let items = [1, 2].map(|at| item(&format!("evt_{at}"), "user.created", "usr_1"));
    bridge.append(&items).await;
    let began = Instant::now();
    for timeout in ["1S", "900m", "800000u", "99999999n"] {
        let request = Request::new(SUBSCRIBE)
            .header("grpc-timeout", timeout)
            .body(grpc_message(&live().encode_to_vec()));
        let answer = request.send(&bridge).await;
        let status = answer.grpc_status();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{timeout}");
        let (reason, details) = reason(&status);
        assert_eq!(reason, "DEADLINE_EXCEEDED");
        let cursor = &details.error_info().unwrap().metadata["cursor"];
        let events = events(&answer.body);
        assert_eq!(events.len(), 2);
        assert_eq!(
            *cursor, events[1].1,
            "the stream goes on after what it sent"
        );
        let mut client = bridge.client().await;
        let resumed = Received::subscribe(&mut client, until_head(after(cursor))).await;
        let mut resumed = resumed.unwrap();
        resumed.end().await.unwrap();
        assert!(resumed.sequences().is_empty());
    }
    assert!(began.elapsed() >= Duration::from_millis(1000 + 900 + 800 + 99));

    // Whatever the call waits for: a change, its message, room for its response.
    let mut half = Request::new(GET_RANGE).body(vec![0, 0, 0]);
    half.ends = false;
    let mut open = Request::new(GET_RANGE);
    open.ends = false;
    let mut asking = Request::new(REFLECTION).body(Vec::new());
    asking.ends = false;
    for request in [Request::new(WATCH), half, open, asking] {
        let path = request.path;
        let answer = request.header("grpc-timeout", "1S").send(&bridge).await;
        let status = answer.grpc_status();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{path}");
        assert_eq!(reason(&status).0, "DEADLINE_EXCEEDED", "{path}");
    }
    for path in [SUBSCRIBE, GET_RANGE, CHECK] {
        for timeout in ["0n", "0H", "00000000S"] {
            let answer = Request::new(path).header("grpc-timeout", timeout);
            let answer = answer.send(&bridge).await;
            answer.assert_refused(Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
        }
        for timeout in ["1H", "99999999H", "2M", "30S"] {
            let request = Request::new(path).header("grpc-timeout", timeout);
            let message = history().encode_to_vec();
            let message = if path == SUBSCRIBE { &message[..] } else { b"" };
            let answer = request.body(grpc_message(message)).send(&bridge).await;
            answer.assert_ok(true);
        }
        for timeout in [
            "",
            "S",
            "1",
            "1s",
            "-1S",
            "1.5S",
            "123456789n",
            "1 S",
            "1SS",
            "forever",
        ] {
            let answer = Request::new(path).header("grpc-timeout", timeout);
            let answer = answer.send(&bridge).await;
            let status = answer.assert_refused(Code::InvalidArgument, "REQUEST_INVALID");
            assert!(status.message().contains("grpc-timeout"), "{timeout:?}");
        }
    }
    let ended = r#"prelude_bridge_streams_ended_total{reason="DEADLINE_EXCEEDED"}"#;
    bridge.counts_at_least(ended, 8.0).await;
    bridge.finish().await;
}

/// The sequence numbers and cursors of the events of a body.
fn events(mut body: &[u8]) -> Vec<(u64, String)> {
    let mut events = Vec::new();
    while let Some((head, rest)) = body.split_first_chunk::<5>() {
        let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
        let response = SubscribeResponse::decode(&rest[..length]).unwrap();
        events.extend(
            response
                .events
                .into_iter()
                .map(|event| (event.sequence, event.cursor)),
        );
        body = &rest[length..];
    }
    events
}

/// A client that gives no room for a response still hears that its time is over.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_needs_no_room_in_the_window() {
    let bridge = Bridge::start().await;
    bridge
        .append(&[item("evt_1", "user.created", "usr_1")])
        .await;
    let begin = Http2::begin(bridge.addresses.grpc, &[(INITIAL_WINDOW_SIZE, 0)]);
    let mut connection = begin.await.unwrap();
    let block = [call_block(SUBSCRIBE), literal(b"grpc-timeout", b"500m")];
    let message = grpc_message(&live().encode_to_vec());
    let call = [
        frame(HEADERS, END_HEADERS, 1, &block.concat()),
        frame(DATA, END_STREAM, 1, &message),
    ];
    connection.send(&call.concat()).await.unwrap();
    let ended = tokio::time::timeout(SOON, connection.until_ended(1)).await;
    assert_eq!(ended.unwrap().unwrap().kind, HEADERS);
    let ended = r#"prelude_bridge_streams_ended_total{reason="DEADLINE_EXCEEDED"}"#;
    bridge.counts(ended, 1.0).await;
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_metadata_is_a_status_that_nobody_retries() {
    let bridge = Bridge::start().await;
    let long = |bytes: usize| Request::new(GET_RANGE).header("x-long", "x".repeat(bytes));
    let mut many = Request::new(GET_RANGE);
    for _ in 0..400 {
        many.headers.push(("x-many", "value".to_owned()));
    }
    let bearer =
        Request::new(CHECK).header("authorization", format!("Bearer {}", "t".repeat(20_000)));
    for request in [long(16_384), long(20_000), long(30_000), many, bearer] {
        let answer = request.send(&bridge).await;
        let status = answer.assert_refused(Code::InvalidArgument, "REQUEST_INVALID");
        assert!(status.message().contains("16384"), "{}", status.message());
    }
    long(15_000).send(&bridge).await.assert_ok(true);
    // Beyond twice the limit h2 answers, and the connection goes on.
    assert_eq!(long(40_000).send(&bridge).await.status, 431);
    let bridge_ok = Request::new(GET_RANGE).send(&bridge).await;
    let range = GetRangeResponse::decode(&bridge_ok.body[5..]).unwrap();
    assert_eq!(range.event_count, 0);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_grpc_is_told_so_by_http() {
    let bridge = Bridge::start().await;
    let of = |text: &str| Request::new(GET_RANGE).header("content-type", text);
    for text in [
        "application/grpc",
        "application/grpc+proto",
        "application/grpc;charset=utf-8",
        "application/grpc+proto; a=b",
        "Application/GRPC",
    ] {
        of(text).send(&bridge).await.assert_ok(true);
    }
    for text in [
        "application/grpc+json",
        "application/grpc+thrift",
        "application/grpc+",
    ] {
        let answer = of(text).send(&bridge).await;
        let status = answer.assert_refused(Code::Unimplemented, "ENCODING_UNSUPPORTED");
        assert!(status.message().contains("+proto"), "{}", status.message());
    }
    for text in [
        "text/html",
        "application/json",
        "application/grpcs",
        "application/grpc-web+json",
        "application/connect+proto",
        "",
    ] {
        let answer = of(text).send(&bridge).await;
        assert_eq!(answer.status, 415, "{text}");
        assert!(String::from_utf8_lossy(&answer.body).contains("application/grpc"));
        assert!(!answer.headers.contains_key("grpc-status"));
    }
    let without = Request::new(SUBSCRIBE).without("content-type");
    assert_eq!(without.send(&bridge).await.status, 415);
    for method in ["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"] {
        let mut request = Request::new(GET_RANGE);
        request.method = method;
        let answer = request.send(&bridge).await;
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(answer.headers["allow"], "POST, OPTIONS");
    }
    for (method, content_type, status) in [
        ("POST", "application/grpc", 505),
        ("POST", "application/grpc+proto", 505),
        ("POST", "text/html", 415),
        ("GET", "application/grpc", 405),
        ("PUT", "application/grpc-web", 405),
    ] {
        let request = crate::support::Request::new(method, GET_RANGE)
            .header("Content-Type", content_type)
            .header("Content-Length", "0");
        let answer = request.send(bridge.addresses.grpc).await.unwrap();
        assert_eq!(answer.status, status, "{method} {content_type}");
    }
    bridge.finish().await;
}

/// What a call does not need, and what means nothing here, is left alone.
#[tokio::test(flavor = "multi_thread")]
async fn metadata_of_any_kind_is_accepted() {
    let bridge = Bridge::start().await;
    let request = Request::new(GET_RANGE);
    let plain = request.clone().without("te");
    plain.send(&bridge).await.assert_ok(true);
    for (name, value) in [
        ("user-agent", "grpc-go/1.85.0"),
        ("grpc-accept-encoding", "deflate, snappy"),
        ("grpc-message-type", "any"),
        ("grpc-future", "reserved"),
        ("x-grpc-test-echo-initial", "test_initial_metadata_value"),
        ("x-grpc-test-echo-trailing-bin", "q6ur"),
        ("x-padded-bin", "YWI="),
        ("x-unpadded-bin", "YWI"),
        ("x-joined-bin", "YWI=,YWI"),
        ("x-invalid-bin", "no base64!"),
        ("x-not-ascii", "caf\u{e9}"),
        ("x-empty", ""),
    ] {
        let answer = request.clone().header(name, value).send(&bridge).await;
        answer.assert_ok(true);
        assert!(!answer.headers.contains_key(name), "{name} is not repeated");
    }
    for (path, expected) in [
        ("/prelude.bridge.v1.EventService/Publish", "RPC_UNKNOWN"),
        ("/prelude.bridge.v1.EventService/getrange", "RPC_UNKNOWN"),
        ("/prelude.bridge.v2.EventService/GetRange", "RPC_UNKNOWN"),
        (
            "/grpc.testing.UnimplementedService/UnimplementedCall",
            "RPC_UNKNOWN",
        ),
        ("/", "RPC_UNKNOWN"),
    ] {
        let answer = Request::new(path).send(&bridge).await;
        answer.assert_refused(Code::Unimplemented, expected);
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_just_one_message() {
    let bridge = Setup::default()
        .with("limits.grpc.header_timeout", "300ms")
        .start()
        .await;
    for path in [GET_RANGE, SUBSCRIBE, CHECK, WATCH] {
        for body in [Vec::new(), vec![0; 10], vec![0; 6]] {
            let bytes = body.len();
            let answer = Request::new(path).body(body).send(&bridge).await;
            let status = answer.assert_refused(Code::Unimplemented, "MESSAGE_COUNT_INVALID");
            let is_missing = status.message().contains("no message");
            assert_eq!(is_missing, bytes == 0, "{path} {bytes}");
        }
        for cut in [&[0][..], &[0, 0, 0, 0, 2], &[0, 0, 0, 0, 2, 8]] {
            let answer = Request::new(path).body(cut.to_vec()).send(&bridge).await;
            answer.assert_refused(Code::InvalidArgument, "REQUEST_INVALID");
        }
        // It never ends, with a message or without.
        for body in [Vec::new(), vec![0; 3], vec![0; 5]] {
            let mut request = Request::new(path).body(body);
            request.ends = false;
            let answer = request.send(&bridge).await;
            answer.assert_refused(Code::DeadlineExceeded, "REQUEST_TIMEOUT");
        }
    }
    bridge.finish().await;
}

/// `Trailers-Only`: one HEADERS frame, and after it RST_STREAM(NO_ERROR) if the request was not over, as
/// PROTOCOL-HTTP2.md has it (Early Server Closure).
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_one_frame_and_closes_the_stream() {
    const NO_ERROR: [u8; 4] = [0; 4];
    let bridge = Bridge::start().await;
    let unknown = "/prelude.bridge.v1.EventService/Unknown";
    let mut connection = Http2::begin(bridge.addresses.grpc, &[]).await.unwrap();
    let whole = whole_call(1, unknown);
    connection
        .send(&[whole, call(3, unknown)].concat())
        .await
        .unwrap();
    let mut frames = Vec::new();
    while frames.len() < 3 {
        let frame = tokio::time::timeout(SOON, connection.next()).await;
        let frame = frame.unwrap().unwrap();
        if frame.stream != 0 {
            frames.push((frame.stream, frame.kind, frame.flags, frame.payload));
        }
    }
    for stream in [1, 3] {
        let of: Vec<_> = frames.iter().filter(|frame| frame.0 == stream).collect();
        assert_eq!((of[0].1, of[0].2), (HEADERS, END_STREAM | END_HEADERS));
        let resets = &of[1..];
        assert_eq!(resets.len(), usize::from(stream == 3));
        assert!(
            resets
                .iter()
                .all(|frame| frame.1 == RST_STREAM && frame.3 == NO_ERROR)
        );
    }
    let answer = Request::new(SUBSCRIBE)
        .body(grpc_message(&after("no cursor").encode_to_vec()))
        .send(&bridge)
        .await;
    answer.assert_refused(Code::InvalidArgument, "CURSOR_MALFORMED");
    assert_eq!(answer.headers["content-type"], "application/grpc");
    assert!(answer.trailers.is_none());
    let details = answer.headers["grpc-status-details-bin"].to_str().unwrap();
    assert!(!details.contains('='), "binary values are not padded");
    bridge.finish().await;
}

/// A client that cancels in any of the ways that HTTP/2 has.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_its_client_resets_is_over_whatever_the_code() {
    let bridge = Bridge::start().await;
    let mut connection = Http2::begin(bridge.addresses.grpc, &[]).await.unwrap();
    let subscribers = async || bridge.metric("prelude_bridge_subscribers").await.unwrap();
    for (at, code) in [0_u32, 1, 2, 5, 7, 8, 11, 0xdead_beef]
        .into_iter()
        .enumerate()
    {
        let stream = 2 * u32::try_from(at).unwrap() + 1;
        connection
            .send(&whole_call(stream, SUBSCRIBE))
            .await
            .unwrap();
        until(async || subscribers().await > 0.0).await;
        connection.send(&reset(stream, code)).await.unwrap();
        until(async || subscribers().await < 1.0).await;
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_all_its_streams_is_in_the_metrics_and_one_more_waits_or_is_refused() {
    const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];
    let full = "prelude_bridge_grpc_connections_at_stream_limit";
    let bridge = Bridge::start().await;
    assert_eq!(bridge.metric(full).await, Some(0.0));
    let channel = bridge.channel().await;
    let mut streams = Vec::new();
    for _ in 0..100 {
        let mut client = EventServiceClient::new(channel.clone());
        streams.push(Received::subscribe(&mut client, live()).await.unwrap());
    }
    bridge.counts(full, 1.0).await;
    // A library waits with the next call until one of them ends.
    let mut client = EventServiceClient::new(channel);
    let waiting = tokio::spawn(async move {
        let range = client.get_range(GetRangeRequest {});
        range.await.map(|_| ())
    });
    let mut connection = Http2::begin(bridge.addresses.grpc, &[]).await.unwrap();
    for at in 0..101 {
        connection
            .send(&whole_call(2 * at + 1, SUBSCRIBE))
            .await
            .unwrap();
    }
    let ended = tokio::time::timeout(SOON, connection.until_ended(201)).await;
    let ended = ended.unwrap().unwrap();
    assert_eq!(
        (ended.kind, &ended.payload[..]),
        (RST_STREAM, &REFUSED_STREAM[..])
    );
    bridge.counts(full, 2.0).await;
    assert!(!waiting.is_finished());
    streams.pop();
    let waited = tokio::time::timeout(SOON, waiting).await;
    waited.unwrap().unwrap().unwrap();
    drop((streams, connection));
    bridge.counts(full, 0.0).await;
    bridge.finish().await;
}

/// Another implementation of gRPC: `tests/interop/grpc` has the cases.
#[tokio::test(flavor = "multi_thread")]
async fn grpc_go_passes_the_cases_of_grpcs_interoperability_tests() {
    let bridge = Bridge::start().await;
    bridge
        .append(&[item("evt_1", "user.created", "usr_1")])
        .await;
    let mut client = std::process::Command::new(crate::tools::tool("bin/grpc-interop"));
    client.arg(bridge.addresses.grpc.to_string());
    let output = tokio::task::spawn_blocking(move || client.output()).await;
    let output = output.unwrap().unwrap();
    let (passed, failed) = (crate::cli::stdout(&output), crate::cli::stderr(&output));
    assert!(output.status.success(), "{passed}{failed}");
    assert_eq!(passed.lines().count(), 15, "{passed}");
    bridge.finish().await;
}

/// Nothing of the connection is used up by what is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_outlives_every_refusal() {
    let bridge = Bridge::start().await;
    let socket = tokio::net::TcpStream::connect(bridge.addresses.grpc);
    let (client, connection) = h2::client::handshake(socket.await.unwrap()).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    for (name, value) in [
        ("grpc-timeout", "soon"),
        ("grpc-encoding", "br"),
        ("content-type", "application/grpc+json"),
        ("content-type", "text/plain"),
        ("x-long", &"x".repeat(30_000)),
    ] {
        for _ in 0..30 {
            let request = http::Request::post(format!("http://bridge{SUBSCRIBE}"))
                .header("content-type", "application/grpc")
                .header(name, value)
                .body(());
            let mut ready = client.ready().await.unwrap();
            let (response, mut send) = ready.send_request(request.unwrap(), false).unwrap();
            let _ = send.send_data(Bytes::from(vec![0; 20_000]), true);
            assert!(response.await.is_ok());
            client = ready;
        }
    }
    connection.abort();
    bridge.finish().await;
}
