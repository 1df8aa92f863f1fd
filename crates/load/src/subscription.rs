//! Owns one subscription over gRPC on a connection of its own: a request that is written once, and a
//! reader of just enough of HTTP/2 that costs next to nothing. It passes the content of DATA frames
//! on to be counted, gives flow control back and answers what has to be answered. The server's
//! headers are not decoded: that they came says that it has accepted the stream.

use prelude_bridge_contract::SubscribeRequest;
use prost::Message as _;

use super::{
    engine::{Protocol, ProtocolError},
    frames::{
        self, ACK, DATA, END_STREAM, GOAWAY, HEADERS, Header, PADDED, PING, RST_STREAM, SETTINGS,
    },
    responses::{Counts, Malformed, Responses},
};

/// How much the server may send on a stream before it is told that it was read: what tonic's and
/// other clients on hyper allow.
const WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// The same for the connection.
const CONNECTION_WINDOW_BYTES: u32 = 5 * 1024 * 1024;

/// The bounds of SETTINGS_MAX_FRAME_SIZE, and the default of every client (RFC 9113, 6.5.2).
pub const FRAME_BYTES: std::ops::RangeInclusive<u32> = 16_384..=16_777_215;

/// The stream of the one request.
const STREAM: u32 = 1;

const PATH: &str = "/prelude.bridge.v1.EventService/Subscribe";

/// The most of a control frame's payload that is looked at.
const CONTROL_BYTES_MAX: usize = 8;

/// One subscription. Counts events.
pub struct Subscription {
    opening: Vec<u8>,
    frames: FrameReader,
    responses: Responses,
}

impl Subscription {
    /// To a bridge, with frames of at most so many bytes. The cursors of its responses are checked.
    #[must_use]
    pub fn new(request: &SubscribeRequest, frame_bytes: u32) -> Self {
        Self {
            opening: opening(&request.encode_to_vec(), frame_bytes),
            frames: FrameReader::new(),
            responses: Responses::new(),
        }
    }

    /// To any server that speaks the same contract: its cursors are not looked at.
    #[must_use]
    pub fn without_cursors(request: &SubscribeRequest, frame_bytes: u32) -> Self {
        Self {
            responses: Responses::without_cursors(),
            ..Self::new(request, frame_bytes)
        }
    }

    pub(super) fn counts(&self) -> Counts {
        self.responses.counts
    }

    /// As [`Protocol::receive`], and passes the content on.
    pub(super) fn receive_with(
        &mut self,
        bytes: &[u8],
        replies: &mut Vec<u8>,
        mut each: impl FnMut(&[u8]) -> Result<(), Malformed>,
    ) -> Result<u64, ProtocolError> {
        let before = self.responses.counts.events;
        let mut malformed = Ok(());
        let framed = self.frames.feed(bytes, replies, |content| {
            let read = self.responses.feed(content).and_then(|()| each(content));
            if malformed.is_ok() {
                malformed = read;
            }
        });
        malformed?;
        framed?;
        Ok(self.responses.counts.events - before)
    }
}

impl Protocol for Subscription {
    fn opening(&self) -> Vec<u8> {
        self.opening.clone()
    }

    fn receive(&mut self, bytes: &[u8], replies: &mut Vec<u8>) -> Result<u64, ProtocolError> {
        self.receive_with(bytes, replies, |_| Ok(()))
    }

    fn is_ready(&self) -> bool {
        self.frames.is_accepted
    }
}

/// Everything that a subscriber sends to begin with: the preface, its settings, and the request.
fn opening(request: &[u8], frame_bytes: u32) -> Vec<u8> {
    let settings = [
        (frames::ENABLE_PUSH, 0),
        (frames::INITIAL_WINDOW_SIZE, WINDOW_BYTES),
        (frames::MAX_FRAME_SIZE, frame_bytes),
    ];
    let more = CONNECTION_WINDOW_BYTES - frames::CONNECTION_WINDOW_BYTES;
    [
        frames::PREFACE.to_vec(),
        frames::settings(&settings),
        frames::window_update(0, more),
        frames::call(STREAM, PATH),
        frames::frame(DATA, END_STREAM, STREAM, &frames::grpc_message(request)),
    ]
    .concat()
}

/// How the server ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum End {
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
struct FrameReader {
    header: [u8; frames::HEADER_BYTES],
    header_bytes: usize,
    kind: u8,
    flags: u8,
    payload_left: usize,
    control: [u8; CONTROL_BYTES_MAX],
    control_bytes: usize,
    /// What the server has sent since it was last told that it was read.
    unacknowledged_bytes: u32,
    /// Whether headers came.
    is_accepted: bool,
}

impl FrameReader {
    fn new() -> Self {
        Self {
            header: [0; frames::HEADER_BYTES],
            header_bytes: 0,
            kind: 0,
            flags: 0,
            payload_left: 0,
            control: [0; CONTROL_BYTES_MAX],
            control_bytes: 0,
            unacknowledged_bytes: 0,
            is_accepted: false,
        }
    }

    /// Takes what was read, passes the content on, and appends what has to be sent to the server.
    fn feed(
        &mut self,
        mut bytes: &[u8],
        replies: &mut Vec<u8>,
        mut content: impl FnMut(&[u8]),
    ) -> Result<(), End> {
        while !bytes.is_empty() {
            if self.header_bytes < self.header.len() {
                let (count, rest) = fill(&mut self.header, self.header_bytes, bytes);
                self.header_bytes += count;
                bytes = rest;
                if self.header_bytes < self.header.len() {
                    return Ok(());
                }
                self.begin(replies)?;
            }
            let (taken, rest) = bytes.split_at(self.payload_left.min(bytes.len()));
            bytes = rest;
            self.payload_left -= taken.len();
            if self.kind == DATA {
                content(taken);
            } else {
                self.control_bytes += fill(&mut self.control, self.control_bytes, taken).0;
            }
            if self.payload_left == 0 {
                self.end(replies)?;
                self.header_bytes = 0;
            }
        }
        Ok(())
    }

    fn begin(&mut self, replies: &mut Vec<u8>) -> Result<(), End> {
        let Header {
            length,
            kind,
            flags,
            ..
        } = Header::parse(self.header);
        (self.kind, self.flags, self.payload_left) = (kind, flags, length);
        self.control_bytes = 0;
        if kind != DATA {
            return Ok(());
        }
        if flags & PADDED != 0 {
            return Err(End::Padding);
        }
        self.unacknowledged_bytes += u32::try_from(length).unwrap_or(u32::MAX);
        // Half a window is still there, so the server never has to wait for this.
        if self.unacknowledged_bytes >= WINDOW_BYTES / 2 {
            let read = std::mem::take(&mut self.unacknowledged_bytes);
            replies.extend(frames::window_update(0, read));
            replies.extend(frames::window_update(STREAM, read));
        }
        Ok(())
    }

    fn end(&mut self, replies: &mut Vec<u8>) -> Result<(), End> {
        let [a, b, c, d, e, f, g, h] = self.control;
        match self.kind {
            DATA | HEADERS if self.flags & END_STREAM != 0 => return Err(End::Stream),
            HEADERS => self.is_accepted = true,
            RST_STREAM => return Err(End::Reset(u32::from_be_bytes([a, b, c, d]))),
            GOAWAY => return Err(End::Connection(u32::from_be_bytes([e, f, g, h]))),
            SETTINGS if self.flags & ACK == 0 => frames::put(replies, SETTINGS, ACK, 0, &[]),
            PING if self.flags & ACK == 0 => frames::put(replies, PING, ACK, 0, &self.control),
            _ => {}
        }
        Ok(())
    }
}

/// Copies as much as there is room for behind the first bytes of a buffer. Returns how much that is,
/// and what is left.
fn fill<'a>(buffer: &mut [u8], from: usize, bytes: &'a [u8]) -> (usize, &'a [u8]) {
    let room = buffer.get_mut(from..).unwrap_or_default();
    let (taken, rest) = bytes.split_at(room.len().min(bytes.len()));
    room.iter_mut()
        .zip(taken)
        .for_each(|(to, from)| *to = *from);
    (taken.len(), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        frames::frame(kind, flags, STREAM, payload)
    }

    fn read(bytes: &[u8], piece_bytes: usize) -> (Vec<u8>, Vec<u8>, Result<(), End>) {
        let (mut reader, mut content, mut replies) = (FrameReader::new(), Vec::new(), Vec::new());
        let outcome = bytes.chunks(piece_bytes).try_for_each(|piece| {
            reader.feed(piece, &mut replies, |data| content.extend_from_slice(data))
        });
        (content, replies, outcome)
    }

    #[test]
    fn content_is_the_same_however_it_is_cut() {
        let bytes = [
            frame(SETTINGS, 0, &[0, 4, 0, 1, 0, 0]),
            frame(HEADERS, frames::END_HEADERS, &[0x88]),
            frame(DATA, 0, b"hello, "),
            frame(DATA, 0, b""),
            frame(PING, 0, b"12345678"),
            frame(SETTINGS, ACK, b""),
            frame(DATA, 0, b"world"),
        ]
        .concat();
        let mut replies = frames::frame(SETTINGS, ACK, 0, &[]);
        frames::put(&mut replies, PING, ACK, 0, b"12345678");
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
                frame(HEADERS, frames::END_HEADERS | END_STREAM, &[0x88]),
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
        let (mut reader, mut replies) = (FrameReader::new(), Vec::new());
        let bytes = frame(DATA, 0, &[0; 16_384]);
        let mut count = 0;
        while replies.is_empty() {
            reader.feed(&bytes, &mut replies, |_| {}).unwrap();
            count += 16_384;
        }
        assert_eq!(count, WINDOW_BYTES / 2);
        let updates = [0, STREAM].map(|stream| frames::window_update(stream, count));
        assert_eq!(replies, updates.concat());
    }

    #[test]
    fn a_subscription_is_ready_once_it_was_accepted_and_counts_events() {
        use prelude_bridge_contract::{Event, SubscribeResponse};
        let response = SubscribeResponse {
            events: vec![Event::default(), Event::default()],
            ..SubscribeResponse::default()
        };
        let message = frames::grpc_message(&response.encode_to_vec());
        let request = SubscribeRequest::default();
        let mut any = Subscription::without_cursors(&request, 16_384);
        let mut bridge = Subscription::new(&request, 16_384);
        assert_eq!(any.opening(), bridge.opening());
        assert!(!any.is_ready());
        let accepted = frame(HEADERS, frames::END_HEADERS, &[0x88]);
        for subscription in [&mut any, &mut bridge] {
            let received = subscription.receive(&accepted, &mut Vec::new());
            assert_eq!(received.unwrap(), 0);
            assert!(subscription.is_ready());
        }
        let data = frame(DATA, 0, &message);
        assert_eq!(any.receive(&data, &mut Vec::new()).unwrap(), 2);
        let error = bridge.receive(&data, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("without a cursor"), "{error}");
    }

    /// An implementation that is not ours reads the opening as the request that it is meant to be.
    #[tokio::test]
    async fn an_http2_server_understands_the_opening() {
        use tokio::io::AsyncWriteExt as _;
        let (mut client, server) = tokio::io::duplex(1 << 16);
        client
            .write_all(&opening(b"message", 65_536))
            .await
            .unwrap();
        let mut server = h2::server::handshake(server).await.unwrap();
        let (request, _respond) = server.accept().await.unwrap().unwrap();
        assert_eq!(request.method(), "POST");
        assert_eq!(request.uri().path(), PATH);
        let data = request.into_body().data().await.unwrap().unwrap();
        assert_eq!(&data[..], b"\0\0\0\0\x07message");
    }
}
