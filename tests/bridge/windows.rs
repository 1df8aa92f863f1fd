//! Clients that open their HTTP/2 windows in small steps, late, or only once they know how long a
//! message is, frame by frame. Whatever they do, as long as they open them, every event arrives whole
//! and in order. `tools.rs` has clients that do so by themselves.

use prelude_bridge::proto::{
    Earliest, Event, Head, PayloadFormat, StartPosition, StopPosition, SubscribeRequest,
    SubscribeResponse, start_position, stop_position,
};
use prost::Message as _;

use crate::{
    abuse::frames::{
        ACK, DATA, END_STREAM, Frame, GOAWAY, HEADERS, Http2, INITIAL_WINDOW_SIZE, PING, SETTINGS,
        SUBSCRIBE, call, frame, window_update,
    },
    support::{Bridge, SOON, Setup},
};

/// What every connection begins with, and many streams do.
const USUAL_WINDOW_BYTES: u32 = 65_535;
/// As much as no test is sent.
const WIDE_BYTES: u32 = 1 << 30;
const GRPC_PREFIX_BYTES: usize = 5;

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

/// One stream of a connection, seen from its client.
struct Stream {
    id: u32,
    opening: Opening,
    /// How much may still be sent.
    window_bytes: u32,
    partial: Vec<u8>,
    events: Vec<Event>,
    is_open: bool,
}

impl Stream {
    fn new(id: u32, opening: Opening, window_bytes: u32) -> Self {
        Self {
            id,
            opening,
            window_bytes,
            partial: Vec::new(),
            events: Vec::new(),
            is_open: true,
        }
    }

    /// Takes a piece.
    fn take(&mut self, piece: &[u8]) {
        self.window_bytes -= u32::try_from(piece.len()).unwrap();
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
        let bytes = match self.opening {
            Opening::ByPiece => u32::try_from(piece_bytes).unwrap(),
            _ if self.window_bytes > 0 => 0,
            Opening::ByByte => 1,
            Opening::AfterPrefix(most) => match self.missing_bytes() {
                Some(bytes) => u32::try_from(bytes).unwrap().min(most),
                None => u32::try_from(GRPC_PREFIX_BYTES - self.partial.len()).unwrap(),
            },
        };
        self.window_bytes += bytes;
        (bytes > 0 && self.is_open).then(|| window_update(self.id, bytes))
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

/// Reads as many streams as there are windows, over one connection, and returns their events.
/// `connection_bytes` is all that may be on the way together, given back when it was used up.
async fn read(
    bridge: &Bridge,
    initial_bytes: u32,
    opening: Opening,
    streams: u32,
    connection_bytes: u32,
) -> Vec<Vec<Event>> {
    let start = &[(INITIAL_WINDOW_SIZE, initial_bytes)];
    let mut connection = Http2::begin(bridge.addresses.grpc, start).await.unwrap();
    if connection_bytes > USUAL_WINDOW_BYTES {
        let more = window_update(0, connection_bytes - USUAL_WINDOW_BYTES);
        connection.send(&more).await.unwrap();
    }
    let ids = (0..streams).map(|number| 2 * number + 1);
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
    let mut used_bytes = 0;
    while all.iter().any(|stream| stream.is_open) {
        let frame = connection.next().await.unwrap();
        if let Some(answer) = answer(&frame) {
            connection.send(&answer).await.unwrap();
        }
        let Some(stream) = all.iter_mut().find(|stream| stream.id == frame.stream) else {
            continue;
        };
        match frame.kind {
            DATA => {
                stream.take(&frame.payload);
                used_bytes += u32::try_from(frame.payload.len()).unwrap();
                let mut updates = stream.opens(frame.payload.len()).unwrap_or_default();
                if used_bytes >= connection_bytes {
                    updates.extend(window_update(0, used_bytes));
                    used_bytes = 0;
                }
                connection.send(&updates).await.unwrap();
            }
            // Without an error there is no more to it than that it comes after all messages.
            HEADERS if frame.flags & END_STREAM != 0 => {
                assert!(stream.partial.is_empty(), "the last message is whole");
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

async fn all_arrive(bridge: &Bridge, expected: &[String], initial_bytes: u32, opening: Opening) {
    let case = format!("{initial_bytes} {opening:?}");
    let reading = read(bridge, initial_bytes, opening, 1, WIDE_BYTES);
    let events = tokio::time::timeout(SOON, reading).await;
    let events = events.unwrap_or_else(|_| unreachable!("{case}: not all came"));
    assert_whole(&case, &events[0], expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_that_open_after_a_prefix_get_events_of_all_sizes() {
    let sizes = [1, 100_000, 100_000, 1_000, 1, 1_040_000, 16_384, 100_000, 3];
    let (bridge, expected) = bridge_with(&sizes).await;
    for initial_bytes in [0, 1, 5, 100, USUAL_WINDOW_BYTES] {
        for most in [16 * 1024, u32::MAX] {
            let opening = Opening::AfterPrefix(most);
            all_arrive(&bridge, &expected, initial_bytes, opening).await;
        }
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_that_open_by_the_piece_get_events_of_all_sizes() {
    let sizes = [1, 100_000, 1_000, 1, 1_040_000, 16_384, 3];
    let (bridge, expected) = bridge_with(&sizes).await;
    for initial_bytes in [5_000, USUAL_WINDOW_BYTES] {
        all_arrive(&bridge, &expected, initial_bytes, Opening::ByPiece).await;
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_of_a_few_bytes_that_open_by_a_few_bytes_get_small_events() {
    let (bridge, expected) = bridge_with(&[1, 300, 2, 700]).await;
    for initial_bytes in [0, 1, 5] {
        all_arrive(&bridge, &expected, initial_bytes, Opening::ByByte).await;
    }
    for initial_bytes in [1, 5, 100] {
        all_arrive(&bridge, &expected, initial_bytes, Opening::ByPiece).await;
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_one_connection_all_arrive_whatever_its_window() {
    let (bridge, expected) = bridge_with(&[1, 100_000, 1_000, 300_000, 20]).await;
    for opening in [Opening::ByPiece, Opening::AfterPrefix(16 * 1024)] {
        for initial_bytes in [1_000, USUAL_WINDOW_BYTES, WIDE_BYTES] {
            let case = format!("{initial_bytes} {opening:?}");
            let reading = read(&bridge, initial_bytes, opening, 8, USUAL_WINDOW_BYTES);
            let streams = tokio::time::timeout(SOON, reading).await;
            let streams = streams.unwrap_or_else(|_| unreachable!("{case}: not all came"));
            for events in streams {
                assert_whole(&case, &events, &expected);
            }
        }
    }
    bridge.finish().await;
}
