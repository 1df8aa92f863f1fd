//! Frames of HTTP/2 that cost their sender nothing, by the hundred thousand.

use std::time::{Duration, Instant};

use super::{
    Guarded,
    frames::{
        ACK, CANCEL, CONTINUATION, DATA, END_HEADERS, ENHANCE_YOUR_CALM, End, Flooded, GET_RANGE,
        HEADERS, Http2, PING, PRIORITY, SUBSCRIBE, call, call_block, frame, literal, reset,
        settings, whole_call, window_update,
    },
    within,
};
use crate::support::Setup;

/// How long a flood may last until it is recognised as one.
const RECOGNISED: Duration = Duration::from_secs(2);

/// How long an attacker goes on, with a connection after the other.
const PERSISTENCE: Duration = Duration::from_secs(2);

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

/// Calls with a header before those that have to come first: each is answered with a reset.
fn malformed_calls(count: u32) -> Vec<u8> {
    let block = [literal(b"x", b"y"), call_block(SUBSCRIBE)].concat();
    let streams = (0..count).map(|number| 2 * number + 1);
    streams
        .flat_map(|stream| frame(HEADERS, END_HEADERS, stream, &block))
        .collect()
}

const CLOSED: &str = r#"prelude_bridge_connections_closed_total{listener="grpc",reason="flood"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_frames_end_their_connection_and_nobody_elses() {
    let guarded = Guarded::start(Setup::default()).await;
    let unfinished = frame(HEADERS, 0, 1, &call_block(SUBSCRIBE));
    let hundred: Vec<u8> = (0..100)
        .flat_map(|n| whole_call(2 * n + 1, SUBSCRIBE))
        .collect();
    let windows = [settings(&[(4, 1)]), settings(&[(4, 70_000)])].concat();
    let half_a_call = call(1, SUBSCRIBE);
    let block = literal(b"x-flood", &[b'x'; 1000]);
    let thousand = |frame: Vec<u8>| frame.repeat(1_000);
    // Each with what comes before it, and how often it is sent if nobody minds.
    for (name, start, bytes, times) in [
        ("rapid reset", vec![], rapid_resets(10_000), 1),
        ("malformed calls", vec![], malformed_calls(10_000), 1),
        (
            "CONTINUATION",
            unfinished.clone(),
            frame(CONTINUATION, 0, 1, &block),
            50_000,
        ),
        (
            "empty CONTINUATION",
            unfinished,
            thousand(frame(CONTINUATION, 0, 1, &[])),
            500,
        ),
        (
            "empty DATA",
            half_a_call.clone(),
            thousand(frame(DATA, 0, 1, &[])),
            500,
        ),
        ("SETTINGS", vec![], thousand(settings(&[(4, 65_535)])), 500),
        ("SETTINGS with 100 streams", hundred, thousand(windows), 500),
        ("PING", vec![], thousand(frame(PING, 0, 0, &[7; 8])), 500),
        (
            "PING acknowledgements",
            vec![],
            thousand(frame(PING, ACK, 0, &[7; 8])),
            500,
        ),
        (
            "PRIORITY",
            vec![],
            thousand(frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 9])),
            500,
        ),
        (
            "WINDOW_UPDATE",
            half_a_call,
            thousand(window_update(1, 1)),
            500,
        ),
        (
            "unknown frames",
            vec![],
            thousand(frame(0x42, 0, 0, b"what?")),
            500,
        ),
    ] {
        let before = guarded.bridge.metric(CLOSED).await.unwrap_or(0.0);
        let attack = async || flood(&guarded, &start, &bytes, times).await;
        let floods: Vec<Flooded> = (guarded.under(name, attack).await.into_iter())
            .flatten()
            .collect();
        let sent = floods.iter().map(|flooded| flooded.sent * bytes.len());
        let most = sent.max().unwrap_or(0) / 1024;
        eprintln!(
            "{name}: {} connections, at most {most} KiB taken",
            floods.len()
        );
        for flooded in &floods {
            // The word is lost where the connection is closed on what was still coming.
            let told = [End::GoAway(ENHANCE_YOUR_CALM), End::Closed].map(Some);
            assert!(told.contains(&flooded.end), "{name}: {flooded:?}");
        }
        guarded
            .bridge
            .counts_at_least(CLOSED, before + floods.len() as f64)
            .await;
    }
    guarded.finish().await;
}

/// Streams that are opened and given up a moment later, never many at once: what a client does that
/// changes its mind. It is slow enough to be a client's right, and must cost nobody anything.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_given_up_one_by_one_are_no_flood() {
    let guarded = Guarded::start(Setup::default()).await;
    let attack = async || {
        let address = guarded.bridge.addresses.grpc;
        let mut connection = Http2::begin(address, &[]).await.unwrap();
        // Room for all that the streams begin with.
        connection.send(&window_update(0, 1 << 24)).await.unwrap();
        for number in 0..1_000 {
            let stream = 2 * number + 1;
            connection
                .send(&whole_call(stream, SUBSCRIBE))
                .await
                .unwrap();
            while connection.next().await.unwrap().stream != stream {}
            connection.send(&reset(stream, CANCEL)).await.unwrap();
        }
        connection
            .send(&whole_call(2_001, GET_RANGE))
            .await
            .unwrap();
        assert!(connection.until_ended(2_001).await.is_some());
    };
    guarded.under("1,000 calls given up", attack).await;
    let gone = r#"prelude_bridge_streams_ended_total{reason="CLIENT_GONE"}"#;
    guarded.bridge.counts_at_least(gone, 1_000.0).await;
    guarded.finish().await;
}
