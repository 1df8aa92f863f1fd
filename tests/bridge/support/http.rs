//! HTTP/1.1 written by hand: tests of refusals have to send what no client library would.

use std::{io, net::SocketAddr};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::SOON;

/// A request, as its bytes will be.
#[derive(Clone)]
pub(crate) struct Request {
    head: String,
    body: Vec<u8>,
    length: Length,
}

/// How a request says where its body ends.
#[derive(Clone, Copy)]
enum Length {
    Announced(usize),
    Chunked,
    Unsaid,
}

impl Request {
    pub(crate) fn new(method: &str, target: &str) -> Self {
        Self {
            head: format!("{method} {target} HTTP/1.1\r\nHost: bridge\r\nConnection: close\r\n"),
            body: Vec::new(),
            length: Length::Unsaid,
        }
    }

    pub(crate) fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// With a `Content-Length` and, as Prelude sends it, the content type of JSON.
    pub(crate) fn post(target: &str, body: &[u8]) -> Self {
        Self::bare_post(target, body).header("Content-Type", "application/json")
    }

    /// With a `Content-Length` and no content type.
    pub(crate) fn bare_post(target: &str, body: &[u8]) -> Self {
        Self {
            body: body.to_vec(),
            length: Length::Announced(body.len()),
            ..Self::new("POST", target)
        }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.head.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    /// Sends the body in chunks, without saying how long it is.
    pub(crate) fn chunked(mut self) -> Self {
        self.length = Length::Chunked;
        self
    }

    /// Announces a body of another length than it sends.
    pub(crate) fn announcing(mut self, bytes: usize) -> Self {
        self.length = Length::Announced(bytes);
        self
    }

    /// Sends no word about a body, and none.
    pub(crate) fn without_body(mut self) -> Self {
        self.length = Length::Unsaid;
        self
    }

    /// What goes over the wire.
    fn bytes(self) -> Vec<u8> {
        let mut bytes = self.head.into_bytes();
        match self.length {
            Length::Announced(bytes_announced) => {
                bytes.extend(format!("Content-Length: {bytes_announced}\r\n\r\n").bytes());
                bytes.extend(self.body);
            }
            Length::Chunked => {
                bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n");
                for chunk in self.body.chunks(60_000) {
                    bytes.extend(format!("{:x}\r\n", chunk.len()).bytes());
                    bytes.extend(chunk);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(b"0\r\n\r\n");
            }
            Length::Unsaid => bytes.extend(b"\r\n"),
        }
        bytes
    }

    /// Sends it on a connection of its own and reads the whole answer.
    ///
    /// # Errors
    /// The connection failed or ended before an answer was complete: the bridge is gone.
    pub(crate) async fn send(self, address: SocketAddr) -> io::Result<Answer> {
        let exchange = async {
            let mut stream = TcpStream::connect(address).await?;
            let bytes = self.bytes();
            let (mut reader, mut writer) = stream.split();
            let mut answer = Vec::new();
            // Both at once: a refusal may come before the body is out, and it is the answer that
            // counts.
            let (_, read) = tokio::join!(writer.write_all(&bytes), reader.read_to_end(&mut answer));
            read?;
            Answer::parse(&answer).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        };
        let late = io::Error::from(io::ErrorKind::TimedOut);
        tokio::time::timeout(SOON, exchange)
            .await
            .map_err(|_| late)?
    }
}

/// Sends these bytes on a connection of their own, and returns all the answers to them once the other side
/// has closed the connection.
pub(crate) async fn exchange(address: SocketAddr, bytes: &[u8]) -> Vec<Answer> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let (mut reader, mut writer) = stream.split();
        let mut answers = Vec::new();
        let (_, read) = tokio::join!(writer.write_all(bytes), reader.read_to_end(&mut answers));
        read.unwrap();
        Answer::parse_all(&answers)
    };
    tokio::time::timeout(SOON, exchange).await.unwrap()
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in small letters.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Answers here say how long they are; one that was cut is none.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (answer, rest) = Self::parse_first(bytes)?;
        rest.is_empty().then_some(answer)
    }

    /// One after another.
    fn parse_all(mut bytes: &[u8]) -> Vec<Self> {
        let mut answers = Vec::new();
        while !bytes.is_empty() {
            let (answer, rest) = Self::parse_first(bytes).unwrap();
            answers.push(answer);
            bytes = rest;
        }
        answers
    }

    fn parse_first(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).ok()?;
        let mut lines = head.split("\r\n");
        let status: u16 = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let header = |line: &str| {
            let (name, value) = line.split_once(": ")?;
            Some((name.to_lowercase(), value.to_owned()))
        };
        let mut answer = Self {
            status,
            headers: lines.map(header).collect::<Option<_>>()?,
            body: Vec::new(),
        };
        let has_body = status >= 200 && status != 204;
        let announced = if has_body {
            answer.header("content-length")?.parse::<usize>().ok()?
        } else {
            0
        };
        let (body, rest) = bytes[end + 4..].split_at_checked(announced)?;
        answer.body = body.to_vec();
        Some((answer, rest))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}
