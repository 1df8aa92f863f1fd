//! HTTP/2 by the letter of RFC 9113 on calls that are open. `docs/h2spec.md` has what h2spec says of the
//! gRPC port: it sends no gRPC, so its requests are answered before it breaks a rule. Here are the cases
//! for which that matters.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    abuse::frames::{
        ACK, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, Http2, PING, PRIORITY,
        RST_STREAM, SUBSCRIBE, call, call_block, frame, literal, whole_call, window_update,
    },
    support::{Bridge, SOON},
};

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const REFUSED_STREAM: u32 = 7;

const WINDOW_BYTES_MAX: u32 = (1 << 31) - 1;

/// The first frame after these bytes that is wanted.
async fn answer(bridge: &Bridge, bytes: &[u8], is_wanted: impl Fn(&Frame) -> bool) -> Frame {
    let mut connection = Http2::begin(bridge.addresses.grpc, &[]).await.unwrap();
    connection.send(bytes).await.unwrap();
    let waiting = async {
        let mut seen = Vec::new();
        loop {
            let Some(frame) = connection.next().await else {
                unreachable!("closed after {seen:?}, for {bytes:?}");
            };
            seen.push(format!("{frame:?}"));
            if is_wanted(&frame) {
                return frame;
            }
        }
    };
    tokio::time::timeout(SOON, waiting).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_is_broken_on_an_open_call_ends_it_with_its_code() {
    let bridge = Bridge::start().await;
    let open = || call(1, SUBSCRIBE);
    let headers = |flags, block: Vec<u8>| frame(HEADERS, flags | END_HEADERS, 1, &block);
    let with_length = |length: &[u8]| {
        let block = [call_block(SUBSCRIBE), literal(b"content-length", length)];
        headers(0, block.concat())
    };
    let data = |flags, bytes: &[u8]| frame(DATA, flags, 1, bytes);
    let many: Vec<u8> = (0..101)
        .flat_map(|at| call(2 * at + 1, SUBSCRIBE))
        .collect();
    for (rule, bytes, stream, code) in [
        (
            "8.1: trailers end the request",
            [open(), data(0, b"test"), headers(0, literal(b"x", b"y"))].concat(),
            1,
            PROTOCOL_ERROR,
        ),
        (
            "8.1.1: content-length is that of the body, which is longer",
            [with_length(b"1"), data(END_STREAM, b"test")].concat(),
            1,
            PROTOCOL_ERROR,
        ),
        (
            "8.1.1: the same in two frames",
            [with_length(b"1"), data(0, b"te"), data(END_STREAM, b"st")].concat(),
            1,
            PROTOCOL_ERROR,
        ),
        (
            "6.9.1: no window is larger than 2^31-1",
            [
                open(),
                window_update(1, WINDOW_BYTES_MAX),
                window_update(1, WINDOW_BYTES_MAX),
            ]
            .concat(),
            1,
            FLOW_CONTROL_ERROR,
        ),
        (
            "5.1: nothing follows the end of a request",
            // The RFC asks for STREAM_CLOSED of the stream; h2 ends the connection.
            [whole_call(1, SUBSCRIBE), data(0, b"more")].concat(),
            1,
            PROTOCOL_ERROR,
        ),
        (
            "5.1.2: no more streams than the settings say",
            many,
            201,
            REFUSED_STREAM,
        ),
    ] {
        let is_end = |frame: &Frame| {
            frame.kind == GOAWAY || frame.kind == RST_STREAM && frame.stream == stream
        };
        let end = answer(&bridge, &bytes, is_end).await;
        let at = if end.kind == GOAWAY { 4 } else { 0 };
        let found = u32::from_be_bytes(end.payload[at..at + 4].try_into().unwrap());
        assert_eq!(found, code, "{rule}: {end:?}");
    }
    bridge.finish().await;
}

/// RFC 9113 calls such a request malformed (section 8.1), and h2 does not look: nobody reads its trailers.
#[tokio::test(flavor = "multi_thread")]
async fn pseudo_headers_in_trailers_mean_nothing() {
    let bridge = Bridge::start().await;
    let trailers = literal(b":method", b"POST");
    let trailers = frame(HEADERS, END_STREAM | END_HEADERS, 1, &trailers);
    let bytes = [call(1, SUBSCRIBE), trailers].concat();
    let end = answer(&bridge, &bytes, |frame| frame.stream == 1).await;
    assert_eq!((end.kind, end.flags & END_STREAM), (HEADERS, END_STREAM));
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_come_after_the_end_of_a_request_is_accepted() {
    let bridge = Bridge::start().await;
    let priority = frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 255]);
    for allowed in [window_update(1, 1), priority, frame(0xee, 0, 1, b"unknown")] {
        let ping = frame(PING, 0, 0, b"12345678");
        let bytes = [whole_call(1, SUBSCRIBE), allowed, ping].concat();
        let is_decided = |frame: &Frame| {
            frame.kind == GOAWAY
                || frame.kind == RST_STREAM
                || frame.kind == PING && frame.flags == ACK
        };
        let decided = answer(&bridge, &bytes, is_decided).await;
        assert_eq!(
            (decided.kind, &decided.payload[..]),
            (PING, &b"12345678"[..])
        );
    }
    bridge.finish().await;
}

/// A client that speaks something else gets no answer in HTTP/1.1, which it cannot read.
#[tokio::test(flavor = "multi_thread")]
async fn another_protocol_is_closed_without_a_word() {
    let bridge = Bridge::start().await;
    for start in [
        &b"INVALID CONNECTION PREFACE\r\n\r\n"[..],
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"post / HTTP/1.1\r\n\r\n",
        b"\0\0\0\x04\0\0\0\0\0",
    ] {
        let mut socket = tokio::net::TcpStream::connect(bridge.addresses.grpc)
            .await
            .unwrap();
        socket.write_all(start).await.unwrap();
        let mut answer = Vec::new();
        let reading = tokio::time::timeout(SOON, socket.read_to_end(&mut answer)).await;
        // Closed, not reset.
        reading.unwrap().unwrap();
        assert!(answer.is_empty(), "{:?}", String::from_utf8_lossy(&answer));
    }
    bridge.finish().await;
}
