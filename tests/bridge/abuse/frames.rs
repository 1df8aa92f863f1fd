//! A connection of HTTP/2 that is driven frame by frame: what a client library would never send, and
//! what comes back. The frames themselves are the load's. Headers of answers are not decoded, because
//! what is asked here is only whether there was one.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

pub(crate) use prelude_bridge_load::frames::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::sockets;

pub(crate) const CANCEL: u32 = 8;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

pub(crate) const SUBSCRIBE: &str = "/prelude.bridge.v1.EventService/Subscribe";
pub(crate) const GET_RANGE: &str = "/prelude.bridge.v1.EventService/GetRange";

/// How long a server may think about a flood that has ended.
const JUDGEMENT: Duration = Duration::from_secs(5);

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
    let mut header = [0; HEADER_BYTES];
    reader.read_exact(&mut header).await.ok()?;
    let header = Header::parse(header);
    let mut payload = vec![0; header.length];
    reader.read_exact(&mut payload).await.ok()?;
    Some(Frame {
        kind: header.kind,
        flags: header.flags,
        stream: header.stream,
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
