//! Owns what the load speaks: each protocol takes bytes as they come, counts what is in them, and
//! answers what must be answered, at as little cost as can be, so that the server is the limit.
//! Knows nothing of sockets.

pub mod grpc;
pub mod http;
pub mod nats;

use anyhow::Result;

/// One side of a connection.
pub enum Protocol {
    /// A gRPC stream of events.
    Grpc(grpc::Subscriber),
    /// A NATS connection: subscriber or publisher.
    Nats(nats::Client),
    /// Deliveries over HTTP/1.1.
    Http(http::Sender),
    /// Nothing but events of a fixed size; also a connection on which nothing comes back.
    Raw(Raw),
}

impl Protocol {
    /// What to send first.
    #[must_use]
    pub fn hello(&self) -> Vec<u8> {
        match self {
            Self::Grpc(subscriber) => subscriber.hello(),
            Self::Nats(client) => client.hello(),
            Self::Http(_) => Vec::new(),
            Self::Raw(raw) => raw.hello.to_vec(),
        }
    }

    /// Takes what came, and appends what must be answered. Returns how many events (or answers)
    /// were completed by it.
    ///
    /// # Errors
    /// The server says that something is wrong.
    pub fn receive(&mut self, bytes: &[u8], answer: &mut Vec<u8>) -> Result<u64> {
        match self {
            Self::Grpc(subscriber) => subscriber.receive(bytes, answer),
            Self::Nats(client) => client.receive(bytes, answer),
            Self::Http(sender) => sender.receive(bytes),
            Self::Raw(raw) => Ok(raw.receive(bytes)),
        }
    }

    /// Whether the server has confirmed what was asked of it: nothing that is published from now
    /// on is missed.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        match self {
            Self::Grpc(subscriber) => subscriber.is_ready(),
            Self::Nats(client) => client.is_ready(),
            Self::Http(_) => true,
            Self::Raw(raw) => raw.is_ready,
        }
    }
}

/// Events of a fixed size, one after the other. The server sends one byte when it has noted a
/// subscriber.
pub struct Raw {
    hello: &'static [u8],
    event_bytes: u64,
    is_ready: bool,
    received: u64,
}

impl Raw {
    /// A subscriber to events of this size.
    #[must_use]
    pub fn subscriber(event_bytes: u64) -> Self {
        Self {
            hello: b"S",
            event_bytes,
            is_ready: false,
            received: 0,
        }
    }

    /// A connection that only sends.
    #[must_use]
    pub fn publisher() -> Self {
        Self {
            hello: b"",
            event_bytes: u64::MAX,
            is_ready: true,
            received: 0,
        }
    }

    fn receive(&mut self, mut bytes: &[u8]) -> u64 {
        if !self.is_ready && !bytes.is_empty() {
            self.is_ready = true;
            bytes = bytes.get(1..).unwrap_or_default();
        }
        let before = self.received / self.event_bytes;
        self.received += bytes.len() as u64;
        self.received / self.event_bytes - before
    }
}

#[cfg(test)]
mod tests {
    use super::Raw;

    #[test]
    fn raw_events_are_counted_by_their_bytes() {
        let mut raw = Raw::subscriber(10);
        assert_eq!(raw.receive(&[0]), 0);
        assert_eq!(raw.receive(&[0; 9]), 0);
        assert_eq!(raw.receive(&[0; 12]), 2);
    }
}
