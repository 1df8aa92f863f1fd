//! Owns just enough of HTTP/2 (RFC 9113) for a subscriber that costs nothing: one stream, a request
//! written by hand, and a reader that passes the content of DATA frames on, gives flow control back
//! and answers what has to be answered. Knows nothing of what the content means.

use super::events::APP_ID;

/// How much the server may send before it is told that it was read: what tonic's and other
/// clients on hyper give a connection.
const WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// The bounds of SETTINGS_MAX_FRAME_SIZE, and the default of every client (RFC 9113, 6.5.2).
pub const FRAME_BYTES: std::ops::RangeInclusive<u32> = 16_384..=16_777_215;

const HEADER_BYTES: usize = 9;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;
const GOAWAY: u8 = 0x7;
const WINDOW_UPDATE: u8 = 0x8;

const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

/// The stream of the one request.
const STREAM: u32 = 1;

/// The most of a control frame's payload that is looked at.
const CONTROL_BYTES_MAX: usize = 8;

/// Everything that a subscriber says to begin with: the preface, its settings, and a gRPC request
/// with this message.
pub(super) fn opening(path: &str, message: &[u8], frame_bytes: u32) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let settings: [(u16, u32); 3] = [
        (0x2, 0),            // ENABLE_PUSH
        (0x4, WINDOW_BYTES), // INITIAL_WINDOW_SIZE
        (0x5, frame_bytes),  // MAX_FRAME_SIZE
    ];
    let settings = settings
        .iter()
        .flat_map(|(id, value)| id.to_be_bytes().into_iter().chain(value.to_be_bytes()));
    put_frame(&mut bytes, SETTINGS, 0, 0, &settings.collect::<Vec<u8>>());
    // A connection begins with 65,535 bytes whatever the settings say.
    put_window_update(&mut bytes, 0, WINDOW_BYTES - 65_535);
    put_frame(
        &mut bytes,
        HEADERS,
        END_HEADERS,
        STREAM,
        &header_block(path),
    );
    let mut content = vec![0];
    content.extend_from_slice(
        &u32::try_from(message.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    content.extend_from_slice(message);
    put_frame(&mut bytes, DATA, END_STREAM, STREAM, &content);
    bytes
}

/// HPACK (RFC 7541) without compression: names from the static table, values as they are.
fn header_block(path: &str) -> Vec<u8> {
    let mut block = vec![
        0x83, // :method POST
        0x86, // :scheme http
        0x04, // :path, not indexed
    ];
    put_text(&mut block, path);
    block.push(0x01); // :authority
    put_text(&mut block, APP_ID);
    block.extend_from_slice(&[0x0f, 0x10]); // content-type
    put_text(&mut block, "application/grpc");
    block.push(0x00); // a name of its own
    put_text(&mut block, "te");
    put_text(&mut block, "trailers");
    block
}

fn put_text(block: &mut Vec<u8>, text: &str) {
    debug_assert!(text.len() < 127, "one byte of length");
    block.push(u8::try_from(text.len()).unwrap_or(0));
    block.extend_from_slice(text.as_bytes());
}

fn put_frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes();
    bytes.extend_from_slice(&length[1..]);
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
}

fn put_window_update(bytes: &mut Vec<u8>, stream: u32, increment: u32) {
    put_frame(bytes, WINDOW_UPDATE, 0, stream, &increment.to_be_bytes());
}

/// How the server ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum End {
    #[error("the server ended the stream")]
    Stream,
    #[error("the server reset the stream (error code {0})")]
    Reset(u32),
    #[error("the server closes the connection (error code {0})")]
    Connection(u32),
    #[error("the server sent padding, which this reader does not know")]
    Padding,
}

/// Reads the frames of one connection, however they are cut.
#[derive(Debug)]
pub(super) struct Frames {
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    kind: u8,
    flags: u8,
    payload_left: usize,
    control: [u8; CONTROL_BYTES_MAX],
    control_bytes: usize,
    /// What the server has sent since it was last told that it was read.
    unacknowledged_bytes: u32,
    /// What has to be sent to the server.
    pub(super) replies: Vec<u8>,
}

impl Frames {
    pub(super) fn new() -> Self {
        Self {
            header: [0; HEADER_BYTES],
            header_bytes: 0,
            kind: 0,
            flags: 0,
            payload_left: 0,
            control: [0; CONTROL_BYTES_MAX],
            control_bytes: 0,
            unacknowledged_bytes: 0,
            replies: Vec::new(),
        }
    }

    /// Takes what was read and passes the content on.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut content: impl FnMut(&[u8]),
    ) -> Result<(), End> {
        while !bytes.is_empty() {
            if self.header_bytes < HEADER_BYTES {
                let missing = self.header.get_mut(self.header_bytes..).unwrap_or_default();
                let count = missing.len().min(bytes.len());
                let (taken, rest) = bytes.split_at(count);
                missing
                    .iter_mut()
                    .zip(taken)
                    .for_each(|(to, from)| *to = *from);
                self.header_bytes += count;
                bytes = rest;
                if self.header_bytes < HEADER_BYTES {
                    return Ok(());
                }
                self.begin()?;
            }
            let (taken, rest) = bytes.split_at(self.payload_left.min(bytes.len()));
            bytes = rest;
            self.payload_left -= taken.len();
            if self.kind == DATA {
                content(taken);
            } else {
                self.keep(taken);
            }
            if self.payload_left == 0 {
                self.end()?;
                self.header_bytes = 0;
            }
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), End> {
        let [a, b, c, kind, flags, ..] = self.header;
        let length = u32::from_be_bytes([0, a, b, c]);
        (self.kind, self.flags) = (kind, flags);
        self.payload_left = length as usize;
        self.control_bytes = 0;
        if kind == DATA {
            if flags & PADDED != 0 {
                return Err(End::Padding);
            }
            self.unacknowledged_bytes += length;
            // Half a window is still there, so the server never has to wait for this.
            if self.unacknowledged_bytes >= WINDOW_BYTES / 2 {
                put_window_update(&mut self.replies, 0, self.unacknowledged_bytes);
                put_window_update(&mut self.replies, STREAM, self.unacknowledged_bytes);
                self.unacknowledged_bytes = 0;
            }
        }
        Ok(())
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = self
            .control
            .get_mut(self.control_bytes..)
            .unwrap_or_default();
        let count = room.len().min(bytes.len());
        room.iter_mut()
            .zip(bytes)
            .for_each(|(to, from)| *to = *from);
        self.control_bytes += count;
    }

    fn end(&mut self) -> Result<(), End> {
        let [a, b, c, d, e, f, g, h] = self.control;
        match self.kind {
            DATA | HEADERS if self.flags & END_STREAM != 0 => Err(End::Stream),
            RST_STREAM => Err(End::Reset(u32::from_be_bytes([a, b, c, d]))),
            GOAWAY => Err(End::Connection(u32::from_be_bytes([e, f, g, h]))),
            SETTINGS if self.flags & ACK == 0 => {
                put_frame(&mut self.replies, SETTINGS, ACK, 0, &[]);
                Ok(())
            }
            PING if self.flags & ACK == 0 => {
                let opaque = self.control;
                put_frame(&mut self.replies, PING, ACK, 0, &opaque);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_frame(&mut bytes, kind, flags, STREAM, payload);
        bytes
    }

    fn read(bytes: &[u8], piece_bytes: usize) -> (Vec<u8>, Vec<u8>, Result<(), End>) {
        let (mut frames, mut content) = (Frames::new(), Vec::new());
        let outcome = bytes
            .chunks(piece_bytes)
            .try_for_each(|piece| frames.feed(piece, |data| content.extend_from_slice(data)));
        (content, frames.replies, outcome)
    }

    #[test]
    fn content_is_the_same_however_it_is_cut() {
        let mut bytes = frame(SETTINGS, 0, &[0, 4, 0, 1, 0, 0]);
        bytes.extend(frame(HEADERS, END_HEADERS, &[0x88]));
        bytes.extend(frame(DATA, 0, b"hello, "));
        bytes.extend(frame(DATA, 0, b""));
        bytes.extend(frame(PING, 0, b"12345678"));
        bytes.extend(frame(SETTINGS, ACK, b""));
        bytes.extend(frame(DATA, 0, b"world"));
        let mut replies = Vec::new();
        put_frame(&mut replies, SETTINGS, ACK, 0, &[]);
        put_frame(&mut replies, PING, ACK, 0, b"12345678");
        for piece_bytes in [1, 2, 3, 10, 1_000] {
            let expected = (b"hello, world".to_vec(), replies.clone(), Ok(()));
            assert_eq!(read(&bytes, piece_bytes), expected);
        }
    }

    #[test]
    fn every_way_to_end_is_told() {
        let go_away = frame(GOAWAY, 0, &[0, 0, 0, 1, 0, 0, 0, 11, b'x']);
        for (bytes, end) in [
            (
                frame(HEADERS, END_HEADERS | END_STREAM, &[0x88]),
                End::Stream,
            ),
            (frame(DATA, END_STREAM, b"x"), End::Stream),
            (frame(RST_STREAM, 0, &[0, 0, 0, 8]), End::Reset(8)),
            (go_away, End::Connection(11)),
            (frame(DATA, PADDED, &[0]), End::Padding),
        ] {
            assert_eq!(read(&bytes, 4).2, Err(end));
        }
    }

    #[test]
    fn what_was_read_is_given_back_in_time() {
        let mut frames = Frames::new();
        let bytes = frame(DATA, 0, &[0; 16_384]);
        let mut count = 0;
        while frames.replies.is_empty() {
            frames.feed(&bytes, |_| {}).unwrap();
            count += 16_384;
        }
        assert_eq!(count, WINDOW_BYTES / 2);
        let mut expected = Vec::new();
        put_window_update(&mut expected, 0, count);
        put_window_update(&mut expected, STREAM, count);
        assert_eq!(frames.replies, expected);
    }

    /// The server's own implementation reads it as the request that it is meant to be.
    #[tokio::test]
    async fn an_http2_server_understands_the_opening() {
        use tokio::io::AsyncWriteExt as _;
        let (mut client, server) = tokio::io::duplex(1 << 16);
        client
            .write_all(&opening("/a.B/C", b"message", 65_536))
            .await
            .unwrap();
        let mut server = h2::server::handshake(server).await.unwrap();
        let (request, _respond) = server.accept().await.unwrap().unwrap();
        assert_eq!(request.method(), "POST");
        assert_eq!(request.uri().path(), "/a.B/C");
        assert_eq!(request.headers()["content-type"], "application/grpc");
        assert_eq!(request.headers()["te"], "trailers");
        let mut body = request.into_body();
        let data = body.data().await.unwrap().unwrap();
        assert_eq!(&data[..], b"\0\0\0\0\x07message");
    }
}
