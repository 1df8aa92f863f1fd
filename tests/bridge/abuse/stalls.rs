//! Subscribers who do not take what they asked for.

use std::time::Duration;

use prelude_bridge::proto::{
    Earliest, Filter, StartPosition, SubscribeRequest, start_position::Position,
};
use prost::Message as _;
use tokio::{io::AsyncWriteExt as _, task::JoinSet};

use super::{
    Guarded,
    frames::{
        DATA, END_STREAM, HEADERS, Http2, INITIAL_WINDOW_SIZE, PREFACE, SUBSCRIBE, call, frame,
        settings, window_update,
    },
    sockets, within,
};
use crate::support::{Setup, item};

const SLOW_CONSUMER_TIMEOUT: Duration = Duration::from_secs(1);
/// A ping every second, and a second for its answer.
const PING_TIMEOUTS: Duration = Duration::from_secs(2);

const WIDE_WINDOW_BYTES: u32 = i32::MAX as u32;

/// A bridge with some history.
async fn guarded() -> Guarded {
    let setup = Setup::default()
        .with("store", "memory")
        .with("limits.grpc.ping_interval", "1s")
        .with("limits.grpc.ping_timeout", "1s")
        .with("limits.grpc.slow_consumer_timeout", "1s");
    let bridge = setup.start().await;
    for items in history_items().chunks(500) {
        bridge.append(items).await;
    }
    Guarded::of(bridge).await
}

/// Everything from the beginning, in runs of one event where only these are wanted.
fn history(stream: u32, types: &[&str]) -> Vec<u8> {
    let request = SubscribeRequest {
        start: Some(StartPosition {
            position: Some(Position::Earliest(Earliest {})),
        }),
        filter: Some(Filter {
            types: types.iter().map(|&name| name.to_owned()).collect(),
            ..Filter::default()
        }),
        ..SubscribeRequest::default()
    };
    let body = request.encode_to_vec();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [&[0], &length[..], &body].concat();
    let message = frame(DATA, END_STREAM, stream, &message);
    [call(stream, SUBSCRIBE), message].concat()
}

const STREAMS: u32 = 50;
const SLOW_CONSUMERS: &str = r#"prelude_bridge_streams_ended_total{reason="SLOW_CONSUMER"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn windows_that_never_open_end_their_streams_and_not_the_connection() {
    let guarded = guarded().await;
    let address = guarded.bridge.addresses.grpc;
    let mut ended = 0.0;
    for (name, stream_window) in [
        ("zero windows", 0),
        ("windows of ten bytes", 10),
        ("a connection whose window stays", WIDE_WINDOW_BYTES),
    ] {
        let attack = async || {
            let start = &[(INITIAL_WINDOW_SIZE, stream_window)];
            let mut connection = Http2::begin(address, start).await.unwrap();
            for number in 0..STREAMS {
                connection
                    .send(&history(2 * number + 1, &[]))
                    .await
                    .unwrap();
            }
            let mut open = STREAMS;
            while open > 0 {
                let frame = connection.next().await.unwrap();
                if frame.kind == 6 && frame.flags == 0 {
                    let pong = super::frames::frame(6, 1, 0, &frame.payload);
                    connection.send(&pong).await.unwrap();
                }
                if frame.ends() {
                    // With a status and not with a reset: it has the place to go on from.
                    assert_eq!(frame.kind, HEADERS);
                    open -= 1;
                }
            }
            connection
                .send(&super::frames::whole_call(999, super::frames::GET_RANGE))
                .await
                .unwrap();
        };
        let deadline = SLOW_CONSUMER_TIMEOUT + Duration::from_secs(5);
        let attack = async || within(deadline, attack()).await;
        let times = guarded.under(name, attack).await.len();
        ended += f64::from(STREAMS) * times as f64;
        guarded.bridge.counts_at_least(SLOW_CONSUMERS, ended).await;
    }
    guarded.finish().await;
}

/// Windows as wide as they get, on a socket that nobody reads, or reads a byte at a time.
#[tokio::test(flavor = "multi_thread")]
async fn who_opens_windows_and_does_not_read_is_cut_and_holds_little() {
    let closed =
        r#"prelude_bridge_connections_closed_total{listener="grpc",reason="ping_unanswered"}"#;
    let guarded = guarded().await;
    let address = guarded.bridge.addresses.grpc;
    let mut expected = 0.0;
    for (name, types, trickle) in [
        ("unread streams", &[][..], false),
        ("unread streams of runs of one", &["user.created"], false),
        ("streams that are read by the byte", &[], true),
    ] {
        let mut attack = async || {
            let mut deaf = JoinSet::new();
            for _ in 0..4 {
                let mut stream = sockets::connect_narrow(address).await.unwrap();
                let begin = settings(&[(INITIAL_WINDOW_SIZE, WIDE_WINDOW_BYTES)]);
                let wide = window_update(0, WIDE_WINDOW_BYTES - 65_535);
                let mut said = [PREFACE, &begin, &wide].concat();
                for number in 0..STREAMS {
                    said.extend(history(2 * number + 1, types));
                }
                stream.write_all(&said).await.unwrap();
                deaf.spawn(async move {
                    let mut pace = tokio::time::interval(Duration::from_millis(50));
                    loop {
                        pace.tick().await;
                        let gone = if trickle {
                            !sockets::reads_a_byte(&mut stream).await
                        } else {
                            // A frame of no known kind: it is refused once the other side is gone.
                            stream.write_all(&frame(0x42, 0, 0, &[])).await.is_err()
                        };
                        if gone {
                            return;
                        }
                    }
                });
            }
            // Who reads by the byte is cut as well, but sees it only after all that is on the way.
            expected += 4.0;
            guarded.bridge.counts_at_least(closed, expected).await;
            deaf.shutdown().await;
        };
        let attack = async || within(PING_TIMEOUTS, attack()).await;
        guarded.under(name, attack).await;
    }
    guarded.finish().await;
}

/// Two thousand events of two types in turn, of half a KiB.
fn history_items() -> Vec<String> {
    let types = ["user.created", "user.deleted"];
    (0..2_000)
        .map(|number| {
            let user = format!("usr_{number}_{}", "x".repeat(400));
            item(&format!("evt_history_{number}"), types[number % 2], &user)
        })
        .collect()
}
