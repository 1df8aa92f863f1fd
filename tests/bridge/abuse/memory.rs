//! Everything at once that takes memory on the gRPC port, against a bridge whose limits are small: it
//! takes no more than the table in `docs/operating.md` comes to for these limits.

use std::time::Duration;

use prelude_bridge::proto::{
    Earliest, Filter, StartPosition, SubscribeRequest, start_position::Position,
    subscribe_response::Notice,
};
use prost::Message as _;
use tokio::io::AsyncWriteExt as _;

use super::{
    Guarded,
    frames::{
        DATA, END_STREAM, INITIAL_WINDOW_SIZE, PREFACE, SUBSCRIBE, call, frame, settings,
        whole_call, window_update,
    },
    sockets,
};
use crate::support::{
    Setup, item,
    sender::eventually,
    stream::{Received, from},
};

const MIB: u64 = 1 << 20;
const WIDE_WINDOW_BYTES: u32 = i32::MAX as u32;
const WATCH: &str = "/grpc.health.v1.Health/Watch";

/// How many connections come, with a stream of each kind.
const CONNECTIONS: u32 = 200;
const HISTORY_EVENTS: usize = 6_000;
/// A debug build takes some ten milliseconds for the filters of a connection.
const BETWEEN_CONNECTIONS: Duration = Duration::from_millis(25);

const CONNECTIONS_MAX: u64 = 400;
const STREAMS_MAX: u64 = 1_000;
const FILTERS_MIB: u64 = 4;
const UNSENT_MIB: u64 = 8;
const HISTORY_STREAMS_MAX: u64 = 4;
const WINDOW_MIB: u64 = 4;

/// What the table comes to for these limits.
const DOCUMENTED_BYTES: u64 = {
    let unsent = 2 * UNSENT_MIB * MIB;
    let connections = CONNECTIONS_MAX * 112 * 1024;
    let streams = STREAMS_MAX * 32 * 1024;
    let filters = FILTERS_MIB * MIB + STREAMS_MAX * 1024;
    let history = HISTORY_STREAMS_MAX * 3 * MIB;
    let window = WINDOW_MIB * MIB * 5 / 4;
    unsent + connections + streams + filters + history + window
};

fn setup() -> Setup {
    let mib = |count: u64| format!("{count}MiB");
    Setup::default()
        .in_memory()
        .with("limits.grpc.connections_max", &CONNECTIONS_MAX.to_string())
        .with("limits.grpc.connections_per_address_max", "300")
        .with("limits.grpc.streams_max", &STREAMS_MAX.to_string())
        .with("limits.grpc.streams_per_address_max", "900")
        .with("limits.grpc.filters_bytes_max", &mib(FILTERS_MIB))
        .with("limits.grpc.unsent_total_bytes_max", &mib(UNSENT_MIB))
        .with(
            "limits.grpc.history_streams_max",
            &HISTORY_STREAMS_MAX.to_string(),
        )
        .with("limits.bus.window_bytes_max", &mib(WINDOW_MIB))
}

/// Everything from the beginning that matches a filter.
fn history(stream: u32, filter: Filter) -> Vec<u8> {
    let request = SubscribeRequest {
        start: Some(StartPosition {
            position: Some(Position::Earliest(Earliest {})),
        }),
        filter: Some(filter),
        ..SubscribeRequest::default()
    };
    let body = request.encode_to_vec();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [&[0], &length[..], &body].concat();
    let mut said = call(stream, SUBSCRIBE);
    for piece in message.chunks(16_000) {
        said.extend(frame(DATA, 0, stream, piece));
    }
    said.extend(frame(DATA, END_STREAM, stream, &[]));
    said
}

/// As many types as there may be, which no other filter has, and one that there are events of.
fn large_filter(number: u32) -> Filter {
    let name = |at: usize| format!("type_{number}_{at}.{}", "x".repeat(180));
    let mut types: Vec<String> = (0..250).map(name).collect();
    types.push("user.created".to_owned());
    Filter {
        types,
        ..Filter::default()
    }
}

fn types(names: &[&str]) -> Filter {
    Filter {
        types: names.iter().map(|&name| name.to_owned()).collect(),
        ..Filter::default()
    }
}

/// Opens windows as wide as they get, asks for everything, and reads nothing.
async fn deaf(address: std::net::SocketAddr, number: u32) -> tokio::net::TcpStream {
    let mut stream = sockets::connect_narrow(address).await.unwrap();
    let begin = settings(&[(INITIAL_WINDOW_SIZE, WIDE_WINDOW_BYTES)]);
    let wide = window_update(0, WIDE_WINDOW_BYTES - 65_535);
    let said = [
        PREFACE,
        &begin,
        &wide,
        &whole_call(1, WATCH),
        &history(3, Filter::default()),
        &history(5, types(&["user.created"])),
        &history(7, large_filter(number)),
    ];
    // A bridge that closes the connection meanwhile does what it may.
    let _ = stream.write_all(&said.concat()).await;
    stream
}

fn history_items() -> Vec<String> {
    let names = ["user.created", "user.deleted"];
    (0..HISTORY_EVENTS)
        .map(|number| {
            let user = format!("usr_{number}_{}", "x".repeat(400));
            item(&format!("evt_history_{number}"), names[number % 2], &user)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_at_once_takes_no_more_memory_than_the_limits_say() {
    let bridge = setup().start().await;
    for items in history_items().chunks(500) {
        bridge.append(items).await;
    }
    let mut guarded = Guarded::of(bridge).await;
    guarded.growth_bytes_max = DOCUMENTED_BYTES;
    let closed = r#"prelude_bridge_connections_closed_total{listener="grpc",reason="unread"}"#;
    let ended = r#"prelude_bridge_streams_ended_total{reason="SLOW_CONSUMER"}"#;
    let refused = r#"prelude_bridge_streams_ended_total{reason="LIMIT_STREAMS"}"#;
    let attack = async || {
        let address = guarded.bridge.addresses.grpc;
        let mut unread = Vec::new();
        for number in 0..CONNECTIONS {
            unread.push(deaf(address, number).await);
            // What each costs to begin with is not what this is about.
            tokio::time::sleep(BETWEEN_CONNECTIONS).await;
        }
        // Who reads gets everything meanwhile, and what those hold who do not.
        eventually(async || {
            let everything = from(Position::Earliest(Earliest {}));
            let mut client = guarded.bridge.client().await;
            let mut received = Received::subscribe(&mut client, everything).await.unwrap();
            received
                .until(|notice| matches!(notice, Notice::CaughtUp(_)))
                .await;
            assert!(received.sequences().len() >= HISTORY_EVENTS);
            let count = guarded.bridge.metric(closed).await.unwrap_or(0.0);
            (count > 0.0).then_some(())
        })
        .await;
        guarded.bridge.counts_at_least(ended, 1.0).await;
        guarded.bridge.counts_at_least(refused, 1.0).await;
        drop(unread);
    };
    guarded.under("everything at once", attack).await;
    guarded.finish().await;
}
