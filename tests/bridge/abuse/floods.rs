//! Frames of HTTP/2 that cost their sender nothing, by the hundred thousand.

use std::time::{Duration, Instant};

use super::{
    Guarded,
    frames::{
        ACK, CANCEL, CONTINUATION, DATA, END_HEADERS, ENHANCE_YOUR_CALM, End, Flooded, HEADERS,
        Http2, PING, PRIORITY, SUBSCRIBE, call, call_block, frame, literal, reset, settings,
        whole_call, window_update,
    },
    within,
};
use crate::support::Setup;

/// How long a flood may last until it is recognised as one.
const RECOGNISED: Duration = Duration::from_secs(2);

/// How long an attacker goes on, with a connection after the other.
const PERSISTENCE: Duration = Duration::from_secs(1);

/// Floods on connection after connection, with a pause between them as the attack shares the cores
/// with those who are attacked. Returns what became of each.
async fn flood(guarded: &Guarded, start: &[u8], bytes: &[u8], times: usize) -> Vec<Flooded> {
    let mut floods = Vec::new();
    let until = Instant::now() + PERSISTENCE;
    while Instant::now() < until {
        let mut connection = Http2::begin(guarded.bridge.addresses.grpc, &[])
            .await
            .unwrap();
        let _ = connection.send(start).await;
        floods.push(within(RECOGNISED, connection.flood(bytes, times)).await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    floods
}

/// Streams that are opened and reset at once, in one go.
fn rapid_resets(count: u32) -> Vec<u8> {
    let streams = (0..count).map(|number| 2 * number + 1);
    streams
        .flat_map(|stream| [call(stream, SUBSCRIBE), reset(stream, CANCEL)].concat())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_frames_end_their_connection_and_nobody_elses() {
    let guarded = Guarded::start(Setup::default()).await;
    let open = [literal(b"x", b"y"), call_block(SUBSCRIBE)].concat();
    let unfinished = frame(HEADERS, 0, 1, &call_block(SUBSCRIBE));
    let hundred: Vec<u8> = (0..100)
        .flat_map(|n| whole_call(2 * n + 1, SUBSCRIBE))
        .collect();
    let windows = [settings(&[(4, 1)]), settings(&[(4, 70_000)])].concat();
    let empty_data = [call(1, SUBSCRIBE), frame(DATA, 0, 1, &[])].concat();
    let block = literal(b"x-flood", &[b'x'; 1000]);
    for (name, start, bytes, times) in [
        ("rapid reset", vec![], rapid_resets(10_000), 1),
        (
            "CONTINUATION",
            unfinished.clone(),
            frame(CONTINUATION, 0, 1, &block),
            50_000,
        ),
        (
            "empty CONTINUATION",
            unfinished,
            frame(CONTINUATION, 0, 1, &[]).repeat(1_000),
            500,
        ),
        (
            "empty DATA",
            empty_data,
            frame(DATA, 0, 1, &[]).repeat(1_000),
            500,
        ),
        (
            "SETTINGS",
            vec![],
            settings(&[(4, 65_535)]).repeat(1_000),
            500,
        ),
        (
            "SETTINGS with 100 streams",
            hundred,
            windows.repeat(500),
            500,
        ),
        (
            "SETTINGS acknowledgements",
            vec![],
            frame(4, ACK, 0, &[]).repeat(1_000),
            500,
        ),
        (
            "PING",
            vec![],
            frame(PING, 0, 0, &[7; 8]).repeat(1_000),
            500,
        ),
        (
            "PING acknowledgements",
            vec![],
            frame(PING, ACK, 0, &[7; 8]).repeat(1_000),
            500,
        ),
        (
            "PRIORITY",
            vec![],
            frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 9]).repeat(1_000),
            500,
        ),
        (
            "WINDOW_UPDATE by one",
            vec![],
            window_update(0, 1).repeat(1_000),
            500,
        ),
        (
            "unknown frames",
            vec![],
            frame(0x42, 0, 0, b"what?").repeat(1_000),
            500,
        ),
        (
            "malformed calls",
            vec![],
            {
                let streams = (0..10_000u32).map(|n| 2 * n + 1);
                let _ = &open;
                streams
                    .flat_map(|stream| frame(HEADERS, END_HEADERS, stream, &open))
                    .collect()
            },
            1,
        ),
    ] {
        let attack = flood(&guarded, &start, &bytes, times);
        let floods = guarded.under(name, attack).await;
        eprintln!("{name}: {} connections, {:?}", floods.len(), floods.first());
        if std::env::var("ABUSE_ASSERT").is_ok() {
            for flooded in floods {
                assert_eq!(flooded.end, Some(End::GoAway(ENHANCE_YOUR_CALM)), "{name}");
            }
        }
    }
    guarded.finish().await;
}
