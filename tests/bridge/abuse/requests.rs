//! Connections to the gRPC port that never become calls, and calls that never become requests.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::task::JoinSet;

use super::{
    Guarded,
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, End, GET_RANGE, HEADERS,
        Http2, PREFACE, RST_STREAM, SUBSCRIBE, call, call_block, frame, indexed, literal,
        whole_call, window_update,
    },
    within,
};
use crate::support::Setup;

/// Attackers of one kind at once.
const CONNECTIONS: usize = 50;

/// How long a client may take to begin, and a request's message to come; not a setting.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// One ping and the time to answer it, in these tests.
const PING_TIMEOUTS: Duration = Duration::from_secs(2);

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const REFUSED_STREAM: u32 = 7;
const FRAME_SIZE_ERROR: u32 = 6;

async fn guarded() -> Guarded {
    let setup = Setup::default()
        .with("limits.grpc.ping_interval", "1s")
        .with("limits.grpc.ping_timeout", "1s")
        .with("limits.grpc.slow_consumer_timeout", "2s");
    Guarded::start(setup).await
}

/// Opens connections, says this on each, and waits for their ends.
async fn ends(guarded: &Guarded, begun: bool, saying: &[u8]) -> Vec<End> {
    let mut attacks = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let address = guarded.bridge.addresses.grpc;
        let connection = if begun {
            Http2::begin(address, &[]).await
        } else {
            Http2::silent(address).await
        };
        let mut connection = connection.unwrap();
        let _ = connection.send(saying).await;
        attacks.spawn(connection.end());
    }
    attacks.join_all().await
}

#[track_caller]
fn assert_all(ends: &[End], expected: End) {
    assert!(ends.iter().all(|&end| end == expected), "{ends:?}");
}

/// The name of a sample that counts closed connections.
fn closed(reason: &str) -> String {
    format!(r#"prelude_bridge_connections_closed_total{{listener="grpc",reason="{reason}"}}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_speak_is_cut_at_the_deadline() {
    let guarded = guarded().await;
    let kinds = [
        &b""[..],
        b"P",
        b"PRI * HTTP/2.0\r\n\r\nS",
        b"POST /x HTTP/1.1\r\nHost: b\r\nX: ",
    ];
    let waiting = async || {
        let attacks = kinds.map(|said| ends(&guarded, false, said));
        let attacks = futures_util::future::join_all(attacks);
        within(HEADER_TIMEOUT, attacks).await.concat()
    };
    let name = "nothing, a byte, half a preface, half a header";
    let ends_of_waiting = guarded.under(name, waiting).await;
    assert_all(&ends_of_waiting.concat(), End::Closed);
    guarded
        .bridge
        .counts_at_least(&closed("silent"), (kinds.len() * CONNECTIONS) as f64)
        .await;

    let tls = b"\x16\x03\x01\x00\x05hello\r\n\r\n";
    let attack = async || within(Duration::from_secs(1), ends(&guarded, false, tls)).await;
    let ends = guarded.under("another protocol", attack).await;
    assert_all(&ends.concat(), End::Closed);
    guarded
        .bridge
        .counts_at_least(&closed("protocol_error"), CONNECTIONS as f64)
        .await;
    guarded.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_answers_no_pings_is_cut() {
    let guarded = guarded().await;
    let half_headers = frame(HEADERS, 0, 1, &call_block(SUBSCRIBE));
    let kinds = [
        (false, PREFACE.to_vec()),
        (true, vec![]),
        (true, whole_call(1, SUBSCRIBE)),
        (true, half_headers),
    ];
    let attack = async || {
        let attacks = kinds
            .iter()
            .map(|(begun, said)| ends(&guarded, *begun, said));
        let attacks = futures_util::future::join_all(attacks);
        within(PING_TIMEOUTS, attacks).await.concat()
    };
    let name = "no pings answered, before and after a beginning, a call and half a header block";
    let ends_of_all = guarded.under(name, attack).await;
    assert_all(&ends_of_all.concat(), End::Closed);
    guarded
        .bridge
        .counts_at_least(
            &closed("ping_unanswered"),
            (kinds.len() * CONNECTIONS) as f64,
        )
        .await;
    guarded.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_never_comes_is_not_waited_for() {
    let guarded =
        Guarded::start(Setup::default().with("limits.grpc.slow_consumer_timeout", "2s")).await;
    let paths = [
        SUBSCRIBE,
        GET_RANGE,
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ];
    let attack = async || {
        let address = guarded.bridge.addresses.grpc;
        let mut connection = Http2::begin(address, &[]).await.unwrap();
        let mut open = Vec::new();
        for (number, path) in (0..).zip(paths.iter().cycle().take(96)) {
            let stream = 2 * number + 1;
            // Nothing, or half of a message.
            let begun = [&b""[..], &[0, 0, 0, 0, 9, 1, 1]][number as usize / 6 % 2];
            let said = [call(stream, path), frame(DATA, 0, stream, begun)].concat();
            connection.send(&said).await.unwrap();
            open.push(stream);
        }
        while !open.is_empty() {
            let frame = connection.next().await.unwrap();
            if frame.ends() {
                open.retain(|&stream| stream != frame.stream);
            }
        }
    };
    let attack = async || within(HEADER_TIMEOUT, attack()).await;
    guarded.under("messages that never come", attack).await;
    let refused = r#"prelude_bridge_streams_ended_total{reason="REQUEST_TIMEOUT"}"#;
    guarded.bridge.counts_at_least(refused, 16.0).await;
    guarded.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused_and_what_breaks_the_rules_ends_the_connection() {
    let guarded = guarded().await;
    let large = |bytes: usize| literal(b"x-large", &vec![b'x'; bytes]);
    let parts = |block: &[u8]| {
        let mut pieces = block.chunks(16_000);
        let mut said = frame(HEADERS, END_STREAM, 1, pieces.next().unwrap());
        for piece in pieces {
            said.extend(frame(CONTINUATION, 0, 1, piece));
        }
        said.extend(frame(CONTINUATION, END_HEADERS, 1, &[]));
        said
    };
    // One byte each, for four thousand bytes that both sides remember.
    let bomb = [
        call_block(SUBSCRIBE),
        indexed(b"x-bomb", &[b'x'; 4_000]),
        vec![0xbe; 10_000],
    ];
    let twice = [
        window_update(0, i32::MAX as u32),
        window_update(0, i32::MAX as u32),
    ]
    .concat();
    for (name, said, expected) in [
        (
            "headers of 100 KB",
            parts(&[call_block(SUBSCRIBE), large(100_000)].concat()),
            ENHANCE_YOUR_CALM,
        ),
        (
            "a bomb of headers",
            parts(&bomb.concat()),
            ENHANCE_YOUR_CALM,
        ),
        (
            "an endless number",
            frame(HEADERS, END_HEADERS, 1, &[0xff; 200]),
            // RFC 9113 has COMPRESSION_ERROR for it; h2 says this.
            PROTOCOL_ERROR,
        ),
        ("a window by zero", window_update(0, 0), PROTOCOL_ERROR),
        ("a window too wide", twice, FLOW_CONTROL_ERROR),
        (
            "data without a call",
            frame(DATA, 0, 1, b"x"),
            PROTOCOL_ERROR,
        ),
        (
            "a continuation of nothing",
            frame(CONTINUATION, 0, 1, b"x"),
            PROTOCOL_ERROR,
        ),
        (
            "a frame that is too long",
            frame(DATA, 0, 1, &[0; 20_000]),
            FRAME_SIZE_ERROR,
        ),
    ] {
        let attack = async || within(Duration::from_secs(1), ends(&guarded, true, &said)).await;
        let ends = guarded.under(name, attack).await.concat();
        // The word is lost where the connection is closed on what was still coming.
        let told = [End::GoAway(expected), End::Closed];
        assert!(
            ends.iter().all(|end| told.contains(end)),
            "{name}: {ends:?}"
        );
    }
    guarded
        .bridge
        .counts_at_least(&closed("flood"), CONNECTIONS as f64)
        .await;
    guarded
        .bridge
        .counts_at_least(&closed("protocol_error"), CONNECTIONS as f64)
        .await;
    guarded.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_concerns_one_call_leaves_the_connection_alone() {
    let guarded = Guarded::start(Setup::default()).await;
    let address = guarded.bridge.addresses.grpc;
    let declared = [&[0, 0, 1, 0, 1][..], b"x"].concat();
    let block = [
        call_block(SUBSCRIBE),
        literal(b"x-large", &[b'x'; 15_000]),
        literal(b"x-more", &[b'x'; 1_000]),
    ];
    let attack = async || {
        let mut connection = Http2::begin(address, &[]).await.unwrap();
        for (stream, said) in [
            (
                1,
                [call(1, SUBSCRIBE), frame(DATA, 0, 1, &declared)].concat(),
            ),
            (
                3,
                [
                    call(3, "/grpc.health.v1.Health/Check"),
                    frame(DATA, 0, 3, &declared),
                ]
                .concat(),
            ),
            (5, {
                let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
                [call(5, reflection), frame(DATA, 0, 5, &declared)].concat()
            }),
            (
                7,
                frame(HEADERS, END_HEADERS | END_STREAM, 7, &block.concat()),
            ),
            (9, whole_call(9, GET_RANGE)),
        ] {
            connection.send(&said).await.unwrap();
            let ended = connection.until_ended(stream).await;
            assert!(ended.is_some(), "{stream}");
        }
    };
    // At once, and not only when the rest of a message does not come.
    let attack = async || within(Duration::from_secs(1), attack()).await;
    guarded.under("calls that are too large", attack).await;

    let attack = async || {
        let mut connection = Http2::begin(address, &[]).await.unwrap();
        for number in 0..150 {
            connection
                .send(&whole_call(2 * number + 1, SUBSCRIBE))
                .await
                .unwrap();
        }
        // The message of a refused call is refused once more, as one of no stream.
        let (mut opened, mut refused) = (BTreeSet::new(), BTreeSet::new());
        while opened.len() + refused.len() < 150 {
            let frame = connection.next().await.unwrap();
            if frame.kind == RST_STREAM {
                let codes = [REFUSED_STREAM, STREAM_CLOSED].map(u32::to_be_bytes);
                assert!(codes.iter().any(|code| frame.payload == code), "{frame:?}");
                refused.insert(frame.stream);
            } else if frame.kind == HEADERS {
                opened.insert(frame.stream);
            }
        }
        assert_eq!((opened.len(), refused.len()), (100, 50));
    };
    let attack = async || within(Duration::from_secs(1), attack()).await;
    guarded.under("150 streams", attack).await;
    guarded.finish().await;
}
