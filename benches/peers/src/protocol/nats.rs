//! Owns the least of the NATS client protocol that the load needs: subscribe and count, create
//! JetStream's stream and consumers, and answer pings and flow control. See
//! <https://docs.nats.io/reference/reference-protocols/nats-protocol>.

use anyhow::{Result, bail};
use prelude_bridge_load::{Protocol, ProtocolError};
use serde_json::json;

/// The subscription whose messages count.
const EVENTS_SID: &[u8] = b"1";

/// One connection.
pub struct Client {
    opening: Vec<u8>,
    ready: Ready,
    state: State,
    /// A control line, or the head of a message, that was cut by the end of the bytes.
    cut: Vec<u8>,
    counts: bool,
}

/// What the server still has to say before it is ready.
enum Ready {
    /// `PONG`: it has taken everything before the `PING`.
    Pong,
    /// The answer to a request to JetStream.
    Answer,
    Yes,
}

enum State {
    Line,
    /// In a message's content, with this much to come.
    Skip {
        left: usize,
        counts: bool,
    },
    /// In a message that is to be looked at.
    Gather {
        left: usize,
        reply: Option<String>,
        header_bytes: usize,
        content: Vec<u8>,
    },
}

const CONNECT: &str = "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\
                       \"no_responders\":false,\"protocol\":1,\"lang\":\"rust\",\"version\":\"1\"}\r\n";

impl Client {
    fn new(commands: &str, ready: Ready) -> Self {
        Self {
            opening: format!("{CONNECT}{commands}").into_bytes(),
            ready,
            state: State::Line,
            cut: Vec::new(),
            counts: true,
        }
    }

    /// A subscriber of core NATS to one type of events, or to all.
    #[must_use]
    pub fn subscriber(event_type: Option<&str>) -> Self {
        let subject = subject(event_type);
        Self::new(&format!("SUB {subject} 1\r\nPING\r\n"), Ready::Pong)
    }

    /// A publisher. What it is acknowledged is read and forgotten.
    #[must_use]
    pub fn publisher() -> Self {
        let mut client = Self::new("SUB _ack.> 9\r\nPING\r\n", Ready::Pong);
        client.counts = false;
        client
    }

    /// Creates a stream that keeps what is published to a subject, in files.
    #[must_use]
    pub fn stream_creator(name: &str, subject: &str, replicas: usize) -> Self {
        let stream = json!({
            "name": name, "subjects": [subject], "retention": "limits", "storage": "file",
            "discard": "old", "num_replicas": replicas, "max_msgs": -1, "max_bytes": -1,
        });
        let subject = format!("$JS.API.STREAM.CREATE.{name}");
        Self::request(&subject, "_in.s", "", &stream.to_string())
    }

    /// Deletes a stream.
    #[must_use]
    pub fn stream_deleter(name: &str) -> Self {
        Self::request(&format!("$JS.API.STREAM.DELETE.{name}"), "_in.s", "", "")
    }

    /// An ordered consumer of its own for one type of events, or all: pushed, with flow control,
    /// unacknowledged, as clients' `OrderedConsumer` makes it.
    #[must_use]
    pub fn consumer(number: usize, event_type: Option<&str>) -> Self {
        let consumer = json!({
            "stream_name": "EVENTS",
            "config": {
                "deliver_subject": format!("_d.{number}"), "deliver_policy": "new",
                "ack_policy": "none", "max_deliver": 1, "flow_control": true,
                "idle_heartbeat": 5_000_000_000_u64, "mem_storage": true, "num_replicas": 1,
                "inactive_threshold": 300_000_000_000_u64, "filter_subject": subject(event_type),
            },
        });
        let subscribe = format!("SUB _d.{number} 1\r\n");
        let subject = "$JS.API.CONSUMER.CREATE.EVENTS";
        let inbox = format!("_in.{number}");
        Self::request(subject, &inbox, &subscribe, &consumer.to_string())
    }

    fn request(subject: &str, inbox: &str, before: &str, content: &str) -> Self {
        let length = content.len();
        let commands =
            format!("{before}SUB {inbox} 2\r\nPUB {subject} {inbox} {length}\r\n{content}\r\n");
        Self::new(&commands, Ready::Answer)
    }

    fn walk(&mut self, mut bytes: &[u8], answer: &mut Vec<u8>) -> Result<u64> {
        let mut events = 0;
        while !bytes.is_empty() {
            match &mut self.state {
                State::Line => {
                    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
                        self.cut.extend_from_slice(bytes);
                        break;
                    };
                    let (line, rest) = bytes.split_at(end + 1);
                    self.line(line.trim_ascii_end(), answer)?;
                    bytes = rest;
                }
                State::Skip { left, counts } => {
                    let skipped = (*left).min(bytes.len());
                    *left -= skipped;
                    if *left == 0 {
                        events += u64::from(*counts && self.counts);
                        self.state = State::Line;
                    }
                    bytes = &bytes[skipped..];
                }
                State::Gather { left, content, .. } => {
                    let (some, rest) = bytes.split_at((*left).min(bytes.len()));
                    content.extend_from_slice(some);
                    *left -= some.len();
                    bytes = rest;
                    if *left == 0 {
                        self.gathered(answer)?;
                    }
                }
            }
        }
        Ok(events)
    }

    fn line(&mut self, line: &[u8], answer: &mut Vec<u8>) -> Result<()> {
        // `MSG subject sid [reply] size`, `HMSG subject sid [reply] header-size size`
        if line.starts_with(b"MSG ") {
            let mut words = line.split(|&byte| byte == b' ').skip(2);
            let sid = words.next().unwrap_or_default();
            let size = number(line.rsplit(|&byte| byte == b' ').next().unwrap_or_default())?;
            let left = size + 2;
            self.state = if sid == b"2" {
                State::Gather {
                    left,
                    reply: None,
                    header_bytes: 0,
                    content: Vec::with_capacity(left),
                }
            } else {
                let counts = sid == EVENTS_SID;
                State::Skip { left, counts }
            };
        } else if line.starts_with(b"HMSG ") {
            let words: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
            let [_, _, _, reply @ .., header, size] = words.as_slice() else {
                bail!("an odd line from NATS");
            };
            let left = number(size)? + 2;
            self.state = State::Gather {
                left,
                reply: reply
                    .first()
                    .map(|reply| String::from_utf8_lossy(reply).into_owned()),
                header_bytes: number(header)?,
                content: Vec::with_capacity(left),
            };
        } else if line == b"PING" {
            answer.extend_from_slice(b"PONG\r\n");
        } else if line == b"PONG" {
            if matches!(self.ready, Ready::Pong) {
                self.ready = Ready::Yes;
            }
        } else if line.starts_with(b"-ERR") {
            bail!("NATS: {}", String::from_utf8_lossy(line));
        }
        Ok(())
    }

    /// An answer of JetStream's, or one of its status messages.
    fn gathered(&mut self, answer: &mut Vec<u8>) -> Result<()> {
        let gathered = std::mem::replace(&mut self.state, State::Line);
        let State::Gather {
            reply,
            header_bytes,
            content,
            ..
        } = gathered
        else {
            return Ok(());
        };
        if header_bytes == 0 {
            let text = String::from_utf8_lossy(&content);
            if text.contains("\"error\"") {
                bail!("JetStream: {}", text.trim_end());
            }
            self.ready = Ready::Yes;
            return Ok(());
        }
        // A request for flow control has a place to answer to; a heartbeat has one only in a
        // header, and only when the consumer is held up.
        let header = String::from_utf8_lossy(content.get(..header_bytes).unwrap_or_default());
        let stalled = header
            .lines()
            .find_map(|line| line.strip_prefix("Nats-Consumer-Stalled: "));
        if let Some(to) = reply.as_deref().or(stalled) {
            answer.extend_from_slice(format!("PUB {to} 0\r\n\r\n").as_bytes());
        }
        Ok(())
    }
}

impl Protocol for Client {
    fn opening(&self) -> Vec<u8> {
        self.opening.clone()
    }

    fn receive(&mut self, bytes: &[u8], replies: &mut Vec<u8>) -> Result<u64, ProtocolError> {
        if self.cut.is_empty() {
            return Ok(self.walk(bytes, replies)?);
        }
        let mut whole = std::mem::take(&mut self.cut);
        whole.extend_from_slice(bytes);
        Ok(self.walk(&whole, replies)?)
    }

    fn is_ready(&self) -> bool {
        matches!(self.ready, Ready::Yes)
    }
}

fn subject(event_type: Option<&str>) -> String {
    format!("ev.{}", event_type.unwrap_or(">"))
}

fn number(text: &[u8]) -> Result<usize> {
    Ok(std::str::from_utf8(text)?.trim().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_the_bytes_were_cut() {
        let stream =
            b"INFO {}\r\nPONG\r\nMSG ev.x 1 5\r\nhello\r\nMSG ev.x 1 $JS.ACK.x 2\r\n\r\n\r\n\
                       MSG _ack.1 9 2\r\n{}\r\nPING\r\n";
        for cut in 1..stream.len() {
            let (mut client, mut answer) = (Client::subscriber(None), Vec::new());
            let events: u64 = stream
                .chunks(cut)
                .map(|piece| client.receive(piece, &mut answer).unwrap())
                .sum();
            assert_eq!((events, answer.as_slice()), (2, b"PONG\r\n".as_slice()));
            assert!(client.is_ready());
        }
    }

    #[test]
    fn flow_control_is_answered() {
        let header = "NATS/1.0 100 FlowControl Request\r\n\r\n";
        let length = header.len();
        let message = format!("HMSG _d.1 1 $JS.FC.x {length} {length}\r\n{header}\r\n");
        let (mut client, mut answer) = (Client::consumer(1, None), Vec::new());
        assert_eq!(client.receive(message.as_bytes(), &mut answer).unwrap(), 0);
        assert_eq!(answer, b"PUB $JS.FC.x 0\r\n\r\n");
    }

    #[test]
    fn an_error_of_jetstream_is_an_error() {
        let mut client = Client::stream_creator("EVENTS", "ev.>", 1);
        let message = b"MSG _in.1 2 20\r\n{\"error\":{\"code\":1}}\r\n";
        client.receive(message, &mut Vec::new()).unwrap_err();
    }
}
