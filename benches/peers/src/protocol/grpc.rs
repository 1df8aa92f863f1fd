//! Owns the least of HTTP/2 and gRPC that a subscriber needs: one stream, whose messages are walked
//! for events and not decoded, and windows that are opened again. Headers of the server are not
//! read: that the stream was accepted is all that they say here, and a stream that ends is an error.

use anyhow::{Result, bail};
use prost::Message as _;

use crate::proto::{Filter, SubscribeRequest};

/// What tonic's client advertises by default for a stream and a connection.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 5 * 1024 * 1024;
/// What HTTP/2 gives a connection before anything is said.
const WINDOW_BEFORE: u32 = 65_535;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const FLAG_END_STREAM: u8 = 1;
const FLAG_ACK: u8 = 1;
const FLAG_END_HEADERS: u8 = 4;

const STREAM: u32 = 1;
const FRAME_HEADER_BYTES: usize = 9;

/// The tag of `SubscribeResponse.events`.
const EVENTS: u64 = 1 << 3 | 2;

/// One connection with one stream.
pub struct Subscriber {
    request: Vec<u8>,
    frame_bytes_max: u32,
    is_ready: bool,
    frame: Frame,
    messages: Messages,
    /// Received since the windows were opened last.
    unacknowledged: u32,
}

/// Where the reader is in a frame.
enum Frame {
    /// In its header, of which this is known.
    Header([u8; FRAME_HEADER_BYTES], usize),
    /// In the payload of a DATA frame, with this much to come.
    Data(usize),
    /// In another frame's payload: it is gathered.
    Other {
        kind: u8,
        flags: u8,
        left: usize,
        payload: Vec<u8>,
    },
}

impl Subscriber {
    /// A subscriber to one type of events, or to all, whose frames may be this large.
    #[must_use]
    pub fn new(event_type: Option<&str>, frame_bytes_max: u32) -> Self {
        let request = SubscribeRequest {
            filter: event_type.map(|event_type| Filter {
                types: vec![event_type.to_owned()],
                ..Filter::default()
            }),
            ..SubscribeRequest::default()
        };
        Self {
            request: request.encode_to_vec(),
            frame_bytes_max,
            is_ready: false,
            frame: Frame::Header([0; FRAME_HEADER_BYTES], 0),
            messages: Messages::default(),
            unacknowledged: 0,
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.is_ready
    }

    pub(super) fn hello(&self) -> Vec<u8> {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let mut settings = Vec::new();
        // ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE (RFC 9113, section 6.5.2).
        for (id, value) in [(2_u16, 0), (4, STREAM_WINDOW), (5, self.frame_bytes_max)] {
            settings.extend_from_slice(&id.to_be_bytes());
            settings.extend_from_slice(&value.to_be_bytes());
        }
        put_frame(&mut bytes, SETTINGS, 0, 0, &settings);
        let more = CONNECTION_WINDOW - WINDOW_BEFORE;
        put_frame(&mut bytes, WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        put_frame(&mut bytes, HEADERS, FLAG_END_HEADERS, STREAM, &headers());
        let mut message = vec![0];
        let length = u32::try_from(self.request.len()).unwrap_or_default();
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(&self.request);
        put_frame(&mut bytes, DATA, FLAG_END_STREAM, STREAM, &message);
        bytes
    }

    pub(super) fn receive(&mut self, mut bytes: &[u8], answer: &mut Vec<u8>) -> Result<u64> {
        let before = self.messages.events;
        while !bytes.is_empty() {
            bytes = match &mut self.frame {
                Frame::Header(header, known) => {
                    let wanted = (FRAME_HEADER_BYTES - *known).min(bytes.len());
                    let (some, rest) = bytes.split_at(wanted);
                    header[*known..*known + wanted].copy_from_slice(some);
                    *known += wanted;
                    if *known == FRAME_HEADER_BYTES {
                        let header = *header;
                        self.begin(header, answer)?;
                    }
                    rest
                }
                Frame::Data(left) => {
                    let (some, rest) = bytes.split_at((*left).min(bytes.len()));
                    *left -= some.len();
                    let is_over = *left == 0;
                    self.messages.receive(some);
                    self.acknowledge(some.len(), answer);
                    if is_over {
                        self.frame = Frame::Header([0; FRAME_HEADER_BYTES], 0);
                    }
                    rest
                }
                Frame::Other { left, payload, .. } => {
                    let (some, rest) = bytes.split_at((*left).min(bytes.len()));
                    *left -= some.len();
                    payload.extend_from_slice(some);
                    if *left == 0 {
                        self.end_other(answer)?;
                    }
                    rest
                }
            };
        }
        Ok(self.messages.events - before)
    }

    fn begin(&mut self, header: [u8; FRAME_HEADER_BYTES], answer: &mut Vec<u8>) -> Result<()> {
        let [a, b, c, kind, flags, ..] = header;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        if matches!(kind, DATA | HEADERS) && flags & FLAG_END_STREAM != 0 {
            bail!("the server ended the stream");
        }
        if kind == DATA {
            self.frame = if length == 0 {
                Frame::Header([0; FRAME_HEADER_BYTES], 0)
            } else {
                Frame::Data(length)
            };
            return Ok(());
        }
        self.frame = Frame::Other {
            kind,
            flags,
            left: length,
            payload: Vec::with_capacity(length),
        };
        if length == 0 {
            self.end_other(answer)?;
        }
        Ok(())
    }

    fn end_other(&mut self, answer: &mut Vec<u8>) -> Result<()> {
        let ended = std::mem::replace(&mut self.frame, Frame::Header([0; FRAME_HEADER_BYTES], 0));
        let Frame::Other {
            kind,
            flags,
            payload,
            ..
        } = ended
        else {
            return Ok(());
        };
        match kind {
            HEADERS => self.is_ready = true,
            SETTINGS if flags & FLAG_ACK == 0 => put_frame(answer, SETTINGS, FLAG_ACK, 0, &[]),
            PING if flags & FLAG_ACK == 0 => put_frame(answer, PING, FLAG_ACK, 0, &payload),
            RST_STREAM => bail!("the server reset the stream"),
            GOAWAY => bail!("the server sent GOAWAY"),
            _ => {}
        }
        Ok(())
    }

    /// Opens both windows again once half of the stream's is used.
    fn acknowledge(&mut self, bytes: usize, answer: &mut Vec<u8>) {
        self.unacknowledged += u32::try_from(bytes).unwrap_or_default();
        if self.unacknowledged >= STREAM_WINDOW / 2 {
            let more = std::mem::take(&mut self.unacknowledged).to_be_bytes();
            put_frame(answer, WINDOW_UPDATE, 0, 0, &more);
            put_frame(answer, WINDOW_UPDATE, 0, STREAM, &more);
        }
    }
}

fn put_frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len())
        .unwrap_or_default()
        .to_be_bytes();
    bytes.extend_from_slice(&length[1..]);
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
}

/// The request's headers in HPACK, without a table and without Huffman codes (RFC 7541, 6.2.2).
fn headers() -> Vec<u8> {
    // `:method: POST` and `:scheme: http` are entries 3 and 6 of the static table.
    let mut bytes = vec![0x83, 0x86];
    let named = [
        (":path", "/prelude.bridge.v1.EventService/Subscribe"),
        (":authority", "bridge.example.com"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    for (name, value) in named {
        bytes.push(0);
        for text in [name, value] {
            bytes.push(u8::try_from(text.len()).unwrap_or_default());
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    bytes
}

/// Walks gRPC messages for events: their tags and lengths are looked at, their content is skipped.
#[derive(Default)]
struct Messages {
    events: u64,
    /// What is left of the current message; nothing between messages.
    message_left: usize,
    /// What is left of the content that is being skipped.
    skip: usize,
    /// Whether what is being skipped is an event.
    in_event: bool,
    /// The start of a prefix, a tag or a length that was cut by the end of the bytes.
    cut: Vec<u8>,
}

impl Messages {
    fn receive(&mut self, bytes: &[u8]) {
        if self.cut.is_empty() {
            self.walk(bytes);
        } else {
            let mut whole = std::mem::take(&mut self.cut);
            whole.extend_from_slice(bytes);
            self.walk(&whole);
        }
    }

    fn walk(&mut self, mut bytes: &[u8]) {
        loop {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                bytes = &bytes[skipped..];
                self.skip -= skipped;
                self.message_left -= skipped;
                if self.skip > 0 {
                    return;
                }
                self.events += u64::from(self.in_event);
                self.in_event = false;
            }
            let before = bytes.len();
            let found = if self.message_left == 0 {
                self.prefix(bytes)
            } else {
                self.field(bytes)
            };
            match found {
                Some(rest) => bytes = rest,
                None => {
                    self.cut.extend_from_slice(bytes);
                    return;
                }
            }
            debug_assert!(bytes.len() < before);
        }
    }

    /// Reads a message's compression flag and length.
    fn prefix<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let ([_, length @ ..], rest) = bytes.split_first_chunk::<5>()?;
        self.message_left = u32::from_be_bytes(*length) as usize;
        Some(rest)
    }

    /// Reads a field's tag and length, or the whole of a short field.
    fn field<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let (tag, rest) = varint(bytes)?;
        let rest = if tag & 7 == 2 {
            let (length, rest) = varint(rest)?;
            self.skip = usize::try_from(length).unwrap_or_default();
            self.in_event = tag == EVENTS;
            rest
        } else {
            varint(rest)?.1
        };
        self.message_left -= bytes.len() - rest.len();
        Some(rest)
    }
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[index + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{CaughtUp, Event, SubscribeResponse, subscribe_response::Notice};

    /// Three messages: a notice, two events, one event with a cursor.
    fn stream() -> Vec<u8> {
        let event = |size: usize| Event {
            id: "x".repeat(size),
            ..Event::default()
        };
        let messages = [
            SubscribeResponse {
                notice: Some(Notice::CaughtUp(CaughtUp { sequence: 300 })),
                ..SubscribeResponse::default()
            },
            SubscribeResponse {
                events: vec![event(3), event(400)],
                ..SubscribeResponse::default()
            },
            SubscribeResponse {
                events: vec![event(10)],
                cursor: "cursor".into(),
                ..SubscribeResponse::default()
            },
        ];
        let mut bytes = Vec::new();
        for message in messages {
            let message = message.encode_to_vec();
            let mut framed = vec![0];
            framed.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
            framed.extend_from_slice(&message);
            // Two DATA frames for each message.
            let (first, second) = framed.split_at(framed.len() / 2);
            put_frame(&mut bytes, DATA, 0, STREAM, first);
            put_frame(&mut bytes, DATA, 0, STREAM, second);
        }
        bytes
    }

    #[test]
    fn events_are_counted_however_the_bytes_were_cut() {
        let stream = stream();
        for cut in 1..stream.len() {
            let mut subscriber = Subscriber::new(None, 16_384);
            let events: u64 = stream
                .chunks(cut)
                .map(|piece| subscriber.receive(piece, &mut Vec::new()).unwrap())
                .sum();
            assert_eq!(events, 3, "cut every {cut} bytes");
        }
    }

    #[test]
    fn settings_and_pings_are_answered_and_headers_make_it_ready() {
        let mut subscriber = Subscriber::new(Some("user.created"), 16_384);
        let mut bytes = Vec::new();
        put_frame(&mut bytes, SETTINGS, 0, 0, &[0; 6]);
        put_frame(&mut bytes, PING, 0, 0, b"12345678");
        put_frame(&mut bytes, HEADERS, FLAG_END_HEADERS, STREAM, &[0x88]);
        let mut answer = Vec::new();
        assert!(!subscriber.is_ready());
        subscriber.receive(&bytes, &mut answer).unwrap();
        assert!(subscriber.is_ready());
        let mut expected = Vec::new();
        put_frame(&mut expected, SETTINGS, FLAG_ACK, 0, &[]);
        put_frame(&mut expected, PING, FLAG_ACK, 0, b"12345678");
        assert_eq!(answer, expected);
    }

    #[test]
    fn a_stream_that_ends_is_an_error() {
        let mut bytes = Vec::new();
        put_frame(&mut bytes, HEADERS, FLAG_END_STREAM, STREAM, &[]);
        let mut subscriber = Subscriber::new(None, 16_384);
        subscriber.receive(&bytes, &mut Vec::new()).unwrap_err();
    }
}
