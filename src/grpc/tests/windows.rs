//! Clients whose HTTP/2 windows are small, and that open them in their own ways: what they get, and
//! how their streams end. The clock is paused, so that a stream that waits for nothing ends as slow
//! at once.

use bytes::{Buf as _, Bytes, BytesMut};
use h2::{RecvStream, client::SendRequest};
use prelude_bridge_load::frames;
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, advance},
};

use http_body_util::{BodyExt as _, Full};
use tonic::body::Body;

use super::*;
use crate::{http2::RequestHandler as _, log::Damaged, proto::DamagedPolicy};

/// What a connection may be sent in all, unless that is what the test is about.
const WIDE_BYTES: u32 = 1 << 30;

/// Longer than a stream without room holds its blocks.
const A_WHILE: Duration = Duration::from_secs(5);

/// A connection to the bridge whose streams begin with a window.
struct Client(SendRequest<Bytes>);

impl Client {
    async fn connect(bridge: &Bridge, stream_window: u32, connection_window: u32) -> Self {
        // As much as is between two sockets.
        let (client, server) = tokio::io::duplex(256 * 1024);
        let streams = bridge.streams.clone();
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        tokio::spawn(async move { streams.serve(server, peer.into()).await });
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(stream_window)
            .initial_connection_window_size(connection_window)
            .handshake(client)
            .await
            .unwrap();
        tokio::spawn(connection);
        Self(send)
    }

    async fn subscribe(&self, request: &SubscribeRequest) -> Reader {
        self.subscribe_by("application/grpc", request).await
    }

    async fn subscribe_by(&self, content_type: &str, request: &SubscribeRequest) -> Reader {
        let mut send = self.0.clone().ready().await.unwrap();
        let uri = "http://bridge/prelude.bridge.v1.EventService/Subscribe";
        let head = http::Request::post(uri).header("content-type", content_type);
        let (response, mut body) = send.send_request(head.body(()).unwrap(), false).unwrap();
        body.send_data(crate::wire::grpc_message(request), true)
            .unwrap();
        Reader {
            body: response.await.unwrap().into_body(),
            partial: BytesMut::new(),
            unreleased: 0,
            responses: Vec::new(),
        }
    }
}

/// A stream that is read by the piece.
struct Reader {
    body: RecvStream,
    /// A message that is not whole yet.
    partial: BytesMut,
    /// What the window is smaller by.
    unreleased: usize,
    responses: Vec<SubscribeResponse>,
}

impl Reader {
    /// Takes one piece, and says how long it was; `None` at the end.
    async fn piece(&mut self) -> Option<usize> {
        let piece = self.body.data().await?.unwrap();
        self.partial.extend_from_slice(&piece);
        self.unreleased += piece.len();
        while let Some(length) = self.partial.get(1..5) {
            let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
            if self.partial.len() < 5 + length {
                break;
            }
            assert_eq!(self.partial.get_u8(), 0);
            self.partial.advance(4);
            let message = self.partial.split_to(length);
            self.responses
                .push(SubscribeResponse::decode(message).unwrap());
        }
        Some(piece.len())
    }

    /// Opens the window by so much of what was taken.
    fn release(&mut self, bytes: usize) {
        self.unreleased -= bytes;
        self.body.flow_control().release_capacity(bytes).unwrap();
    }

    /// Reads on until a message has begun that there is no room for, without opening the window.
    async fn stall(&mut self) {
        while let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(1), self.piece()).await {
        }
    }

    /// Reads to the end, and opens the window for all that comes.
    async fn rest(&mut self) -> Status {
        loop {
            self.release(self.unreleased);
            if self.piece().await.is_none() {
                return self.status().await;
            }
        }
    }

    async fn status(&mut self) -> Status {
        let trailers = self.body.trailers().await.unwrap().unwrap();
        Status::from_header_map(&trailers).unwrap()
    }

    fn events(&self) -> Vec<(u64, usize)> {
        let events = self.responses.iter().flat_map(|response| &response.events);
        events
            .map(|event| (event.sequence, event.raw_json.len()))
            .collect()
    }

    /// The place after the last whole response.
    fn cursor(&self) -> &str {
        &self.responses.last().unwrap().cursor
    }
}

/// Appends an event of so many bytes.
async fn append_large(bridge: &Bridge, number: u64, bytes: usize) {
    let id = format!("evt_{number}");
    let mut batch = fixtures::batch("app", &[(&id, "user.created", "usr_1")]);
    batch.body = vec![b'x'; bytes].into();
    batch.drafts[0].raw_json = 0..bytes;
    bridge.log.append(batch).await.unwrap();
}

async fn start(options: Options) -> Bridge {
    Bridge::start_with(options, bus::Options::default(), memory::Options::default()).await
}

/// All that is there, as it was signed.
fn history() -> SubscribeRequest {
    SubscribeRequest {
        start: earliest(),
        stop: head(),
        payload_format: PayloadFormat::Raw.into(),
        ..Default::default()
    }
}

/// The same and what comes.
fn endless() -> SubscribeRequest {
    SubscribeRequest {
        stop: None,
        ..history()
    }
}

fn cursor_of(status: &Status) -> String {
    let details = status.get_error_details();
    details.error_info().unwrap().metadata["cursor"].clone()
}

#[tokio::test(start_paused = true)]
async fn a_message_begins_at_once_in_whatever_room_there_is() {
    let bridge = start(Options::default()).await;
    let sizes = [1, 100, 70_000, 30, 900_000, 1];
    for (number, bytes) in (1..).zip(sizes) {
        append_large(&bridge, number, bytes).await;
    }
    for window in [1, 4, 5, 6, 100, 1_000, 65_535] {
        let since = Instant::now();
        let client = Client::connect(&bridge, window, WIDE_BYTES).await;
        let mut reader = client.subscribe(&history()).await;
        let mut got = 0;
        while got < window as usize {
            got += reader.piece().await.unwrap();
        }
        assert_eq!((got, since.elapsed()), (window as usize, Duration::ZERO));
        if window < 100 {
            // A million pieces would prove no more.
            continue;
        }
        let status = reader.rest().await;
        assert_eq!(status.code(), Code::Ok, "{window}: {status:?}");
        let expected: Vec<(u64, usize)> = (1..).zip(sizes).collect();
        assert_eq!(reader.events(), expected, "{window}");
        assert!(since.elapsed() < A_WHILE, "{window}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_once_had_room_does_not_wait_for_it() {
    let bridge = start(Options::default()).await;
    append_large(&bridge, 1, 10_000).await;
    append_large(&bridge, 2, 60_000).await;
    let client = Client::connect(&bridge, 65_535, WIDE_BYTES).await;
    let mut reader = client.subscribe(&history()).await;
    // Nothing is opened before it is known how long the second event is.
    reader.stall().await;
    assert_eq!(reader.events(), [(1, 10_000)]);
    assert_eq!(reader.unreleased, 65_535);
    assert_eq!(reader.rest().await.code(), Code::Ok);
    assert_eq!(reader.events().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn events_that_fit_are_sent_before_one_that_does_not() {
    let bridge = start(Options::default()).await;
    bridge.append(1, 3).await;
    append_large(&bridge, 4, 100_000).await;
    let client = Client::connect(&bridge, 20_000, WIDE_BYTES).await;
    let mut reader = client.subscribe(&endless()).await;
    reader.stall().await;
    // Together, and the beginning of the next.
    let sequences: Vec<u64> = reader.events().iter().map(|event| event.0).collect();
    assert_eq!(sequences, [1, 2, 3]);
    assert_eq!(reader.responses.len(), 2, "Started and the three");
    assert_eq!(reader.unreleased, 20_000);
}

#[tokio::test(start_paused = true)]
async fn who_keeps_taking_bytes_is_not_slow_however_long_it_takes() {
    for bus_window in [bus::Options::default().window_bytes_max, 1] {
        let window = bus::Options {
            window_bytes_max: bus_window,
        };
        let bridge =
            Bridge::start_with(Options::default(), window, memory::Options::default()).await;
        append_large(&bridge, 1, 10_000).await;
        bridge.append(2, 3).await;
        // A KiB at a time, and less than a byte a second.
        for window in [1_024, 50] {
            let client = Client::connect(&bridge, window, WIDE_BYTES).await;
            let mut reader = client.subscribe(&history()).await;
            let since = Instant::now();
            while reader.events().len() < 3 {
                reader.piece().await.unwrap();
                if reader.unreleased >= window as usize {
                    advance(Duration::from_secs(59)).await;
                    reader.release(window as usize);
                }
            }
            assert_eq!(reader.events()[0], (1, 10_000));
            assert!(since.elapsed() > 10_000 / window * Duration::from_secs(59));
            assert_eq!(reader.rest().await.code(), Code::Ok);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_takes_nothing_more_of_a_message_is_ended_with_the_cursor_before_it() {
    let bridge = start(Options::default()).await;
    bridge.append_one(1).await;
    append_large(&bridge, 2, 100_000).await;
    for (window, bytes) in [(2_000, 0), (2_000, 1), (65_535, 1_000)] {
        let client = Client::connect(&bridge, window, WIDE_BYTES).await;
        let since = Instant::now();
        let mut reader = client.subscribe(&endless()).await;
        reader.stall().await;
        advance(Duration::from_secs(40)).await;
        if bytes > 0 {
            reader.release(bytes);
            assert_eq!(reader.piece().await, Some(bytes));
        }
        assert_eq!(reader.piece().await, None);
        // Since the last byte that it took.
        let expected = if bytes > 0 { 40 + 60 } else { 60 };
        assert_eq!(since.elapsed().as_secs(), expected);
        let status = reader.status().await;
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::ResourceExhausted, "SLOW_CONSUMER")
        );
        assert!(!reader.partial.is_empty(), "within a message");
        assert_eq!(cursor_of(&status), bridge.cursor(1));
        assert_eq!(reader.cursor(), bridge.cursor(1));
        assert_eq!(bridge.streams.snapshot().open, 0);
    }
}

/// The beginning of a connection whose windows are as wide as they get, and a subscription.
fn begin_wide() -> Vec<u8> {
    let wide = [
        frames::settings(&[(frames::INITIAL_WINDOW_SIZE, WIDE_BYTES)]),
        frames::window_update(0, WIDE_BYTES),
        frames::call(1, "/prelude.bridge.v1.EventService/Subscribe"),
        frames::frame(
            frames::DATA,
            frames::END_STREAM,
            1,
            &crate::wire::grpc_message(&history()),
        ),
    ];
    [frames::PREFACE, &wide.concat()].concat()
}

/// Its windows are wide and its link is slow: a piece of a message takes minutes.
#[tokio::test(start_paused = true)]
async fn who_takes_minutes_for_a_piece_is_not_slow_while_bytes_arrive() {
    let bridge = start(Options::default()).await;
    append_large(&bridge, 1, 1_500_000).await;
    append_large(&bridge, 2, 100_000).await;
    let (mut client, server) = tokio::io::duplex(4 * 1024);
    let streams = bridge.streams.clone();
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    tokio::spawn(async move { streams.serve(server, peer.into()).await });
    client.write_all(&begin_wide()).await.unwrap();
    // All of both events, and whatever is around them.
    let mut bytes = vec![0; 10_000];
    for number in 0..160 {
        let read = client.read_exact(&mut bytes).await;
        let page = || bridge.metrics.render();
        assert!(read.is_ok(), "after {number}: {}", page());
        advance(Duration::from_secs(15)).await;
    }
    let page = bridge.metrics.render();
    assert!(!page.contains("SLOW_CONSUMER"), "{page}");
}

/// What its connection takes for others is no excuse.
#[tokio::test(start_paused = true)]
async fn a_stream_that_is_not_read_is_slow_whatever_others_of_its_connection_take() {
    let bridge = start(Options::default()).await;
    for number in 1..=40 {
        append_large(&bridge, number, 60_000).await;
    }
    let client = Client::connect(&bridge, 65_535, WIDE_BYTES).await;
    let mut unread = client.subscribe(&history()).await;
    unread.stall().await;
    let mut read = client.subscribe(&history()).await;
    let reading = tokio::spawn(async move {
        while read.piece().await.is_some() {
            read.release(read.unreleased);
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        read.status().await
    });
    let since = Instant::now();
    assert_eq!(reason(&unread.status().await), "SLOW_CONSUMER");
    let timeout = Options::default().connections.slow_consumer_timeout;
    assert!((timeout..timeout * 3 / 2).contains(&since.elapsed()));
    assert!(!reading.is_finished());
    assert_eq!(reading.await.unwrap().code(), Code::Ok);
}

/// Its windows are wide and its link is slow: a ping waits behind all that is on the way.
#[tokio::test(start_paused = true)]
async fn who_reads_slowly_comes_late_to_a_ping_and_is_not_gone() {
    let bridge = start(Options::default()).await;
    for number in 1..=5 {
        append_large(&bridge, number, 900_000).await;
    }
    let begin = begin_wide();
    for reads in [true, false] {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let streams = bridge.streams.clone();
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let serving = tokio::spawn(async move { streams.serve(server, peer.into()).await });
        client.write_all(&begin).await.unwrap();
        // It is asked after half a minute, and has twenty seconds for its answer.
        let mut bytes = vec![0; 4_096];
        for _ in 0..200 {
            if reads {
                client.read_exact(&mut bytes).await.unwrap();
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(serving.is_finished(), !reads);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_answer_has_no_room_ends_at_its_deadline() {
    let bridge = start(Options::default()).await;
    let client = Client::connect(&bridge, 0, WIDE_BYTES).await;
    let mut send = client.0.clone().ready().await.unwrap();
    let uri = "http://bridge/prelude.bridge.v1.EventService/GetRange";
    let head = http::Request::post(uri)
        .header("content-type", "application/grpc")
        .header("grpc-timeout", "500m");
    let (response, mut body) = send.send_request(head.body(()).unwrap(), false).unwrap();
    body.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
    let began = Instant::now();
    let mut body = response.await.unwrap().into_body();
    let trailers = body.trailers().await.unwrap().unwrap();
    let status = Status::from_header_map(&trailers).unwrap();
    assert_eq!(reason(&status), "DEADLINE_EXCEEDED");
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_grpc_web_without_room_ends_at_its_deadline() {
    let bridge = start(Options::default()).await;
    append_large(&bridge, 1, 100_000).await;
    for window in [0, 10, 65_535] {
        let client = Client::connect(&bridge, window, WIDE_BYTES).await;
        let mut send = client.0.clone().ready().await.unwrap();
        let uri = "http://bridge/prelude.bridge.v1.EventService/Subscribe";
        let head = http::Request::post(uri)
            .header("content-type", "application/grpc-web+proto")
            .header("grpc-timeout", "3S");
        let (response, mut body) = send.send_request(head.body(()).unwrap(), false).unwrap();
        body.send_data(crate::wire::grpc_message(&endless()), true)
            .unwrap();
        let began = Instant::now();
        let mut body = response.await.unwrap().into_body();
        // Read, and never made room for.
        while body.data().await.is_some() {}
        let trailers = body.trailers().await.unwrap().unwrap();
        let status = Status::from_header_map(&trailers).unwrap();
        assert_eq!(reason(&status), "DEADLINE_EXCEEDED", "{window}");
        assert!(began.elapsed() < Duration::from_secs(4), "{window}");
    }
    let page = bridge.metrics.render();
    let counted = r#"prelude_bridge_streams_ended_total{reason="DEADLINE_EXCEEDED"} 3"#;
    assert!(page.contains(counted), "{page}");
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_by_http_waits_for_room_for_a_moment_and_in_a_slot() {
    let mut options = Options::default();
    options.calls.calls_max = 1;
    let bridge = start(options).await;
    let client = Client::connect(&bridge, 0, WIDE_BYTES).await;
    let refused = async |method: http::Method| {
        let mut send = client.0.clone().ready().await.unwrap();
        let head = http::Request::builder()
            .method(method)
            .uri("http://bridge/");
        let (response, _) = send.send_request(head.body(()).unwrap(), true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), http::StatusCode::METHOD_NOT_ALLOWED);
        response.into_body()
    };
    let mut first = refused(http::Method::GET).await;
    let began = Instant::now();
    let mut second = refused(http::Method::GET).await;
    // The second has taken the place of the first.
    assert!(first.data().await.is_none());
    assert!(began.elapsed() < Duration::from_millis(100));
    assert!(second.data().await.is_none());
    assert!(began.elapsed() < Duration::from_secs(2));
    // An answer to HEAD has no text.
    assert!(refused(http::Method::HEAD).await.is_end_stream());
    let page = bridge.metrics.render();
    let counted = r#"prelude_bridge_streams_ended_total{reason="REQUEST_INVALID"} 3"#;
    assert!(page.contains(counted), "{page}");
    // With room, it is sent.
    let client = Client::connect(&bridge, 65_535, WIDE_BYTES).await;
    let mut send = client.0.clone().ready().await.unwrap();
    let head = http::Request::get("http://bridge/").body(()).unwrap();
    let (response, _) = send.send_request(head, true).unwrap();
    let mut body = response.await.unwrap().into_body();
    let text = body.data().await.unwrap().unwrap();
    assert!(text.starts_with(b"this port serves gRPC"));
}

#[tokio::test(start_paused = true)]
async fn a_window_that_never_opens_ends_the_stream_before_its_first_byte() {
    let bridge = start(Options::default()).await;
    let client = Client::connect(&bridge, 0, WIDE_BYTES).await;
    let mut reader = client.subscribe(&endless()).await;
    assert_eq!(reader.piece().await, None);
    let status = reader.status().await;
    assert_eq!(reason(&status), "SLOW_CONSUMER");
    assert_eq!(cursor_of(&status), bridge.cursor(0));
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_who_is_within_a_message() {
    let bridge = start(Options::default()).await;
    bridge.append_one(1).await;
    append_large(&bridge, 2, 100_000).await;
    let client = Client::connect(&bridge, 2_000, WIDE_BYTES).await;
    let mut stalled = client.subscribe(&endless()).await;
    let mut taking = client.subscribe(&endless()).await;
    let mut quick = client.subscribe(&endless()).await;
    for reader in [&mut stalled, &mut taking, &mut quick] {
        reader.stall().await;
    }
    let taking = tokio::spawn(async move {
        // Enough never to be slow, and not enough to be through in time.
        let mut pace = tokio::time::interval(Duration::from_millis(100));
        loop {
            pace.tick().await;
            taking.release(taking.unreleased.min(1_024));
            if taking.piece().await.is_none() {
                return (taking.status().await, taking.cursor().to_owned());
            }
        }
    });
    let quick = tokio::spawn(async move { (quick.rest().await, quick.cursor().to_owned()) });
    let since = Instant::now();
    bridge.streams.drain().await;
    assert!(
        since.elapsed() <= Duration::from_secs(3),
        "{:?}",
        since.elapsed()
    );
    stalled.stall().await;
    let stalled = (stalled.status().await, stalled.cursor().to_owned());
    for ((status, cursor), place) in [
        (stalled, 1),
        (taking.await.unwrap(), 1),
        (quick.await.unwrap(), 2),
    ] {
        assert_eq!(reason(&status), "DRAINING");
        assert_eq!(cursor, bridge.cursor(place));
        assert_eq!(cursor_of(&status), cursor);
    }
}

/// gRPC-Web over HTTP/2: the session is a body, whose pieces are waited for elsewhere.
#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_a_page_within_a_message() {
    let bridge = start(Options::default()).await;
    append_large(&bridge, 1, 100_000).await;
    let client = Client::connect(&bridge, 2_000, WIDE_BYTES).await;
    let web = "application/grpc-web+proto";
    let mut slow = client.subscribe_by(web, &history()).await;
    let since = Instant::now();
    while slow.events().is_empty() {
        slow.piece().await.unwrap();
        // Pieces can be short where a part of the body ends: as much as opens the window.
        if slow.unreleased >= 1_000 {
            advance(Duration::from_secs(20)).await;
            slow.release(slow.unreleased);
        }
    }
    assert!(
        since.elapsed() > Duration::from_secs(60),
        "not slow, and not cut"
    );
    let mut stalled = client.subscribe_by(web, &endless()).await;
    stalled.stall().await;
    assert!(stalled.events().is_empty());
    let since = Instant::now();
    bridge.streams.drain().await;
    assert!(
        since.elapsed() <= Duration::from_secs(3),
        "{:?}",
        since.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_event_is_trimmed_meanwhile_ends_with_what_is_still_there() {
    let bridge = Bridge::start_forgetful().await;
    append_large(&bridge, 1, 100_000).await;
    let client = Client::connect(&bridge, 20_000, WIDE_BYTES).await;
    let mut failing = client.subscribe(&endless()).await;
    let mut skipping = client
        .subscribe(&SubscribeRequest {
            on_expired: ExpiredCursorPolicy::Earliest.into(),
            ..endless()
        })
        .await;
    failing.stall().await;
    skipping.stall().await;
    // Their memory is given up.
    advance(A_WHILE).await;
    bridge.append(2, 100).await;
    assert!(bridge.log.range().earliest > Sequence(1));
    let status = failing.rest().await;
    assert_eq!(reason(&status), "CURSOR_EXPIRED");
    // It comes back, and is told then what was skipped.
    let status = skipping.rest().await;
    assert_eq!(reason(&status), "LOG_UNAVAILABLE");
    assert_eq!(cursor_of(&status), bridge.cursor(0));
    assert!(failing.events().is_empty() && skipping.events().is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_has_no_room_keeps_its_turn_at_the_log_from_others_only_for_a_moment() {
    let options = Options {
        subscriptions: subscription::Options {
            history_streams_max: 1,
            ..subscription::Options::default()
        },
        ..Options::default()
    };
    let window = bus::Options {
        window_bytes_max: 1,
    };
    let bridge = Bridge::start_with(options, window, memory::Options::default()).await;
    bridge.append(1, 20).await;
    let mut stalled = Vec::new();
    for content_type in ["application/grpc", "application/grpc-web+proto"].repeat(5) {
        // Room for the first notice.
        let client = Client::connect(&bridge, 200, WIDE_BYTES).await;
        stalled.push(client.subscribe_by(content_type, &endless()).await);
    }
    let client = Client::connect(&bridge, WIDE_BYTES, WIDE_BYTES).await;
    let since = Instant::now();
    let mut reader = client.subscribe(&history()).await;
    assert_eq!(reader.rest().await.code(), Code::Ok);
    assert_eq!(reader.events().len(), 20);
    // Each of the others once, and no longer than where nobody waits.
    assert!(
        since.elapsed() < Duration::from_secs(2),
        "{:?}",
        since.elapsed()
    );
}

/// The body of a subscription by gRPC-Web, as a connection sends it.
async fn page(bridge: &Bridge, version: http::Version, request: &SubscribeRequest) -> Body {
    page_within(bridge, version, request, "1H").await
}

/// The same with a deadline.
async fn page_within(
    bridge: &Bridge,
    version: http::Version,
    request: &SubscribeRequest,
    timeout: &str,
) -> Body {
    let uri = "http://bridge/prelude.bridge.v1.EventService/Subscribe";
    let request = http::Request::post(uri)
        .version(version)
        .header("content-type", "application/grpc-web+proto")
        .header("grpc-timeout", timeout)
        .body(Full::new(crate::wire::grpc_message(request)))
        .unwrap();
    let handler = &bridge.streams.connections.handler;
    handler.answer(request).await.response.into_body()
}

#[tokio::test(start_paused = true)]
async fn a_page_gets_a_large_event_in_pieces() {
    let bridge = start(Options::default()).await;
    append_large(&bridge, 1, 200_000).await;
    bridge.append(2, 300).await;
    for version in [http::Version::HTTP_11, http::Version::HTTP_2] {
        let mut body = page(&bridge, version, &history()).await;
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let bytes = frame.unwrap().into_data().unwrap();
            assert!(bytes.len() <= 16 * 1024, "{}", bytes.len());
            whole.extend_from_slice(&bytes);
        }
        let mut sequences = Vec::new();
        while whole.get_u8() == 0 {
            let length = whole.get_u32() as usize;
            let response = SubscribeResponse::decode(whole.split_to(length)).unwrap();
            sequences.extend(response.events.iter().map(|event| event.sequence));
        }
        assert_eq!(sequences, Vec::from_iter(1..=300));
        let trailers = String::from_utf8_lossy(&whole[4..]);
        assert!(trailers.contains("grpc-status:0"), "{trailers}");
    }
}

/// Reads so many bytes of a body, or somewhat more, and returns how many.
async fn read_at_least(body: &mut Body, bytes: usize) -> usize {
    let mut read = 0;
    while read < bytes {
        let frame = body.frame().await.unwrap().unwrap();
        read += frame.into_data().unwrap().len();
    }
    read
}

#[tokio::test(start_paused = true)]
async fn a_page_within_a_message_is_cut_at_its_deadline() {
    let bridge = start(Options::default()).await;
    append_large(&bridge, 1, 200_000).await;
    let mut body = page_within(&bridge, http::Version::HTTP_11, &history(), "1S").await;
    read_at_least(&mut body, 20_000).await;
    advance(Duration::from_secs(2)).await;
    assert!(body.frame().await.unwrap().is_err());
}

/// Trailers would be taken for the rest of the message.
#[tokio::test(start_paused = true)]
async fn a_page_within_a_message_whose_event_is_trimmed_is_cut() {
    let bridge = Bridge::start_forgetful().await;
    append_large(&bridge, 1, 100_000).await;
    let mut body = page(&bridge, http::Version::HTTP_11, &endless()).await;
    let mut bytes = read_at_least(&mut body, 20_000).await;
    bridge.append(2, 100).await;
    let end = loop {
        match body.frame().await {
            Some(Ok(frame)) => bytes += frame.into_data().unwrap().len(),
            end => break end,
        }
    };
    assert!(matches!(end, Some(Err(_))) && bytes < 100_000);
    assert_eq!(bridge.streams.snapshot().open, 0, "it has ended");
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_event_is_damaged_meanwhile_ends_with_the_cursor_before_it() {
    let log = Arc::new(Scripted::new(
        memory::open(memory::Options::default()).unwrap(),
    ));
    let window = bus::Options {
        window_bytes_max: 1,
    };
    let bus = Bus::follow(window, &*log).unwrap();
    let anonymous = Credentials::anonymous();
    let bridge = Bridge::serve(Options::default(), anonymous, Arc::clone(&log) as _, bus).await;
    append_large(&bridge, 1, 100_000).await;
    let client = Client::connect(&bridge, 20_000, WIDE_BYTES).await;
    let mut failing = client.subscribe(&endless()).await;
    let mut skipping = client
        .subscribe(&SubscribeRequest {
            on_damaged: DamagedPolicy::Skip.into(),
            ..endless()
        })
        .await;
    failing.stall().await;
    skipping.stall().await;
    // Their memory is given up.
    advance(A_WHILE).await;
    bridge.append(2, 3).await;
    log.damage(&[Damaged {
        first: Sequence(1),
        last: Sequence(1),
    }]);
    let status = failing.rest().await;
    assert_eq!(reason(&status), "LOG_DAMAGED");
    assert_eq!(cursor_of(&status), bridge.cursor(0));
    // It comes back, and is told then what was skipped.
    let status = skipping.rest().await;
    assert_eq!(reason(&status), "LOG_UNAVAILABLE");
    assert_eq!(cursor_of(&status), bridge.cursor(0));
    assert!(failing.events().is_empty() && skipping.events().is_empty());
}

#[tokio::test(start_paused = true)]
async fn streams_of_one_connection_share_its_window() {
    let bridge = start(Options::default()).await;
    for number in 1..=20 {
        append_large(&bridge, number, 200_000).await;
    }
    bridge.append(21, 30).await;
    // Streams may be sent anything, and the connection less than one event.
    for connection_window in [65_535, 100_000] {
        let client = Client::connect(&bridge, WIDE_BYTES, connection_window).await;
        let mut large = client.subscribe(&history()).await;
        let few = SubscribeRequest {
            start: from(Start::AfterCursor(bridge.cursor(20))),
            ..history()
        };
        let mut small = client.subscribe(&few).await;
        let mut open = [true, true];
        let mut large_bytes = 0;
        while open[1] {
            tokio::select! {
                piece = large.piece(), if open[0] => match piece {
                    Some(bytes) => {
                        large_bytes += bytes;
                        large.release(bytes);
                    }
                    None => open[0] = false,
                },
                piece = small.piece() => match piece {
                    Some(bytes) => small.release(bytes),
                    None => open[1] = false,
                },
            }
        }
        assert_eq!(small.events().len(), 10);
        assert!(large_bytes < 2_000_000, "{large_bytes} bytes went first");
        assert_eq!(large.rest().await.code(), Code::Ok);
        assert_eq!(large.events().len(), 30);
    }
}

#[tokio::test(start_paused = true)]
async fn events_larger_than_all_that_may_be_unsent_go_out_in_turn() {
    let options = with_connections(http2::Options {
        unsent_bytes_max: 64 * 1024,
        response_bytes_max: 16 * 1024,
        ..http2::Options::default()
    });
    let bridge = start(options).await;
    for number in 1..=3 {
        append_large(&bridge, number, 900_000).await;
    }
    let client = Client::connect(&bridge, WIDE_BYTES, WIDE_BYTES).await;
    let mut readers = Vec::new();
    for _ in 0..5 {
        let mut reader = client.subscribe(&history()).await;
        readers.push(tokio::spawn(async move {
            assert_eq!(reader.rest().await.code(), Code::Ok);
            reader.events().len()
        }));
    }
    for reader in readers {
        assert_eq!(reader.await.unwrap(), 3);
    }
}
