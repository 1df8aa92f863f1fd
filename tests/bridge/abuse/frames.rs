//! HTTP/2 written by hand (RFC 9113): what a client library would never send, and what comes back
//! frame by frame. Headers are sent as literals that no table has to know (RFC 7541, 6.2.2); those
//! of answers are not decoded, because what is asked here is only whether there was one.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::sockets;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) const CANCEL: u32 = 8;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

pub(crate) const SUBSCRIBE: &str = "/prelude.bridge.v1.EventService/Subscribe";
pub(crate) const GET_RANGE: &str = "/prelude.bridge.v1.EventService/GetRange";

/// A gRPC message of no bytes: everything from now on, or an empty question.
pub(crate) const EMPTY_MESSAGE: [u8; 5] = [0; 5];

/// A frame as it goes over the wire.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = Vec::with_capacity(9 + payload.len());
    bytes.extend(&length[1..]);
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The settings with these identifiers and values.
pub(crate) fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (identifier, value) in values {
        payload.extend(identifier.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    frame(SETTINGS, 0, 0, &payload)
}

pub(crate) fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

pub(crate) fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

/// A header that is not remembered.
pub(crate) fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    field(0, name, value)
}

/// A header that both sides put into their tables.
pub(crate) fn remembered(name: &[u8], value: &[u8]) -> Vec<u8> {
    field(0x40, name, value)
}

fn field(first: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    for text in [name, value] {
        bytes.extend(string_length(text.len()));
        bytes.extend(text);
    }
    bytes
}

/// A length with a prefix of seven bits (RFC 7541, 5.1), of a string that is not compressed.
fn string_length(length: usize) -> Vec<u8> {
    if length < 127 {
        return vec![u8::try_from(length).unwrap()];
    }
    let mut bytes = vec![127];
    let mut rest = length - 127;
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).unwrap());
    bytes
}

/// How long a server may think about a flood that has ended.
const JUDGEMENT: Duration = Duration::from_secs(5);

/// The header block of a call.
pub(crate) fn call_block(path: &str) -> Vec<u8> {
    let pairs = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "bridge"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let fields = pairs.map(|(name, value)| literal(name.as_bytes(), value.as_bytes()));
    fields.concat()
}

/// A whole call with an empty message, under a token.
pub(super) fn authorized_call(stream: u32, path: &str, token: &str) -> Vec<u8> {
    let token = format!("Bearer {token}");
    let block = [
        call_block(path),
        literal(b"authorization", token.as_bytes()),
    ];
    let headers = frame(HEADERS, END_HEADERS, stream, &block.concat());
    let message = frame(DATA, END_STREAM, stream, &EMPTY_MESSAGE);
    [headers, message].concat()
}

/// The headers of a call whose message is still to come.
pub(crate) fn call(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &call_block(path))
}

/// A whole call with an empty message.
pub(crate) fn whole_call(stream: u32, path: &str) -> Vec<u8> {
    let message = frame(DATA, END_STREAM, stream, &EMPTY_MESSAGE);
    [call(stream, path), message].concat()
}

/// A frame that came.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// Whether it ends its stream: with a status, if there was a call.
    pub(crate) fn ends(&self) -> bool {
        self.kind == RST_STREAM || self.kind == HEADERS && self.flags & END_STREAM != 0
    }

    /// Whether it answers a ping.
    pub(super) fn is_pong(&self) -> bool {
        self.kind == PING && self.flags & ACK != 0
    }

    fn code(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With a GOAWAY of this code.
    GoAway(u32),
    /// Without a word.
    Closed,
}

/// One side of a connection.
pub(crate) struct Http2 {
    reader: OwnedReadHalf,
    pub(crate) writer: OwnedWriteHalf,
}

impl Http2 {
    /// A connection that has said nothing yet.
    pub(crate) async fn silent(address: SocketAddr) -> io::Result<Self> {
        let stream: TcpStream = sockets::connect(address).await?;
        let (reader, writer) = stream.into_split();
        Ok(Self { reader, writer })
    }

    /// A connection that has begun properly, with these settings. It acknowledges nothing.
    pub(crate) async fn begin(address: SocketAddr, values: &[(u16, u32)]) -> io::Result<Self> {
        let mut connection = Self::silent(address).await?;
        let start = [PREFACE, &settings(values)].concat();
        connection.writer.write_all(&start).await?;
        Ok(connection)
    }

    /// The same from another address than attackers have.
    pub(super) async fn begin_from(source: Ipv4Addr, address: SocketAddr) -> io::Result<Self> {
        let stream = sockets::connect_from(source, address).await?;
        let (reader, writer) = stream.into_split();
        let mut connection = Self { reader, writer };
        let start = [PREFACE, &settings(&[])].concat();
        connection.writer.write_all(&start).await?;
        Ok(connection)
    }

    /// Sends bytes, as far as somebody takes them.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes).await
    }

    /// The next frame; `None` at the end of the connection, however it came.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        read(&mut self.reader).await
    }

    /// Reads until a stream is ended by its headers or by a reset.
    pub(crate) async fn until_ended(&mut self, stream: u32) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.stream == stream && frame.ends() {
                return Some(frame);
            }
        }
    }

    /// Whether a call is answered with a message; not, if it is ended without one. Pings are
    /// answered meanwhile.
    pub(super) async fn is_answered(&mut self, stream: u32) -> bool {
        while let Some(frame) = self.next().await {
            self.acknowledge(&frame).await;
            if frame.stream == stream && (frame.kind == DATA || frame.ends()) {
                return frame.kind == DATA;
            }
        }
        false
    }

    /// Answers pings, and makes no other sound, until the connection ends.
    pub(super) async fn idle(mut self) -> End {
        let mut end = End::Closed;
        while let Some(frame) = self.next().await {
            self.acknowledge(&frame).await;
            if frame.kind == GOAWAY {
                end = End::GoAway(frame.code(4));
            }
        }
        end
    }

    /// Answers a frame, if it is a ping.
    async fn acknowledge(&mut self, frame: &Frame) {
        if frame.kind == PING && frame.flags & ACK == 0 {
            let _ = self.send(&self::frame(PING, ACK, 0, &frame.payload)).await;
        }
    }

    /// Reads, and answers nothing, until the connection ends.
    pub(crate) async fn end(mut self) -> End {
        read_to_end(&mut self.reader).await
    }

    /// Sends the same bytes over and over, and reads meanwhile, until the server has had enough or
    /// they are out so many times.
    pub(crate) async fn flood(mut self, bytes: &[u8], times: usize) -> Flooded {
        let mut reader = self.reader;
        let mut reading = tokio::spawn(async move { read_to_end(&mut reader).await });
        let mut sent = 0;
        while sent < times && self.writer.write_all(bytes).await.is_ok() {
            sent += 1;
        }
        // What is out may still have to be judged.
        let end = tokio::time::timeout(JUDGEMENT, &mut reading).await;
        reading.abort();
        Flooded {
            sent,
            end: end.ok().map(Result::unwrap),
        }
    }
}

async fn read(reader: &mut OwnedReadHalf) -> Option<Frame> {
    let mut head = [0; 9];
    reader.read_exact(&mut head).await.ok()?;
    let [a, b, c, kind, flags, d, e, f, g] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    reader.read_exact(&mut payload).await.ok()?;
    Some(Frame {
        kind,
        flags,
        stream: u32::from_be_bytes([d, e, f, g]),
        payload,
    })
}

async fn read_to_end(reader: &mut OwnedReadHalf) -> End {
    let mut end = End::Closed;
    while let Some(frame) = read(reader).await {
        if frame.kind == GOAWAY {
            end = End::GoAway(frame.code(4));
        }
    }
    end
}

/// What became of a flood.
#[derive(Debug)]
pub(crate) struct Flooded {
    /// How often the bytes were sent.
    pub(crate) sent: usize,
    /// How the connection ended, if the server ended it.
    pub(crate) end: Option<End>,
}
