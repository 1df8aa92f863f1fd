//! Clients that open their HTTP/2 windows in small steps, late, or only once they know how long a
//! message is, frame by frame; and that shrink them again. Whatever they do, as long as they open
//! them, every event arrives whole and in order, and nothing is sent that there is no room for.
//! `tools.rs` and `tests/interop/windows` have clients that do so by themselves.

use std::time::Duration;

use prelude_bridge::proto::{
    Earliest, Event, Head, PayloadFormat, StartPosition, StopPosition, SubscribeRequest,
    SubscribeResponse, event_service_client::EventServiceClient, start_position, stop_position,
};
use prost::Message as _;
use tonic::transport::Channel;

use crate::{
    abuse::frames::{
        ACK, DATA, END_STREAM, Frame, GOAWAY, HEADERS, Http2, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE,
        PING, SETTINGS, SUBSCRIBE, call, frame, settings, window_update,
    },
    support::{Bridge, SOON, Setup},
};

/// What every connection begins with, and many streams do.
const USUAL_WINDOW_BYTES: u32 = 65_535;
/// As much as no test is sent.
const WIDE_BYTES: u32 = 1 << 30;
/// The largest window (RFC 9113, 6.9.1).
const LARGEST_BYTES: u32 = (1 << 31) - 1;
const GRPC_PREFIX_BYTES: usize = 5;
/// The largest frame of a client that says nothing of it (RFC 9113, 6.5.2).
const USUAL_FRAME_BYTES: u32 = 16_384;

/// How a client opens a stream's window.
#[derive(Clone, Copy, Debug)]
enum Opening {
    /// By one byte, whenever it is used up.
    ByByte,
    /// By what came, after each piece.
    ByPiece,
    /// Only once it is used up: for the rest of a prefix, and for up to so much of a message whose
    /// prefix has come. This is what gRPC's core does when nobody measures its connection.
    AfterPrefix(u32),
}

/// How a client reads.
#[derive(Clone, Copy, Debug)]
struct Reading {
    /// What the window of each stream begins with.
    initial_bytes: u32,
    opening: Opening,
    streams: u32,
    /// All that may be on the way together, given back when it was used up. It is the usual at least
    /// until that was used up for the first time.
    connection_bytes: u32,
    frame_bytes: u32,
    /// What the window of new streams is set to, one after the other, with each seventh frame that
    /// comes. It changes the windows of those that are open.
    changes: &'static [u32],
    /// Measures the connection with every frame that comes.
    pings: bool,
}

impl Reading {
    fn new(initial_bytes: u32, opening: Opening) -> Self {
        Self {
            initial_bytes,
            opening,
            streams: 1,
            connection_bytes: WIDE_BYTES,
            frame_bytes: USUAL_FRAME_BYTES,
            changes: &[],
            pings: false,
        }
    }
}

/// One stream of a connection, seen from its client.
struct Stream {
    id: u32,
    opening: Opening,
    /// How much may still be sent; below zero, how much has to be opened before anything may.
    window_bytes: i64,
    partial: Vec<u8>,
    events: Vec<Event>,
    is_open: bool,
}

impl Stream {
    fn new(id: u32, opening: Opening, window_bytes: u32) -> Self {
        Self {
            id,
            opening,
            window_bytes: window_bytes.into(),
            partial: Vec::new(),
            events: Vec::new(),
            is_open: true,
        }
    }

    /// Takes a piece.
    fn take(&mut self, piece: &[u8]) {
        self.window_bytes -= i64::try_from(piece.len()).unwrap();
        self.partial.extend_from_slice(piece);
        while let Some(0) = self.missing_bytes() {
            let message = std::mem::take(&mut self.partial);
            let (message, rest) = message.split_at(GRPC_PREFIX_BYTES + Self::length(&message));
            let response = SubscribeResponse::decode(&message[GRPC_PREFIX_BYTES..]).unwrap();
            self.events.extend(response.events);
            self.partial = rest.to_vec();
        }
    }

    fn length(message: &[u8]) -> usize {
        u32::from_be_bytes(message[1..GRPC_PREFIX_BYTES].try_into().unwrap()) as usize
    }

    /// What is missing of the message that has begun, once its prefix is there.
    fn missing_bytes(&self) -> Option<usize> {
        let content = self.partial.len().checked_sub(GRPC_PREFIX_BYTES)?;
        Some(Self::length(&self.partial).saturating_sub(content))
    }

    /// By how much the window is opened now, after a piece of so many bytes.
    fn opens(&mut self, piece_bytes: usize) -> Option<Vec<u8>> {
        let missing_bytes = || match self.missing_bytes() {
            Some(bytes) => bytes,
            None => GRPC_PREFIX_BYTES - self.partial.len(),
        };
        let bytes = match self.opening {
            Opening::ByPiece => i64::try_from(piece_bytes).unwrap(),
            _ if self.window_bytes > 0 => 0,
            Opening::ByByte => 1 - self.window_bytes,
            Opening::AfterPrefix(most) => {
                i64::try_from(missing_bytes()).unwrap().min(most.into()) - self.window_bytes
            }
        };
        self.window_bytes += bytes;
        let update = || window_update(self.id, u32::try_from(bytes).unwrap());
        (bytes > 0 && self.is_open).then(update)
    }
}

/// All that is there, as it was signed.
fn history() -> SubscribeRequest {
    SubscribeRequest {
        start: Some(StartPosition {
            position: Some(start_position::Position::Earliest(Earliest {})),
        }),
        stop: Some(StopPosition {
            position: Some(stop_position::Position::Head(Head {})),
            max_events: 0,
        }),
        payload_format: PayloadFormat::Raw.into(),
        ..SubscribeRequest::default()
    }
}

fn subscribe(stream: u32, request: &SubscribeRequest) -> Vec<u8> {
    let body = request.encode_to_vec();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [&[0], &length[..], &body].concat();
    let message = frame(DATA, END_STREAM, stream, &message);
    [call(stream, SUBSCRIBE), message].concat()
}

/// Reads streams over one connection, and returns the events of each.
async fn read(bridge: &Bridge, reading: Reading) -> Vec<Vec<Event>> {
    let Reading {
        mut initial_bytes,
        opening,
        connection_bytes,
        frame_bytes,
        ..
    } = reading;
    let start = &[
        (INITIAL_WINDOW_SIZE, initial_bytes),
        (MAX_FRAME_SIZE, frame_bytes),
    ];
    let mut connection = Http2::begin(bridge.addresses.grpc, start).await.unwrap();
    if connection_bytes > USUAL_WINDOW_BYTES {
        let more = window_update(0, connection_bytes - USUAL_WINDOW_BYTES);
        connection.send(&more).await.unwrap();
    }
    let ids = (0..reading.streams).map(|number| 2 * number + 1);
    let mut all: Vec<Stream> = ids
        .map(|id| Stream::new(id, opening, initial_bytes))
        .collect();
    for stream in &mut all {
        connection
            .send(&subscribe(stream.id, &history()))
            .await
            .unwrap();
        if let Some(update) = stream.opens(0) {
            connection.send(&update).await.unwrap();
        }
    }
    let mut changes = reading.changes.iter().cycle();
    // Those that the bridge has not acknowledged.
    let mut settings_sent = 1;
    let mut frames = 0;
    let mut connection_left_bytes = connection_bytes.max(USUAL_WINDOW_BYTES);
    while all.iter().any(|stream| stream.is_open) {
        // A change can leave all windows below zero with nothing on the way that they would be opened for.
        let mut open = all.iter().filter(|stream| stream.is_open);
        if open.all(|stream| stream.window_bytes <= 0) {
            let updates = all.iter_mut().filter_map(|stream| stream.opens(0));
            connection
                .send(&updates.collect::<Vec<_>>().concat())
                .await
                .unwrap();
        }
        let frame = connection.next().await.unwrap();
        if let Some(answer) = answer(&frame) {
            connection.send(&answer).await.unwrap();
        }
        if frame.kind == SETTINGS && frame.flags & ACK != 0 {
            settings_sent -= 1;
        }
        if frame.kind == DATA {
            frames += 1;
            if frames % 7 == 0
                && let Some(&change) = changes.next()
            {
                for stream in &mut all {
                    stream.window_bytes += i64::from(change) - i64::from(initial_bytes);
                }
                initial_bytes = change;
                settings_sent += 1;
                let change = settings(&[(INITIAL_WINDOW_SIZE, change)]);
                connection.send(&change).await.unwrap();
            }
        }
        let Some(stream) = all.iter_mut().find(|stream| stream.id == frame.stream) else {
            continue;
        };
        match frame.kind {
            DATA => {
                let length = u32::try_from(frame.payload.len()).unwrap();
                assert!(length <= frame_bytes);
                stream.take(&frame.payload);
                assert!(settings_sent > 0 || stream.window_bytes >= 0, "{reading:?}");
                let left = connection_left_bytes.checked_sub(length);
                connection_left_bytes = left.unwrap();
                let mut updates = stream.opens(frame.payload.len()).unwrap_or_default();
                if connection_left_bytes == 0 {
                    updates.extend(window_update(0, connection_bytes));
                    connection_left_bytes = connection_bytes;
                }
                if reading.pings {
                    updates.extend(self::frame(PING, 0, 0, &[7; 8]));
                }
                connection.send(&updates).await.unwrap();
            }
            // Without an error there is no more to it than that it comes after all messages.
            HEADERS if frame.flags & END_STREAM != 0 => {
                assert!(
                    stream.partial.is_empty(),
                    "not whole: {reading:?}, {frame:?}"
                );
                stream.is_open = false;
            }
            kind => assert_eq!(kind, HEADERS, "{frame:?}"),
        }
    }
    all.into_iter().map(|stream| stream.events).collect()
}

fn answer(of: &Frame) -> Option<Vec<u8>> {
    match of.kind {
        SETTINGS if of.flags & ACK == 0 => Some(frame(SETTINGS, ACK, 0, &[])),
        PING if of.flags & ACK == 0 => Some(frame(PING, ACK, 0, &of.payload)),
        GOAWAY => unreachable!("{of:?}"),
        _ => None,
    }
}

/// An event with so many bytes beside those that every event has.
pub(crate) fn event(number: usize, bytes: usize) -> String {
    let padding = "x".repeat(bytes);
    format!(r#"{{"id":"evt_{number}","type":"user.padded","x":"{padding}"}}"#)
}

/// Sizes from a byte to almost a MiB, 60 MB in all.
pub(crate) fn sizes() -> Vec<usize> {
    (0..1_000)
        .map(|number| match number % 25 {
            0 => 1_048_000 - 137 * number,
            5 | 10 | 15 | 20 => 100_000 + number,
            other => [1, 20, 300, 4_000, 16_000][other % 5] + other,
        })
        .collect()
}

/// A bridge with events of these sizes, and what they are as they were signed.
pub(crate) async fn bridge_with(sizes: &[usize]) -> (Bridge, Vec<String>) {
    // What takes no byte for ten seconds is ended, and the test with it.
    let setup = Setup::default()
        .with("store", "memory")
        .with("limits.grpc.slow_consumer_timeout", "10s");
    let bridge = setup.start().await;
    let numbered = sizes.iter().enumerate();
    let events: Vec<String> = numbered
        .map(|(number, &bytes)| event(number, bytes))
        .collect();
    for batch in batches(&events) {
        bridge.append(batch).await;
    }
    (bridge, events)
}

/// The events in batches of at most a hundred, and of at most one large one.
fn batches(events: &[String]) -> Vec<&[String]> {
    let mut batches = Vec::new();
    let mut rest = events;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fitting = rest.iter().take(100).take_while(|event| {
            bytes += event.len();
            bytes < 100_000
        });
        let count = fitting.count().max(1);
        let (batch, more) = rest.split_at(count);
        batches.push(batch);
        rest = more;
    }
    batches
}

#[track_caller]
fn assert_whole(case: &str, events: &[Event], expected: &[String]) {
    assert_eq!(events.len(), expected.len(), "{case}");
    for (event, expected) in events.iter().zip(expected) {
        assert!(
            event.raw_json == expected.as_bytes(),
            "{case}: event {} is another",
            event.sequence
        );
    }
}

async fn all_arrive(bridge: &Bridge, expected: &[String], reading: Reading) {
    let case = format!("{reading:?}");
    let streams = tokio::time::timeout(SOON, read(bridge, reading)).await;
    let streams = streams.unwrap_or_else(|_| unreachable!("{case}: not all came"));
    for events in streams {
        assert_whole(&case, &events, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_that_open_after_a_prefix_get_events_of_all_sizes() {
    let sizes = [1, 100_000, 100_000, 1_000, 1, 1_040_000, 16_384, 100_000, 3];
    let (bridge, expected) = bridge_with(&sizes).await;
    for initial_bytes in [0, 1, 5, 9, 100, 16_383, USUAL_WINDOW_BYTES] {
        for most in [16 * 1024, u32::MAX] {
            let reading = Reading::new(initial_bytes, Opening::AfterPrefix(most));
            all_arrive(&bridge, &expected, reading).await;
        }
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_that_open_by_the_piece_get_events_of_all_sizes() {
    let sizes = [1, 100_000, 1_000, 1, 1_040_000, 16_384, 3];
    let (bridge, expected) = bridge_with(&sizes).await;
    for initial_bytes in [5_000, 16_383, USUAL_WINDOW_BYTES, LARGEST_BYTES] {
        let reading = Reading::new(initial_bytes, Opening::ByPiece);
        all_arrive(&bridge, &expected, reading).await;
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_of_a_few_bytes_that_open_by_a_few_bytes_get_small_events() {
    let (bridge, expected) = bridge_with(&[1, 300, 2, 700]).await;
    for initial_bytes in [0, 1, 5] {
        let reading = Reading::new(initial_bytes, Opening::ByByte);
        all_arrive(&bridge, &expected, reading).await;
    }
    for initial_bytes in [1, 5, 9, 100] {
        let reading = Reading::new(initial_bytes, Opening::ByPiece);
        all_arrive(&bridge, &expected, reading).await;
    }
    bridge.finish().await;
}

/// Each byte is replied to with as many frames as a client has to say.
#[tokio::test(flavor = "multi_thread")]
async fn who_replies_to_each_byte_is_no_flood() {
    let setup = Setup::default()
        .with("store", "memory")
        .with("limits.grpc.frames_at_first", "100")
        .with("limits.grpc.frames_per_second", "500");
    let bridge = setup.start().await;
    let expected = [event(0, 100)];
    bridge.append(&expected).await;
    let reading = Reading {
        pings: true,
        ..Reading::new(1, Opening::ByByte)
    };
    all_arrive(&bridge, &expected, reading).await;
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_that_shrink_below_zero_get_events_of_all_sizes() {
    let sizes = [1, 100_000, 1_000, 1, 500_000, 16_384, 3];
    let (bridge, expected) = bridge_with(&sizes).await;
    for opening in [Opening::ByPiece, Opening::AfterPrefix(16 * 1024)] {
        for changes in [
            &[100, USUAL_WINDOW_BYTES][..],
            &[1, 20_000, 1_000, LARGEST_BYTES / 2],
        ] {
            let reading = Reading {
                streams: 3,
                changes,
                ..Reading::new(USUAL_WINDOW_BYTES, opening)
            };
            all_arrive(&bridge, &expected, reading).await;
        }
    }
    bridge.finish().await;
}

/// In Rust, as by the library.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_tonic_with_windows_of_its_own_gets_events_of_all_sizes() {
    let (bridge, expected) = bridge_with(&sizes()).await;
    let url = format!("http://{}", bridge.addresses.grpc);
    for (stream_bytes, connection_bytes) in [
        (16_383, USUAL_WINDOW_BYTES),
        (USUAL_WINDOW_BYTES, USUAL_WINDOW_BYTES),
        (LARGEST_BYTES, USUAL_WINDOW_BYTES),
    ] {
        let endpoint = Channel::from_shared(url.clone()).unwrap();
        let endpoint = endpoint
            .initial_stream_window_size(stream_bytes)
            .initial_connection_window_size(connection_bytes);
        let reading = async {
            let mut client = EventServiceClient::new(endpoint.connect().await.unwrap());
            let mut stream = client.subscribe(history()).await.unwrap().into_inner();
            let mut events = Vec::new();
            while let Some(response) = stream.message().await.unwrap() {
                events.extend(response.events);
            }
            events
        };
        let events = tokio::time::timeout(Duration::from_secs(10), reading).await;
        let case = format!("{stream_bytes} {connection_bytes}");
        assert_whole(&case, &events.expect(&case), &expected);
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_are_as_large_as_the_client_allows_and_no_larger() {
    let sizes = [1, 100_000, 1_000, 1, 1_040_000, 16_384, 3];
    let (bridge, expected) = bridge_with(&sizes).await;
    for frame_bytes in [USUAL_FRAME_BYTES, 16_385, 99_991, (1 << 24) - 1] {
        for initial_bytes in [16_383, USUAL_WINDOW_BYTES, LARGEST_BYTES] {
            let reading = Reading {
                frame_bytes,
                ..Reading::new(initial_bytes, Opening::ByPiece)
            };
            all_arrive(&bridge, &expected, reading).await;
        }
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_window_smaller_than_those_of_its_streams_is_kept() {
    let (bridge, expected) = bridge_with(&[1, 50_000, 1_000, 1, 70_000, 3]).await;
    for connection_bytes in [100, 1_000, 16_383] {
        for streams in [1, 3] {
            let reading = Reading {
                streams,
                connection_bytes,
                ..Reading::new(LARGEST_BYTES, Opening::ByPiece)
            };
            all_arrive(&bridge, &expected, reading).await;
        }
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_one_connection_all_arrive_whatever_its_window() {
    let (bridge, expected) = bridge_with(&[1, 100_000, 1_000, 300_000, 20]).await;
    for opening in [Opening::ByPiece, Opening::AfterPrefix(16 * 1024)] {
        for initial_bytes in [1_000, USUAL_WINDOW_BYTES, WIDE_BYTES] {
            let reading = Reading {
                streams: 8,
                connection_bytes: USUAL_WINDOW_BYTES,
                ..Reading::new(initial_bytes, opening)
            };
            all_arrive(&bridge, &expected, reading).await;
        }
    }
    bridge.finish().await;
}
