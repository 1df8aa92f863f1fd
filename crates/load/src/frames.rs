//! Owns the frames of HTTP/2 (RFC 9113) as bytes: how each is written, how a header is read, and
//! header blocks of literals that no table has to know (RFC 7541, 6.2.2). It writes whatever it is
//! told, also what no client library would send. Knows nothing of sockets and of streams' states.

/// What a client sends first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The length of a frame's header.
pub const HEADER_BYTES: usize = 9;

/// The types of frames.
pub const DATA: u8 = 0x0;
/// Opens a stream, or ends it with trailers.
pub const HEADERS: u8 = 0x1;
/// Deprecated since RFC 9113.
pub const PRIORITY: u8 = 0x2;
/// Ends a stream with an error code.
pub const RST_STREAM: u8 = 0x3;
/// Settings of a connection.
pub const SETTINGS: u8 = 0x4;
/// Asks for the same eight bytes.
pub const PING: u8 = 0x6;
/// Ends a connection with an error code.
pub const GOAWAY: u8 = 0x7;
/// Adds to a flow-control window.
pub const WINDOW_UPDATE: u8 = 0x8;
/// More of a header block.
pub const CONTINUATION: u8 = 0x9;

/// The flag of SETTINGS and PING that are answers.
pub const ACK: u8 = 0x1;
/// The flag of DATA and HEADERS that end their stream.
pub const END_STREAM: u8 = 0x1;
/// The flag of HEADERS and CONTINUATION that end a header block.
pub const END_HEADERS: u8 = 0x4;
/// The flag of DATA and HEADERS with padding.
pub const PADDED: u8 = 0x8;

/// The settings that clients send (RFC 9113, 6.5.2).
pub const ENABLE_PUSH: u16 = 0x2;
/// The flow-control window of new streams, in bytes.
pub const INITIAL_WINDOW_SIZE: u16 = 0x4;
/// The largest frame that is allowed, in bytes.
pub const MAX_FRAME_SIZE: u16 = 0x5;

/// A connection's flow-control window at its start, whatever the settings say (RFC 9113, 6.9.2).
pub const CONNECTION_WINDOW_BYTES: u32 = 65_535;

/// A gRPC message of no bytes.
pub const EMPTY_MESSAGE: [u8; 5] = [0; 5];

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The length of what follows, in bytes.
    pub length: usize,
    /// The type.
    pub kind: u8,
    /// The flags.
    pub flags: u8,
    /// The stream; 0 is the connection.
    pub stream: u32,
}

impl Header {
    /// Reads a header.
    #[must_use]
    pub fn parse(bytes: [u8; HEADER_BYTES]) -> Self {
        let [a, b, c, kind, flags, d, e, f, g] = bytes;
        Self {
            length: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes([d, e, f, g]) & 0x7fff_ffff,
        }
    }
}

/// Appends a frame.
pub fn put(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    debug_assert!(payload.len() < 1 << 24, "a length has three bytes");
    let [_, length @ ..] = be_length(payload.len());
    bytes.extend(length);
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
}

/// A frame as it goes over the wire.
#[must_use]
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    put(&mut bytes, kind, flags, stream, payload);
    bytes
}

/// The settings with these identifiers and values.
#[must_use]
pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (identifier, value) in values {
        payload.extend(identifier.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    frame(SETTINGS, 0, 0, &payload)
}

/// Adds to the window of a stream, or of the connection.
#[must_use]
pub fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

/// Ends a stream with an error code.
#[must_use]
pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

/// A header that is not put into the table.
#[must_use]
pub fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    field(0, name, value)
}

/// A header that both sides put into their tables.
#[must_use]
pub fn indexed(name: &[u8], value: &[u8]) -> Vec<u8> {
    field(0x40, name, value)
}

fn field(first: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    for text in [name, value] {
        put_length(&mut bytes, text.len());
        bytes.extend(text);
    }
    bytes
}

/// A length with a prefix of seven bits (RFC 7541, 5.1), of a string that is not compressed.
fn put_length(bytes: &mut Vec<u8>, length: usize) {
    const PREFIX_MAX: usize = 0x7f;
    let low_bits = |rest: usize| rest.to_le_bytes()[0] & 0x7f;
    let Some(mut rest) = length.checked_sub(PREFIX_MAX) else {
        bytes.push(low_bits(length));
        return;
    };
    bytes.push(0x7f);
    while rest >= 0x80 {
        bytes.push(0x80 | low_bits(rest));
        rest >>= 7;
    }
    bytes.push(low_bits(rest));
}

/// The header block of a gRPC call.
#[must_use]
pub fn call_block(path: &str) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "bridge"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    fields
        .map(|(name, value)| literal(name.as_bytes(), value.as_bytes()))
        .concat()
}

/// The headers of a gRPC call whose message is still to come.
#[must_use]
pub fn call(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &call_block(path))
}

/// A whole gRPC call with an empty message.
#[must_use]
pub fn whole_call(stream: u32, path: &str) -> Vec<u8> {
    let message = frame(DATA, END_STREAM, stream, &EMPTY_MESSAGE);
    [call(stream, path), message].concat()
}

/// A message with gRPC's prefix, not compressed.
#[must_use]
pub fn grpc_message(message: &[u8]) -> Vec<u8> {
    [&[0], &be_length(message.len())[..], message].concat()
}

fn be_length(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let written = frame(DATA, END_STREAM, 7, &[0; 70_000]);
        let header = Header::parse(*written.first_chunk().unwrap());
        let expected = Header {
            length: 70_000,
            kind: DATA,
            flags: END_STREAM,
            stream: 7,
        };
        assert_eq!(header, expected);
        assert_eq!(written.len(), HEADER_BYTES + 70_000);
        // The reserved bit is ignored (RFC 9113, 4.1).
        let reserved = [0, 0, 0, PING, 0, 0x80, 0, 0, 0];
        assert_eq!(Header::parse(reserved).stream, 0);
    }

    /// An implementation that is not ours reads literals of lengths at and around the prefix.
    #[tokio::test]
    async fn an_http2_server_understands_calls_and_literals() {
        use tokio::io::AsyncWriteExt as _;
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let lengths = [0, 126, 127, 128, 254, 255, 256, 9_000];
        let large = lengths.map(|length| literal(b"x-large", &vec![b'x'; length]));
        let block = [
            call_block("/a.B/C"),
            large.concat(),
            indexed(b"x-indexed", b"1"),
        ]
        .concat();
        let bytes = [
            PREFACE.to_vec(),
            settings(&[(ENABLE_PUSH, 0)]),
            frame(HEADERS, END_HEADERS, 1, &block),
            frame(DATA, END_STREAM, 1, &grpc_message(b"message")),
        ];
        client.write_all(&bytes.concat()).await.unwrap();
        let mut server = h2::server::handshake(server).await.unwrap();
        let (request, _respond) = server.accept().await.unwrap().unwrap();
        assert_eq!(request.method(), "POST");
        assert_eq!(request.uri().path(), "/a.B/C");
        let headers = request.headers();
        assert_eq!(headers["content-type"], "application/grpc");
        assert_eq!(headers["te"], "trailers");
        assert_eq!(headers["x-indexed"], "1");
        let values = headers.get_all("x-large").iter();
        assert!(values.map(|value| value.len()).eq(lengths));
        let data = request.into_body().data().await.unwrap().unwrap();
        assert_eq!(&data[..], b"\0\0\0\0\x07message");
    }
}
